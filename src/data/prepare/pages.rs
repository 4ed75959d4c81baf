//! Checks the sizes that the pages of a Parquet column claim, before a page is unpacked.
//!
//! A page is a header in Thrift's compact protocol ([`super::thrift`]) followed by the number of bytes that the header
//! states. The Parquet library allocates whatever size a header claims; this module first compares the claim with the
//! file. For gzip and Brotli, the library also unpacks more than the header claims, as much as there is. So these pages
//! are unpacked here once and discarded. Source: the Parquet and Thrift format descriptions.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use memmap2::MmapOptions;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::properties::ReaderProperties;
use parquet::file::serialized_reader::{ReadOptionsBuilder, SerializedFileReader};

use super::thrift::{Cursor, PAGE, SECOND_DATA_PAGE};
use super::values::Values;
use crate::data::tokens::{cannot_read, read_at};
use crate::error::{Error, Fault, Result};
use crate::units::{count, counted};

/// Longest page header in bytes. Statistics make headers long, but not longer than this.
const HEADER_BYTES: usize = 1 << 16;
/// Bytes by which a single text, or a page whose memory is not probed first, may exceed the size of its file.
pub(crate) const TEXT_BYTES: u64 = 48 << 20;
/// Bytes by which an unpacked page of many texts may exceed the size of its file: pyarrow puts 1024 rows into a page,
/// however long they are.
pub(crate) const PAGE_BYTES: u64 = 512 << 20;
/// Largest ratio of unpacked to packed size of a large page. A page with a higher ratio is broken: zlib reaches 1032.
const MOST_PACKED: u64 = 1100;
/// Advice for smaller pages.
const SMALLER_PAGES: &str = "try rewriting it with smaller pages, as with pyarrow.parquet.write_table(..., \
                             write_batch_size=16), or with a smaller data_page_size";

/// Opens a Parquet file whose footer [`super::footer`] has checked. For LZ4, only Hadoop's frames are accepted, which
/// state their unpacked size: the library would also try other frames and unpack them without limit.
pub(crate) fn reader(file: File) -> Result<Values, ParquetError> {
    let size = file.metadata()?.len();
    let properties = ReaderProperties::builder().set_backward_compatible_lz4(false).build();
    let options = ReadOptionsBuilder::new().with_reader_properties(properties).build();
    Ok(Values::new(SerializedFileReader::new_with_options(file, options)?, size))
}

/// Checks every page of a column in a row group. A page may unpack to `spare` bytes more than the size of the file. If
/// it unpacks to more than [`TEXT_BYTES`] above that size, there must be memory for two such pages: a dictionary and a
/// page of values.
///
/// # Errors
/// [`Error::Data`] naming the file and the first faulty page.
pub(crate) fn check(file: &File, name: &str, chunk: &ColumnChunkMetaData, spare: u64) -> Result<()> {
    let size = file.metadata().map_err(|e| cannot_read(name, &e))?.len();
    let range = byte_range(name, size, chunk)?;
    let mut at = range.start;
    let mut buffer = vec![0; 256];
    while at < range.end {
        let header = loop {
            let n = buffer.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
            read_at(file, &mut buffer[..n], at).map_err(|e: io::Error| cannot_read(name, &e))?;
            match Header::read(&buffer[..n]) {
                None if n == buffer.len() && n < HEADER_BYTES => buffer.resize(8 * n, 0),
                header => break header,
            }
        };
        let wrong = |expected: String, got: String| {
            Err(Error::data(
                Fault::at(name, format!("broken Parquet page at byte {at}"))
                    .expected(expected)
                    .found(got)
                    .advice("was it copied whole?"),
            ))
        };
        let Some(header) = header else {
            return wrong("a page header".into(), "other bytes".into());
        };
        let left = range.end - at - header.bytes as u64;
        let Some(packed) = u64::try_from(header.packed).ok().filter(|&packed| packed <= left) else {
            return wrong(format!("at most {}", counted(left, "byte")), header.packed.to_string());
        };
        let most = size + spare;
        let Ok(unpacked) = u64::try_from(header.unpacked) else {
            return wrong("a size".into(), header.unpacked.to_string());
        };
        let is_large = unpacked > size + TEXT_BYTES;
        if is_large && unpacked / MOST_PACKED > packed {
            return wrong(format!("at most {} unpacked", counted(MOST_PACKED * packed, "byte")), count(unpacked));
        }
        if unpacked > most || is_large && !has_memory(2 * unpacked) {
            let what = format!("the Parquet page at byte {at} unpacks to {}", counted(unpacked, "byte"));
            let fault = Fault::at(name, what);
            let too_many = format!("at most {}", counted(most, "byte"));
            let expected = if unpacked > most { too_many } else { "memory for two such pages".into() };
            return Err(Error::data(fault.expected(expected).advice(SMALLER_PAGES)));
        }
        let start = at + header.bytes as u64;
        let body = start.saturating_add(header.levels)..start + packed;
        let claimed = unpacked.saturating_sub(header.levels);
        if header.is_packed && !body.is_empty() && becomes_longer(file, body, chunk.compression(), claimed) {
            return wrong(format!("{} unpacked, as its header states", counted(unpacked, "byte")), "more".into());
        }
        at = start + packed;
    }
    Ok(())
}

/// Returns whether the system can provide `bytes` bytes of memory, by mapping them without writing to them. Rust's
/// allocator is not used for this, because a failed allocation would end the program.
fn has_memory(bytes: u64) -> bool {
    usize::try_from(bytes).is_ok_and(|bytes| MmapOptions::new().len(bytes).map_anon().is_ok())
}

/// Returns the range of bytes of a file that contains a column of a row group.
fn byte_range(name: &str, size: u64, chunk: &ColumnChunkMetaData) -> Result<Range<u64>> {
    let start = chunk.dictionary_page_offset().filter(|&at| at > 0).unwrap_or(chunk.data_page_offset());
    let range = u64::try_from(start).ok().zip(u64::try_from(chunk.compressed_size()).ok());
    range.and_then(|(start, len)| Some(start..start.checked_add(len)?)).filter(|r| r.end <= size).ok_or_else(|| {
        Error::data(
            Fault::at(name, "broken Parquet data")
                .expected(format!("a column within the file's {}", counted(size, "byte")))
                .found(format!("{} bytes at {start}", chunk.compressed_size())),
        )
    })
}

/// Returns whether bytes of a file unpack to more than `claimed` bytes in a compression that the library would unpack
/// entirely. Returns false for broken data, which the library reports.
fn becomes_longer(file: &File, body: Range<u64>, compression: Compression, claimed: u64) -> bool {
    let input = BufReader::with_capacity(1 << 16, Part { file, at: body.start, end: body.end });
    let most = claimed.saturating_add(1);
    let count = |unpacked: &mut dyn Read| io::copy(&mut unpacked.take(most), &mut io::sink());
    let length = catch_unwind(AssertUnwindSafe(|| match compression {
        Compression::GZIP(_) => count(&mut flate2::bufread::MultiGzDecoder::new(input)),
        Compression::BROTLI(_) => count(&mut brotli::Decompressor::new(input, 1 << 16)),
        _ => Ok(0),
    }));
    matches!(length, Ok(Ok(length)) if length > claimed)
}

/// Reads a range of a file from start to end.
struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = out.len().min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        read_at(self.file, &mut out[..n], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// The fields of a page header that are checked.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    /// Length of the header itself.
    bytes: usize,
    unpacked: i64,
    packed: i64,
    /// Bytes of levels before the values, which version 2 of the format never compresses.
    levels: u64,
    /// Whether the values are compressed. A version-2 page may state that they are not.
    is_packed: bool,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let (mut unpacked, mut packed, mut field) = (None, None, 0);
        let (mut levels, mut is_packed) = (0, true);
        while let Some(wire) = cursor.field(PAGE, &mut field)? {
            match field {
                2 => unpacked = Some(cursor.zigzag()?),
                3 => packed = Some(cursor.zigzag()?),
                8 => (levels, is_packed) = second_version(&mut cursor)?,
                _ => cursor.skip_field(PAGE, field, wire)?,
            }
        }
        Some(Self { bytes: cursor.at(), unpacked: unpacked?, packed: packed?, levels, is_packed })
    }
}

/// Reads the header of a version-2 data page: the bytes of its levels, and whether its values are compressed.
fn second_version(cursor: &mut Cursor) -> Option<(u64, bool)> {
    let (mut levels, mut is_packed, mut field) = (0_u64, true, 0);
    while let Some(wire) = cursor.field(SECOND_DATA_PAGE, &mut field)? {
        match field {
            5 | 6 => levels = levels.checked_add(u64::try_from(cursor.zigzag()?).ok()?)?,
            7 => is_packed = wire == 1,
            _ => cursor.skip_field(SECOND_DATA_PAGE, field, wire)?,
        }
    }
    Some((levels, is_packed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read() {
        // type 0, unpacked 300, packed 100, a header of two numbers, a text of a later version of the format
        let bytes = [0x15, 0, 0x15, 0xd8, 4, 0x15, 0xc8, 1, 0x2c, 0x15, 2, 0x15, 0, 0, 0xb8, 2, b'a', b'b', 0];
        let (levels, is_packed) = (0, true);
        assert_eq!(
            Header::read(&bytes),
            Some(Header { bytes: bytes.len(), unpacked: 300, packed: 100, levels, is_packed })
        );
        for n in 0..bytes.len() {
            assert_eq!(Header::read(&bytes[..n]), None, "{n}");
        }
        // version 2: 7 and 2 bytes of levels, values as they are
        let bytes = [0x15, 6, 0x15, 20, 0x15, 20, 0x5c, 0x55, 14, 0x15, 4, 0x12, 0, 0];
        let header = Header::read(&bytes).unwrap();
        assert_eq!((header.levels, header.is_packed), (9, false));
        // a list that claims 2^60 structs
        assert_eq!(Header::read(&[0x19, 0xfc, 255, 255, 255, 255, 255, 255, 255, 255, 15]), None);
        assert_eq!(Header::read(&[0x1c; 4000]), None);
    }
}
