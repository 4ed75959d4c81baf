//! The sizes that the pages of a Parquet column claim, looked at before a page is unpacked.
//!
//! A page is a header in Thrift's compact protocol and then so many bytes. The Parquet library makes room for
//! whatever size a header claims; here a claim is held against the file first.
//! Source: the Parquet and Thrift format descriptions.

use std::fs::File;
use std::io;
use std::ops::Range;

use crate::data::tokens::{cannot_read, read_at};
use crate::error::{Error, Fault, Result};

/// Bytes of a header that are looked at. Statistics may make one long, but not longer than this.
const HEADER_BYTES: usize = 1 << 16;
/// How much more than the whole file one page may unpack to.
const UNPACKED_BYTES: u64 = 48 << 20;
/// Deepest nesting of a header's fields.
const DEPTH: usize = 8;

/// Checks every page of a column's bytes.
///
/// # Errors
/// [`Error::Data`] naming the file and the first page that cannot be.
pub(super) fn check(file: &File, name: &str, range: Range<u64>) -> Result<()> {
    let size = file.metadata().map_err(|e| cannot_read(name, &e))?.len();
    let mut at = range.start;
    let mut buffer = vec![0; 256];
    while at < range.end {
        let header = loop {
            let n = buffer.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
            read_at(file, &mut buffer[..n], at).map_err(|e: io::Error| cannot_read(name, &e))?;
            match Header::read(&buffer[..n]) {
                None if n == buffer.len() && n < HEADER_BYTES => buffer.resize(8 * n, 0),
                header => break header,
            }
        };
        let wrong = |expected: String, got: String| {
            Err(Error::data(
                Fault::at(name, format!("broken Parquet page at byte {at}"))
                    .expected(expected)
                    .found(got)
                    .advice("was it copied whole?"),
            ))
        };
        let Some(Header { bytes, unpacked, packed }) = header else {
            return wrong("a page header".into(), "other bytes".into());
        };
        let left = range.end - at - bytes as u64;
        let Some(packed) = u64::try_from(packed).ok().filter(|&packed| packed <= left) else {
            return wrong(format!("at most {left} bytes"), packed.to_string());
        };
        let most = size + UNPACKED_BYTES;
        if u64::try_from(unpacked).ok().is_none_or(|unpacked| unpacked > most) {
            return wrong(format!("at most {most} bytes unpacked"), unpacked.to_string());
        }
        at += bytes as u64 + packed;
    }
    Ok(())
}

/// What of a page header matters here.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    /// Its own length.
    bytes: usize,
    unpacked: i64,
    packed: i64,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor { bytes, at: 0 };
        let (mut unpacked, mut packed, mut field) = (None, None, 0);
        while let Some(kind) = cursor.field(&mut field)? {
            match (field, kind) {
                (2, 5) => unpacked = Some(cursor.zigzag()?),
                (3, 5) => packed = Some(cursor.zigzag()?),
                _ => cursor.skip(kind, DEPTH)?,
            }
        }
        Some(Self { bytes: cursor.at, unpacked: unpacked?, packed: packed? })
    }
}

/// A reader of Thrift's compact protocol. Every step is none where the bytes end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// The next field's kind, `Some(None)` at the end of a struct; `field` becomes its number.
    fn field(&mut self, field: &mut i64) -> Option<Option<u8>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Some(None);
        }
        let step = i64::from(byte >> 4);
        *field = if step == 0 { self.zigzag()? } else { field.wrapping_add(step) };
        Some(Some(byte & 15))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match kind {
            1 | 2 => {} // a boolean field is its kind
            3 => self.at += 1,
            4..=6 => {
                self.varint()?;
            }
            7 => self.at += 8,
            8 => {
                let len = usize::try_from(self.varint()?).ok()?;
                self.at = self.at.checked_add(len)?;
            }
            9 | 10 => {
                let byte = self.byte()?;
                let len = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
                for _ in 0..len {
                    // a boolean in a list is a byte
                    let kind = if matches!(byte & 15, 1 | 2) { 3 } else { byte & 15 };
                    self.skip(kind, depth)?;
                    (self.at <= self.bytes.len()).then_some(())?;
                }
            }
            12 => {
                let mut field = 0;
                while let Some(kind) = self.field(&mut field)? {
                    self.skip(kind, depth)?;
                }
            }
            _ => return None,
        }
        (self.at <= self.bytes.len()).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read() {
        // type 0, unpacked 300, packed 100, a struct of one number and one text
        let bytes = [0x15, 0, 0x15, 0xd8, 4, 0x15, 0xc8, 1, 0x2c, 0x15, 2, 0x18, 2, b'a', b'b', 0, 0];
        assert_eq!(Header::read(&bytes), Some(Header { bytes: bytes.len(), unpacked: 300, packed: 100 }));
        for n in 0..bytes.len() {
            assert_eq!(Header::read(&bytes[..n]), None, "{n}");
        }
        // a list that claims 2^60 structs
        assert_eq!(Header::read(&[0x19, 0xfc, 255, 255, 255, 255, 255, 255, 255, 255, 15]), None);
        assert_eq!(Header::read(&[0x1c; 4000]), None);
    }
}
