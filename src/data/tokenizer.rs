//! Text to token ids and back: GPT-2's byte pair encoding, or plain bytes.

use crate::error::{Error, Fault, Result};
use rayon::prelude::*;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

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

/// Longest stretch without whitespace that is encoded whole. Beyond a million characters of whitespace the splitting
/// pattern would give up.
pub(crate) const UNBROKEN_BYTES: usize = 1 << 19;

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

    /// Appends the ids of a text on this thread alone; the number of invalid UTF-8 sequences that were replaced.
    pub(crate) fn encode_into(self, text: &[u8], ids: &mut Vec<u16>) -> usize {
        if self == Self::Bytes {
            ids.extend(text.iter().map(|&byte| u16::from(byte)));
            return 0;
        }
        pieces(&String::from_utf8_lossy(text), PIECE_BYTES).into_iter().for_each(|piece| encode_piece(piece, ids));
        text.utf8_chunks().filter(|chunk| !chunk.invalid().is_empty()).count()
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
            _ => Err(Error::usage(
                Fault::at("tokenizer", "unknown name").expected("gpt2 or bytes").found(format!("`{name}`")),
            )),
        }
    }
}

/// GPT-2's ids of a text, encoded in parallel pieces of some `piece_bytes`.
fn encode_gpt2(text: &str, piece_bytes: usize) -> Vec<u16> {
    let encoded: Vec<Vec<u16>> = pieces(text, piece_bytes)
        .par_iter()
        .map(|piece| {
            let mut ids = Vec::new();
            encode_piece(piece, &mut ids);
            ids
        })
        .collect();
    encoded.concat()
}

/// Appends the ids of one piece, which is at most [`UNBROKEN_BYTES`] long where no cut could be made.
fn encode_piece(piece: &str, ids: &mut Vec<u16>) {
    // a word of half a megabyte needs some 60 bytes a byte while it is merged, so only one at a time may be
    static LONG_WORDS: Mutex<()> = Mutex::new(());
    let _turn = (piece.len() >= 2 * PIECE_BYTES).then(|| LONG_WORDS.lock().unwrap_or_else(PoisonError::into_inner));
    let bpe = tiktoken_rs::r50k_base_singleton();
    // every id is below 50,257, so the cast keeps it
    ids.extend(bpe.encode_ordinary(piece).into_iter().map(|id| id as u16));
}

/// Cuts a text into pieces of some `bytes` bytes, each cut before whitespace that follows something else.
///
/// Such a cut never changes the ids: no word of GPT-2's splitting pattern goes from non-whitespace on to
/// whitespace, and its only look-ahead is from whitespace forwards. A stretch of [`UNBROKEN_BYTES`] without such a
/// place is cut where it is: there a word is split that no model needs whole, and memory stays bounded.
fn pieces(text: &str, bytes: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > bytes {
        let at = piece_end(rest.as_bytes(), bytes);
        let (piece, later) = rest.split_at(rest.floor_char_boundary(at));
        pieces.push(piece);
        rest = later;
    }
    pieces.push(rest);
    pieces
}

/// Where a piece of some `bytes` ends: the last cut up to there, else the first after it, else
/// [`UNBROKEN_BYTES`], else the end of the text. Never 0.
#[must_use]
pub(crate) fn piece_end(text: &[u8], bytes: usize) -> usize {
    let near = bytes.clamp(1, UNBROKEN_BYTES).min(text.len());
    let far = UNBROKEN_BYTES.min(text.len());
    let back = (1..=near).rev().find(|&at| is_cut(text, at));
    let end = back.or_else(|| (near + 1..far).find(|&at| is_cut(text, at))).unwrap_or(far);
    if end == far && far < text.len() && !is_cut(text, end) { floor_sequence(text, end) } else { end }
}

/// Whether ASCII whitespace stands at `at`, behind a character that is not whitespace. It sees bytes, so that a
/// text need not be valid; cuts before other whitespace are not needed.
fn is_cut(text: &[u8], at: usize) -> bool {
    let space = |byte: u8| byte.is_ascii_whitespace() || byte == 0x0b;
    if at == 0 || at >= text.len() || !space(text[at]) || space(text[at - 1]) {
        return false;
    }
    match text[at - 1] {
        0..0x80 => true,
        // the last byte of a longer character: is it whitespace?
        _ => !matches!(
            text[at.saturating_sub(3)..at],
            [.., 0xc2, 0x85 | 0xa0]
                | [0xe1, 0x9a, 0x80]
                | [0xe2, 0x80, 0x80..=0x8a | 0xa8 | 0xa9 | 0xaf]
                | [0xe2, 0x81, 0x9f]
                | [0xe3, 0x80, 0x80]
        ),
    }
}

/// The last place up to `at` where a UTF-8 sequence begins, if one does within four bytes.
fn floor_sequence(text: &[u8], at: usize) -> usize {
    (at.saturating_sub(3).max(1)..=at).rev().find(|&i| text[i] & 0xc0 != 0x80).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::mt19937::Mt19937;

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
    fn long_runs_of_one_kind_are_encoded() {
        // two million spaces before a letter once made the splitting pattern give up
        for (run, last) in [(" ", "x"), ("\n", "x"), ("a", " b"), ("\u{3000}", "x"), ("?", "")] {
            let text = run.repeat(2_000_000 / run.len()) + last;
            let ids: Vec<u32> = Tokenizer::Gpt2.encode(&text).into_iter().map(u32::from).collect();
            assert!(Tokenizer::Gpt2.decode(&ids) == text.as_bytes(), "{run:?}");
            let mut serial = Vec::new();
            Tokenizer::Gpt2.encode_into(text.as_bytes(), &mut serial);
            assert!(serial.into_iter().map(u32::from).eq(ids), "{run:?}");
        }
    }

    #[test]
    fn pieces_end_at_cuts_or_where_nothing_else_helps() {
        let end = |text: &str, bytes| piece_end(text.as_bytes(), bytes);
        assert_eq!(end("ab cd ef", 6), 5);
        assert_eq!(end("abcdef gh", 3), 6);
        assert_eq!(end("ab  cd", 3), 2);
        assert_eq!(end("abc", 2), 3);
        assert_eq!(end("a\u{a0} b\u{3000} c\u{2009} é d", 16), 16);
        let word = "é".repeat(UNBROKEN_BYTES / 2) + "é";
        assert_eq!(end(&word, 9), UNBROKEN_BYTES);
        assert_eq!(end(&format!("x{word}"), 9), UNBROKEN_BYTES - 1);
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
