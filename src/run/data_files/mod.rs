//! The record of a run's data files, `data.json` in its folder. It ensures that a run is resumed on the bytes with which it
//! began.
//!
//! | module | contents |
//! |---|---|
//! | this one | reads and writes `data.json` |
//! | `compare` | decides whether a run may be resumed on the present files |
//! | `hasher` | hashes files while the run trains, and writes `data.json` |

mod compare;
mod hasher;

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::{Batches, FileContents, Rows, contents};
use crate::error::{Error, Fault, Result};
use crate::files::{atomic, open};

pub use compare::check;
pub(super) use compare::name_changed_file;
pub use hasher::FileHasher;

/// The record's name in a run's folder.
pub const NOTE: &str = "data.json";
/// The longest record that is read. It has some 200 bytes per file.
const NOTE_BYTES: u64 = 256 << 20;

/// The files of a run's data, in the order of their tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFiles {
    /// Training files. The last tenth of a text file's tokens is for validation.
    pub training: Vec<FileContents>,
    /// Validation files.
    pub validation: Vec<FileContents>,
}

impl DataFiles {
    /// Returns the files from which batches and validation rows come.
    #[must_use]
    pub fn of(loader: Option<&Batches>, rows: Option<&Rows>) -> Self {
        Self {
            training: loader.map_or_else(Vec::new, |loader| loader.files().to_vec()),
            validation: rows.into_iter().flat_map(Rows::files).cloned().collect(),
        }
    }

    /// Reads the record in a run's folder. Returns `None` if there is none, as in runs of earlier versions.
    ///
    /// # Errors
    /// [`Error::Data`] if it is broken or is not a plain file.
    pub fn read(run: &Path) -> Result<Option<Self>> {
        let path = run.join(NOTE);
        let wrong = |what: String| {
            let fault = Fault::at(path.display(), what).expected("the file that `wgpt train` wrote");
            Error::data(fault.advice("restore it, or use --restart to start over"))
        };
        let mut text = Vec::new();
        match open::own(&path, OpenOptions::new().read(true)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(format!("cannot be read ({error})"))),
            Ok(file) => file.take(NOTE_BYTES + 1).read_to_end(&mut text),
        }
        .map_err(|error| wrong(format!("cannot be read ({error})")))?;
        if text.len() as u64 > NOTE_BYTES {
            return Err(wrong(format!("is longer than {NOTE_BYTES} bytes")));
        }
        let files: Self = serde_json::from_slice(&text).map_err(|error| wrong(format!("is broken ({error})")))?;
        if !files.all().filter_map(|file| file.blake3.as_deref()).all(contents::is_hash) {
            return Err(wrong("is broken (a hash is not one)".into()));
        }
        Ok(Some(files))
    }

    /// Writes the record atomically.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn write(&self, run: &Path) -> Result<()> {
        let path = run.join(NOTE);
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::output(Fault::at(path.display(), format!("cannot be written ({e})"))))?;
        atomic::write(&path, |out| out.write_all(text.as_bytes()))
    }

    /// Returns all files.
    fn all(&self) -> impl Iterator<Item = &FileContents> {
        self.training.iter().chain(&self.validation)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut FileContents> {
        self.training.iter_mut().chain(&mut self.validation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_note_is_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(DataFiles::read(dir).unwrap(), None);
        let file = dir.join("a");
        std::fs::write(&file, "abc").unwrap();
        let mut files = DataFiles { training: vec![FileContents::of(&file).unwrap()], validation: Vec::new() };
        files.write(dir).unwrap();
        assert_eq!(DataFiles::read(dir).unwrap(), Some(files.clone()));
        let good = std::fs::read_to_string(dir.join(NOTE)).unwrap();
        files.training[0].blake3 = Some("\u{1b}[2J".repeat(16));
        let bad_hash = serde_json::to_string(&files).unwrap();
        let deep = "[".repeat(100_000);
        for text in ["", "{", "[]", "\0\0", &good[..good.len() - 3], &good.replace(": 3", ": -3"), &bad_hash, &deep] {
            std::fs::write(dir.join(NOTE), text).unwrap();
            let error = DataFiles::read(dir).unwrap_err();
            assert_eq!(error.exit_code(), 3, "{error}");
            let shown = error.to_string();
            assert!(shown.contains("data.json: is broken (") && !shown.contains('\n'), "{shown}");
            assert!(shown.ends_with("; restore it, or use --restart to start over"), "{shown}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_place_of_the_note_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.path().join(NOTE)).unwrap();
        let error = DataFiles::read(dir.path()).unwrap_err();
        assert_eq!(error.fault().what, "cannot be read (is a link, expected a file)");
        DataFiles::default().write(dir.path()).unwrap();
        assert_eq!(DataFiles::read(dir.path()).unwrap(), Some(DataFiles::default()));
    }
}
