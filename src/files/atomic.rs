//! Files that are either whole or not there: written beside the target, forced to disk, then renamed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Fault, Result};

/// Bytes gathered before a write reaches the system.
const BUFFER_BYTES: usize = 1 << 20;

/// How the name of a file ends that is not whole yet.
pub const TEMPORARY: &str = ".tmp";

/// Writes the file `path` with what `fill` puts out, replacing one that is there.
///
/// A reader sees the old file or the new one, never a part: the bytes go to `path` with `.tmp` behind, are forced to
/// disk, and take the name last. On an error the temporary file is removed; one that a killed process left is
/// overwritten by the next write.
///
/// # Errors
/// [`Error::Output`] naming `path` if the folder is missing or read-only, the disk is full, or `fill` fails.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    place(path, |temporary| fill_file(temporary, fill))
}

/// Puts what `make` makes under a temporary name, be it a file or a link, in the place of `path`, as [`write`] does.
/// `make` finds nothing under that name.
///
/// # Errors
/// [`Error::Output`] naming `path`.
pub fn place(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let temporary = temporary(path);
    let _ = fs::remove_file(&temporary);
    let result = make(&temporary).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = result {
        // the first error is the one to tell; a temporary file that cannot be removed either is only litter
        let _ = fs::remove_file(&temporary);
        return Err(output_error(path, &error));
    }
    sync_folder(path);
    Ok(())
}

/// Gives a file that is whole and forced to disk its name, replacing one that is there.
///
/// # Errors
/// [`Error::Output`] naming `path`.
pub fn publish(whole: &Path, path: &Path) -> Result<()> {
    fs::rename(whole, path).map_err(|e| output_error(path, &e))?;
    sync_folder(path);
    Ok(())
}

/// Fails unless a file can be made in `folder`: makes and removes one called `name`.
///
/// # Errors
/// Returns the system's error if the folder takes no file.
pub fn probe(folder: &Path, name: &str) -> io::Result<()> {
    // permissions do not tell: the superuser, read-only mounts and special file systems have rules of their own
    let file = folder.join(name);
    File::create(&file).and_then(|_| fs::remove_file(&file))
}

/// [`write`] for a file that a user names: a device or a pipe is written to, not replaced.
///
/// # Errors
/// [`Error::Output`] naming the file.
pub fn write_named(path: &Path, text: &str) -> Result<()> {
    if path.exists() && !path.is_file() {
        return fs::write(path, text).map_err(|e| output_error(path, &e));
    }
    write(path, |file| file.write_all(text.as_bytes()))
}

/// The error for an output that failed.
#[must_use]
pub fn output_error(path: &Path, error: &io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "try freeing space or another folder",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "try a folder that you may write to",
        _ => "try another folder",
    };
    Error::output(Fault::at(path.display(), format!("cannot be written ({error})")).advice(hint))
}

/// `path` with [`TEMPORARY`] behind: the same folder, hence the same file system, so that the rename is one step.
fn temporary(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(TEMPORARY);
    name.into()
}

fn fill_file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, File::create(path)?);
    fill(&mut out)?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    // without this a crash soon after the rename can leave the new name with old or no bytes
    file.sync_all()
}

/// Forces the rename itself to disk where folders can be synced. A failure loses nothing that is not lost anyway.
fn sync_folder(path: &Path) {
    if cfg!(unix)
        && let Some(folder) = path.parent()
    {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "old and longer").unwrap();
        write(&path, |out| out.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_keeps_the_old_file_and_leaves_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "old").unwrap();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let error = write(&path, |out| out.write_all(b"ne").and(Err(full()))).unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.fault().advice.contains("freeing space"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = write(&dir.path().join("no/a"), |_| Ok(())).unwrap_err();
        assert!(matches!(&error, Error::Output(fault) if fault.place.ends_with("no/a")), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_takes_the_place_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "old").unwrap();
        fs::write(dir.path().join("a.tmp"), "of a process that was killed").unwrap();
        place(&path, |temporary| std::os::unix::fs::symlink("b", temporary)).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("b"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_probe_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        probe(dir.path(), "probe").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(probe(&dir.path().join("no"), "probe").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error() {
        // /dev/full takes no byte
        let error = fill_file(Path::new("/dev/full"), |out| out.write_all(&[0; 10])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
