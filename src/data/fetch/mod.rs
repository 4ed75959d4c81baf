//! `wgpt data fetch`: data sets and weights from the Hugging Face hub, into the cache that Python's library uses.
//!
//! A file grows as `blobs/CHECKSUM.incomplete`, goes on after a break with a range request, and takes its name only
//! when size and checksum are those that the hub tells. [`names`] says which repository a name means.

mod hub;
pub mod names;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use hub::{Client, Failure, Listed, Meta};
pub use names::{Entry, Files, Kind};

use crate::error::{Error, Fault, Result};
use crate::files::atomic::{self, output_error};
use crate::files::hub::{Repository, cache_by};

/// Attempts in a row that bring nothing new before a file is given up.
const ATTEMPTS: u32 = 5;
/// Attempts in all: a server that breaks off after every few bytes is no server.
const MOST_ATTEMPTS: u32 = 1000;
/// Bytes that an attempt must bring to count as a step forward.
const WORTH_BYTES: u64 = 1 << 14;
/// Bytes that are written at once.
const BUFFER_BYTES: usize = 1 << 18;

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
}

/// What a fetch shows.
pub trait Watch {
    /// A file begins, of which `done` bytes are there already.
    fn file(&mut self, path: &str, done: u64, size: u64);
    /// So many bytes of it are there now.
    fn bytes(&mut self, done: u64);
    /// Something went wrong that will be tried again.
    fn trouble(&mut self, text: &str);
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
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
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
    /// hand. [`Error::Output`], [`Error::Locked`].
    pub fn fetch(&self, entry: &Entry, shards: usize, watch: &mut dyn Watch) -> Result<Fetched> {
        if self.offline {
            return self.offline(entry, shards);
        }
        let client = Client::new(&self.endpoint, self.token.clone(), self.timeout);
        let repo = self.repository(entry);
        let fail = |failure: &Failure| self.unreachable(entry, shards, failure.text());
        let listed = self.again(|| client.list(entry), watch).map_err(|f| fail(&f))?;
        let wanted = choose(entry, shards, listed).map_err(|what| self.unreachable(entry, shards, &what))?;
        let (mut commit, mut received) = (String::new(), 0);
        for file in &wanted {
            let meta = self.again(|| client.head(entry, &file.path), watch).map_err(|f| fail(&f))?;
            let size = agreed_size(entry, file, &meta)?;
            let lock = repo.lock(&meta.etag)?;
            let blob = repo.blob(&meta.etag);
            let whole = fs::metadata(&blob).is_ok_and(|m| m.len() == size);
            watch.file(&file.path, if whole { size } else { 0 }, size);
            if !whole {
                let download =
                    Download { client: &client, url: client.address(entry, &file.path), etag: &meta.etag, size };
                received +=
                    self.download(&download, &repo.incomplete(&meta.etag), watch).map_err(|error| match error {
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
    fn again<T>(&self, mut ask: impl FnMut() -> Result<T, Failure>, watch: &mut dyn Watch) -> Result<T, Failure> {
        for attempt in 0..2 {
            match ask() {
                Err(Failure::Passing(text)) => watch.trouble(&text),
                result => return result,
            }
            std::thread::sleep(self.pause * 2_u32.pow(attempt));
        }
        ask()
    }

    /// Fetches a file until it is whole and its checksum is right; the bytes that came.
    fn download(&self, download: &Download, path: &Path, watch: &mut dyn Watch) -> Result<u64> {
        let (mut received, mut failures, mut best, mut wrong) = (0, 0, 0, false);
        for _ in 0..MOST_ATTEMPTS {
            let failure = match download.attempt(path, &mut received, watch)? {
                Ok(()) => {
                    let got = checksum(path, download.etag, download.size)?;
                    if got == download.etag {
                        return Ok(received);
                    }
                    // never go on with bytes that are known to be wrong
                    fs::remove_file(path).map_err(|e| output_error(path, &e))?;
                    let text = format!("{}: wrong bytes, expected checksum {}, got {got}", download.url, download.etag);
                    if wrong {
                        return Err(Error::network(text));
                    }
                    (wrong, best) = (true, 0);
                    text
                }
                Err(Failure::Final(text)) => return Err(Error::network(text)),
                Err(Failure::Passing(text)) => text,
            };
            let there = fs::metadata(path).map_or(0, |m| m.len());
            failures = if there >= best + WORTH_BYTES { 1 } else { failures + 1 };
            best = best.max(there);
            if failures >= ATTEMPTS {
                return Err(Error::network(format!(
                    "{failure} ({ATTEMPTS} times in a row; the next run goes on at byte {there})"
                )));
            }
            watch.trouble(&failure);
            std::thread::sleep(self.pause * 2_u32.pow(failures - 1));
        }
        Err(Error::network(Fault::at(&download.url, format!("broken off {MOST_ATTEMPTS} times"))))
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

/// One file on its way.
struct Download<'a> {
    client: &'a Client,
    url: String,
    etag: &'a str,
    size: u64,
}

impl Download<'_> {
    /// Goes on where the file ends. The outer error is ours: the disk; the inner one is the network's.
    fn attempt(&self, path: &Path, received: &mut u64, watch: &mut dyn Watch) -> Result<Result<(), Failure>> {
        let write_error = |e: &std::io::Error| output_error(path, e);
        let options = OpenOptions::new().create(true).truncate(false).write(true).clone();
        let mut file = options.open(path).map_err(|e| write_error(&e))?;
        let mut at = file.seek(SeekFrom::End(0)).map_err(|e| write_error(&e))?;
        let empty = |file: &mut File| file.set_len(0).and_then(|()| file.rewind()).map_err(|e| write_error(&e));
        if at > self.size {
            empty(&mut file)?;
            at = 0;
        }
        if at == self.size {
            return Ok(Ok(()));
        }
        let mut response = match self.client.get(&self.url, at) {
            Ok(response) => response,
            Err(failure) => return Ok(Err(failure)),
        };
        let restart = response.status() != 206 || range_start(&response) != Some(at);
        if response.status() == 416 || (response.status() == 206 && restart) {
            empty(&mut file)?;
            return Ok(Err(Failure::Passing(format!("{}: another part than asked for", self.url))));
        }
        if let Err(failure) = self.client.check(&response, &self.url) {
            return Ok(Err(failure));
        }
        if restart && at > 0 {
            empty(&mut file)?;
            at = 0;
        }
        let length = response.headers().get("content-length").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if let Some(length) = length.filter(|&length| length != self.size - at) {
            return Ok(Err(Failure::Passing(format!(
                "{}: wrong size, expected {} bytes, got {length}",
                self.url,
                self.size - at
            ))));
        }
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        watch.bytes(at);
        loop {
            let n = match body.read(&mut buffer) {
                Ok(n) => n,
                Err(e) => return Ok(Err(Failure::Passing(format!("{}: broken off at byte {at} ({e})", self.url)))),
            };
            if n == 0 {
                break;
            }
            if at + n as u64 > self.size {
                empty(&mut file)?;
                return Ok(Err(Failure::Passing(format!("{}: too long, expected {} bytes", self.url, self.size))));
            }
            file.write_all(&buffer[..n]).map_err(|e| write_error(&e))?;
            at += n as u64;
            *received += n as u64;
            watch.bytes(at);
        }
        if at < self.size {
            return Ok(Err(Failure::Passing(format!("{}: broken off at byte {at} of {}", self.url, self.size))));
        }
        file.sync_all().map_err(|e| write_error(&e))?;
        Ok(Ok(()))
    }
}

/// Where the part that a server sends begins: `bytes 100-199/200`.
fn range_start(response: &ureq::http::Response<ureq::Body>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    range.trim().strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// A file's checksum, of the kind that `like` is: SHA-256, or git's SHA-1 over a length and the contents.
fn checksum(path: &Path, like: &str, size: u64) -> Result<String> {
    let mut file = File::open(path).map_err(|e| output_error(path, &e))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut digest = |update: &mut dyn FnMut(&[u8])| -> Result<()> {
        loop {
            match file.read(&mut buffer).map_err(|e| output_error(path, &e))? {
                0 => return Ok(()),
                n => update(&buffer[..n]),
            }
        }
    };
    let bytes: Vec<u8> = if like.len() == 64 {
        let mut hash = Sha256::new();
        digest(&mut |bytes| hash.update(bytes))?;
        hash.finalize().to_vec()
    } else {
        let mut hash = Sha1::new();
        hash.update(format!("blob {size}\0"));
        digest(&mut |bytes| hash.update(bytes))?;
        hash.finalize().to_vec()
    };
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }

    #[test]
    fn checksums_are_those_of_git_and_sha256() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "hello\n").unwrap();
        assert_eq!(checksum(&path, &"0".repeat(40), 6).unwrap(), "ce013625030ba8dba906f756967f9e9ca394464a");
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(checksum(&path, &"0".repeat(64), 6).unwrap(), sha256);
    }
}
