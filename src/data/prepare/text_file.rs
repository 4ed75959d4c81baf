//! Cuts a text file into batches, where a cut does not change tokens, and into documents at separators.

use super::document_batch::{Contents, CorpusPosition, DOCUMENT_BATCH_BYTES};
use super::reader::Stream;
use crate::data::separators::{SPELLED_END, Separators, count_spelled_ends};
use crate::data::tokenizer::{Cuts, UNBROKEN_BYTES};
use crate::error::Result;

/// Most bytes before a batch that may belong to a spelled end of text which continues in the batch.
const TAIL_BYTES: usize = SPELLED_END.len() - 1;

/// A text file, read from start to end.
pub(super) struct TextFile {
    stream: Stream,
    /// Empty if the file is one document.
    separator: Vec<u8>,
    cuts: Cuts,
    /// The last bytes of the same document before the position.
    tail: Vec<u8>,
}

impl TextFile {
    /// Opens a file at `place`.
    pub(super) fn open(mut stream: Stream, split_on: Option<&str>, cuts: Cuts, place: CorpusPosition) -> Result<Self> {
        let separator = split_on.unwrap_or_default().as_bytes().to_vec();
        let known = place.at.min(TAIL_BYTES as u64);
        stream.skip(place.at - known)?;
        stream.fill(known as usize)?;
        if (stream.buffer.len() as u64) < known {
            return Err(stream.shorter(place.at));
        }
        let mut file = Self { stream, separator, cuts, tail: Vec::new() };
        let bytes = file.stream.take(known as usize);
        file.keep_tail(&bytes, place.between);
        Ok(file)
    }

    fn keep_tail(&mut self, bytes: &[u8], between: bool) {
        self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]);
        let start = Separators::new(&self.tail, &self.separator).last().map_or(0, |(_, end)| end);
        let start = start.max(self.tail.len().saturating_sub(TAIL_BYTES));
        self.tail.drain(..start);
        if between {
            self.tail.clear();
        }
    }

    /// Returns the next batch; `None` at the end.
    pub(super) fn next(&mut self, place: &mut CorpusPosition) -> Result<Option<Contents>> {
        self.stream.fill(DOCUMENT_BATCH_BYTES)?;
        if self.stream.buffer.is_empty() {
            return Ok(None);
        }
        let cut = self.cut()?;
        // a separator that begins before the cut must be in the buffer as a whole
        self.stream.fill(cut + self.separator.len())?;
        let found = Separators::new(&self.stream.buffer, &self.separator);
        let found: Vec<(usize, usize)> = found.take_while(|(start, _)| *start < cut).collect();
        let separators = found.len() as u64;
        let end = found.last().map_or(cut, |(_, end)| cut.max(*end));
        let taken = self.stream.take(end);
        let (mut bytes, mut starts, mut ends) = (Vec::with_capacity(taken.len()), Vec::new(), 0);
        let mut at = 0;
        place.between |= place.at == 0;
        for (start, next) in found.into_iter().chain([(end, end)]) {
            let part = &taken[at..start];
            at = next;
            if !part.is_empty() {
                if std::mem::take(&mut place.between) {
                    starts.push(bytes.len());
                    self.tail.clear();
                }
                ends += self.spelled(part);
                bytes.extend_from_slice(part);
            }
            place.between |= next > start;
        }
        self.keep_tail(&bytes[starts.last().copied().unwrap_or(0)..], place.between);
        place.at += end as u64;
        Ok(Some(Contents::Text { bytes, starts, spelled: ends, separators }))
    }

    /// Counts the spelled ends of text that end in a part of a document, including one that begins before it.
    fn spelled(&self, part: &[u8]) -> u64 {
        let around = [&self.tail, &part[..part.len().min(TAIL_BYTES)]].concat();
        count_spelled_ends(part) + count_spelled_ends(&around)
    }

    /// Returns the end of a batch, regardless of separators.
    fn cut(&mut self) -> Result<usize> {
        if self.stream.ended {
            return Ok(self.stream.buffer.len());
        }
        let end = self.cuts.piece_end(&self.stream.buffer, DOCUMENT_BATCH_BYTES - 1);
        if end < self.stream.buffer.len() {
            return Ok(end);
        }
        self.stream.fill(UNBROKEN_BYTES + 1)?;
        Ok(self.cuts.piece_end(&self.stream.buffer, DOCUMENT_BATCH_BYTES - 1))
    }
}
