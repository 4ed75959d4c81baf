//! One run at a time in a folder: a locked file, which the system frees when its process ends, however it ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::files::atomic::output_error;

/// The file's name in a run's folder.
pub const LOCK: &str = "lock";

/// A folder that is ours until this is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Locks a folder, with a new file if there is none.
    ///
    /// # Errors
    /// [`Error::Locked`] naming the holder; [`Error::Output`] if the file cannot be made or locked.
    pub fn take(dir: &Path) -> Result<Self> {
        let path = dir.join(LOCK);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        Self::hold(path.clone(), file.map_err(|e| output_error(&path, &e))?)
    }

    /// Locks a folder that has been locked before; `None` if it has not.
    ///
    /// # Errors
    /// As [`Lock::take`].
    pub fn take_known(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(LOCK);
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Self::hold(path, file).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(output_error(&path, &e)),
        }
    }

    fn hold(path: PathBuf, file: File) -> Result<Self> {
        match file.try_lock() {
            Ok(()) => Ok(Self { path, file }),
            Err(TryLockError::WouldBlock) => {
                let holder = fs::read_to_string(&path).unwrap_or_default();
                let holder = if holder.trim().is_empty() { "another process" } else { holder.trim() };
                let folder = path.parent().unwrap_or(&path).display();
                Err(Error::locked(format!(
                    "--out: {folder} is in use by {holder}, expected a free folder; try again when that run has ended"
                )))
            }
            Err(TryLockError::Error(e)) => Err(output_error(&path, &e)),
        }
    }

    /// Writes who holds it, for those who come second.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn sign(&mut self) -> Result<()> {
        let since = stamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs());
        let text = format!("process {} on {} since {since}\n", std::process::id(), host());
        let result =
            self.file.set_len(0).and_then(|()| self.file.rewind()).and_then(|()| self.file.write_all(text.as_bytes()));
        result.map_err(|e| output_error(&self.path, &e))
    }
}

/// The machine's name, where it tells.
fn host() -> String {
    let file = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let names = [file, std::env::var("HOSTNAME").ok(), std::env::var("COMPUTERNAME").ok()];
    let known = names.into_iter().flatten().map(|name| name.trim().to_owned()).find(|name| !name.is_empty());
    known.unwrap_or_else(|| "this machine".into())
}

/// Seconds since 1970 as `2026-11-24 01:42:30 UTC`.
fn stamp(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| u64::from(year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)));
    let (mut year, mut day) = (1970, days);
    while day >= 365 + leap(year) {
        day -= 365 + leap(year);
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + leap(year), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year}-{month:02}-{:02} {hour:02}:{minute:02}:{:02} UTC", day + 1, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Lock::take_known(dir.path()).unwrap().is_none());
        let mut lock = Lock::take(dir.path()).unwrap();
        lock.sign().unwrap();
        let error = Lock::take(dir.path()).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        assert!(error.to_string().contains(&format!("process {} on ", std::process::id())), "{error}");
        drop(lock);
        Lock::take_known(dir.path()).unwrap().unwrap();
    }

    #[test]
    fn stamps_are_dates() {
        // as `date -u -d @N` has them
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_798_761_599, "2026-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(stamp(seconds), text);
        }
    }
}
