//! Reads the header of NumPy's `.npy`: magic, version, and a Python dictionary with the element type and the shape.

use std::io;

use crate::error::Fault;

/// First bytes of every array.
#[cfg(test)]
const MAGIC: &[u8] = b"\x93NUMPY";
/// Longest header that is read. The header of a token array has some 118 bytes.
const MOST_HEADER_BYTES: usize = 1 << 20;

/// Layout of a one-dimensional array of unsigned ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Array {
    /// Offset of the first id in bytes.
    pub start: u64,
    /// Bytes per id: 2 or 4.
    pub width: u64,
    /// Number of ids.
    pub len: u64,
}

/// Reads the header of a file of `size` bytes that begins with NumPy's magic. `read` fills a buffer from an offset.
pub(super) fn header(size: u64, read: &dyn Fn(&mut [u8], u64) -> io::Result<()>) -> Result<Array, Fault> {
    let cut = || Fault::from("header is cut short").found(format!("{size} bytes")).advice("was it copied whole?");
    let mut fixed = [0; 12];
    let fixed_bytes = usize::try_from(size).unwrap_or(fixed.len()).min(fixed.len());
    read(&mut fixed[..fixed_bytes], 0).map_err(|e| Fault::from(format!("cannot be read: {e}")))?;
    let (length, start) = match (fixed[6], fixed[7]) {
        (1, 0) => (usize::from(u16::from_le_bytes([fixed[8], fixed[9]])), 10),
        (2 | 3, 0) => {
            let length = u32::from_le_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]);
            (usize::try_from(length).unwrap_or(usize::MAX), 12)
        }
        (major, minor) => {
            let fault = Fault::from("unknown version of NumPy's format").expected("1.0, 2.0 or 3.0");
            return Err(fault.found(format!("{major}.{minor}")));
        }
    };
    if length > MOST_HEADER_BYTES {
        return Err(Fault::from("header is too long")
            .expected(format!("at most {MOST_HEADER_BYTES} bytes"))
            .found(length));
    }
    let end = start + length as u64;
    if end > size {
        return Err(cut());
    }
    let mut text = vec![0; length];
    read(&mut text, start).map_err(|e| Fault::from(format!("cannot be read: {e}")))?;
    let text = String::from_utf8_lossy(&text);
    let value =
        parse(&text).ok_or_else(|| Fault::from("header is not a dictionary as NumPy writes it").found(shown(&text)))?;
    array(&value, end)
}

/// Checks element type and shape of an array.
fn array(header: &Value, start: u64) -> Result<Array, Fault> {
    let missing = |key: &str| Fault::from(format!("header has no `{key}`"));
    let width = match header.get("descr").ok_or_else(|| missing("descr"))? {
        Value::Text(descr) => width(descr)?,
        _ => return Err(Fault::from("contains records of several fields").expected(EXPECTED)),
    };
    let Some(Value::List(shape)) = header.get("shape") else { return Err(missing("shape")) };
    let sizes: Option<Vec<u64>> =
        shape.iter().map(|size| if let Value::Number(n) = size { Some(*n) } else { None }).collect();
    match sizes.as_deref() {
        Some([len]) => Ok(Array { start, width, len: *len }),
        Some(sizes) => {
            let shape = sizes.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            let fault = Fault::from("has the wrong shape").expected("one dimension").found(format!("({shape})"));
            Err(fault.advice("try `numpy.save(FILE, array.reshape(-1))`"))
        }
        None => Err(missing("shape")),
    }
}

const EXPECTED: &str = "16- or 32-bit unsigned ids (<u2 or <u4)";

/// Returns the bytes per id for NumPy's name of the type.
fn width(descr: &str) -> Result<u64, Fault> {
    let what = match descr {
        "<u2" => return Ok(2),
        "<u4" => return Ok(4),
        ">u2" | ">u4" => "contains big-endian ids".to_owned(),
        _ if descr.contains('O') => "contains Python objects, which can run any program when they are read".to_owned(),
        _ => "contains elements of another type".to_owned(),
    };
    let fault = Fault::from(what).expected(EXPECTED).found(shown(descr));
    Err(fault.advice("try `numpy.save(FILE, array.astype('<u2'))`"))
}

fn shown(text: &str) -> String {
    let start: String = text.chars().take(80).collect();
    format!("`{}`", start.escape_debug())
}

/// A value of the dictionary.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Text(String),
    Number(u64),
    Switch(bool),
    List(Vec<Value>),
    Table(Vec<(String, Value)>),
}

impl Value {
    fn get(&self, key: &str) -> Option<&Self> {
        let Self::Table(entries) = self else { return None };
        entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }
}

/// Deepest nesting of lists and dictionaries.
const DEPTH: usize = 8;

/// Reads a header: a single dictionary, padded with spaces.
fn parse(text: &str) -> Option<Value> {
    let (value, rest) = value(text, DEPTH)?;
    (rest.trim().is_empty() && matches!(value, Value::Table(_))).then_some(value)
}

/// Reads a Python literal of the kinds that NumPy writes. Returns it and the text after it.
fn value(text: &str, depth: usize) -> Option<(Value, &str)> {
    let text = text.trim_start();
    let depth = depth.checked_sub(1)?;
    let first = text.chars().next()?;
    match first {
        '\'' | '"' => {
            let end = text[1..].find(first)? + 1;
            let inner = &text[1..end];
            (!inner.contains('\\')).then(|| (Value::Text(inner.to_owned()), &text[end + 1..]))
        }
        '0'..='9' => {
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let number = text[..end].parse().ok()?;
            // Python 2 wrote long integers with an L
            let rest = text[end..].strip_prefix('L').unwrap_or(&text[end..]);
            Some((Value::Number(number), rest))
        }
        '(' | '[' => {
            let close = if first == '(' { ')' } else { ']' };
            let (mut list, mut rest) = (Vec::new(), &text[1..]);
            loop {
                if let Some(rest) = rest.trim_start().strip_prefix(close) {
                    return Some((Value::List(list), rest));
                }
                let (item, after) = value(rest, depth)?;
                list.push(item);
                rest = comma(after, close)?;
            }
        }
        '{' => {
            let (mut entries, mut rest) = (Vec::new(), &text[1..]);
            loop {
                if let Some(rest) = rest.trim_start().strip_prefix('}') {
                    return Some((Value::Table(entries), rest));
                }
                let (Value::Text(key), after) = value(rest, depth)? else { return None };
                let (item, after) = value(after.trim_start().strip_prefix(':')?, depth)?;
                entries.push((key, item));
                rest = comma(after, '}')?;
            }
        }
        _ => {
            let word = [("True", true), ("False", false)].into_iter().find(|(word, _)| text.starts_with(word))?;
            Some((Value::Switch(word.1), &text[word.0.len()..]))
        }
    }
}

/// Skips the comma between two entries, which is optional after the last one.
fn comma(text: &str, close: char) -> Option<&str> {
    let text = text.trim_start();
    text.strip_prefix(',').or_else(|| text.starts_with(close).then_some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with this header and no data.
    fn file(version: [u8; 2], dictionary: &str) -> Vec<u8> {
        let mut bytes = [MAGIC, &version].concat();
        let length = dictionary.len() as u32;
        bytes.extend(&length.to_le_bytes()[..if version[0] == 1 { 2 } else { 4 }]);
        bytes.extend(dictionary.as_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Array, Fault> {
        header(bytes.len() as u64, &|out, at| {
            out.copy_from_slice(&bytes[usize::try_from(at).unwrap()..][..out.len()]);
            Ok(())
        })
    }

    #[test]
    fn the_headers_that_numpy_writes_are_read() {
        let usual = "{'descr': '<u2', 'fortran_order': False, 'shape': (5000,), }            \n";
        assert_eq!(read(&file([1, 0], usual)).unwrap(), Array { start: 10 + usual.len() as u64, width: 2, len: 5000 });
        for (version, fixed) in [([2, 0], 12), ([3, 0], 12)] {
            let wide = "{\"shape\":(7L,),\"fortran_order\":True,\"descr\":\"<u4\"}";
            let start = fixed + wide.len() as u64;
            assert_eq!(read(&file(version, wide)).unwrap(), Array { start, width: 4, len: 7 });
        }
    }

    #[test]
    fn other_arrays_are_refused_by_name() {
        let with = |descr: &str, shape: &str| {
            let text = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}");
            read(&file([1, 0], &text)).unwrap_err().to_string()
        };
        for (descr, shape, what) in [
            ("'>u2'", "(5,)", "big-endian ids, expected 16- or 32-bit unsigned ids (<u2 or <u4), got `>u2`"),
            (
                "'<i8'",
                "(5,)",
                "another type, expected 16- or 32-bit unsigned ids (<u2 or <u4), got `<i8`; try `numpy.save",
            ),
            ("'<f4'", "(5,)", "got `<f4`"),
            ("'|O'", "(5,)", "Python objects"),
            ("[('a', '<u2')]", "(5,)", "records of several fields"),
            ("'<u2'", "(2, 5)", "wrong shape, expected one dimension, got (2, 5)"),
            ("'<u2'", "()", "expected one dimension, got ()"),
            ("'<u2'", "5", "header has no `shape`"),
            ("'<u2'", "(-5,)", "is not a dictionary"),
        ] {
            let text = with(descr, shape);
            assert!(text.contains(what), "{text}");
        }
        assert!(read(&file([4, 0], "{}")).unwrap_err().to_string().contains("got 4.0"));
        assert_eq!(read(&file([1, 0], "{}")).unwrap_err().what, "header has no `descr`");
        for bytes in [&file([1, 0], "{'descr")[..15], &MAGIC[..6], b"\x93NUMPY\x01"] {
            assert!(read(bytes).is_err());
        }
        let deep = "(".repeat(100_000);
        assert!(read(&file([2, 0], &deep)).unwrap_err().what.contains("not a dictionary"));
        assert!(read(&[MAGIC, &[2, 0, 255, 255, 255, 255]].concat()).unwrap_err().what.contains("too long"));
    }
}
