//! Text to token ids and back: GPT-2's byte pair encoding, or plain bytes.

use crate::error::{Error, Result};
use rayon::prelude::*;
use std::str::FromStr;

/// How text becomes token ids. All ids fit in 16 bits, as shard files need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tokenizer {
    /// GPT-2's byte pair encoding: 50,257 ids, the last of them end of text.
    #[default]
    Gpt2,
    /// Ids 0 to 255 are the bytes themselves, 256 is end of text.
    Bytes,
}

/// How the end of text is spelt when it is decoded.
const END_OF_TEXT: &[u8] = b"<|endoftext|>";

/// Bytes that one task encodes: large beside the cost of a task, small beside a file.
const PIECE_BYTES: usize = 1 << 16;

impl Tokenizer {
    /// Number of ids V.
    #[must_use]
    pub fn vocab(self) -> usize {
        match self {
            Self::Gpt2 => 50_257,
            Self::Bytes => 257,
        }
    }

    /// The id that stands before every document.
    #[must_use]
    pub fn end_of_text(self) -> u16 {
        match self {
            Self::Gpt2 => 50_256,
            Self::Bytes => 256,
        }
    }

    /// The name in flags and files: `gpt2` or `bytes`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Bytes => "bytes",
        }
    }

    /// The ids of a text. Nothing is added, and the spelling of end of text is text like any other.
    ///
    /// Bytes that are not UTF-8 become U+FFFD for `gpt2`; `bytes` takes them as they are.
    #[must_use]
    pub fn encode(self, text: impl AsRef<[u8]>) -> Vec<u16> {
        self.encode_counted(text.as_ref()).0
    }

    /// As [`encode`](Self::encode), with the number of invalid UTF-8 sequences that were replaced.
    #[must_use]
    pub fn encode_counted(self, text: &[u8]) -> (Vec<u16>, usize) {
        match self {
            Self::Bytes => (text.iter().map(|&byte| u16::from(byte)).collect(), 0),
            Self::Gpt2 => {
                let replaced = text.utf8_chunks().filter(|chunk| !chunk.invalid().is_empty()).count();
                (encode_gpt2(&String::from_utf8_lossy(text), PIECE_BYTES), replaced)
            }
        }
    }

    /// The bytes of a sequence of ids. End of text is written out as `<|endoftext|>`, an id outside the vocabulary
    /// as U+FFFD: a model may have more rows than its tokenizer has ids, and a sample should not fail for it.
    #[must_use]
    pub fn decode(self, ids: &[u32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            if id == u32::from(self.end_of_text()) {
                out.extend_from_slice(END_OF_TEXT);
            } else if id as usize >= self.vocab() {
                out.extend_from_slice("\u{fffd}".as_bytes());
            } else {
                self.decode_one(id, &mut out);
            }
        }
        out
    }

    /// Appends the bytes of an id that the vocabulary has.
    fn decode_one(self, id: u32, out: &mut Vec<u8>) {
        match self {
            Self::Bytes => out.push(id as u8),
            // an id below 50,256 always decodes, so the error cannot occur
            Self::Gpt2 => out.extend(tiktoken_rs::r50k_base_singleton().decode_bytes(&[id]).unwrap_or_default()),
        }
    }
}

impl std::fmt::Display for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Tokenizer {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "gpt2" => Ok(Self::Gpt2),
            "bytes" => Ok(Self::Bytes),
            _ => Err(Error::Usage(format!("tokenizer: unknown name, expected gpt2 or bytes, got `{name}`"))),
        }
    }
}

/// GPT-2's ids of a text, encoded in parallel pieces of some `piece_bytes`.
fn encode_gpt2(text: &str, piece_bytes: usize) -> Vec<u16> {
    let bpe = tiktoken_rs::r50k_base_singleton();
    let pieces: Vec<Vec<u16>> = pieces(text, piece_bytes)
        .par_iter()
        // every id is below 50,257, so the cast keeps it
        .map(|piece| bpe.encode_ordinary(piece).into_iter().map(|id| id as u16).collect())
        .collect();
    pieces.concat()
}

/// Cuts a text into pieces of at least `bytes` bytes (but the last), each cut before whitespace that follows
/// something else.
///
/// Such a cut never changes the ids: no word of GPT-2's splitting pattern goes from non-whitespace on to
/// whitespace, and its only look-ahead is from whitespace forwards.
fn pieces(text: &str, bytes: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = cut(rest, bytes) {
        let (piece, later) = rest.split_at(at);
        pieces.push(piece);
        rest = later;
    }
    pieces.push(rest);
    pieces
}

/// The first place at or after byte `from` where whitespace follows non-whitespace.
fn cut(text: &str, from: usize) -> Option<usize> {
    if from >= text.len() {
        return None;
    }
    let start = text.floor_char_boundary(from);
    let mut after_word = false;
    for (i, c) in text[start..].char_indices() {
        if c.is_whitespace() && after_word {
            return Some(start + i);
        }
        after_word = !c.is_whitespace();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::mt19937::Mt19937;

    /// Text of words, numbers, marks and runs of whitespace in an order that no language has.
    fn noise(seed: u32, items: usize) -> String {
        const ITEMS: [&str; 20] = [
            "the", " ", "  ", "\n", "\n\n", "\t", " it's", "'ll", "42", " 1984", "...", "?!", "é", "日本", "\u{a0}",
            "\u{3000}", "naïve", "x", " 🙂", "\r\n",
        ];
        let mut rng = Mt19937::new(seed);
        (0..items).map(|_| ITEMS[rng.next_u32() as usize % ITEMS.len()]).collect()
    }

    #[test]
    fn known_ids() {
        assert_eq!(Tokenizer::Gpt2.encode("Hello world"), [15496, 995]);
        assert_eq!(Tokenizer::Bytes.encode("Hi\u{e9}"), [72, 105, 0xc3, 0xa9]);
        assert!(Tokenizer::Gpt2.encode("").is_empty());
    }

    #[test]
    fn pieces_give_the_ids_of_the_whole() {
        let bpe = tiktoken_rs::r50k_base_singleton();
        for seed in 0..40 {
            let text = noise(seed, 400);
            let whole: Vec<u16> = bpe.encode_ordinary(&text).into_iter().map(|id| id as u16).collect();
            for bytes in [1, 7, 100] {
                assert_eq!(pieces(&text, bytes).concat(), text);
                assert_eq!(encode_gpt2(&text, bytes), whole, "seed {seed}, pieces of {bytes}");
            }
        }
    }

    #[test]
    fn decoding_gives_the_text_back() {
        let text = noise(99, 3000);
        for tokenizer in [Tokenizer::Gpt2, Tokenizer::Bytes] {
            let ids: Vec<u32> = tokenizer.encode(&text).into_iter().map(u32::from).collect();
            assert_eq!(tokenizer.decode(&ids), text.as_bytes());
        }
    }

    #[test]
    fn all_ids_decode() {
        for tokenizer in [Tokenizer::Gpt2, Tokenizer::Bytes] {
            for id in 0..tokenizer.vocab() as u32 {
                assert!(!tokenizer.decode(&[id]).is_empty(), "{tokenizer} {id}");
            }
            assert_eq!(tokenizer.decode(&[u32::from(tokenizer.end_of_text())]), b"<|endoftext|>");
            assert_eq!(tokenizer.decode(&[tokenizer.vocab() as u32]), "\u{fffd}".as_bytes());
        }
    }

    #[test]
    fn end_of_text_spelt_out_is_ordinary_text() {
        assert!(!Tokenizer::Gpt2.encode("<|endoftext|>").contains(&50_256));
    }

    #[test]
    fn invalid_utf8_is_replaced_and_counted() {
        let (ids, replaced) = Tokenizer::Gpt2.encode_counted(b"a\xffb\xc3");
        assert_eq!(replaced, 2);
        assert_eq!(ids, Tokenizer::Gpt2.encode("a\u{fffd}b\u{fffd}"));
        assert_eq!(Tokenizer::Bytes.encode_counted(b"\xff"), (vec![255], 0));
    }

    #[test]
    fn names_read_back() {
        for tokenizer in [Tokenizer::Gpt2, Tokenizer::Bytes] {
            assert_eq!(tokenizer.name().parse::<Tokenizer>().unwrap(), tokenizer);
        }
        assert!(matches!("bpe".parse::<Tokenizer>(), Err(Error::Usage(_))));
    }
}
