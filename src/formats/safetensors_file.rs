//! Writes safetensors files tensor by tensor, so that a model is never in memory twice.
//!
//! The `safetensors` crate can write, too, but it neither syncs the bytes to disk before renaming nor makes the file
//! readable for users other than its owner. The layout is simple: a u64 with the header's length, the header (JSON,
//! padded with spaces to a multiple of 8 bytes), then the tensors without gaps; all little-endian.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use safetensors::Dtype;
use serde::Serialize;

use crate::error::{Error, Fault, Result};
use crate::files::atomic;

/// The format's key for metadata. No tensor may have this name.
const METADATA: &str = "__metadata__";

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, last axis fastest.
    pub shape: Vec<usize>,
}

impl Entry {
    /// Returns the size in the file in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.shape.iter().product::<usize>() * self.dtype.bitsize()).div_ceil(8)
    }
}

/// Writes the file `path` atomically, see [`atomic::write`].
///
/// The tensors are sorted by name, as Hugging Face's own writer sorts them. `data(i, out)` is called once for every
/// entry and writes the [`Entry::bytes`] bytes of `entries[i]`, little-endian.
///
/// # Errors
/// [`Error::Output`] naming `path` if writing fails; [`Error::Shape`] if two entries share a name or one is called
/// `__metadata__`.
///
/// # Panics
/// If `data` writes another number of bytes than the entry has: a bug of the caller.
pub fn write(
    path: &Path,
    metadata: &BTreeMap<&str, &str>,
    entries: &[Entry],
    data: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let layout = Layout::new(metadata, entries)?;
    atomic::write(path, |out| layout.put(out, entries, data))
}

/// The header of a file and the order of its tensors.
pub struct Layout {
    header: Vec<u8>,
    order: Vec<usize>,
}

impl Layout {
    /// Makes the header.
    ///
    /// # Errors
    /// [`Error::Shape`] if two entries share a name or one is called `__metadata__`.
    pub fn new(metadata: &BTreeMap<&str, &str>, entries: &[Entry]) -> Result<Self> {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|i| &entries[*i].name);
        Ok(Self { header: header(metadata, entries, &order)?, order })
    }

    /// Writes the whole file to `out`, see [`write`].
    ///
    /// # Errors
    /// Those of `out` and `data`.
    ///
    /// # Panics
    /// If `data` writes another number of bytes than the entry has: a bug of the caller.
    pub fn put(
        &self,
        out: &mut dyn Write,
        entries: &[Entry],
        mut data: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        out.write_all(&(self.header.len() as u64).to_le_bytes())?;
        out.write_all(&self.header)?;
        for &i in &self.order {
            let mut counted = Counted { out: &mut *out, bytes: 0 };
            data(i, &mut counted)?;
            assert_eq!(counted.bytes, entries[i].bytes(), "bytes of `{}`", entries[i].name);
        }
        Ok(())
    }
}

/// One value of the header's JSON object.
#[derive(Serialize)]
#[serde(untagged)]
enum Item<'a> {
    Metadata(&'a BTreeMap<&'a str, &'a str>),
    Tensor { dtype: Dtype, shape: &'a [usize], data_offsets: [usize; 2] },
}

fn header(metadata: &BTreeMap<&str, &str>, entries: &[Entry], order: &[usize]) -> Result<Vec<u8>> {
    let mut items = BTreeMap::from([(METADATA, Item::Metadata(metadata))]);
    let mut offset = 0;
    for entry in order.iter().map(|i| &entries[*i]) {
        let end = offset + entry.bytes();
        let item = Item::Tensor { dtype: entry.dtype, shape: &entry.shape, data_offsets: [offset, end] };
        if items.insert(&entry.name, item).is_some() {
            return Err(Error::shape(
                Fault::at("safetensors", format!("two entries are called `{}`", entry.name)).expected("one"),
            ));
        }
        offset = end;
    }
    let mut bytes = serde_json::to_vec(&items)
        .map_err(|e| Error::output(Fault::at("safetensors", format!("header cannot be made ({e})"))))?;
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    Ok(bytes)
}

/// Counts the bytes written through it, so that a tensor of the wrong length cannot shift all tensors after it.
struct Counted<'a> {
    out: &'a mut dyn Write,
    bytes: usize,
}

impl Write for Counted<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        self.bytes += n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    fn entry(name: &str, dtype: Dtype, shape: &[usize]) -> Entry {
        Entry { name: name.into(), dtype, shape: shape.into() }
    }

    #[test]
    fn the_crate_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let entries = [entry("b", Dtype::F32, &[2, 1]), entry("\"a\"", Dtype::U8, &[3]), entry("c", Dtype::U32, &[])];
        let data: [&[u8]; 3] = [&[1, 2, 3, 4, 5, 6, 7, 8], &[9, 10, 11], &[12, 13, 14, 15]];
        write(&path, &BTreeMap::from([("format", "pt")]), &entries, |i, out| out.write_all(data[i])).unwrap();

        let bytes = std::fs::read(&path).unwrap();
        let (length, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(length % 8, 0);
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        let read = SafeTensors::deserialize(&bytes).unwrap();
        for (entry, data) in entries.iter().zip(data) {
            let view = read.tensor(&entry.name).unwrap();
            assert_eq!((view.dtype(), view.shape(), view.data()), (entry.dtype, &entry.shape[..], data));
        }
    }

    #[test]
    fn names_are_unique() {
        for names in [["a", "a"], ["a", METADATA]] {
            let entries = names.map(|name| entry(name, Dtype::U8, &[0]));
            let error = write(Path::new("never"), &BTreeMap::new(), &entries, |_, _| Ok(())).unwrap_err();
            assert!(matches!(error, Error::Shape(_)), "{error}");
        }
    }

    #[test]
    #[should_panic(expected = "bytes of `a`")]
    fn a_short_tensor_is_a_bug() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [entry("a", Dtype::F32, &[2])];
        let _ = write(&dir.path().join("x"), &BTreeMap::new(), &entries, |_, out| out.write_all(&[0; 4]));
    }
}
