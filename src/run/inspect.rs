//! Inspects a folder before a run uses it, to decide whether the run may begin or resume there.

use std::fs;
use std::path::Path;

use crate::error::{Error, Fault, Result};
use crate::files::atomic::{is_temporary, output_error};
use crate::files::disk::System;
use crate::files::shell;
use crate::formats::checkpoint::{CHECKPOINTS, Checkpoints};
use crate::run::lock::LOCK;
use crate::run::orders::RANKS;
use crate::train::settings::file::{CONFIG, TOKENIZER};
use crate::train::settings::{Difference, RunFile, Settings, Source, differences};

use super::contents;
use super::folder::{PROBE, runs};

/// Contents of a folder, from the point of view of a run that wants to use it.
#[derive(Debug, PartialEq)]
pub enum State {
    /// Nothing: the run may begin.
    Free,
    /// The same run, finished.
    Finished,
    /// The same run, unfinished; or finished, and the new settings have more steps.
    Unfinished(Box<RunFile>),
}

/// Returns the state of a folder, before anything is written. `data` is the fingerprint of the run's data, if it is known.
///
/// # Errors
/// [`Error::Usage`] if it contains another run or other files, or a run that has already done more steps; [`Error::Data`] if it
/// contains this run on other data, or links to somebody else's checkpoints; [`Error::Output`] if it cannot be read.
pub fn inspect(dir: &Path, settings: &Settings, data: Option<&str>) -> Result<State> {
    let unusable = |what: &str, expected: &str| {
        let fault = Fault::at("--out", format!("{} {what}", dir.display()));
        Err(Error::usage(fault.expected(expected).advice("try another name")))
    };
    if dir.symlink_metadata().is_ok() && !dir.exists() {
        return unusable("is a dangling link", "a folder");
    }
    if !dir.exists() {
        return Ok(State::Free);
    }
    if !dir.is_dir() {
        return unusable("is a file", "a folder");
    }
    if !dir.join(CONFIG).exists() {
        // a run that was killed as it began leaves at most these
        let own = |name: &str| {
            // the user may have linked checkpoints to another disk before the run begins
            let no_checkpoint = || fs::read_dir(dir.join(name)).is_ok_and(|mut there| there.next().is_none());
            name == LOCK
                || is_temporary(name)
                || name.starts_with(PROBE)
                || name == RANKS
                || [CHECKPOINTS, TOKENIZER].contains(&name) && no_checkpoint()
        };
        let mut names = fs::read_dir(dir).map_err(|e| output_error(dir, &e))?.flatten().map(|entry| entry.file_name());
        if names.all(|name| own(&name.to_string_lossy())) {
            return Ok(State::Free);
        }
        if dir.join(CHECKPOINTS).symlink_metadata().is_ok_and(|there| there.is_symlink()) {
            let what = format!("holds a link {CHECKPOINTS} that is dangling or leads to a folder with files");
            return unusable(&what, "a link to an empty folder");
        }
        return unusable("holds files but no run", "an empty folder");
    }
    let there = RunFile::read(dir).map_err(|e| Error::usage(format!("{e}; try another --out")))?;
    contents::check_checkpoints(dir, there.record.run.as_deref())?;
    let reached = Checkpoints::new(&System, dir).steps()?.first().copied().unwrap_or(0);
    compare(dir, &there, settings, data, reached)?;
    let (before, now) = (there.settings.train.steps, settings.train.steps);
    if now < before && (now < reached || there.record.finished) {
        let done = if there.record.finished { before } else { reached };
        let fault = Fault::at("--steps", format!("{now}, but {} has done {done} steps", dir.display()));
        return Err(Error::usage(fault.expected(format!("at least {done}")).advice("try --restart to start over")));
    }
    if there.record.finished && now > before && reached < before {
        let fault =
            Fault::at("--steps", format!("{now}, but {} has no checkpoint of its last step {before}", dir.display()));
        return Err(Error::usage(fault.expected(before).advice("--init starts a new run from its model")));
    }
    Ok(if there.record.finished && now == before { State::Finished } else { State::Unfinished(Box::new(there)) })
}

/// Checks that everything that changed a past loss is equal.
fn compare(dir: &Path, there: &RunFile, settings: &Settings, data: Option<&str>, reached: usize) -> Result<()> {
    let mut found = differences(&there.settings, settings, reached);
    let (was, is) = [&there.settings, settings].map(|settings| settings.with_absolute_paths().data.source).into();
    let other_data = match (there.record.data.as_deref(), data) {
        (Some(there), Some(here)) => there != here,
        // a checkpoint records the data's fingerprint; without one, the paths are compared
        _ => reached == 0 && was != is,
    };
    if other_data && found.is_empty() {
        return Err(other_data_than(dir));
    }
    if other_data {
        found.insert(0, Difference { key: "data", there: named(&was), here: named(&is) });
    }
    if found.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = found.iter().map(ToString::to_string).collect();
    let fault = Fault::at(dir.display(), format!("holds another run ({})", list.join("; ")));
    Err(Error::usage(fault.advice(format!(
        "--resume {} alone resumes that run with its own settings; otherwise try another folder, or --restart to move it aside",
        shell::word(dir)
    ))))
}

/// Returns the error for a resume on data other than those with which the run began.
pub(super) fn other_data_than(dir: &Path) -> Error {
    let fault = Fault::at("--text or --data", format!("the tokens are not those with which {} began", dir.display()));
    Error::data(fault.expected("the same").advice("restore them, or use --restart to start over"))
}

/// Returns the newest run in `parent` if it is this run and unfinished, because the user may have meant to resume it.
pub(super) fn unfinished(parent: &Path, file: &RunFile) -> Option<String> {
    let newest = runs(parent).pop()?;
    let there = RunFile::read(newest.as_ref()).ok().filter(|there| !there.record.finished)?;
    let same = there.record.data == file.record.data && differences(&there.settings, &file.settings, 0).is_empty();
    same.then_some(newest)
}

/// Returns a short description of data.
fn named(source: &Source) -> String {
    match source {
        Source::Stories => "generated stories".into(),
        Source::Text(paths) | Source::Shards { train: paths, .. } => {
            paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        }
    }
}
