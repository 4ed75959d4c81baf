//! The weights inside a run's checkpoint, for those who want a model that is not trained to its end.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::ModelInfo;
use super::checkpoint::{Checkpoints, MANIFEST};
use crate::error::{Error, Result};
use crate::files::disk::System;
use crate::model::config::Config;
use crate::model::params::{PARAMS, Weights};

/// The file, with llm.c's names of parameters; the copies of all blocks are one tensor (L, rows, columns).
pub const WEIGHTS: &str = "model.safetensors";

/// The newest checkpoint of a run that verifies; `None` if the folder is no run or has none.
///
/// # Errors
/// As [`Checkpoints::newest`]; [`Error::Data`] if there are checkpoints and none is sound.
pub fn newest(run: &Path) -> Result<Option<PathBuf>> {
    let checkpoints = Checkpoints::new(&System, run);
    match checkpoints.newest()? {
        (Some(step), _) => Ok(Some(checkpoints.path(step))),
        (None, damaged) => match damaged.into_iter().next() {
            Some(first) => Err(Error::data(format!("{}: no checkpoint is sound: {}", run.display(), first.error))),
            None => Ok(None),
        },
    }
}

/// True for the folder of a checkpoint.
#[must_use]
pub fn is_one(dir: &Path) -> bool {
    dir.join(MANIFEST).exists() && dir.join(WEIGHTS).exists()
}

/// Reads the weights of the checkpoint in `dir`, whose shape the configuration of its run tells.
///
/// # Errors
/// [`Error::Data`] naming the file and what is wrong with it.
pub fn load(dir: &Path) -> Result<(Weights, ModelInfo)> {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let run = absolute.parent().and_then(Path::parent).unwrap_or(&absolute);
    let (config, table) = run_config(run)?;
    let tokenizer = table.get("data").and_then(|data| data.get("tokenizer")).and_then(toml::Value::as_str);
    let mut info = tokenizer.map_or_else(ModelInfo::default, ModelInfo::for_tokenizer);
    // shards may use fewer ids than their tokenizer has
    let inside = |id: &u32| (*id as usize) < config.vocab;
    (info.bos, info.eos) = (info.bos.filter(inside), info.eos.filter(inside));
    let file = dir.join(WEIGHTS);
    let bytes = fs::read(&file).map_err(|e| Error::data(format!("{}: cannot be read ({e})", file.display())))?;
    Ok((read(&file, &bytes, config, "")?, info))
}

/// The shape of a run's model, and all else that its configuration says.
///
/// # Errors
/// [`Error::Data`] if there is none, or it is broken.
pub fn run_config(run: &Path) -> Result<(Config, toml::Table)> {
    let path = run.join("config.toml");
    let wrong = |what: String| Error::data(format!("{}: {what}", path.display()));
    let text = fs::read_to_string(&path).map_err(|e| wrong(format!("cannot be read ({e})")))?;
    let table: toml::Table =
        text.parse().map_err(|_| wrong("is not a run's configuration, expected what `wgpt train` writes".into()))?;
    let model = |key: &str| {
        let value = table.get("model").and_then(|model| model.get(key)).and_then(toml::Value::as_integer);
        let value = value.and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(|| wrong(format!("has no model.{key}, expected a whole number")))
    };
    let config =
        Config::new(model("positions")?, model("vocab")?, model("layers")?, model("heads")?, model("channels")?)?;
    Ok((config, table))
}

/// One value for every parameter, from tensors whose names begin with `prefix`.
///
/// # Errors
/// [`Error::Data`] if a tensor is missing or of another shape.
pub fn read(path: &Path, bytes: &[u8], config: Config, prefix: &str) -> Result<Weights> {
    let wrong = |what: String| Error::data(format!("{}: {what}", path.display()));
    let file = SafeTensors::deserialize(bytes).map_err(|e| wrong(format!("is not safetensors ({e})")))?;
    let mut weights = Weights::zeros(config);
    for (param, values) in PARAMS.iter().zip(&mut weights.tensors) {
        let name = format!("{prefix}{}", param.name);
        let tensor = file.tensor(&name).map_err(|e| wrong(format!("has no `{name}` ({e})")))?;
        if tensor.dtype() != Dtype::F32 || tensor.data().len() != 4 * values.len() {
            let found = tensor.shape();
            return Err(wrong(format!("`{name}` has shape {found:?}, expected {} f32", values.len())));
        }
        values.copy_from_slice(&bytemuck::pod_collect_to_vec::<u8, f32>(tensor.data()));
    }
    Ok(weights)
}
