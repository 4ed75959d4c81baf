//! Files that were changed, touched, moved, removed or renamed between a run's end and its resume.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::*;
use crate::train::Trainer;
use crate::train::settings::Recipe;
use crate::train::settings::resolve::Start;

#[derive(Default)]
struct Lines(Vec<String>);

impl Screen for Lines {
    fn line(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
    fn progress(&mut self, _: usize, _: usize, _: Option<Duration>) {}
    fn begins(&mut self, _: &Trainer, _: &Path) {}
}

/// A run's folder and its data.
struct Ran {
    dir: tempfile::TempDir,
    noted: DataFiles,
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    // always a different time from that of any other file
    touch(path, 0);
}

/// Sets the time of the last write, in seconds after a fixed time.
fn touch(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds);
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

impl Ran {
    /// A run on two files for training and one for validation, all hashed.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.bin", "b.bin", "v.bin"] {
            write(&dir.path().join(name), name.as_bytes());
        }
        let mut ran = Self { dir, noted: DataFiles::default() };
        ran.noted = ran.now(&["a.bin", "b.bin"], &["v.bin"]);
        for file in ran.noted.all_mut() {
            file.blake3 = Some(hash(file).unwrap());
        }
        ran.noted.write(ran.dir.path()).unwrap();
        ran
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn now(&self, training: &[&str], validation: &[&str]) -> DataFiles {
        let files = |names: &[&str]| names.iter().map(|name| FileContents::of(&self.path(name)).unwrap()).collect();
        DataFiles { training: files(training), validation: files(validation) }
    }

    /// Settings that name files for validation, and a layout.
    fn settings(&self, validation: &str, format: &str) -> Settings {
        let (data, val) = (self.path("*.bin"), self.path(validation));
        let recipe = format!(
            "[data]\ndata = [{data:?}]\nval = [{val:?}]\ndata-format = \"{format}\"\ntokenizer = \"bytes\"\n\
             [model]\nlayers = 1\nheads = 1\nchannels = 8\n"
        );
        toml::from_str::<Recipe>(&recipe).unwrap().resolve(Start::Random).unwrap()
    }

    /// Resumes on `now`. Returns the lines, and whether the record was written.
    fn check(&self, now: &DataFiles) -> Result<(Vec<String>, bool)> {
        self.check_with(now, &self.settings("v.bin", "shard"))
    }

    fn check_with(&self, now: &DataFiles, here: &Settings) -> Result<(Vec<String>, bool)> {
        let (mut lines, there) = (Lines::default(), self.settings("v.bin", "shard"));
        let before = fs::read(self.path(NOTE)).unwrap();
        check(self.dir.path(), now, &there, here, &mut lines)?;
        Ok((lines.0, fs::read(self.path(NOTE)).unwrap() != before))
    }

    /// Panics unless a resume on the same paths is refused because of `name`.
    #[track_caller]
    fn is_refused(&self, name: &str, what: &str, expected: &str) {
        let error = self.check(&self.now(&["a.bin", "b.bin"], &["v.bin"])).unwrap_err();
        let fault = error.fault();
        assert_eq!((error.exit_code(), fault.place.as_str()), (3, self.path(name).to_str().unwrap()), "{error}");
        assert!(fault.what.contains(what) && fault.expected.starts_with(expected), "{error}");
        assert_eq!(fault.advice, ADVICE);
    }
}

#[test]
fn untouched_files_are_not_read() {
    let ran = Ran::new();
    let mut now = ran.now(&["a.bin", "b.bin"], &["v.bin"]);
    assert_eq!(ran.check(&now).unwrap(), (vec![], false));
    // it says so of a file that it does read
    now.training[1].modified = "0.000000000".into();
    let error = ran.check(&now).unwrap_err();
    assert_eq!(error.fault().what, "changed while it was read");
}

#[test]
fn one_byte_changed_in_any_file_is_refused_by_the_file_s_name() {
    for name in ["a.bin", "b.bin", "v.bin"] {
        let ran = Ran::new();
        fs::write(ran.path(name), b"x.bin").unwrap();
        ran.is_refused(name, "its contents are not those with which", "BLAKE3 ");
        // with the time set back too, where the system has another one
        #[cfg(unix)]
        {
            touch(&ran.path(name), 0);
            ran.is_refused(name, "its contents are not those with which", "BLAKE3 ");
        }
        fs::write(ran.path(name), b"longer").unwrap();
        ran.is_refused(name, "its contents are not those with which", "5 bytes");
    }
}

#[test]
fn a_touched_file_of_the_same_bytes_is_accepted_and_noted() {
    let ran = Ran::new();
    touch(&ran.path("b.bin"), 9);
    let now = ran.now(&["a.bin", "b.bin"], &["v.bin"]);
    let (lines, written) = ran.check(&now).unwrap();
    assert!(written && lines.len() == 1 && lines[0].contains("comparing") && lines[0].contains("b.bin"), "{lines:?}");
    let noted = DataFiles::read(ran.dir.path()).unwrap().unwrap();
    assert_eq!(noted.training[1].modified, "1700000009.000000000");
    assert_eq!(noted.training[1].blake3, ran.noted.training[1].blake3);
    assert_eq!(ran.check(&now).unwrap(), (vec![], false));
}

#[test]
fn moved_files_are_compared_and_noted_where_they_are() {
    let ran = Ran::new();
    fs::create_dir(ran.path("new")).unwrap();
    for name in ["a.bin", "b.bin", "v.bin"] {
        fs::rename(ran.path(name), ran.path("new").join(name)).unwrap();
    }
    let now = ran.now(&["new/a.bin", "new/b.bin"], &["new/v.bin"]);
    let (lines, written) = ran.check_with(&now, &ran.settings("new/v.bin", "shard")).unwrap();
    assert!(written && lines[0].contains("comparing 2 files"), "{lines:?}");
    assert!(!lines.iter().any(|line| line.starts_with("validate")), "{lines:?}");
    let noted = DataFiles::read(ran.dir.path()).unwrap().unwrap();
    assert!(noted.all().all(|file| file.path.starts_with(ran.path("new")) && file.blake3.is_some()));
}

#[test]
fn files_that_are_gone_or_new_are_named() {
    let ran = Ran::new();
    let error = ran.check(&ran.now(&["a.bin"], &["v.bin"])).unwrap_err();
    assert!(error.fault().place.ends_with("b.bin"), "{error}");
    assert_eq!((error.exit_code(), error.fault().expected.as_str(), error.fault().found.as_str()), (3, "2 files", "1"));
    write(&ran.path("w.bin"), b"w.bin");
    let error = ran.check(&ran.now(&["a.bin", "b.bin"], &["v.bin", "w.bin"])).unwrap_err();
    assert!(error.fault().place.ends_with("w.bin") && error.fault().what.contains("validation"), "{error}");
    assert!(ran.check(&ran.now(&["a.bin", "b.bin"], &[])).is_err());
}

#[test]
fn other_files_for_validation_may_be_named_and_that_is_said() {
    let ran = Ran::new();
    write(&ran.path("w.bin"), b"w.bin");
    let now = ran.now(&["a.bin", "b.bin"], &["w.bin"]);
    assert!(ran.check(&now).is_err(), "not named by the user");
    let (lines, written) = ran.check_with(&now, &ran.settings("w.bin", "shard")).unwrap();
    assert!(written && lines.iter().any(|line| line.starts_with("validate other files")), "{lines:?}");
    assert_eq!(DataFiles::read(ran.dir.path()).unwrap().unwrap().validation, now.validation);
    // a changed file for training is refused all the same
    fs::write(ran.path("a.bin"), b"x.bin").unwrap();
    let now = ran.now(&["a.bin", "b.bin"], &["w.bin"]);
    assert!(ran.check_with(&now, &ran.settings("w.bin", "shard")).is_err());
}

#[test]
fn files_of_another_layout_are_accepted_by_their_tokens_and_that_is_said() {
    let ran = Ran::new();
    write(&ran.path("a.u16"), b"ab");
    let now = ran.now(&["a.u16"], &["v.bin"]);
    let (lines, written) = ran.check_with(&now, &ran.settings("v.bin", "u16")).unwrap();
    assert!(written && lines.len() == 1 && lines[0].contains("another layout"), "{lines:?}");
}

#[test]
fn a_file_written_to_before_its_hash_was_known_is_refused() {
    let mut ran = Ran::new();
    ran.noted.training[0].blake3 = None;
    ran.noted.write(ran.dir.path()).unwrap();
    let now = |ran: &Ran| ran.now(&["a.bin", "b.bin"], &["v.bin"]);
    assert_eq!(ran.check(&now(&ran)).unwrap(), (vec![], false));
    // permissions, a move: nothing was written
    fs::rename(ran.path("a.bin"), ran.path("c.bin")).unwrap();
    ran.check(&ran.now(&["c.bin", "b.bin"], &["v.bin"])).unwrap();
    fs::rename(ran.path("c.bin"), ran.path("a.bin")).unwrap();
    touch(&ran.path("a.bin"), 1);
    ran.is_refused("a.bin", "before its hash was recorded", "");
}

#[test]
fn a_run_without_a_note_says_what_is_not_compared() {
    let ran = Ran::new();
    fs::remove_file(ran.path(NOTE)).unwrap();
    let mut lines = Lines::default();
    let (now, settings) = (ran.now(&["a.bin"], &[]), ran.settings("v.bin", "shard"));
    check(ran.dir.path(), &now, &settings, &settings, &mut lines).unwrap();
    assert!(lines.0.len() == 1 && lines.0[0].contains("has no data.json"), "{:?}", lines.0);
    let none = DataFiles::default();
    check(ran.dir.path(), &none, &settings, &settings, &mut lines).unwrap();
    assert_eq!(lines.0.len(), 1);
}

#[test]
fn an_error_about_tokens_names_the_file_that_has_changed() {
    let ran = Ran::new();
    let now = ran.now(&["a.bin", "b.bin"], &["v.bin"]);
    let error = Error::data("the tokens are others");
    let same = name_changed_file(ran.dir.path(), &now, error.clone(), &mut Lines::default());
    assert_eq!(same, error);
    fs::write(ran.path("b.bin"), b"x.bin").unwrap();
    let now = ran.now(&["a.bin", "b.bin"], &["v.bin"]);
    let named = name_changed_file(ran.dir.path(), &now, error, &mut Lines::default());
    assert!(named.exit_code() == 3 && named.fault().place.ends_with("b.bin"), "{named}");
    let usage = Error::usage("another");
    assert_eq!(name_changed_file(ran.dir.path(), &now, usage.clone(), &mut Lines::default()), usage);
}
