//! Folders in the layout of Hugging Face's GPT-2: config.json and model.safetensors, as `transformers` reads and writes
//! them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::element::Element;
pub use super::hf_config::ModelInfo;
use super::hf_files::Files;
use super::hf_found::Tensors;
use super::hf_tensors::{PREFIX, Slot, slots};
use super::{hf_config, safetensors_file};
use crate::error::{Error, Fault, Result};
use crate::files::atomic;
use crate::model::config::Config;
use crate::model::params::{PARAMS, Weights};

/// Name of the file with the model's shape.
pub(super) const CONFIG: &str = "config.json";
/// Name of the file with the weights.
pub(super) const WEIGHTS: &str = "model.safetensors";

/// Reads the model in the folder `dir`.
///
/// Weights are f64 (rounded), f32, f16 or bf16, in one file or several. Their names may have any of the prefixes that
/// wrappers of a model add. An `lm_head.weight` equal to `wte.weight` is ignored; without a `wte.weight` it takes its
/// place. The masks of older files are ignored, and so are other heads, with a notice. Matrices are returned as (out,
/// in), and `wte` with zero rows up to the padded vocabulary. The files must not change while they are read.
///
/// # Errors
/// [`Error::Data`] naming file and tensor if a folder or file is missing or broken, the model is not a supported GPT-2,
/// a tensor is missing, unknown or contradicts the configuration, or a weight is not finite.
pub fn load(dir: &Path) -> Result<(Weights, ModelInfo)> {
    let described = describe_all(dir)?;
    let files = Files::find(dir)?;
    let maps = files.paths.iter().map(|path| files.open(path)).collect::<Result<Vec<_>>>()?;
    let tensors = Tensors::new(&files, &maps)?;
    tensors.check(&described)?;
    // so far only headers were read; the memory of each tensor's bytes is released after decoding
    let mut weights = Weights::zeros(described.config);
    for slot in slots(&described.config) {
        tensors.read(&slot, &mut weights)?;
    }
    Ok((weights, described.info))
}

/// Reads the shape of the model in the folder `dir`, and the other entries of its config.json.
///
/// # Errors
/// Those of [`load`], except the ones about weights.
pub fn describe(dir: &Path) -> Result<(Config, ModelInfo)> {
    describe_all(dir).map(|described| (described.config, described.info))
}

fn describe_all(dir: &Path) -> Result<hf_config::Described> {
    if !dir.is_dir() {
        let what = if dir.exists() { "is a file" } else { "no such folder" };
        return Err(data(dir, Fault::from(what).expected(format!("a folder with {CONFIG} and {WEIGHTS}"))));
    }
    Files::check_folder(dir)?;
    hf_config::read(&dir.join(CONFIG))
}

/// Writes `weights` as f32 into the folder `dir`, which is created if it is missing.
///
/// Each file is written under a temporary name next to its final one, synced to disk and renamed, model.safetensors
/// before config.json. The padding of the vocabulary is not written. At most one tensor at a time is copied in memory.
///
/// # Errors
/// [`Error::Output`] naming the file if writing fails; [`Error::Usage`] if a token id of `info` is outside the
/// vocabulary; [`Error::Shape`] if a tensor of `weights` has the wrong size.
pub fn save(dir: &Path, weights: &Weights, info: &ModelInfo) -> Result<()> {
    save_as(dir, weights, info, Element::F32)
}

/// Writes weights as [`save`] does, in the given element type.
///
/// # Errors
/// Those of [`save`]; [`Error::Data`] if a weight becomes infinite in f16 or bf16.
pub fn save_as(dir: &Path, weights: &Weights, info: &ModelInfo, element: Element) -> Result<()> {
    check_sizes(weights)?;
    element.check(weights)?;
    hf_config::check(&weights.config, info)?;
    fs::create_dir_all(dir).map_err(|e| atomic::output_error(dir, &e))?;
    let slots: Vec<Slot> = slots(&weights.config).collect();
    let entries: Vec<_> = slots
        .iter()
        .map(|slot| safetensors_file::Entry {
            name: format!("{PREFIX}{}", slot.name),
            dtype: element.dtype(),
            shape: slot.shape.clone(),
        })
        .collect();
    let metadata = BTreeMap::from([("format", "pt")]);
    safetensors_file::write(&dir.join(WEIGHTS), &metadata, &entries, |i, out| {
        element.write(&slots[i].values(weights), out)
    })?;
    hf_config::write(&dir.join(CONFIG), &weights.config, info, element)
}

pub(super) fn data(path: &Path, fault: impl Into<Fault>) -> Error {
    Error::data(fault.into().within(path.display()))
}

fn check_sizes(weights: &Weights) -> Result<()> {
    for (param, values) in PARAMS.iter().zip(&weights.tensors) {
        let expected = param.copies(&weights.config) * param.elements(&weights.config);
        if values.len() != expected {
            let (name, got) = (param.name, values.len());
            return Err(Error::shape(Fault::at("hf.save", format!("`{name}` has {got} values")).expected(expected)));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "hf_tests.rs"]
mod tests;
