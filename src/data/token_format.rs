//! Layouts of token files: llm.c's shards, ids without a header, NumPy arrays. The layout is never guessed: a file of
//! another layout than the one asked for is an error that names what the file is.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::str::FromStr;

use super::npy;
pub use super::token_kind::LOOKS_LIKE_TEXT;
use super::token_kind::{Kind, START_BYTES};
use super::tokens::{HEADER_BYTES, HEADER_WORDS, MAGIC, VERSION, cannot_read, read_at};
use crate::error::{Error, Fault, Result};
use crate::units::{count, counted};

/// Layout of a token file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenFormat {
    /// llm.c's shards: a header of 1,024 bytes, then 16-bit ids.
    #[default]
    Shard,
    /// 16-bit little-endian ids and nothing else, like nanoGPT's `train.bin`.
    U16,
    /// 32-bit little-endian ids and nothing else.
    U32,
    /// NumPy's `.npy` with one dimension of 16- or 32-bit ids, like build-nanogpt's shards.
    Npy,
}

impl TokenFormat {
    /// All layouts with their names.
    pub const ALL: [(&str, Self); 4] =
        [("shard", Self::Shard), ("u16", Self::U16), ("u32", Self::U32), ("npy", Self::Npy)];

    /// Returns the usual file name extension of this layout, without the dot.
    #[must_use]
    pub fn ending(self) -> &'static str {
        if self == Self::Npy { "npy" } else { "bin" }
    }
}

impl fmt::Display for TokenFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, format)| format == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for TokenFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text).map(|(_, format)| *format);
        found.ok_or_else(|| format!("`{text}`, expected one of shard, u16, u32, npy"))
    }
}

/// Position of the ids in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Offset of the first id in bytes.
    pub start: u64,
    /// Bytes per id: 2 or 4.
    pub width: u64,
    /// Number of ids.
    pub len: usize,
}

impl Layout {
    /// Checks that an open file of `size` bytes has the layout `format` and is complete.
    ///
    /// # Errors
    /// [`Error::Data`] naming the layout expected and what the file is instead.
    pub fn of(path: &Path, file: &File, size: u64, format: TokenFormat) -> Result<Self> {
        let mut start = vec![0; usize::try_from(size).unwrap_or(START_BYTES).min(START_BYTES)];
        read_at(file, &mut start, 0).map_err(|e| cannot_read(&path.display().to_string(), &e))?;
        if size == 0 && format == TokenFormat::Shard {
            return shard(path, &start, size);
        }
        if size == 0 {
            return Err(refused(path, Fault::from("is empty").expected("tokens")));
        }
        let kind = Kind::of(&start, size);
        match (format, kind) {
            (TokenFormat::Shard, Kind::Shard) => shard(path, &start, size),
            (TokenFormat::Npy, Kind::Npy) => {
                let read = |bytes: &mut [u8], at| read_at(file, bytes, at);
                npy_layout(path, size, &read)
            }
            (TokenFormat::U16 | TokenFormat::U32, kind) if !kind.is_certain() => raw(path, kind, &start, size, format),
            (format, kind) => Err(refused(path, kind.fault(path, &start, format))),
        }
    }
}

/// Returns the error for a fault of a file.
fn refused(path: &Path, fault: Fault) -> Error {
    Error::data(fault.within(path.display()))
}

/// Checks a shard's header against the size of its file.
fn shard(path: &Path, start: &[u8], size: u64) -> Result<Layout> {
    if size < HEADER_BYTES {
        let fault = Fault::from("header is cut short").expected(format!("at least {}", counted(HEADER_BYTES, "byte")));
        return Err(refused(path, fault.found(count(size)).advice("was it copied whole?")));
    }
    let mut header = [0_i32; HEADER_WORDS];
    bytemuck::cast_slice_mut(&mut header).copy_from_slice(&start[..HEADER_BYTES as usize]);
    let [_magic, version, tokens] = [header[0], header[1], header[2]].map(i32::from_le);
    if version != VERSION {
        return Err(refused(path, Fault::from("unknown version").expected(VERSION).found(version)));
    }
    if tokens < 1 {
        return Err(refused(path, Fault::from("bad number of tokens").expected("at least 1").found(tokens)));
    }
    let tokens = tokens.unsigned_abs();
    let expected = HEADER_BYTES + 2 * u64::from(tokens);
    if size != expected {
        let expected = format!("{} for {}", counted(expected, "byte"), counted(tokens.into(), "token"));
        let fault = Fault::from("wrong file size").expected(expected).found(count(size));
        return Err(refused(path, fault.advice("was it copied whole?")));
    }
    debug_assert_eq!(i32::from_le(header[0]), MAGIC);
    Ok(Layout { start: HEADER_BYTES, width: 2, len: tokens as usize })
}

/// Checks the size of a file without a header, and that a file given as 16-bit ids does not contain 32-bit ids.
fn raw(path: &Path, kind: Kind, start: &[u8], size: u64, format: TokenFormat) -> Result<Layout> {
    let width = if format == TokenFormat::U16 { 2 } else { 4 };
    if !size.is_multiple_of(width) {
        let fault = Fault::from("wrong file size").expected(format!("a multiple of {width} bytes ({format})"));
        return Err(refused(path, fault.found(count(size)).advice("was it copied whole?")));
    }
    if format == TokenFormat::U16 && kind == Kind::Wide {
        return Err(refused(path, kind.fault(path, start, format)));
    }
    let len = usize::try_from(size / width).map_err(|_| refused(path, "too large for this system".into()))?;
    Ok(Layout { start: 0, width, len })
}

fn npy_layout(path: &Path, size: u64, read: &dyn Fn(&mut [u8], u64) -> io::Result<()>) -> Result<Layout> {
    let npy::Array { start, width, len } = npy::header(size, read).map_err(|fault| refused(path, fault))?;
    let expected = len.checked_mul(width).and_then(|bytes| bytes.checked_add(start));
    if expected != Some(size) {
        let bytes = expected.map_or("more bytes".into(), |bytes| counted(bytes, "byte"));
        let fault = Fault::from("wrong file size").expected(format!("{bytes} for {}", counted(len, "token")));
        return Err(refused(path, fault.found(count(size)).advice("was it copied whole?")));
    }
    if len == 0 {
        return Err(refused(path, Fault::from("bad number of tokens").expected("at least 1").found(0)));
    }
    let len = usize::try_from(len).map_err(|_| refused(path, "too large for this system".into()))?;
    Ok(Layout { start, width, len })
}

#[cfg(test)]
#[path = "token_format_tests.rs"]
mod tests;
