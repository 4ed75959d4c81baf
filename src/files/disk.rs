//! File operations behind one small trait, so that tests can record each of them and let each of them fail.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use crate::files::open;

/// A file being written.
pub trait DiskFile: Write {
    /// Forces what was written to disk. After an error nothing is known of the file any more.
    ///
    /// # Errors
    /// Whatever the system tells.
    fn sync(&mut self) -> io::Result<()>;
}

/// Where checkpoints are written and read. Every call may fail, and says so.
pub trait Disk: Send + Sync {
    /// Makes one folder, whose parent is there.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if the name is taken; else whatever the system tells, here and below.
    fn make_folder(&self, path: &Path) -> io::Result<()>;

    /// Makes a file that is not there yet.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if it is.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile + '_>>;

    /// Opens a plain file to be read from its start.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none, [`io::ErrorKind::InvalidInput`] if it is a link or a special file.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + '_>>;

    /// Forces a file that somebody else writes to disk.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none.
    fn sync_file(&self, path: &Path) -> io::Result<()>;

    /// Forces the names in a folder to disk, where the system can.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Gives a file or folder another name in the same file system, in one step.
    ///
    /// # Errors
    /// If the new name is taken by a folder that is not empty.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a folder with the files in it.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;

    /// Fails unless there is a folder of that name, not a link to one.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none, [`io::ErrorKind::NotADirectory`] if it is something else.
    fn own_folder(&self, path: &Path) -> io::Result<()>;

    /// The names in a folder, in order.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
}

/// The system's own files.
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
        Ok(Box::new(BufReader::with_capacity(1 << 20, open::own(path, OpenOptions::new().read(true))?)))
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        // Windows flushes only what was opened for writing
        open::own(path, OpenOptions::new().append(true))?.sync_all()
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        // elsewhere folders cannot be opened, and renames are journalled
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn own_folder(&self, path: &Path) -> io::Result<()> {
        open::own_folder(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        let mut names: Vec<String> = entries.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }
}

/// Bytes that may still be written where `path` is or is to be, where the system tells.
#[must_use]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let absolute = std::path::absolute(path).ok()?;
    let existing = absolute.ancestors().find(|ancestor| ancestor.exists())?;
    fs4::available_space(existing).ok()
}
