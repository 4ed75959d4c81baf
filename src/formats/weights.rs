//! Finds a model's weights by path or name, in any supported layout.

use std::fs;
use std::path::{Path, PathBuf};

use super::{checkpoint_weights, foreign, llmc};
use crate::error::{Error, Fault, Result};
use crate::files::hub::{self, Repository};
use crate::files::open;
use crate::model::Config;

/// The layout and path of a model that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelPath {
    /// A folder in Hugging Face's layout.
    Folder(PathBuf),
    /// llm.c's `.bin`.
    Llmc(PathBuf),
    /// A checkpoint of a run.
    Checkpoint(PathBuf),
}

impl ModelPath {
    /// Returns the path of the folder or file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Llmc(path) | Self::Checkpoint(path) => path,
        }
    }
}

/// Finds the model that `from` names:
/// - a folder: one in Hugging Face's layout, a run (its `model/`, else its newest checkpoint that verifies), a
///   checkpoint, or a model in Hugging Face's cache;
/// - a file: llm.c's `.bin`, or `model.safetensors` with config.json next to it;
/// - else a name such as `gpt2` or `OWNER/NAME` in Hugging Face's cache.
///
/// # Errors
/// [`Error::Data`] if there is no such model, or it is in an unsupported format such as a pickle, with advice on
/// conversion.
pub fn find(from: &Path) -> Result<ModelPath> {
    if from.is_dir() {
        let inner = folder(from);
        if inner.join("config.json").exists() {
            return Ok(ModelPath::Folder(inner));
        }
        if checkpoint_weights::is_checkpoint(from) {
            return Ok(ModelPath::Checkpoint(from.to_owned()));
        }
        return Ok(checkpoint_weights::newest_checkpoint(from)?.map_or(ModelPath::Folder(inner), ModelPath::Checkpoint));
    }
    if from.exists() {
        return file(from);
    }
    let missing = |fault: Fault| Err(Error::data(fault.within(from.display())));
    let Some(name) = from.to_str().filter(|name| hub::is_name(name)) else {
        return missing(Fault::from("no such file or folder").expected("a model's folder or a .bin of llm.c"));
    };
    let Some(cache) = hub::cache() else {
        return missing(
            Fault::from("no such file or folder, and no home folder with a cache").advice("try setting HF_HOME"),
        );
    };
    match hub::model(&cache, name) {
        Some(dir) => Ok(ModelPath::Folder(dir)),
        None => {
            let fault =
                Fault::from(format!("no such file or folder, and no model of this name in {}", cache.display()));
            missing(if name.contains('/') || known_config(name).is_some() {
                fault.advice(format!("try `wgpt data fetch {name}`"))
            } else {
                fault.advice("names that `wgpt data fetch` knows are gpt2, gpt2-medium, gpt2-large and gpt2-xl")
            })
        }
    }
}

/// Returns the folder with the model's files: for a run its `model/`, for a repository in the cache its snapshot, else
/// `dir`.
fn folder(dir: &Path) -> PathBuf {
    let inner = dir.join("model");
    if inner.join("config.json").exists() {
        return inner;
    }
    if dir.join("config.json").exists() {
        return dir.to_owned();
    }
    hub::model_in(&Repository::at(dir)).unwrap_or_else(|| dir.to_owned())
}

/// Recognises a model's file by its first bytes.
fn file(path: &Path) -> Result<ModelPath> {
    let wrong = |fault: Fault| Error::data(fault.within(path.display()));
    let start = foreign::read_start(path).map_err(|e| Error::data(open::fault(path.display(), &e)))?;
    if llmc::is_magic(&start) {
        return Ok(ModelPath::Llmc(path.to_owned()));
    }
    if let Some(fault) = foreign::fault(path, &start) {
        return Err(wrong(fault));
    }
    let beside = path.parent().unwrap_or(Path::new(""));
    let has = |extension: &str| path.extension().is_some_and(|own| own == extension);
    // the header's length, then its JSON
    let is_weights = has("safetensors") || start.get(6..9) == Some(b"\0\0{");
    let has_config = fs::exists(beside.join("config.json")).unwrap_or(false);
    if is_weights && has_config && path.ends_with("model.safetensors") {
        return Ok(ModelPath::Folder(if beside.as_os_str().is_empty() { ".".into() } else { beside.to_owned() }));
    }
    if is_weights && has_config {
        return Err(wrong(
            Fault::from("weights under another name")
                .expected("model.safetensors next to config.json")
                .advice("try renaming it"),
        ));
    }
    if is_weights {
        return Err(wrong(
            Fault::from("weights without a shape").expected("a folder with config.json and model.safetensors"),
        ));
    }
    if has("bin") {
        // llm.c's reader names the fault most precisely
        return Ok(ModelPath::Llmc(path.to_owned()));
    }
    Err(wrong(
        Fault::from("not a known kind of model")
            .expected("a folder with config.json and model.safetensors, or a .bin of llm.c"),
    ))
}

/// Returns the shape of one of OpenAI's models, which is known without its files.
#[must_use]
pub fn known_config(name: &str) -> Option<Config> {
    let depth = match name.strip_prefix("openai-community/").unwrap_or(name) {
        "gpt2" => "d12",
        "gpt2-medium" => "d24",
        "gpt2-large" => "d36",
        "gpt2-xl" => "d48",
        _ => return None,
    };
    Config::from_descriptor(depth).ok()
}
