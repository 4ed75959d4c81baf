//! Every text that a user can see, as snapshots: help, answers to mistakes, the output of each command, and a catalogue of
//! all literals of the source that messages are made of. `UPDATE_EXPECT=1 cargo test --release --test it messages` rewrites them, so
//! that a reworded message is a diff to review.

mod catalogue;

use std::fs;
use std::path::Path;

use expect_test::expect_file;
use regex::Regex;

use super::{Outcome, text_file, wgpt_with};
use crate::common::not_run::not_run;

/// Commands with a help text of their own.
const COMMANDS: [&[&str]; 17] = [
    &[],
    &["train"],
    &["generate"],
    &["data"],
    &["data", "prepare"],
    &["data", "fetch"],
    &["data", "inspect"],
    &["eval"],
    &["convert"],
    &["devices"],
    &["profile"],
    &["plan"],
    &["tune"],
    &["verify"],
    &["report"],
    &["shader"],
    &["help"],
];

/// Starts wgpt for a terminal of 80 columns.
fn wgpt(dir: &Path, args: &[&str]) -> Outcome {
    wgpt_with(dir, &[("COLUMNS", Path::new("80"))], args)
}

#[test]
fn help() {
    let dir = tempfile::tempdir().expect("folder");
    let mut text = String::new();
    for command in COMMANDS {
        let flags: &[&str] = if command == ["help"] { &[""] } else { &["-h", "--help"] };
        for flag in flags {
            let args: Vec<&str> = command.iter().chain([flag]).copied().filter(|word| !word.is_empty()).collect();
            let outcome = wgpt(dir.path(), &args).ends_with(0);
            text += &format!("$ wgpt {}\n{}\n", args.join(" "), outcome.out);
        }
    }
    expect_file!["messages/help.txt"].assert_eq(&text);
}

/// Command lines that are refused, in a folder with what [`mistakes_dir`] makes. None needs a device.
const MISTAKES: &str = include_str!("messages/mistakes.txt");

fn mistakes_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("folder");
    let path = |name: &str| dir.path().join(name);
    text_file(dir.path(), "text.txt", 4000);
    for (name, text) in [
        ("empty.txt", ""),
        ("recipe.toml", "[training]\nstepz = 3\n"),
        ("twice.toml", "lr = 1e-3\nlr = 2e-3\n"),
        ("type.toml", "steps = \"many\"\n"),
        ("broken.bin", "no shard at all"),
        ("good.toml", "model = \"d12\"\nsteps = 5\n"),
    ] {
        fs::write(path(name), text).expect("the test's folder can be written");
    }
    fs::create_dir_all(path("folder")).expect("the test's folder can be written");
    dir
}

#[test]
fn answers_to_mistakes() {
    let dir = mistakes_dir();
    let mut text = String::new();
    for line in MISTAKES.lines().filter(|line| !line.is_empty()) {
        let args = shlex::split(line).expect("a command line");
        let outcome = wgpt(dir.path(), &args.iter().map(String::as_str).collect::<Vec<_>>());
        text += &format!("$ wgpt {line}\n{}{}exit code {}\n\n", outcome.out, outcome.err, outcome.code);
    }
    expect_file!["messages/answers.txt"].assert_eq(&plain(dir.path(), &text));
}

/// Replaces what differs between machines and runs: folders, adapters, figures, times.
fn plain(dir: &Path, text: &str) -> String {
    let regex = |pattern: &str| Regex::new(pattern).expect("a pattern");
    let root = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let text = text.replace(&*root.to_string_lossy(), "DIR").replace(&*dir.to_string_lossy(), "DIR");
    let text = text.replace(env!("CARGO_BIN_EXE_wgpt"), "wgpt").replace(env!("CARGO_MANIFEST_DIR"), "ROOT");
    let text = regex(r"/[\w./-]*/hub\b").replace_all(&text, "HUB").into_owned();
    regex(r"[ \t]+\n").replace_all(&text, "\n").into_owned()
}

/// Replaces every number as well.
fn without_numbers(text: &str) -> String {
    let number = Regex::new(r"\b[0-9][0-9,.:]*(?:e-?[0-9]+)?").expect("a pattern");
    let device = Regex::new(r"(?m)^(device +).*$").expect("a pattern");
    let kernels = Regex::new(r"(?m)^(kernels +).*$").expect("a pattern");
    let words = Regex::new(r"(?ms)^(sample:\n).*?(\n[0-9]+ of the sample's)").expect("a pattern");
    let text = words.replace_all(text, "${1}TEXT$2");
    let text = device.replace_all(&text, "${1}NAME");
    let text = kernels.replace_all(&text, "${1}NAMES");
    // the first steps may be too close together to tell the time that is left
    let left = Regex::new(r" \| ETA [0-9:]+").expect("a pattern");
    let text = left.replace_all(&text, "");
    let text = number.replace_all(&text, "N");
    Regex::new(r" +N").expect("a pattern").replace_all(&text, " N").into_owned()
}

/// Commands that do their work, one after the other in one folder.
const WORK: &str = include_str!("messages/work.txt");

#[test]
fn output_of_commands() {
    if !wgpt::gpu::Gpu::open(&wgpt::gpu::Options::default()).is_ok_and(|gpu| gpu.caps.software) {
        // a GPU computes in f16 and prints other parts of the header
        not_run("the output of commands", "the adapter is no software adapter");
        return;
    }
    let dir = tempfile::tempdir().expect("folder");
    text_file(dir.path(), "text.txt", 40_000);
    fs::write(dir.path().join("lines.jsonl"), "{\"text\":\"one two\"}\n{\"text\":\"three\"}\n{\"other\":1}\n")
        .expect("the test's folder can be written");
    let mut text = String::new();
    for line in WORK.lines().filter(|line| !line.is_empty()) {
        let args = shlex::split(line).expect("a command line");
        let outcome = wgpt(dir.path(), &args.iter().map(String::as_str).collect::<Vec<_>>());
        // lines of progress come on slow machines only
        let is_progress = |line: &&str| line.ends_with(" so far");
        let err: String = outcome.err.lines().filter(|line| !is_progress(line)).map(|l| format!("{l}\n")).collect();
        let printed = format!("{}{err}exit code {}\n\n", outcome.out, outcome.code);
        text += &format!("$ wgpt {line}\n{}", without_numbers(&plain(dir.path(), &printed)));
    }
    expect_file!["messages/output.txt"].assert_eq(&text);
}
