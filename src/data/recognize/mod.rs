//! Recognises kinds of files by their first bytes. A file's name matters only where the bytes are ambiguous:
//! comma-separated values are also text, and so is a line of JSON.

mod encoding;
mod foreign;
mod json;
mod name;

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use foreign::Foreign;
pub(crate) use foreign::READABLE;
pub(crate) use json::first_object_has;
pub(crate) use name::{is_about_data, is_strange};

use self::json::Shape;
use self::name::{Claim, Ending};
use super::tokens::cannot_read;
use super::unpack::Packing;
use crate::error::{Error, Fault, Result};
use crate::files::kind::without_bom;
use crate::files::open;

/// Number of first bytes that decide the kind. For packed files, these are unpacked bytes.
const LOOK_BYTES: u64 = 1 << 16;

/// Supported contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Text.
    Text,
    /// One JSON object per line.
    Lines,
    /// A table with a column of texts.
    Parquet,
}

impl Format {
    /// Returns the name that messages use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Lines => "JSON Lines",
            Self::Parquet => "Parquet",
        }
    }
}

/// An open file whose kind has been recognised.
pub struct Input {
    /// The kind of contents, or the unsupported kind.
    pub content: Result<Format, Foreign>,
    /// The packing of the file.
    pub packing: Packing,
    /// A doubt about supported contents.
    pub doubt: Option<&'static str>,
    /// The first bytes, unpacked, without a byte order mark.
    pub head: Vec<u8>,
    /// All bytes, unpacked, without a byte order mark.
    pub stream: Box<dyn Read + Send>,
}

impl Input {
    /// Opens a file. `taken` counts the bytes read from disk, before unpacking.
    ///
    /// # Errors
    /// [`Error::Data`] if the file cannot be read, or its first bytes cannot be unpacked.
    pub fn open(path: &Path, taken: Arc<AtomicU64>) -> Result<Self> {
        let name = path.display().to_string();
        let cannot = |e: io::Error| cannot_read(&name, &e);
        if path.is_dir() {
            let fault = Fault::at(&name, "is a folder").expected("a file");
            return Err(Error::data(fault.advice("try one of the files in it")));
        }
        let mut input = Counted { file: open::input(path).map_err(cannot)?, taken };
        let start = look(&mut input).map_err(cannot)?;
        let packing = Packing::of(&start);
        let whole = BufReader::with_capacity(1 << 16, Cursor::new(start).chain(input));
        let broken = |e: io::Error| packing.error(&name, &e);
        let mut stream = packing.unpacked(whole).map_err(broken)?;
        let mut head = look(&mut stream).map_err(broken)?;
        let (content, doubt) = judge(&head, packing, &Claim::of(path));
        head.drain(..head.len() - without_bom(&head).len());
        let stream = Box::new(Cursor::new(head.clone()).chain(stream));
        Ok(Self { content, packing, doubt, head, stream })
    }
}

/// Reads the first [`LOOK_BYTES`] bytes, or fewer if there are no more.
fn look(input: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    input.take(LOOK_BYTES).read_to_end(&mut head)?;
    Ok(head)
}

/// Decides a file's kind from its first bytes and its name. Returns also a doubt about it, if there is one.
fn judge(head: &[u8], packing: Packing, claim: &Claim) -> (Result<Format, Foreign>, Option<&'static str>) {
    let foreign = |kind: Foreign| (Err(Foreign { packing, ..kind }), None);
    let is_packed = packing != Packing::Plain;
    let is_whole = (head.len() as u64) < LOOK_BYTES;
    if head.is_empty() && !is_packed && (claim.is_packed || claim.ending == Ending::Parquet) {
        return foreign(foreign::EMPTY);
    }
    if head.starts_with(b"PAR1") {
        return if is_packed { foreign(foreign::PACKED_PARQUET) } else { (Ok(Format::Parquet), None) };
    }
    if is_packed && Packing::of(head) != Packing::Plain {
        return foreign(foreign::PACKED_TWICE);
    }
    let shape = json::shape(head, is_whole);
    match foreign::of(head, is_whole) {
        // NULs after a line of JSON: the reader will name the broken line
        Some(foreign::BINARY) if shape == Shape::Lines && claim.ending != Ending::Text => {}
        Some(kind) => return foreign(kind),
        None => {}
    }
    let doubt =
        (claim.is_packed && !is_packed).then_some("is not packed, though its name says so, and is read as it is");
    match (claim.ending, shape) {
        (Ending::Parquet, _) => foreign(foreign::NO_PARQUET),
        (Ending::Table, _) => foreign(foreign::TABLE),
        (Ending::Json, Shape::Array) => foreign(foreign::JSON_ARRAY),
        (Ending::Json | Ending::Other | Ending::None, Shape::Spread) => foreign(foreign::JSON_SPREAD),
        (Ending::Json, _) => (Ok(Format::Lines), doubt),
        (Ending::Text, Shape::Lines) => {
            let text =
                "looks like JSON Lines but has the name of a text; to read it as JSON Lines, rename it to .jsonl";
            (Ok(Format::Text), Some(text))
        }
        (Ending::Text, _) => (Ok(Format::Text), doubt),
        (_, Shape::Lines) => (Ok(Format::Lines), doubt),
        (_, Shape::Array) if json::is_array_of_objects(head) => foreign(foreign::JSON_ARRAY),
        _ => (Ok(Format::Text), doubt),
    }
}

/// A file that counts the bytes read.
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

#[cfg(test)]
mod tests;
