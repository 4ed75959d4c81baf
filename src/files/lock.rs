//! File locks. The system releases them when their process ends, however it ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Fault, Result};
use crate::files::atomic::output_error;
use crate::files::identity::Identity;
use crate::files::open;

/// Wait between two tries.
const PAUSE: Duration = Duration::from_millis(10);
/// Largest number of bytes read of a lock file's note about its holder.
const HOLDER_BYTES: u64 = 1 << 10;

/// A file that this process has locked until the value is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

/// The reason that a file could not be locked.
#[derive(Debug)]
pub enum Refusal {
    /// Another process holds it. The text is the file's note about that process, or `another process`.
    Held(String),
    /// The file cannot be opened.
    Failed(io::Error),
    /// The file system has no locks.
    Unsupported(io::Error),
}

impl Refusal {
    /// Returns the error for the file `path`. If the lock is held, `held` makes the fault from the holder's
    /// description.
    #[must_use]
    pub fn error(self, path: &Path, held: impl FnOnce(&str) -> Fault) -> Error {
        match self {
            Self::Held(holder) => Error::locked(held(&holder)),
            Self::Failed(error) | Self::Unsupported(error) => output_error(path, &error),
        }
    }
}

impl Lock {
    /// Locks the file `path`, which is made if it does not exist. Retries for at most `patience`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn take(path: &Path, patience: Duration) -> Result<Self, Refusal> {
        let file = open::no_follow(path, OpenOptions::new().read(true).write(true).create(true).truncate(false));
        Self::hold_file(path, file.map_err(Refusal::Failed)?, patience)
    }

    /// Locks the file `path` without waiting; `None` if it does not exist.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn take_existing(path: &Path) -> Result<Option<Self>, Refusal> {
        match open::no_follow(path, OpenOptions::new().read(true).write(true)) {
            Ok(file) => Self::hold_file(path, file, Duration::ZERO).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Refusal::Failed(error)),
        }
    }

    /// Locks a folder itself, so that it stays locked when a file in it is removed. `None` where the system cannot lock
    /// folders: on Windows and on some network file systems.
    ///
    /// # Errors
    /// [`Refusal::Held`].
    pub fn take_folder(path: &Path) -> Result<Option<Self>, Refusal> {
        if !cfg!(unix) {
            return Ok(None);
        }
        match Self::hold(path, File::open(path).map_err(Refusal::Failed)?, Duration::ZERO) {
            Err(Refusal::Unsupported(_)) => Ok(None),
            held => held.map(Some),
        }
    }

    fn hold_file(path: &Path, file: File, patience: Duration) -> Result<Self, Refusal> {
        let metadata = file.metadata().map_err(Refusal::Failed)?;
        // a write to it would change the file under its other name too
        if open::names(&metadata) > 1 {
            let text = "has a second name (a hard link), expected a file with one name: try removing it";
            return Err(Refusal::Failed(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        Self::hold(path, file, patience)
    }

    fn hold(path: &Path, file: File, patience: Duration) -> Result<Self, Refusal> {
        let begin = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { path: path.to_owned(), file }),
                Err(TryLockError::Error(error)) => return Err(Refusal::Unsupported(error)),
                Err(TryLockError::WouldBlock) if begin.elapsed() < patience => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let read = (&file).take(HOLDER_BYTES).read_to_string(&mut holder);
                    let holder = read.ok().and_then(|_| holder.lines().next()).map(str::trim);
                    let holder = holder.filter(|holder| !holder.is_empty()).unwrap_or("another process");
                    return Err(Refusal::Held(holder.to_owned()));
                }
            }
        }
    }

    /// Writes who holds the lock into its file, for processes that find it locked, and `more` as the second line.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn sign(&self, more: &str) -> Result<()> {
        let since = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC");
        let text = format!("process {} on {} since {since}\n{more}\n", std::process::id(), host());
        let mut file = &self.file;
        let result = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes()));
        result.map_err(|e| output_error(&self.path, &e))
    }

    /// Returns whether the locked file still has its name: nobody has removed or replaced it.
    ///
    /// # Errors
    /// The system's error, except that a missing file is `false`.
    pub fn is_in_place(&self) -> io::Result<bool> {
        let own = Identity::of(&self.file.metadata()?);
        match Identity::of_file(&self.path) {
            Ok(there) => Ok(there == own),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // closing the file is not enough: a child process that another thread has just started holds a copy of it until
        // the child's own program runs
        drop(self.file.unlock());
    }
}

/// Returns the machine's name, or `this machine` if it is unknown.
fn host() -> String {
    let file = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let names = [file, std::env::var("HOSTNAME").ok(), std::env::var("COMPUTERNAME").ok()];
    let known = names.into_iter().flatten().map(|name| name.trim().to_owned()).find(|name| !name.is_empty());
    known.unwrap_or_else(|| "this machine".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_learns_who_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(Lock::take_existing(&path).unwrap().is_none());
        let lock = Lock::take(&path, Duration::ZERO).unwrap();
        let refused = || Lock::take(&path, Duration::ZERO).unwrap_err();
        assert!(matches!(refused(), Refusal::Held(holder) if holder == "another process"));
        lock.sign("more").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().nth(1), Some("more"));
        let error = refused().error(&path, |holder| Fault::at("here", holder));
        assert_eq!((error.exit_code(), error.fault().place.as_str()), (7, "here"));
        let holder = &error.fault().what;
        assert!(holder.starts_with(&format!("process {} on ", std::process::id())), "{holder}");
        assert!(holder.contains(" since 20") && holder.ends_with(" UTC"), "{holder}");
        drop(lock);
        Lock::take_existing(&path).unwrap().unwrap();
        let error = Lock::take(dir.path(), Duration::ZERO).unwrap_err().error(&path, |holder| Fault::from(holder));
        assert_eq!(error.exit_code(), 6);
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_is_locked_whatever_becomes_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Lock::take_folder(dir.path()).unwrap();
        if folder.is_none() {
            crate::not_run::not_run("locks of folders", "the file system here locks no folders");
            return;
        }
        assert!(matches!(Lock::take_folder(dir.path()), Err(Refusal::Held(_))));
        let path = dir.path().join("lock");
        let lock = Lock::take(&path, Duration::ZERO).unwrap();
        assert!(lock.is_in_place().unwrap());
        fs::remove_file(&path).unwrap();
        assert!(!lock.is_in_place().unwrap());
        fs::write(&path, "another").unwrap();
        assert!(!lock.is_in_place().unwrap());
        drop(folder);
        assert!(Lock::take_folder(dir.path()).unwrap().is_some());
    }

    #[test]
    fn a_copy_in_a_child_that_is_just_starting_holds_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::take(&path, Duration::ZERO).unwrap();
        let inherited = lock.file.try_clone().unwrap();
        drop(lock);
        Lock::take(&path, Duration::ZERO).unwrap();
        drop(inherited);
    }

    #[test]
    fn patience_waits_until_the_lock_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::take(&path, Duration::ZERO).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| Lock::take(&path, Duration::from_secs(60)).map(drop));
            std::thread::sleep(3 * PAUSE);
            drop(lock);
            second.join().unwrap().unwrap();
        });
    }
}
