//! Text files of all kinds, through `wgpt train`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::bad_input::refused;
use super::{SMALL, program, train, wgpt};

/// Starts `wgpt train` on a text whose name is not UTF-8, through tools/run where the others go through it.
fn train_on(dir: &Path, text: &OsStr, more: &[&str]) -> std::process::Output {
    let mut command = program();
    command.args(["train", "--text"]).arg(text).args(["--batch", "2", "--context", "16", "--steps", "2"]);
    command.args(SMALL).args(more).current_dir(dir).env("WGPT_QUIET", "1").env("WGPT_CACHE", dir.join("cache"));
    command.output().expect("the program starts")
}

#[test]
fn a_text_whose_name_is_not_utf_8_is_trained_on_and_resumed() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let name = OsStr::from_bytes(b"caf\xe9.txt");
    std::fs::write(dir.join(name), "one<|endoftext|>two, ".repeat(100)).expect("write");
    let out = ["--out", "run", "--split-on", "<|endoftext|>"];
    for words in ["step", "finished"] {
        let output = train_on(dir, name, &out);
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains(words), "{text}");
    }
    let config = std::fs::read_to_string(dir.join("run/config.toml")).expect("config.toml");
    assert!(config.contains("caf%E9.txt") && config.contains("split-on = \"<|endoftext|>\""), "{config}");
    wgpt(dir, &["train", "run", "--steps", "3"]).ends_with(0);
    let output = train_on(dir, name, &["--out", "run"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && text.contains("split-on"), "{text}");
}

#[test]
fn a_spelled_end_of_text_is_reported_and_packed_text_unpacked() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let text = "one<|endoftext|>two, ".repeat(100);
    std::fs::write(dir.join("text.txt"), zstd::encode_all(text.as_bytes(), 1).expect("zstd")).expect("write");
    let outcome = train(dir, &["--steps", "1", "--out", "run"]).ends_with(0);
    let said = &outcome.err;
    assert!(said.contains("<|endoftext|> is spelled 100 times") && said.contains("--split-on"), "{said}");
    refused(train(dir, &["--split-on", ""]), 2, &["--split-on"]);
    refused(wgpt(dir, &["train", "--split-on", "x"]), 2, &["--split-on", "--text"]);
    std::fs::write(dir.join("text.txt"), b"\xff\xfea\0").expect("write");
    refused(train(dir, &[]), 3, &["text.txt", "UTF-16", "iconv"]);
}
