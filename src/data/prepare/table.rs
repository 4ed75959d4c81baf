//! Reads a column of texts of a Parquet file.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parquet::basic::{Compression, Type};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::FileReader;

use super::document_batch::{Contents, CorpusPosition, DOCUMENT_BATCH_BYTES};
use super::source::Source;
use super::values::Values;
use super::{footer, pages};
use crate::data::tokens::cannot_read;
use crate::error::{Error, Fault, Result};
use crate::files::open;
use crate::units::{count, counted};

/// Number of rows that are read at once: few, because a row may be a book.
const ROWS: usize = 16;

/// One column of a Parquet file, read row by row.
pub(super) struct Table {
    file: File,
    reader: Values,
    column: usize,
    /// Definition level of a text that is not null: the number of optional groups around it, plus 1 if it is optional.
    level: i16,
    rows: u64,
    group: usize,
    /// Number of rows up to the end of the current row group.
    group_end: u64,
    /// Reader of the rest of the current row group.
    texts: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Rows that were read and not yet handed out; `None` for null.
    pending: VecDeque<Option<ByteArray>>,
}

impl Table {
    /// Opens a file at row `row`.
    pub(super) fn open(source: &Source, field: &str, row: u64) -> Result<Self> {
        let file = open::input(&source.path).map_err(|e| cannot_read(&source.name(), &e))?;
        let own = file.try_clone().map_err(|e| cannot_read(&source.name(), &e))?;
        footer::check(&file).map_err(|fault| Error::data(fault.within(source.name())))?;
        let reader = guard(source, || pages::reader(file).map_err(|e| broken(source, &e)))?;
        let meta = reader.metadata();
        let columns = meta.file_metadata().schema_descr().columns();
        // the path of a column in a group is `meta.text`; a name may also contain a dot itself
        let named = || columns.iter().enumerate().filter(|(_, c)| c.path().string() == field).map(|(i, _)| i);
        if named().count() > 1 {
            return Err(Error::data(
                Fault::at(source.name(), format!("{} columns are called `{field}`", named().count()))
                    .expected("one")
                    .advice("try renaming them"),
            ));
        }
        let Some(column) = named().next() else {
            let names: Vec<String> = columns.iter().take(12).map(|c| c.path().string()).collect();
            return Err(Error::data(
                Fault::at(source.name(), format!("no column `{field}`"))
                    .expected(format!("one of {}", names.join(", ")))
                    .advice("try --field NAME"),
            ));
        };
        let found = &columns[column];
        if found.physical_type() != Type::BYTE_ARRAY || found.max_rep_level() > 0 {
            return Err(Error::data(
                Fault::at(source.name(), format!("column `{field}` has the wrong type"))
                    .expected("one text per row")
                    .found(format!(
                        "{}{}",
                        found.physical_type(),
                        if found.max_rep_level() > 0 { " in lists" } else { "" }
                    )),
            ));
        }
        let rows = meta.row_groups().iter().map(|g| u64::try_from(g.num_rows()).unwrap_or(0)).sum();
        let level = found.max_def_level();
        let (texts, pending) = (None, VecDeque::new());
        let mut table = Self { file: own, reader, column, level, rows, group: 0, group_end: 0, texts, pending };
        table.seek(source, row)?;
        Ok(table)
    }

    fn seek(&mut self, source: &Source, row: u64) -> Result<()> {
        loop {
            let start = self.group_end;
            if !self.next_group(source)? {
                return Ok(());
            }
            if row >= self.group_end {
                self.texts = None;
                continue;
            }
            let mut left = row - start;
            while left > 0 {
                self.read(source, usize::try_from(left).unwrap_or(ROWS).min(ROWS))?;
                left -= (self.pending.len() as u64).min(left);
                self.pending.clear();
            }
            return Ok(());
        }
    }

    /// Starts the next row group. Returns false after the last one.
    fn next_group(&mut self, source: &Source) -> Result<bool> {
        if self.group == self.reader.num_row_groups() {
            return Ok(false);
        }
        let group = self.reader.metadata().row_group(self.group);
        let chunk = group.column(self.column);
        if matches!(chunk.compression(), Compression::LZO) {
            return Err(Error::data(
                Fault::at(source.name(), "compressed with LZO")
                    .expected("none, SNAPPY, ZSTD, GZIP, BROTLI, LZ4 or LZ4_RAW")
                    .advice("try rewriting it with one of them"),
            ));
        }
        pages::check(&self.file, &source.name(), chunk, pages::PAGE_BYTES)?;
        self.group_end += u64::try_from(group.num_rows()).unwrap_or(0);
        self.texts = Some(guard(source, || {
            let group = self.reader.get_row_group(self.group).map_err(|e| broken(source, &e))?;
            let pages = group.get_column_page_reader(self.column).map_err(|e| broken(source, &e))?;
            let column = group.metadata().column(self.column).column_descr_ptr();
            Ok(ColumnReaderImpl::new(column, pages))
        })?);
        self.group += 1;
        Ok(true)
    }

    /// Reads up to `rows` rows of the current row group, at least one.
    fn read(&mut self, source: &Source, rows: usize) -> Result<()> {
        let Some(texts) = &mut self.texts else { return Ok(()) };
        let (mut values, mut levels) = (Vec::new(), Vec::new());
        let levels_out = (self.level > 0).then_some(&mut levels);
        let (read, found, _) =
            guard(source, || texts.read_records(rows, levels_out, None, &mut values).map_err(|e| broken(source, &e)))?;
        levels.resize(read, self.level);
        let there = levels.iter().filter(|&&level| level == self.level).count();
        if read == 0 || found != there || values.len() != there {
            return Err(Error::data(
                Fault::at(source.name(), "broken Parquet data")
                    .expected(format!(
                        "{} in {}",
                        counted(self.rows, "row"),
                        counted(self.reader.num_row_groups() as u64, "group")
                    ))
                    .found("fewer")
                    .advice("was it copied whole?"),
            ));
        }
        let mut values = values.into_iter();
        self.pending.extend(levels.iter().map(|&level| if level == self.level { values.next() } else { None }));
        Ok(())
    }

    /// Returns the next documents; `None` at the end.
    pub(super) fn next(
        &mut self,
        source: &Source,
        place: &mut CorpusPosition,
        taken: &Arc<AtomicU64>,
    ) -> Result<Option<Contents>> {
        let (mut bytes, mut ends, mut missing) = (Vec::new(), Vec::new(), 0);
        // row by row, because sixteen references to one dictionary entry become sixteen copies of it here
        while bytes.len() < DOCUMENT_BATCH_BYTES {
            if let Some(row) = self.pending.pop_front() {
                place.at += 1;
                match row {
                    Some(text) => {
                        check_length(source, place.at, text.len() as u64)?;
                        bytes.extend_from_slice(text.data());
                        ends.push(bytes.len());
                    }
                    None => missing += 1,
                }
                continue;
            }
            if self.texts.is_none() || place.at >= self.group_end {
                if !self.next_group(source)? {
                    break;
                }
                continue;
            }
            let left = usize::try_from(self.group_end - place.at).unwrap_or(ROWS);
            self.read(source, left.min(ROWS))?;
        }
        // a table is not read from end to end, so the progress in bytes is estimated from the rows read
        let share = u128::from(source.bytes) * u128::from(place.at) / u128::from(self.rows.max(1));
        taken.store(u64::try_from(share).unwrap_or(source.bytes), Ordering::Relaxed);
        let empty = ends.is_empty() && missing == 0;
        Ok((!empty).then_some(Contents::Documents { bytes, ends, missing }))
    }
}

/// Fails for a text that is much longer than its file, because many threads may each hold such a text.
fn check_length(source: &Source, row: u64, bytes: u64) -> Result<()> {
    let most = source.bytes + pages::TEXT_BYTES;
    if bytes <= most {
        return Ok(());
    }
    let fault = Fault::at(source.name(), format!("the text in row {row} is too long"));
    let fault = fault.expected(format!("at most {}", counted(most, "byte"))).found(count(bytes));
    Err(Error::data(fault.advice("try splitting it into several rows")))
}

/// Calls the Parquet library and turns its panics into errors: the library assumes valid files and may panic over
/// others.
fn guard<T>(source: &Source, work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::data(
            Fault::at(source.name(), "broken Parquet data")
                .expected("a valid file")
                .found("one that cannot be decoded"),
        ))
    })
}

fn broken(source: &Source, error: &ParquetError) -> Error {
    let text = error.to_string().to_lowercase().replace('\n', " ");
    Error::data(Fault::at(source.name(), "broken Parquet data").expected("a valid file").found(text))
}
