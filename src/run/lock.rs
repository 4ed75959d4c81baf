//! One run at a time in a folder.

use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Fault, Result};
use crate::files::lock::{Lock, Refusal};

/// The locked file's name in a run's folder.
pub const LOCK: &str = "lock";

/// Locks a folder, with a new file if there is none.
///
/// # Errors
/// [`Error::Locked`] naming the holder; [`Error::Output`] if the file cannot be made or locked.
pub fn take(dir: &Path) -> Result<Lock> {
    Lock::take(&dir.join(LOCK), Duration::ZERO).map_err(|refusal| refused(dir, refusal))
}

/// Locks a folder that has been locked before; `None` if it has not.
///
/// # Errors
/// [`Error::Locked`] naming the holder; [`Error::Output`] if the file cannot be opened or locked.
pub fn take_known(dir: &Path) -> Result<Option<Lock>> {
    Lock::take_known(&dir.join(LOCK)).map_err(|refusal| refused(dir, refusal))
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

    #[test]
    fn a_second_run_is_told_who_has_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        assert!(take_known(dir.path()).unwrap().is_none());
        let mut lock = take(dir.path()).unwrap();
        lock.sign().unwrap();
        for error in [take(dir.path()).unwrap_err(), take_known(dir.path()).unwrap_err()] {
            let text = format!("{} is in use by process {} on ", dir.path().display(), std::process::id());
            assert_eq!((error.exit_code(), error.fault().place.as_str()), (7, "--out"));
            assert!(error.fault().what.starts_with(&text), "{error}");
        }
        drop(lock);
        take_known(dir.path()).unwrap().unwrap();
    }
}
