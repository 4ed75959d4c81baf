//! `wgpt data fetch`: data sets and weights from the Hugging Face hub, into the cache that Python's library uses.
//!
//! A file grows as `blobs/CHECKSUM.incomplete`, goes on after a break with a range request, and takes its name only
//! when size and checksum are those that the hub tells. [`catalog`] says which repository a name means.

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

/// Where to fetch from and to.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The hub or a mirror of it.
    pub endpoint: String,
    /// The cache's folder.
    pub cache: PathBuf,
    /// For repositories that want one. It is sent to the endpoint alone.
    pub token: Option<String>,
    /// Use what is in the cache and nothing else.
    pub offline: bool,
    /// Wait after the first failure; it doubles with each further one in a row.
    pub pause: Duration,
    /// Longest wait for a connection, an answer, or the next bytes.
    pub timeout: Duration,
    /// Longest time of less than 1 KiB a second: then the file is asked for anew, from where it ends.
    pub stall: Duration,
}

/// What a fetch shows.
pub trait FetchObserver {
    /// A file begins, of which `done` bytes are there already.
    fn file_started(&mut self, path: &str, done: u64, size: u64);
    /// So many bytes of it are there now.
    fn progressed(&mut self, done: u64);
    /// Something went wrong that will be tried again.
    fn retrying(&mut self, text: &str);
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The folder that holds all files under their names.
    pub folder: PathBuf,
    /// The files, with folders, in the repository's spelling.
    pub files: Vec<String>,
    /// Bytes that came over the network.
    pub received: u64,
}

impl Hub {
    /// The hub that the environment asks for: `HF_ENDPOINT`, `HF_HOME` or `HF_HUB_CACHE`, `HF_TOKEN`,
    /// `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no home folder and nothing else says where the cache is.
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

    /// The folder in the cache that holds a name's files, if all that must be there are. No network.
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

    /// Fetches what is not there yet.
    ///
    /// # Errors
    /// [`Error::Network`] if the hub cannot be reached or does not keep its word, with the way to bring the files by
    /// hand. [`Error::Output`], also if the disk has no room for all that is to come, before the first byte.
    /// [`Error::Locked`].
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
            Error::network(Fault::at(place, "the repository changed while it was read").advice("try again"))
        })?;
        Ok(Fetched { folder, files, received })
    }

    fn offline(&self, entry: &Entry, shards: usize) -> Result<Fetched> {
        let folder =
            self.cached(entry, shards).ok_or_else(|| self.unreachable(entry, shards, "HF_HUB_OFFLINE is set"))?;
        Ok(Fetched { folder, files: entry.required(shards), received: 0 })
    }

    /// The error for a hub that cannot be used, with the way around it.
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
                "{}; to do it by hand, take {files} of {}/{kind}{}/tree/main and put them into {}",
                why.replace('\n', " "),
                self.endpoint,
                entry.repo,
                place.display()
            ),
        ))
    }

    /// Asks up to three times.
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

/// The files of a name among those of the repository.
fn choose(entry: &Entry, shards: usize, listed: Vec<Listed>) -> Result<Vec<Listed>, String> {
    let required = entry.required(shards);
    if let Some(missing) = required.iter().find(|file| !listed.iter().any(|l| l.path == **file)) {
        return Err(format!("the repository {} has no file {missing}", entry.repo));
    }
    let mut wanted: Vec<Listed> =
        listed.into_iter().filter(|l| required.contains(&l.path) || entry.wants(&l.path)).collect();
    if wanted.is_empty() {
        return Err(format!("the repository {} has none of the files", entry.repo));
    }
    wanted.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(wanted)
}

/// Fails unless all that is still to come fits into `free` bytes; what is there already, also of half a file, counts.
fn check_room(entry: &Entry, repo: &Repository, wanted: &[Listed], free: Option<u64>) -> Result<()> {
    let there =
        |path: PathBuf| fs::symlink_metadata(path).map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 });
    // two names of the same contents are one file
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
    let fault = Fault::at(repo.blobs().display(), format!("no room for what is still to fetch of {}", entry.name));
    let fewer = if matches!(entry.files, Files::Shards(..)) { ", or fewer --shards" } else { "" };
    let fault = fault.expected(format!("{needed} bytes free")).found(free);
    Err(Error::output(fault.advice(format!("try freeing space, HF_HOME=DIR on another disk{fewer}"))))
}

/// The size that listing and file agree on.
fn agreed_size(entry: &Entry, file: &Listed, meta: &Meta) -> Result<u64> {
    let disagree = |what: &str, listed: String, told: String| {
        Err(Error::network(
            Fault::at(format!("fetch {}", entry.name), format!("{}: the hub contradicts itself", file.path))
                .expected(format!("{what} {listed} as listed"))
                .found(told)
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
    fn what_is_there_already_needs_no_room() {
        let cache = tempfile::tempdir().unwrap();
        let repo = Repository::new(cache.path(), Kind::Dataset, "owner/name");
        let listed = |path: &str, letter: &str, size: u64| -> Listed {
            let lfs = serde_json::json!({ "oid": letter.repeat(64) });
            serde_json::from_value(serde_json::json!({ "type": "file", "path": path, "size": size, "lfs": lfs }))
                .unwrap()
        };
        // a and its twin are one file
        let mut wanted = vec![listed("a", "a", 1000), listed("twin", "a", 1000), listed("b", "b", 500)];
        let entry = catalog::find("fineweb10B").unwrap();
        let room = |wanted: &[Listed], free| check_room(entry, &repo, wanted, Some(free));
        let error = room(&wanted, 1499).unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert_eq!([error.fault().expected.as_str(), &error.fault().found], ["1500 bytes free", "1499"]);
        room(&wanted, 1500).unwrap();
        check_room(entry, &repo, &wanted, None).unwrap();
        fs::create_dir_all(repo.blobs()).unwrap();
        fs::write(repo.blob(&"b".repeat(64)), [0; 500]).unwrap();
        fs::write(repo.incomplete(&"a".repeat(64)), [0; 300]).unwrap();
        room(&wanted, 700).unwrap();
        assert_eq!(room(&wanted, 699).unwrap_err().fault().expected, "700 bytes free");
        // of another size it is fetched anew
        fs::write(repo.blob(&"b".repeat(64)), [0; 400]).unwrap();
        fs::write(repo.incomplete(&"a".repeat(64)), [0; 1001]).unwrap();
        assert_eq!(room(&wanted, 1499).unwrap_err().fault().expected, "1500 bytes free");
        // sizes that no disk has, and a checksum that is a path
        wanted.extend([listed("c", "c", u64::MAX), listed("d", "/", 1)]);
        assert_eq!(room(&wanted, u64::MAX - 1).unwrap_err().fault().expected, format!("{} bytes free", u64::MAX));
    }

    #[test]
    fn the_environment_says_where() {
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
