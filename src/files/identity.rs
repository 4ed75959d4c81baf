//! Checks whether a path still leads to the file or folder that was opened there.

use std::fs::Metadata;
use std::io;
use std::path::Path;

/// The device and inode number of a file or folder, which it keeps when it is renamed.
///
/// On Windows all identities are equal: the system reports no such numbers, nor can a folder with open files be
/// renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    #[cfg(unix)]
    device: u64,
    #[cfg(unix)]
    inode: u64,
}

impl Identity {
    /// Returns the identity of the file or folder with this metadata.
    #[must_use]
    pub fn of(there: &Metadata) -> Self {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            Self { device: there.dev(), inode: there.ino() }
        }
        #[cfg(not(unix))]
        {
            let _ = there;
            Self {}
        }
    }

    /// Returns the identity of the folder that a path leads to. Links are followed.
    ///
    /// # Errors
    /// The system's error.
    pub fn of_folder(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|there| Self::of(&there))
    }

    /// Returns the identity of the file at `path`. For a link it is the link's own.
    ///
    /// # Errors
    /// The system's error.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        std::fs::symlink_metadata(path).map(|there| Self::of(&there))
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_renamed_folder_keeps_its_identity_and_another_folder_has_a_different_one() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&first).unwrap();
        let own = Identity::of_folder(&first).unwrap();
        fs::rename(&first, &second).unwrap();
        fs::create_dir(&first).unwrap();
        assert_eq!(Identity::of_folder(&second).unwrap(), own);
        assert_ne!(Identity::of_folder(&first).unwrap(), own);
        std::os::unix::fs::symlink("b", dir.path().join("link")).unwrap();
        assert_eq!(Identity::of_folder(&dir.path().join("link")).unwrap(), own);
        assert_ne!(Identity::of_file(&dir.path().join("link")).unwrap(), own);
    }
}
