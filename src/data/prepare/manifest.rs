//! The manifest `dataset.json`: the shards in a folder, and the inputs and settings that made them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::document_batch::Counts;
use super::source::Source;
use crate::data::tokens::{cannot_read, describe};
use crate::error::{Error, Fault, Result};
use crate::files::{atomic, bounded};

/// Name of the manifest's file.
pub const MANIFEST_FILE: &str = "dataset.json";
/// Longest manifest that is read. A manifest names every file of a corpus.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 256 << 20;

/// Default number of sequences per micro-step of `wgpt train`.
pub const DEFAULT_BATCH: usize = 4;
/// Default number of tokens per sequence of `wgpt train`, for models with at least as many positions.
pub const DEFAULT_CONTEXT: usize = 1024;

/// The settings and inputs that determine the contents of the shards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// Prefix of the shards' names, as in `NAME_train_000001.bin`.
    pub name: String,
    /// The tokenizer's [`identity`](crate::data::Tokenizer::identity).
    pub tokenizer: String,
    /// Field or column with the text.
    pub field: String,
    /// Separator between documents of a text file, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_on: Option<String>,
    /// Tokens per shard.
    pub shard_tokens: u64,
    /// Number of validation tokens; by default one shard, or a tenth of a small corpus.
    pub val_tokens: Option<u64>,
    /// Number of tokens at which preparation stopped, if limited.
    pub max_tokens: Option<u64>,
    /// The input files, in order.
    pub sources: Vec<Source>,
}

impl Recipe {
    /// Returns the differences from the recipe `there`, such as `field: text there, body here`.
    #[must_use]
    pub fn differences(&self, there: &Self) -> Vec<String> {
        let text = |value: Option<u64>| value.map_or("none".to_owned(), |v| v.to_string());
        let separator = |recipe: &Self| recipe.split_on.as_ref().map_or("none".to_owned(), |text| format!("{text:?}"));
        let pairs = [
            ("--name", there.name.clone(), self.name.clone()),
            ("--tokenizer", there.tokenizer.clone(), self.tokenizer.clone()),
            ("--field", there.field.clone(), self.field.clone()),
            ("--split-on", separator(there), separator(self)),
            ("--shard-tokens", there.shard_tokens.to_string(), self.shard_tokens.to_string()),
            ("--val-tokens", text(there.val_tokens), text(self.val_tokens)),
            ("--max-tokens", text(there.max_tokens), text(self.max_tokens)),
            ("files", there.sources.len().to_string(), self.sources.len().to_string()),
        ];
        let mut list: Vec<String> = pairs
            .into_iter()
            .filter(|(_, there, here)| there != here)
            .map(|(what, there, here)| format!("{what}: {there} there, {here} here"))
            .collect();
        let changed = there.sources.iter().zip(&self.sources).find(|(there, here)| there != here);
        list.extend(changed.map(|(there, here)| {
            if there.path == here.path {
                format!("{}: the file has changed", there.name())
            } else {
                format!("files: {} there, {} here", there.name(), here.name())
            }
        }));
        list
    }
}

/// A shard's entry in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// File name in the folder.
    pub file: String,
    /// Number of tokens.
    pub tokens: u64,
    /// BLAKE3 of the whole file. Early versions recorded none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
}

/// The contents of `dataset.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Name of the tokenizer, which training reads.
    pub tokenizer: String,
    /// Vocabulary size V.
    pub vocab: usize,
    /// Number of tokens in all shards.
    pub tokens: u64,
    /// Number of tokens in the training shards.
    pub train_tokens: u64,
    /// Number of tokens in the validation shard.
    pub val_tokens: u64,
    /// Counts of documents, bytes and replacements.
    #[serde(flatten)]
    pub counts: Counts,
    /// The shards, validation first.
    pub shards: Vec<ShardEntry>,
    /// The settings and inputs that made them.
    pub recipe: Recipe,
}

impl Manifest {
    /// Returns the path of a folder's manifest.
    #[must_use]
    pub fn path(folder: &Path) -> PathBuf {
        folder.join(MANIFEST_FILE)
    }

    /// Reads the manifest of a folder; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Data`] if it is broken.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = Self::path(folder);
        match bounded::read_text(&path, MAX_MANIFEST_BYTES, "the manifest of a data set") {
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(cannot_read(&path.display().to_string(), &e)),
            Ok(text) => serde_json::from_str(&text).map(Some).map_err(|e| {
                Error::data(
                    Fault::at(path.display(), format!("was not written by `wgpt data prepare`: {e}"))
                        .advice("try --restart or another folder"),
                )
            }),
        }
    }

    /// Returns a batch and a context for which every shard is long enough: the defaults of `wgpt train`, or smaller
    /// ones.
    #[must_use]
    pub fn fitting_sizes(&self) -> (usize, usize) {
        let smallest = self.shards.iter().map(|shard| shard.tokens).min().unwrap_or(0);
        let inputs = usize::try_from(smallest.saturating_sub(1)).unwrap_or(usize::MAX).max(1);
        let context = if inputs < DEFAULT_CONTEXT { 1 << inputs.ilog2() } else { DEFAULT_CONTEXT };
        let validation = format!("{}_val_", self.recipe.name);
        let train = self.shards.iter().filter(|shard| !shard.file.starts_with(&validation));
        let train = train.map(|shard| shard.tokens).min();
        let inputs = usize::try_from(train.unwrap_or(0).saturating_sub(1)).unwrap_or(usize::MAX);
        ((inputs / context).clamp(1, DEFAULT_BATCH), context)
    }

    /// Writes the manifest atomically.
    ///
    /// # Errors
    /// [`Error::Output`] if writing fails.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_json(&Self::path(folder), self)
    }
}

/// Writes a value as JSON, atomically.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::output(Fault::at(path.display(), format!("cannot be written: {}", describe(&e.into())))))?;
    atomic::write(path, |out| out.write_all(text.as_bytes()))
}
