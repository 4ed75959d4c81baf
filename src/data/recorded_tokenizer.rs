//! The tokenizer that `data prepare` recorded beside its shards.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::data::prepare::manifest::{MANIFEST_FILE, MAX_MANIFEST_BYTES};
use crate::data::tokenizer::{self, Tokenizer};
use crate::data::tokens::cannot_read;
use crate::error::{Error, Fault, Result};
use crate::files::bounded;
use crate::formats::tokenizer_folder::TokenizerFiles;

/// The part of a manifest that tells the tokenizer; the rest is skipped and takes no memory.
#[derive(Deserialize)]
struct TokenizerPart {
    tokenizer: Option<String>,
    recipe: Option<Made>,
}

/// The part of a manifest's recipe that tells the tokenizer.
#[derive(Deserialize)]
struct Made {
    tokenizer: Option<String>,
}

/// Returns the tokenizers that are recorded in folders of shards, with the files that manifest them.
///
/// # Errors
/// [`Error::Data`] if a manifest is broken, or the tokenizer files beside it are missing or others.
pub fn of_folders<'a>(folders: impl Iterator<Item = &'a Path>) -> Result<Vec<(PathBuf, Tokenizer)>> {
    folders.filter_map(|folder| tokenizer_of(folder).transpose()).collect()
}

/// Returns the one tokenizer of some manifests, none if there is no manifest.
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
    let text = match bounded::read(&path, MAX_MANIFEST_BYTES, "a manifest of a data set") {
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
        None => return Err(broken("no `tokenizer`".into())),
    };
    Ok(Some((path, tokenizer)))
}

/// The tokenizer whose files lie beside the shards, if it is the one that made them.
fn own(folder: &Path, manifest: &TokenizerPart) -> Result<Result<Tokenizer>, Fault> {
    let files = match TokenizerFiles::read(folder) {
        Ok(files) => files,
        Err(error) => return Ok(Err(error)),
    };
    let missing = || {
        let fault = Fault::from("the tokenizer's files are missing beside it");
        fault.expected("tokenizer.json, or vocab.json and merges.txt").advice("try copying the whole folder")
    };
    let tokenizer = Tokenizer::of_files(files.ok_or_else(missing)?);
    match manifest.recipe.as_ref().and_then(|recipe| recipe.tokenizer.as_deref()) {
        Some(made) if made != tokenizer.identity() => {
            let fault = Fault::from("the tokenizer's files beside it are others than those that made the shards");
            Err(fault.expected(made).found(tokenizer.identity()))
        }
        _ => Ok(Ok(tokenizer)),
    }
}
