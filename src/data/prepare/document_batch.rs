//! A unit of work: some hundred kilobytes of a corpus, and what its text becomes.

use serde::{Deserialize, Serialize};

use crate::data::json_line;
use crate::data::separators::count_spelled_ends;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Fault, Result};

/// Text of a unit, about: large beside the cost of handing it over, small beside memory.
pub(super) const DOCUMENT_BATCH_BYTES: usize = 1 << 18;

/// A place between two units: where reading goes on after a break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CorpusPosition {
    /// The file, by its number in the corpus.
    pub file: usize,
    /// Bytes of the unpacked file, or rows of a table, before this place.
    pub at: u64,
    /// Lines before this place.
    pub line: u64,
    /// A separator ends here: the text behind it begins a document.
    #[serde(default)]
    pub between: bool,
}

/// What a unit holds.
#[derive(Debug)]
pub(super) enum Contents {
    /// A part of a text file without its separators, the places at which a document begins, how often it spells end of
    /// text, and the number of its separators.
    Text { bytes: Vec<u8>, starts: Vec<usize>, spelled: u64, separators: u64 },
    /// Whole lines of JSON, the first of them being line `line` (from 1) of the file `name`.
    Lines { bytes: Vec<u8>, name: String, line: u64 },
    /// Whole documents one after the other, and where each ends.
    Documents { bytes: Vec<u8>, ends: Vec<usize>, missing: u64 },
}

/// A unit and the place behind it.
#[derive(Debug)]
pub(super) struct DocumentBatch {
    pub contents: Contents,
    pub end: CorpusPosition,
    /// Bytes of all files that were read so far.
    pub file_bytes: u64,
}

/// What has been counted so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Documents.
    pub documents: u64,
    /// Bytes of text in them.
    pub text_bytes: u64,
    /// Invalid UTF-8 sequences that were replaced.
    pub replaced: u64,
    /// Rows and lines whose text is null: no documents.
    pub missing: u64,
    /// Places where a text spells end of text, which are encoded as text.
    #[serde(default)]
    pub spelled_ends: u64,
    /// Separators in text files.
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
    /// Bytes that it holds.
    pub(super) fn len(&self) -> usize {
        let (Self::Text { bytes, .. } | Self::Lines { bytes, .. } | Self::Documents { bytes, .. }) = self;
        bytes.len()
    }

    /// The tokens of the unit, end of text before every document that starts in it.
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
