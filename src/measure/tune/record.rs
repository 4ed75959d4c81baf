//! The record of an adapter's fastest kernels: a file in the user's cache.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Fault, Result};
use crate::files::atomic::{self, output_error};
use crate::files::bounded;
use crate::gpu::{Caps, Gpu};

/// The fastest kernels found on one adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the program that wrote it; kernels change with the version.
    pub version: String,
    /// Name of the adapter.
    pub adapter: String,
    /// Driver and version of the adapter.
    pub driver: String,
    /// The kernel of each job as JSON, by [`super::Job::key`].
    pub kernels: BTreeMap<String, String>,
}

impl Record {
    fn empty(caps: &Caps) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            adapter: caps.name.clone(),
            driver: caps.driver.clone(),
            kernels: BTreeMap::new(),
        }
    }

    fn is_for(&self, caps: &Caps) -> bool {
        let Self { version, adapter, driver, .. } = self;
        *version == env!("CARGO_PKG_VERSION") && *adapter == caps.name && *driver == caps.driver
    }
}

/// Returns the value of an environment variable, if it is set and not empty.
fn set(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Returns the file that `WGPT_TUNING` names.
fn named() -> Option<PathBuf> {
    set("WGPT_TUNING")
}

/// Returns the path of an adapter's record: the file that `WGPT_TUNING` names; without it, a file in the folder `tune`
/// of `WGPT_CACHE`, or of `wgpt` in the user's cache folder. `None` if the user has no cache folder.
#[must_use]
pub fn path(caps: &Caps) -> Option<PathBuf> {
    if let Some(file) = named() {
        return Some(file);
    }
    let cache = match set("WGPT_CACHE") {
        Some(cache) => cache,
        None => dirs::cache_dir()?.join("wgpt"),
    };
    let plain = |text: &str| text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect::<String>();
    // the hash distinguishes drivers that differ only in characters that file names replace
    let name = format!("{} {} {}", caps.name, caps.backend, caps.driver);
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    Some(cache.join("tune").join(format!("{}-{hash:016x}.json", plain(&caps.name))))
}

/// The result of [`load`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadedRecord {
    /// There is no record.
    Nothing,
    /// The file that `WGPT_TUNING` names does not exist.
    Missing(PathBuf),
    /// The kernels of a record, and its file.
    Kernels(Arc<BTreeMap<String, String>>, PathBuf),
    /// The record is not used; the text is the reason.
    Ignored(String),
}

/// Largest record in bytes. A model at one batch size has about twenty entries of some hundred bytes.
const MOST_BYTES: u64 = 1 << 20;

/// Reads a record's file.
fn read(path: &Path) -> std::io::Result<String> {
    bounded::read_text(path, MOST_BYTES, "a record of wgpt tune")
}

/// Returns a name from a record, shortened and escaped for a message.
fn shown(name: &str) -> String {
    name.chars().take(64).flat_map(char::escape_debug).collect()
}

/// Reads the adapter's record into `caps.tuned`. Ignores a record that is invalid or for another driver or version, and
/// returns the reason.
pub fn load(caps: &mut Caps) -> LoadedRecord {
    let Some(path) = path(caps) else { return LoadedRecord::Nothing };
    let text = match read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && named().is_some() => return LoadedRecord::Missing(path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return LoadedRecord::Nothing,
        Err(e) => return LoadedRecord::Ignored(format!("{}: {e}", path.display())),
    };
    match serde_json::from_str::<Record>(&text) {
        Err(e) => LoadedRecord::Ignored(format!("{}: {e}; wgpt tune replaces it", path.display())),
        Ok(record) if !record.is_for(caps) => LoadedRecord::Ignored(format!(
            "{}: it is for {}, {}, wgpt {}; wgpt tune replaces it",
            path.display(),
            shown(&record.adapter),
            shown(&record.driver),
            shown(&record.version)
        )),
        Ok(record) => {
            caps.tuned = Arc::new(record.kernels);
            LoadedRecord::Kernels(caps.tuned.clone(), path)
        }
    }
}

/// Calls [`load`] for the first device of a run, and gives the others the same kernels.
pub fn load_all(gpus: &mut [Gpu]) -> LoadedRecord {
    let Some((first, others)) = gpus.split_first_mut() else { return LoadedRecord::Nothing };
    let found = load(&mut first.caps);
    others.iter_mut().for_each(|gpu| gpu.caps.tuned = first.caps.tuned.clone());
    found
}

/// Checks that [`save`] can write the adapter's record, and returns its path. Creates the folder in the user's cache;
/// the folder of a file that `WGPT_TUNING` names must exist.
///
/// # Errors
/// [`Error::Output`] naming the file or folder.
pub fn prepare(caps: &Caps) -> Result<PathBuf> {
    let path = path(caps).ok_or_else(|| {
        Error::output(
            Fault::at("tune", "this user has no cache folder")
                .expected("one for the record")
                .advice("set WGPT_CACHE or WGPT_TUNING"),
        )
    })?;
    if let (None, Some(folder)) = (named(), path.parent()) {
        std::fs::create_dir_all(folder).map_err(|e| output_error(folder, &e))?;
    }
    if path.is_dir() {
        return Err(output_error(&path, &std::io::ErrorKind::IsADirectory.into()));
    }
    // do not overwrite a file that is not a record
    if named().is_some() && path.exists() {
        let is_record = read(&path).ok().is_some_and(|text| serde_json::from_str::<Record>(&text).is_ok());
        if !is_record {
            let path = path.display();
            return Err(Error::output(
                Fault::at(path, "is not a record of wgpt tune")
                    .expected("a record or no file")
                    .advice("name another file in WGPT_TUNING"),
            ));
        }
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    atomic::probe(path.parent().unwrap_or(Path::new("")), &format!("{name}.try"))
        .map_err(|e| output_error(&path, &e))?;
    Ok(path)
}

/// Adds kernels, as (key, JSON), to the adapter's record, and returns its path. Replaces a record that is invalid or
/// for another driver or version.
///
/// # Errors
/// [`Error::Output`] naming the file.
pub fn save(caps: &Caps, found: &[(String, String)]) -> Result<PathBuf> {
    let path = prepare(caps)?;
    let old = read(&path).ok().and_then(|text| serde_json::from_str::<Record>(&text).ok());
    let mut record = old.filter(|record| record.is_for(caps)).unwrap_or_else(|| Record::empty(caps));
    record.kernels.extend(found.iter().cloned());
    let text = serde_json::to_string_pretty(&record).map_err(|e| Error::output(Fault::at("tune", e.to_string())))?;
    atomic::write(&path, |file| file.write_all(text.as_bytes()))?;
    Ok(path)
}
