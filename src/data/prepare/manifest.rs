//! `dataset.json`: what lies in a folder of shards, and what it was made from.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::document_batch::Counts;
use super::source::Source;
use crate::data::tokens::{cannot_read, describe};
use crate::error::{Error, Fault, Result};
use crate::files::{atomic, bounded};

/// The file's name.
pub const MANIFEST_FILE: &str = "dataset.json";
/// The longest note that is read: it names every file of a corpus.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 256 << 20;

/// Sequences of a micro-step that `wgpt train` takes unasked.
pub const DEFAULT_BATCH: usize = 4;
/// Tokens of a sequence that `wgpt train` takes unasked, of models that have as many positions.
pub const DEFAULT_CONTEXT: usize = 1024;

/// Everything that decides what the shards hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// Shards are called `NAME_train_000001.bin`.
    pub name: String,
    /// [`crate::data::Tokenizer::identity`].
    pub tokenizer: String,
    /// Field or column of the text.
    pub field: String,
    /// The text between two documents of a text file, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_on: Option<String>,
    /// Tokens of a shard.
    pub shard_tokens: u64,
    /// Tokens of validation, if not one shard or a tenth.
    pub val_tokens: Option<u64>,
    /// Tokens after which the corpus was left, if any.
    pub max_tokens: Option<u64>,
    /// The files, in order.
    pub sources: Vec<Source>,
}

impl Recipe {
    /// What differs from `there`, as `field: text there, body here`.
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
                format!("{}: changed since", there.name())
            } else {
                format!("files: {} there, {} here", there.name(), here.name())
            }
        }));
        list
    }
}

/// A shard of the data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Its name in the folder.
    pub file: String,
    /// Tokens in it.
    pub tokens: u64,
    /// BLAKE3 of the whole file. Early versions noted none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
}

/// The contents of `dataset.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The tokenizer's name: what training looks for.
    pub tokenizer: String,
    /// Vocabulary V.
    pub vocab: usize,
    /// Tokens in all shards.
    pub tokens: u64,
    /// Tokens in training shards.
    pub train_tokens: u64,
    /// Tokens in the validation shard.
    pub val_tokens: u64,
    /// Documents, bytes and what was replaced.
    #[serde(flatten)]
    pub counts: Counts,
    /// The shards, validation first.
    pub shards: Vec<ShardEntry>,
    /// What they were made from.
    pub recipe: Recipe,
}

impl Manifest {
    /// Where the note of a folder lies.
    #[must_use]
    pub fn path(folder: &Path) -> PathBuf {
        folder.join(MANIFEST_FILE)
    }

    /// The note of a folder, none if there is none.
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
                    Fault::at(path.display(), format!("is not a note of `wgpt data prepare`: {e}"))
                        .advice("try --restart or another folder"),
                )
            }),
        }
    }

    /// Returns batch and context that every shard has room for: those that `wgpt train` takes unasked, or smaller ones.
    #[must_use]
    pub fn fitting(&self) -> (usize, usize) {
        let smallest = self.shards.iter().map(|shard| shard.tokens).min().unwrap_or(0);
        let inputs = usize::try_from(smallest.saturating_sub(1)).unwrap_or(usize::MAX).max(1);
        let context = if inputs < DEFAULT_CONTEXT { 1 << inputs.ilog2() } else { DEFAULT_CONTEXT };
        let validation = format!("{}_val_", self.recipe.name);
        let train = self.shards.iter().filter(|shard| !shard.file.starts_with(&validation));
        let train = train.map(|shard| shard.tokens).min();
        let inputs = usize::try_from(train.unwrap_or(0).saturating_sub(1)).unwrap_or(usize::MAX);
        ((inputs / context).clamp(1, DEFAULT_BATCH), context)
    }

    /// Writes the note, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_json(&Self::path(folder), self)
    }
}

/// Writes a value as JSON, whole or not at all.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::output(Fault::at(path.display(), format!("cannot be written: {}", describe(&e.into())))))?;
    atomic::write(path, |out| out.write_all(text.as_bytes()))
}
