//! Each mistake of a user gets one clear line and its exit code, without a long wait, and nothing is overwritten.

use std::fs;
use std::path::Path;

use super::{Outcome, text_file, train, wgpt};
use crate::common::not_run::not_run;

/// One mistake: the exit code, and words that the line must have.
#[track_caller]
pub fn refused(outcome: Outcome, code: i32, words: &[&str]) {
    let outcome = outcome.ends_with(code);
    for word in words {
        assert!(outcome.err.contains(word), "expected `{word}` in: {}", outcome.err);
    }
    let lines = outcome.err.lines().filter(|l| l.starts_with("error")).count();
    assert_eq!(lines, 1, "one line: {}", outcome.err);
    assert!(!outcome.err.contains("panicked"), "{}", outcome.err);
    assert!(outcome.seconds < 60.0, "took {} s", outcome.seconds);
}

fn untouched(dir: &Path) {
    assert!(!dir.join("runs").exists(), "a refused run left a folder");
}

#[test]
fn text_files_that_cannot_be_trained_on() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    refused(train(dir, &[]), 3, &["text.txt"]);
    fs::write(dir.join("text.txt"), "").expect("write");
    refused(train(dir, &[]), 3, &["text.txt", "empty"]);
    fs::write(dir.join("text.txt"), "too short").expect("write");
    refused(train(dir, &[]), 3, &["text.txt", "expected", "--batch"]);
    fs::create_dir(dir.join("folder")).expect("folder");
    refused(wgpt(dir, &["train", "--text", "folder"]), 3, &["folder"]);
    untouched(dir);
}

#[test]
fn flags_and_shapes_that_contradict() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 4000);
    let text = ["train", "--text", "text.txt"];
    let with = |more: &[&str]| wgpt(dir, &[&text[..], more].concat());
    refused(
        with(&["--tokenizer", "bytes", "--layers", "1", "--heads", "3", "--channels", "32"]),
        2,
        &["--heads", "32 channels"],
    );
    refused(with(&["--model", "d12", "--context", "1025"]), 2, &["--context", "1024"]);
    refused(with(&["--model", "d13"]), 2, &["--model", "d13", "d12"]);
    refused(with(&["--model", "gpt3:c5140"]), 2, &["gpt3:c5140"]);
    refused(with(&["--model", "d12", "--batch", "0"]), 2, &["--batch"]);
    refused(with(&["--model", "d12", "--layers", "3", "--heads", "1", "--channels", "8"]), 2, &["--model"]);
    refused(with(&["--layers", "3"]), 2, &["--heads", "--channels"]);
    refused(with(&["--model", "d12", "--init", "x"]), 2, &["--init"]);
    refused(with(&["--lr", "-1", "--model", "d12"]), 2, &["--lr"]);
    refused(with(&["--lr", "nan", "--model", "d12"]), 2, &["--lr"]);
    refused(with(&["--steps", "0", "--model", "d12"]), 2, &["--steps"]);
    refused(with(&["--precision", "f8"]), 2, &["f8", "f32"]);
    refused(with(&["--memory", "lots"]), 2, &["lots"]);
    refused(with(&["--nonsense"]), 2, &["--nonsense"]);
    refused(train(dir, &["--tokens-per-step", "33"]), 2, &["--tokens-per-step", "33", "64"]);
    refused(train(dir, &["--eps", "0"]), 2, &["--eps"]);
    refused(train(dir, &["--val-steps", "0"]), 2, &["--val-steps"]);
    refused(train(dir, &["--sample-every", "18446744073709551615"]), 2, &["--sample-every"]);
    refused(train(dir, &["--vocab", "256"]), 2, &["--tokenizer", "257", "256"]);
    for (flag, value) in [("--vocab", "18446744073709551615"), ("--layers", "100000000"), ("--channels", "99999999999")]
    {
        let mut args = vec!["train", "--text", "text.txt", "--tokenizer", "bytes", flag, value];
        for (other, small) in [("--layers", "1"), ("--heads", "2"), ("--channels", "32")] {
            if other != flag {
                args.extend([other, small]);
            }
        }
        refused(wgpt(dir, &args), 2, &[flag.trim_start_matches('-'), value]);
    }
    untouched(dir);
}

#[test]
fn an_unknown_device_names_those_there_are() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 4000);
    refused(train(dir, &["--device", "no such gpu"]), 4, &["--device", "no such gpu", "expected one of", "0: "]);
    refused(train(dir, &["--device", "99"]), 4, &["--device", "99"]);
    untouched(dir);
}

#[test]
fn no_adapter_at_all() {
    let dir = tempfile::tempdir().expect("folder");
    text_file(dir.path(), "text.txt", 4000);
    // a driver file that does not exist hides every adapter: the program is started past tools/run
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_wgpt"))
        .args([
            "train",
            "--text",
            "text.txt",
            "--tokenizer",
            "bytes",
            "--layers",
            "1",
            "--heads",
            "2",
            "--channels",
            "32",
        ])
        .args(["--batch", "2", "--context", "16"])
        .current_dir(dir.path())
        .env("VK_DRIVER_FILES", "/nonexistent")
        .env("VK_ICD_FILENAMES", "/nonexistent")
        .output()
        .expect("the program starts");
    if !cfg!(target_os = "linux") {
        not_run("a machine without adapters", "not Linux, whose Vulkan loader can hide them");
        return;
    }
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{err}");
    assert!(err.contains("no adapter"), "{err}");
    untouched(dir.path());
}

#[test]
fn a_model_that_cannot_fit_is_refused_with_the_table() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 40_000);
    let outcome = train(dir, &["--memory", "512KiB"]);
    refused(outcome, 5, &["expected at most 512.0 KiB", "weights", "gradients", "AdamW m", "in all"]);
    let all = ["train", "--text", "text.txt", "--model", "d48", "--memory", "4GiB", "--batch", "1", "--context", "64"];
    refused(wgpt(dir, &all), 5, &["expected at most 4.0 GiB", "in all"]);
    untouched(dir);
}

/// A shard with a header of our choosing.
fn shard(path: &Path, header: [i32; 3], tokens: &[u16]) {
    let mut bytes = vec![0u8; 1024];
    for (i, word) in header.iter().enumerate() {
        bytes[4 * i..4 * i + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
    fs::write(path, bytes).expect("write");
}

#[test]
fn shards_that_are_broken() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let tokens: Vec<u16> = (0..500).map(|i| i % 90).collect();
    let args = [
        "train",
        "--data",
        "train_*.bin",
        "--vocab",
        "100",
        "--layers",
        "1",
        "--heads",
        "2",
        "--channels",
        "32",
        "--batch",
        "2",
        "--context",
        "16",
        "--steps",
        "1",
    ];
    let with = |header, tokens: &[u16]| {
        shard(&dir.join("train_1.bin"), header, tokens);
        wgpt(dir, &args)
    };
    refused(wgpt(dir, &args), 3, &["train_*.bin"]);
    refused(with([1, 1, 500], &tokens), 3, &["train_1.bin", "magic", "20240520"]);
    refused(with([20_240_520, 7, 500], &tokens), 3, &["train_1.bin", "version"]);
    refused(with([20_240_520, 1, 501], &tokens), 3, &["train_1.bin", "expected"]);
    refused(with([20_240_520, 1, -5], &tokens), 3, &["train_1.bin"]);
    refused(with([20_240_520, 1, 20], &tokens[..20]), 3, &["train_1.bin", "expected"]);
    untouched(dir);
    let mut wrong = tokens.clone();
    wrong[7] = 100;
    let wide: Vec<&str> = args.iter().copied().chain(["--no-shuffle"]).collect();
    shard(&dir.join("train_1.bin"), [20_240_520, 1, 500], &wrong);
    refused(wgpt(dir, &wide), 3, &["train_1.bin", "100", "vocabulary"]);
    untouched(dir);
}

#[test]
fn an_output_folder_that_cannot_be_written() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 4000);
    refused(train(dir, &["--out", "text.txt/run"]), 6, &["text.txt"]);
}

#[test]
fn weights_folders_that_are_broken() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 4000);
    refused(wgpt(dir, &["train", "--text", "text.txt", "--init", "missing"]), 3, &["missing"]);
    refused(wgpt(dir, &["generate", "--from", "missing", "Once"]), 3, &["missing"]);
    fs::create_dir(dir.join("half")).expect("folder");
    fs::write(dir.join("half/config.json"), "{}").expect("write");
    refused(wgpt(dir, &["generate", "--from", "half", "Once"]), 3, &["config.json"]);
    untouched(dir);
}
