//! The files of a Hugging Face folder that hold weights: which they are, and what is wrong where they are not there.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::hf::{CONFIG, WEIGHTS, data};
use super::hf_tensors::plain_name;
use super::mapped::Mapped;
use super::{foreign, hf_config};
use crate::error::{Error, Fault, Result};
use crate::files::open;

/// In place of [`WEIGHTS`], where they are spread over several files.
const INDEX: &str = "model.safetensors.index.json";
/// The longest header of a safetensors file that is read.
const HEADER_BYTES: u64 = 4 << 20;
/// Endings of files that may be a model's weights for another program.
const OTHER_WEIGHTS: [&str; 9] = ["bin", "pt", "pth", "ckpt", "gguf", "h5", "onnx", "msgpack", "safetensors"];

/// The files that hold a model's weights.
pub struct Files {
    /// The model's folder.
    pub dir: PathBuf,
    /// One file, or those that the index of a spread model names.
    pub paths: Vec<PathBuf>,
    /// The file of each tensor by a spread model's index, under its [`plain_name`].
    places: HashMap<String, PathBuf>,
}

impl Files {
    /// Refuses a folder without a configuration that holds weights for another program, by the name of these.
    ///
    /// # Errors
    /// [`crate::error::Error::Data`].
    pub fn check_folder(dir: &Path) -> Result<()> {
        if dir.join(CONFIG).exists() {
            return Ok(());
        }
        others(dir).iter().find_map(|path| foreign_in(path)).map_or(Ok(()), Err)
    }

    /// Finds the files in `dir`.
    ///
    /// # Errors
    /// [`crate::error::Error::Data`] if there are none, or an index is broken or leads out of the folder.
    pub fn find(dir: &Path) -> Result<Self> {
        let (single, index) = (dir.join(WEIGHTS), dir.join(INDEX));
        if single.exists() {
            return Ok(Self { dir: dir.to_owned(), paths: vec![single], places: HashMap::new() });
        }
        if index.exists() {
            return indexed(dir, &index);
        }
        Err(missing(dir, &single))
    }

    /// Maps one of the files, the header of which has a sound length.
    ///
    /// # Errors
    /// [`crate::error::Error::Data`] if the file is missing, cannot be read, or is something else.
    pub fn open(&self, path: &Path) -> Result<Mapped> {
        if !self.places.is_empty() && !path.exists() {
            let fault = Fault::from("missing").expected(format!("by {INDEX}"));
            return Err(data(path, fault.advice("try copying the whole folder again")));
        }
        let map = Mapped::open(path)?;
        let foreign = foreign::fault(path, &map[..map.len().min(1 << 16)]);
        let header = check_header(path, &map);
        map.check()?;
        foreign.map_or(Ok(()), |fault| Err(data(path, fault)))?;
        header.map(|()| map)
    }

    /// The place to name where the tensor `name` is missing: the file that the index says holds it, else the folder;
    /// and what says so.
    pub fn place(&self, name: &str) -> (&Path, &'static str) {
        self.places.get(name).map_or((&self.dir, CONFIG), |path| (path, INDEX))
    }
}

fn indexed(dir: &Path, index: &Path) -> Result<Files> {
    let text = hf_config::read_small(index).map_err(|e| Error::data(open::fault(index.display(), &e)))?;
    let value = hf_config::parse(index, &text)?;
    let map = value["weight_map"].as_object().filter(|map| !map.is_empty());
    let map =
        map.ok_or_else(|| data(index, Fault::from("no `weight_map`").expected("tensor names and their files")))?;
    let mut places = HashMap::new();
    for (tensor, file) in map {
        // a plain name: an index is no reason to read outside its folder
        let name = file.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
        let name = name.ok_or_else(|| {
            data(index, Fault::from("`weight_map` leads elsewhere").expected("names of files beside it").found(file))
        })?;
        places.insert(plain_name(tensor), dir.join(name));
    }
    let paths: BTreeSet<PathBuf> = places.values().cloned().collect();
    Ok(Files { dir: dir.to_owned(), paths: paths.into_iter().collect(), places })
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

/// Files in a folder that may be weights for another program, in the order of their names.
fn others(dir: &Path) -> Vec<PathBuf> {
    let is_other = |path: &PathBuf| path.extension().is_some_and(|own| OTHER_WEIGHTS.iter().any(|other| own == *other));
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_other).collect();
    paths.sort();
    paths
}

/// The error for a file that is no weights of ours by its first bytes.
fn foreign_in(path: &Path) -> Option<crate::error::Error> {
    foreign::read_start(path).ok().and_then(|start| foreign::fault(path, &start)).map(|fault| data(path, fault))
}

/// The error for a folder without [`WEIGHTS`], by what it has instead.
fn missing(dir: &Path, single: &Path) -> crate::error::Error {
    let others = others(dir);
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let safe = |path: &&PathBuf| path.extension().is_some_and(|own| own == "safetensors");
    if let Some(part) = others.iter().filter(safe).find(|path| name(path).contains("-of-")) {
        let fault = Fault::from(format!("missing beside {}", name(part)));
        return data(&dir.join(INDEX), fault.advice("try copying the whole folder again"));
    }
    if let Some(other) = others.iter().find(safe) {
        let fault = Fault::from(format!("missing, but there is {}", name(other)));
        return data(single, fault.advice("try giving it this name"));
    }
    // transformers' own pickle before whatever else lies there
    let pickle = others.iter().find(|path| name(path).starts_with("pytorch_model")).or(others.first());
    match pickle.map(|path| (name(path), foreign::read_start(path).unwrap_or_default(), path)) {
        Some((name, start, path)) => {
            let fault = foreign::fault(path, &start).unwrap_or_else(|| "not read".into());
            let advice = if fault.advice.is_empty() { foreign::SAVE_PRETRAINED } else { &fault.advice };
            data(single, Fault::from(format!("missing, and {name} is {}", fault.what)).advice(advice))
        }
        None => data(single, Fault::from("missing").advice("try a folder that holds a whole model")),
    }
}
