//! Wraps the Parquet library's page reader and compares the number of values of each page with its bytes. The library
//! allocates as many dictionary entries, and as many lengths of texts, as a page claims.

use std::fs::File;

use parquet::basic::Encoding;
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, RowGroupReader};
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;

use super::thrift::Cursor;

/// Number of values by which a page may exceed half of the file's size in bytes. Each value takes up to 32 bytes.
const VALUES: u64 = 1 << 20;

/// A Parquet file with checked pages.
pub(crate) struct Values {
    reader: SerializedFileReader<File>,
    most: u64,
}

impl Values {
    /// Wraps the reader of a file of `size` bytes.
    pub(super) fn new(reader: SerializedFileReader<File>, size: u64) -> Self {
        Self { reader, most: size / 2 + VALUES }
    }
}

impl FileReader for Values {
    fn metadata(&self) -> &ParquetMetaData {
        self.reader.metadata()
    }

    fn num_row_groups(&self) -> usize {
        self.reader.num_row_groups()
    }

    fn get_row_group(&self, i: usize) -> Result<Box<dyn RowGroupReader + '_>> {
        Ok(Box::new(Group { group: self.reader.get_row_group(i)?, most: self.most }))
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_file(projection, self)
    }
}

/// A row group.
struct Group<'a> {
    group: Box<dyn RowGroupReader + 'a>,
    most: u64,
}

impl RowGroupReader for Group<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.group.metadata()
    }

    fn num_columns(&self) -> usize {
        self.group.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>> {
        let column = self.metadata().column(i).column_descr();
        // a column without nulls and lists stores no levels
        let levels = [column.max_rep_level(), column.max_def_level()].map(|level| level > 0);
        Ok(Box::new(Pages { pages: self.group.get_column_page_reader(i)?, levels, most: self.most }))
    }

    fn get_column_bloom_filter(&self, i: usize) -> Option<&Sbbf> {
        self.group.get_column_bloom_filter(i)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

/// The pages of a column in a row group.
struct Pages {
    pages: Box<dyn PageReader>,
    /// Whether repetition levels, and definition levels, precede the values.
    levels: [bool; 2],
    most: u64,
}

impl Pages {
    fn checked(&self, page: Option<Page>) -> Result<Option<Page>> {
        if page.as_ref().is_none_or(|page| self.is_sound(page)) {
            return Ok(page);
        }
        Err(ParquetError::General("a page claims more values than it has".into()))
    }

    fn is_sound(&self, page: &Page) -> bool {
        let claimed = page.num_values() as usize;
        match page {
            Page::DictionaryPage { buf, .. } => claimed <= buf.len() && claimed as u64 <= self.most,
            Page::DataPage { encoding: Encoding::DELTA_LENGTH_BYTE_ARRAY, .. }
            | Page::DataPageV2 { encoding: Encoding::DELTA_LENGTH_BYTE_ARRAY, .. } => self.has_lengths(page, 1),
            // the lengths of the prefixes that texts share with the text before, then the lengths of the rests
            Page::DataPage { encoding: Encoding::DELTA_BYTE_ARRAY, .. }
            | Page::DataPageV2 { encoding: Encoding::DELTA_BYTE_ARRAY, .. } => self.has_lengths(page, 2),
            _ => true,
        }
    }

    /// Returns whether none of the first `blocks` blocks of lengths claims too many.
    fn has_lengths(&self, page: &Page, blocks: usize) -> bool {
        let most = u64::from(page.num_values()).min(self.most);
        let Some(mut values) = self.values_of(page) else { return false };
        (0..blocks).all(|_| match lengths(values) {
            Some((count, bytes)) if count <= most => {
                values = values.get(bytes..).unwrap_or_default();
                true
            }
            _ => false,
        })
    }

    /// Returns the bytes of a page after its levels.
    fn values_of<'a>(&self, page: &'a Page) -> Option<&'a [u8]> {
        match page {
            Page::DataPage { buf, def_level_encoding, rep_level_encoding, .. } => {
                let mut rest: &[u8] = buf;
                for (_, encoding) in
                    self.levels.into_iter().zip([rep_level_encoding, def_level_encoding]).filter(|(there, _)| *there)
                {
                    // the other encoding is from before 2013, when delta-encoded lengths did not exist
                    let (len, behind) = rest.split_first_chunk().filter(|_| *encoding == Encoding::RLE)?;
                    rest = behind.get(usize::try_from(u32::from_le_bytes(*len)).ok()?..)?;
                }
                Some(rest)
            }
            Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
                buf.get(usize::try_from(def_levels_byte_len.checked_add(*rep_levels_byte_len)?).ok()?..)
            }
            Page::DictionaryPage { .. } => None,
        }
    }
}

/// Returns the number of values in a block of Parquet's DELTA_BINARY_PACKED, and the block's length in bytes.
fn lengths(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut cursor = Cursor::new(bytes);
    let (block, parts) = (cursor.varint()?, cursor.varint()?);
    let count = cursor.varint()?;
    cursor.zigzag()?;
    let in_part = block.checked_div(parts).filter(|&values| values > 0)?;
    let mut left = count.saturating_sub(1);
    while left > 0 {
        cursor.zigzag()?;
        // bits per value for each part, including parts that are missing
        let widths = bytes.get(cursor.at()..)?.get(..usize::try_from(parts).ok()?)?;
        cursor.pass(widths.len())?;
        for &width in widths {
            if left == 0 {
                break;
            }
            cursor.pass(usize::try_from(in_part.checked_mul(u64::from(width))? / 8).ok()?)?;
            left = left.saturating_sub(in_part);
        }
    }
    Some((count, cursor.at()))
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        self.checked(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.pages.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>> {
        let page = self.pages.take_deferred_dictionary()?;
        self.checked(page)
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::{WriterProperties, WriterVersion};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;
    use crate::data::prepare::{footer, pages};

    const ROWS: usize = 3000;

    /// Writes a column of texts, some of them null.
    fn written(encoding: Option<Encoding>, version: WriterVersion) -> Vec<u8> {
        let schema = parse_message_type("message m { optional binary text (UTF8); }").unwrap();
        let properties = WriterProperties::builder().set_writer_version(version);
        let properties = match encoding {
            Some(encoding) => properties.set_dictionary_enabled(false).set_encoding(encoding),
            None => properties,
        };
        let mut file = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut file, Arc::new(schema), Arc::new(properties.build())).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let levels: Vec<i16> = (0..ROWS).map(|i| i16::from(i % 7 > 0)).collect();
        let texts = (0..ROWS).filter(|i| i % 7 > 0).map(|i| ByteArray::from(format!("text {}", i % 50).as_str()));
        let texts: Vec<ByteArray> = texts.collect();
        column.typed::<ByteArrayType>().write_batch(&texts, Some(&levels), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        file
    }

    fn rows(bytes: &[u8]) -> Result<usize> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        std::fs::write(&path, bytes).unwrap();
        let file = File::open(&path).unwrap();
        footer::check(&file).unwrap();
        let reader = pages::reader(file)?;
        let rows = reader.get_row_iter(None)?.collect::<Result<Vec<_>>>()?;
        Ok(rows.len())
    }

    #[test]
    fn lengths_and_dictionaries_beyond_a_page_are_refused_before_memory_is_allocated() {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            let delta = [Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY].map(Some);
            for encoding in delta.into_iter().chain([None, Some(Encoding::PLAIN)]) {
                assert_eq!(rows(&written(encoding, version)).unwrap(), ROWS, "{encoding:?} {version:?}");
            }
            // the texts that are not null, in blocks of 128 values in 4 parts
            let header = [128, 1, 4, 0x8b, 20];
            for encoding in delta {
                let whole = written(encoding, version);
                let found: Vec<usize> = (0..whole.len()).filter(|&at| whole[at..].starts_with(&header)).collect();
                assert_eq!(found.len(), if encoding == delta[0] { 1 } else { 2 }, "{encoding:?} {version:?}");
                for at in found {
                    let mut more = whole.clone();
                    more[at + 4] = 0x7f;
                    let error = rows(&more).unwrap_err().to_string();
                    assert!(error.contains("more values than it has"), "{error}");
                }
            }
        }
        // a dictionary of 50 texts, by the field of its header and by its bytes
        let whole = written(None, WriterVersion::PARQUET_1_0);
        let at = whole.windows(3).position(|bytes| bytes == [0x4c, 0x15, 100]).unwrap();
        let mut more = [&whole[..at + 2], &[0xfe, 0x7f], &whole[at + 3..]].concat();
        // keep the footer's offset: the header has one more byte, so remove a byte of the texts
        let text = more.windows(6).position(|bytes| bytes == b"text 0").unwrap();
        more.remove(text);
        let error = rows(&more).unwrap_err().to_string();
        assert!(error.contains("more values than it has"), "{error}");
    }

    #[test]
    fn blocks_of_lengths_end_where_their_bytes_do() {
        assert_eq!(lengths(&[128, 1, 4, 1, 0]), Some((1, 5)));
        assert_eq!(lengths(&[128, 1, 4, 2, 0, 0, 0, 0, 0, 0]), Some((2, 10)));
        assert_eq!(lengths(&[128, 1, 4, 2, 0, 0, 8, 0, 0, 0]), None);
        assert_eq!(lengths(&[128, 1, 0, 2, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(lengths(&[0, 4, 2, 0, 0, 0, 0, 0, 0]), None);
        // 2^62 lengths of no bits each
        let many = [128, 1, 4, 128, 128, 128, 128, 128, 128, 128, 128, 64, 0, 0, 0, 0, 0, 0];
        assert_eq!(lengths(&many), None);
    }
}
