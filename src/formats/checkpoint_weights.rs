//! The weights inside a run's checkpoint, for those who want a model that is not trained to its end.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::checkpoint::{Checkpoints, MANIFEST};
use crate::error::{Error, Fault, Result};
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
            Some(first) => {
                Err(Error::data(Fault::at(run.display(), format!("no checkpoint is sound: {}", first.error))))
            }
            None => Ok(None),
        },
    }
}

/// True for the folder of a checkpoint.
#[must_use]
pub fn is_one(dir: &Path) -> bool {
    dir.join(MANIFEST).exists() && dir.join(WEIGHTS).exists()
}

/// One value for every parameter, from tensors whose names begin with `prefix`.
///
/// # Errors
/// [`Error::Data`] if a tensor is missing or of another shape.
pub fn read(path: &Path, bytes: &[u8], config: Config, prefix: &str) -> Result<Weights> {
    let wrong = |fault: Fault| Error::data(fault.within(path.display()));
    let file = SafeTensors::deserialize(bytes).map_err(|e| wrong(format!("is not safetensors ({e})").into()))?;
    let mut weights = Weights::zeros(config);
    for (param, values) in PARAMS.iter().zip(&mut weights.tensors) {
        let name = format!("{prefix}{}", param.name);
        let tensor = file.tensor(&name).map_err(|e| wrong(format!("has no `{name}` ({e})").into()))?;
        if tensor.dtype() != Dtype::F32 || tensor.data().len() != 4 * values.len() {
            let found = tensor.shape();
            return Err(wrong(
                Fault::from(format!("`{name}` has shape {found:?}")).expected(format!("{} f32", values.len())),
            ));
        }
        values.copy_from_slice(&bytemuck::pod_collect_to_vec::<u8, f32>(tensor.data()));
    }
    Ok(weights)
}
