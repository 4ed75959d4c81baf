//! Writes any path as text that reads back: TOML and JSON hold text, but a Unix path may be any bytes.
//!
//! A path that is valid text is written as it is. Any other path, and one that itself begins with `file:`, is written
//! as a `file:` address, in which `%E9` is the byte 0xE9. The serde modules here write and read such fields.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Beginning of a path that is written as an address.
const SCHEME: &str = "file:";

/// Returns a path as text; `None` for a path that cannot be written as text, which does not happen on Unix.
#[must_use]
pub fn spelled(path: &Path) -> Option<String> {
    match path.to_str() {
        Some(text) if !text.starts_with(SCHEME) => Some(text.to_owned()),
        _ => escaped(path),
    }
}

/// Returns the path of a text that [`spelled`] wrote. Any other text is itself the path.
#[must_use]
pub fn read(text: &str) -> PathBuf {
    text.strip_prefix(SCHEME).and_then(unescaped).unwrap_or_else(|| text.into())
}

#[cfg(unix)]
fn escaped(path: &Path) -> Option<String> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut text = SCHEME.to_owned();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(byte.into());
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    Some(text)
}

#[cfg(not(unix))]
fn escaped(path: &Path) -> Option<String> {
    let mut text = SCHEME.to_owned();
    for c in path.to_str()?.chars() {
        match c {
            '%' => text += "%25",
            c => text.push(c),
        }
    }
    Some(text)
}

/// Returns the path of an address without its scheme; `None` if a `%` is not followed by two hexadecimal digits, or the
/// bytes are not a valid path on this system.
fn unescaped(text: &str) -> Option<PathBuf> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, later @ ..] = rest {
        rest = later;
        if *first == b'%' {
            let [high, low, later @ ..] = rest else { return None };
            let digit = |byte: u8| char::from(byte).to_digit(16);
            bytes.push(u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?);
            rest = later;
        } else {
            bytes.push(*first);
        }
    }
    path_of(bytes)
}

#[cfg(unix)]
fn path_of(bytes: Vec<u8>) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    Some(std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(not(unix))]
fn path_of(bytes: Vec<u8>) -> Option<PathBuf> {
    String::from_utf8(bytes).ok().map(PathBuf::from)
}

/// Returns the text of a path, or an error for serde.
fn text<E: serde::ser::Error>(path: &Path) -> Result<String, E> {
    spelled(path).ok_or_else(|| E::custom(format!("{}: a path that is not text cannot be stored", path.display())))
}

/// Serde for a path.
pub mod one {
    use super::{Path, PathBuf, read, text};
    use serde::{Deserialize as _, Deserializer, Serializer};

    /// Writes a path.
    ///
    /// # Errors
    /// If the path cannot be written as text.
    pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&text(path)?)
    }

    /// Reads a path.
    ///
    /// # Errors
    /// If the value is not a string.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        String::deserialize(from).map(|text| read(&text))
    }
}

/// Serde for an optional path.
pub mod maybe {
    use super::{PathBuf, read, text};
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    /// Writes a path.
    ///
    /// # Errors
    /// If the path cannot be written as text.
    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
        path.as_deref().map(text::<S::Error>).transpose()?.serialize(to)
    }

    /// Reads a path.
    ///
    /// # Errors
    /// If the value is not a string.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<String>::deserialize(from)?.map(|text| read(&text)))
    }
}

/// Serde for paths: a single path is written without a list.
pub mod several {
    use super::{PathBuf, read, text};
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a path or a list of paths")]
    enum Written {
        One(String),
        List(Vec<String>),
    }

    /// Writes paths.
    ///
    /// # Errors
    /// If a path cannot be written as text.
    pub fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        let texts = paths.iter().map(|path| text::<S::Error>(path)).collect::<Result<Vec<_>, _>>()?;
        if let [one] = texts.as_slice() { one.serialize(to) } else { texts.serialize(to) }
    }

    /// Reads paths.
    ///
    /// # Errors
    /// If the value is neither a string nor a list of strings.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
        let texts = match Written::deserialize(from)? {
            Written::One(text) => vec![text],
            Written::List(texts) => texts,
        };
        Ok(texts.iter().map(|text| read(text)).collect())
    }
}

/// Serde for paths that are always a list.
pub mod list {
    pub use super::several::deserialize;
    use super::{PathBuf, text};
    use serde::{Serialize as _, Serializer};

    /// Writes paths.
    ///
    /// # Errors
    /// If a path cannot be written as text.
    pub fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        paths.iter().map(|path| text::<S::Error>(path)).collect::<Result<Vec<_>, _>>()?.serialize(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_as_it_is_and_every_path_reads_back() {
        for plain in ["a b.txt", "/x/é_%41_*.bin", "", "C:\\x", "file"] {
            assert_eq!(spelled(plain.as_ref()).as_deref(), Some(plain));
            assert_eq!(read(plain), Path::new(plain));
        }
        let odd = Path::new("file:a b%.bin");
        assert_eq!(read(&spelled(odd).unwrap()), odd);
        // not an address that `spelled` writes: the text is the path
        for text in ["file:100%", "file:%zz", "file:%f"] {
            assert_eq!(read(text), Path::new(text));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_is_no_text_reads_back() {
        use std::os::unix::ffi::OsStrExt as _;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/data/caf\xe9 %/x.txt"));
        assert_eq!(spelled(path).as_deref(), Some("file:/data/caf%E9%20%25/x.txt"));
        assert_eq!(read("file:/data/caf%E9%20%25/x.txt"), path);
        for byte in 1..=255 {
            let one = Path::new(std::ffi::OsStr::from_bytes(std::slice::from_ref(&byte))).to_owned();
            assert_eq!(read(&spelled(&one).unwrap()), one, "byte {byte}");
        }
    }
}
