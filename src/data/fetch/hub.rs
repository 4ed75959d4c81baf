//! The hub's HTTP interface: what a repository holds, what a file is, and its bytes.

use std::io::Read;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::names::{Entry, Kind};
use crate::error::Result;
use crate::files::hub::is_plain_name;

/// Redirects that are followed.
const REDIRECTS: usize = 6;
/// Pages of a listing that are read.
const PAGES: usize = 100;
/// Bytes of a page of a listing.
const PAGE_BYTES: u64 = 16 << 20;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Asking again may help.
    Passing(String),
    /// It will not.
    Final(String),
}

impl Failure {
    pub(super) fn text(&self) -> &str {
        let (Self::Passing(text) | Self::Final(text)) = self;
        text
    }
}

/// A file as a listing tells of it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Listed {
    #[serde(rename = "type")]
    kind: String,
    pub path: String,
    pub size: u64,
    lfs: Option<Lfs>,
}

#[derive(Debug, Clone, Deserialize)]
struct Lfs {
    oid: String,
}

impl Listed {
    /// Its SHA-256, which large files have.
    pub(super) fn sha256(&self) -> Option<&str> {
        self.lfs.as_ref().map(|lfs| lfs.oid.as_str())
    }
}

/// What the hub says of a file: its commit, its checksum, and its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    pub commit: String,
    pub etag: String,
    pub size: Option<u64>,
}

/// A connection to one endpoint.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Client {
    pub(super) fn new(endpoint: &str, token: Option<String>, timeout: Duration) -> Self {
        let mut config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("wgpt/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_per_read(Some(timeout));
        if is_loopback(endpoint) {
            config = config.proxy(None); // a proxy would look for the name on its own machine
        }
        Self { agent: config.build().into(), endpoint: endpoint.trim_end_matches('/').to_owned(), token }
    }

    /// All files of a repository.
    pub(super) fn list(&self, entry: &Entry) -> Result<Vec<Listed>, Failure> {
        let kind = if entry.kind == Kind::Model { "models" } else { "datasets" };
        let mut url = format!("{}/api/{kind}/{}/tree/main?recursive=true", self.endpoint, entry.repo);
        let mut files: Vec<Listed> = Vec::new();
        for _ in 0..PAGES {
            let mut response = self.request("GET", &url, None)?;
            self.check(&response, &url)?;
            let next = next_page(response.headers());
            let mut text = Vec::new();
            let reader = response.body_mut().as_reader();
            reader.take(PAGE_BYTES).read_to_end(&mut text).map_err(|e| Failure::Passing(format!("{url}: {e}")))?;
            let page: Vec<Listed> = serde_json::from_slice(&text)
                .map_err(|e| Failure::Final(format!("{url}: not a list of files ({e})")))?;
            files.extend(page.into_iter().filter(|file| file.kind == "file" && is_plain_path(&file.path)));
            let Some(next) = next else { return Ok(files) };
            // a mirror may name the original here; the pages are to be had from the mirror all the same
            let path =
                next.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..])).unwrap_or(&next);
            url = format!("{}{path}", self.endpoint);
        }
        Err(Failure::Final(format!("{url}: more than {PAGES} pages of files")))
    }

    /// The address of a file's contents.
    pub(super) fn address(&self, entry: &Entry, path: &str) -> String {
        let kind = if entry.kind == Kind::Model { "" } else { "datasets/" };
        format!("{}/{kind}{}/resolve/main/{path}", self.endpoint, entry.repo)
    }

    /// What the hub says of a file. Redirects to other hosts are where its bytes are, not what it is: they are not
    /// followed.
    pub(super) fn head(&self, entry: &Entry, path: &str) -> Result<Meta, Failure> {
        let mut url = self.address(entry, path);
        for _ in 0..REDIRECTS {
            let response = self.send("HEAD", &url, None)?;
            let headers = response.headers();
            let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag"));
            if response.status().is_redirection() && header(headers, "x-repo-commit").is_none() {
                // the repository has another name now
                url = self.redirected(&url, headers)?;
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

    /// A file's bytes from `start` on, wherever redirects lead.
    pub(super) fn get(&self, url: &str, start: u64) -> Result<Response<Body>, Failure> {
        self.request("GET", url, (start > 0).then_some(start))
    }

    fn request(&self, method: &str, url: &str, start: Option<u64>) -> Result<Response<Body>, Failure> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let response = self.send(method, &url, start)?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            url = self.redirected(&url, response.headers())?;
        }
        Err(Failure::Final(format!("{url}: more than {REDIRECTS} redirects")))
    }

    fn redirected(&self, url: &str, headers: &HeaderMap) -> Result<String, Failure> {
        let to = header(headers, "location").ok_or_else(|| Failure::Final(format!("{url}: a redirect to nowhere")))?;
        let to = join(url, to);
        if !(to.starts_with("https://") || (to.starts_with("http://") && self.endpoint.starts_with("http://"))) {
            return Err(Failure::Final(format!("{url}: a redirect to `{}`, expected https", to.escape_debug())));
        }
        Ok(to)
    }

    fn send(&self, method: &str, url: &str, start: Option<u64>) -> Result<Response<Body>, Failure> {
        let mut request = if method == "HEAD" { self.agent.head(url) } else { self.agent.get(url) };
        request = request.header("Accept-Encoding", "identity");
        if let Some(start) = start {
            request = request.header("Range", format!("bytes={start}-"));
        }
        // the token is for the hub alone, not for whoever a redirect names
        if let (Some(token), true) = (&self.token, origin(url) == origin(&self.endpoint)) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        request.call().map_err(|e| match e {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => Failure::Final(format!("{url}: {e}")),
            e => Failure::Passing(format!("{url}: {e}")),
        })
    }

    /// Fails unless the request succeeded.
    pub(super) fn check(&self, response: &Response<Body>, url: &str) -> Result<(), Failure> {
        match response.status().as_u16() {
            200..=299 => Ok(()),
            401 | 403 => Err(Failure::Final(format!(
                "{url}: access refused ({}), expected a public repository; try HF_TOKEN",
                response.status().as_u16()
            ))),
            404 | 410 => Err(Failure::Final(format!("{url}: not found"))),
            code @ (408 | 425 | 429 | 500..) => Err(Failure::Passing(format!("{url}: the server answers {code}"))),
            code => Err(Failure::Final(format!("{url}: the server answers {code}"))),
        }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The address of the next page: `<https://...>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = header(headers, "link")?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_owned())
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// The address that a redirect from `url` to `to` means.
fn join(url: &str, to: &str) -> String {
    if to.contains("://") {
        return to.to_owned();
    }
    if let Some(rest) = to.strip_prefix("//") {
        let scheme = url.split_once("://").map_or("https", |(scheme, _)| scheme);
        return format!("{scheme}://{rest}");
    }
    if to.starts_with('/') {
        return format!("{}{to}", origin(url));
    }
    let folder = url.split(['?', '#']).next().unwrap_or(url);
    format!("{}/{to}", folder.rsplit_once('/').map_or(folder, |(folder, _)| folder))
}

fn is_loopback(endpoint: &str) -> bool {
    let host = origin(endpoint).split_once("://").map_or("", |(_, host)| host);
    ["127.0.0.1", "localhost", "[::1]"]
        .iter()
        .any(|&own| host == own || host.strip_prefix(own).is_some_and(|p| p.starts_with(':')))
}

/// Plain names with slashes between.
fn is_plain_path(path: &str) -> bool {
    path.split('/').all(is_plain_name)
}

/// A SHA-256, or git's name for a small file.
fn is_checksum(etag: &str) -> bool {
    matches!(etag.len(), 40 | 64) && etag.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_joined() {
        let from = "https://a.b:1/c/d?e";
        assert_eq!(join(from, "https://x/y"), "https://x/y");
        assert_eq!(join(from, "//x/y"), "https://x/y");
        assert_eq!(join(from, "/y?z"), "https://a.b:1/y?z");
        assert_eq!(join(from, "y"), "https://a.b:1/c/y");
        assert_eq!(origin("https://a.b:1?x"), "https://a.b:1");
        assert!(is_loopback("http://127.0.0.1:80/x") && !is_loopback("http://127.0.0.1.evil.example"));
    }

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
