//! A unit of work: some hundred kilobytes of a corpus, and what its text becomes.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Fault, Result};

/// Text of a unit, about: large beside the cost of handing it over, small beside memory.
pub(super) const UNIT_BYTES: usize = 1 << 18;

/// A place between two units: where reading goes on after a break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Place {
    /// The file, by its number in the corpus.
    pub file: usize,
    /// Bytes of the unpacked file, or rows of a table, before this place.
    pub at: u64,
    /// Lines before this place.
    pub line: u64,
}

/// What a unit holds.
#[derive(Debug)]
pub(super) enum Work {
    /// A part of a document, from its start on if `starts`.
    Text { bytes: Vec<u8>, starts: bool },
    /// Whole lines of JSON, the first of them being line `line` (from 1) of the file `name`.
    Lines { bytes: Vec<u8>, name: String, line: u64 },
    /// Whole documents one after the other, and where each ends.
    Documents { bytes: Vec<u8>, ends: Vec<usize>, missing: u64 },
}

/// A unit and the place behind it.
#[derive(Debug)]
pub(super) struct Unit {
    pub work: Work,
    pub end: Place,
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
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.documents += other.documents;
        self.text_bytes += other.text_bytes;
        self.replaced += other.replaced;
        self.missing += other.missing;
    }
}

impl Work {
    /// Bytes that it holds.
    pub(super) fn len(&self) -> usize {
        let (Self::Text { bytes, .. } | Self::Lines { bytes, .. } | Self::Documents { bytes, .. }) = self;
        bytes.len()
    }

    /// The tokens of the unit, end of text before every document that starts in it.
    pub(super) fn encode(&self, tokenizer: &Tokenizer, field: &str) -> Result<(Vec<u16>, Counts)> {
        let mut out = Encoded { tokenizer, tokens: Vec::with_capacity(self.len() / 3), counts: Counts::default() };
        match self {
            Self::Text { bytes, starts } => {
                if *starts {
                    out.start();
                }
                out.text(bytes, *starts)?;
            }
            Self::Lines { bytes, name, line } => {
                for (i, text) in bytes.split(|&byte| byte == b'\n').enumerate() {
                    let number = line + i as u64;
                    let text = if number == 1 { text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text) } else { text };
                    if text.trim_ascii().is_empty() {
                        continue;
                    }
                    match line_text(text, field)
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
        self.text(text, true)
    }
}

/// The text of a line of JSON: the field's bytes, none if it is null. Half a surrogate pair and other invalid UTF-8
/// stay as they are: the tokenizer replaces and counts them.
fn line_text(line: &[u8], field: &str) -> std::result::Result<Option<Vec<u8>>, String> {
    let mut reader = serde_json::Deserializer::from_slice(line);
    let found = Line { field }
        .deserialize(&mut reader)
        .and_then(|found| reader.end().map(|()| found))
        .map_err(|e| describe_json(&e))?;
    found.ok_or_else(|| format!("no field `{field}`, expected one in every line; try --field NAME"))
}

/// serde_json's words without its line number, which is always 1 here.
fn describe_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text).replace('\n', " ");
    format!(
        "not a JSON object with a text, expected {{\"text\": \"...\"}}, got an error at column {}: {text}",
        error.column()
    )
}

/// Reads one object and keeps one field: `None` if it is not there, `Some(None)` if it is null.
struct Line<'a> {
    field: &'a str,
}

impl<'de> DeserializeSeed<'de> for Line<'_> {
    type Value = Option<Option<Vec<u8>>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Line<'_> {
    type Value = Option<Option<Vec<u8>>>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(Bytes(key)) = map.next_key()? {
            if key == self.field.as_bytes() {
                found = Some(map.next_value::<Option<Bytes>>()?.map(|text| text.0));
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// A JSON string as bytes.
struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E>(self, text: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(text.to_vec()))
            }

            fn visit_byte_buf<E>(self, text: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(text))
            }

            fn visit_str<E>(self, text: &str) -> Result<Bytes, E> {
                Ok(Bytes(text.as_bytes().to_vec()))
            }
        }
        deserializer.deserialize_bytes(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Result<(Vec<u16>, Counts)> {
        let work = Work::Lines { bytes: bytes.to_vec(), name: "x.jsonl".into(), line: 1 };
        work.encode(&Tokenizer::Bytes, "text")
    }

    #[test]
    fn each_line_is_a_document() {
        let bytes = b"\xef\xbb\xbf{\"id\":[1,{\"text\":2}],\"text\":\"a\\u00e9\"}\r\n\n{\"text\":\"\"}\n{\"text\":null}\n{\"text\":\"b\"}";
        let (tokens, counts) = lines(bytes).unwrap();
        assert_eq!(tokens, [256, 97, 0xc3, 0xa9, 256, 256, 98]);
        assert_eq!(counts, Counts { documents: 3, text_bytes: 4, replaced: 0, missing: 1 });
    }

    #[test]
    fn invalid_text_is_replaced_and_counted() {
        let work = Work::Lines { bytes: b"{\"text\":\"a\xff \\ud800\"}".to_vec(), name: String::new(), line: 1 };
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
