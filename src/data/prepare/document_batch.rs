//! The unit of work of a preparation: some 256 KiB of a corpus, and their encoding into tokens.

use serde::{Deserialize, Serialize};

use crate::data::json_line;
use crate::data::separators::count_spelled_ends;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Fault, Result};

/// Approximate text of a batch in bytes: large enough to make handing it over cheap, small compared with memory.
pub(super) const DOCUMENT_BATCH_BYTES: usize = 1 << 18;

/// A position between two batches, at which an interrupted preparation resumes reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CorpusPosition {
    /// Index of the file in the corpus.
    pub file: usize,
    /// Bytes of the unpacked file, or rows of the table, before this position.
    pub at: u64,
    /// Lines before this position.
    pub line: u64,
    /// Whether a separator ends here, so that the next text begins a document.
    #[serde(default)]
    pub between: bool,
}

/// The text of a batch.
#[derive(Debug)]
pub(super) enum Contents {
    /// Part of a text file without its separators, the offsets at which documents begin, how often it spells end of
    /// text, and the number of removed separators.
    Text { bytes: Vec<u8>, starts: Vec<usize>, spelled: u64, separators: u64 },
    /// Whole lines of JSON. The first is line `line` (from 1) of the file `name`.
    Lines { bytes: Vec<u8>, name: String, line: u64 },
    /// Whole documents one after the other, the offset of the end of each, and the number of rows without text.
    Documents { bytes: Vec<u8>, ends: Vec<usize>, missing: u64 },
}

/// A part of a corpus that one thread encodes at once, and the position after it.
#[derive(Debug)]
pub(super) struct DocumentBatch {
    pub contents: Contents,
    pub end: CorpusPosition,
    /// Bytes of all files read so far.
    pub file_bytes: u64,
}

/// Counts of a corpus or of a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Number of documents.
    pub documents: u64,
    /// Bytes of text in the documents.
    pub text_bytes: u64,
    /// Number of invalid UTF-8 sequences that were replaced.
    pub replaced: u64,
    /// Number of rows and lines whose text is null. They are not documents.
    pub missing: u64,
    /// Number of times that texts spell end of text. The spelling is encoded as ordinary text.
    #[serde(default)]
    pub spelled_ends: u64,
    /// Number of separators in text files.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub separators: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.documents += other.documents;
        self.text_bytes += other.text_bytes;
        self.replaced += other.replaced;
        self.missing += other.missing;
        self.spelled_ends += other.spelled_ends;
        self.separators += other.separators;
    }
}

impl Contents {
    /// Returns the number of bytes of text.
    pub(super) fn len(&self) -> usize {
        let (Self::Text { bytes, .. } | Self::Lines { bytes, .. } | Self::Documents { bytes, .. }) = self;
        bytes.len()
    }

    /// Returns the tokens of the batch, with end of text before every document that begins in it, and its counts.
    pub(super) fn encode(&self, tokenizer: &Tokenizer, field: &str) -> Result<(Vec<u16>, Counts)> {
        let mut out = Encoded { tokenizer, tokens: Vec::with_capacity(self.len() / 3), counts: Counts::default() };
        match self {
            Self::Text { bytes, starts, spelled, separators } => {
                let (mut at, mut begins) = (0, false);
                for &start in starts {
                    out.text(&bytes[at..start], begins)?;
                    out.start();
                    (at, begins) = (start, true);
                }
                out.text(&bytes[at..], begins)?;
                (out.counts.spelled_ends, out.counts.separators) = (*spelled, *separators);
            }
            Self::Lines { bytes, name, line } => {
                for (i, text) in bytes.split(|&byte| byte == b'\n').enumerate() {
                    let number = line + i as u64;
                    if text.trim_ascii().is_empty() {
                        continue;
                    }
                    match json_line::text_of(text, field)
                        .map_err(|what| Error::data(Fault::at(name, format!("line {number}: {what}"))))?
                    {
                        Some(text) => out.document(&text)?,
                        None => out.counts.missing += 1,
                    }
                }
            }
            Self::Documents { bytes, ends, missing } => {
                out.counts.missing = *missing;
                let mut start = 0;
                for &end in ends {
                    out.document(&bytes[start..end])?;
                    start = end;
                }
            }
        }
        Ok((out.tokens, out.counts))
    }
}

struct Encoded<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u16>,
    counts: Counts,
}

impl Encoded<'_> {
    fn start(&mut self) {
        self.tokens.push(self.tokenizer.end_of_text());
        self.counts.documents += 1;
    }

    fn text(&mut self, text: &[u8], begins: bool) -> Result<()> {
        self.counts.replaced += self.tokenizer.encode_into(text, begins, &mut self.tokens)? as u64;
        self.counts.text_bytes += text.len() as u64;
        Ok(())
    }

    fn document(&mut self, text: &[u8]) -> Result<()> {
        self.start();
        self.text(text, true)?;
        self.counts.spelled_ends += count_spelled_ends(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Result<(Vec<u16>, Counts)> {
        let work = Contents::Lines { bytes: bytes.to_vec(), name: "x.jsonl".into(), line: 1 };
        work.encode(&Tokenizer::Bytes, "text")
    }

    #[test]
    fn each_line_is_a_document() {
        let bytes =
            b"{\"id\":[1,{\"text\":2}],\"text\":\"a\\u00e9\"}\r\n\n{\"text\":\"\"}\n{\"text\":null}\n{\"text\":\"b\"}";
        let (tokens, counts) = lines(bytes).unwrap();
        assert_eq!(tokens, [256, 97, 0xc3, 0xa9, 256, 256, 98]);
        assert_eq!(counts, Counts { documents: 3, text_bytes: 4, missing: 1, ..Counts::default() });
    }

    #[test]
    fn invalid_text_is_replaced_and_counted() {
        let work = Contents::Lines { bytes: b"{\"text\":\"a\xff \\ud800\"}".to_vec(), name: String::new(), line: 1 };
        let (tokens, counts) = work.encode(&Tokenizer::Gpt2, "text").unwrap();
        assert!(counts.replaced >= 2, "{counts:?}");
        assert!(
            String::from_utf8(Tokenizer::Gpt2.decode(&tokens.iter().map(|&t| u32::from(t)).collect::<Vec<_>>()))
                .is_ok()
        );
    }

    #[test]
    fn broken_lines_are_named() {
        for (text, what) in [
            (&b"{\"text\":\"a\"}\n{\"text\":\"b"[..], "line 2: not a JSON object"),
            (b"{\"body\":\"a\"}", "line 1: no field `text`"),
            (b"{\"text\":7}", "invalid type: integer `7`, expected a string"),
            (b"[\"text\"]", "expected an object"),
            (b"{\"text\":\"a\"} x", "trailing characters"),
            (b"{}", "no field"),
            (b"\x00", "line 1: not a JSON object"),
        ] {
            let error = lines(text).unwrap_err();
            let said = error.to_string();
            assert!(matches!(error, Error::Data(_)), "{said}");
            assert!(said.starts_with("x.jsonl: ") && said.contains(what) && !said.contains('\n'), "{said}");
        }
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        assert!(lines(&[b"{\"a\":", &deep[..], b"}"].concat()).is_err());
    }
}
