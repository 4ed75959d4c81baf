//! `wgpt data inspect`: summarises token shards and checks them from end to end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use crate::data::contents::blake3_of;
use crate::data::prepare::{Manifest, ShardEntry};
use crate::data::recorded_tokenizer;
use crate::data::tokenizer::{self, Tokenizer};
use crate::data::tokens::{TokenSource, cannot_read};
use crate::data::{Part, TokenFormat, token_paths};
use crate::error::{Error, Fault, Result};
use crate::files::path_text;
use crate::units::{count, counted};

/// Tokens that are read at once.
const BLOCK_TOKENS: usize = 1 << 20;
/// Number of tokens whose text is shown.
const SHOWN_TOKENS: usize = 40;
/// Most shards that an error names.
const NAMED_SHARDS: usize = 3;

/// Summary of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShardReport {
    /// Path of the shard.
    #[serde(serialize_with = "path_text::one::serialize")]
    pub path: PathBuf,
    /// Number of tokens.
    pub tokens: u64,
    /// Number of documents that begin in the shard: its end-of-text tokens.
    pub documents: u64,
    /// Lowest id.
    pub lowest: u16,
    /// Highest id.
    pub highest: u16,
    /// The first tokens as text.
    pub first_text: String,
}

/// Summary of a set of shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Name of the tokenizer: the given one, else the one that `dataset.json` records.
    pub tokenizer: String,
    /// Size of the tokenizer's vocabulary.
    pub vocab: usize,
    /// Whether there is a `dataset.json` next to the shards. It agrees with them, or there is an error.
    #[serde(rename = "noted")]
    pub has_manifest: bool,
    /// Number of tokens in all shards.
    pub tokens: u64,
    /// Number of documents in all shards.
    pub documents: u64,
    /// Summaries of the shards in the order given.
    pub shards: Vec<ShardReport>,
}

/// Returns the shards that `path` names: a file, the `.bin` files of a folder, the files that match a pattern, or the
/// shards of a name of `wgpt data fetch`.
///
/// # Errors
/// [`Error::Data`] if there are none.
pub fn shards(path: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    token_paths::find(&[path.as_ref().to_owned()], Part::All, TokenFormat::Shard)
}

/// Reads shards from end to end.
///
/// # Errors
/// Those of [`inspect_as`].
pub fn inspect(paths: &[PathBuf], tokenizer: Option<Tokenizer>) -> Result<Report> {
    inspect_as(paths, TokenFormat::Shard, tokenizer)
}

/// Reads token files from end to end.
///
/// # Errors
/// [`Error::Data`] with the first fault: a file has another layout or a wrong size, an id is outside the vocabulary, or
/// `dataset.json` disagrees. [`Error::Usage`] if the files have different tokenizers.
pub fn inspect_as(paths: &[PathBuf], format: TokenFormat, tokenizer: Option<Tokenizer>) -> Result<Report> {
    let folders: BTreeSet<&Path> = paths.iter().map(|path| path.parent().unwrap_or(Path::new(""))).collect();
    let recorded = recorded_tokenizer::require_one(recorded_tokenizer::of_folders(folders.iter().copied())?)?;
    if let (Some(given), Some((place, recorded))) = (&tokenizer, &recorded) {
        tokenizer::same(recorded, place, given, "--tokenizer")?;
    }
    let tokenizer = tokenizer.or(recorded.map(|(_, recorded)| recorded)).unwrap_or_default();
    tokenizer.check()?;
    let mut manifests = Vec::new();
    for folder in folders {
        manifests.extend(Manifest::read(folder)?.map(|manifest| (folder, manifest)));
    }
    let results: Vec<Result<ShardReport>> = paths.par_iter().map(|path| shard(path, format, &tokenizer)).collect();
    // in order, so that the first fault is always the same one
    let shards = results.into_iter().collect::<Result<Vec<_>>>()?;
    for (folder, manifest) in &manifests {
        if format == TokenFormat::Shard {
            let mut of_folder = shards.iter().filter(|shard| shard.path.parent() == Some(folder));
            of_folder.try_for_each(|shard| require_listed(manifest, folder, &shard.path))?;
        }
        compare_with_manifest(
            manifest,
            folder,
            &shards.iter().filter(|shard| shard.path.parent() == Some(folder)).collect::<Vec<_>>(),
        )?;
    }
    Ok(Report {
        tokenizer: tokenizer.name().into(),
        vocab: tokenizer.vocab(),
        has_manifest: !manifests.is_empty(),
        tokens: shards.iter().map(|s| s.tokens).sum(),
        documents: shards.iter().map(|s| s.documents).sum(),
        shards,
    })
}

fn shard(path: &Path, format: TokenFormat, tokenizer: &Tokenizer) -> Result<ShardReport> {
    let source = TokenSource::open_as(path, format)?;
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

/// Compares the shards with the manifest of their folder.
fn compare_with_manifest(manifest: &Manifest, folder: &Path, shards: &[&ShardReport]) -> Result<()> {
    let path = Manifest::path(folder);
    for recorded in &manifest.shards {
        let there = shard_of(recorded, shards);
        if let Some(there) = there
            && there.tokens != recorded.tokens
        {
            return Err(Error::data(
                Fault::at(there.path.display(), format!("not the shard that {} records", path.display()))
                    .expected(counted(recorded.tokens, "token"))
                    .found(count(there.tokens)),
            ));
        }
    }
    let hashes: Vec<Result<()>> =
        manifest.shards.par_iter().map(|recorded| same_bytes(recorded, &path, shards)).collect();
    hashes.into_iter().collect::<Result<()>>()?;
    let tokens: u64 = manifest.shards.iter().map(|s| s.tokens).sum();
    if tokens != manifest.tokens || manifest.train_tokens.checked_add(manifest.val_tokens) != Some(tokens) {
        return Err(Error::data(
            Fault::at(path.display(), "counts disagree")
                .expected(counted(tokens, "token"))
                .found(count(manifest.tokens)),
        ));
    }
    let documents: u64 = shards.iter().map(|s| s.documents).sum();
    if shards.len() == manifest.shards.len() && documents != manifest.counts.documents {
        return Err(Error::data(
            Fault::at(path.display(), "counts disagree")
                .expected(counted(documents, "document"))
                .found(count(manifest.counts.documents)),
        ));
    }
    Ok(())
}

/// Fails for a shard that the manifest of its folder does not list. Such a shard belongs to another data set, possibly
/// with another tokenizer.
fn require_listed(manifest: &Manifest, folder: &Path, path: &Path) -> Result<()> {
    let is_it = |recorded: &ShardEntry| path.file_name().is_some_and(|name| name == recorded.file.as_str());
    if manifest.shards.iter().any(is_it) {
        return Ok(());
    }
    let names =
        manifest.shards.iter().take(NAMED_SHARDS).map(|recorded| recorded.file.as_str()).collect::<Vec<_>>().join(", ");
    let more = if manifest.shards.len() > NAMED_SHARDS { ", ..." } else { "" };
    Err(Error::data(
        Fault::at(path.display(), format!("{} does not list it", Manifest::path(folder).display()))
            .expected(format!("a shard of its data set: {names}{more}"))
            .advice("try a separate folder for each data set"),
    ))
}

/// Returns the shard that a manifest entry describes, if it is among `shards`.
fn shard_of<'a>(recorded: &ShardEntry, shards: &[&'a ShardReport]) -> Option<&'a ShardReport> {
    shards.iter().copied().find(|shard| shard.path.file_name().is_some_and(|name| name == recorded.file.as_str()))
}

/// Compares a shard with its BLAKE3 in the file `manifest`, if that records one.
fn same_bytes(recorded: &ShardEntry, manifest: &Path, shards: &[&ShardReport]) -> Result<()> {
    let (Some(there), Some(expected)) = (shard_of(recorded, shards), &recorded.blake3) else { return Ok(()) };
    let found = blake3_of(&there.path).map_err(|e| cannot_read(&there.path.display().to_string(), &e))?;
    if found == *expected {
        return Ok(());
    }
    Err(Error::data(
        Fault::at(there.path.display(), format!("has changed since {} was written", manifest.display()))
            .expected(format!("BLAKE3 {expected}"))
            .found(found)
            .advice("was it copied whole?"),
    ))
}
