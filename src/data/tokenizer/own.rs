//! A model's own tokenizer: a byte-level byte pair encoding in the files of its folder.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rayon::prelude::*;
use serde_json::Value;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

use super::definition::Definition;
use super::pieces::{Cuts, PIECE_BYTES};
use crate::error::{Error, Fault, Result};
use crate::formats::tokenizer_files::{spell, unspell};
use crate::formats::tokenizer_folder::TokenizerFiles;
use crate::formats::vocabulary::{TokenKind, Vocabulary};

/// A tokenizer that is neither GPT-2's nor plain bytes.
///
/// An unusable tokenizer is kept, too: its files are saved with its model, and no other tokenizer may replace it.
pub struct Own {
    files: TokenizerFiles,
    digest: String,
    pub(super) usable: Result<Usable, Box<Fault>>,
}

pub(super) struct Usable {
    pub(super) library: tokenizers::Tokenizer,
    /// The tokenizer for the rest of a text that began earlier, if it differs.
    continued: Option<tokenizers::Tokenizer>,
    /// The bytes of each id.
    tokens: Vec<Option<Box<[u8]>>>,
    definition: Definition,
    cuts: Cuts,
    /// Bytes without a token.
    missing: Vec<u8>,
}

impl Own {
    /// Returns the tokenizer of files that define neither GPT-2's tokenizer nor plain bytes.
    pub(super) fn new(files: TokenizerFiles, definition: Result<Definition, Fault>) -> Self {
        let usable = definition.and_then(|definition| Usable::new(&files, definition)).map_err(Box::new);
        let mut hasher = blake3::Hasher::new();
        match &usable {
            Ok(usable) => {
                hasher.update(usable.definition.canonical().as_bytes());
            }
            Err(_) => {
                for (_, bytes) in files.iter() {
                    hasher.update(bytes);
                }
            }
        }
        Self { files, digest: hasher.finalize().to_hex()[..16].to_owned(), usable }
    }

    /// Returns the tokenizer's files.
    #[must_use]
    pub fn files(&self) -> &TokenizerFiles {
        &self.files
    }

    /// Returns 16 hexadecimal digits that identify the tokenizer by its definition, independently of the form of its
    /// files.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    fn usable(&self) -> Result<&Usable> {
        self.usable.as_ref().map_err(|fault| {
            let what = format!("this tokenizer cannot encode text: {}", fault.what);
            let advice = match &*fault.advice {
                "" => "token shards made with it work: `--data`",
                advice => advice,
            };
            Error::data(Fault { what, ..(**fault).clone() }.advice(advice))
        })
    }

    /// Fails if the tokenizer is unusable.
    pub(super) fn check(&self) -> Result<()> {
        self.usable().map(drop)
    }

    pub(super) fn vocab(&self) -> Option<usize> {
        Some(self.usable.as_ref().ok()?.tokens.len())
    }

    pub(super) fn end_of_text(&self) -> Option<u16> {
        u16::try_from(self.usable.as_ref().ok()?.definition.end).ok()
    }

    pub(super) fn cuts(&self) -> Cuts {
        self.usable.as_ref().map_or(Cuts::Nowhere, |usable| usable.cuts)
    }

    /// Encodes a text, or the rest of a text that began earlier, in parallel. Returns the ids and the number of
    /// replaced places.
    pub(super) fn encode(&self, text: &str, begins: bool) -> Result<(Vec<u16>, usize)> {
        let usable = self.usable()?;
        let pieces = usable.cuts.pieces(text, PIECE_BYTES);
        let encoded: Result<Vec<Vec<u16>>> =
            pieces.par_iter().enumerate().map(|(i, piece)| usable.encode_piece(piece, begins && i == 0)).collect();
        Ok((encoded?.concat(), usable.lost(text)))
    }

    /// Encodes as [`encode`](Self::encode) does, on this thread alone.
    pub(super) fn encode_into(&self, text: &str, begins: bool, ids: &mut Vec<u16>) -> Result<usize> {
        let usable = self.usable()?;
        for (i, piece) in usable.cuts.pieces(text, PIECE_BYTES).into_iter().enumerate() {
            ids.extend(usable.encode_piece(piece, begins && i == 0)?);
        }
        Ok(usable.lost(text))
    }

    /// Returns the tokens as data, if the tokenizer splits text as GPT-2's does.
    pub(super) fn vocabulary(&self) -> Option<Vocabulary> {
        let usable = self.usable.as_ref().ok()?;
        let definition = &usable.definition;
        if !definition.splits_as_gpt2() || definition.prefix_space || definition.json["model"]["ignore_merges"] == true
        {
            return None;
        }
        let ids = usable.tokens.len();
        let mut tokens: Vec<String> = (0..ids).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![TokenKind::Unused; ids];
        for (token, id) in &definition.vocab {
            tokens[*id as usize].clone_from(token);
            kinds[*id as usize] = TokenKind::Normal;
        }
        for (id, token) in &definition.added {
            tokens[*id as usize].clone_from(&token.content);
            kinds[*id as usize] = if token.special { TokenKind::Control } else { TokenKind::Added };
        }
        kinds[definition.end as usize] = TokenKind::Control;
        let merges = definition.merges.iter().map(|[left, right]| format!("{left} {right}")).collect();
        Some(Vocabulary { tokens, kinds, merges, end: Some(definition.end), splitting: "gpt-2".to_owned() })
    }

    /// Appends the bytes of an id. Returns false if there is no such id.
    pub(super) fn decode_one(&self, id: u32, out: &mut Vec<u8>) -> bool {
        let token = self.usable.as_ref().ok().and_then(|usable| usable.tokens.get(id as usize)?.as_ref());
        token.map(|bytes| out.extend_from_slice(bytes)).is_some()
    }
}

impl PartialEq for Own {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Own {}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Own({self})")
    }
}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "own ({}", self.files.dir().display())?;
        if let (Some(vocab), Some(end)) = (self.vocab(), self.end_of_text()) {
            write!(f, ", {vocab} ids, end of text {end}")?;
        }
        write!(f, ", {})", &self.digest[..8])
    }
}

impl Usable {
    fn new(files: &TokenizerFiles, definition: Definition) -> Result<Self, Fault> {
        let refused = |what: String| {
            let fault = Fault::at(files.place().display(), what);
            fault.expected("a byte-level BPE that the `tokenizers` library reads")
        };
        let open = |json: &Value| -> Result<tokenizers::Tokenizer, Fault> {
            let text = json.to_string();
            // the library assumes valid files and may panic over others
            let read = catch_unwind(|| tokenizers::Tokenizer::from_bytes(text));
            let read = read.map_err(|_| refused("it cannot be decoded".into()))?;
            let mut library = read.map_err(|e| refused(e.to_string().to_lowercase().replace('\n', " ")))?;
            library.set_encode_special_tokens(true);
            Ok(library)
        };
        let library = open(&definition.json)?;
        let continued = definition.prefix_space.then(|| {
            let mut json = definition.json.clone();
            json["pre_tokenizer"] = definition.continued.clone();
            open(&json)
        });
        let continued = continued.transpose()?;
        let words = definition.vocab.iter().map(|(token, id)| (*id, unspell(token)));
        let marks = definition.added.iter().map(|(id, token)| (*id, token.content.clone().into_bytes()));
        let mut tokens = Vec::new();
        for (id, bytes) in words.chain(marks) {
            let at = id as usize;
            tokens.resize(tokens.len().max(at + 1), None);
            tokens[at] = Some(bytes.into_boxed_slice());
        }
        let has = |byte: &u8| definition.vocab.contains_key(&spell(&[*byte]));
        let missing = (0..=255).filter(|byte| !has(byte)).collect();
        let cuts = cuts(&definition, &library);
        let usable = Self { library, continued, tokens, definition, cuts, missing };
        let end = usable.definition.end;
        let spelled =
            usable.tokens.get(end as usize).and_then(Option::as_ref).map(|token| String::from_utf8_lossy(token));
        let ids = spelled.map_or(Ok(Vec::new()), |text| usable.encode_piece(&text, true));
        if ids.map_err(|e| e.fault().clone())?.iter().any(|id| u32::from(*id) == end) {
            return Err(refused("a text can spell its end of text".into()));
        }
        Ok(usable)
    }

    fn encode_piece(&self, piece: &str, begins: bool) -> Result<Vec<u16>> {
        let library = self.continued.as_ref().filter(|_| !begins).unwrap_or(&self.library);
        let encoded = catch_unwind(AssertUnwindSafe(|| library.encode_fast(piece, false)));
        let failed = |what: &str| {
            Error::data(Fault::at("tokenizer", format!("the `tokenizers` library cannot encode a text ({what})")))
        };
        let encoded = encoded.map_err(|_| failed("it panicked"))?.map_err(|e| failed(&e.to_string()))?;
        let ids = encoded.get_ids().iter().map(|id| u16::try_from(*id).map_err(|_| failed("an id beyond 16 bits")));
        ids.collect()
    }

    /// Counts the stretches of bytes without a token in a text. The encoding drops or replaces them.
    fn lost(&self, text: &str) -> usize {
        if self.missing.is_empty() {
            return 0;
        }
        let lost = |byte: &u8| self.missing.contains(byte);
        text.as_bytes().chunk_by(|a, b| lost(a) == lost(b)).filter(|run| lost(&run[0])).count()
    }
}

/// Returns the rule for places at which a long text may be cut without changing its ids.
fn cuts(definition: &Definition, library: &tokenizers::Tokenizer) -> Cuts {
    let inside_words = |text: &str| !text.contains(char::is_whitespace);
    let found: Vec<_> = definition.added.values().filter(|token| !token.special).collect();
    // then a space is prepended to every part of a text between two such tokens
    let are_parts = definition.prefix_space && !found.is_empty();
    if are_parts || !found.iter().all(|token| inside_words(&token.content) && !token.strips) {
        return Cuts::Nowhere;
    }
    if definition.splits_as_gpt2() && !definition.prefix_space {
        return Cuts::BeforeSpace;
    }
    // these normalizers depend on more than the letters around a place
    let normalizer = definition.normalizer.to_string();
    let is_local = !["Prepend", "Strip\"", "Replace"].iter().any(|kind| normalizer.contains(kind));
    if is_local && parts_words(library) { Cuts::BetweenWords } else { Cuts::Nowhere }
}

/// Returns whether the pre-tokenizer splits before the space between two words, as far as examples show.
fn parts_words(library: &tokenizers::Tokenizer) -> bool {
    const EXAMPLES: [(&str, usize); 6] =
        [("ab cd", 2), ("Ab CD ef", 2), ("1. ab cd\n", 5), ("é ü", 2), ("日本 語", 6), ("it's Ab's Éa", 9)];
    let Some(splitting) = library.get_pre_tokenizer() else { return false };
    EXAMPLES.iter().all(|(text, at)| {
        let mut parts = PreTokenizedString::from(*text);
        let split = catch_unwind(AssertUnwindSafe(|| splitting.pre_tokenize(&mut parts)));
        let parts = parts.get_splits(OffsetReferential::Original, OffsetType::Byte);
        matches!(split, Ok(Ok(()))) && parts.iter().all(|(_, (start, end), _)| end <= at || start >= at)
    })
}
