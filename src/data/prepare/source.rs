//! The files of a corpus, in the order in which their documents come.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::folder;
use crate::data::recognize::Input;
use crate::data::tokens::cannot_read;
use crate::error::{Error, Fault, Result};
use crate::files::path_text;

/// A file of the corpus. Size and time of change tell whether it is still the same when a preparation goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// As given, or found in a folder that was given.
    #[serde(with = "path_text::one")]
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Nanoseconds from 1970 to its last change.
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

    /// The name that errors use.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// The files of a corpus, and what a person should know of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Corpus {
    /// The files, in order.
    pub sources: Vec<Source>,
    /// Files of folders that were left out, and doubts about files.
    pub remarks: Vec<String>,
}

impl Corpus {
    /// Finds the files: those given, and in place of a folder all data in it and below, sorted by path. `field` is the
    /// field of JSON Lines that holds the text.
    ///
    /// # Errors
    /// [`Error::Data`] if a file is missing or of a kind that is not read, or a folder holds nothing that is.
    pub fn find(inputs: &[PathBuf], field: &str) -> Result<Self> {
        if inputs.is_empty() {
            return Err(Error::data(Fault::at("corpus", "no file given").expected("at least one")));
        }
        let mut corpus = Self::default();
        for path in inputs {
            if path.is_dir() {
                folder::find(path, field, &mut corpus)?;
                continue;
            }
            let source = Source::new(path)?;
            // of a pipe the first bytes could not be read twice
            if path.is_file() {
                let input = Input::open(path, Arc::default())?;
                input.content.map_err(|foreign| foreign.refused(&source.name()))?;
                corpus.remarks.extend(input.doubt.map(|doubt| format!("{}: {doubt}", source.name())));
            }
            corpus.sources.push(source);
        }
        Ok(corpus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corpus_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let of = |path: PathBuf| Corpus::find(&[path], "text").unwrap_err().fault().what.clone();
        assert!(of(dir.path().to_owned()).contains("no text in this folder"));
        assert!(of(dir.path().join("none.txt")).contains("no such file"));
        assert!(Corpus::find(&[], "text").is_err());
    }
}
