//! Data that changed between a run's end and its resume, in places that no sample of tokens looks at.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::bad_input::refused;
use super::resume::{signal, spawn, wait_for};
use super::{Outcome, SMALL, text_file, wgpt};

const FLAGS: [&str; 8] = ["--batch", "2", "--context", "16", "--checkpoint-every", "2", "--out", "run"];

/// A token, or a letter, that is far from the start, the middle and the end of some 300,000.
const FAR: usize = 90_000;

fn args<'a>(data: &[&'a str], steps: &'a str) -> Vec<&'a str> {
    [&["train"], data, &["--steps", steps], &SMALL, &FLAGS].concat()
}

/// Resumes the run, to so many steps.
fn resume(dir: &Path, steps: &str, more: &[&str]) -> Outcome {
    wgpt(dir, &[&["train", "--resume", "run", "--steps", steps], more].concat())
}

/// Changes one byte of a file, and returns the one that was there.
fn replace(path: &Path, at: usize, byte: u8) -> u8 {
    let mut bytes = fs::read(path).expect("file");
    let old = std::mem::replace(&mut bytes[at], byte);
    assert_ne!(old, byte);
    fs::write(path, bytes).expect("write");
    old
}

fn note(dir: &Path) -> serde_json::Value {
    let text = fs::read_to_string(dir.join("run/data.json")).expect("data.json");
    serde_json::from_str(&text).expect("JSON")
}

fn shard(path: &Path, tokens: usize) {
    let tokens: Vec<u16> = (0..tokens).map(|i| (i * i % 251) as u16).collect();
    wgpt::data::write_shard(path, &tokens).expect("shard");
}

#[test]
fn one_byte_changed_in_the_middle_of_a_shard_is_found_at_a_resume() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    shard(&dir.join("a.bin"), 300_000);
    shard(&dir.join("v.bin"), 300_000);
    let data = ["--data", "a.bin", "--val", "v.bin", "--val-steps", "1"];
    wgpt(dir, &args(&data, "4")).ends_with(0);
    let hash = blake3::hash(&fs::read(dir.join("a.bin")).expect("shard")).to_hex().to_string();
    assert_eq!(note(dir)["training"][0]["blake3"].as_str(), Some(hash.as_str()));
    assert!(note(dir)["validation"][0]["blake3"].is_string());

    for name in ["a.bin", "v.bin"] {
        let at = 1024 + 2 * FAR;
        let old = replace(&dir.join(name), at, 253);
        let named = format!("{name}: its contents are not those with which run began, expected BLAKE3 ");
        refused(resume(dir, "6", &[]), 3, &[&named, "; restore it, or use --restart to start over"]);
        replace(&dir.join(name), at, old);
    }
    // the bytes are back, their times are not
    let out = resume(dir, "5", &[]).ends_with(0).out;
    assert!(out.contains("data     comparing 2 files") || out.matches("data     comparing ").count() == 2, "{out}");

    // elsewhere, and with other validation
    fs::create_dir(dir.join("new")).expect("folder");
    fs::rename(dir.join("a.bin"), dir.join("new/b.bin")).expect("rename");
    shard(&dir.join("w.bin"), 1000);
    let out = resume(dir, "7", &["--data", "new/b.bin", "--val", "w.bin"]).ends_with(0).out;
    assert!(out.contains("new/b.bin (0.6 MB): its path or times") && out.contains("validate other files"), "{out}");
    assert!(note(dir)["training"][0]["path"].as_str().expect("path").ends_with("new/b.bin"));
    assert!(note(dir)["validation"][0]["path"].as_str().expect("path").ends_with("w.bin"));

    let text = fs::read_to_string(dir.join("run/data.json")).expect("note");
    fs::write(dir.join("run/data.json"), &text[..text.len() / 2]).expect("write");
    refused(resume(dir, "8", &[]), 3, &["run/data.json: is broken (", "--restart to start over"]);
}

#[test]
fn one_letter_changed_in_a_text_is_found_at_a_resume() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let text = text_file(dir, "text.txt", 300_000);
    wgpt(dir, &args(&["--text", "text.txt", "--val-steps", "1"], "4")).ends_with(0);
    for (place, at) in [("where no sample looks", FAR), ("where one looks", 10)] {
        let old = replace(&text, at, b'#');
        let named = ["text.txt: its contents are not those with which run began", "expected BLAKE3 "];
        refused(resume(dir, "5", &[]), 3, &named);
        replace(&text, at, old);
        assert!(!dir.join("run/checkpoints/step-00000005").exists(), "{place}");
    }
    // touched only
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    File::options().write(true).open(&text).expect("text").set_modified(time).expect("time");
    let out = resume(dir, "5", &[]).ends_with(0).out;
    assert!(out.contains("data     comparing ") && out.contains("text.txt (0.3 MB): its path or times"), "{out}");
    assert_eq!(note(dir)["training"][0]["modified"], "1700000000.000000000");

    // as a kill leaves it that comes before the hash is known
    let mut unknown = note(dir);
    unknown["training"][0].as_object_mut().expect("file").remove("blake3");
    fs::write(dir.join("run/data.json"), unknown.to_string()).expect("write");
    File::options().write(true).open(&text).expect("text").set_modified(SystemTime::now()).expect("time");
    refused(resume(dir, "7", &[]), 3, &["text.txt: was modified after run read it and before its hash was recorded"]);
}

#[test]
fn a_killed_run_knows_the_hashes_that_were_noted_when_its_shards_were_prepared() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 400_000);
    wgpt(dir, &["data", "prepare", "text.txt", "--tokenizer", "bytes", "--out", "set"]).ends_with(0);
    let mut child = spawn(dir, &args(&["--data", "set", "--val", "set", "--val-steps", "1"], "100000"));
    assert!(wait_for(&mut child, "step 1/"));
    let prepared = fs::read_to_string(dir.join("set/dataset.json")).expect("dataset.json");
    let prepared: serde_json::Value = serde_json::from_str(&prepared).expect("JSON");
    // validation comes first there
    let hashes = [&note(dir)["validation"][0], &note(dir)["training"][0]].map(|file| file["blake3"].clone());
    assert_eq!(hashes, [0, 1].map(|i| prepared["shards"][i]["blake3"].clone()));
    assert!(hashes[0].is_string());
    while !dir.join("run/checkpoints/step-00000002/manifest.json").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&child, "-KILL");
    child.wait().expect("wait");
    let changed = dir.join("set/set_train_000001.bin");
    let old = replace(&changed, 1024 + 2 * FAR, 1);
    let again = wgpt(dir, &["train", "--resume", "run"]);
    refused(again, 3, &["set_train_000001.bin: its contents are not those with which run began"]);
    replace(&changed, 1024 + 2 * FAR, old);
    let more = note(dir);
    wgpt(dir, &["train", "--resume", "run", "--print-config"]).ends_with(0);
    assert_eq!(note(dir), more, "what only looks writes nothing");
}
