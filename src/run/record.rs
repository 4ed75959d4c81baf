//! A file that grows by appends, each of which is written completely or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::files::open;

/// Bytes per read in the search for the last newline.
const PIECE: u64 = 1 << 16;

/// One of a run's growing files.
///
/// This keeps the file's valid length. Bytes after it come from a failed append and are cut off before the next one. After an
/// error the file is reopened, because a handle to a disk that was unmounted is no longer valid.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
    /// Whether the file consists of lines.
    is_text: bool,
}

fn open_options() -> OpenOptions {
    OpenOptions::new().read(true).write(true).clone()
}

impl Record {
    /// Opens or creates a file in a run's folder, and truncates it to the last newline within `bytes`.
    ///
    /// # Errors
    /// The system's error, or an error if the file is a link.
    pub fn open(path: &Path, bytes: u64) -> io::Result<Self> {
        Self { path: path.to_owned(), file: None, bytes, is_text: true }.opened()
    }

    /// Creates an empty file whose contents are binary.
    ///
    /// # Errors
    /// Those of [`Record::open`].
    pub fn create_binary(path: &Path) -> io::Result<Self> {
        Self { path: path.to_owned(), file: None, bytes: 0, is_text: false }.opened()
    }

    fn opened(mut self) -> io::Result<Self> {
        self.reopen()?;
        Ok(self)
    }

    /// Returns the file's length, without the bytes of a failed append.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends `text`. After an error, no part of it belongs to the file.
    ///
    /// # Errors
    /// The system's error.
    pub fn append(&mut self, text: &[u8]) -> io::Result<()> {
        let written = self.ready().and_then(|mut file| file.write_all(text));
        match &written {
            Ok(()) => self.bytes += text.len() as u64,
            Err(_) => self.close(),
        }
        written
    }

    /// Truncates the file to `bytes`. If that fails now, it is done before the next append.
    pub fn cut(&mut self, bytes: u64) {
        self.bytes = self.bytes.min(bytes);
        if self.ready().is_err() {
            self.close();
        }
    }

    /// Closes the file. It is reopened at its next use.
    pub fn close(&mut self) {
        self.file = None;
    }

    /// Flushes the file to disk.
    ///
    /// # Errors
    /// The system's error.
    pub fn sync(&mut self) -> io::Result<()> {
        let synced = self.ready().and_then(File::sync_all);
        if synced.is_err() {
            self.close();
        }
        synced
    }

    /// Sets the length after the file was replaced by a new one of the same name.
    pub fn replaced(&mut self, bytes: u64) {
        self.bytes = bytes;
        self.close();
    }

    /// Returns the file, truncated to its valid length and positioned at its end.
    fn ready(&mut self) -> io::Result<&File> {
        let there = self.file.as_ref().map(File::metadata).transpose()?;
        // do not append to a file that was removed, or behind the end of one that was shortened
        if there.is_none_or(|there| open::names(&there) == 0 || there.len() < self.bytes) {
            self.reopen()?;
        }
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        if file.metadata()?.len() != self.bytes {
            file.set_len(self.bytes)?;
        }
        file.seek(SeekFrom::Start(self.bytes))?;
        Ok(file)
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.file = None;
        let mut file = open::alone(&self.path, open_options().create(true))?;
        crate::kill_point!("resume: before a record is cut back");
        let (there, expected) = (file.metadata()?.len(), self.bytes);
        // a file that somebody has changed is cut at the end of a line too
        self.bytes = there.min(expected);
        if self.is_text {
            self.bytes = last_newline(&mut file, self.bytes)?;
        }
        if self.bytes < expected {
            let (path, kept) = (self.path.display(), self.bytes);
            log::warn!("{path}: {kept} of {expected} bytes are left; the record continues with a gap");
        }
        if there != self.bytes {
            file.set_len(self.bytes)?;
        }
        self.file = Some(file);
        Ok(())
    }
}

/// Returns the position after the last newline among the first `bytes` of a file, or 0.
fn last_newline(file: &mut File, bytes: u64) -> io::Result<u64> {
    let mut end = bytes;
    let mut piece = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(PIECE);
        piece.clear();
        file.seek(SeekFrom::Start(start))?;
        (&mut *file).take(end - start).read_to_end(&mut piece)?;
        if let Some(at) = memchr::memrchr(b'\n', &piece) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_torn_append_is_cut_off_before_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut record = Record::open(&path, 0).unwrap();
        record.append(b"one\n").unwrap();
        // as a write that failed halfway leaves it
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"tw").unwrap();
        record.append(b"two\n").unwrap();
        record.append(b"three\n").unwrap();
        record.cut(8);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        record.close();
        record.append(b"3\n").unwrap();
        assert_eq!(record.bytes(), 10);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n3\n");
    }

    #[test]
    fn a_record_that_somebody_shortens_or_removes_continues_at_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut record = Record::open(&path, 0).unwrap();
        record.append(b"one\ntwo\n").unwrap();
        fs::write(&path, "one\nt").unwrap();
        record.append(b"3\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\n3\n");
        if cfg!(unix) {
            fs::remove_file(&path).unwrap();
            record.append(b"4\n").unwrap();
            assert_eq!((fs::read_to_string(&path).unwrap(), record.bytes()), ("4\n".into(), 2));
        }
        record.close();
        record.append(b"5\n").unwrap();
        record.sync().unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with("5\n"));
    }

    #[test]
    fn a_last_line_that_is_cut_off_is_dropped_at_the_newline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let long = "x".repeat(2 * PIECE as usize);
        for (there, bytes, kept) in [
            ("one\ntwo\nthr", 20, "one\ntwo\n"),
            ("one\ntwo\n", 20, "one\ntwo\n"),
            ("one\ntwo\nthr", 4, "one\n"),
            ("# mine\none\ntwo\n", 8, "# mine\n"),
            ("thr", 20, ""),
            ("", 20, ""),
            (&format!("one\n{long}"), 1 << 30, "one\n"),
        ] {
            fs::write(&path, there).unwrap();
            let mut record = Record::open(&path, bytes).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), kept, "{there:?}");
            record.append(b"new\n").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{kept}new\n"));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_record_that_has_another_name_is_cut_and_grows_without_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("a"), dir.path().join("copy"));
        fs::write(&copy, "one\ntwo\n").unwrap();
        fs::hard_link(&copy, &path).unwrap();
        Record::open(&path, 4).unwrap().append(b"2\n").unwrap();
        assert_eq!(fs::read_to_string(&copy).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\n2\n");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_place_of_a_record_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("a"), dir.path().join("victim"));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert_eq!(Record::open(&path, 0).unwrap_err().to_string(), "is a link, expected a file");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }
}
