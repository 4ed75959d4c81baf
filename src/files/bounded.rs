//! Reads whole files up to a size limit.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use super::open;

/// Reads a file of at most `most` bytes. `expected` names what it should be, for the error.
///
/// # Errors
/// Those of [`open::input`]; an error with the limit if the file is longer.
pub fn read(path: &Path, most: u64, expected: &str) -> io::Result<Vec<u8>> {
    whole(&open::input(path)?, most, expected)
}

/// Does what [`read`] does, for a file in a folder that may come from elsewhere: a link in its place is refused.
///
/// # Errors
/// Those of [`open::no_follow`]; an error with the limit if the file is longer.
pub fn read_no_follow(path: &Path, most: u64, expected: &str) -> io::Result<Vec<u8>> {
    whole(&open::no_follow(path, OpenOptions::new().read(true))?, most, expected)
}

fn whole(file: &File, most: u64, expected: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("more than {most} bytes, expected {expected}")));
    }
    Ok(bytes)
}

/// Does what [`read`] does, for a file of text.
///
/// # Errors
/// Those of [`read`]; [`io::ErrorKind::InvalidData`] if it is not UTF-8.
pub fn read_text(path: &Path, most: u64, expected: &str) -> io::Result<String> {
    String::from_utf8(read(path, most, expected)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_just_the_limit_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5, "a number").unwrap(), b"12345");
        assert_eq!(read(&path, 4, "a number").unwrap_err().to_string(), "more than 4 bytes, expected a number");
        assert_eq!(read(&dir.path().join("b"), 4, "").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(read_text(&path, 5, "a number").unwrap(), "12345");
        std::fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_text(&path, 5, "a number").unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
