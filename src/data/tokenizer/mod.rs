//! Text to token ids and back: GPT-2's byte pair encoding, plain bytes, or a model's own byte pair encoding.

mod definition;
mod of_model;
mod own;
#[cfg(test)]
mod own_tests;
mod pieces;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::error::{Error, Fault, Result};
use crate::files::path_text;
use crate::formats::ModelInfo;
use crate::formats::tokenizer_files;
use crate::formats::tokenizer_folder::{TOKENIZER, TokenizerFiles, remove_others};
use crate::formats::vocabulary::Vocabulary;
use crate::model::Config;
use definition::Definition;
pub use of_model::{ModelTokenizer, same};
pub use own::Own;
use pieces::PIECE_BYTES;
pub(crate) use pieces::{Cuts, UNBROKEN_BYTES};

/// How text becomes token ids. All ids fit in 16 bits, as shard files need.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Tokenizer {
    /// GPT-2's byte pair encoding: 50,257 ids, the last of them end of text.
    #[default]
    Gpt2,
    /// Ids 0 to 255 are the bytes themselves, 256 is end of text.
    Bytes,
    /// A model's own.
    Own(Arc<Own>),
}

/// How the end of text is spelt when it is decoded.
const END_OF_TEXT: &[u8] = b"<|endoftext|>";

impl Tokenizer {
    /// Returns the tokenizer that files define: GPT-2's and plain bytes are recognised.
    #[must_use]
    pub fn of_files(files: TokenizerFiles) -> Self {
        match Definition::read(&files) {
            Ok(definition) if definition.is_gpt2() => Self::Gpt2,
            Ok(definition) if definition.is_bytes() => Self::Bytes,
            definition => Self::Own(Arc::new(Own::new(files, definition))),
        }
    }

    /// Returns the number of ids V. Nothing is known of a tokenizer that cannot be used: then it is 0.
    #[must_use]
    pub fn vocab(&self) -> usize {
        match self {
            Self::Gpt2 => 50_257,
            Self::Bytes => 257,
            Self::Own(own) => own.vocab().unwrap_or(0),
        }
    }

    /// Returns the id that stands before every document; of a tokenizer that cannot be used, 65,535.
    #[must_use]
    pub fn end_of_text(&self) -> u16 {
        match self {
            Self::Gpt2 => 50_256,
            Self::Bytes => 256,
            Self::Own(own) => own.end_of_text().unwrap_or(u16::MAX),
        }
    }

    /// Returns the name in files: `gpt2`, `bytes` or `own`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Bytes => "bytes",
            Self::Own(_) => "own",
        }
    }

    /// Returns a text that two tokenizers share only if they give the same ids: the name, and for a model's own
    /// tokenizer a hash of what it does.
    #[must_use]
    pub fn identity(&self) -> String {
        match self {
            Self::Own(own) => format!("own:{}", own.digest()),
            _ => self.name().to_owned(),
        }
    }

    /// Fails if text cannot be encoded with it: only ids work then.
    ///
    /// # Errors
    /// [`Error::Data`] naming its file and what is the matter.
    pub fn check(&self) -> Result<()> {
        if let Self::Own(own) = self { own.check() } else { Ok(()) }
    }

    /// Returns where a text may be cut without a change of its ids.
    pub(crate) fn cuts(&self) -> Cuts {
        if let Self::Own(own) = self { own.cuts() } else { Cuts::BeforeSpace }
    }

    /// Returns what a model's folder says about it; ids outside a model's `vocab` are left out.
    #[must_use]
    pub fn info(&self, vocab: usize) -> ModelInfo {
        let end = Some(u32::from(self.end_of_text())).filter(|id| (*id as usize) < vocab);
        ModelInfo { tokenizer: Some(self.name().to_owned()), bos: end, eos: end }
    }

    /// Returns its tokens for layouts that hold a tokenizer themselves; `None` if it cannot be used there: it splits or
    /// changes text in another way than GPT-2's.
    #[must_use]
    pub fn vocabulary(&self) -> Option<Vocabulary> {
        match self {
            Self::Own(own) => own.vocabulary(),
            _ => tokenizer_files::vocabulary(self.name()),
        }
    }

    /// Writes its files into a model's folder, in place of those of another; false if the model's vocabulary is smaller
    /// than the tokenizer's, and no files are written.
    ///
    /// # Errors
    /// [`Error::Output`] naming the file if writing fails.
    pub fn write_files(&self, dir: &Path, config: &Config) -> Result<bool> {
        match self {
            Self::Own(own) => own.files().write(dir).map(|()| true),
            _ => {
                let written = tokenizer_files::write(dir, self.name(), config)?;
                let own = |name: &str| written && tokenizer_files::of(self.name()).contains(&name);
                remove_others(dir, own).map(|()| written)
            }
        }
    }

    /// Returns the ids of a text. Nothing is added, and the spelling of end of text is text like any other.
    ///
    /// Bytes that are not UTF-8 become U+FFFD; `bytes` takes them as they are.
    ///
    /// # Errors
    /// [`Error::Data`] if it is a model's own tokenizer that cannot be used, see [`check`](Self::check).
    pub fn encode(&self, text: impl AsRef<[u8]>) -> Result<Vec<u16>> {
        self.encode_counted(text.as_ref()).map(|(ids, _)| ids)
    }

    /// As [`encode`](Self::encode), with the number of invalid UTF-8 sequences that were replaced, and of stretches that
    /// the vocabulary has no bytes for.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_counted(&self, text: &[u8]) -> Result<(Vec<u16>, usize)> {
        Ok(match self {
            Self::Bytes => (text.iter().map(|&byte| u16::from(byte)).collect(), 0),
            Self::Gpt2 => (encode_gpt2(&String::from_utf8_lossy(text), PIECE_BYTES), replaced(text)),
            Self::Own(own) => {
                let (ids, lost) = own.encode(&String::from_utf8_lossy(text), true)?;
                (ids, lost + replaced(text))
            }
        })
    }

    /// Appends the ids of a text, or of the rest of one that began earlier, on this thread alone; returns the number of
    /// places that were replaced.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub(crate) fn encode_into(&self, text: &[u8], begins: bool, ids: &mut Vec<u16>) -> Result<usize> {
        let valid = match self {
            Self::Bytes => {
                ids.extend(text.iter().map(|&byte| u16::from(byte)));
                return Ok(0);
            }
            _ => String::from_utf8_lossy(text),
        };
        let lost = match self {
            Self::Own(own) => own.encode_into(&valid, begins, ids)?,
            _ => {
                let pieces = Cuts::BeforeSpace.pieces(&valid, PIECE_BYTES);
                pieces.into_iter().for_each(|piece| encode_piece(piece, ids));
                0
            }
        };
        Ok(lost + replaced(text))
    }

    /// Returns the bytes of a sequence of ids. GPT-2's and the byte tokenizer's end of text is written out as
    /// `<|endoftext|>`, an id outside the vocabulary as U+FFFD: a model may have more rows than its tokenizer has ids,
    /// and a sample should not fail for it.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            let known = match self {
                Self::Own(own) => own.decode_one(id, &mut out),
                Self::Gpt2 | Self::Bytes if id == u32::from(self.end_of_text()) => {
                    out.extend_from_slice(END_OF_TEXT);
                    true
                }
                Self::Bytes => u8::try_from(id).map(|byte| out.push(byte)).is_ok(),
                Self::Gpt2 => {
                    let bytes = tiktoken_rs::r50k_base_singleton().decode_bytes(&[id]);
                    bytes.map(|bytes| out.extend(bytes)).is_ok()
                }
            };
            if !known {
                out.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
        out
    }
}

/// Counts the invalid UTF-8 sequences of a text.
fn replaced(text: &[u8]) -> usize {
    text.utf8_chunks().filter(|chunk| !chunk.invalid().is_empty()).count()
}

impl std::fmt::Display for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Own(own) => own.fmt(f),
            _ => f.write_str(self.name()),
        }
    }
}

/// A tokenizer as flags and recipes name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerName {
    /// `gpt2`.
    Gpt2,
    /// `bytes`.
    Bytes,
    /// `own`: the one in the folder of the run that the recipe describes.
    Own,
    /// A folder with a tokenizer's files, or the `tokenizer.json` in it.
    Folder(PathBuf),
}

impl TokenizerName {
    /// Returns the name of a tokenizer; a model's own is named by the folder of its files.
    #[must_use]
    pub fn of(tokenizer: &Tokenizer) -> Self {
        match tokenizer {
            Tokenizer::Gpt2 => Self::Gpt2,
            Tokenizer::Bytes => Self::Bytes,
            Tokenizer::Own(own) => Self::Folder(own.files().dir().to_owned()),
        }
    }

    /// Returns the name in a run's configuration, which keeps the files beside it: `own` in place of a folder.
    #[must_use]
    pub fn kept(self) -> Self {
        if matches!(self, Self::Folder(_)) { Self::Own } else { self }
    }

    /// Returns the name with `own` replaced by a folder.
    #[must_use]
    pub fn in_folder(self, dir: &Path) -> Self {
        if self == Self::Own { Self::Folder(dir.to_owned()) } else { self }
    }

    /// Reads the tokenizer.
    ///
    /// # Errors
    /// [`Error::Usage`] for `own` without a folder, or a name that is neither known nor a path; [`Error::Data`] if the
    /// folder holds no tokenizer, or one that cannot be used.
    pub fn open(&self) -> Result<Tokenizer> {
        let place = "--tokenizer";
        match self {
            Self::Gpt2 | Self::Bytes => {
                let tokenizer = if *self == Self::Gpt2 { Tokenizer::Gpt2 } else { Tokenizer::Bytes };
                let folder = Path::new(tokenizer.name());
                if folder.is_dir() && TokenizerFiles::read(folder)?.is_some_and(|f| Tokenizer::of_files(f) != tokenizer)
                {
                    log::warn!("{place} {tokenizer}: taken by name; for the folder that is here: ./{tokenizer}");
                }
                Ok(tokenizer)
            }
            Self::Own => {
                let fault = Fault::at(place, "`own` names no files").expected("gpt2, bytes or a folder");
                Err(Error::usage(fault.advice("name the folder that holds tokenizer.json")))
            }
            Self::Folder(path) => {
                let tokenizer = open_folder(path)?;
                tokenizer.check()?;
                Ok(tokenizer)
            }
        }
    }
}

fn open_folder(path: &Path) -> Result<Tokenizer> {
    let wanted = "gpt2, bytes or a folder with tokenizer.json, or vocab.json and merges.txt";
    let name = path.display();
    if !path.exists() {
        let fault = Fault::at("--tokenizer", format!("`{name}` is no tokenizer that is known, and no such folder"));
        let is_path = path.components().count() > 1;
        let fault = fault.expected(wanted);
        return Err(if is_path { Error::data(fault) } else { Error::usage(fault) });
    }
    let beside = path.parent().map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
    let inside = match path.file_name().and_then(OsStr::to_str) {
        _ if path.is_dir() => Some(path),
        Some(TOKENIZER | "vocab.json" | "merges.txt") => beside,
        Some(name) if name.ends_with(".json") => return Ok(Tokenizer::of_files(TokenizerFiles::of_file(path)?)),
        _ => None,
    };
    let none = || Error::data(Fault::at(path.display(), "holds no tokenizer").expected(wanted));
    let files = TokenizerFiles::read(inside.ok_or_else(&none)?)?.ok_or_else(&none)?;
    Ok(Tokenizer::of_files(files))
}

impl std::fmt::Display for TokenizerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gpt2 => f.write_str("gpt2"),
            Self::Bytes => f.write_str("bytes"),
            Self::Own => f.write_str("own"),
            Self::Folder(path) => path_text::spelled(path).unwrap_or_else(|| path.display().to_string()).fmt(f),
        }
    }
}

impl FromStr for TokenizerName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "" => {
                let fault = Fault::at("tokenizer", "an empty name");
                return Err(Error::usage(fault.expected("gpt2, bytes or a folder with tokenizer.json")));
            }
            "gpt2" => Self::Gpt2,
            "bytes" => Self::Bytes,
            "own" => Self::Own,
            path => Self::Folder(path_text::read(path)),
        })
    }
}

impl TryFrom<OsString> for TokenizerName {
    type Error = Error;

    fn try_from(name: OsString) -> Result<Self> {
        name.to_str().map_or_else(|| Ok(Self::Folder(name.clone().into())), str::parse)
    }
}

/// GPT-2's ids of a text, encoded in parallel pieces of some `piece_bytes`.
fn encode_gpt2(text: &str, piece_bytes: usize) -> Vec<u16> {
    let encoded: Vec<Vec<u16>> = Cuts::BeforeSpace
        .pieces(text, piece_bytes)
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
        assert_eq!(Tokenizer::Gpt2.encode("Hello world").unwrap(), [15496, 995]);
        assert_eq!(Tokenizer::Bytes.encode("Hi\u{e9}").unwrap(), [72, 105, 0xc3, 0xa9]);
        assert!(Tokenizer::Gpt2.encode("").unwrap().is_empty());
    }

    #[test]
    fn pieces_give_the_ids_of_the_whole() {
        let bpe = tiktoken_rs::r50k_base_singleton();
        for seed in 0..40 {
            let text = noise(seed, 400);
            let whole: Vec<u16> = bpe.encode_ordinary(&text).into_iter().map(|id| id as u16).collect();
            for bytes in [1, 7, 100] {
                assert_eq!(Cuts::BeforeSpace.pieces(&text, bytes).concat(), text);
                assert_eq!(encode_gpt2(&text, bytes), whole, "seed {seed}, pieces of {bytes}");
            }
        }
    }

    #[test]
    fn long_runs_of_one_kind_are_encoded() {
        // two million spaces before a letter once made the splitting pattern give up
        for (run, last) in [(" ", "x"), ("\n", "x"), ("a", " b"), ("\u{3000}", "x"), ("?", "")] {
            let text = run.repeat(2_000_000 / run.len()) + last;
            let ids: Vec<u32> = Tokenizer::Gpt2.encode(&text).unwrap().into_iter().map(u32::from).collect();
            assert!(Tokenizer::Gpt2.decode(&ids) == text.as_bytes(), "{run:?}");
            let mut serial = Vec::new();
            Tokenizer::Gpt2.encode_into(text.as_bytes(), true, &mut serial).unwrap();
            assert!(serial.into_iter().map(u32::from).eq(ids), "{run:?}");
        }
    }

    #[test]
    fn decoding_gives_the_text_back() {
        let text = noise(99, 3000);
        for tokenizer in [Tokenizer::Gpt2, Tokenizer::Bytes] {
            let ids: Vec<u32> = tokenizer.encode(&text).unwrap().into_iter().map(u32::from).collect();
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
        assert!(!Tokenizer::Gpt2.encode("<|endoftext|>").unwrap().contains(&50_256));
    }

    #[test]
    fn invalid_utf8_is_replaced_and_counted() {
        let (ids, replaced) = Tokenizer::Gpt2.encode_counted(b"a\xffb\xc3").unwrap();
        assert_eq!(replaced, 2);
        assert_eq!(ids, Tokenizer::Gpt2.encode("a\u{fffd}b\u{fffd}").unwrap());
        assert_eq!(Tokenizer::Bytes.encode_counted(b"\xff").unwrap(), (vec![255], 0));
    }

    #[test]
    fn names_read_back() {
        for name in ["gpt2", "bytes", "own", "models/german"] {
            assert_eq!(name.parse::<TokenizerName>().unwrap().to_string(), name);
        }
        assert!(matches!("".parse::<TokenizerName>(), Err(Error::Usage(_))));
        let open = |name: &str| name.parse::<TokenizerName>().unwrap().open();
        assert_eq!(open("bytes").unwrap(), Tokenizer::Bytes);
        // a word is taken for a name that is mistyped, a path for files that are missing
        assert!(matches!(open("bpe"), Err(Error::Usage(_))));
        assert!(matches!(open("own"), Err(Error::Usage(_))));
        assert!(matches!(open("no/such/folder"), Err(Error::Data(_))));
    }
}
