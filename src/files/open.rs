//! Opens files of the expected kind: a link, a pipe or a device in the place of a file is refused before anything is
//! read from it or written to it.

use std::fmt;
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io;
use std::path::Path;

use crate::error::Fault;
use crate::files::atomic;

/// Error for something other than a plain file in the place of a file. Holds its name: `a pipe`.
#[derive(Debug, thiserror::Error)]
#[error("is {0}, expected a file")]
struct NoFile(&'static str);

/// Opens a file that the user or a model names, for reading. Links are followed, because the user's data may be
/// anywhere and the hub's cache consists of links.
///
/// # Errors
/// The system's error; [`io::ErrorKind::IsADirectory`] for a folder and [`io::ErrorKind::InvalidInput`] for a pipe, a
/// socket or a device, which the error names. None of these is opened, so a pipe without a writer does not block.
pub fn input(path: &Path) -> io::Result<File> {
    plain(&fs::metadata(path)?)?;
    let file = options(OpenOptions::new().read(true), false).open(path)?;
    plain(&file.metadata()?)?;
    Ok(file)
}

/// Returns the fault for an input at `place` that [`input`] could not open or that cannot be read.
#[must_use]
pub fn fault(place: impl fmt::Display, error: &io::Error) -> Fault {
    refusal(&place, error).unwrap_or_else(|| match error.kind() {
        io::ErrorKind::NotFound => Fault::at(place, "no such file or folder"),
        _ => Fault::at(place, format!("cannot be read ({error})")),
    })
}

/// Returns the fault for an input at `place` that was refused because of its kind; `None` for any other error.
#[must_use]
pub fn refusal(place: impl fmt::Display, error: &io::Error) -> Option<Fault> {
    let NoFile(what) = error.get_ref()?.downcast_ref()?;
    let fault = Fault::at(place, format!("is {what}")).expected("a file");
    let is_folder = error.kind() == io::ErrorKind::IsADirectory;
    Some(if is_folder { fault } else { fault.advice("try storing its contents in a file first") })
}

/// Opens a file in a folder that may come from elsewhere, with the options `how`. It must be a plain file: a link in
/// its place is not followed, wherever it leads.
///
/// # Errors
/// Those of [`input`]; [`io::ErrorKind::InvalidInput`] for a link.
pub fn no_follow(path: &Path, how: &OpenOptions) -> io::Result<File> {
    match fs::symlink_metadata(path) {
        Ok(there) => plain(&there)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let file = options(&mut how.clone(), true).open(path)?;
    plain(&file.metadata()?)?;
    Ok(file)
}

/// Checks that `path` is a folder itself, not a link to one.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] if nothing exists there, [`io::ErrorKind::NotADirectory`] if it is not a folder.
pub fn check_folder(path: &Path) -> io::Result<()> {
    let there = fs::symlink_metadata(path)?.file_type();
    if there.is_dir() {
        return Ok(());
    }
    let what = if there.is_file() { "a file" } else { kind(there) };
    Err(io::Error::new(io::ErrorKind::NotADirectory, format!("is {what}, expected a folder")))
}

/// Makes a folder unless it exists. An existing one must pass [`check_folder`].
///
/// # Errors
/// Those of [`check_folder`]; the system's error.
pub fn make_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_folder(path),
        made => made,
    }
}

/// Checks that the metadata is that of a plain file: not of a folder, link, pipe, socket or device.
///
/// # Errors
/// [`io::ErrorKind::IsADirectory`] for a folder, [`io::ErrorKind::InvalidInput`] for anything else.
pub fn plain(there: &Metadata) -> io::Result<()> {
    let there = there.file_type();
    if there.is_file() {
        return Ok(());
    }
    let error = if there.is_dir() { io::ErrorKind::IsADirectory } else { io::ErrorKind::InvalidInput };
    Err(io::Error::new(error, NoFile(kind(there))))
}

/// Opens a file as [`no_follow`] does, to change it. If the file has a second name (a hard link), which may be outside
/// its folder, it is first replaced by a copy, so that the change does not reach the other name.
///
/// # Errors
/// Those of [`no_follow`]; the system's error if the copy cannot be written.
pub fn unshared(path: &Path, how: &OpenOptions) -> io::Result<File> {
    let file = no_follow(path, how)?;
    if names(&file.metadata()?) <= 1 {
        return Ok(file);
    }
    let mut source = no_follow(path, OpenOptions::new().read(true))?;
    atomic::try_write(path, |out| io::copy(&mut source, out).map(drop))?;
    no_follow(path, how)
}

/// Returns the number of names (hard links) of an open file: 0 once it was removed, 1 where the system does not report
/// it.
#[must_use]
pub fn names(there: &Metadata) -> u64 {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        there.nlink()
    }
    #[cfg(not(unix))]
    {
        let _ = there;
        1
    }
}

/// Returns the name, for messages, of something that is not a plain file.
fn kind(there: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        if there.is_fifo() {
            return "a pipe";
        } else if there.is_socket() {
            return "a socket";
        } else if there.is_block_device() || there.is_char_device() {
            return "a device";
        }
    }
    if there.is_symlink() {
        "a link"
    } else if there.is_dir() {
        "a folder"
    } else {
        "not a plain file"
    }
}

/// Adds the flags with which the system does not follow a link at the path's end (if `own`), and does not wait for a
/// pipe that has taken the file's place since the check.
#[cfg(unix)]
fn options(how: &mut OpenOptions, own: bool) -> &OpenOptions {
    use rustix::fs::OFlags;
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = if own { OFlags::NONBLOCK | OFlags::NOFOLLOW } else { OFlags::NONBLOCK };
    how.custom_flags(flags.bits().cast_signed())
}

#[cfg(windows)]
fn options(how: &mut OpenOptions, own: bool) -> &OpenOptions {
    use std::os::windows::fs::OpenOptionsExt as _;
    /// `FILE_FLAG_OPEN_REPARSE_POINT`: opens the link itself, which is then refused because it is not a plain file.
    const THE_LINK_ITSELF: u32 = 0x0020_0000;
    if own { how.custom_flags(THE_LINK_ITSELF) } else { how }
}

#[cfg(not(any(unix, windows)))]
fn options(how: &mut OpenOptions, _: bool) -> &OpenOptions {
    how
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Fills a folder with an entry of each kind. Returns each that is not a file and its name in errors.
    fn things(dir: &Path) -> [(&'static str, &'static str); 5] {
        fs::write(dir.join("file"), "text").unwrap();
        fs::create_dir(dir.join("folder")).unwrap();
        symlink("file", dir.join("link")).unwrap();
        symlink("nowhere", dir.join("dangling")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(dir.join("pipe")).status().unwrap();
        assert!(made.success());
        let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
        symlink("/dev/zero", dir.join("device")).unwrap();
        [
            ("folder", "a folder"),
            ("pipe", "a pipe"),
            ("socket", "a socket"),
            ("device", "a device"),
            ("dangling", "No such file"),
        ]
    }

    #[test]
    fn pipes_devices_and_folders_are_refused_by_kind_before_reading() {
        let dir = tempfile::tempdir().unwrap();
        for (name, what) in things(dir.path()) {
            let error = input(&dir.path().join(name)).unwrap_err();
            assert!(error.to_string().contains(what), "{name}: {error}");
            let fault = fault(name, &error).to_string();
            assert!(
                fault.starts_with(&format!("{name}: ")) && fault.to_lowercase().contains(&what.to_lowercase()),
                "{fault}"
            );
            assert_eq!(fault.contains("in a file first"), ["pipe", "socket", "device"].contains(&name), "{fault}");
        }
        for name in ["file", "link"] {
            let mut text = String::new();
            input(&dir.path().join(name)).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "text", "{name}");
        }
    }

    #[test]
    fn a_link_in_the_place_of_a_file_of_our_own_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let hows = [
            OpenOptions::new().read(true).clone(),
            OpenOptions::new().write(true).create(true).truncate(true).clone(),
            OpenOptions::new().append(true).create(true).clone(),
        ];
        let all = things(dir.path()).map(|(name, _)| name);
        for how in &hows {
            for name in all.into_iter().chain(["link"]) {
                assert!(no_follow(&dir.path().join(name), how).is_err(), "{name} {how:?}");
            }
            no_follow(&dir.path().join("file"), how).unwrap();
        }
        let error = no_follow(&dir.path().join("link"), &hows[0]).unwrap_err();
        assert_eq!(error.to_string(), "is a link, expected a file");
        assert!(!dir.path().join("nowhere").exists());
        check_folder(&dir.path().join("folder")).unwrap();
        symlink("folder", dir.path().join("to")).unwrap();
        assert_eq!(make_folder(&dir.path().join("to")).unwrap_err().to_string(), "is a link, expected a folder");
        make_folder(&dir.path().join("new")).unwrap();
        make_folder(&dir.path().join("new")).unwrap();
    }
}
