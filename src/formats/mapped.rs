//! Memory-mapped files of weights, whose memory is released as they are read.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::hf_tensors;
use crate::error::{Error, Fault, Result};
use crate::files::map::Map;
use crate::files::open;

/// Number of elements that are decoded before the memory of their bytes is released: at most 16 MiB of f32.
const PIECE: usize = 1 << 22;

/// A file mapped into memory. The system reads its bytes on access.
///
/// The memory of decoded bytes is released, so that the file and the weights decoded from it are not in memory at the
/// same time. If another process truncates the file, the lost bytes read as zeros. So bytes that were read are valid
/// only after [`Mapped::check`] has succeeded.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    map: Map,
}

impl Mapped {
    /// Maps a file that a user or a model names. Follows links.
    ///
    /// # Errors
    /// [`Error::Data`] if the file cannot be read or is not a regular file; [`Error::Memory`] if it cannot be mapped.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(path, open::input(path))
    }

    /// Maps a file in a folder of this program, which other users may have changed. Does not follow links.
    ///
    /// # Errors
    /// Those of [`Mapped::open`]; [`Error::Data`] for a link.
    pub fn open_own(path: &Path) -> Result<Self> {
        Self::new(path, open::own(path, OpenOptions::new().read(true)))
    }

    fn new(path: &Path, file: io::Result<File>) -> Result<Self> {
        let map = file.and_then(Map::new).map_err(|e| match e.kind() {
            io::ErrorKind::OutOfMemory => {
                let fault = Fault::at(path.display(), "there is not enough address space to map it");
                Error::memory(fault.advice("try a larger limit of the process's memory (`ulimit -v`)"))
            }
            _ => Error::data(open::fault(path.display(), &e)),
        })?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// Fails if the file changed since it was mapped.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file.
    pub fn check(&self) -> Result<()> {
        self.map.check().map_err(|e| {
            let fault = Fault::at(self.path.display(), e.to_string());
            Error::data(fault.advice("try again when no other program writes to it"))
        })
    }

    /// Decodes `bytes`, a part of this file, as [`hf_tensors::decode`] does, and releases their memory piece by piece.
    ///
    /// # Errors
    /// Index and value of the first value that is not finite.
    pub fn decode(&self, dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<(), (usize, f32)> {
        let width = dtype.bitsize() / 8;
        for (i, (bytes, out)) in bytes.chunks(PIECE * width).zip(out.chunks_mut(PIECE)).enumerate() {
            hf_tensors::decode(dtype, bytes, out).map_err(|(index, value)| (i * PIECE + index, value))?;
            self.map.release(bytes);
        }
        Ok(())
    }

    /// Releases the memory of `part`, a part of this file. The system reads it again on the next access.
    pub fn release(&self, part: &[u8]) {
        self.map.release(part);
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_bytes_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut values: Vec<f32> = (0..PIECE + 5000).map(|i| i as f32).collect();
        std::fs::write(&path, bytemuck::cast_slice(&values)).unwrap();
        let map = Mapped::open(&path).unwrap();
        let mut out = vec![0.0; values.len()];
        for _ in 0..2 {
            assert_eq!(map.decode(Dtype::F32, &map, &mut out), Ok(()));
            assert!(out == values);
        }
        map.check().unwrap();
        values[PIECE + 7] = f32::INFINITY;
        std::fs::write(&path, bytemuck::cast_slice(&values)).unwrap();
        let map = Mapped::open(&path).unwrap();
        assert_eq!(map.decode(Dtype::F32, &map, &mut out), Err((PIECE + 7, f32::INFINITY)));
        assert!(Mapped::open(dir.path()).is_err() && Mapped::open(&path.join("b")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_is_cut_between_two_pieces_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let values: Vec<f32> = (0..2 * PIECE).map(|i| i as f32).collect();
        std::fs::write(&path, bytemuck::cast_slice(&values)).unwrap();
        let map = Mapped::open(&path).unwrap();
        let mut out = vec![0.0; values.len()];
        map.decode(Dtype::F32, &map[..4 * PIECE], &mut out[..PIECE]).unwrap();
        map.check().unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4 * PIECE as u64 + 4096).unwrap();
        map.decode(Dtype::F32, &map[4 * PIECE..], &mut out[PIECE..]).unwrap();
        assert_eq!((out[PIECE], out[2 * PIECE - 1]), (PIECE as f32, 0.0));
        let fault = map.check().unwrap_err().fault().clone();
        assert_eq!(
            (fault.place.as_str(), fault.what.as_str()),
            (path.to_str().unwrap(), "became shorter while it was read")
        );
    }
}
