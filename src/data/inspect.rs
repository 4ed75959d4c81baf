//! `wgpt data inspect`: what lies in token shards, and whether it is sound.

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

/// Tokens that are looked at together.
const BLOCK_TOKENS: usize = 1 << 20;
/// Tokens whose text is shown.
const SHOWN_TOKENS: usize = 40;
/// Shards that an error names.
const NAMED_SHARDS: usize = 3;

/// What a shard holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShardReport {
    /// Its path.
    #[serde(serialize_with = "path_text::one::serialize")]
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
    /// The tokenizer, as the manifest says or was asked for.
    pub tokenizer: String,
    /// Its vocabulary.
    pub vocab: usize,
    /// Whether a `dataset.json` lies beside the shards; it agrees with them then.
    #[serde(rename = "noted")]
    pub has_manifest: bool,
    /// Tokens in all shards.
    pub tokens: u64,
    /// Documents in all shards.
    pub documents: u64,
    /// The shards by name.
    pub shards: Vec<ShardReport>,
}

/// Returns the shards that `path` means: a file, the `.bin` files of a folder, those that match a pattern, or those of a name
/// of `wgpt data fetch`.
///
/// # Errors
/// [`Error::Data`] if there is none.
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

/// Reads files of tokens from end to end.
///
/// # Errors
/// [`Error::Data`] with the first fault: a layout that is another one, a size that does not fit, an id outside the
/// vocabulary, or a `dataset.json` that says something else. [`Error::Usage`] for files of two tokenizers.
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
    // by name, so that the first fault is always the same one
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

/// Holds the shards against what the manifest says of them.
fn compare_with_manifest(manifest: &Manifest, folder: &Path, shards: &[&ShardReport]) -> Result<()> {
    let path = Manifest::path(folder);
    for recorded in &manifest.shards {
        let there = shard_of(recorded, shards);
        if let Some(there) = there
            && there.tokens != recorded.tokens
        {
            return Err(Error::data(
                Fault::at(there.path.display(), format!("not the shard that {} tells of", path.display()))
                    .expected(format!("{} tokens", recorded.tokens))
                    .found(there.tokens),
            ));
        }
    }
    let hashes: Vec<Result<()>> =
        manifest.shards.par_iter().map(|recorded| same_bytes(recorded, &path, shards)).collect();
    hashes.into_iter().collect::<Result<()>>()?;
    let tokens: u64 = manifest.shards.iter().map(|s| s.tokens).sum();
    if tokens != manifest.tokens || manifest.train_tokens.checked_add(manifest.val_tokens) != Some(tokens) {
        return Err(Error::data(
            Fault::at(path.display(), "counts disagree").expected(format!("{tokens} tokens")).found(manifest.tokens),
        ));
    }
    let documents: u64 = shards.iter().map(|s| s.documents).sum();
    if shards.len() == manifest.shards.len() && documents != manifest.counts.documents {
        return Err(Error::data(
            Fault::at(path.display(), "counts disagree")
                .expected(format!("{documents} documents"))
                .found(manifest.counts.documents),
        ));
    }
    Ok(())
}

/// Fails for a shard that the manifest of its folder does not list: it is of another data set, of any tokenizer.
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
            .advice("each data set wants a folder of its own"),
    ))
}

/// Returns the shard that a manifest is about, if it is among those that are looked at.
fn shard_of<'a>(recorded: &ShardEntry, shards: &[&'a ShardReport]) -> Option<&'a ShardReport> {
    shards.iter().copied().find(|shard| shard.path.file_name().is_some_and(|name| name == recorded.file.as_str()))
}

/// Compares a shard with its BLAKE3 in the manifest `manifest`, if that has one.
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
