//! The files of a corpus, in the order in which their documents come.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::data::tokens::cannot_read;
use crate::error::{Error, Fault, Result};

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One document.
    Text,
    /// One JSON object a line.
    Lines,
    /// A table with a column of texts.
    Parquet,
}

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// It is not.
    Plain,
    /// gzip, of one or more members.
    Gzip,
    /// Zstandard, of one or more frames.
    Zstd,
}

/// A file of the corpus. Size and time of change tell whether it is still the same when a preparation goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// As given, or found in a folder that was given.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Nanoseconds from 1970 to its last change.
    pub modified_ns: u64,
}

impl Source {
    fn new(path: &Path) -> Result<Self> {
        let meta = fs::metadata(path).map_err(|e| cannot_read(&path.display().to_string(), &e))?;
        let modified = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        Ok(Self {
            path: path.to_owned(),
            bytes: meta.len(),
            modified_ns: modified.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX)),
        })
    }

    /// What its name says it holds. A file given by name may have any other ending: it is text.
    #[must_use]
    pub fn kind(&self) -> (Format, Packing) {
        kind(&self.path).unwrap_or((Format::Text, Packing::Plain))
    }

    /// The name that errors use.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Opens it for reading from its start, unpacked; `taken` counts the bytes as they lie in the file.
    pub(super) fn open(&self, taken: Arc<AtomicU64>) -> Result<Box<dyn Read + Send>> {
        let file = File::open(&self.path).map_err(|e| cannot_read(&self.name(), &e))?;
        let counted = Counted { file, taken };
        Ok(match self.kind().1 {
            Packing::Plain => Box::new(counted),
            Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(1 << 16, counted))),
            Packing::Zstd => {
                Box::new(zstd::stream::read::Decoder::new(counted).map_err(|e| cannot_read(&self.name(), &e))?)
            }
        })
    }

    /// The error for a read that failed.
    pub(super) fn broken(&self, error: &io::Error) -> Error {
        match (self.kind().1, error.kind()) {
            (Packing::Plain, _) => cannot_read(&self.name(), error),
            (packing, kind) => {
                let name = if packing == Packing::Gzip { "gzip" } else { "Zstandard" };
                let got = match kind {
                    io::ErrorKind::UnexpectedEof => "a file that ends too early".into(),
                    _ => error.to_string().to_lowercase(),
                };
                Error::data(
                    Fault::at(self.name(), format!("broken {name} data"))
                        .expected("whole frames")
                        .found(got)
                        .advice("was it copied whole?"),
                )
            }
        }
    }
}

struct Counted {
    file: File,
    taken: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(out)?;
        self.taken.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// What a file's name says, none if nothing that is known.
fn kind(path: &Path) -> Option<(Format, Packing)> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let (stem, packing) = match (name.strip_suffix(".gz"), name.strip_suffix(".zst")) {
        (Some(stem), _) => (stem, Packing::Gzip),
        (_, Some(stem)) => (stem, Packing::Zstd),
        _ => (name.as_str(), Packing::Plain),
    };
    let format = match stem.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "txt" | "text" | "md" => Format::Text,
        "jsonl" | "ndjson" | "json" => Format::Lines,
        "parquet" if packing == Packing::Plain => Format::Parquet,
        // a packed file of unknown contents is text all the same
        _ if packing != Packing::Plain => Format::Text,
        _ => return None,
    };
    Some((format, packing))
}

/// Whether a file found in a folder belongs to a corpus. Plain `.json` does not: those are notes and settings.
fn in_folder(path: &Path) -> bool {
    let hidden = path.file_name().and_then(|n| n.to_str()).is_none_or(|n| n.starts_with('.'));
    let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    !hidden && !json && kind(path).is_some()
}

/// The files of a corpus: those given, and in place of a folder all in it and below, sorted by path.
///
/// # Errors
/// [`Error::Data`] if one is missing, or a folder holds nothing that can be read.
pub fn sources(inputs: &[PathBuf]) -> Result<Vec<Source>> {
    if inputs.is_empty() {
        return Err(Error::data(Fault::at("corpus", "no file given").expected("at least one")));
    }
    let mut sources = Vec::new();
    for input in inputs {
        if !input.is_dir() {
            sources.push(Source::new(input)?);
            continue;
        }
        let mut found = Vec::new();
        collect(input, &mut found)?;
        if found.is_empty() {
            return Err(Error::data(
                Fault::at(input.display(), "no text in this folder")
                    .expected("files such as .txt, .md, .jsonl, .jsonl.gz, .jsonl.zst or .parquet"),
            ));
        }
        found.sort();
        for path in found {
            sources.push(Source::new(&path)?);
        }
    }
    Ok(sources)
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let failed = |e: &io::Error| cannot_read(&folder.display().to_string(), e);
    for entry in fs::read_dir(folder).map_err(|e| failed(&e))? {
        let entry = entry.map_err(|e| failed(&e))?;
        let path = entry.path();
        // a link to a folder could lead back up
        if entry.file_type().map_err(|e| failed(&e))?.is_dir() {
            if !entry.file_name().to_string_lossy().starts_with('.') {
                collect(&path, found)?;
            }
        } else if in_folder(&path) && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_a_file_holds() {
        let of = |name: &str| kind(Path::new(name));
        assert_eq!(of("a/b.TXT"), Some((Format::Text, Packing::Plain)));
        assert_eq!(of("b.jsonl.gz"), Some((Format::Lines, Packing::Gzip)));
        assert_eq!(of("c4-train.00000.json.zst"), Some((Format::Lines, Packing::Zstd)));
        assert_eq!(of("000_00000.parquet"), Some((Format::Parquet, Packing::Plain)));
        assert_eq!(of("book.gz"), Some((Format::Text, Packing::Gzip)));
        assert_eq!(of("x.bin"), None);
    }

    #[test]
    fn folders_are_read_in_order_of_their_paths() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("b")).unwrap();
        fs::create_dir(root.join(".git")).unwrap();
        for name in ["c.txt", "b/z.md", "b/a.jsonl", "note.json", ".hidden.txt", "x.bin", ".git/d.txt"] {
            fs::write(root.join(name), "x").unwrap();
        }
        let names: Vec<String> = sources(&[root.to_owned(), root.join("x.bin")])
            .unwrap()
            .iter()
            .map(|s| s.path.strip_prefix(root).unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["b/a.jsonl", "b/z.md", "c.txt", "x.bin"]);
    }

    #[test]
    fn a_corpus_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let of = |path: PathBuf| sources(&[path]).unwrap_err().fault().what.clone();
        assert!(of(dir.path().to_owned()).contains("no text in this folder"));
        assert!(of(dir.path().join("none.txt")).contains("no such file"));
        assert!(sources(&[]).is_err());
    }
}
