//! Checks Parquet's structures in Thrift's compact protocol before the Parquet library reads them.
//!
//! The library derives a field's type from its number alone, allocates as many elements as a list claims, and reads
//! lists of booleans without consuming a byte. So this module accepts only bytes that the library reads in the same
//! way: fields have the types that the format gives them, in ascending order, and lists are not longer than the bytes
//! after them. Source: the Parquet and Thrift format descriptions.

/// A type of the format.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Bool,
    Byte,
    /// An integer of 16, 32 or 64 bits, which share an encoding.
    Whole,
    Double,
    /// Bytes or text.
    Binary,
    List(&'static Kind),
    Struct(Fields),
}

/// The known fields of a structure by number. A structure may have other fields of any type.
pub(super) type Fields = &'static [(i64, Kind)];

use Kind::{Binary, Bool, Byte, Double, List, Struct, Whole};

const EMPTY: Kind = Struct(&[]);
const UNIT: Kind = Struct(&[(1, EMPTY), (2, EMPTY), (3, EMPTY)]);
const TIME: Kind = Struct(&[(1, Bool), (2, UNIT)]);
const LOGICAL: Kind = Struct(&[
    (1, EMPTY),
    (2, EMPTY),
    (3, EMPTY),
    (4, EMPTY),
    (5, Struct(&[(1, Whole), (2, Whole)])),
    (6, EMPTY),
    (7, TIME),
    (8, TIME),
    (10, Struct(&[(1, Byte), (2, Bool)])),
    (11, EMPTY),
    (12, EMPTY),
    (13, EMPTY),
    (14, EMPTY),
    (15, EMPTY),
    (16, Struct(&[(1, Byte)])),
    (17, Struct(&[(1, Binary)])),
    (18, Struct(&[(1, Binary), (2, Whole)])),
]);
/// A column or a group of columns: its type, length, repetition, name, number of children, converted type, scale,
/// precision, number and logical type.
pub(super) const SCHEMA_ELEMENT: Fields = &[
    (1, Whole),
    (2, Whole),
    (3, Whole),
    (4, Binary),
    (5, Whole),
    (6, Whole),
    (7, Whole),
    (8, Whole),
    (9, Whole),
    (10, LOGICAL),
];
const KEY_VALUES: Kind = List(&Struct(&[(1, Binary), (2, Binary)]));
const STATISTICS: Kind = Struct(&[
    (1, Binary),
    (2, Binary),
    (3, Whole),
    (4, Whole),
    (5, Binary),
    (6, Binary),
    (7, Bool),
    (8, Bool),
    (9, Whole),
]);
const BOX: Kind =
    Struct(&[(1, Double), (2, Double), (3, Double), (4, Double), (5, Double), (6, Double), (7, Double), (8, Double)]);
const COLUMN_META: Kind = Struct(&[
    (1, Whole),
    (2, List(&Whole)),
    (3, List(&Binary)),
    (4, Whole),
    (5, Whole),
    (6, Whole),
    (7, Whole),
    (8, KEY_VALUES),
    (9, Whole),
    (10, Whole),
    (11, Whole),
    (12, STATISTICS),
    (13, List(&Struct(&[(1, Whole), (2, Whole), (3, Whole)]))),
    (14, Whole),
    (15, Whole),
    (16, Struct(&[(1, Whole), (2, List(&Whole)), (3, List(&Whole))])),
    (17, Struct(&[(1, BOX), (2, List(&Whole))])),
]);
const COLUMN: Kind =
    Struct(&[(1, Binary), (2, Whole), (3, COLUMN_META), (4, Whole), (5, Whole), (6, Whole), (7, Whole), (9, Binary)]);
const ROW_GROUP: Kind = Struct(&[
    (1, List(&COLUMN)),
    (2, Whole),
    (3, Whole),
    (4, List(&Struct(&[(1, Whole), (2, Bool), (3, Bool)]))),
    (5, Whole),
    (6, Whole),
    (7, Whole),
]);
/// A file's footer: version, schema, rows, row groups, keys and values, the program that wrote it, column orders.
pub(super) const FILE: Fields = &[
    (1, Whole),
    (2, List(&Struct(SCHEMA_ELEMENT))),
    (3, Whole),
    (4, List(&ROW_GROUP)),
    (5, KEY_VALUES),
    (6, Binary),
    (7, List(&Struct(&[(1, EMPTY), (2, EMPTY)]))),
    (9, Binary),
];
/// The header of a data page of version 1.
const DATA_PAGE: Kind = Struct(&[(1, Whole), (2, Whole), (3, Whole), (4, Whole), (5, STATISTICS)]);
/// The header of a data page of version 2.
pub(super) const SECOND_DATA_PAGE: Fields =
    &[(1, Whole), (2, Whole), (3, Whole), (4, Whole), (5, Whole), (6, Whole), (7, Bool), (8, STATISTICS)];
/// The header of a page: its type, its size unpacked and packed, a checksum, and a header of that type.
pub(super) const PAGE: Fields = &[
    (1, Whole),
    (2, Whole),
    (3, Whole),
    (4, Whole),
    (5, DATA_PAGE),
    (6, EMPTY),
    (7, Struct(&[(1, Whole), (2, Whole), (3, Bool)])),
    (8, Struct(SECOND_DATA_PAGE)),
];

/// Deepest nesting of structures and lists: those above have seven levels.
const DEPTH: usize = 16;

/// Most structures in a list, such as columns and row groups: the library allocates some hundred bytes for each.
const STRUCTURES: usize = 1 << 20;

/// The type of a value as encoded in the bytes, such as `12` for a structure.
type Wire = u8;

impl Kind {
    /// Returns whether the encoded type `wire` is readable as this type.
    fn fits(self, wire: Wire) -> bool {
        match self {
            Bool => matches!(wire, 1 | 2),
            Byte => wire == 3,
            Whole => matches!(wire, 4..=6),
            Double => wire == 7,
            Binary => wire == 8,
            List(_) => matches!(wire, 9 | 10),
            Struct(_) => wire == 12,
        }
    }
}

/// A reader of bytes. Its methods return `None` at the end of the bytes, or if the bytes do not follow the format.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Returns the number of bytes read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// Skips bytes.
    pub(super) fn pass(&mut self, bytes: usize) -> Option<()> {
        self.at = self.at.checked_add(bytes).filter(|&at| at <= self.bytes.len())?;
        Some(())
    }

    /// Reads an unsigned number.
    pub(super) fn varint(&mut self) -> Option<u64> {
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

    /// Reads a signed number.
    pub(super) fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Reads the header of a structure's next field; `Some(None)` at its end. `field` is the number of the previous
    /// field, 0 at first, and is set to the number of this field.
    pub(super) fn field(&mut self, fields: Fields, field: &mut i64) -> Option<Option<Wire>> {
        let byte = self.byte()?;
        if byte & 15 == 0 {
            // the end may carry a field step, which the library ignores
            return Some(None);
        }
        let before = *field;
        let step = i64::from(byte >> 4);
        *field = if step == 0 { self.zigzag()? } else { before + step };
        let wire = byte & 15;
        let is_sound =
            *field > before && *field <= i64::from(i16::MAX) && kind(fields, *field).is_none_or(|k| k.fits(wire));
        is_sound.then_some(Some(wire))
    }

    /// Reads the header of a list: the type and number of its elements.
    pub(super) fn list(&mut self, element: Option<Kind>) -> Option<(Wire, usize)> {
        let byte = self.byte()?;
        if byte == 0 {
            return Some((3, 0));
        }
        let len = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
        let wire = byte & 15;
        let most = if wire == 12 { STRUCTURES } else { usize::MAX }.min(self.bytes.len() - self.at);
        let len = usize::try_from(len).ok().filter(|&len| len <= most)?;
        // the library reads booleans in a list as values without bytes; the format has no such lists
        let is_sound = !matches!(wire, 1 | 2) && element.is_none_or(|kind| kind.fits(wire));
        is_sound.then_some((wire, len))
    }

    /// Skips the value of a structure's field.
    pub(super) fn skip_field(&mut self, fields: Fields, field: i64, wire: Wire) -> Option<()> {
        self.skip(wire, kind(fields, field), DEPTH)
    }

    fn skip(&mut self, wire: Wire, known: Option<Kind>, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match wire {
            1 | 2 => Some(()), // the type of a boolean field is its value
            3 => self.pass(1),
            4..=6 => self.varint().map(drop),
            7 => self.pass(8),
            8 => {
                let len = usize::try_from(self.varint()?).ok()?;
                self.pass(len)
            }
            9 | 10 => {
                let element = if let Some(List(element)) = known { Some(*element) } else { None };
                let (wire, len) = self.list(element)?;
                (0..len).try_for_each(|_| self.skip(wire, element, depth))
            }
            12 => {
                let fields = if let Some(Struct(fields)) = known { fields } else { &[] };
                let mut field = 0;
                while let Some(wire) = self.field(fields, &mut field)? {
                    self.skip(wire, kind(fields, field), depth)?;
                }
                Some(())
            }
            _ => None,
        }
    }
}

/// Returns the type that the format gives a field.
fn kind(fields: Fields, field: i64) -> Option<Kind> {
    fields.iter().find(|(number, _)| *number == field).map(|(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skip(fields: Fields, bytes: &[u8]) -> Option<usize> {
        let mut cursor = Cursor::new(bytes);
        cursor.skip(12, Some(Struct(fields)), DEPTH).map(|()| cursor.at())
    }

    #[test]
    fn fields_have_the_types_of_the_format_in_rising_order() {
        assert_eq!(skip(PAGE, &[0x15, 0, 0x15, 8, 0x15, 8, 0]), Some(7));
        // the size twice, the second time as another type: the library would take the second
        assert_eq!(skip(PAGE, &[0x15, 0, 0x15, 8, 0x05, 4, 8, 0]), None);
        assert_eq!(skip(PAGE, &[0x15, 0, 0x18, 1, 8, 0]), None);
        // a field of a later version of the format
        assert_eq!(skip(PAGE, &[0x15, 0, 0xb8, 1, 8, 0]), Some(6));
        assert_eq!(skip(PAGE, &[0x08, 0xfe, 0xff, 3, 2, 8, 8, 0]), Some(8));
    }

    #[test]
    fn lists_are_not_longer_than_the_bytes_after_them() {
        let list = |header: &[u8]| skip(&[], &[&[0x19][..], header, &[0; 8]].concat());
        assert_eq!(list(&[0x23]), Some(5));
        assert_eq!(list(&[0x00]), Some(3));
        // 2^31 - 1 numbers, 2^60 structures, 7 booleans, which the library reads without bytes
        for header in [&[0xf5, 255, 255, 255, 255, 7][..], &[0xfc, 128, 128, 128, 128, 128, 128, 128, 128, 16], &[0x71]]
        {
            assert_eq!(list(header), None, "{header:?}");
        }
        // lists in lists, and structures in structures, of any depth
        for byte in [0x19, 0x1c] {
            assert_eq!(skip(&[], &vec![byte; 1_000_000]), None);
        }
    }
}
