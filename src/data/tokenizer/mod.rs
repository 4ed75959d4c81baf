//! Converts text to token ids and back: GPT-2's byte pair encoding, plain bytes, or a model's own byte pair encoding.

mod definition;
mod name;
mod of_model;
mod own;
#[cfg(test)]
mod own_tests;
mod pieces;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::error::Result;
use crate::formats::ModelInfo;
use crate::formats::tokenizer_files;
use crate::formats::tokenizer_folder::{TokenizerFiles, remove_others};
use crate::formats::vocabulary::Vocabulary;
use crate::model::Config;
use definition::Definition;
pub use name::TokenizerName;
pub use of_model::{ModelTokenizer, same};
pub use own::Own;
use pieces::PIECE_BYTES;
pub(crate) use pieces::{Cuts, UNBROKEN_BYTES};

/// A tokenizer. All its ids fit in 16 bits, as shards require.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Tokenizer {
    /// GPT-2's byte pair encoding: 50,257 ids, of which the last is end of text.
    #[default]
    Gpt2,
    /// Plain bytes: ids 0 to 255 are the bytes, 256 is end of text.
    Bytes,
    /// A model's own tokenizer.
    Own(Arc<Own>),
}

/// The spelling of a decoded end of text.
const END_OF_TEXT: &[u8] = b"<|endoftext|>";

impl Tokenizer {
    /// Returns the tokenizer that files define. Recognises GPT-2's and plain bytes.
    #[must_use]
    pub fn of_files(files: TokenizerFiles) -> Self {
        match Definition::read(&files) {
            Ok(definition) if definition.is_gpt2() => Self::Gpt2,
            Ok(definition) if definition.is_bytes() => Self::Bytes,
            definition => Self::Own(Arc::new(Own::new(files, definition))),
        }
    }

    /// Returns the number of ids V; 0 for an unusable tokenizer, whose ids are unknown.
    #[must_use]
    pub fn vocab(&self) -> usize {
        match self {
            Self::Gpt2 => 50_257,
            Self::Bytes => 257,
            Self::Own(own) => own.vocab().unwrap_or(0),
        }
    }

    /// Returns the id of end of text, which is put before every document; 65,535 for an unusable tokenizer.
    #[must_use]
    pub fn end_of_text(&self) -> u16 {
        match self {
            Self::Gpt2 => 50_256,
            Self::Bytes => 256,
            Self::Own(own) => own.end_of_text().unwrap_or(u16::MAX),
        }
    }

    /// Returns the name that files record: `gpt2`, `bytes` or `own`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Bytes => "bytes",
            Self::Own(_) => "own",
        }
    }

    /// Returns a text that is equal for two tokenizers only if they give the same ids: the name, and for a model's own
    /// tokenizer a hash of its definition.
    #[must_use]
    pub fn identity(&self) -> String {
        match self {
            Self::Own(own) => format!("own:{}", own.digest()),
            _ => self.name().to_owned(),
        }
    }

    /// Fails if the tokenizer is unusable: then it cannot encode text.
    ///
    /// # Errors
    /// [`Error::Data`] naming the tokenizer's file and the reason.
    pub fn check(&self) -> Result<()> {
        if let Self::Own(own) = self { own.check() } else { Ok(()) }
    }

    /// Returns the rule for places at which a text may be cut without changing its ids.
    pub(crate) fn cuts(&self) -> Cuts {
        if let Self::Own(own) = self { own.cuts() } else { Cuts::BeforeSpace }
    }

    /// Returns the entries about this tokenizer for a model's config.json, without ids outside the model's `vocab`.
    #[must_use]
    pub fn info(&self, vocab: usize) -> ModelInfo {
        let end = Some(u32::from(self.end_of_text())).filter(|id| (*id as usize) < vocab);
        ModelInfo { tokenizer: Some(self.name().to_owned()), bos: end, eos: end }
    }

    /// Returns the tokens for file layouts that include a tokenizer; `None` if the tokenizer splits or changes text in
    /// another way than GPT-2's, which those layouts cannot express.
    #[must_use]
    pub fn vocabulary(&self) -> Option<Vocabulary> {
        match self {
            Self::Own(own) => own.vocabulary(),
            _ => tokenizer_files::vocabulary(self.name()),
        }
    }

    /// Writes the tokenizer's files into a model's folder and removes those of another tokenizer. Returns false,
    /// without writing files, if the model's vocabulary is smaller than the tokenizer's.
    ///
    /// # Errors
    /// [`Error::Output`] naming the file if writing fails.
    pub fn write_files(&self, dir: &Path, config: &Config) -> Result<bool> {
        match self {
            Self::Own(own) => own.files().write(dir).map(|()| true),
            _ => {
                let written = tokenizer_files::write(dir, self.name(), config)?;
                let own = |name: &str| written && tokenizer_files::file_names(self.name()).contains(&name);
                remove_others(dir, own).map(|()| written)
            }
        }
    }

    /// Returns the ids of a text. Nothing is added, and the spelling of end of text is encoded as ordinary text.
    ///
    /// Bytes that are not UTF-8 become U+FFFD; the tokenizer `bytes` encodes them unchanged.
    ///
    /// # Errors
    /// [`Error::Data`] if the tokenizer is unusable, see [`check`](Self::check).
    pub fn encode(&self, text: impl AsRef<[u8]>) -> Result<Vec<u16>> {
        self.encode_counted(text.as_ref()).map(|(ids, _)| ids)
    }

    /// Returns the ids of a text as [`encode`](Self::encode) does, and the number of replaced places: invalid UTF-8
    /// sequences, and stretches of bytes that the vocabulary lacks.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
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

    /// Appends the ids of a text, or of the rest of a text that began earlier, using this thread alone. Returns the
    /// number of replaced places.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
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

    /// Returns the bytes of a sequence of ids. End of text of GPT-2's and the byte tokenizer becomes `<|endoftext|>`.
    /// An id outside the vocabulary becomes U+FFFD: a model may have more rows than its tokenizer has ids, and a sample
    /// should not fail because of that.
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

/// Returns GPT-2's ids of a text, encoded in parallel in pieces of some `piece_bytes`.
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

/// Appends the ids of one piece. A piece without places to cut has at most [`UNBROKEN_BYTES`].
fn encode_piece(piece: &str, ids: &mut Vec<u16>) {
    // merging a word of half a megabyte needs some 60 bytes of memory per byte, so only one thread may do it at a time
    static LONG_WORDS: Mutex<()> = Mutex::new(());
    let _turn = (piece.len() >= 2 * PIECE_BYTES).then(|| LONG_WORDS.lock().unwrap_or_else(PoisonError::into_inner));
    let bpe = tiktoken_rs::r50k_base_singleton();
    // every id is below 50,257, so the cast keeps it
    ids.extend(bpe.encode_ordinary(piece).into_iter().map(|id| id as u16));
}

#[cfg(test)]
mod tests;
