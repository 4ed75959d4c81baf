//! Identities of data files, with which a later run recognises them: size and times, else the BLAKE3 of their bytes.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::data::prepare::manifest::{MANIFEST_FILE, MAX_MANIFEST_BYTES, ShardEntry};
use crate::data::tokens::HEADER_BYTES;
use crate::files::{bounded, open, path_text};

/// Bytes hashed between two checks of the stop flag.
const PIECE_BYTES: usize = 1 << 20;

/// The state of a data file before it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileContents {
    /// Absolute path.
    #[serde(with = "path_text::one")]
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    /// Time of the last write, in seconds and nanoseconds since 1970. Programs may set it. Empty if the system has
    /// none.
    pub modified: String,
    /// Time of the last change of contents or metadata, times included. Empty if the system has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub changed: String,
    /// BLAKE3 of the bytes, in hexadecimal digits, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
}

/// The result of reading a whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hashed {
    /// The BLAKE3 of its bytes, in hexadecimal digits.
    Done(String),
    /// No hash: the size or the times differed from the description, before or after reading.
    Changed,
    /// No hash: the stop flag was set.
    Stopped,
}

impl FileContents {
    /// Describes a file by its metadata.
    #[must_use]
    pub fn new(path: &Path, metadata: &Metadata) -> Self {
        Self {
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            bytes: metadata.len(),
            modified: metadata.modified().map_or_else(|_| String::new(), since_1970),
            changed: changed(metadata),
            blake3: None,
        }
    }

    /// Describes the file `path`. `None` if it does not exist or is not a regular file.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().filter(Metadata::is_file).map(|metadata| Self::new(path, &metadata))
    }

    /// Returns whether size and time of the last write are the same.
    #[must_use]
    pub fn is_as_written(&self, other: &Self) -> bool {
        self.bytes == other.bytes && self.modified == other.modified && !self.modified.is_empty()
    }

    /// Returns whether size and both times are the same. If a program has reset the time of the last write, the time of
    /// the last change reveals it, on systems that have one.
    #[must_use]
    pub fn is_untouched(&self, other: &Self) -> bool {
        self.is_as_written(other) && self.changed == other.changed
    }

    /// Reads the whole file and returns the hash of its bytes. Compares the file with this description before and
    /// after.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn hash(&self, stop: &AtomicBool) -> io::Result<Hashed> {
        let mut file = open::input(&self.path)?;
        let is_same =
            |file: &File| file.metadata().map(|metadata| self.is_untouched(&Self::new(&self.path, &metadata)));
        if !is_same(&file)? {
            return Ok(Hashed::Changed);
        }
        let hash = digest(&mut file, &|| stop.load(Ordering::Relaxed))?;
        Ok(match hash {
            None => Hashed::Stopped,
            Some(hash) if is_same(&file)? => Hashed::Done(hash),
            Some(_) => Hashed::Changed,
        })
    }
}

/// Fills in missing hashes from the `dataset.json` next to the shards. A shard that is younger than `dataset.json`, or
/// of another size, is not the recorded one and gets no hash.
pub fn fill_prepared_hashes(files: &mut [FileContents]) {
    let mut manifests = BTreeMap::new();
    for file in files.iter_mut().filter(|file| file.blake3.is_none()) {
        let Some(folder) = file.path.parent() else { continue };
        let manifest =
            manifests.entry(folder.to_owned()).or_insert_with(|| FolderManifest::read(folder).unwrap_or_default());
        file.blake3 = manifest.blake3_of(file);
    }
}

/// The shards that a `dataset.json` lists, and the time at which it was written.
#[derive(Default)]
struct FolderManifest {
    written: Option<SystemTime>,
    shards: BTreeMap<String, ShardEntry>,
}

impl FolderManifest {
    /// Reads a folder's manifest. `None` if it is broken: other readers report that.
    fn read(folder: &Path) -> Option<Self> {
        #[derive(Deserialize)]
        struct Shards {
            shards: Vec<ShardEntry>,
        }
        let path = folder.join(MANIFEST_FILE);
        let metadata = std::fs::metadata(&path).ok().filter(Metadata::is_file)?;
        let text = bounded::read(&path, MAX_MANIFEST_BYTES, "the manifest of a data set").ok()?;
        let Shards { shards } = serde_json::from_slice(&text).ok()?;
        let shards = shards.into_iter().map(|shard| (shard.file.clone(), shard)).collect();
        Some(Self { written: metadata.modified().ok(), shards })
    }

    fn blake3_of(&self, file: &FileContents) -> Option<String> {
        let recorded = self.shards.get(file.path.file_name()?.to_str()?)?;
        let bytes = recorded.tokens.checked_mul(2)?.checked_add(HEADER_BYTES)?;
        let changed = last_change(&std::fs::metadata(&file.path).ok()?)?;
        let hash = recorded.blake3.as_ref().filter(|hash| is_hash(hash))?;
        (bytes == file.bytes && changed <= self.written?).then(|| hash.clone())
    }
}

/// Returns the time at which a file was last written or replaced. A copy that keeps the time of the last write still
/// has a later time of change, which programs cannot reset. Systems other than Unix only have the time of the last
/// write.
fn last_change(metadata: &Metadata) -> Option<SystemTime> {
    let written = metadata.modified().ok()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let (seconds, nanos) = (u64::try_from(metadata.ctime()).ok()?, u32::try_from(metadata.ctime_nsec()).ok()?);
        let changed = SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::new(seconds, nanos))?;
        Some(written.max(changed))
    }
    #[cfg(not(unix))]
    Some(written)
}

/// Returns whether a text is a BLAKE3 in lower-case hexadecimal digits.
#[must_use]
pub fn is_hash(text: &str) -> bool {
    text.len() == 2 * blake3::OUT_LEN && text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns the BLAKE3 of a file, in hexadecimal digits.
pub(crate) fn blake3_of(path: &Path) -> io::Result<String> {
    digest(&mut open::input(path)?, &|| false).map(Option::unwrap_or_default)
}

/// Returns the BLAKE3 of all bytes of a reader, in hexadecimal digits; `None` if `stops` returned true.
fn digest(from: &mut dyn Read, stops: &dyn Fn() -> bool) -> io::Result<Option<String>> {
    let (mut hasher, mut piece) = (blake3::Hasher::new(), vec![0; PIECE_BYTES]);
    while !stops() {
        match from.read(&mut piece) {
            Ok(0) => return Ok(Some(hasher.finalize().to_hex().to_string())),
            Ok(n) => hasher.update(&piece[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
    }
    Ok(None)
}

fn since_1970(time: SystemTime) -> String {
    let (sign, gone) = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(gone) => ("", gone),
        Err(before) => ("-", before.duration()),
    };
    format!("{sign}{}.{:09}", gone.as_secs(), gone.subsec_nanos())
}

/// Returns the time of the last change of a file's inode, which programs cannot set.
#[cfg(unix)]
fn changed(metadata: &Metadata) -> String {
    use std::os::unix::fs::MetadataExt as _;
    format!("{}.{:09}", metadata.ctime(), metadata.ctime_nsec())
}

#[cfg(not(unix))]
fn changed(_: &Metadata) -> String {
    String::new()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    fn go() -> AtomicBool {
        AtomicBool::new(false)
    }

    #[test]
    fn a_file_that_is_written_to_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"abc").unwrap();
        let before = FileContents::of(&path).unwrap();
        let hash = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        assert_eq!(before.hash(&go()).unwrap(), Hashed::Done(hash.into()));
        assert_eq!(blake3_of(&path).unwrap(), hash);
        assert_eq!(before.hash(&AtomicBool::new(true)).unwrap(), Hashed::Stopped);
        assert!(is_hash(hash) && !is_hash(&hash[1..]) && !is_hash(&hash.to_uppercase()));

        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH - Duration::from_millis(1500)).unwrap();
        let touched = FileContents::of(&path).unwrap();
        assert_eq!((touched.modified.as_str(), touched.bytes), ("-1.500000000", 3));
        assert!(!touched.is_as_written(&before));
        assert_eq!(before.hash(&go()).unwrap(), Hashed::Changed);
        let read: FileContents = serde_json::from_str(&serde_json::to_string(&touched).unwrap()).unwrap();
        assert_eq!(read, touched);
        assert!(FileContents::of(dir.path()).is_none() && FileContents::of(&dir.path().join("b")).is_none());
    }

    /// A program resets the time of the last write.
    #[cfg(unix)]
    #[test]
    fn a_file_whose_time_was_set_back_is_not_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"abc").unwrap();
        let before = FileContents::of(&path).unwrap();
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&path, b"abd").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        let after = FileContents::of(&path).unwrap();
        assert!(after.is_as_written(&before) && !after.is_untouched(&before), "{before:?} {after:?}");
    }

    #[test]
    fn a_recorded_hash_is_used_for_the_recorded_shard_alone() {
        let dir = tempfile::tempdir().unwrap();
        let shard = dir.path().join("x_train_000001.bin");
        crate::data::write_shard(&shard, &[1, 2, 3]).unwrap();
        let hash = "0".repeat(64);
        let manifest = |tokens: u32, hash: &str| {
            let shards = format!(r#"[{{"file": "x_train_000001.bin", "tokens": {tokens}, "blake3": "{hash}"}}]"#);
            fs::write(dir.path().join(MANIFEST_FILE), format!(r#"{{"tokenizer": "gpt2", "shards": {shards}}}"#))
                .unwrap();
            let mut files = [FileContents::of(&shard).unwrap()];
            fill_prepared_hashes(&mut files);
            files[0].blake3.clone()
        };
        assert_eq!(manifest(3, &hash), Some(hash.clone()));
        assert_eq!(manifest(4, &hash), None, "of another size");
        assert_eq!(manifest(3, "z"), None, "no hash");
        assert_eq!(manifest(u32::MAX, &hash), None);
        assert_eq!(manifest(3, &hash), Some(hash.clone()));
        #[cfg(unix)]
        {
            // another shard with old times, moved there after the manifest was written
            std::thread::sleep(Duration::from_millis(20));
            let other = dir.path().join("other");
            crate::data::write_shard(&other, &[4, 5, 6]).unwrap();
            File::options().write(true).open(&other).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
            fs::rename(&other, &shard).unwrap();
            let mut files = [FileContents::of(&shard).unwrap()];
            fill_prepared_hashes(&mut files);
            assert_eq!(files[0].blake3, None, "another shard");
        }
        let young = SystemTime::now() + Duration::from_secs(60);
        File::options().write(true).open(&shard).unwrap().set_modified(young).unwrap();
        assert_eq!(manifest(3, &hash), None, "written after the manifest");
    }
}
