//! Runs that are stopped early, and resume when the same command is given again.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::{SMALL, program, same, text_file, train, wgpt};

const STEPS: &str = "30";
const FLAGS: [&str; 12] = [
    "--steps",
    STEPS,
    "--val-every",
    "7",
    "--tokens-per-step",
    "64",
    "--sample-every",
    "11",
    "--checkpoint-every",
    "2",
    "--log-every",
    "1",
];

/// Starts a run without waiting for it.
pub fn start(dir: &Path, out: &str, more: &[&str]) -> Child {
    let mut command = program();
    command.args(["train", "--text", "text.txt", "--batch", "2", "--context", "16"]).args(SMALL).args(FLAGS);
    command.args(["--out", out]).args(more).current_dir(dir);
    command.env("WGPT_QUIET", "1").env("WGPT_CACHE", dir.join("cache"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

/// Reads a run's lines until one begins with `text`. Returns false if the run ends first.
pub fn wait_for(child: &mut Child, text: &str) -> bool {
    let out = BufReader::new(child.stdout.take().expect("piped"));
    let mut lines = out.lines().map_while(std::io::Result::ok);
    let found = lines.any(|line| line.starts_with(text));
    // nobody may be stopped by a full pipe
    std::thread::spawn(move || lines.for_each(drop));
    found
}

fn newest_checkpoint(run: &Path) -> std::path::PathBuf {
    let mut steps: Vec<_> = fs::read_dir(run.join("checkpoints")).expect("checkpoints").flatten().collect();
    steps.sort_by_key(fs::DirEntry::file_name);
    steps.last().expect("a checkpoint").path()
}

pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().expect("kill");
    assert!(status.success());
}

#[test]
fn a_signal_saves_and_a_damaged_checkpoint_is_passed_over() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    train(dir, &[&FLAGS[..], &["--out", "whole"]].concat()).ends_with(0);
    for (name, step) in [("-TERM", 3), ("-INT", 8), ("-HUP", 12)] {
        let mut child = start(dir, "run", &[]);
        assert!(wait_for(&mut child, &format!("step {step}/")));
        signal(&child, name);
        assert_eq!(child.wait().expect("wait").code(), Some(75), "{name}");
    }

    // a model before there is a `model/`: the newest checkpoint's
    for from in ["run".to_owned(), newest_checkpoint(&dir.join("run")).display().to_string()] {
        wgpt(dir, &["generate", "--from", &from, "ab", "--max-tokens", "3"]).ends_with(0);
    }

    // a flipped bit in the newest
    let newest = newest_checkpoint(&dir.join("run"));
    let weights = newest.join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("weights");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&weights, bytes).expect("write");
    let verify = wgpt(dir, &["verify", "run"]).ends_with(3);
    assert!(verify.out.contains("damaged") && verify.out.contains("sound"), "{}", verify.out);

    // changed settings are refused, all but those that move no loss
    let other = train(dir, &[&FLAGS[..], &["--lr", "0.01", "--out", "run"]].concat()).ends_with(2);
    assert!(other.err.contains("(lr: "), "{}", other.err);
    let more = ["--steps", STEPS, "--val-every", "7", "--tokens-per-step", "64", "--sample-every", "11"];
    let out =
        train(dir, &[&more[..], &["--checkpoint-every", "5", "--keep", "9", "--out", "run"]].concat()).ends_with(0).out;
    assert!(out.contains("is damaged and is skipped"), "{out}");
    same(&dir.join("whole"), &dir.join("run"));
}

#[test]
fn a_second_run_in_the_folder_is_told_who_is_there() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    let mut child = start(dir, "run", &["--keep", "3"]);
    assert!(wait_for(&mut child, "step 1/"));
    let second = train(dir, &[&FLAGS[..], &["--out", "run"]].concat()).ends_with(7);
    assert!(second.err.contains(&format!("process {} on ", child.id())), "{}", second.err);
    assert!(second.seconds < 5.0, "{} s", second.seconds);
    assert!(child.wait().expect("wait").success());
}

#[test]
fn a_run_goes_on_without_the_weights_that_it_began_with() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    train(dir, &["--steps", "1", "--out", "first"]).ends_with(0);
    let flags = ["train", "--text", "text.txt", "--batch", "2", "--context", "16", "--steps", "40", "--val-steps", "1"];
    let rest = ["--checkpoint-every", "2", "--log-every", "1", "--init", "first/model", "--out"];
    let args = |out: &'static str| [&flags[..], &rest, &[out]].concat();
    wgpt(dir, &args("whole")).ends_with(0);
    let mut child = spawn(dir, &args("run"));
    assert!(wait_for(&mut child, "step 5/"));
    signal(&child, "-TERM");
    assert_eq!(child.wait().expect("wait").code(), Some(75));
    fs::rename(dir.join("first"), dir.join("away")).expect("rename");
    wgpt(dir, &args("run")).ends_with(0);
    let weights = |out: &str| fs::read(dir.join(out).join("model/model.safetensors")).expect("weights");
    assert!(weights("run") == weights("whole"));
}

/// Starts any command without waiting for it.
pub fn spawn(dir: &Path, args: &[&str]) -> Child {
    let mut command = program();
    command.args(args).current_dir(dir);
    command.env("WGPT_QUIET", "1").env("WGPT_CACHE", dir.join("cache"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

#[test]
fn a_signal_stops_the_preparation_of_data_which_then_goes_on() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 24_000_000);
    let prepare = |out: &'static str| ["data", "prepare", "text.txt", "--out", out, "--threads", "1"];
    let mut child = spawn(dir, &prepare("data"));
    while !dir.join("data").exists() && child.try_wait().expect("wait").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    signal(&child, "-TERM");
    let output = child.wait_with_output().expect("wait");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{text}");
    assert!(text.contains("SIGTERM: stopped and saved"), "{text}");
    wgpt(dir, &prepare("data")).ends_with(0);
    wgpt(dir, &prepare("whole")).ends_with(0);
    let shards = |out: &str| {
        let names = fs::read_dir(dir.join(out)).expect(out).flatten().map(|entry| entry.path());
        let mut shards: Vec<Vec<u8>> = names
            .filter(|path| path.extension().is_some_and(|e| e == "bin"))
            .map(|p| fs::read(p).expect("shard"))
            .collect();
        shards.sort();
        shards
    };
    assert!(!shards("whole").is_empty() && shards("data") == shards("whole"));
}

#[test]
fn a_signal_stops_tuning_and_keeps_what_was_found() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let mut child = spawn(
        dir,
        &["tune", "--layers", "1", "--heads", "2", "--channels", "64", "--precision", "f32", "--seconds", "30"],
    );
    // the first product is done, and there are many more
    assert!(wait_for(&mut child, "device"));
    signal(&child, "-INT");
    let output = child.wait_with_output().expect("wait");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{text}");
    assert!(text.contains("SIGINT: stopped"), "{text}");
}
