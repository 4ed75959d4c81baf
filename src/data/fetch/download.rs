//! The download of one file into the cache.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::FetchObserver;
use super::hub::{Client, Failure};
use crate::error::{Error, Fault, Result};
use crate::files::atomic::output_error;
use crate::files::open;
use crate::units::{count, counted};

/// Number of consecutive attempts without progress after which the download fails.
const ATTEMPTS: u32 = 5;
/// Most attempts in all, for a server that breaks off after every few bytes.
const MOST_ATTEMPTS: u32 = 1000;
/// Bytes that an attempt must add to count as progress.
const WORTH_BYTES: u64 = 1 << 14;
/// Bytes that are read at once.
const BUFFER_BYTES: usize = 1 << 18;

/// The download of one file.
pub(super) struct Download<'a> {
    pub client: &'a Client,
    pub url: String,
    pub etag: &'a str,
    pub size: u64,
    /// Wait after the first failure.
    pub pause: Duration,
}

impl Download<'_> {
    /// Downloads to `path` until the file is complete and its checksum is right. Returns the number of bytes received.
    pub(super) fn run(&self, path: &Path, watch: &mut dyn FetchObserver) -> Result<u64> {
        let (mut received, mut failures, mut best, mut wrong) = (0, 0, 0, false);
        for _ in 0..MOST_ATTEMPTS {
            let failure = match self.attempt(path, &mut received, watch)? {
                Ok(()) => {
                    let got = checksum(path, self.etag, self.size)?;
                    if got == self.etag {
                        return Ok(received);
                    }
                    // never resume from bytes that are known to be wrong
                    fs::remove_file(path).map_err(|e| output_error(path, &e))?;
                    let text = format!("{}: wrong checksum, expected {}, got {got}", self.url, self.etag);
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
                    "{failure} ({ATTEMPTS} times in a row; the next download resumes at byte {there})"
                )));
            }
            watch.retrying(&failure);
            std::thread::sleep(self.pause * 2_u32.pow(failures - 1));
        }
        Err(Error::network(Fault::at(&self.url, format!("interrupted {}", counted(MOST_ATTEMPTS.into(), "time")))))
    }

    /// Resumes at the end of the file. The outer error is the disk's, the inner one the network's.
    fn attempt(&self, path: &Path, received: &mut u64, watch: &mut dyn FetchObserver) -> Result<Result<(), Failure>> {
        let write_error = |e: &std::io::Error| output_error(path, e);
        let options = OpenOptions::new().create(true).truncate(false).write(true).clone();
        let mut file = open::own(path, &options).map_err(|e| write_error(&e))?;
        let mut at = file.seek(SeekFrom::End(0)).map_err(|e| write_error(&e))?;
        let empty = |file: &mut File| file.set_len(0).and_then(|()| file.rewind()).map_err(|e| write_error(&e));
        if at > self.size {
            empty(&mut file)?;
            at = 0;
        }
        if at == self.size {
            return Ok(Ok(()));
        }
        let answer = match self.client.get(&self.url, at) {
            Ok(answer) => answer,
            Err(failure) => return Ok(Err(failure)),
        };
        let response = &answer.response;
        let restart = response.status() != 206 || range_start(response) != Some(at);
        if response.status() == 416 || (response.status() == 206 && restart) {
            empty(&mut file)?;
            return Ok(Err(Failure::Passing(format!("{}: another range than requested", self.url))));
        }
        if let Err(failure) = self.client.check(response, &self.url) {
            return Ok(Err(failure));
        }
        if restart && at > 0 {
            empty(&mut file)?;
            at = 0;
        }
        let length = response.headers().get("content-length").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if let Some(length) = length.filter(|&length| length != self.size - at) {
            return Ok(Err(Failure::Passing(format!(
                "{}: wrong size, expected {}, got {}",
                self.url,
                counted(self.size - at, "byte"),
                count(length)
            ))));
        }
        let broken =
            |at: u64, why: String| Ok(Err(Failure::Passing(format!("{}: interrupted at byte {at} ({why})", self.url))));
        let mut body = match self.client.body(answer) {
            Ok(body) => body,
            Err(e) => return broken(at, e.to_string()),
        };
        watch.progressed(at);
        loop {
            let bytes = match body.next() {
                Ok(bytes) => bytes,
                Err(why) => return broken(at, why),
            };
            if bytes.is_empty() {
                break;
            }
            if at + bytes.len() as u64 > self.size {
                empty(&mut file)?;
                let expected = counted(self.size, "byte");
                return Ok(Err(Failure::Passing(format!("{}: too long, expected {expected}", self.url))));
            }
            file.write_all(&bytes).map_err(|e| write_error(&e))?;
            at += bytes.len() as u64;
            *received += bytes.len() as u64;
            watch.progressed(at);
        }
        if at < self.size {
            return Ok(Err(Failure::Passing(format!("{}: interrupted at byte {at} of {}", self.url, self.size))));
        }
        file.sync_all().map_err(|e| write_error(&e))?;
        Ok(Ok(()))
    }
}

/// Returns the offset of the range that a server sends, as in `bytes 100-199/200`.
fn range_start(response: &ureq::http::Response<ureq::Body>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    range.trim().strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// Returns a file's checksum of the same kind as `like`: SHA-256, or git's SHA-1 over a length and the contents.
fn checksum(path: &Path, like: &str, size: u64) -> Result<String> {
    let mut file = open::own(path, OpenOptions::new().read(true)).map_err(|e| output_error(path, &e))?;
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
    fn checksums_are_those_of_git_and_sha256() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "hello\n").unwrap();
        assert_eq!(checksum(&path, &"0".repeat(40), 6).unwrap(), "ce013625030ba8dba906f756967f9e9ca394464a");
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(checksum(&path, &"0".repeat(64), 6).unwrap(), sha256);
    }
}
