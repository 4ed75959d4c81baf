//! File operations behind one small trait, so that tests can record each operation and make each one fail.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use crate::files::open;

/// A file being written.
pub trait DiskFile: Write {
    /// Forces the written bytes to disk. After an error the state of the file is unknown.
    ///
    /// # Errors
    /// The system's error.
    fn sync(&mut self) -> io::Result<()>;
}

/// The file operations by which checkpoints are written and read. Every call may fail and returns its error.
pub trait Disk: Send + Sync {
    /// Makes one folder. Its parent must exist.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if the name is taken; otherwise the system's error, here and below.
    fn make_folder(&self, path: &Path) -> io::Result<()>;

    /// Makes a file that does not exist yet.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if it exists.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile + '_>>;

    /// Opens a plain file for reading from its start.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it does not exist, [`io::ErrorKind::InvalidInput`] if it is a link or a special
    /// file.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + '_>>;

    /// Forces to disk a file that other code writes.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it does not exist.
    fn sync_file(&self, path: &Path) -> io::Result<()>;

    /// Forces the names in a folder to disk, where the system supports it.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it does not exist.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Renames a file or folder within its file system, atomically.
    ///
    /// # Errors
    /// If the new name belongs to a folder that is not empty.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a folder with the files in it.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it does not exist.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;

    /// Checks that `path` is a folder, not a link to one.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if nothing exists there, [`io::ErrorKind::NotADirectory`] if it is something else.
    fn check_folder(&self, path: &Path) -> io::Result<()>;

    /// Returns the names in a folder, sorted.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it does not exist.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
}

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl DiskFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Disk for System {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile + '_>> {
        Ok(Box::new(File::create_new(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(BufReader::with_capacity(1 << 20, open::no_follow(path, OpenOptions::new().read(true))?)))
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        // Windows flushes only files that are open for writing
        open::no_follow(path, OpenOptions::new().append(true))?.sync_all()
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        // on other systems folders cannot be opened, and renames are journalled
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn check_folder(&self, path: &Path) -> io::Result<()> {
        open::check_folder(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        let mut names: Vec<String> = entries.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }
}

/// Returns the free bytes of the file system that contains `path` or will contain it; `None` if the system does not
/// report them.
#[must_use]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let absolute = std::path::absolute(path).ok()?;
    let existing = absolute.ancestors().find(|ancestor| ancestor.exists())?;
    fs4::available_space(existing).ok()
}
