//! `wgpt data fetch`: downloads data sets and weights from the Hugging Face hub into the cache that Python's library
//! uses.
//!
//! A file grows as `blobs/CHECKSUM.incomplete`, resumes after an interruption with a range request, and gets its final
//! name only when its size and checksum are those that the hub reports. [`catalog`] lists the repository of each name.

mod address;
mod body;
pub mod catalog;
mod download;
mod hub;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use body::Patience;
pub use catalog::{Entry, Files, Kind};
use download::Download;
use hub::{Client, Failure, Listed, Meta};

use crate::error::{Error, Fault, Result};
use crate::files::atomic;
use crate::files::disk::free_bytes;
use crate::files::hub::{Repository, cache_by};
use crate::units;

/// A hub and the cache to fetch into.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Address of the hub or of a mirror.
    pub endpoint: String,
    /// Folder of the cache.
    pub cache: PathBuf,
    /// Access token for repositories that require one. It is sent to the endpoint only.
    pub token: Option<String>,
    /// Whether to use the cache only, without the network.
    pub offline: bool,
    /// Wait after the first failure; it doubles with each consecutive failure.
    pub pause: Duration,
    /// Longest wait for a connection, a response, or the next bytes.
    pub timeout: Duration,
    /// Longest time at less than 1 KiB per second. After that, the rest of the file is requested again.
    pub stall: Duration,
}

/// Receives the progress of a fetch.
pub trait FetchObserver {
    /// A file starts, of whose `size` bytes `done` are already present.
    fn file_started(&mut self, path: &str, done: u64, size: u64);
    /// The current file now has `done` bytes.
    fn progressed(&mut self, done: u64);
    /// A request failed for the reason `text` and will be retried.
    fn retrying(&mut self, text: &str);
}

/// The result of a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The folder with all files under their names.
    pub folder: PathBuf,
    /// Paths of the files in the repository.
    pub files: Vec<String>,
    /// Bytes received over the network.
    pub received: u64,
}

impl Hub {
    /// Returns the hub that the environment configures: `HF_ENDPOINT`, `HF_HOME` or `HF_HUB_CACHE`, `HF_TOKEN`,
    /// `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is neither a home folder nor a variable for the cache, or `HF_ENDPOINT` is not a web
    /// address.
    pub fn from_env() -> Result<Self> {
        Self::from_vars(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()), std::env::home_dir())
    }

    fn from_vars(var: &dyn Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Result<Self> {
        let cache = cache_by(&|name| var(name).map(PathBuf::from), home).ok_or_else(|| {
            let fault = Fault::at("HF_HOME", "no home folder").expected("a place for the cache");
            Error::usage(fault.advice("try HF_HOME=DIR"))
        })?;
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let is_address = address::read(&endpoint).is_ok_and(|url| matches!(url.scheme(), "https" | "http"));
        if !is_address {
            let fault = Fault::at("HF_ENDPOINT", "").expected("an https address");
            return Err(Error::usage(fault.found(format!("`{}`", endpoint.escape_debug()))));
        }
        let offline = var("HF_HUB_OFFLINE")
            .is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true"));
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache,
            token: var("HF_TOKEN").map(|token| token.trim().to_owned()),
            offline,
            pause: Duration::from_millis(500),
            timeout: Duration::from_secs(30),
            stall: Duration::from_secs(60),
        })
    }

    /// Returns the folder in the cache with an entry's files, if all required files are present. Does not use the
    /// network.
    #[must_use]
    pub fn cached(&self, entry: &Entry, shards: usize) -> Option<PathBuf> {
        let required = entry.required(shards);
        self.repository(entry).snapshot(|snapshot| match entry.files {
            Files::Folder(folder, ending) => {
                let files = fs::read_dir(snapshot.join(folder)).into_iter().flatten().flatten();
                files.map(|file| file.path()).any(|file| file.to_string_lossy().ends_with(ending) && file.is_file())
            }
            _ => required.iter().all(|file| snapshot.join(file).is_file()),
        })
    }

    fn repository(&self, entry: &Entry) -> Repository {
        Repository::new(&self.cache, entry.kind, entry.repo)
    }

    /// Fetches the files of an entry that the cache does not have yet.
    ///
    /// # Errors
    /// [`Error::Network`] if the hub cannot be reached or sends wrong data, with instructions to download by hand.
    /// [`Error::Output`] if writing fails, or before the first byte if the disk has too little space for all files.
    /// [`Error::Locked`] if another process fetches the same file.
    pub fn fetch(&self, entry: &Entry, shards: usize, watch: &mut dyn FetchObserver) -> Result<Fetched> {
        if self.offline {
            return self.offline(entry, shards);
        }
        let patience = Patience { silence: self.timeout, stall: self.stall };
        let client = Client::new(&self.endpoint, self.token.clone(), patience);
        let client = client.map_err(|f| self.unreachable(entry, shards, f.text()))?;
        let repo = self.repository(entry);
        let fail = |failure: &Failure| self.unreachable(entry, shards, failure.text());
        let listed = self.again(|| client.list(entry), watch).map_err(|f| fail(&f))?;
        let wanted = choose(entry, shards, listed).map_err(|what| self.unreachable(entry, shards, &what))?;
        check_room(entry, &repo, &wanted, free_bytes(&repo.blobs()))?;
        let (mut commit, mut received) = (String::new(), 0);
        for file in &wanted {
            let meta = self.again(|| client.head(entry, &file.path), watch).map_err(|f| fail(&f))?;
            let size = agreed_size(entry, file, &meta)?;
            let lock = repo.lock(&meta.etag)?;
            let blob = repo.blob(&meta.etag);
            let whole = fs::metadata(&blob).is_ok_and(|m| m.is_file() && m.len() == size);
            watch.file_started(&file.path, if whole { size } else { 0 }, size);
            if !whole {
                let (etag, pause) = (meta.etag.as_str(), self.pause);
                let download = Download { client: &client, url: client.address(entry, &file.path), etag, size, pause };
                received += download.run(&repo.incomplete(etag), watch).map_err(|error| match error {
                    Error::Network(fault) => self.unreachable(entry, shards, &fault.to_string()),
                    error => error,
                })?;
                atomic::publish(&repo.incomplete(&meta.etag), &blob)?;
            }
            repo.link(&meta.etag, &meta.commit, &file.path)?;
            drop(lock);
            commit = meta.commit;
        }
        repo.set_main(&commit)?;
        let files: Vec<String> = wanted.into_iter().map(|f| f.path).collect();
        let folder = repo.snapshot(|snapshot| files.iter().all(|file| snapshot.join(file).is_file()));
        let folder = folder.ok_or_else(|| {
            let place = format!("fetch {}", entry.name);
            Error::network(Fault::at(place, "the repository changed during the download").advice("try again"))
        })?;
        Ok(Fetched { folder, files, received })
    }

    fn offline(&self, entry: &Entry, shards: usize) -> Result<Fetched> {
        let folder =
            self.cached(entry, shards).ok_or_else(|| self.unreachable(entry, shards, "HF_HUB_OFFLINE is set"))?;
        Ok(Fetched { folder, files: entry.required(shards), received: 0 })
    }

    /// Returns the error for an unusable hub, with instructions to download by hand.
    fn unreachable(&self, entry: &Entry, shards: usize, why: &str) -> Error {
        let kind = if entry.kind == Kind::Model { "" } else { "datasets/" };
        let files = match entry.files {
            Files::Folder(folder, ending) => format!("all {ending} files of its folder {folder}"),
            Files::Shards(prefix, most) if shards.min(most) > 1 => {
                format!(
                    "{prefix}_val_000000.bin and {prefix}_train_000001.bin to {prefix}_train_{:06}.bin",
                    shards.min(most)
                )
            }
            _ => entry.required(shards).join(" and "),
        };
        let mut place = self.repository(entry).by_hand();
        if let Files::Folder(folder, _) = entry.files {
            place.push(folder.trim_end_matches('/'));
        }
        Error::network(Fault::at(
            format!("fetch {}", entry.name),
            format!(
                "{}; to do it by hand, download {files} from {}/{kind}{}/tree/main into {}",
                why.replace('\n', " "),
                self.endpoint,
                entry.repo,
                place.display()
            ),
        ))
    }

    /// Calls `ask` up to three times while it fails with a passing failure.
    fn again<T>(
        &self,
        mut ask: impl FnMut() -> Result<T, Failure>,
        watch: &mut dyn FetchObserver,
    ) -> Result<T, Failure> {
        for attempt in 0..2 {
            match ask() {
                Err(Failure::Passing(text)) => watch.retrying(&text),
                result => return result,
            }
            std::thread::sleep(self.pause * 2_u32.pow(attempt));
        }
        ask()
    }
}

/// Returns the files of an entry among those of its repository.
fn choose(entry: &Entry, shards: usize, listed: Vec<Listed>) -> Result<Vec<Listed>, String> {
    let required = entry.required(shards);
    if let Some(missing) = required.iter().find(|file| !listed.iter().any(|l| l.path == **file)) {
        return Err(format!("the repository {} has no file {missing}", entry.repo));
    }
    let mut wanted: Vec<Listed> =
        listed.into_iter().filter(|l| required.contains(&l.path) || entry.wants(&l.path)).collect();
    if wanted.is_empty() {
        return Err(format!("the repository {} has none of the expected files", entry.repo));
    }
    wanted.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(wanted)
}

/// Fails unless everything still to be downloaded fits into `free` bytes. Bytes that are present already, including
/// those of incomplete files, need no space.
fn check_room(entry: &Entry, repo: &Repository, wanted: &[Listed], free: Option<u64>) -> Result<()> {
    let there =
        |path: PathBuf| fs::symlink_metadata(path).map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 });
    // two names with the same contents are one file
    let contents: BTreeMap<&str, u64> =
        wanted.iter().map(|file| (file.checksum().unwrap_or(&file.path), file.size)).collect();
    let mut needed: u64 = 0;
    for (checksum, size) in contents {
        let is_known = hub::is_checksum(checksum);
        let is_whole =
            is_known && fs::metadata(repo.blob(checksum)).is_ok_and(|meta| meta.is_file() && meta.len() == size);
        let begun = if is_known { there(repo.incomplete(checksum)) } else { 0 };
        let missing = if is_whole { 0 } else { size - Some(begun).filter(|begun| *begun <= size).unwrap_or(0) };
        needed = needed.saturating_add(missing);
    }
    let Some(free) = free.filter(|free| *free < needed) else { return Ok(()) };
    let fault = Fault::at(repo.blobs().display(), format!("not enough disk space for the rest of {}", entry.name));
    let fewer = if matches!(entry.files, Files::Shards(..)) { ", or fewer --shards" } else { "" };
    let [needed, free] = units::sizes([needed, free]);
    let fault = fault.expected(format!("{needed} free")).found(free);
    Err(Error::output(fault.advice(format!("try freeing space, HF_HOME=DIR on another disk{fewer}"))))
}

/// Returns the size of a file, on which the listing and the file's description must agree.
fn agreed_size(entry: &Entry, file: &Listed, meta: &Meta) -> Result<u64> {
    let disagree = |what: &str, listed: String, described: String| {
        Err(Error::network(
            Fault::at(format!("fetch {}", entry.name), format!("{}: the hub contradicts itself", file.path))
                .expected(format!("{what} {listed} as listed"))
                .found(described)
                .advice("try again later"),
        ))
    };
    if let Some(size) = meta.size.filter(|&size| size != file.size) {
        return disagree("size", file.size.to_string(), size.to_string());
    }
    if let Some(sha256) = file.sha256().filter(|&sha256| sha256 != meta.etag) {
        return disagree("checksum", sha256.to_owned(), meta.etag.clone());
    }
    Ok(file.size)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn bytes_that_are_present_need_no_space() {
        let cache = tempfile::tempdir().unwrap();
        let repo = Repository::new(cache.path(), Kind::Dataset, "owner/name");
        let listed = |path: &str, letter: &str, size: u64| -> Listed {
            let lfs = serde_json::json!({ "oid": letter.repeat(64) });
            serde_json::from_value(serde_json::json!({ "type": "file", "path": path, "size": size, "lfs": lfs }))
                .unwrap()
        };
        // a and its duplicate are one file
        let mut wanted = vec![listed("a", "a", 1000), listed("duplicate", "a", 1000), listed("b", "b", 500)];
        let entry = catalog::find("fineweb10B").unwrap();
        let room = |wanted: &[Listed], free| check_room(entry, &repo, wanted, Some(free));
        let error = room(&wanted, 1499).unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert_eq!([error.fault().expected.as_str(), &error.fault().found], ["1,500 bytes free", "1,499 bytes"]);
        room(&wanted, 1500).unwrap();
        check_room(entry, &repo, &wanted, None).unwrap();
        fs::create_dir_all(repo.blobs()).unwrap();
        fs::write(repo.blob(&"b".repeat(64)), [0; 500]).unwrap();
        fs::write(repo.incomplete(&"a".repeat(64)), [0; 300]).unwrap();
        room(&wanted, 700).unwrap();
        assert_eq!(room(&wanted, 699).unwrap_err().fault().expected, "700 B free");
        // a file of another size is fetched again
        fs::write(repo.blob(&"b".repeat(64)), [0; 400]).unwrap();
        fs::write(repo.incomplete(&"a".repeat(64)), [0; 1001]).unwrap();
        assert_eq!(room(&wanted, 1499).unwrap_err().fault().expected, "1,500 bytes free");
        // sizes that no disk has, and a checksum that is a path
        wanted.extend([listed("c", "c", u64::MAX), listed("d", "/", 1)]);
        assert_eq!(room(&wanted, u64::MAX - 1).unwrap_err().fault().expected, "18,446,744,073,709,551,615 bytes free");
    }

    #[test]
    fn the_environment_configures_the_hub() {
        let hub = |vars: &[(&str, &str)]| {
            let var = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
            Hub::from_vars(&var, var("HOME").map(PathBuf::from))
        };
        let plain = hub(&[("HOME", "/h")]).unwrap();
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache, Path::new("/h/.cache/huggingface/hub"));
        assert!(!plain.offline && plain.token.is_none());
        let all = [
            ("HOME", "/h"),
            ("HF_HOME", "/f"),
            ("HF_ENDPOINT", "https://hub.example/"),
            ("HF_TOKEN", " t\n"),
            ("HF_HUB_OFFLINE", "True"),
        ];
        let all = hub(&all).unwrap();
        assert_eq!(
            (all.endpoint.as_str(), all.token.as_deref(), all.offline),
            ("https://hub.example", Some("t"), true)
        );
        assert_eq!(all.cache, Path::new("/f/hub"));
        assert_eq!(hub(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]).unwrap().cache, Path::new("/c"));
        assert!(matches!(hub(&[]), Err(Error::Usage(_))));
        assert!(matches!(hub(&[("HOME", "/h"), ("HF_ENDPOINT", "ftp://x")]), Err(Error::Usage(_))));
        assert!(matches!(hub(&[("HOME", "/h"), ("HF_ENDPOINT", "http://[x")]), Err(Error::Usage(_))));
    }
}
