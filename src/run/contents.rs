//! Checks that a run's folder contains no link that would make the run write outside it. The folder may come from an
//! untrusted source.
//!
//! The files and folders of a run must be plain ones. A link in their place is refused, whoever created it. One link is
//! allowed: `checkpoints` may lead to another disk. The file `checkpoints/run.json`, which the run itself has written there,
//! names their owner: the run's id and the run's folder. An attacker can put a link into a folder, but cannot put that file
//! into a folder of yours.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Fault, Result};
use crate::files::atomic::{self, output_error};
use crate::files::{bounded, open, path_text};
use crate::formats::checkpoint::{CHECKPOINTS, SAVED};
use crate::run::data_files::NOTE;
use crate::run::folder::{LOG, SAMPLES, UNSAVED};
use crate::run::lock::LOCK;
use crate::run::orders::RANKS;
use crate::run::records::METRICS;
use crate::run::report::REPORT;
use crate::run::tensorboard;
use crate::train::settings::file::{CONFIG, TOKENIZER};

/// The file in `checkpoints` that names the run they belong to.
const OWNER: &str = "run.json";
/// The largest such file that is read.
const OWNER_BYTES: u64 = 1 << 16;
/// The folder of the saved model.
pub const MODEL: &str = "model";
/// The file that describes a hang of the device.
pub const HANG: &str = "hang.txt";

/// Contents of [`OWNER`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    /// The run's random id.
    run: String,
    /// The run's folder.
    #[serde(with = "path_text::one")]
    folder: PathBuf,
}

/// Checks that no file at the top of a run's folder is a link or a special file.
///
/// # Errors
/// [`Error::Data`] naming the file that is one.
pub fn check_files(dir: &Path) -> Result<()> {
    for name in [CONFIG, METRICS, LOG, SAMPLES, REPORT, LOCK, SAVED, NOTE, HANG] {
        match fs::symlink_metadata(dir.join(name)).and_then(|there| open::plain(&there)) {
            // a report page that cannot be written does not end a run
            Err(error) if name == REPORT && error.kind() == io::ErrorKind::IsADirectory => {}
            looked => refuse(dir, name, looked)?,
        }
    }
    Ok(())
}

/// Checks what [`check_files`] does, and also the run's folders and their files, except `checkpoints`.
///
/// # Errors
/// Those of [`check_files`].
pub fn check(dir: &Path) -> Result<()> {
    check_files(dir)?;
    for name in [tensorboard::FOLDER, MODEL, TOKENIZER, UNSAVED, RANKS] {
        refuse(dir, name, open::own_folder(&dir.join(name)))?;
        if name == UNSAVED {
            continue;
        }
        for entry in fs::read_dir(dir.join(name)).into_iter().flatten().flatten() {
            let looked = fs::symlink_metadata(entry.path()).and_then(|there| open::plain(&there));
            let name = Path::new(name).join(entry.file_name());
            // nothing is written to these folders
            match looked {
                Err(error) if error.kind() == io::ErrorKind::IsADirectory => {}
                looked => refuse(dir, &name.display().to_string(), looked)?,
            }
        }
    }
    Ok(())
}

fn refuse(dir: &Path, name: &str, looked: io::Result<()>) -> Result<()> {
    match looked {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let fault = Fault::at(dir.join(name).display(), error.to_string());
            Err(Error::data(fault.advice("links are not allowed in a run's folder; put the file itself there")))
        }
        _ => Ok(()),
    }
}

/// Checks that `checkpoints` in a run's folder is no link that somebody else may have made.
///
/// # Errors
/// [`Error::Data`].
pub fn check_checkpoints(dir: &Path, run: Option<&str>) -> Result<()> {
    let path = dir.join(CHECKPOINTS);
    let refused = |what: String, advice: &str| Err(Error::data(Fault::at(path.display(), what).advice(advice)));
    match fs::symlink_metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return refused(format!("cannot be read ({e})"), ""),
        Ok(there) if there.is_dir() => return Ok(()),
        Ok(there) if there.is_symlink() => {}
        Ok(_) => return refused("is not a folder".into(), "move it away"),
    }
    match fs::metadata(&path) {
        Err(e) => return refused(format!("is a dangling link ({e})"), "mount the disk with its folder again"),
        Ok(to) if !to.is_dir() => return refused("is a link to something that is not a folder".into(), "move it away"),
        Ok(_) => {}
    }
    let refuse = |what: String| {
        refused(
            format!("is a link to a folder {what}"),
            "if they are this run's, move them back into its folder, resume once, then move and link them again",
        )
    };
    let unnamed = format!("whose {OWNER} does not name this run and its folder");
    match owner(&path) {
        Ok(owner) if Some(owner.run.as_str()) != run => refuse(unnamed),
        Ok(owner) if is_ours(dir, &owner.folder) => Ok(()),
        Ok(owner) => refuse(format!("of the checkpoints of {}", owner.folder.display())),
        Err(_) => refuse(unnamed),
    }
}

/// Returns whether the folder that an owner names is `dir`, or is gone because the run was moved. A folder that cannot be
/// examined, or whose disk is not mounted, still belongs to somebody.
fn is_ours(dir: &Path, folder: &Path) -> bool {
    let is_gone = || {
        let missing = fs::symlink_metadata(folder).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
        missing && folder.parent().is_some_and(Path::is_dir)
    };
    match (fs::canonicalize(dir), fs::canonicalize(folder)) {
        (Ok(here), Ok(there)) if here == there => true,
        _ => is_gone(),
    }
}

/// Checks that `checkpoints` of a running run still leads to the run's own folder. It does not if its disk is not mounted and
/// the mount point is an empty folder.
///
/// # Errors
/// [`Error::Output`].
pub fn still_own_checkpoints(dir: &Path, run: &str) -> Result<()> {
    let path = dir.join(CHECKPOINTS);
    if owner(&path).is_ok_and(|owner| owner.run == run) {
        return Ok(());
    }
    if fs::symlink_metadata(&path).is_ok_and(|there| there.is_symlink()) {
        let fault = Fault::at(path.display(), "now leads to another folder");
        return Err(Error::output(fault.expected("the run's checkpoints").advice("mount their disk again")));
    }
    own_checkpoints(dir, run)
}

fn owner(checkpoints: &Path) -> io::Result<Owner> {
    let text = bounded::read_own(&checkpoints.join(OWNER), OWNER_BYTES, "the owner of checkpoints")?;
    Ok(serde_json::from_slice(&text)?)
}

/// Creates the folder of a run's checkpoints and writes the owner file into it.
///
/// # Errors
/// [`Error::Output`].
pub fn own_checkpoints(dir: &Path, run: &str) -> Result<()> {
    let path = dir.join(CHECKPOINTS);
    if !path.is_dir() {
        fs::create_dir(&path).map_err(|e| output_error(&path, &e))?;
    }
    let folder = fs::canonicalize(dir).map_err(|e| output_error(dir, &e))?;
    let new = Owner { run: run.to_owned(), folder };
    if owner(&path).is_ok_and(|there| there == new) {
        return Ok(());
    }
    let text = serde_json::to_vec_pretty(&new).map_err(|e| Error::output(Fault::at(OWNER, e.to_string())))?;
    atomic::write(&path.join(OWNER), |out| out.write_all(&text))
}
