//! Allows only one run at a time in a folder.
//!
//! The file `lock` names the process that has the folder. The folder itself is locked too, if the system supports that, so that
//! removing the file does not let a second run in.

use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Fault, Result};
use crate::files::lock::{Lock, Refusal};

/// The locked file's name in a run's folder.
pub const LOCK: &str = "lock";

/// A lock on a run's folder. No other process uses the folder until this is dropped.
#[derive(Debug)]
pub struct FolderLock {
    /// Lock on the folder, if the system can lock folders.
    _folder: Option<Lock>,
    /// Lock on the file; none until this process has written anything to the folder.
    file: Option<Lock>,
}

impl FolderLock {
    /// Locks a folder and its lock file, which is created if there is none.
    ///
    /// # Errors
    /// [`Error::Locked`] naming the holder; [`Error::Output`] if the file cannot be created or locked.
    pub fn take(dir: &Path) -> Result<Self> {
        Self::take_as_it_is(dir)?.with_file(dir)
    }

    /// Locks a folder, and its lock file if it has one. Writes nothing.
    ///
    /// # Errors
    /// [`Error::Locked`] naming the holder; [`Error::Output`] if the file or the folder cannot be opened or locked.
    pub fn take_as_it_is(dir: &Path) -> Result<Self> {
        let folder = Lock::take_folder(dir);
        let file = Lock::take_known(&dir.join(LOCK)).map_err(|refusal| refused(dir, refusal))?;
        let folder = folder.map_err(|refusal| refused(dir, refusal))?;
        Ok(Self { _folder: folder, file })
    }

    /// Creates and locks the lock file, unless it is locked already.
    ///
    /// # Errors
    /// Those of [`FolderLock::take`].
    pub fn with_file(mut self, dir: &Path) -> Result<Self> {
        if self.file.is_none() {
            self.take_file_again(dir)?;
        }
        Ok(self)
    }

    /// Creates and locks the file again, after somebody has removed it.
    ///
    /// # Errors
    /// Those of [`FolderLock::take`].
    pub fn take_file_again(&mut self, dir: &Path) -> Result<()> {
        self.file = Some(Lock::take(&dir.join(LOCK), Duration::ZERO).map_err(|refusal| refused(dir, refusal))?);
        Ok(())
    }

    /// Returns whether the lock file exists and is the one that this process has locked.
    ///
    /// # Errors
    /// The system's error.
    pub fn is_in_place(&self) -> std::io::Result<bool> {
        self.file.as_ref().map_or(Ok(false), Lock::is_in_place)
    }

    /// Writes the holder and the run's id to the lock file.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn sign(&self, run: &str) -> Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| file.sign(&format!("run {run}")))
    }
}

fn refused(dir: &Path, refusal: Refusal) -> Error {
    refusal.error(&dir.join(LOCK), |holder| {
        Fault::at("--out", format!("{} is in use by {holder}", dir.display()))
            .expected("a free folder")
            .advice("try again when that run has ended")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(dir: &Path) -> [Error; 2] {
        [FolderLock::take(dir).unwrap_err(), FolderLock::take_as_it_is(dir).unwrap_err()]
    }

    #[test]
    fn a_second_run_is_told_who_has_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        drop(FolderLock::take_as_it_is(dir.path()).unwrap());
        assert!(!dir.path().join(LOCK).exists());
        let lock = FolderLock::take(dir.path()).unwrap();
        lock.sign("abc").unwrap();
        for error in refused(dir.path()) {
            let text = format!("{} is in use by process {} on ", dir.path().display(), std::process::id());
            assert_eq!((error.exit_code(), error.fault().place.as_str()), (7, "--out"));
            assert!(error.fault().what.starts_with(&text) && !error.fault().what.contains('\n'), "{error}");
        }
        assert!(std::fs::read_to_string(dir.path().join(LOCK)).unwrap().ends_with("\nrun abc\n"));
        drop(lock);
        FolderLock::take(dir.path()).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_removed_lock_file_lets_no_second_run_in() {
        let dir = tempfile::tempdir().unwrap();
        let Some(probe) = Lock::take_folder(dir.path()).unwrap() else {
            println!("not run: the file system here locks no folders");
            return;
        };
        drop(probe);
        let lock = FolderLock::take(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join(LOCK)).unwrap();
        for error in refused(dir.path()) {
            assert_eq!(error.exit_code(), 7, "{error}");
        }
        drop(lock);
    }
}
