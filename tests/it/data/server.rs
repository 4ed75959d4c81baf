//! A small hub on loopback that can be told to misbehave.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

/// The commit that every file belongs to.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How a file's bytes are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As it should be.
    Good,
    /// The connection ends after so many bytes, each time.
    BreaksOff(usize),
    /// Ranges are not understood: the whole file comes each time. The first time it breaks off after so many bytes.
    NoRanges(usize),
    /// One byte is wrong, so many times.
    Wrong(usize),
    /// The announced length is this much longer than the file.
    Announces(i64),
    /// More bytes come than the file has, without an announced length.
    TooLong,
    /// The server fails so many times first.
    Fails(usize),
    /// Another part comes than was asked for.
    WrongPart,
    /// Nothing comes after the first bytes.
    Stalls,
    /// After so many bytes one comes every 5 ms, the first time.
    Trickles(usize),
    /// 403.
    Refused,
}

#[derive(Debug, Clone)]
pub struct Served {
    pub path: String,
    pub bytes: Vec<u8>,
    /// A large file: it has a SHA-256, and its bytes lie on another host.
    pub large: bool,
    pub manner: Manner,
    /// The size that listings tell, if not the true one.
    pub listed: Option<usize>,
}

impl Served {
    pub fn new(path: &str, bytes: Vec<u8>, manner: Manner) -> Self {
        Self { path: path.into(), bytes, large: true, manner, listed: None }
    }

    pub fn etag(&self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        if self.large {
            hex(&Sha256::digest(&self.bytes))
        } else {
            let mut hash = sha1::Sha1::new();
            hash.update(format!("blob {}\0", self.bytes.len()));
            hash.update(&self.bytes);
            hex(&hash.finalize())
        }
    }
}

#[derive(Debug, Clone)]
pub struct Request {
    /// Address without the host.
    pub path: String,
    pub headers: HashMap<String, String>,
}

struct Shared {
    address: String,
    files: Vec<Served>,
    repo: String,
    /// Where large files are redirected to, `{}` being the path; none for this server itself.
    redirect: Option<String>,
    requests: Mutex<Vec<Request>>,
    served: Mutex<HashMap<String, usize>>,
    end: AtomicBool,
}

pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves files as `repo`, in whose place the API's and the files' addresses have it (`datasets/owner/name`).
    pub fn new(repo: &str, files: Vec<Served>, redirect: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = Arc::new(Shared {
            address: format!("http://{}", listener.local_addr().unwrap()),
            files,
            repo: repo.into(),
            redirect: redirect.map(String::from),
            requests: Mutex::default(),
            served: Mutex::default(),
            end: AtomicBool::new(false),
        });
        let own = shared.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if own.end.load(Ordering::SeqCst) {
                    return;
                }
                let own = own.clone();
                std::thread::spawn(move || while matches!(own.answer(&stream), Some(true)) {});
            }
        });
        Self { shared, thread: Some(thread) }
    }

    pub fn address(&self) -> String {
        self.shared.address.clone()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.shared.address.trim_start_matches("http://"));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Answers one request; whether the connection may go on.
    fn answer(&self, stream: &TcpStream) -> Option<bool> {
        let mut lines = BufReader::new(stream).lines();
        let line = lines.next()?.ok()?;
        let mut headers = HashMap::new();
        for line in lines {
            let line = line.ok()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
        let mut words = line.split(' ');
        let (method, path) = (words.next()?, words.next()?.to_owned());
        self.requests.lock().unwrap().push(Request { path: path.clone(), headers: headers.clone() });
        // storage takes any query, a listing its own
        let path = if path.starts_with("/api/") { path } else { path.split('?').next()?.to_owned() };
        let range =
            headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        let mut out = stream;
        if path.starts_with("/api/") {
            return self.list(&mut out, &path);
        }
        let storage = path.strip_prefix("/storage/");
        let own = format!("/{}/resolve/main/", self.repo.trim_start_matches("models/"));
        let name = storage.or(path.strip_prefix(own.as_str()))?;
        let Some(file) = self.files.iter().find(|f| f.path == name) else {
            return send(&mut out, "404 Not Found", &[("Content-Length", "0".into())], b"", method);
        };
        let mut head = vec![("X-Repo-Commit", COMMIT.to_owned()), ("ETag", format!("\"{}\"", file.etag()))];
        if file.large && storage.is_none() {
            let to = self.redirect.as_ref().map_or(format!("/storage/{name}"), |r| r.replace("{}", name));
            head.push(("Location", to));
            head.push(("X-Linked-Etag", format!("\"{}\"", file.etag())));
            head.push(("X-Linked-Size", file.bytes.len().to_string()));
            head.push(("Content-Length", "0".into()));
            return send(&mut out, "302 Found", &head, b"", method);
        }
        if method == "HEAD" {
            head.push(("Content-Length", file.bytes.len().to_string()));
            return send(&mut out, "200 OK", &head, b"", method);
        }
        self.bytes(&mut out, file, range, head)
    }

    fn list(&self, out: &mut &TcpStream, path: &str) -> Option<bool> {
        if !path.starts_with(&format!("/api/{}/tree/main", self.repo)) {
            return send(out, "404 Not Found", &[("Content-Length", "0".into())], b"", "GET");
        }
        // two pages, the second one named with another host, as a mirror might
        let second = path.contains("cursor=2");
        let half = self.files.len() / 2;
        let files = if second { &self.files[half..] } else { &self.files[..half] };
        let mut entries: Vec<serde_json::Value> = files
            .iter()
            .map(|f| {
                let size = f.listed.unwrap_or(f.bytes.len());
                let mut entry = serde_json::json!({"type": "file", "path": f.path, "size": size, "oid": f.etag()});
                if f.large {
                    entry["lfs"] = serde_json::json!({"oid": f.etag(), "size": size, "pointerSize": 130});
                }
                entry
            })
            .collect();
        entries.push(serde_json::json!({"type": "directory", "path": "data", "size": 0, "oid": "00"}));
        entries.push(serde_json::json!({"type": "file", "path": "../../evil", "size": 1, "oid": "00"}));
        let text = serde_json::Value::from(entries).to_string();
        let mut head = vec![("Content-Length", text.len().to_string())];
        if !second {
            head.push((
                "Link",
                format!("<https://original.example/api/{}/tree/main?cursor=2>; rel=\"next\"", self.repo),
            ));
        }
        send(out, "200 OK", &head, text.as_bytes(), "GET")
    }

    fn bytes(
        &self,
        out: &mut &TcpStream,
        file: &Served,
        range: Option<usize>,
        mut head: Vec<(&str, String)>,
    ) -> Option<bool> {
        let time = {
            let mut served = self.served.lock().unwrap();
            let count = served.entry(file.path.clone()).or_default();
            *count += 1;
            *count
        };
        let mut bytes = file.bytes.clone();
        let mut start = range.unwrap_or(0);
        match file.manner {
            Manner::Refused => return send(out, "403 Forbidden", &[("Content-Length", "0".into())], b"", "GET"),
            Manner::Fails(times) if time <= times => {
                return send(out, "503 Service Unavailable", &[("Content-Length", "0".into())], b"", "GET");
            }
            Manner::Wrong(times) if time <= times => bytes[0] ^= 1,
            Manner::NoRanges(_) => start = 0,
            Manner::WrongPart if start > 0 => start += 1,
            _ => {}
        }
        if start > bytes.len() {
            return send(out, "416 Range Not Satisfiable", &[("Content-Length", "0".into())], b"", "GET");
        }
        let part = start > 0;
        if part {
            head.push(("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len())));
        }
        let body = &bytes[start..];
        let (mut length, mut sent) = (Some(body.len() as i64), body.to_vec());
        match file.manner {
            Manner::BreaksOff(n) => sent.truncate(n),
            Manner::NoRanges(n) if time == 1 => sent.truncate(n),
            Manner::WrongPart if start == 0 => sent.truncate(10),
            Manner::Stalls => sent.truncate(10),
            Manner::Trickles(n) if time == 1 => sent.truncate(n),
            Manner::Announces(more) => length = Some(body.len() as i64 + more),
            Manner::TooLong => {
                sent.extend([0; 100]);
                length = None;
            }
            _ => {}
        }
        if let Some(length) = length {
            head.push(("Content-Length", length.to_string()));
        }
        head.push(("Connection", "close".into()));
        send(out, if part { "206 Partial Content" } else { "200 OK" }, &head, &sent, "GET");
        match file.manner {
            Manner::Stalls => std::thread::sleep(std::time::Duration::from_secs(3)),
            // until the reader leaves
            Manner::Trickles(n) if time == 1 => {
                for byte in &body[n..] {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    out.write_all(&[*byte]).ok()?;
                }
            }
            _ => {}
        }
        let _ = out.shutdown(std::net::Shutdown::Both);
        Some(false)
    }
}

fn send(out: &mut &TcpStream, status: &str, headers: &[(&str, String)], body: &[u8], method: &str) -> Option<bool> {
    let mut text = format!("HTTP/1.1 {status}\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    out.write_all(text.as_bytes()).ok()?;
    if method != "HEAD" {
        out.write_all(body).ok()?;
    }
    out.flush().ok()?;
    Some(true)
}
