//! Client of the hub's HTTP interface: lists repositories, describes files, downloads files.

use std::io;

use serde::Deserialize;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::{HeaderMap, Response};
use url::Url;

use super::address::{is_loopback, is_same_origin, joined, read};
use super::body::{Body, Patience};
use super::catalog::{Entry, Kind};
use crate::error::Result;
use crate::files::hub::is_plain_name;

/// Most redirects that are followed.
const REDIRECTS: usize = 6;
/// Most pages of a listing.
const PAGES: usize = 100;
/// Largest page of a listing in bytes.
const PAGE_BYTES: usize = 16 << 20;

/// The reason why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// A retry may succeed.
    Passing(String),
    /// A retry cannot succeed.
    Final(String),
}

impl Failure {
    pub(super) fn text(&self) -> &str {
        let (Self::Passing(text) | Self::Final(text)) = self;
        text
    }
}

/// A file's entry in a listing.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Listed {
    #[serde(rename = "type")]
    kind: String,
    pub path: String,
    pub size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Debug, Clone, Deserialize)]
struct Lfs {
    oid: String,
}

impl Listed {
    /// Returns the file's SHA-256, which only large files have.
    pub(super) fn sha256(&self) -> Option<&str> {
        self.lfs.as_ref().map(|lfs| lfs.oid.as_str())
    }

    /// Returns the file's checksum of either kind.
    pub(super) fn checksum(&self) -> Option<&str> {
        Some(self.sha256().unwrap_or(&self.oid)).filter(|checksum| is_checksum(checksum))
    }
}

/// A response whose body is still unread, and the agent that made the request.
pub(super) struct Answer {
    pub response: Response<ureq::Body>,
    agent: Agent,
}

/// The hub's description of a file: commit, checksum and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    pub commit: String,
    pub etag: String,
    pub size: Option<u64>,
}

/// A client of one endpoint. Every request has its own agent, so that it can be ended without ending others.
pub(super) struct Client {
    config: Config,
    endpoint: String,
    origin: Url,
    token: Option<String>,
    patience: Patience,
}

impl Client {
    pub(super) fn new(endpoint: &str, token: Option<String>, patience: Patience) -> Result<Self, Failure> {
        // `Body` limits the wait for a body's bytes: its clock stops while the process is suspended
        let mut config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("wgpt/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(patience.silence))
            .timeout_recv_response(Some(patience.silence));
        let origin = read(endpoint)?;
        if is_loopback(&origin) {
            config = config.proxy(None); // a proxy would connect to its own machine
        }
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Ok(Self { config: config.build(), endpoint, origin, token, patience })
    }

    /// Returns all files of a repository.
    pub(super) fn list(&self, entry: &Entry) -> Result<Vec<Listed>, Failure> {
        let kind = if entry.kind == Kind::Model { "models" } else { "datasets" };
        let mut url = format!("{}/api/{kind}/{}/tree/main?recursive=true", self.endpoint, entry.repo);
        let mut files: Vec<Listed> = Vec::new();
        for _ in 0..PAGES {
            let answer = self.request("GET", &url, None)?;
            self.check(&answer.response, &url)?;
            let next = next_page(answer.response.headers());
            let text = self.page(answer).map_err(|e| Failure::Passing(format!("{url}: {e}")))?;
            let page: Vec<Listed> = serde_json::from_slice(&text)
                .map_err(|e| Failure::Final(format!("{url}: not a list of files ({e})")))?;
            files.extend(page.into_iter().filter(|file| file.kind == "file" && is_plain_path(&file.path)));
            let Some(next) = next else { return Ok(files) };
            let next = joined(&read(&url)?, &next)?;
            url = if is_same_origin(&next, &self.origin) {
                next.into()
            } else {
                // a mirror may name the original hub here; read the next page from the mirror all the same
                format!("{}{}", self.endpoint, &next[url::Position::BeforePath..])
            };
        }
        Err(Failure::Final(format!("{url}: more than {PAGES} pages of files")))
    }

    /// Reads a page of a listing. A page above the limit is cut off, so that it is not valid JSON.
    fn page(&self, answer: Answer) -> Result<Vec<u8>, String> {
        let mut body = self.body(answer).map_err(|e| e.to_string())?;
        let mut text = Vec::new();
        while text.len() < PAGE_BYTES {
            match body.next()? {
                bytes if bytes.is_empty() => break,
                bytes => text.extend(bytes),
            }
        }
        Ok(text)
    }

    /// Starts reading the body of a response.
    pub(super) fn body(&self, Answer { response, agent }: Answer) -> io::Result<Body> {
        Body::new(response, agent, self.patience)
    }

    /// Returns the address of a file's contents.
    pub(super) fn address(&self, entry: &Entry, path: &str) -> String {
        let kind = if entry.kind == Kind::Model { "" } else { "datasets/" };
        format!("{}/{kind}{}/resolve/main/{path}", self.endpoint, entry.repo)
    }

    /// Returns the hub's description of a file. Does not follow redirects to other hosts, because those lead to the
    /// file's bytes, not to its description.
    pub(super) fn head(&self, entry: &Entry, path: &str) -> Result<Meta, Failure> {
        let mut url = self.address(entry, path);
        for _ in 0..REDIRECTS {
            let response = self.send("HEAD", &url, None)?.response;
            let headers = response.headers();
            let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag"));
            if response.status().is_redirection() && header(headers, "x-repo-commit").is_none() {
                // the repository was renamed
                url = self.redirected(&url, headers)?.into();
                continue;
            }
            if !response.status().is_redirection() {
                self.check(&response, &url)?;
            }
            let commit = header(headers, "x-repo-commit").filter(|c| is_plain_name(c));
            let etag = etag.map(|e| e.trim_start_matches("W/").trim_matches('"').to_owned()).filter(|e| is_checksum(e));
            let (Some(commit), Some(etag)) = (commit, etag) else {
                return Err(Failure::Final(format!("{url}: no commit and checksum, expected the headers of a hub")));
            };
            let length = if response.status().is_redirection() { None } else { header(headers, "content-length") };
            let size = header(headers, "x-linked-size").or(length).and_then(|s| s.parse().ok());
            return Ok(Meta { commit: commit.to_owned(), etag, size });
        }
        Err(Failure::Final(format!("{url}: more than {REDIRECTS} redirects")))
    }

    /// Requests a file's bytes from offset `start` on and follows redirects to any host.
    pub(super) fn get(&self, url: &str, start: u64) -> Result<Answer, Failure> {
        self.request("GET", url, (start > 0).then_some(start))
    }

    fn request(&self, method: &str, url: &str, start: Option<u64>) -> Result<Answer, Failure> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let answer = self.send(method, &url, start)?;
            if !answer.response.status().is_redirection() {
                return Ok(answer);
            }
            url = self.redirected(&url, answer.response.headers())?.into();
        }
        Err(Failure::Final(format!("{url}: more than {REDIRECTS} redirects")))
    }

    fn redirected(&self, url: &str, headers: &HeaderMap) -> Result<Url, Failure> {
        let to =
            header(headers, "location").ok_or_else(|| Failure::Final(format!("{url}: a redirect without a target")))?;
        let to = joined(&read(url)?, to)?;
        if !(to.scheme() == "https" || (to.scheme() == "http" && self.origin.scheme() == "http")) {
            return Err(Failure::Final(format!("{url}: a redirect to `{to}`, expected https")));
        }
        Ok(to)
    }

    fn send(&self, method: &str, url: &str, start: Option<u64>) -> Result<Answer, Failure> {
        let (agent, url) = (self.config.new_agent(), read(url)?);
        let mut request = if method == "HEAD" { agent.head(url.as_str()) } else { agent.get(url.as_str()) };
        request = request.header("Accept-Encoding", "identity");
        if let Some(start) = start {
            request = request.header("Range", format!("bytes={start}-"));
        }
        // the token is sent to the hub only, not to the target of a redirect
        if let (Some(token), true) = (&self.token, is_same_origin(&url, &self.origin)) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = request.call().map_err(|e| match e {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => Failure::Final(format!("{url}: {e}")),
            e => Failure::Passing(format!("{url}: {e}")),
        })?;
        Ok(Answer { response, agent })
    }

    /// Fails unless the request succeeded.
    pub(super) fn check(&self, response: &Response<ureq::Body>, url: &str) -> Result<(), Failure> {
        match response.status().as_u16() {
            200..=299 => Ok(()),
            401 | 403 => Err(Failure::Final(format!(
                "{url}: access refused ({}), expected a public repository; try HF_TOKEN",
                response.status().as_u16()
            ))),
            404 | 410 => Err(Failure::Final(format!("{url}: not found"))),
            code @ (408 | 425 | 429 | 500..) => Err(Failure::Passing(format!("{url}: the server returned {code}"))),
            code => Err(Failure::Final(format!("{url}: the server returned {code}"))),
        }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Returns the address of the next page: that of `<https://...>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = header(headers, "link")?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_owned())
}

/// Returns whether a path consists of plain names separated by slashes.
fn is_plain_path(path: &str) -> bool {
    path.split('/').all(is_plain_name)
}

/// Returns whether a text is a SHA-256, or git's SHA-1 for a small file.
pub(super) fn is_checksum(etag: &str) -> bool {
    matches!(etag.len(), 40 | 64) && etag.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_become_files() {
        assert!(is_plain_path("data/train-00000-of-00004-2d5a.parquet"));
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", ".git/config", "a\\b", "C:x", "a\nb"] {
            assert!(!is_plain_path(bad), "{bad:?}");
        }
        assert!(is_checksum(&"0a".repeat(32)) && is_checksum(&"0a".repeat(20)));
        assert!(!is_checksum("../../x") && !is_checksum(&"0A".repeat(32)));
    }
}
