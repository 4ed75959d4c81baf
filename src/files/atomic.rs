//! Writes files that are either whole or absent: each is written next to its target, forced to disk, then renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::error::{Error, Fault, Result};

/// Bytes gathered before a write reaches the system.
const BUFFER_BYTES: usize = 1 << 20;

/// Beginning of the name of an unfinished file; random letters follow.
const BEGIN: &str = ".wgpt-";
/// End of that name.
const END: &str = ".tmp";

/// Returns whether `name` is that of a temporary file, which a killed process may have left behind.
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    name.starts_with(BEGIN) && name.ends_with(END)
}

/// Removes the temporary files and folders in `folder` that killed processes have left behind. No other process may
/// write there meanwhile.
pub fn sweep(folder: &Path) {
    // entries that cannot be listed or removed only take space, so errors are ignored
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_temporary) {
            let _ = fs::remove_file(entry.path()).or_else(|_| fs::remove_dir_all(entry.path()));
        }
    }
}

/// Writes the file `path` with the bytes that `fill` writes, and replaces an existing file.
///
/// A reader sees the old file or the new one, never a part: the bytes go to a new file with a random name in the same
/// folder, are forced to disk, and that file is renamed to `path` last. `path` itself is never opened, so a link there
/// is replaced, not followed. On an error the temporary file is removed; a killed process leaves it behind (see
/// [`is_temporary`]).
///
/// # Errors
/// [`Error::Output`] naming `path` if the folder is missing or read-only, the disk is full, or `fill` fails.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    try_write(path, fill).map_err(|e| output_error(path, &e))
}

/// Does what [`write`] does, but returns the system's error.
pub(super) fn try_write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let written = builder().tempfile_in(folder_of(path)).and_then(|temporary| {
        fill_file(temporary.as_file(), fill)?;
        temporary.persist(path).map_err(|e| e.error)
    });
    written.map_err(plain)?;
    sync_folder(path);
    Ok(())
}

/// Replaces `path` with the file or link that `make` makes at the temporary path it gets. Nothing exists at that path
/// before the call. The replacement is atomic, as in [`write`].
///
/// # Errors
/// [`Error::Output`] naming `path`.
pub fn place(path: &Path, make: impl FnMut(&Path) -> io::Result<()>) -> Result<()> {
    let made = builder().make_in(folder_of(path), make);
    made.and_then(|made| made.into_temp_path().persist(path).map_err(|e| e.error))
        .map_err(|e| output_error(path, &plain(e)))?;
    sync_folder(path);
    Ok(())
}

/// Makes temporary files of random names.
fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(BEGIN).suffix(END);
    // the same permissions as any new file: the user's mask decides who may read it
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}

/// Returns the folder of a file. A temporary file there is on the same file system, so the rename is atomic.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes the temporary name from the system's error: it means nothing to a user and differs each time.
fn plain(error: io::Error) -> io::Error {
    match error.get_ref() {
        Some(inner) => {
            let text = inner.to_string();
            let text = text.rsplit_once(" at path ").map_or(text.as_str(), |(what, _)| what);
            io::Error::new(error.kind(), text.to_owned())
        }
        None => error,
    }
}

/// Renames the file `whole`, which is complete and forced to disk, to `path`, and replaces an existing file.
///
/// # Errors
/// [`Error::Output`] naming `path`.
pub fn publish(whole: &Path, path: &Path) -> Result<()> {
    fs::rename(whole, path).map_err(|e| output_error(path, &e))?;
    sync_folder(path);
    Ok(())
}

/// Checks that a file can be made in `folder`: makes and removes one whose name begins with `name`.
///
/// # Errors
/// Returns the system's error if no file can be made there.
pub fn probe(folder: &Path, name: &str) -> io::Result<()> {
    // permissions do not answer this: the superuser, read-only mounts and special file systems have their own rules
    builder().prefix(name).tempfile_in(folder).and_then(tempfile::NamedTempFile::close).map_err(plain)
}

/// Writes `text` to a file that the user names. A device or a pipe is written to; any other file is replaced as by
/// [`write`].
///
/// # Errors
/// [`Error::Output`] naming the file.
pub fn write_named(path: &Path, text: &str) -> Result<()> {
    if path.exists() && !path.is_file() {
        return fs::write(path, text).map_err(|e| output_error(path, &e));
    }
    write(path, |file| file.write_all(text.as_bytes()))
}

/// Returns the error for a failed write to `path`, with advice by the kind of the system's error.
#[must_use]
pub fn output_error(path: &Path, error: &io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "try freeing space or another folder",
        io::ErrorKind::FileTooLarge => "try a larger `ulimit -f` or another file system",
        io::ErrorKind::StaleNetworkFileHandle | io::ErrorKind::NotFound => "bring its disk back, or try another folder",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "try a folder that you may write to",
        _ => "try another folder",
    };
    Error::output(Fault::at(path.display(), format!("cannot be written ({error})")).advice(hint))
}

fn fill_file(file: &File, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    fill(&mut out)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?;
    // without this a crash soon after the rename can leave old or no bytes under the new name
    file.sync_all()
}

/// Forces the rename itself to disk where folders can be synced. A failure is ignored: nothing more could be done.
fn sync_folder(path: &Path) {
    if cfg!(unix) {
        let _ = File::open(folder_of(path)).and_then(|folder| folder.sync_all());
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
        place(&path, |temporary| std::os::unix::fs::symlink("b", temporary)).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("b"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_place_of_a_file_is_replaced_and_not_followed() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let path = dir.path().join("a");
        for name in ["a", "a.tmp", ".wgpt-.tmp", ".wgpt-probe"] {
            symlink(&victim, dir.path().join(name)).unwrap();
        }
        write(&path, |out| out.write_all(b"new")).unwrap();
        probe(dir.path(), ".wgpt-probe").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        // has the permissions that the mask allows, like a file that a shell makes
        fs::write(dir.path().join("usual"), "").unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("a"), mode("usual"));
    }

    #[test]
    fn leftovers_of_killed_processes_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".wgpt-a1B2c3.tmp", "a.tmp", ".wgpt-notes"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        sweep(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
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
        // every write to /dev/full fails
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = fill_file(&full, |out| out.write_all(&[0; 10])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
