//! Cuts files into batches, one after the other, from any position between two batches on.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::document_batch::{Contents, CorpusPosition, DOCUMENT_BATCH_BYTES, DocumentBatch};
use super::manifest::Recipe;
use super::source::Source;
use super::table::Table;
use super::text_file::TextFile;
use crate::data::recognize::{Format, Input};
use crate::data::tokenizer::Cuts;
use crate::data::tokens::cannot_read;
use crate::data::unpack::Packing;
use crate::error::{Error, Fault, Result};
use crate::units::{counted, size};

/// Longest line of JSON in bytes.
const LINE_BYTES: usize = 32 << 20;

/// Reads a corpus batch by batch.
pub(super) struct Reader<'a> {
    recipe: &'a Recipe,
    /// Where a text may be cut into batches.
    cuts: Cuts,
    place: CorpusPosition,
    open: Option<Open>,
    /// Total size of the files before the current file.
    before: u64,
    /// Bytes read of the current file.
    taken: Arc<AtomicU64>,
}

enum Open {
    Text(TextFile),
    Lines(Stream),
    Table(Box<Table>),
}

impl<'a> Reader<'a> {
    /// Returns a reader that starts at `place`.
    pub(super) fn new(recipe: &'a Recipe, cuts: Cuts, place: CorpusPosition) -> Self {
        let before = recipe.sources.iter().take(place.file).map(|s| s.bytes).sum();
        Self { recipe, cuts, place, open: None, before, taken: Arc::default() }
    }

    /// Returns the next batch; `None` at the end of the corpus.
    pub(super) fn next(&mut self) -> Result<Option<DocumentBatch>> {
        while let Some(source) = self.recipe.sources.get(self.place.file) {
            let open = match &mut self.open {
                Some(open) => open,
                none => {
                    self.taken = Arc::default();
                    none.insert(open_at(source, self.recipe, self.cuts, self.place, &self.taken)?)
                }
            };
            let contents = match open {
                Open::Text(text) => text.next(&mut self.place)?,
                Open::Lines(stream) => next_lines(stream, &mut self.place)?,
                Open::Table(table) => table.next(source, &mut self.place, &self.taken)?,
            };
            if let Some(contents) = contents {
                let file_bytes = self.before + self.taken.load(Ordering::Relaxed).min(source.bytes);
                return Ok(Some(DocumentBatch { contents, end: self.place, file_bytes }));
            }
            self.open = None;
            self.before += source.bytes;
            self.place = CorpusPosition { file: self.place.file + 1, ..CorpusPosition::default() };
        }
        Ok(None)
    }
}

fn open_at(
    source: &Source,
    recipe: &Recipe,
    cuts: Cuts,
    place: CorpusPosition,
    taken: &Arc<AtomicU64>,
) -> Result<Open> {
    let input = Input::open(&source.path, taken.clone())?;
    let format = input.content.map_err(|foreign| foreign.refused(&source.name()))?;
    if format == Format::Parquet {
        return Table::open(source, &recipe.field, place.at).map(|t| Open::Table(Box::new(t)));
    }
    let mut stream = Stream::new(source.name(), input.packing, input.stream);
    if format == Format::Text {
        return TextFile::open(stream, recipe.split_on.as_deref(), cuts, place).map(Open::Text);
    }
    stream.skip(place.at)?;
    Ok(Open::Lines(stream))
}

/// A file read from start to end.
pub(super) struct Stream {
    name: String,
    packing: Packing,
    input: Box<dyn Read + Send>,
    /// Bytes read and not yet handed out.
    pub(super) buffer: Vec<u8>,
    pub(super) ended: bool,
}

impl Stream {
    pub(super) fn new(name: String, packing: Packing, input: Box<dyn Read + Send>) -> Self {
        Self { name, packing, input, buffer: Vec::new(), ended: false }
    }

    fn broken(&self, error: &io::Error) -> Error {
        match self.packing {
            Packing::Plain => cannot_read(&self.name, error),
            packing => packing.error(&self.name, error),
        }
    }

    /// Skips bytes that an earlier run has handed out. A packed file has to be unpacked for that.
    pub(super) fn skip(&mut self, bytes: u64) -> Result<()> {
        let copied = io::copy(&mut (&mut self.input).take(bytes), &mut io::sink()).map_err(|e| self.broken(&e))?;
        if copied < bytes { Err(self.shorter(bytes)) } else { Ok(()) }
    }

    /// Returns the error for a file that ends before the position that an earlier run had reached.
    pub(super) fn shorter(&self, bytes: u64) -> Error {
        let fault = Fault::at(&self.name, "became shorter").expected(format!("at least {}", counted(bytes, "byte")));
        Error::data(fault.advice("try --restart"))
    }

    /// Reads until the buffer holds `bytes` or the file ends.
    pub(super) fn fill(&mut self, bytes: usize) -> Result<()> {
        let missing = bytes.saturating_sub(self.buffer.len());
        if !self.ended && missing > 0 {
            let read =
                (&mut self.input).take(missing as u64).read_to_end(&mut self.buffer).map_err(|e| self.broken(&e))?;
            self.ended = read < missing;
        }
        Ok(())
    }

    /// Removes the first `end` bytes from the buffer and returns them.
    pub(super) fn take(&mut self, end: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(end);
        std::mem::replace(&mut self.buffer, rest)
    }
}

fn next_lines(stream: &mut Stream, place: &mut CorpusPosition) -> Result<Option<Contents>> {
    stream.fill(DOCUMENT_BATCH_BYTES)?;
    if stream.buffer.is_empty() {
        return Ok(None);
    }
    let end = line_end(stream, place)?;
    let bytes = stream.take(end);
    let line = place.line + 1;
    place.line += bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
    place.at += end as u64;
    Ok(Some(Contents::Lines { bytes, name: stream.name.clone(), line }))
}

fn line_end(stream: &mut Stream, place: &CorpusPosition) -> Result<usize> {
    let mut searched = 0;
    loop {
        if stream.ended {
            return Ok(stream.buffer.len());
        }
        if let Some(at) = stream.buffer[searched..].iter().rposition(|&byte| byte == b'\n') {
            return Ok(searched + at + 1);
        }
        searched = stream.buffer.len();
        if searched >= LINE_BYTES {
            return Err(Error::data(
                Fault::at(&stream.name, format!("line {}: too long", place.line + 1))
                    .expected(format!("at most {}", size(LINE_BYTES as u64)))
                    .advice("is it JSON Lines, with one object per line?"),
            ));
        }
        stream.fill(2 * searched)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::prepare::Options;
    use crate::data::tokenizer::Tokenizer;
    use std::io::Write;
    use std::path::PathBuf;

    fn units_split(
        paths: &[PathBuf],
        split_on: Option<&str>,
        place: CorpusPosition,
    ) -> Vec<(Vec<u16>, CorpusPosition, u64)> {
        let options = Options::new(paths.to_vec(), PathBuf::new(), "x");
        let recipe = Options { split_on: split_on.map(str::to_owned), ..options }.recipe().unwrap();
        let mut reader = Reader::new(&recipe, Cuts::BeforeSpace, place);
        let mut units = Vec::new();
        while let Some(batch) = reader.next().unwrap() {
            let (tokens, counts) = batch.contents.encode(&Tokenizer::Bytes, "text").unwrap();
            units.push((tokens, batch.end, counts.spelled_ends));
        }
        units
    }

    fn units(paths: &[PathBuf], place: CorpusPosition) -> Vec<(Vec<u16>, CorpusPosition, u64)> {
        units_split(paths, None, place)
    }

    /// Returns a text with `separator` around the ends of batches, and its tokens.
    fn separated(separator: &str, documents: usize) -> (String, Vec<u16>) {
        let (mut text, mut expected) = (String::new(), Vec::new());
        for i in 0..documents {
            // documents of 0 bytes to some 100 KB, with and without places to cut
            let length = [0, 1, 700, DOCUMENT_BATCH_BYTES / 50 + i, DOCUMENT_BATCH_BYTES / 3][i % 5];
            let word = if i % 2 == 0 { "word " } else { "unbroken" };
            let document = &word.repeat(length / word.len() + 1)[..length];
            if !document.is_empty() {
                expected.push(256);
                expected.extend(document.bytes().map(u16::from));
            }
            text = text + document + separator;
        }
        (text, expected)
    }

    #[test]
    fn separators_are_found_across_batches() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        for separator in ["<|endoftext|>", "\n\n\n", "—§—", "=", &"long separator ".repeat(30_000)] {
            let (text, expected) = separated(separator, if separator.len() > DOCUMENT_BATCH_BYTES { 20 } else { 400 });
            std::fs::write(&path, text).unwrap();
            let paths = std::slice::from_ref(&path);
            let all = units_split(paths, Some(separator), CorpusPosition::default());
            assert!(all.len() > 6, "{}", all.len());
            let tokens: Vec<u16> = all.iter().flat_map(|u| u.0.clone()).collect();
            assert!(tokens == expected, "{separator:.9}");
            for (i, (_, place, _)) in all.iter().enumerate().step_by(3) {
                assert!(units_split(paths, Some(separator), *place) == all[i + 1..], "{separator:.9}, from unit {i}");
            }
        }
    }

    #[test]
    fn spelled_ends_are_counted_across_batches() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        // without whitespace, so that batches are cut anywhere
        let text = "ab<|endoftext|>".repeat(200_000);
        std::fs::write(&path, &text).unwrap();
        let paths = std::slice::from_ref(&path);
        let all = units(paths, CorpusPosition::default());
        assert!(all.len() > 3, "{}", all.len());
        assert_eq!(all.iter().map(|u| u.2).sum::<u64>(), 200_000);
        for (i, (_, place, _)) in all.iter().enumerate() {
            assert!(units(paths, *place) == all[i + 1..], "from unit {i}");
        }
        let split = units_split(paths, Some("<|endoftext|>"), CorpusPosition::default());
        assert_eq!(split.iter().map(|u| u.2).sum::<u64>(), 0);
        let tokens: Vec<u16> = split.into_iter().flat_map(|u| u.0).collect();
        assert!(tokens == [256, 97, 98].repeat(200_000));
    }

    #[test]
    fn reading_resumes_at_every_position() {
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
        let all = units(&paths, CorpusPosition::default());
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
        for (i, (_, place, _)) in all.iter().enumerate() {
            assert!(units(&paths, *place) == all[i + 1..], "from unit {i}");
        }
    }
}
