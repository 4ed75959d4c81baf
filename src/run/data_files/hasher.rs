//! Hashes the data files of a run while it trains, and keeps `data.json` in its folder up to date.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::DataFiles;
use crate::data::contents::{self, Hashed};
use crate::error::Result;
use crate::run::home::Home;

/// Bytes of a file from which on hashing takes so long that `data.json` is written first.
const LARGE_BYTES: u64 = 64 << 20;
/// Time between two writes of `data.json` while small files are hashed.
const WRITE_EVERY: Duration = Duration::from_secs(2);
/// How long the end of a run waits for the current read and for the last write of `data.json`.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Hashes data files on a thread of low priority until it is dropped.
#[derive(Debug)]
pub struct FileHasher {
    /// Asks the thread to write the hashes it has, and to end.
    stop: Arc<AtomicBool>,
    /// Set when nobody waits for the thread any more, because another run may own the folder by then.
    late: Arc<AtomicBool>,
    ended: Receiver<()>,
}

impl FileHasher {
    /// Writes `data.json` for a run that begins or resumes, and starts to hash the files whose hash is known neither from the
    /// `data.json` that exists nor from `data prepare`. Returns `None` if there is nothing to hash.
    ///
    /// # Errors
    /// [`crate::error::Error::Output`] if `data.json` cannot be written.
    pub fn begin(home: &Arc<Home>, mut files: DataFiles) -> Result<Option<Self>> {
        let run = home.dir();
        // a broken one was refused already, or belongs to a run that starts over
        let noted = DataFiles::read(run).ok().flatten();
        if files.all().next().is_none() && noted.is_none() {
            return Ok(None);
        }
        if let Some(noted) = &noted {
            let known: HashMap<&Path, _> = noted.all().map(|file| (file.path.as_path(), file)).collect();
            for file in files.all_mut() {
                let same = known.get(file.path.as_path()).filter(|noted| noted.is_untouched(file));
                file.blake3 = same.and_then(|noted| noted.blake3.clone());
            }
        }
        contents::fill_prepared_hashes(&mut files.training);
        contents::fill_prepared_hashes(&mut files.validation);
        if noted.as_ref() != Some(&files) {
            files.write(run)?;
        }
        crate::kill_point!("run: data noted");
        if files.all().all(|file| file.blake3.is_some()) {
            return Ok(None);
        }
        let (stop, late) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let (end, ended) = channel::<()>();
        let mut work = Work {
            files,
            home: Arc::downgrade(home),
            stop: Arc::clone(&stop),
            late: Arc::clone(&late),
            written: Instant::now(),
        };
        let thread = std::thread::Builder::new().name("hashes".into()).spawn(move || {
            work.hash_all();
            drop(end);
        });
        if let Err(error) = thread {
            log::warn!("data: cannot start the thread that hashes its files ({error})");
        }
        Ok(Some(Self { stop, late, ended }))
    }
}

impl Drop for FileHasher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // a file that cannot be read for a while must not keep the run from ending
        let _ = self.ended.recv_timeout(END_TIMEOUT);
        self.late.store(true, Ordering::SeqCst);
    }
}

/// State of the hashing thread.
struct Work {
    files: DataFiles,
    /// Weak, because a [`Home`] holds the folder's lock, and a thread of the lowest priority may live on for seconds on a busy
    /// machine.
    home: Weak<Home>,
    stop: Arc<AtomicBool>,
    late: Arc<AtomicBool>,
    written: Instant,
}

impl Work {
    fn hash_all(&mut self) {
        yield_to_others();
        let mut known: HashMap<PathBuf, String> = HashMap::new();
        let mut is_noted = true;
        for i in 0..self.files.all().count() {
            let Some(file) = self.files.all().nth(i).filter(|file| file.blake3.is_none()).cloned() else { continue };
            if !is_noted && (file.bytes >= LARGE_BYTES || self.written.elapsed() >= WRITE_EVERY) {
                is_noted = self.write();
            }
            // a file that both parts share is read once
            let hashed = match known.get(&file.path) {
                Some(hash) => Ok(Hashed::Done(hash.clone())),
                None => file.hash(&self.stop),
            };
            match hashed {
                Ok(Hashed::Done(hash)) => {
                    self.files.all_mut().skip(i).take(1).for_each(|file| file.blake3 = Some(hash.clone()));
                    known.insert(file.path, hash);
                    is_noted = false;
                }
                Ok(Hashed::Stopped) => break,
                Ok(Hashed::Changed) => {
                    let name = file.path.display();
                    log::warn!("{name}: was modified after this run opened it; the run cannot be resumed on it");
                }
                Err(error) => {
                    log::warn!("{}: cannot be read ({error}), so its hash is not recorded", file.path.display());
                }
            }
        }
        if !is_noted {
            self.write();
        }
    }

    /// Writes `data.json`, unless the folder no longer belongs to the run. Returns whether it was written.
    fn write(&mut self) -> bool {
        self.written = Instant::now();
        let home = self.home.upgrade().filter(|home| !self.late.load(Ordering::SeqCst) && home.check().is_ok());
        let Some(home) = home else { return false };
        let written = self.files.write(home.dir());
        if let Err(error) = &written {
            log::warn!("{error}");
        }
        written.is_ok()
    }
}

/// Gives the other threads of the run priority. Only on Linux does this affect one thread and not the whole process.
fn yield_to_others() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(19);
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::data::FileContents;
    use crate::run::lock::FolderLock;

    fn home(dir: &Path) -> Arc<Home> {
        Arc::new(Home::new(dir, "ab", FolderLock::take(dir).unwrap()).unwrap())
    }

    fn of(paths: &[PathBuf]) -> DataFiles {
        let files = paths.iter().map(|path| FileContents::of(path).unwrap()).collect();
        DataFiles { training: files, validation: Vec::new() }
    }

    /// Waits until `data.json` in a folder has all hashes.
    #[track_caller]
    fn hashed(run: &Path) -> DataFiles {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(60) {
            let noted = DataFiles::read(run).unwrap().unwrap();
            if noted.all().all(|file| file.blake3.is_some()) {
                return noted;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{:?}", DataFiles::read(run));
    }

    #[test]
    fn files_are_hashed_while_the_run_goes_and_again_only_if_they_have_changed() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        let paths = ["a", "b"].map(|name| run.join(name));
        paths.iter().for_each(|path| fs::write(path, "abc").unwrap());
        let mut files = of(&paths);
        // one file is in both parts
        files.validation = vec![files.training[1].clone()];
        let begin = |home: &Arc<Home>, files| FileHasher::begin(home, files).unwrap();
        let home = home(run);
        let keeper = begin(&home, files.clone());
        assert!(keeper.is_some());
        let noted = hashed(run);
        let hash = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        assert!(noted.all().count() == 3 && noted.all().all(|file| file.blake3.as_deref() == Some(hash)));
        drop(keeper);
        assert!(begin(&home, files).is_none(), "all is known");
        fs::write(&paths[0], "abd").unwrap();
        let _keeper = begin(&home, of(&paths)).unwrap();
        assert_ne!(hashed(run).training[0].blake3.as_deref(), Some(hash));
    }

    #[test]
    fn a_run_ends_at_once_in_the_middle_of_a_large_file_and_notes_no_hash_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        let paths = ["small", "large"].map(|name| run.join(name));
        fs::write(&paths[0], "abc").unwrap();
        File::create(&paths[1]).unwrap().set_len(1 << 40).unwrap();
        let home = home(run);
        let keeper = FileHasher::begin(&home, of(&paths)).unwrap().unwrap();
        // as a kill would leave it
        let noted = || DataFiles::read(run).unwrap().unwrap();
        let begin = Instant::now();
        while noted().training[0].blake3.is_none() && begin.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        // a thread that hashes holds no lock of the folder
        while Arc::strong_count(&home) > 1 && begin.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(Arc::strong_count(&home), 1);
        let begin = Instant::now();
        drop(keeper);
        assert!(begin.elapsed() < END_TIMEOUT, "{:?}", begin.elapsed());
        assert!(noted().training[0].blake3.is_some() && noted().training[1].blake3.is_none(), "{:?}", noted());
    }

    #[test]
    fn a_file_written_to_after_it_was_opened_gets_no_hash() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        let paths = ["a", "b"].map(|name| run.join(name));
        paths.iter().for_each(|path| fs::write(path, "abc").unwrap());
        let files = of(&paths);
        fs::write(&paths[0], "abcd").unwrap();
        let home = home(run);
        let keeper = FileHasher::begin(&home, files).unwrap().unwrap();
        keeper.ended.recv_timeout(Duration::from_secs(60)).unwrap_err();
        let noted = DataFiles::read(run).unwrap().unwrap();
        assert!(noted.training[0].blake3.is_none() && noted.training[1].blake3.is_some(), "{noted:?}");
    }

    /// Another run has begun under the path of the run that hashes.
    #[cfg(unix)]
    #[test]
    fn a_folder_that_takes_the_place_of_the_run_s_gets_no_note() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        fs::create_dir(&run).unwrap();
        let file = dir.path().join("a");
        fs::write(&file, "abc").unwrap();
        let flag = || Arc::new(AtomicBool::new(false));
        let home = home(&run);
        let weak = Arc::downgrade(&home);
        let mut work = Work { files: of(&[file]), home: weak, stop: flag(), late: flag(), written: Instant::now() };
        fs::rename(&run, dir.path().join("moved")).unwrap();
        fs::create_dir(&run).unwrap();
        work.hash_all();
        assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
    }
}
