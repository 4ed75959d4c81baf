//! The hub's cache on disk, in the layout that Python's library uses, so that both share what is there.
//!
//! `models--OWNER--NAME/` holds `blobs/CHECKSUM`, `refs/main` (a commit) and `snapshots/COMMIT/FILE`, the last being
//! links into `blobs`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::names::{Entry, Kind};
use crate::error::{Error, Result};
use crate::files::atomic::{self, output_error};

/// Snapshot for files that somebody brings by hand.
pub const BY_HAND: &str = "by-hand";

/// A repository's folder in the cache.
#[derive(Debug, Clone)]
pub struct RepoCache {
    root: PathBuf,
    folder: PathBuf,
}

impl RepoCache {
    /// The folder of an entry's repository below `root`, which need not be there.
    #[must_use]
    pub fn new(root: &Path, entry: &Entry) -> Self {
        let kind = if entry.kind == Kind::Model { "models" } else { "datasets" };
        let folder = root.join(format!("{kind}--{}", entry.repo.replace('/', "--")));
        Self { root: root.to_owned(), folder }
    }

    /// Where files brought by hand go.
    #[must_use]
    pub fn by_hand(&self) -> PathBuf {
        self.folder.join("snapshots").join(BY_HAND)
    }

    /// The snapshot that holds all of `files`: that of `refs/main`, else any.
    #[must_use]
    pub fn snapshot(&self, files: &[String]) -> Option<PathBuf> {
        let snapshots = self.folder.join("snapshots");
        let main = fs::read_to_string(self.folder.join("refs").join("main")).ok();
        let mut candidates: Vec<PathBuf> = main.iter().map(|commit| snapshots.join(commit.trim())).collect();
        let mut others: Vec<PathBuf> =
            fs::read_dir(&snapshots).into_iter().flatten().flatten().map(|e| e.path()).collect();
        others.sort();
        candidates.extend(others);
        candidates.into_iter().find(|folder| files.iter().all(|file| folder.join(file).is_file()))
    }

    /// The file that will hold contents of this checksum.
    #[must_use]
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Where it grows.
    #[must_use]
    pub fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// The file's place in a snapshot.
    #[must_use]
    pub fn pointer(&self, commit: &str, path: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit).join(path)
    }

    /// Holds a blob against other processes until the result is dropped.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process fetches it, [`Error::Output`].
    pub fn lock(&self, etag: &str) -> Result<File> {
        let name = self.folder.file_name().unwrap_or_default();
        let folder = self.root.join(".locks").join(name);
        let path = folder.join(format!("{etag}.lock"));
        make_folder(&folder)?;
        make_folder(&self.folder.join("blobs"))?;
        let file = File::create(&path).map_err(|e| output_error(&path, &e))?;
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => {
                Err(Error::locked(format!("{}: another process fetches this file; wait for it", path.display())))
            }
            // a file system without locks: two processes would only do the work twice
            Ok(()) | Err(fs::TryLockError::Error(_)) => Ok(file),
        }
    }

    /// Puts a blob that is there into a snapshot.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn link(&self, etag: &str, commit: &str, path: &str) -> Result<PathBuf> {
        let pointer = self.pointer(commit, path);
        let blob = self.blob(etag);
        make_folder(pointer.parent().unwrap_or(&self.folder))?;
        let fresh = pointer.with_file_name(format!(".{etag}.link"));
        let _ = fs::remove_file(&fresh);
        // from snapshots/COMMIT/a/b the blobs are four folders up
        let up = "../".repeat(2 + path.matches('/').count());
        let target = format!("{up}blobs/{etag}");
        symlink(Path::new(&target), &fresh)
            .or_else(|_| fs::hard_link(&blob, &fresh))
            .or_else(|_| fs::copy(&blob, &fresh).map(drop))
            .and_then(|()| fs::rename(&fresh, &pointer))
            .map_err(|e| output_error(&pointer, &e))?;
        Ok(pointer)
    }

    /// Notes which snapshot is the newest.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn set_main(&self, commit: &str) -> Result<()> {
        let folder = self.folder.join("refs");
        make_folder(&folder)?;
        atomic::write(&folder.join("main"), |out| out.write_all(commit.as_bytes()))
    }
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| output_error(path, &e))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
