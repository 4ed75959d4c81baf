//! Files of weights, mapped and given back as they are read.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;
use safetensors::Dtype;

use super::hf_tensors;

/// Elements that are decoded before their bytes are given back: at most 16 MiB of a file.
const PIECE: usize = 1 << 22;

/// A file as bytes in memory, read by the system where they are touched.
///
/// What was decoded is given back to the system, so that a file and the weights made of it are not held at the same
/// time. The file must not change meanwhile: one that another process shortens ends this process.
#[derive(Debug)]
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps a file.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        // SAFETY: the map is only read, as plain bytes; that the file must not change is documented.
        unsafe { Mmap::map(&file) }.map(Self)
    }

    /// Decodes `bytes`, a part of this file, as [`hf_tensors::decode`] does, giving them back piece by piece.
    ///
    /// # Errors
    /// Index and value of the first that is not finite.
    pub fn decode(&self, dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<(), (usize, f32)> {
        let width = dtype.bitsize() / 8;
        for (i, (bytes, out)) in bytes.chunks(PIECE * width).zip(out.chunks_mut(PIECE)).enumerate() {
            hf_tensors::decode(dtype, bytes, out).map_err(|(index, value)| (i * PIECE + index, value))?;
            self.release(bytes);
        }
        Ok(())
    }

    /// Gives the memory of `part`, a part of this file, back to the system. Touched again it is read again.
    pub fn release(&self, part: &[u8]) {
        #[cfg(unix)]
        if let Some(offset) = (part.as_ptr() as usize).checked_sub(self.as_ptr() as usize)
            && offset + part.len() <= self.len()
        {
            // SAFETY: of a map that nobody writes to, the same bytes come back from the file.
            let advice =
                unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, part.len()) };
            // a system that does not take the advice only holds more
            advice.unwrap_or_default();
        }
        #[cfg(not(unix))]
        let _ = part;
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_is_still_there() {
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
        map.release(&[1, 2, 3]); // no part of it
        values[PIECE + 7] = f32::INFINITY;
        std::fs::write(&path, bytemuck::cast_slice(&values)).unwrap();
        let map = Mapped::open(&path).unwrap();
        assert_eq!(map.decode(Dtype::F32, &map, &mut out), Err((PIECE + 7, f32::INFINITY)));
        assert!(Mapped::open(dir.path()).is_err() && Mapped::open(&path.join("b")).is_err());
    }
}
