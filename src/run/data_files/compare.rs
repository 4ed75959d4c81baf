//! Compares the data files that a run recorded with those on which it is resumed.

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
const ADVICE: &str = "restore it, or use --restart to start over";

/// Checks that the files `now` have the bytes that the run in the folder `run` recorded, and records their present paths and
/// times. A file whose path, size and times are as recorded is not read. Any other file is read before this returns.
///
/// `there` are the settings that the run had; `here` are those with which it is resumed. Validation files may be replaced by
/// others, and files by the same tokens in another layout. A line on `screen` then names the consequence.
///
/// # Errors
/// [`Error::Data`] naming the file that differs, or if the record is broken; [`Error::Output`] if the record cannot be written.
pub fn check(run: &Path, now: &DataFiles, there: &Settings, here: &Settings, screen: &mut dyn Screen) -> Result<()> {
    let Some(noted) = DataFiles::read(run)? else {
        if now.all().next().is_some() {
            screen.line(&format!(
                "data     {} has no {NOTE}: only the tokens at the start, middle and end of each file are compared",
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
                screen.line("validate other files than before, so losses are not comparable with earlier ones");
                now.validation.clone()
            }
            compared => compared?,
        };
    } else {
        screen.line(
            "data     files of another layout than before: only the tokens at the start, middle and end are compared",
        );
    }
    if accepted == noted { Ok(()) } else { accepted.write(run) }
}

/// Returns an error that names the changed file, in place of a data error that only states that the tokens in `now` are not
/// those of the run in the folder `run`. Any other error is returned unchanged.
pub(in crate::run) fn name_changed_file(run: &Path, now: &DataFiles, error: Error, screen: &mut dyn Screen) -> Error {
    if !matches!(error, Error::Data(_)) {
        return error;
    }
    let Ok(Some(noted)) = DataFiles::read(run) else { return error };
    Pair { run, part: "training", screen }.compare(&noted.training, &now.training).err().unwrap_or(error)
}

/// Returns the paths of the validation files as they were given.
fn of_validation(source: &Source) -> &[std::path::PathBuf] {
    match source {
        Source::Shards { validation, .. } => validation,
        Source::Text(_) | Source::Stories => &[],
    }
}

/// Compares one part of a run's data (training or validation): the recorded files with the present ones.
struct Pair<'a> {
    run: &'a Path,
    part: &'static str,
    screen: &'a mut dyn Screen,
}

impl Pair<'_> {
    /// Returns the files `now` with the hashes that are known.
    ///
    /// # Errors
    /// [`Error::Data`] naming a file that differs from its record.
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
                    let what = format!("was modified after {} read it and before its hash was recorded", self.name());
                    return Err(Error::data(Fault::at(now.path.display(), what).advice(ADVICE)));
                }
            }
        }
        self.compare_bytes(unsure)?;
        Ok(accepted)
    }

    /// Reads files that may have changed, and compares them with the recorded hashes.
    fn compare_bytes(&mut self, mut files: Vec<(&mut FileContents, &String)>) -> Result<()> {
        let Some((first, _)) = files.first() else { return Ok(()) };
        let megabytes = files.iter().map(|(file, _)| file.bytes).sum::<u64>() as f64 / 1e6;
        let which = match files.len() {
            1 => format!("{} ({megabytes:.1} MB): its", first.path.display()),
            n => format!("{n} files ({megabytes:.1} MB): their"),
        };
        self.screen.line(&format!("data     comparing {which} path or times differ from those in {}", self.name()));
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
        let what = format!("its contents are not those with which {} began", self.name());
        Fault::at(file.path.display(), what)
    }

    /// Returns the error for a changed number of files. It names a file that is missing or new.
    fn other_number(&self, noted: &[FileContents], now: &[FileContents]) -> Error {
        let lacks = |files: &[FileContents], file: &&FileContents| !files.iter().any(|other| other.path == file.path);
        let (part, run) = (self.part, self.name());
        let missing = noted.iter().find(|file| lacks(now, file)).filter(|_| noted.len() > now.len());
        let fault = match (missing, now.iter().find(|file| lacks(noted, file))) {
            // the recorded name is untrusted: it may come from somebody else's folder
            (Some(file), _) => Fault::at(
                file.path.display().to_string().escape_debug(),
                format!("is not among the {part} files on which {run} is resumed"),
            ),
            (None, Some(file)) => {
                Fault::at(file.path.display(), format!("is not among the {part} files with which {run} began"))
            }
            (None, None) => Fault::at(run, format!("began with another number of {part} files")),
        };
        Error::data(fault.expected(format!("{} files", noted.len())).found(now.len()).advice(ADVICE))
    }
}

/// Returns the hash of a file's bytes.
fn hash(file: &FileContents) -> Result<String> {
    match file.hash(&AtomicBool::new(false)) {
        Ok(Hashed::Done(hash)) => Ok(hash),
        Ok(Hashed::Changed | Hashed::Stopped) => {
            let fault = Fault::at(file.path.display(), "changed while it was read");
            Err(Error::data(fault.advice("try again when no program writes to it")))
        }
        Err(error) => Err(Error::data(Fault::at(file.path.display(), format!("cannot be read ({error})")))),
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
