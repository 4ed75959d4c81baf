//! The files of a corpus, in the order of their documents.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::folder;
use crate::data::recognize::{Format, Input};
use crate::data::tokens::cannot_read;
use crate::data::{Part, TokenFormat, token_paths};
use crate::error::{Error, Fault, Result};
use crate::files::path_text;

/// A file of the corpus. A resumed preparation compares size and time of change to check that the file is still the
/// same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Path as given, or as found in a given folder.
    #[serde(with = "path_text::one")]
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    /// Time of the last write in nanoseconds since 1970.
    pub modified_ns: u64,
}

impl Source {
    pub(super) fn new(path: &Path) -> Result<Self> {
        let meta = fs::metadata(path).map_err(|e| cannot_read(&path.display().to_string(), &e))?;
        let modified = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        Ok(Self {
            path: path.to_owned(),
            bytes: meta.len(),
            modified_ns: modified.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX)),
        })
    }

    /// Returns the name that errors use.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// The files of a corpus, and remarks about them for the user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Corpus {
    /// The files, in order.
    pub sources: Vec<Source>,
    /// Remarks about files in folders that were left out, and about doubtful files.
    pub remarks: Vec<String>,
    /// Number of text files among the files.
    pub texts: usize,
    /// The files' paths with links resolved.
    taken: BTreeSet<PathBuf>,
}

impl Corpus {
    /// Marks a file as taken. Returns whether it was not taken before, under this or another name.
    pub(super) fn is_new(&mut self, path: &Path) -> bool {
        self.taken.insert(path.canonicalize().unwrap_or_else(|_| path.to_owned()))
    }

    /// Finds the files of a corpus: given files, files that match given patterns, and all data files in and below given
    /// folders, sorted by path. `field` is the field of JSON Lines with the text. The output folder `out` is left out.
    ///
    /// # Errors
    /// [`Error::Data`] if a file is missing or of an unsupported kind, or a folder has no data files.
    pub fn find(inputs: &[PathBuf], field: &str, out: &Path) -> Result<Self> {
        if inputs.is_empty() {
            return Err(Error::data(Fault::at("corpus", "no file given").expected("at least one")));
        }
        let mut corpus = Self::default();
        let inputs = expanded(inputs)?;
        for path in &inputs {
            if inputs.len() > 1 && folder::is_made_at(path, out) {
                continue;
            }
            if path.is_dir() {
                folder::find(path, field, out, &mut corpus)?;
                continue;
            }
            let source = Source::new(path)?;
            let input = Input::open(path, Arc::default())?;
            let format = input.content.map_err(|foreign| foreign.refused(&source.name()))?;
            corpus.texts += usize::from(format == Format::Text);
            corpus.remarks.extend(input.doubt.map(|doubt| format!("{}: {doubt}", source.name())));
            corpus.is_new(path);
            corpus.sources.push(source);
        }
        Ok(corpus)
    }
}

/// Replaces patterns by the paths that match them. A pattern that is the exact name of a file stands for this file.
fn expanded(inputs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in inputs {
        let is_pattern = path.as_os_str().as_encoded_bytes().iter().any(|byte| b"*?[".contains(byte));
        if !is_pattern || path.symlink_metadata().is_ok() {
            found.push(path.clone());
            continue;
        }
        found.extend(token_paths::find(std::slice::from_ref(path), Part::All, TokenFormat::Shard).map_err(
            |error| {
                if error.fault().what != "no file matches" {
                    return error;
                }
                Error::data(Fault::at(path.display(), "no file matches").expected("at least one file or folder"))
            },
        )?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_without_data_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let of = |path: PathBuf| Corpus::find(&[path], "text", Path::new("")).unwrap_err().fault().what.clone();
        assert!(of(dir.path().to_owned()).contains("no text in this folder"));
        assert!(of(dir.path().join("none.txt")).contains("no such file"));
        assert!(Corpus::find(&[], "text", Path::new("")).is_err());
        assert_eq!(of(dir.path().join("*.txt")), "no file matches");
    }

    #[test]
    fn a_pattern_stands_for_the_paths_that_match_it() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.txt", "a.txt", "c.md", "[v2].txt", "in/d.txt"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let of = |pattern: &str| -> Vec<String> {
            let corpus = Corpus::find(&[dir.path().join(pattern)], "text", Path::new("")).unwrap();
            let name = |s: &Source| s.path.strip_prefix(dir.path()).unwrap().display().to_string();
            corpus.sources.iter().map(name).collect()
        };
        assert_eq!(of("?.txt"), ["a.txt", "b.txt"]);
        assert_eq!(of("i*"), ["in/d.txt"]);
        assert_eq!(of("[v2].txt"), ["[v2].txt"]);
        // the second run of `prepare '*' --out out`
        fs::create_dir(dir.path().join("out")).unwrap();
        fs::write(dir.path().join("out/dataset.json"), "{}").unwrap();
        let corpus = Corpus::find(&[dir.path().join("*")], "text", &dir.path().join("out")).unwrap();
        assert_eq!(corpus.sources.len(), 5);
    }
}
