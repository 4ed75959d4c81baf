//! Finds the weight files of a Hugging Face folder, and the fault if they are missing.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::hf::{CONFIG, WEIGHTS, data};
use super::hf_tensors::plain_name;
use super::mapped::Mapped;
use super::{foreign, hf_config};
use crate::error::{Error, Fault, Result};
use crate::files::open;
use crate::units::{count, counted};

/// Name of the index that replaces [`WEIGHTS`] if the weights are in several files.
const INDEX: &str = "model.safetensors.index.json";
/// Longest header of a safetensors file that is read, in bytes.
const HEADER_BYTES: u64 = 4 << 20;
/// Extensions of files that may be a model's weights for another program.
const OTHER_WEIGHTS: [&str; 9] = ["bin", "pt", "pth", "ckpt", "gguf", "h5", "onnx", "msgpack", "safetensors"];

/// The files with a model's weights.
pub struct Files {
    /// Folder of the model.
    pub dir: PathBuf,
    /// The single file, or the files that the index names.
    pub paths: Vec<PathBuf>,
    /// The file of each tensor according to the index, by the tensor's [`plain_name`]; empty without an index.
    places: HashMap<String, PathBuf>,
}

impl Files {
    /// Fails if a folder without a configuration contains weights for another program.
    ///
    /// # Errors
    /// [`crate::error::Error::Data`] naming those weights.
    pub fn check_folder(dir: &Path) -> Result<()> {
        if dir.join(CONFIG).exists() {
            return Ok(());
        }
        others(dir).iter().find_map(|path| foreign_in(path)).map_or(Ok(()), Err)
    }

    /// Finds the files in `dir`.
    ///
    /// # Errors
    /// [`crate::error::Error::Data`] if there are none, or an index is broken or names a file outside the folder.
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

    /// Maps one of the files and checks the length of its header.
    ///
    /// # Errors
    /// [`crate::error::Error::Data`] if the file is missing, unreadable, or of another kind.
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

    /// Returns the place of the error if the tensor `name` is missing, and the file that requires the tensor: the
    /// tensor's file and the index, else the folder and config.json.
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
        // only plain names, so that an index cannot name a file outside its folder
        let name = file.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
        let name = name.ok_or_else(|| {
            let fault = Fault::from("`weight_map` names another folder").expected("names of files next to it");
            data(index, fault.found(file))
        })?;
        places.insert(plain_name(tensor), dir.join(name));
    }
    let paths: BTreeSet<PathBuf> = places.values().cloned().collect();
    Ok(Files { dir: dir.to_owned(), paths: paths.into_iter().collect(), places })
}

/// Fails for a header of absurd length, before anything is allocated. The header of a GPT-2 with 96 layers has some 150
/// KB.
fn check_header(path: &Path, bytes: &[u8]) -> Result<()> {
    let length = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    if length > HEADER_BYTES {
        let fault = Fault::from(format!("not a whole safetensors file: a header of {}", counted(length, "byte")));
        let most = format!("at most {}", count(HEADER_BYTES));
        return Err(data(path, fault.expected(most).advice("try copying it again")));
    }
    Ok(())
}

/// Returns the files in a folder that may be weights for another program, sorted by name.
fn others(dir: &Path) -> Vec<PathBuf> {
    let is_other = |path: &PathBuf| path.extension().is_some_and(|own| OTHER_WEIGHTS.iter().any(|other| own == *other));
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_other).collect();
    paths.sort();
    paths
}

/// Returns the error for a file that by its first bytes is of another kind, if it is one.
fn foreign_in(path: &Path) -> Option<crate::error::Error> {
    foreign::read_start(path).ok().and_then(|start| foreign::fault(path, &start)).map(|fault| data(path, fault))
}

/// Returns the error for a folder without [`WEIGHTS`], which depends on the files that it has instead.
fn missing(dir: &Path, single: &Path) -> crate::error::Error {
    let others = others(dir);
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let safe = |path: &&PathBuf| path.extension().is_some_and(|own| own == "safetensors");
    if let Some(part) = others.iter().filter(safe).find(|path| name(path).contains("-of-")) {
        let fault = Fault::from(format!("missing next to {}", name(part)));
        return data(&dir.join(INDEX), fault.advice("try copying the whole folder again"));
    }
    if let Some(other) = others.iter().find(safe) {
        let fault = Fault::from(format!("missing, but there is {}", name(other)));
        return data(single, fault.advice("try giving it this name"));
    }
    // prefer transformers' own pickle to other files
    let pickle = others.iter().find(|path| name(path).starts_with("pytorch_model")).or(others.first());
    match pickle.map(|path| (name(path), foreign::read_start(path).unwrap_or_default(), path)) {
        Some((name, start, path)) => {
            let fault = foreign::fault(path, &start).unwrap_or_else(|| "not supported".into());
            let advice = if fault.advice.is_empty() { foreign::SAVE_PRETRAINED } else { &fault.advice };
            data(single, Fault::from(format!("missing, and {name} is {}", fault.what)).advice(advice))
        }
        None => data(single, Fault::from("missing").advice("try a folder with a complete model")),
    }
}
