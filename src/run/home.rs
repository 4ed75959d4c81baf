//! The identity of a run's folder. A run uses it to notice that its folder was moved, replaced or unmounted.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Fault, Result};
use crate::files::atomic::output_error;
use crate::files::identity::Identity;
use crate::run::lock::FolderLock;
use crate::train::settings::RunFile;
use crate::train::settings::file::CONFIG;

/// The folder of a running run. It stays locked while this exists. The run calls [`Home::check`] before every save and append.
#[derive(Debug)]
pub struct Home {
    /// The path that the run was given.
    dir: PathBuf,
    /// The run's random id.
    run: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    lock: FolderLock,
    identity: Identity,
    /// Number of times that the folder came back with another identity. Files opened before belong to the old one.
    returns: usize,
}

/// Returns a random id for a new run: 32 hexadecimal digits.
///
/// # Errors
/// [`Error::Output`] if the system gives no random bytes.
pub fn new_run() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::output(Fault::at("run", format!("the system returned no random bytes for an id ({e})"))))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Home {
    /// Makes a locked folder the home of a run.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn new(dir: &Path, run: &str, lock: FolderLock) -> Result<Self> {
        let identity = Identity::of_folder(dir).map_err(|e| output_error(dir, &e))?;
        lock.sign(run)?;
        Ok(Self { dir: dir.to_owned(), run: run.to_owned(), state: Mutex::new(State { lock, identity, returns: 0 }) })
    }

    /// Returns the folder's path.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the run's random id.
    #[must_use]
    pub fn run(&self) -> &str {
        &self.run
    }

    /// Returns the number of times that the folder came back with another identity. After each, reopen all files.
    #[must_use]
    pub fn returns(&self) -> usize {
        self.state().returns
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // a check that panicked leaves no half-changed state
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that the path still leads to this run's folder and that this process still holds the lock. Creates the lock file
    /// again if somebody has removed it. A folder that comes back with another identity, as after its disk was remounted, is
    /// accepted if it contains this run.
    ///
    /// # Errors
    /// [`Error::Output`] if the folder is away, which may be temporary; [`Error::Usage`] if another run has taken its place;
    /// [`Error::Locked`] if another process has locked it.
    pub fn check(&self) -> Result<()> {
        let mut state = self.state();
        let dir = &self.dir;
        let away = |what: String| {
            let fault = Fault::at(dir.display(), what).expected(format!("the folder of run {}", self.run));
            Error::output(fault.advice("move it back, or mount its disk again"))
        };
        let there = Identity::of_folder(dir).map_err(|e| away(format!("cannot be found ({e})")))?;
        if there != state.identity {
            match fs::exists(dir.join(CONFIG)) {
                Ok(true) => {}
                _ => return Err(away("is now another folder".into())),
            }
            let found = RunFile::read(dir).map_err(|e| away(format!("cannot be read ({e})")))?.record.run;
            if found.as_deref() != Some(&self.run) {
                let found = found.map_or_else(|| "another one".to_owned(), |run| format!("run {run}"));
                let fault = Fault::at(dir.display(), "now holds another run").expected(format!("run {}", self.run));
                return Err(Error::usage(fault.found(found).advice(
                    "this run's folder was moved or replaced while it ran; to continue: wgpt train --resume with its present \
                     path",
                )));
            }
            *state = State { lock: FolderLock::take(dir)?, identity: there, returns: state.returns + 1 };
            state.lock.sign(&self.run)?;
        }
        if !state.lock.is_in_place().map_err(|e| output_error(dir, &e))? {
            log::warn!("{}: its lock was removed and is created again", dir.display());
            state.lock.take_file_again(dir)?;
            state.lock.sign(&self.run)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use crate::run::lock::LOCK;

    fn home(dir: &Path, run: &str) -> Home {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join(CONFIG), config(run)).unwrap();
        Home::new(dir, run, FolderLock::take(dir).unwrap()).unwrap()
    }

    fn config(run: &str) -> String {
        format!(
            "[record]\nversion = \"0\"\nfinished = false\nrun = \"{run}\"\npositions = 8\nvocab = 257\nlayers = 1\n\
             heads = 1\nchannels = 8\n"
        )
    }

    #[test]
    fn a_folder_that_goes_away_and_comes_back_is_the_same_and_another_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (run, moved) = (dir.path().join("run"), dir.path().join("moved"));
        let ours = home(&run, "aa");
        ours.check().unwrap();
        fs::rename(&run, &moved).unwrap();
        assert!(matches!(ours.check(), Err(Error::Output(fault)) if fault.what.contains("cannot be found")));
        // the mount point of a disk that is not mounted
        fs::create_dir(&run).unwrap();
        assert!(matches!(ours.check(), Err(Error::Output(fault)) if fault.what == "is now another folder"));
        fs::remove_dir(&run).unwrap();
        fs::rename(&moved, &run).unwrap();
        ours.check().unwrap();
        // moved, with a new run in its place
        fs::rename(&run, &moved).unwrap();
        let other = home(&run, "bb");
        let error = ours.check().unwrap_err();
        assert_eq!((error.exit_code(), error.fault().found.as_str()), (2, "run bb"));
        other.check().unwrap();
        assert_eq!(ours.returns(), 0);
    }

    #[test]
    fn a_copy_that_takes_the_place_of_a_lost_folder_is_taken_unless_somebody_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let ours = home(&run, "aa");
        fs::rename(&run, dir.path().join("old")).unwrap();
        fs::create_dir(&run).unwrap();
        fs::write(run.join(CONFIG), config("aa")).unwrap();
        let held = FolderLock::take(&run).unwrap();
        assert_eq!(ours.check().unwrap_err().exit_code(), 7);
        drop(held);
        ours.check().unwrap();
        assert_eq!(ours.returns(), 1);
        assert_eq!(FolderLock::take(&run).unwrap_err().exit_code(), 7);
    }

    #[test]
    fn a_removed_lock_is_made_again_and_a_taken_one_ends_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let ours = home(&dir.path().join("run"), "aa");
        let path = ours.dir().join(LOCK);
        fs::remove_file(&path).unwrap();
        ours.check().unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with("\nrun aa\n"));
        fs::remove_file(&path).unwrap();
        let theirs = crate::files::lock::Lock::take(&path, std::time::Duration::ZERO).unwrap();
        assert_eq!(ours.check().unwrap_err().exit_code(), 7);
        drop(theirs);
        ours.check().unwrap();
    }

    #[test]
    fn ids_are_random() {
        let ids = [new_run().unwrap(), new_run().unwrap()];
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())));
        assert_ne!(ids[0], ids[1]);
    }
}
