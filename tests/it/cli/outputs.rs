//! Standard output that goes to a full device, and to a pipe that nobody reads.

use std::path::Path;
use std::process::Stdio;

use super::{SMALL, program, text_file, train, wgpt};

/// Runs `wgpt` with an output of ours; exit code and standard error.
fn run_into(dir: &Path, out: Stdio, args: &[&str]) -> (i32, String) {
    let mut command = program();
    command.args(args).current_dir(dir).stdout(out).stderr(Stdio::piped());
    command.env("WGPT_QUIET", "1").env("WGPT_CACHE", dir.join("cache")).env_remove("WGPT_TUNING");
    let output = command.spawn().and_then(std::process::Child::wait_with_output).expect("the program starts");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn full() -> Stdio {
    std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full").into()
}

fn unread() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

#[test]
fn an_output_that_cannot_be_written_is_an_error_of_every_command_but_a_run() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 4000);
    train(dir, &["--steps", "2", "--checkpoint-every", "1", "--out", "run"]).ends_with(0);
    wgpt(dir, &["data", "prepare", "text.txt", "--out", "data", "--tokenizer", "bytes"]).ends_with(0);
    let shape = [&SMALL[2..], &["--vocab", "257", "--batch", "2", "--context", "16"]].concat();
    let train_flags = [&["train", "--text", "text.txt", "--steps", "2"], &SMALL[..]].concat();
    let with = |first: &[&'static str], more: &[&'static str]| [first, more].concat();
    let commands: Vec<Vec<&str>> = vec![
        vec!["generate", "--from", "run", "ab", "--max-tokens", "3"],
        vec!["eval", "--from", "run", "--data", "data/data_val_*.bin"],
        vec!["devices"],
        with(&["plan"], &shape),
        with(&["profile", "--count"], &shape),
        with(&["profile", "--seconds", "0.1"], &shape),
        with(&["tune", "--precision", "f32", "--total", "0.01"], &shape),
        vec!["verify", "run"],
        vec!["shader"],
        vec!["shader", "adamw.forward"],
        vec!["report", "run"],
        vec!["data", "inspect", "data"],
        vec!["data", "inspect", "data", "--json"],
        vec!["convert", "run", "model.bin", "--force"],
        with(&train_flags, &["--print-config"]),
        with(&train_flags, &["--dry-run"]),
        vec!["--help"],
        vec!["train", "--help"],
        vec!["help", "plan"],
        vec!["--version"],
    ];
    for args in &commands {
        let (code, err) = run_into(dir, full(), args);
        let told: Vec<&str> = err.lines().filter(|line| line.starts_with("error: ")).collect();
        let begin = "error: standard output: cannot be written (No space left on device";
        assert!(code == 6 && told.len() == 1 && told[0].starts_with(begin), "{args:?}: {code}, {err}");
        assert!(told[0].contains("; try "), "{}", told[0]);
    }
    // the kinds of ways to print, of commands that take no time
    let ways = ["generate", "devices", "plan", "shader", "data", "--help", "--version"];
    for args in commands.iter().filter(|args| ways.contains(&args[0])) {
        let (code, err) = run_into(dir, unread(), args);
        assert!(code == 0 && !err.contains("error") && !err.contains("panicked"), "{args:?}: {code}, {err}");
    }
    // what a run makes is its folder
    for (out, folder) in [(full(), "full"), (unread(), "unread")] {
        let (code, err) = run_into(dir, out, &with(&train_flags, &["--out", folder]));
        assert_eq!(code, 0, "{err}");
        assert!(dir.join(folder).join("model/model.safetensors").exists());
    }
    // its own errors are told before those of its output
    assert_eq!(run_into(dir, full(), &["verify", "nothing"]).0, 3);
}
