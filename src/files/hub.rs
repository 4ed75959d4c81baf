//! Hugging Face's cache on disk, in the layout of the Python library, so that both share its files.
//!
//! `models--OWNER--NAME/` and `datasets--OWNER--NAME/` contain `blobs/CHECKSUM`, `refs/main` (the commit that the
//! branch points to) and `snapshots/COMMIT/FILE`, which are links into `blobs`.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Fault, Result};
use crate::files::atomic::{self, output_error};
use crate::files::lock::{Lock, Refusal};
use crate::files::open;

/// OpenAI's models by their short names.
const OPENAI: [&str; 4] = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"];

/// Largest size of a file in `refs`: a commit has 40 bytes.
const REF_BYTES: u64 = 200;

/// Snapshot for files that the user adds by hand.
pub const BY_HAND: &str = "by-hand";

/// Returns the cache's folder: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `XDG_CACHE_HOME/huggingface`, else in
/// `~/.cache/huggingface`. `None` if the home folder is unknown.
#[must_use]
pub fn cache() -> Option<PathBuf> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    cache_by(&variable, env::home_dir())
}

/// Does what [`cache`] does, with the given environment variables and home folder.
#[must_use]
pub fn cache_by(variable: &dyn Fn(&str) -> Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    if let Some(cache) = variable("HF_HUB_CACHE") {
        return Some(cache);
    }
    let home = variable("HF_HOME")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| home.map(|home| home.join(".cache").join("huggingface")));
    home.map(|home| home.join("hub"))
}

/// Returns whether `name` can only be a file in a folder: it consists of letters, digits, `-`, `_` and `.`, and does
/// not begin with `.`.
#[must_use]
pub fn is_plain_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.chars().all(plain)
}

/// Returns whether `name` may be a model on the hub: `NAME` or `OWNER/NAME`.
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.split('/').count() <= 2 && name.split('/').all(is_plain_name)
}

/// Kind of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Weights.
    Model,
    /// A data set.
    Dataset,
}

/// A repository in the cache.
#[derive(Debug, Clone)]
pub struct Repository {
    /// The cache's folder.
    root: PathBuf,
    folder: PathBuf,
}

impl Repository {
    /// Names the repository `OWNER/NAME`, or `NAME`, in the cache `root`. It need not exist.
    #[must_use]
    pub fn new(root: &Path, kind: Kind, name: &str) -> Self {
        let kind = if kind == Kind::Model { "models" } else { "datasets" };
        let folder = root.join(format!("{kind}--{}", name.replace('/', "--")));
        Self { root: root.to_owned(), folder }
    }

    /// Names the repository with this folder.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self { root: folder.parent().unwrap_or(folder).to_owned(), folder: folder.to_owned() }
    }

    /// Returns the folder of a snapshot for which `is_whole` holds: the one that `refs/main` names, else the youngest,
    /// including those added by hand.
    #[must_use]
    pub fn snapshot(&self, is_whole: impl Fn(&Path) -> bool) -> Option<PathBuf> {
        let snapshots = self.folder.join("snapshots");
        if let Some(dir) = self.main().map(|name| snapshots.join(name)).filter(|dir| is_whole(dir)) {
            return Some(dir);
        }
        let all = fs::read_dir(&snapshots).ok()?.flatten().map(|entry| entry.path()).filter(|dir| is_whole(dir));
        all.max_by_key(|dir| (fs::metadata(dir).and_then(|meta| meta.modified()).ok(), dir.clone()))
    }

    /// Returns the name of the snapshot in `refs/main`. A ref must not lead out of the cache, so this is `None` unless
    /// it is a plain name in a plain file of at most 200 bytes; neither the file nor `refs` may be a link.
    #[must_use]
    pub fn main(&self) -> Option<String> {
        let refs = self.folder.join("refs");
        open::check_folder(&refs).ok()?;
        let file = open::no_follow(&refs.join("main"), OpenOptions::new().read(true)).ok()?;
        let mut text = String::new();
        file.take(REF_BYTES + 1).read_to_string(&mut text).ok()?;
        let name = text.trim();
        (text.len() as u64 <= REF_BYTES && is_plain_name(name)).then(|| name.to_owned())
    }

    /// Returns the folder for files that the user adds by hand.
    #[must_use]
    pub fn by_hand(&self) -> PathBuf {
        self.folder.join("snapshots").join(BY_HAND)
    }

    /// Returns the folder of file contents. It may be a link that the user made to a disk with more space.
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        self.folder.join("blobs")
    }

    /// Returns the file that contains, or will contain, the contents with this checksum.
    #[must_use]
    pub fn blob(&self, checksum: &str) -> PathBuf {
        self.blobs().join(checksum)
    }

    /// Returns the file in which a download of these contents grows.
    #[must_use]
    pub fn incomplete(&self, checksum: &str) -> PathBuf {
        self.blobs().join(format!("{checksum}.incomplete"))
    }

    /// Returns a file's path in a snapshot.
    #[must_use]
    pub fn pointer(&self, commit: &str, path: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit).join(path)
    }

    /// Locks a blob against other processes until the result is dropped, and makes the folder for it. Returns `None` on
    /// a file system without locks, where two processes may do the same work twice.
    ///
    /// # Errors
    /// [`crate::error::Error::Locked`] if another process fetches the blob; [`crate::error::Error::Output`].
    pub fn lock(&self, checksum: &str) -> Result<Option<Lock>> {
        let folder = self.root.join(".locks").join(self.folder.file_name().unwrap_or_default());
        make_folder(&folder)?;
        make_folder(&self.blobs())?;
        let path = folder.join(format!("{checksum}.lock"));
        match Lock::take(&path, Duration::ZERO) {
            Ok(lock) => Ok(Some(lock)),
            Err(Refusal::Unsupported(_)) => Ok(None),
            Err(refusal) => Err(refusal.error(&path, |_| {
                Fault::at(path.display(), "another process fetches this file").advice("wait for it")
            })),
        }
    }

    /// Adds an existing blob to a snapshot.
    ///
    /// # Errors
    /// [`crate::error::Error::Output`].
    pub fn link(&self, checksum: &str, commit: &str, path: &str) -> Result<()> {
        let pointer = self.pointer(commit, path);
        let blob = self.blob(checksum);
        self.make_folders(pointer.parent().unwrap_or(&self.folder))?;
        // from snapshots/COMMIT/a/b the blobs are four folders up
        let target = format!("{}blobs/{checksum}", "../".repeat(2 + path.matches('/').count()));
        atomic::place(&pointer, |temporary| {
            symlink(Path::new(&target), temporary)
                .or_else(|_| fs::hard_link(&blob, temporary))
                .or_else(|_| fs::copy(&blob, temporary).map(drop))
        })
    }

    /// Records which snapshot is the newest.
    ///
    /// # Errors
    /// [`crate::error::Error::Output`].
    pub fn set_main(&self, commit: &str) -> Result<()> {
        let folder = self.folder.join("refs");
        self.make_folders(&folder)?;
        atomic::write(&folder.join("main"), |out| out.write_all(commit.as_bytes()))
    }

    /// Makes a folder of the repository and its parents. A link in the place of any of them is not followed.
    fn make_folders(&self, folder: &Path) -> Result<()> {
        make_folder(&self.folder)?;
        let mut made = self.folder.clone();
        for name in folder.strip_prefix(&self.folder).unwrap_or(Path::new("")) {
            made.push(name);
            open::make_folder(&made).map_err(|e| output_error(&made, &e))?;
        }
        Ok(())
    }
}

/// Returns the folder of a model's snapshot in `cache`; `None` if the cache does not have the model.
#[must_use]
pub fn model(cache: &Path, name: &str) -> Option<PathBuf> {
    let full = OPENAI.contains(&name).then(|| format!("openai-community/{name}"));
    let names = full.iter().map(String::as_str).chain([name]);
    names.map(|name| Repository::new(cache, Kind::Model, name)).find_map(|repository| model_in(&repository))
}

/// Returns the snapshot of a repository that has a model's configuration and weights.
#[must_use]
pub fn model_in(repository: &Repository) -> Option<PathBuf> {
    let weights = ["model.safetensors", "model.safetensors.index.json"];
    repository.snapshot(|dir| dir.join("config.json").exists() && weights.iter().any(|name| dir.join(name).exists()))
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| output_error(path, &e))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts a file into a snapshot and returns the snapshot.
    fn put(repository: &Repository, commit: &str, file: &str) -> PathBuf {
        let path = repository.pointer(commit, file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "{}").unwrap();
        path.parent().unwrap().to_owned()
    }

    #[test]
    fn main_wins_else_the_youngest_and_a_ref_leads_nowhere_else() {
        for kind in [Kind::Model, Kind::Dataset] {
            let cache = tempfile::tempdir().unwrap();
            let repository = Repository::new(cache.path(), kind, "owner/name");
            let find = || repository.snapshot(|dir| dir.join("a.bin").is_file());
            assert_eq!(find(), None);
            let second = put(&repository, "bbb", "a.bin");
            std::thread::sleep(Duration::from_millis(20));
            let (first, _) = (put(&repository, "aaa", "a.bin"), put(&repository, "half", "b.bin"));
            assert_eq!(find().as_ref(), Some(&first), "the youngest that is whole");
            for (main, dir) in [("bbb\n", &second), ("aaa", &first), ("half", &first), ("gone", &first)] {
                repository.set_main(main).unwrap();
                assert_eq!(find().as_ref(), Some(dir), "{main}");
            }
            // the file exists at the places that these refs lead to
            let astray = put(&Repository::at(&cache.path().join("other")), "x", "a.bin");
            fs::write(repository.folder.join("snapshots/a.bin"), "").unwrap();
            for main in ["../../other/snapshots/x", astray.to_str().unwrap(), "..", ".", "", "aaa/../bbb"] {
                repository.set_main(main).unwrap();
                assert_eq!(find().as_ref(), Some(&first), "{main}");
            }
            repository.set_main(&format!("bbb{}", "\n".repeat(197))).unwrap();
            assert_eq!(repository.main().as_deref(), Some("bbb"));
            repository.set_main(&format!("bbb{}", "\n".repeat(198))).unwrap();
            assert_eq!(repository.main(), None, "a ref of more than 200 bytes");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_in_the_place_of_refs_and_snapshots_are_not_followed() {
        use std::os::unix::fs::symlink;
        let cache = tempfile::tempdir().unwrap();
        let repository = Repository::new(cache.path(), Kind::Model, "owner/name");
        let (second, first) = (put(&repository, "bbb", "a.bin"), put(&repository, "aaa", "a.bin"));
        assert!(first.is_dir() && second.is_dir());
        let outside = cache.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("main"), "bbb").unwrap();
        let refs = repository.folder.join("refs");
        symlink(&outside, &refs).unwrap();
        assert_eq!(repository.main(), None);
        assert_eq!(repository.set_main("ccc").unwrap_err().exit_code(), 6);
        fs::remove_file(&refs).unwrap();
        fs::create_dir(&refs).unwrap();
        symlink(outside.join("main"), refs.join("main")).unwrap();
        assert_eq!(repository.main(), None);
        repository.set_main("ccc").unwrap();
        assert_eq!(repository.main().as_deref(), Some("ccc"), "the link is replaced");
        assert_eq!(fs::read_to_string(outside.join("main")).unwrap(), "bbb");
        fs::remove_file(refs.join("main")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(refs.join("main")).status().unwrap().success());
        assert_eq!(repository.main(), None, "a pipe in the place of the ref does not block");
        symlink(&outside, repository.folder.join("snapshots/ddd")).unwrap();
        assert_eq!(repository.link("abc", "ddd", "a.bin").unwrap_err().exit_code(), 6);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }

    #[test]
    fn models_are_found_by_their_names() {
        let cache = tempfile::tempdir().unwrap();
        let whole = |name: &str| {
            let repository = Repository::new(cache.path(), Kind::Model, name);
            put(&repository, "aaa", "config.json");
            put(&repository, "aaa", "model.safetensors")
        };
        assert_eq!(model(cache.path(), "gpt2"), None);
        let (openai, own) = (whole("openai-community/gpt2"), whole("somebody/tiny"));
        for (name, dir) in [("gpt2", &openai), ("openai-community/gpt2", &openai), ("somebody/tiny", &own)] {
            assert_eq!(model(cache.path(), name).as_ref(), Some(dir));
        }
        assert_eq!(model_in(&Repository::at(&cache.path().join("models--somebody--tiny"))), Some(own));
        // a configuration alone is no model
        put(&Repository::new(cache.path(), Kind::Model, "gpt2-medium"), "a", "config.json");
        assert_eq!(model(cache.path(), "gpt2-medium"), None);
    }

    #[test]
    fn blobs_are_locked_and_linked() {
        let cache = tempfile::tempdir().unwrap();
        let repository = Repository::new(cache.path(), Kind::Dataset, "owner/name");
        let lock = repository.lock("abc").unwrap();
        assert_eq!(repository.lock("abc").unwrap_err().exit_code(), 7);
        drop(lock);
        repository.lock("abc").unwrap();
        fs::write(repository.blob("abc"), "contents").unwrap();
        for _ in 0..2 {
            repository.link("abc", "ccc", "data/a.bin").unwrap();
            assert_eq!(fs::read_to_string(repository.pointer("ccc", "data/a.bin")).unwrap(), "contents");
        }
    }

    #[test]
    fn names() {
        assert!(is_name("gpt2") && is_name("openai-community/gpt2") && is_name("a_b.c/d-e"));
        for bad in ["", "../gpt2", "a/b/c", "a//b", "/a", "a b"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
