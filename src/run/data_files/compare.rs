//! Compares the files that a run noted with those that it is to be resumed on.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;

use super::{DataFiles, NOTE};
use crate::data::FileContents;
use crate::data::contents::Hashed;
use crate::error::{Error, Fault, Result};
use crate::run::steps::Screen;
use crate::train::settings::{Settings, Source};

/// The advice of every refusal.
const ADVICE: &str = "bring it back, or --restart to begin anew";

/// Fails unless the files `now` have the bytes that the run in the folder `run` noted, and notes what it learned: their
/// present paths and times. A file of the noted path, size and times is not read; any other is, here and now.
///
/// `there` are the settings that the run had, `here` those that it is resumed with. Other files for validation may be named,
/// and the same tokens in files of another layout; a line says what that means.
///
/// # Errors
/// [`Error::Data`] naming the file that differs, or a note that is broken; [`Error::Output`] if the note cannot be written.
pub fn check(run: &Path, now: &DataFiles, there: &Settings, here: &Settings, screen: &mut dyn Screen) -> Result<()> {
    let Some(noted) = DataFiles::read(run)? else {
        if now.all().next().is_some() {
            screen.line(&format!(
                "data     {} has no {NOTE}: changed files are found by the tokens at their start, middle and end alone",
                run.display()
            ));
        }
        return Ok(());
    };
    let [old, new] = [there, here].map(|settings| settings.with_absolute_paths().data.source);
    let layout = |source: &Source| match source {
        Source::Shards { format, .. } => Some(*format),
        Source::Text(_) | Source::Stories => None,
    };
    let mut accepted = now.clone();
    if layout(&old) == layout(&new) {
        accepted.training = Pair { run, part: "training", screen }.compare(&noted.training, &now.training)?;
        let validation = Pair { run, part: "validation", screen }.compare(&noted.validation, &now.validation);
        accepted.validation = match validation {
            Err(_) if of_validation(&old) != of_validation(&new) => {
                screen.line("validate other files now than before: losses differ by that");
                now.validation.clone()
            }
            compared => compared?,
        };
    } else {
        screen.line(
            "data     files of another layout now than before: only tokens at their start, middle and end are compared",
        );
    }
    if accepted == noted { Ok(()) } else { accepted.write(run) }
}

/// Names the file that an error is about, which says no more than that the tokens in `now` are not those of the run in the
/// folder `run`. Any other error stays as it is.
pub(in crate::run) fn explain(run: &Path, now: &DataFiles, error: Error, screen: &mut dyn Screen) -> Error {
    if !matches!(error, Error::Data(_)) {
        return error;
    }
    let Ok(Some(noted)) = DataFiles::read(run) else { return error };
    Pair { run, part: "training", screen }.compare(&noted.training, &now.training).err().unwrap_or(error)
}

/// Returns the files of validation as they are named.
fn of_validation(source: &Source) -> &[std::path::PathBuf] {
    match source {
        Source::Shards { validation, .. } => validation,
        Source::Text(_) | Source::Stories => &[],
    }
}

/// A part of a run's data: the files that were noted, and those that are there.
struct Pair<'a> {
    run: &'a Path,
    part: &'static str,
    screen: &'a mut dyn Screen,
}

impl Pair<'_> {
    /// Returns the files `now` with their hashes, as far as these are known.
    fn compare(&mut self, noted: &[FileContents], now: &[FileContents]) -> Result<Vec<FileContents>> {
        if noted.len() != now.len() {
            return Err(self.other_number(noted, now));
        }
        let mut accepted = now.to_vec();
        let mut unsure = Vec::new();
        for (noted, now) in noted.iter().zip(&mut accepted) {
            let is_same = noted.path == now.path && noted.is_untouched(now);
            if noted.bytes != now.bytes {
                let fault = self.changed(now).expected(format!("{} bytes", noted.bytes)).found(now.bytes);
                return Err(Error::data(fault.advice(ADVICE)));
            }
            match &noted.blake3 {
                Some(hash) if is_same => now.blake3 = Some(hash.clone()),
                Some(hash) => unsure.push((now, hash)),
                None if noted.is_as_written(now) => {}
                None => {
                    let what = format!("was written to since {} read it, before its contents were noted", self.name());
                    return Err(Error::data(Fault::at(now.path.display(), what).advice(ADVICE)));
                }
            }
        }
        self.compare_bytes(unsure)?;
        Ok(accepted)
    }

    /// Reads files that may be others, and compares them with the hashes that were noted.
    fn compare_bytes(&mut self, mut files: Vec<(&mut FileContents, &String)>) -> Result<()> {
        let Some((first, _)) = files.first() else { return Ok(()) };
        let megabytes = files.iter().map(|(file, _)| file.bytes).sum::<u64>() as f64 / 1e6;
        let which = match files.len() {
            1 => format!("{} ({megabytes:.1} MB): its", first.path.display()),
            n => format!("{n} files ({megabytes:.1} MB): their"),
        };
        self.screen.line(&format!("data     comparing {which} path or times are others than {} noted", self.name()));
        let hashed: Vec<Result<String>> = files.par_iter().map(|(file, _)| hash(file)).collect();
        for ((file, noted), hash) in files.iter_mut().zip(hashed) {
            let hash = hash?;
            if hash != **noted {
                let fault = self.changed(file).expected(format!("BLAKE3 {noted}")).found(hash);
                return Err(Error::data(fault.advice(ADVICE)));
            }
            file.blake3 = Some(hash);
        }
        Ok(())
    }

    fn name(&self) -> std::path::Display<'_> {
        self.run.display()
    }

    fn changed(&self, file: &FileContents) -> Fault {
        let what = format!("its contents are not those that {} was begun with", self.name());
        Fault::at(file.path.display(), what)
    }

    /// The error of files that are more or fewer than before: names one that is missing, or one that is new.
    fn other_number(&self, noted: &[FileContents], now: &[FileContents]) -> Error {
        let lacks = |files: &[FileContents], file: &&FileContents| !files.iter().any(|other| other.path == file.path);
        let (part, run) = (self.part, self.name());
        let missing = noted.iter().find(|file| lacks(now, file)).filter(|_| noted.len() > now.len());
        let fault = match (missing, now.iter().find(|file| lacks(noted, file))) {
            // a name that a stranger's folder may have brought
            (Some(file), _) => Fault::at(
                file.path.display().to_string().escape_debug(),
                format!("is not among the {part} files that {run} is resumed on"),
            ),
            (None, Some(file)) => {
                Fault::at(file.path.display(), format!("is not among the {part} files that {run} was begun with"))
            }
            (None, None) => Fault::at(run, format!("was begun with another number of {part} files")),
        };
        Error::data(fault.expected(format!("{} files", noted.len())).found(now.len()).advice(ADVICE))
    }
}

/// Returns the hash of a file's bytes.
fn hash(file: &FileContents) -> Result<String> {
    match file.hash(&AtomicBool::new(false)) {
        Ok(Hashed::Done(hash)) => Ok(hash),
        Ok(Hashed::Changed | Hashed::Stopped) => {
            let fault = Fault::at(file.path.display(), "changes while it is read");
            Err(Error::data(fault.advice("try again when nobody writes to it")))
        }
        Err(error) => Err(Error::data(Fault::at(file.path.display(), format!("cannot be read ({error})")))),
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
