//! Folders in the layout of Hugging Face's GPT-2: config.json and model.safetensors, as `transformers` reads and writes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;

use super::element::Element;
pub use super::hf_config::ModelInfo;
use super::hf_tensors::{ELEMENT_TYPES, PREFIX, Slot, is_buffer, slots};
use super::mapped::Mapped;
use super::{hf_config, safetensors_file};
use crate::error::{Error, Fault, Result};
use crate::files::atomic;
use crate::model::config::Config;
use crate::model::params::{PARAMS, Weights};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
/// In place of [`WEIGHTS`], where they are spread over several files.
const INDEX: &str = "model.safetensors.index.json";
/// The longest header of a safetensors file that is read.
const HEADER_BYTES: u64 = 4 << 20;
/// The output layer. GPT-2's is `wte`, so nothing of its own is kept of it.
const LM_HEAD: &str = "lm_head.weight";

/// Reads the model in the folder `dir`.
///
/// Weights are f32, f16 or bf16, in one file or several; names with and without `transformer.` before them; an
/// `lm_head.weight` equal to `wte.weight` and the masks of older files are passed over. Matrices come out as (out, in),
/// and `wte` with zero rows up to the padded vocabulary. The files must not change while they are read.
///
/// # Errors
/// [`Error::Data`] naming file and tensor: a folder or file is missing or broken, it is not a GPT-2 that this program
/// computes, a tensor is missing, unknown or contradicts the configuration, or a weight is not finite.
pub fn load(dir: &Path) -> Result<(Weights, ModelInfo)> {
    let (config, info) = describe(dir)?;
    let files = weight_files(dir)?;
    let map = |path: &PathBuf| Mapped::open(path).map_err(|e| data(path, format!("cannot be read ({e})")));
    let maps = files.iter().map(map).collect::<Result<Vec<_>>>()?;
    let tensors = Tensors::new(dir, files.iter().zip(&maps))?;
    tensors.check(&config)?;
    // so far only headers were read; each tensor's bytes are given back once they are decoded
    let mut weights = Weights::zeros(config);
    for slot in slots(&config) {
        tensors.read(&slot, &mut weights)?;
    }
    Ok((weights, info))
}

/// Reads the shape of the model in the folder `dir`, and what else its config.json says.
///
/// # Errors
/// [`Error::Data`] as [`load`], but for the weights.
pub fn describe(dir: &Path) -> Result<(Config, ModelInfo)> {
    if !dir.is_dir() {
        let what = if dir.exists() { "is a file" } else { "no such folder" };
        return Err(data(dir, Fault::from(what).expected(format!("a folder with {CONFIG} and {WEIGHTS}"))));
    }
    hf_config::read(&dir.join(CONFIG))
}

/// Writes `weights` into the folder `dir`, which is made if it is missing; all tensors are f32.
///
/// Each file is written beside its final name, forced to disk and renamed, model.safetensors before config.json. The
/// padding of the vocabulary is not written. No more than one tensor is held a second time.
///
/// # Errors
/// [`Error::Output`] naming the file if writing fails; [`Error::Usage`] if a token id of `info` lies outside the
/// vocabulary; [`Error::Shape`] if a tensor of `weights` has the wrong size.
pub fn save(dir: &Path, weights: &Weights, info: &ModelInfo) -> Result<()> {
    save_as(dir, weights, info, Element::F32)
}

/// As [`save`], in another element type.
///
/// # Errors
/// As [`save`]; [`Error::Data`] if a weight becomes infinite in bf16.
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

fn data(path: &Path, fault: impl Into<Fault>) -> Error {
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

/// The files that hold the weights: one, or those that the index of a spread model names.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join(WEIGHTS);
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = dir.join(INDEX);
    if index.exists() {
        return indexed_files(dir, &index);
    }
    if dir.join("pytorch_model.bin").exists() {
        return Err(data(
            &single,
            Fault::from("missing, and pytorch_model.bin is not read")
                .advice("try in Python `GPT2LMHeadModel.from_pretrained(DIR).save_pretrained(DIR)`"),
        ));
    }
    Err(data(&single, Fault::from("missing").advice("try a folder that holds a whole model")))
}

fn indexed_files(dir: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let text = hf_config::read_small(index).map_err(|e| data(index, format!("cannot be read ({e})")))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| data(index, format!("broken JSON ({e})")))?;
    let map = value["weight_map"].as_object().filter(|map| !map.is_empty());
    let map =
        map.ok_or_else(|| data(index, Fault::from("no `weight_map`").expected("tensor names and their files")))?;
    let mut files = BTreeSet::new();
    for file in map.values() {
        // a plain name: an index is no reason to read outside its folder
        let name = file.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
        let name = name.ok_or_else(|| {
            data(index, Fault::from("`weight_map` leads elsewhere").expected("names of files beside it").found(file))
        })?;
        files.insert(dir.join(name));
    }
    Ok(files.into_iter().collect())
}

/// A header of absurd length is refused before anything is made of it: that of GPT-2 with 96 layers has some 150 KB.
fn check_header(path: &Path, bytes: &[u8]) -> Result<()> {
    let length = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    if length > HEADER_BYTES {
        let fault = Fault::from(format!("not a whole safetensors file: a header of {length} bytes"));
        let most = format!("at most {HEADER_BYTES}");
        return Err(data(path, fault.expected(most).advice("try copying it again")));
    }
    Ok(())
}

/// A tensor in a file.
struct Found<'a> {
    /// The file it is in.
    path: &'a Path,
    /// Its name as the file spells it.
    name: String,
    view: TensorView<'a>,
    map: &'a Mapped,
}

impl Found<'_> {
    /// The fault says what is wrong as the rest of a sentence about the tensor.
    fn error(&self, fault: impl Into<Fault>) -> Error {
        let fault = fault.into();
        data(self.path, Fault { what: format!("tensor `{}` {}", self.name, fault.what), ..fault })
    }
}

/// The tensors of all files, under their names without [`PREFIX`].
struct Tensors<'a> {
    dir: &'a Path,
    found: HashMap<String, Found<'a>>,
}

impl<'a> Tensors<'a> {
    fn new(dir: &'a Path, files: impl Iterator<Item = (&'a PathBuf, &'a Mapped)>) -> Result<Self> {
        let mut found = HashMap::new();
        for (path, map) in files {
            check_header(path, map)?;
            let broken = |e| {
                data(path, Fault::from(format!("not a whole safetensors file ({e})")).advice("try copying it again"))
            };
            for (name, view) in SafeTensors::deserialize(map).map_err(broken)?.tensors() {
                let key = name.strip_prefix(PREFIX).unwrap_or(&name).to_owned();
                if let Some(twin) = found.insert(key, Found { path, name, view, map }) {
                    return Err(twin.error("is there twice, expected once"));
                }
            }
        }
        Ok(Self { dir, found })
    }

    /// Everything but the values: each tensor of the configuration is there in its shape, and nothing else is.
    fn check(&self, config: &Config) -> Result<()> {
        let mut known = 0;
        for slot in slots(config) {
            self.check_slot(&slot)?;
            known += 1;
        }
        self.check_head()?;
        let extra = |name: &&String| *name != LM_HEAD && !is_buffer(name);
        if self.found.keys().filter(extra).count() == known {
            return Ok(());
        }
        let names: BTreeSet<String> = slots(config).map(|slot| slot.name).collect();
        let unknown = self.found.iter().filter(|(key, _)| extra(key) && !names.contains(*key));
        // of several the first by name, so that the message does not change from run to run
        unknown.map(|(_, found)| found).min_by_key(|found| &found.name).map_or(Ok(()), |found| {
            Err(found.error(Fault::from("is unknown").expected(format!("a plain GPT-2 of {} layers", config.layers))))
        })
    }

    fn check_slot(&self, slot: &Slot) -> Result<()> {
        let found = self.get(&slot.name)?;
        if found.view.shape() != slot.shape {
            let (got, want) = (shape(found.view.shape()), shape(&slot.shape));
            return Err(
                found.error(Fault::from("has another shape").expected(format!("{want} by {CONFIG}")).found(got))
            );
        }
        if !ELEMENT_TYPES.contains(&found.view.dtype()) {
            let fault = Fault::from("has another element type").expected("F32, F16 or BF16");
            return Err(found.error(fault.found(found.view.dtype())));
        }
        Ok(())
    }

    /// An output layer of its own must be the copy of `wte` that GPT-2 takes it for.
    fn check_head(&self) -> Result<()> {
        let (Some(head), wte) = (self.found.get(LM_HEAD), self.get("wte.weight")?) else { return Ok(()) };
        if (head.view.dtype(), head.view.shape(), head.view.data())
            != (wte.view.dtype(), wte.view.shape(), wte.view.data())
        {
            return Err(head.error(format!("differs from `{}`, expected tied embeddings", wte.name)));
        }
        for found in [head, wte] {
            found.map.release(found.view.data());
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Result<&Found<'a>> {
        self.found.get(name).ok_or_else(|| {
            data(self.dir, Fault::from(format!("tensor `{name}` is missing")).expected(format!("by {CONFIG}")))
        })
    }

    fn read(&self, slot: &Slot, weights: &mut Weights) -> Result<()> {
        let found = self.get(&slot.name)?;
        let (dtype, bytes) = (found.view.dtype(), found.view.data());
        slot.read(weights, |out| found.map.decode(dtype, bytes, out)).map_err(|(index, value)| {
            found.error(
                Fault::from(format!("holds {value} at index {index}"))
                    .expected("finite numbers")
                    .advice("try another copy"),
            )
        })
    }
}

/// `(2, 3)`.
fn shape(shape: &[usize]) -> String {
    let axes: Vec<String> = shape.iter().map(usize::to_string).collect();
    format!("({})", axes.join(", "))
}

#[cfg(test)]
#[path = "hf_tests.rs"]
mod tests;
