//! The tokenizer that `data prepare` recorded in the `dataset.json` next to its shards.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::data::prepare::manifest::{MANIFEST_FILE, MAX_MANIFEST_BYTES};
use crate::data::tokenizer::{self, Tokenizer};
use crate::data::tokens::cannot_read;
use crate::error::{Error, Fault, Result};
use crate::files::bounded;
use crate::formats::tokenizer_folder::TokenizerFiles;

/// The part of a manifest that names the tokenizer. The rest is skipped and takes no memory.
#[derive(Deserialize)]
struct TokenizerPart {
    tokenizer: Option<String>,
    recipe: Option<Made>,
}

/// The part of a manifest's recipe that identifies the tokenizer.
#[derive(Deserialize)]
struct Made {
    tokenizer: Option<String>,
}

/// Returns the tokenizers recorded in folders of shards, each with the path of its manifest. Skips folders without one.
///
/// # Errors
/// [`Error::Data`] if a manifest is broken, or the tokenizer files next to it are missing or different.
pub fn of_folders<'a>(folders: impl Iterator<Item = &'a Path>) -> Result<Vec<(PathBuf, Tokenizer)>> {
    folders.filter_map(|folder| tokenizer_of(folder).transpose()).collect()
}

/// Returns the tokenizer that all manifests record, with the path of the first; `None` if there is no manifest.
///
/// # Errors
/// [`Error::Usage`] naming two manifests that differ.
pub fn require_one(recorded: Vec<(PathBuf, Tokenizer)>) -> Result<Option<(String, Tokenizer)>> {
    let mut recorded = recorded.into_iter().map(|(path, tokenizer)| (path.display().to_string(), tokenizer));
    let Some((place, first)) = recorded.next() else { return Ok(None) };
    for (other, tokenizer) in recorded {
        tokenizer::same(&first, &place, &tokenizer, &other)?;
    }
    Ok(Some((place, first)))
}

fn tokenizer_of(folder: &Path) -> Result<Option<(PathBuf, Tokenizer)>> {
    let path = folder.join(MANIFEST_FILE);
    let text = match bounded::read(&path, MAX_MANIFEST_BYTES, "the manifest of a data set") {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        read => read.map_err(|e| cannot_read(&path.display().to_string(), &e))?,
    };
    let broken = |what: String| {
        let fault = Fault::at(path.display(), what);
        Error::data(fault.advice("was it made by `wgpt data prepare`?"))
    };
    let manifest: TokenizerPart = serde_json::from_slice(&text).map_err(|e| broken(format!("broken JSON ({e})")))?;
    let tokenizer = match manifest.tokenizer.as_deref() {
        Some("gpt2") => Tokenizer::Gpt2,
        Some("bytes") => Tokenizer::Bytes,
        Some("own") => own(folder, &manifest).map_err(|fault| Error::data(fault.within(path.display())))??,
        Some(name) => {
            let fault = Fault::at(path.display(), format!("unknown tokenizer `{}`", name.escape_debug()));
            return Err(Error::data(fault.expected("gpt2, bytes or own")));
        }
        None => return Err(broken("no key `tokenizer`".into())),
    };
    Ok(Some((path, tokenizer)))
}

/// Returns the tokenizer whose files are next to the shards, after checking that it made the shards.
fn own(folder: &Path, manifest: &TokenizerPart) -> Result<Result<Tokenizer>, Fault> {
    let files = match TokenizerFiles::read(folder) {
        Ok(files) => files,
        Err(error) => return Ok(Err(error)),
    };
    let missing = || {
        let fault = Fault::from("the tokenizer's files next to it are missing");
        fault.expected("tokenizer.json, or vocab.json and merges.txt").advice("try copying the whole folder")
    };
    let tokenizer = Tokenizer::of_files(files.ok_or_else(missing)?);
    match manifest.recipe.as_ref().and_then(|recipe| recipe.tokenizer.as_deref()) {
        Some(made) if made != tokenizer.identity() => {
            let fault = Fault::from("the tokenizer's files next to it did not make the shards");
            Err(fault.expected(made).found(tokenizer.identity()))
        }
        _ => Ok(Ok(tokenizer)),
    }
}
