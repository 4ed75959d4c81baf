//! Locked files, which the system frees when their process ends, however it ends.

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
/// Bytes that are read of what a lock says of its holder.
const HOLDER_BYTES: u64 = 1 << 10;

/// A file that is ours until this is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

/// Why a file could not be locked.
#[derive(Debug)]
pub enum Refusal {
    /// Another process holds it: what the file says of that one, else `another process`.
    Held(String),
    /// The file cannot be opened.
    Failed(io::Error),
    /// The file system has no locks.
    Unsupported(io::Error),
}

impl Refusal {
    /// Returns the error for the file `path`: of a lock that is held the fault that `held` makes of its holder.
    #[must_use]
    pub fn error(self, path: &Path, held: impl FnOnce(&str) -> Fault) -> Error {
        match self {
            Self::Held(holder) => Error::locked(held(&holder)),
            Self::Failed(error) | Self::Unsupported(error) => output_error(path, &error),
        }
    }
}

impl Lock {
    /// Locks the file `path`, which is made if it is not there, and tries again for as long as `patience` says.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn take(path: &Path, patience: Duration) -> Result<Self, Refusal> {
        let file = open::own(path, OpenOptions::new().read(true).write(true).create(true).truncate(false));
        Self::hold_file(path, file.map_err(Refusal::Failed)?, patience)
    }

    /// Locks the file `path` at once; `None` if it is not there.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn take_known(path: &Path) -> Result<Option<Self>, Refusal> {
        match open::own(path, OpenOptions::new().read(true).write(true)) {
            Ok(file) => Self::hold_file(path, file, Duration::ZERO).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Refusal::Failed(error)),
        }
    }

    /// Locks a folder itself, so that it stays locked when a file in it is removed. `None` where the system locks no folders:
    /// on Windows and on some network file systems.
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
        let told = file.metadata().map_err(Refusal::Failed)?;
        // what is written to it would be written to another file
        if open::names(&told) > 1 {
            let text = "has another name (a hard link), expected a file of its own: try removing it";
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

    /// Writes who holds it, for those who come second, and a line of `more` behind it.
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

    /// True if the locked file still has its name: nobody has removed or replaced it.
    ///
    /// # Errors
    /// The system's error, unless it is that there is no such file.
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
        // closing it is not enough: a child that another thread has just started holds a copy of it until its own program runs
        drop(self.file.unlock());
    }
}

/// The machine's name, where it tells.
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
    fn a_second_one_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(Lock::take_known(&path).unwrap().is_none());
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
        Lock::take_known(&path).unwrap().unwrap();
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
