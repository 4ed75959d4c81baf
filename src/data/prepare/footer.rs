//! Checks the footer of a Parquet file before the Parquet library reads it. The library recurses into nested groups of
//! any depth and allocates as many children as a group claims.

use std::fs::File;
use std::io;

use super::thrift::{Cursor, FILE, Kind, SCHEMA_ELEMENT};
use crate::data::tokens::read_at;
use crate::error::Fault;
use crate::units::counted;

/// Deepest nesting of groups. Tables of texts have two or three levels.
const DEPTH: usize = 64;
/// Longest footer in bytes. A footer of 10,000 row groups with 100 columns each has some 100 MB.
const FOOTER_BYTES: u64 = 1 << 30;
/// Bytes at the end of a file: the size of the footer and `PAR1`.
const END_BYTES: u64 = 8;

/// Checks the footer of a file.
///
/// # Errors
/// A fault without a place.
pub(crate) fn check(file: &File) -> Result<(), Fault> {
    let unread = |e: io::Error| Fault::from(format!("cannot be read ({e})"));
    let broken = |found: String| Fault::from("broken Parquet data").expected("a footer").found(found);
    let size = file.metadata().map_err(unread)?.len();
    let mut end = [0; END_BYTES as usize];
    // the library reports what is wrong with a short file
    let Some(at) = size.checked_sub(END_BYTES) else { return Ok(()) };
    read_at(file, &mut end, at).map_err(unread)?;
    let [a, b, c, d, magic @ ..] = end;
    let length = u64::from(u32::from_le_bytes([a, b, c, d]));
    if magic != *b"PAR1" || length > at {
        return Ok(());
    }
    if length > FOOTER_BYTES {
        let fault = broken(counted(length, "byte"));
        return Err(fault.expected(format!("a footer of at most {}", counted(FOOTER_BYTES, "byte"))));
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| broken(counted(length, "byte")))?];
    read_at(file, &mut bytes, at - length).map_err(unread)?;
    fields(&bytes).unwrap_or_else(|| Err(broken("other bytes".into())))
}

/// Checks a footer. `None` if the bytes are not a footer.
fn fields(bytes: &[u8]) -> Option<Result<(), Fault>> {
    let mut cursor = Cursor::new(bytes);
    let mut field = 0;
    while let Some(wire) = cursor.field(FILE, &mut field)? {
        match field {
            2 => {
                if let Err(fault) = schema(&mut cursor)? {
                    return Some(Err(fault));
                }
            }
            _ => cursor.skip_field(FILE, field, wire)?,
        }
    }
    Some(Ok(()))
}

/// Checks the schema: the columns and their groups in one list, each group before its children.
fn schema(cursor: &mut Cursor) -> Option<Result<(), Fault>> {
    let (_, len) = cursor.list(Some(Kind::Struct(SCHEMA_ELEMENT)))?;
    // for each open group, the number of children to come
    let mut open: Vec<usize> = Vec::new();
    let mut to_come = 1;
    for read in 1..=len {
        let children = element(cursor)?;
        to_come = usize::checked_sub(to_come, 1)?.checked_add(children).filter(|&all| all <= len - read)?;
        if let Some(last) = open.last_mut() {
            *last -= 1;
        }
        if children > 0 {
            open.push(children);
        }
        while open.last() == Some(&0) {
            open.pop();
        }
        if open.len() > DEPTH {
            let fault = Fault::from("groups of columns are nested too deeply");
            return Some(Err(fault.expected(format!("at most {DEPTH} levels")).found("more")));
        }
    }
    Some(Ok(()))
}

/// Checks a column or a group and returns the number of its children.
fn element(cursor: &mut Cursor) -> Option<usize> {
    let (mut children, mut field) = (0, 0);
    while let Some(wire) = cursor.field(SCHEMA_ELEMENT, &mut field)? {
        match field {
            5 => children = usize::try_from(cursor.zigzag()?).ok()?,
            _ => cursor.skip_field(SCHEMA_ELEMENT, field, wire)?,
        }
    }
    Some(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a footer whose schema lists groups with these numbers of children, followed by `more`.
    fn footer(children: &[u8], more: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x15, 2, 0x19, 0xfc];
        let mut len = children.len();
        while len > 127 {
            bytes.push(len as u8 | 128);
            len >>= 7;
        }
        bytes.push(len as u8);
        for &n in children {
            bytes.extend([0x35, 0, 0x18, 1, b'g']);
            if n > 0 {
                bytes.extend([0x15, 2 * n]);
            }
            bytes.push(0);
        }
        [&bytes, more, &[0]].concat()
    }

    fn what(bytes: &[u8]) -> String {
        match fields(bytes) {
            None => "none".into(),
            Some(read) => read.map_or_else(|fault| fault.to_string(), |()| "sound".into()),
        }
    }

    #[test]
    fn a_schema_of_any_depth_ends_in_an_error() {
        assert_eq!(what(&footer(&[2, 1, 0, 0], &[])), "sound");
        for (depth, said) in [(64, "sound"), (65, "too deeply"), (100_000, "too deeply"), (1_000_000, "too deeply")] {
            let mut chain = vec![1; depth];
            chain.push(0);
            assert!(what(&footer(&chain, &[])).contains(said), "{depth}");
        }
        // 63 groups side by side, none nested
        let mut row = vec![1, 63];
        row.extend([0; 63]);
        assert_eq!(what(&footer(&row, &[])), "sound");
    }

    #[test]
    fn missing_children_and_lists_are_refused_before_memory_is_allocated() {
        // one child of two, a child too many, 2^31 - 1 children, -1
        for children in [&[2, 0][..], &[1, 0, 0]] {
            assert_eq!(what(&footer(children, &[])), "none", "{children:?}");
        }
        let one = |children: &[u8]| [&[0x15, 2, 0x19, 0x1c, 0x48, 1, b'g', 0x15], children, &[0, 0]].concat();
        assert_eq!(what(&one(&[0])), "sound");
        assert_eq!(what(&one(&[254, 255, 255, 255, 15])), "none");
        assert_eq!(what(&one(&[1])), "none");
        // 2^31 - 1 columns; 2^31 - 1 groups of rows
        assert_eq!(what(&[0x15, 2, 0x19, 0xfc, 255, 255, 255, 255, 7, 0]), "none");
        assert_eq!(what(&footer(&[0], &[0x16, 0, 0x19, 0xfc, 255, 255, 255, 255, 7, 0])), "none");
        assert_eq!(what(&footer(&[0], &[0x16, 0, 0x19, 0x0c])), "sound");
        for byte in [0x19, 0x1c] {
            assert_eq!(what(&vec![byte; 3_000_000]), "none");
        }
    }
}
