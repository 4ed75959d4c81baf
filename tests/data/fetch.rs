//! Fetching from a hub that misbehaves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use wgpt::data::fetch::{Entry, FetchObserver, Fetched, Files, Hub, Kind, catalog};
use wgpt::error::{Error, Result};

use crate::made::command;
use crate::server::{COMMIT, Manner, Served, Server};

const ENTRY: Entry = Entry {
    name: "probe",
    kind: Kind::Dataset,
    repo: "owner/name",
    files: Files::Listed(&["a.bin"], &["notes.txt"]),
    about: "",
    verified: true,
};

#[derive(Default)]
struct Log(Vec<String>);

impl FetchObserver for Log {
    fn file_started(&mut self, _: &str, _: u64, _: u64) {}
    fn progressed(&mut self, _: u64) {}
    fn retrying(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

fn contents(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub {
        endpoint: server.address(),
        cache: cache.to_owned(),
        token: Some("secret".into()),
        offline: false,
        pause: Duration::from_millis(1),
        timeout: Duration::from_millis(700),
        stall: Duration::from_secs(60),
    }
}

fn serve(manner: Manner) -> Server {
    let notes = Served { large: false, ..Served::new("notes.txt", b"small".to_vec(), Manner::Good) };
    Server::new("datasets/owner/name", vec![notes, Served::new("a.bin", contents(300_000), manner)], None)
}

/// Fetches once; what came out, the troubles on the way, and the files that lie under a final name.
fn fetch(server: &Server, cache: &Path) -> (Result<Fetched>, Vec<String>) {
    let mut log = Log::default();
    let result = hub(server, cache).fetch(&ENTRY, 0, &mut log);
    (result, log.0)
}

fn folder(cache: &Path) -> PathBuf {
    cache.join("datasets--owner--name")
}

fn snapshot(cache: &Path) -> PathBuf {
    folder(cache).join("snapshots").join(COMMIT)
}

#[test]
fn files_come_into_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(Manner::Good);
    let (fetched, troubles) = fetch(&server, cache.path());
    let fetched = fetched.unwrap();
    assert!(troubles.is_empty(), "{troubles:?}");
    assert_eq!((fetched.folder.clone(), fetched.received), (snapshot(cache.path()), 300_005));
    assert_eq!(fetched.files, ["a.bin", "notes.txt"]);
    assert!(std::fs::read(fetched.folder.join("a.bin")).unwrap() == contents(300_000));
    assert_eq!(std::fs::read_to_string(fetched.folder.join("notes.txt")).unwrap(), "small");
    assert_eq!(std::fs::read_to_string(folder(cache.path()).join("refs/main")).unwrap(), COMMIT);
    if cfg!(unix) {
        let etag = Served::new("a.bin", contents(300_000), Manner::Good).etag();
        let link = std::fs::read_link(fetched.folder.join("a.bin")).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(etag));
    }
    assert!(!cache.path().join("evil").exists());
    // the second time nothing is fetched, and without a network nothing is asked
    assert_eq!(fetch(&server, cache.path()).0.unwrap().received, 0);
    let offline = Hub { offline: true, endpoint: "http://127.0.0.1:9".into(), ..hub(&server, cache.path()) };
    assert_eq!(offline.fetch(&ENTRY, 0, &mut Log::default()).unwrap().folder, fetched.folder);
    assert_eq!(offline.cached(&ENTRY, 0), Some(fetched.folder));
}

#[test]
fn a_ref_leads_to_no_folder_outside_of_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(Manner::Good);
    let fetched = fetch(&server, cache.path()).0.unwrap();
    let other = cache.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("a.bin"), "planted").unwrap();
    for main in ["../../other", "../../../other", other.to_str().unwrap(), ""] {
        std::fs::write(folder(cache.path()).join("refs/main"), main).unwrap();
        assert_eq!(hub(&server, cache.path()).cached(&ENTRY, 0).as_ref(), Some(&fetched.folder), "{main}");
    }
}

#[test]
fn a_break_is_gone_on_from() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(Manner::BreaksOff(40_000));
    let (fetched, troubles) = fetch(&server, cache.path());
    assert_eq!(fetched.unwrap().received, 300_005);
    assert_eq!(troubles.len(), 7);
    let ranges: Vec<String> = server.requests().iter().filter_map(|r| r.headers.get("range").cloned()).collect();
    assert!(ranges.contains(&"bytes=280000-".to_owned()), "{ranges:?}");
    assert!(std::fs::read(snapshot(cache.path()).join("a.bin")).unwrap() == contents(300_000));
}

#[test]
fn a_later_run_goes_on_too() {
    let cache = tempfile::tempdir().unwrap();
    let broken = serve(Manner::BreaksOff(0));
    let file = Served::new("a.bin", contents(300_000), Manner::Good);
    let incomplete = folder(cache.path()).join("blobs").join(format!("{}.incomplete", file.etag()));
    std::fs::create_dir_all(incomplete.parent().unwrap()).unwrap();
    std::fs::write(&incomplete, &contents(300_000)[..123_456]).unwrap();
    let (result, _) = fetch(&broken, cache.path());
    let error = result.unwrap_err();
    assert!(
        matches!(&error, Error::Network(_))
            && error.to_string().contains("5 times in a row")
            && error.to_string().contains("by hand"),
        "{error}"
    );
    assert!(!snapshot(cache.path()).join("a.bin").exists() && incomplete.exists());
    let (fetched, _) = fetch(&serve(Manner::Good), cache.path());
    assert_eq!(fetched.unwrap().received, 300_005 - 123_456);
    assert!(!incomplete.exists());
    // what lies there may be longer than the file, or of another one
    for bytes in [contents(300_010), vec![9; 300_000], vec![9; 5]] {
        std::fs::remove_dir_all(folder(cache.path())).unwrap();
        std::fs::create_dir_all(incomplete.parent().unwrap()).unwrap();
        std::fs::write(&incomplete, bytes).unwrap();
        fetch(&serve(Manner::Good), cache.path()).0.unwrap();
        assert!(std::fs::read(snapshot(cache.path()).join("a.bin")).unwrap() == contents(300_000));
    }
}

#[test]
fn servers_that_recover_are_borne_with() {
    for manner in [Manner::NoRanges(100_000), Manner::Wrong(1), Manner::Fails(3), Manner::WrongPart] {
        let cache = tempfile::tempdir().unwrap();
        let (fetched, troubles) = fetch(&serve(manner), cache.path());
        if manner == Manner::WrongPart {
            assert!(matches!(fetched, Err(Error::Network(_))));
            assert!(!snapshot(cache.path()).join("a.bin").exists());
            continue;
        }
        fetched.unwrap();
        assert!(!troubles.is_empty(), "{manner:?}");
        assert!(std::fs::read(snapshot(cache.path()).join("a.bin")).unwrap() == contents(300_000), "{manner:?}");
    }
}

#[test]
fn servers_that_lie_are_not_believed() {
    for (manner, what) in [
        (Manner::Wrong(100), "wrong checksum, expected"),
        (Manner::Announces(7), "wrong size, expected 300,000 bytes, got 300,007"),
        (Manner::Announces(-7), "wrong size, expected 300,000 bytes, got 299,993"),
        (Manner::TooLong, "too long, expected 300,000 bytes"),
        (Manner::Stalls, "interrupted at byte"),
        (Manner::Refused, "access refused (403)"),
        (Manner::Fails(100), "the server returned 503"),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let error = fetch(&serve(manner), cache.path()).0.unwrap_err();
        assert!(
            matches!(&error, Error::Network(_))
                && error.to_string().contains(what)
                && !error.to_string().contains('\n'),
            "{manner:?}: {error}"
        );
        assert_eq!(error.exit_code(), 1);
        let blobs: Vec<String> = std::fs::read_dir(folder(cache.path()).join("blobs"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".incomplete"))
            .collect();
        assert!(blobs.is_empty() && !snapshot(cache.path()).join("a.bin").exists(), "{manner:?}: {blobs:?}");
    }
}

#[test]
fn a_hub_that_contradicts_itself_is_not_believed() {
    let cache = tempfile::tempdir().unwrap();
    let file = Served { listed: Some(10), ..Served::new("a.bin", contents(100), Manner::Good) };
    let error = fetch(&Server::new("datasets/owner/name", vec![file], None), cache.path()).0.unwrap_err();
    assert_eq!([error.fault().expected.as_str(), &error.fault().found], ["size 10 as listed", "100"]);
}

#[test]
fn redirects_lead_to_other_hosts_but_the_token_stays() {
    let cache = tempfile::tempdir().unwrap();
    let file = || Served::new("a.bin", contents(1000), Manner::Good);
    let storage = Server::new("datasets/owner/name", vec![file()], None);
    let to = format!("{}/storage/{{}}", storage.address());
    let server = Server::new("datasets/owner/name", vec![file()], Some(&to));
    fetch(&server, cache.path()).0.unwrap();
    assert!(server.requests().iter().all(|r| r.headers.get("authorization").is_some_and(|v| v == "Bearer secret")));
    let elsewhere = storage.requests();
    assert!(
        elsewhere.len() == 1 && elsewhere.iter().all(|r| !r.headers.contains_key("authorization")),
        "{elsewhere:?}"
    );
}

#[test]
fn relative_redirects_of_any_query_stay_with_the_hub_and_its_token() {
    for to in [
        "/storage/{}?c=http://127.0.0.1:9/x",
        "../../../../../storage/{}?to=https://127.0.0.1:9/../x",
        "./../../../../../storage/{}#https://127.0.0.1:9",
        "/elsewhere/..//storage/../../storage/{}",
    ] {
        let cache = tempfile::tempdir().unwrap();
        let file = Served::new("a.bin", contents(1000), Manner::Good);
        let server = Server::new("datasets/owner/name", vec![file], Some(to));
        fetch(&server, cache.path()).0.unwrap_or_else(|e| panic!("{to}: {e}"));
        let requests = server.requests();
        assert!(requests.iter().any(|r| r.path.starts_with("/storage/a.bin")), "{to}: {requests:?}");
        assert!(requests.iter().all(|r| r.headers.contains_key("authorization")), "{to}: {requests:?}");
    }
    // an address without a scheme is another host's all the same
    let file = || Served::new("a.bin", contents(1000), Manner::Good);
    let storage = Server::new("datasets/owner/name", vec![file()], None);
    let to = format!("//{}/storage/{{}}?c=http://d/e", storage.address().trim_start_matches("http://"));
    let server = Server::new("datasets/owner/name", vec![file()], Some(&to));
    fetch(&server, tempfile::tempdir().unwrap().path()).0.unwrap();
    let elsewhere = storage.requests();
    assert_eq!(elsewhere.len(), 1);
    assert!(!elsewhere[0].headers.contains_key("authorization"), "{elsewhere:?}");
}

#[test]
fn a_trickle_is_given_up_and_resumed() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(Manner::Trickles(100_000));
    let hub = Hub { stall: Duration::from_millis(400), ..hub(&server, cache.path()) };
    let mut log = Log::default();
    let begin = std::time::Instant::now();
    let fetched = hub.fetch(&ENTRY, 0, &mut log).unwrap();
    assert!(log.0.len() == 1 && log.0[0].contains("stalled: under 1.0 KiB per second for 0.4 s"), "{:?}", log.0);
    assert_eq!(fetched.received, 300_005);
    let ranges: Vec<String> = server.requests().iter().filter_map(|r| r.headers.get("range").cloned()).collect();
    let from: Vec<usize> =
        ranges.iter().filter_map(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).collect();
    // of the hub and of the storage; all of the trickle would take 1000 s
    assert!(from.len() == 2 && from.iter().all(|from| (100_001..110_000).contains(from)), "{ranges:?}");
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    assert!(std::fs::read(snapshot(cache.path()).join("a.bin")).unwrap() == contents(300_000));
}

#[test]
fn a_disk_without_room_is_told_before_the_first_byte() {
    let cache = tempfile::tempdir().unwrap();
    let listed = Some(isize::MAX as usize);
    let file = Served { listed, ..Served::new("a.bin", contents(100), Manner::Good) };
    let server = Server::new("datasets/owner/name", vec![file], None);
    let error = fetch(&server, cache.path()).0.unwrap_err();
    assert_eq!(error.exit_code(), 6);
    assert!(error.fault().expected == "8388608.0 TiB free", "{error}");
    assert!(error.fault().found.ends_with("B") && error.fault().place.contains("datasets--owner--name"), "{error}");
    assert!(server.requests().iter().all(|r| r.path.starts_with("/api/")), "{:?}", server.requests());
}

#[cfg(unix)]
#[test]
fn links_in_the_place_of_what_grows_in_the_cache_are_not_followed() {
    use std::os::unix::fs::symlink;
    let etag = Served::new("a.bin", contents(300_000), Manner::Good).etag();
    let victim = |cache: &Path| {
        let victim = cache.join("victim");
        std::fs::write(&victim, "precious").unwrap();
        victim
    };
    for place in [format!("blobs/{etag}.incomplete"), format!("snapshots/{COMMIT}"), "refs".to_owned()] {
        let cache = tempfile::tempdir().unwrap();
        let (victim, link) = (victim(cache.path()), folder(cache.path()).join(&place));
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(&victim, &link).unwrap();
        let error = fetch(&serve(Manner::Good), cache.path()).0.unwrap_err();
        assert!(error.exit_code() == 6 && error.to_string().contains("is a link"), "{place}: {error}");
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious", "{place}");
    }
    // finished files and pointers are replaced, and a user's own link to another disk is followed
    let (cache, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let victim = victim(cache.path());
    std::fs::create_dir_all(snapshot(cache.path())).unwrap();
    std::fs::create_dir_all(folder(cache.path()).join("refs")).unwrap();
    symlink(disk.path(), folder(cache.path()).join("blobs")).unwrap();
    for link in [disk.path().join(&etag), snapshot(cache.path()).join("a.bin"), folder(cache.path()).join("refs/main")]
    {
        symlink(&victim, link).unwrap();
    }
    fetch(&serve(Manner::Good), cache.path()).0.unwrap();
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    assert!(disk.path().join(&etag).symlink_metadata().unwrap().is_file());
    assert!(folder(cache.path()).join("refs/main").symlink_metadata().unwrap().is_file());
}

#[test]
fn redirects_to_nowhere_and_in_circles_end() {
    for (to, what) in [("file:///etc/passwd", "expected https"), ("/datasets/owner/name/resolve/main/{}", "redirects")]
    {
        let cache = tempfile::tempdir().unwrap();
        let server =
            Server::new("datasets/owner/name", vec![Served::new("a.bin", contents(10), Manner::Good)], Some(to));
        let error = fetch(&server, cache.path()).0.unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn the_program_fetches_by_name() {
    let cache = tempfile::tempdir().unwrap();
    let shard = |i: u8| Served::new(&format!("fineweb_train_{i:06}.bin"), contents(500 + usize::from(i)), Manner::Good);
    let mut files: Vec<Served> = (1..=4).map(shard).collect();
    files.push(Served::new("fineweb_val_000000.bin", contents(400), Manner::Good));
    let server = Server::new("datasets/kjj0/fineweb10B-gpt2", files, None);
    let run = |arguments: &[&str], endpoint: &str| {
        let output = command(arguments)
            .env("HF_ENDPOINT", endpoint)
            .env("HF_HOME", cache.path())
            .env_remove("HF_HUB_CACHE")
            .env_remove("HF_HUB_OFFLINE")
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = run(&["data", "fetch", "fineweb10B", "--shards", "2"], &server.address());
    assert!(code == Some(0) && text.contains("train --data fineweb10B:2 --val fineweb10B\n"), "{text}");
    assert!(text.contains("fineweb10B: 2 training shards and validation, 3 files in"), "{text}");
    let folder = cache.path().join("hub/datasets--kjj0--fineweb10B-gpt2/snapshots").join(COMMIT);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3);
    // nobody there: which file to put where
    let (code, text) = run(&["data", "fetch", "gpt2"], "http://127.0.0.1:9");
    assert_eq!(code, Some(1), "{text}");
    for part in [
        "config.json and model.safetensors",
        "openai-community/gpt2/tree/main",
        "models--openai-community--gpt2/snapshots/by-hand",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // done as it says, the name works
    let by_hand = cache.path().join("hub/models--openai-community--gpt2/snapshots/by-hand");
    std::fs::create_dir_all(&by_hand).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::write(by_hand.join(name), "x").unwrap();
    }
    let hub = Hub { cache: cache.path().join("hub"), ..hub(&server, cache.path()) };
    assert_eq!(hub.cached(catalog::find("gpt2").unwrap(), 0), Some(by_hand));
    let (code, text) = run(&["data", "fetch", "no-such-name"], &server.address());
    assert!(code == Some(2) && text.contains("expected one of tinyshakespeare, tinystories, fineweb10B"), "{text}");
    let (code, text) = run(&["data", "fetch", "gtp2"], &server.address());
    assert!(code == Some(2) && text.contains("; try gpt2"), "{text}");
    assert_eq!(run(&["data", "fetch", "gpt2", "--shards", "2"], &server.address()).0, Some(2));
}

#[test]
fn anybodys_weights_are_fetched_by_their_repository() {
    let cache = tempfile::tempdir().unwrap();
    let file = |path: &str| Served::new(path, contents(100), Manner::Good);
    let files = vec![file("config.json"), file("model.safetensors"), file("pytorch_model.bin")];
    let server = Server::new("models/some-body/tiny", files, None);
    let output = command(&["data", "fetch", "some-body/tiny"])
        .env("HF_ENDPOINT", server.address())
        .env("HF_HUB_CACHE", cache.path())
        .env_remove("HF_HUB_OFFLINE")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("generate --from some-body/tiny"), "{output:?}");
    let snapshot = cache.path().join("models--some-body--tiny/snapshots").join(COMMIT);
    assert_eq!(std::fs::read_dir(snapshot).unwrap().count(), 2);
}
