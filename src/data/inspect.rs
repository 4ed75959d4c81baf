//! `wgpt data inspect`: what lies in token shards, and whether it is sound.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use crate::data::noted;
use crate::data::prepare::Note;
use crate::data::tokenizer::{self, Tokenizer};
use crate::data::tokens::{TokenSource, cannot_read};
use crate::error::{Error, Fault, Result};

/// Tokens that are looked at together.
const BLOCK_TOKENS: usize = 1 << 20;
/// Tokens whose text is shown.
const SHOWN_TOKENS: usize = 40;

/// What a shard holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShardReport {
    /// Its path.
    pub path: PathBuf,
    /// Tokens in it.
    pub tokens: u64,
    /// Documents that begin in it: ends of text.
    pub documents: u64,
    /// Lowest id.
    pub lowest: u16,
    /// Highest id.
    pub highest: u16,
    /// The first tokens as text.
    pub first_text: String,
}

/// What a set of shards holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The tokenizer, as the note says or was asked for.
    pub tokenizer: String,
    /// Its vocabulary.
    pub vocab: usize,
    /// Whether a `dataset.json` lies beside the shards; it agrees with them then.
    pub noted: bool,
    /// Tokens in all shards.
    pub tokens: u64,
    /// Documents in all shards.
    pub documents: u64,
    /// The shards by name.
    pub shards: Vec<ShardReport>,
}

/// The shards that `path` means: a file, the `.bin` files of a folder, or those that match a pattern.
///
/// # Errors
/// [`Error::Data`] if there is none.
pub fn shards(path: &str) -> Result<Vec<PathBuf>> {
    let file = Path::new(path);
    if file.is_file() {
        return Ok(vec![file.to_owned()]);
    }
    let mut found: Vec<PathBuf> = if file.is_dir() {
        let entries = std::fs::read_dir(file).map_err(|e| cannot_read(path, &e))?;
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "bin")).collect()
    } else {
        let paths =
            glob::glob(path).map_err(|e| Error::data(Fault::at(path, format!("not a file pattern: {}", e.msg))))?;
        paths.flatten().collect()
    };
    if found.is_empty() {
        let what = if file.is_dir() { "no .bin file in this folder" } else { "no such file" };
        return Err(Error::data(
            Fault::at(path, what).expected("at least one token shard").advice("try `wgpt data prepare`"),
        ));
    }
    found.sort();
    Ok(found)
}

/// Reads shards from end to end.
///
/// # Errors
/// [`Error::Data`] with the first fault: a header that is wrong, a size that does not fit, an id outside the
/// vocabulary, or a `dataset.json` that says something else.
pub fn inspect(paths: &[PathBuf], tokenizer: Option<Tokenizer>) -> Result<Report> {
    let folder = paths.first().and_then(|p| p.parent()).unwrap_or(Path::new(""));
    let note = Note::read(folder)?;
    let noted = noted::agreed(noted::tokenizers(paths)?)?;
    if let (Some(given), Some((place, noted))) = (&tokenizer, &noted) {
        tokenizer::same(noted, place, given, "--tokenizer")?;
    }
    let tokenizer = tokenizer.or(noted.map(|(_, noted)| noted)).unwrap_or_default();
    let results: Vec<Result<ShardReport>> = paths.par_iter().map(|path| shard(path, &tokenizer)).collect();
    // by name, so that the first fault is always the same one
    let shards = results.into_iter().collect::<Result<Vec<_>>>()?;
    if let Some(note) = &note {
        agree(note, folder, &shards)?;
    }
    Ok(Report {
        tokenizer: tokenizer.name().into(),
        vocab: tokenizer.vocab(),
        noted: note.is_some(),
        tokens: shards.iter().map(|s| s.tokens).sum(),
        documents: shards.iter().map(|s| s.documents).sum(),
        shards,
    })
}

fn shard(path: &Path, tokenizer: &Tokenizer) -> Result<ShardReport> {
    let source = TokenSource::open(path)?;
    let mut block = vec![0; BLOCK_TOKENS.min(source.len())];
    let (mut documents, mut lowest, mut highest, mut at) = (0, u16::MAX, 0, 0);
    let mut first_text = String::new();
    while at < source.len() {
        let n = block.len().min(source.len() - at);
        let ids = &mut block[..n];
        source.read_checked(at, ids, tokenizer.vocab())?;
        if at == 0 {
            let shown: Vec<u32> = ids.iter().take(SHOWN_TOKENS).map(|&id| u32::from(id)).collect();
            first_text = String::from_utf8_lossy(&tokenizer.decode(&shown)).into_owned();
        }
        for &id in &*ids {
            documents += u64::from(id == tokenizer.end_of_text());
            lowest = lowest.min(id);
            highest = highest.max(id);
        }
        at += n;
    }
    Ok(ShardReport { path: path.to_owned(), tokens: source.len() as u64, documents, lowest, highest, first_text })
}

/// Holds the shards against what the note says of them.
fn agree(note: &Note, folder: &Path, shards: &[ShardReport]) -> Result<()> {
    let path = Note::path(folder);
    for noted in &note.shards {
        let there = shards.iter().find(|s| s.path.file_name().is_some_and(|n| n == noted.file.as_str()));
        if let Some(there) = there
            && there.tokens != noted.tokens
        {
            return Err(Error::data(
                Fault::at(there.path.display(), format!("not the shard that {} tells of", path.display()))
                    .expected(format!("{} tokens", noted.tokens))
                    .found(there.tokens),
            ));
        }
    }
    let tokens: u64 = note.shards.iter().map(|s| s.tokens).sum();
    if tokens != note.tokens || note.train_tokens.checked_add(note.val_tokens) != Some(tokens) {
        return Err(Error::data(
            Fault::at(path.display(), "counts disagree").expected(format!("{tokens} tokens")).found(note.tokens),
        ));
    }
    let documents: u64 = shards.iter().map(|s| s.documents).sum();
    if shards.len() == note.shards.len() && documents != note.counts.documents {
        return Err(Error::data(
            Fault::at(path.display(), "counts disagree")
                .expected(format!("{documents} documents"))
                .found(note.counts.documents),
        ));
    }
    Ok(())
}
