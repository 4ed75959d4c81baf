//! Paths that are no regular files: pipes that nobody writes to, endless devices, sockets, folders; and files that
//! become shorter while they are read.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wgpt::formats::{Element, ModelInfo, hf, llmc};
use wgpt::model::{Config, init};

use super::text_file;

/// Starts the program with the words of a line; after 20 s it is ended, with exit code 124.
fn run(dir: &Path, line: &str) -> Output {
    let mut command = Command::new("timeout");
    command.arg("20").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/run"));
    command.arg(env!("CARGO_BIN_EXE_wgpt")).args(line.split_whitespace()).current_dir(dir);
    command.env("WGPT_QUIET", "1").env("WGPT_CACHE", dir.join("cache")).env_remove("WGPT_TUNING");
    command.output().expect("the program starts")
}

/// Makes a thing of each kind, named by its kind.
fn things(dir: &Path) -> Vec<&'static str> {
    let made = Command::new("mkfifo").arg(dir.join("pipe")).status().expect("mkfifo");
    assert!(made.success());
    // it stays when nobody listens any more
    drop(UnixListener::bind(dir.join("socket")).expect("a socket"));
    symlink("/dev/zero", dir.join("device")).expect("a link");
    fs::create_dir(dir.join("folder")).expect("a folder");
    vec!["pipe", "socket", "device", "folder"]
}

#[track_caller]
fn refused(dir: &Path, line: &str, name: &str, what: &str) {
    let output = run(dir, line);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{line}: {text}");
    let last = text.lines().last().unwrap_or_default();
    let is_named = last.contains(&format!("{name}: ")) && last.contains(what);
    assert!(is_named && text.lines().filter(|line| line.starts_with("error")).count() == 1, "{line}: {text}");
}

#[test]
fn pipes_devices_sockets_and_folders_in_the_place_of_an_input_are_refused_by_kind() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 4000);
    hf::save(
        &dir.join("model"),
        &init::init(Config::new(16, 257, 1, 1, 8).expect("a shape"), 1),
        &ModelInfo::for_tokenizer("bytes"),
    )
    .expect("saved");
    let inputs = [
        "train --text X",
        "train --data X --model d12",
        "train --data X --model d12 --data-format npy",
        "train X",
        "train --text text.txt --init X",
        "generate --from X a",
        "convert X out",
        "eval --from model --data X",
        "eval --from model --hellaswag X",
        "data prepare X --out out --tokenizer bytes",
        "data inspect X",
        "data prepare text.txt --out out --tokenizer X/tokenizer.json",
        "report X",
        "plan --model d12 --gpu h100 --machine-code X",
    ];
    for thing in things(dir) {
        for input in inputs {
            let line = input.replace('X', thing);
            match (thing, input) {
                // some of them are read in folders
                ("folder", "eval --from model --hellaswag X" | "plan --model d12 --gpu h100 --machine-code X") => {
                    refused(dir, &line, thing, "is a folder");
                }
                ("folder", _) => assert_eq!(run(dir, &line).status.code(), Some(3), "{line}"),
                (_, "data prepare text.txt --out out --tokenizer X/tokenizer.json") => {}
                _ => {
                    refused(dir, &line, thing, &format!("is a {thing}, expected"));
                    refused(dir, &line, thing, "; try storing its contents in a file first");
                }
            }
        }
    }
}

#[test]
fn pipes_and_devices_among_a_models_files_are_refused_by_kind() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    things(dir);
    let model = dir.join("model");
    let shape = Config::new(16, 257, 1, 1, 8).expect("a shape");
    for name in ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "vocab.json"] {
        hf::save(&model, &init::init(shape, 1), &ModelInfo::for_tokenizer("bytes")).expect("saved");
        if name.ends_with("index.json") {
            fs::remove_file(model.join("model.safetensors")).expect("removed");
        }
        for thing in ["pipe", "device"] {
            let path = model.join(name);
            let _ = fs::remove_file(&path);
            symlink(dir.join(thing), &path).expect("a link");
            refused(
                dir,
                "generate --from model a",
                &format!("model/{name}"),
                &format!("is a {thing}, expected a file"),
            );
        }
        fs::remove_dir_all(&model).expect("removed");
    }
    // a link to a file is one
    hf::save(&dir.join("real"), &init::init(shape, 1), &ModelInfo::for_tokenizer("bytes")).expect("saved");
    fs::create_dir(&model).expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        symlink(dir.join("real").join(name), model.join(name)).expect("a link");
    }
    assert!(run(dir, "convert model out.bin").status.success());
    fs::create_dir(dir.join("data")).expect("a folder");
    wgpt::data::write_shard(dir.join("data/a_train_1.bin"), &[1; 100]).expect("a shard");
    symlink(dir.join("pipe"), dir.join("data/dataset.json")).expect("a link");
    refused(dir, "data inspect data", "dataset.json", "is a pipe, expected a file");
}

#[test]
fn weights_that_become_shorter_while_they_are_read_are_an_error_and_no_signal() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let path = dir.join("a.bin");
    let shape = Config::new(64, 8000, 2, 4, 256).expect("a shape");
    llmc::save(&path, &init::init(shape, 1), Element::F32).expect("saved");
    let whole = fs::metadata(&path).expect("there").len();
    let stop = AtomicBool::new(false);
    let ends = std::thread::scope(|scope| {
        let shorter = || {
            let file = fs::OpenOptions::new().write(true).open(&path).expect("the file");
            // what was cut away comes back as zeros
            for i in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                file.set_len(if i % 2 == 0 { 4096 + whole / 2 } else { whole }).expect("cut");
                std::thread::sleep(Duration::from_millis(1 + 2 * (i % 7)));
            }
        };
        scope.spawn(shorter);
        let mut ends = Vec::new();
        for i in 0..12 {
            let output = run(dir, &format!("convert a.bin out-{i}"));
            ends.push((output.status, String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        stop.store(true, Ordering::Relaxed);
        ends
    });
    for (status, text) in ends {
        assert_eq!(status.signal(), None, "{text}");
        let is_named = text.contains("a.bin: ") && text.lines().count() == 1;
        assert!(status.success() || status.code() == Some(3) && is_named, "{status}: {text}");
    }
}
