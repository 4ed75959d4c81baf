//! From files to units of work, one after the other, from any place between two units on.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::source::{Format, Source};
use super::table::Table;
use super::unit::{Place, UNIT_BYTES, Unit, Work};
use crate::data::tokenizer::{Cuts, UNBROKEN_BYTES};
use crate::error::{Error, Fault, Result};

/// Longest line of JSON.
const LINE_BYTES: usize = 32 << 20;

/// Reads a corpus.
pub(super) struct Reader<'a> {
    sources: &'a [Source],
    field: &'a str,
    place: Place,
    open: Option<Open>,
    /// Bytes of the files before the current one.
    before: u64,
    /// Bytes read of the current one.
    taken: Arc<AtomicU64>,
}

enum Open {
    Stream(Stream),
    Table(Box<Table>),
}

impl<'a> Reader<'a> {
    /// A reader that goes on at `place`.
    pub(super) fn new(sources: &'a [Source], field: &'a str, place: Place) -> Self {
        let before = sources.iter().take(place.file).map(|s| s.bytes).sum();
        Self { sources, field, place, open: None, before, taken: Arc::default() }
    }

    /// The next unit, none at the end of the corpus.
    pub(super) fn next(&mut self) -> Result<Option<Unit>> {
        while let Some(source) = self.sources.get(self.place.file) {
            let open = match &mut self.open {
                Some(open) => open,
                none => {
                    self.taken = Arc::default();
                    none.insert(open_at(source, self.field, self.place, &self.taken)?)
                }
            };
            let work = match open {
                Open::Stream(stream) => stream.next(source, &mut self.place)?,
                Open::Table(table) => table.next(source, &mut self.place, &self.taken)?,
            };
            if let Some(work) = work {
                let file_bytes = self.before + self.taken.load(Ordering::Relaxed).min(source.bytes);
                return Ok(Some(Unit { work, end: self.place, file_bytes }));
            }
            self.open = None;
            self.before += source.bytes;
            self.place = Place { file: self.place.file + 1, ..Place::default() };
        }
        Ok(None)
    }
}

fn open_at(source: &Source, field: &str, place: Place, taken: &Arc<AtomicU64>) -> Result<Open> {
    match source.kind().0 {
        Format::Parquet => Table::open(source, field, place.at).map(|t| Open::Table(Box::new(t))),
        format => {
            let mut stream = Stream {
                input: source.open(taken.clone())?,
                lines: format == Format::Lines,
                buffer: Vec::new(),
                ended: false,
            };
            stream.skip(source, place.at)?;
            Ok(Open::Stream(stream))
        }
    }
}

/// A file read from start to end.
struct Stream {
    input: Box<dyn Read + Send>,
    /// Cut at line ends, else where tokens do not change.
    lines: bool,
    /// Read and not yet handed out.
    buffer: Vec<u8>,
    ended: bool,
}

impl Stream {
    /// Passes over what an earlier run has handed out. A packed file has to be unpacked for that.
    fn skip(&mut self, source: &Source, bytes: u64) -> Result<()> {
        let copied =
            std::io::copy(&mut (&mut self.input).take(bytes), &mut std::io::sink()).map_err(|e| source.broken(&e))?;
        if copied < bytes {
            return Err(Error::data(
                Fault::at(source.name(), "became shorter")
                    .expected(format!("at least {bytes} bytes"))
                    .found(copied)
                    .advice("try --restart"),
            ));
        }
        Ok(())
    }

    /// Reads until the buffer holds `bytes` or the file ends.
    fn fill(&mut self, source: &Source, bytes: usize) -> Result<()> {
        let missing = bytes.saturating_sub(self.buffer.len());
        if !self.ended && missing > 0 {
            let read =
                (&mut self.input).take(missing as u64).read_to_end(&mut self.buffer).map_err(|e| source.broken(&e))?;
            self.ended = read < missing;
        }
        Ok(())
    }

    fn next(&mut self, source: &Source, place: &mut Place) -> Result<Option<Work>> {
        self.fill(source, UNIT_BYTES)?;
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let end = if self.lines { self.line_end(source, place)? } else { self.text_end(source)? };
        let rest = self.buffer.split_off(end);
        let bytes = std::mem::replace(&mut self.buffer, rest);
        let work = if self.lines {
            let line = place.line + 1;
            place.line += bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
            Work::Lines { bytes, name: source.name(), line }
        } else {
            Work::Text { bytes, starts: place.at == 0 }
        };
        place.at += end as u64;
        Ok(Some(work))
    }

    fn text_end(&mut self, source: &Source) -> Result<usize> {
        if self.ended {
            return Ok(self.buffer.len());
        }
        let end = Cuts::BeforeSpace.piece_end(&self.buffer, UNIT_BYTES - 1);
        if end < self.buffer.len() {
            return Ok(end);
        }
        self.fill(source, UNBROKEN_BYTES + 1)?;
        Ok(Cuts::BeforeSpace.piece_end(&self.buffer, UNIT_BYTES - 1))
    }

    fn line_end(&mut self, source: &Source, place: &Place) -> Result<usize> {
        let mut searched = 0;
        loop {
            if self.ended {
                return Ok(self.buffer.len());
            }
            if let Some(at) = self.buffer[searched..].iter().rposition(|&byte| byte == b'\n') {
                return Ok(searched + at + 1);
            }
            searched = self.buffer.len();
            if searched >= LINE_BYTES {
                return Err(Error::data(
                    Fault::at(source.name(), format!("line {}: too long", place.line + 1))
                        .expected(format!("at most {LINE_BYTES} bytes"))
                        .advice("is it JSON Lines, one object a line?"),
                ));
            }
            self.fill(source, 2 * searched)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::prepare::source::sources;
    use crate::data::tokenizer::Tokenizer;
    use std::io::Write;

    fn units(paths: &[std::path::PathBuf], place: Place) -> Vec<(Vec<u16>, Place)> {
        let sources = sources(paths).unwrap();
        let mut reader = Reader::new(&sources, "text", place);
        let mut units = Vec::new();
        while let Some(unit) = reader.next().unwrap() {
            units.push((unit.work.encode(&Tokenizer::Bytes, "text").unwrap().0, unit.end));
        }
        units
    }

    #[test]
    fn reading_goes_on_from_every_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let text: String = (0..90_000).map(|i| format!("word{i} ")).collect();
        let lines: String = (0..20_000).map(|i| format!("{{\"text\":\"document {i}\"}}\n")).collect();
        std::fs::write(path("a.txt"), &text).unwrap();
        std::fs::write(path("b.txt"), "").unwrap();
        let mut gz = flate2::write::GzEncoder::new(
            std::fs::File::create(path("c.jsonl.gz")).unwrap(),
            flate2::Compression::fast(),
        );
        gz.write_all(lines.as_bytes()).unwrap();
        gz.finish().unwrap();
        std::fs::write(path("d.jsonl.zst"), zstd::encode_all(lines.as_bytes(), 1).unwrap()).unwrap();
        let paths = ["a.txt", "b.txt", "c.jsonl.gz", "d.jsonl.zst"].map(path);
        let all = units(&paths, Place::default());
        assert!(all.len() > 6, "{}", all.len());
        let tokens: Vec<u16> = all.iter().flat_map(|u| u.0.clone()).collect();
        let mut expected = vec![256];
        expected.extend(text.bytes().map(u16::from));
        for _ in 0..2 {
            (0..20_000).for_each(|i| {
                expected.push(256);
                expected.extend(format!("document {i}").bytes().map(u16::from));
            });
        }
        assert!(tokens == expected);
        for (i, (_, place)) in all.iter().enumerate() {
            assert!(units(&paths, *place) == all[i + 1..], "from unit {i}");
        }
    }
}
