//! Files that are read as a whole, if they are not too long.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Reads a file of at most `most` bytes; `expected` says what it should be.
///
/// # Errors
/// The system's error, or that the file is longer.
pub fn read(path: &Path, most: u64, expected: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("more than {most} bytes, expected {expected}")));
    }
    Ok(bytes)
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
    }
}
