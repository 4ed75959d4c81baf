//! Reads the weights in a run's checkpoint, for use of a model whose training has not finished.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::checkpoint::{Checkpoints, MANIFEST};
use super::mapped::Mapped;
use crate::error::{Error, Fault, Result};
use crate::files::disk::System;
use crate::model::config::Config;
use crate::model::params::{PARAMS, Param, Weights};

/// Name of the file with the weights. Tensors have llm.c's names; the copies of a parameter in all blocks are one
/// tensor (L, rows, columns).
pub const WEIGHTS: &str = "model.safetensors";

/// Returns the newest checkpoint of a run that verifies; `None` if the folder is not a run or has no checkpoints.
///
/// # Errors
/// Those of [`Checkpoints::newest`]; [`Error::Data`] if there are checkpoints and none is sound.
pub fn newest_checkpoint(run: &Path) -> Result<Option<PathBuf>> {
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

/// Returns whether a folder is a checkpoint.
#[must_use]
pub fn is_checkpoint(dir: &Path) -> bool {
    dir.join(MANIFEST).exists() && dir.join(WEIGHTS).exists()
}

/// Reads the weights of the checkpoint in `dir`, of a model with the shape `config`.
///
/// # Errors
/// [`Error::Data`] if the file cannot be read; those of [`read`].
pub fn load(dir: &Path, config: Config) -> Result<Weights> {
    let path = dir.join(WEIGHTS);
    let map = Mapped::open_own(&path)?;
    let weights = read(&path, &map, config, "");
    map.check()?;
    weights
}

/// Returns one value per parameter, such as its weights, from the tensors whose names begin with `prefix`.
///
/// # Errors
/// [`Error::Data`] if a tensor is missing or has another shape.
pub fn read(path: &Path, bytes: &[u8], config: Config, prefix: &str) -> Result<Weights> {
    let wrong = |fault: Fault| Error::data(fault.within(path.display()));
    let file = SafeTensors::deserialize(bytes).map_err(|e| wrong(format!("is not safetensors ({e})").into()))?;
    let tensor = |param: &Param| {
        let name = format!("{prefix}{}", param.name);
        let tensor = file.tensor(&name).map_err(|e| wrong(format!("has no `{name}` ({e})").into()))?;
        let expected = param.copies(&config) * param.elements(&config);
        if tensor.dtype() != Dtype::F32 || tensor.data().len() != 4 * expected {
            let fault = Fault::from(format!("`{name}` has shape {:?}", tensor.shape()));
            return Err(wrong(fault.expected(format!("{expected} f32"))));
        }
        Ok(tensor)
    };
    // find all tensors before allocating any: the shape comes from another file
    let tensors = PARAMS.iter().map(tensor).collect::<Result<Vec<_>>>()?;
    let values = tensors.iter().map(|tensor| bytemuck::pod_collect_to_vec::<u8, f32>(tensor.data()));
    Ok(Weights { config, tensors: values.collect() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::formats::safetensors_file::{self, Entry};

    #[test]
    fn a_shape_that_the_file_does_not_have_is_refused_before_memory_is_allocated() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(4, 5, 1, 1, 8).unwrap();
        let weights = crate::model::init::init(config, 1);
        let entry = |(param, values): (&Param, &Vec<f32>)| Entry {
            name: param.name.into(),
            dtype: Dtype::F32,
            shape: vec![values.len()],
        };
        let entries: Vec<Entry> = PARAMS.iter().zip(&weights.tensors).map(entry).collect();
        safetensors_file::write(&dir.path().join(WEIGHTS), &BTreeMap::new(), &entries, |i, out| {
            out.write_all(bytemuck::cast_slice(&weights.tensors[i]))
        })
        .unwrap();
        assert_eq!(load(dir.path(), config).unwrap(), weights);
        // petabytes
        let huge = Config::new(1 << 24, 1 << 24, 1 << 12, 1 << 13, 1 << 20).unwrap();
        let error = load(dir.path(), huge).unwrap_err().to_string();
        assert!(error.contains("`wte` has shape [1024]") && error.contains("f32"), "{error}");
        #[cfg(unix)]
        {
            let other = tempfile::tempdir().unwrap();
            std::os::unix::fs::symlink(dir.path().join(WEIGHTS), other.path().join(WEIGHTS)).unwrap();
            assert_eq!(load(other.path(), config).unwrap_err().fault().what, "is a link");
        }
    }
}
