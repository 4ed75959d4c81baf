//! A model's own tokenizer files, kept byte by byte, so that they can be saved with everything made from the model.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::foreign;
use crate::error::{Error, Fault, Result};
use crate::files::{atomic, bounded, open};

/// The definition that Hugging Face's `tokenizers` reads.
pub const TOKENIZER: &str = "tokenizer.json";
/// Names of special tokens, and settings of the class that reads the tokenizer.
pub const SETTINGS: &str = "tokenizer_config.json";
/// Names of special tokens.
pub const SPECIAL: &str = "special_tokens_map.json";
/// Ids of tokens that were added to `vocab.json`.
pub const ADDED: &str = "added_tokens.json";
/// Ids that begin and end a text, and settings of sampling.
pub const GENERATION: &str = "generation_config.json";
/// The model's configuration, which also has the ids that begin and end a text.
const CONFIG: &str = "config.json";

/// Vocabulary and merges of byte pair encodings, in transformers' and in OpenAI's file names.
pub const PAIRS: [[&str; 2]; 2] = [["vocab.json", "merges.txt"], ["encoder.json", "vocab.bpe"]];

/// Files of unsupported tokenizers, and the kinds of those.
pub const FOREIGN: [(&str, &str); 6] = [
    ("vocab.txt", "WordPiece"),
    ("tokenizer.model", "SentencePiece"),
    ("spiece.model", "SentencePiece"),
    ("spm.model", "SentencePiece"),
    ("sentencepiece.bpe.model", "SentencePiece"),
    ("sentencepiece.model", "SentencePiece"),
];

/// Longest file that is read, in bytes. `tokenizer.json` with 65,536 ids has some 4 MB; parsed JSON takes many times
/// its length in memory.
const FILE_BYTES: u64 = 16 << 20;

/// Returns the names of all files that may belong to a tokenizer.
fn names() -> impl Iterator<Item = &'static str> {
    let foreign = FOREIGN.iter().map(|(name, _)| *name);
    [TOKENIZER, SETTINGS, SPECIAL, ADDED, GENERATION].into_iter().chain(PAIRS.into_iter().flatten()).chain(foreign)
}

/// A tokenizer's files and the folder they were read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerFiles {
    dir: PathBuf,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl TokenizerFiles {
    /// Reads the tokenizer's files in `dir`; `None` if none of them defines a tokenizer.
    ///
    /// If only `config.json` has the id that ends a text, adds a `generation_config.json` with this id, so that copies
    /// of the files have it, too.
    ///
    /// # Errors
    /// [`Error::Data`] naming a file that cannot be read or has more than 16 MiB.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let mut files = Vec::new();
        for name in names() {
            let path = dir.join(name);
            match read_bounded(&path) {
                Ok(bytes) => files.push((name, bytes)),
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(e) => return Err(Error::data(open::fault(path.display(), &e))),
            }
        }
        let mut found = Self { dir: dir.to_owned(), files };
        let is_found = |name: &&str| found.get(name).is_some();
        let pairs = PAIRS.into_iter().flatten();
        if ![TOKENIZER].into_iter().chain(pairs).chain(FOREIGN.map(|(name, _)| name)).any(|name| is_found(&name)) {
            return Ok(None);
        }
        if found.get(GENERATION).is_none() {
            found.files.extend(ids_of_config(dir).map(|bytes| (GENERATION, bytes)));
        }
        Ok(Some(found))
    }

    /// Reads one file in the form of `tokenizer.json`, regardless of its name.
    ///
    /// # Errors
    /// [`Error::Data`] if it cannot be read or has more than 16 MiB.
    pub fn of_file(path: &Path) -> Result<Self> {
        let cannot = |e: io::Error| Error::data(open::fault(path.display(), &e));
        let files = vec![(TOKENIZER, read_bounded(path).map_err(cannot)?)];
        Ok(Self { dir: path.parent().unwrap_or(Path::new("")).to_owned(), files })
    }

    /// Fails if one of the files is of another kind, such as a pointer of Git LFS.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file.
    pub fn check(&self) -> Result<()> {
        let texts = self.iter().filter(|(name, _)| FOREIGN.iter().all(|(foreign, _)| foreign != name));
        let mut faults = texts.filter_map(|(name, bytes)| {
            let path = self.dir.join(name);
            foreign::text_fault(&path, bytes).map(|fault| Error::data(fault.within(path.display())))
        });
        faults.next().map_or(Ok(()), Err)
    }

    /// Returns the folder that the files were read from.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of the file that defines the tokenizer, for messages.
    #[must_use]
    pub fn place(&self) -> PathBuf {
        let defining = [TOKENIZER].into_iter().chain(PAIRS.map(|[vocab, _]| vocab));
        let found = defining.chain(FOREIGN.map(|(name, _)| name)).find(|name| self.get(name).is_some());
        found.map_or_else(|| self.dir.clone(), |name| self.dir.join(name))
    }

    /// Returns a file's bytes.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find(|(own, _)| *own == name).map(|(_, bytes)| &**bytes)
    }

    /// Returns a file's JSON; null if there is no such file.
    ///
    /// # Errors
    /// A fault that names the file, and its kind if it is not JSON.
    pub fn json(&self, name: &str) -> Result<Value, Fault> {
        let path = self.dir.join(name);
        let placed = |fault: Fault| fault.expected("a file of a tokenizer").within(path.display());
        self.get(name).map_or(Ok(Value::Null), |bytes| foreign::json(&path, bytes).map_err(placed))
    }

    /// Returns the files' names and bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.files.iter().map(|(name, bytes)| (*name, &**bytes))
    }

    /// Writes the files into the folder `dir`, which is created if it is missing.
    ///
    /// # Errors
    /// [`Error::Output`] naming the file.
    pub fn add_to(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).map_err(|e| atomic::output_error(dir, &e))?;
        self.iter().try_for_each(|(name, bytes)| atomic::write(&dir.join(name), |out| out.write_all(bytes)))
    }

    /// Writes the files as [`add_to`](Self::add_to) does and removes files of other tokenizers from the folder.
    ///
    /// # Errors
    /// [`Error::Output`] naming the file.
    pub fn write(&self, dir: &Path) -> Result<()> {
        self.add_to(dir)?;
        remove_others(dir, |name| self.get(name).is_some())
    }
}

/// Removes the tokenizer files in `dir` that are not `kept`, because two tokenizers in one folder would be read as one.
///
/// # Errors
/// [`Error::Output`] naming the file.
pub fn remove_others(dir: &Path, kept: impl Fn(&str) -> bool) -> Result<()> {
    for name in names().filter(|name| !kept(name)) {
        match fs::remove_file(dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(atomic::output_error(&dir.join(name), &e)),
            _ => {}
        }
    }
    Ok(())
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    bounded::read(path, FILE_BYTES, "a tokenizer")
}

/// Returns the ids in a model's `config.json` in the form of `generation_config.json`, if one of them ends a text.
fn ids_of_config(dir: &Path) -> Option<Vec<u8>> {
    // faults of config.json are reported when the model is read
    let config = foreign::json(Path::new(CONFIG), &read_bounded(&dir.join(CONFIG)).ok()?).ok()?;
    let ids = ["bos_token_id", "eos_token_id"].into_iter().filter_map(|key| Some((key, config.get(key)?)));
    let ids: Map<String, Value> = ids.filter(|(_, id)| !id.is_null()).map(|(k, v)| (k.to_owned(), v.clone())).collect();
    ids.contains_key("eos_token_id").then(|| format!("{:#}\n", Value::Object(ids)).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_tokenizer_files_has_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CONFIG), "{}").unwrap();
        fs::write(dir.path().join(SETTINGS), "{}").unwrap();
        assert_eq!(TokenizerFiles::read(dir.path()).unwrap(), None);
        assert_eq!(TokenizerFiles::read(&dir.path().join("none")).unwrap(), None);
    }

    #[test]
    fn files_are_kept_byte_by_byte_and_those_of_another_tokenizer_are_removed() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("vocab.json"), b"{ \"a\" :0}\r\n").unwrap();
        fs::write(from.path().join(CONFIG), "{\"eos_token_id\": 7, \"n_layer\": 2}").unwrap();
        for name in ["tokenizer.json", "vocab.txt", "weights"] {
            fs::write(to.path().join(name), "other").unwrap();
        }
        let files = TokenizerFiles::read(from.path()).unwrap().unwrap();
        files.write(to.path()).unwrap();
        let mut names: Vec<_> = fs::read_dir(to.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["generation_config.json", "vocab.json", "weights"]);
        assert_eq!(fs::read(to.path().join("vocab.json")).unwrap(), b"{ \"a\" :0}\r\n");
        // the id that only config.json has
        let kept = TokenizerFiles::read(to.path()).unwrap().unwrap();
        assert_eq!(kept.json(GENERATION).unwrap()["eos_token_id"], 7);
    }
}
