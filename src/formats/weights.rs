//! A model's weights by path or by name, in whatever layout they are.

use std::fs;
use std::path::{Path, PathBuf};

use super::{checkpoint_weights, foreign, llmc};
use crate::error::{Error, Fault, Result};
use crate::files::hub::{self, Repository};
use crate::files::open;
use crate::model::Config;

/// Where a model was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelPath {
    /// A folder in Hugging Face's layout.
    Folder(PathBuf),
    /// A `.bin` of llm.c.
    Llmc(PathBuf),
    /// A checkpoint of a run.
    Checkpoint(PathBuf),
}

impl ModelPath {
    /// The folder or file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Llmc(path) | Self::Checkpoint(path) => path,
        }
    }
}

/// Finds the model that `from` means:
/// - a folder in Hugging Face's layout, a run's folder (its `model/`, else its newest checkpoint that verifies), a
///   checkpoint's folder, or a model's folder in Hugging Face's cache;
/// - a file: a `.bin` of llm.c, or `model.safetensors` with its config.json beside it;
/// - else a name such as `gpt2` or `OWNER/NAME`, in Hugging Face's cache.
///
/// # Errors
/// [`Error::Data`] if there is no such model, or it is one in pickle files, which say how to convert them.
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
            Fault::from("no such file or folder, and no home folder in which a cache might have it")
                .advice("try setting HF_HOME"),
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

/// The model inside a folder: of a run its `model`, of a repository in the cache its snapshot.
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

/// What a file is, by its first bytes.
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
                .expected("model.safetensors beside config.json")
                .advice("try renaming it"),
        ));
    }
    if is_weights {
        return Err(wrong(
            Fault::from("weights without a shape").expected("a folder with config.json and model.safetensors"),
        ));
    }
    if has("bin") {
        // its own reader says best what is wrong with it
        return Ok(ModelPath::Llmc(path.to_owned()));
    }
    Err(wrong(
        Fault::from("no model that is known")
            .expected("a folder with config.json and model.safetensors, or a .bin of llm.c"),
    ))
}

/// The shape of one of OpenAI's models, known without its files.
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
