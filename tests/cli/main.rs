//! The program from outside: what it prints, writes and ends with. It is started through tools/run, as a user's is.

mod answers;
mod bad_input;
#[cfg(unix)]
mod changed_data;
mod data_files;
#[cfg(unix)]
mod devices;
#[cfg(target_os = "linux")]
mod disk;
#[cfg(unix)]
mod longer;
mod mixed;
mod models;
mod named_data;
#[cfg(unix)]
mod names;
#[cfg(target_os = "linux")]
mod no_files;
#[cfg(target_os = "linux")]
mod outputs;
mod plan;
mod recipes;
mod report;
#[cfg(unix)]
mod resume;
mod runs;
mod shader;
#[cfg(unix)]
mod signals;
mod speed;
mod stories;
#[cfg(unix)]
mod texts;
mod tokenizers;

#[path = "../data/server.rs"]
#[allow(dead_code, reason = "tests of fetching use the rest of it")]
mod server;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a run of the program left.
pub struct Outcome {
    code: i32,
    out: String,
    err: String,
    seconds: f64,
}

/// Starts `wgpt` with arguments in a folder.
pub fn wgpt(dir: &Path, args: &[&str]) -> Outcome {
    wgpt_with(dir, &[], args)
}

/// The same with arguments that need be no text.
#[cfg(unix)]
pub fn wgpt_os(dir: &Path, args: &[&OsStr]) -> Outcome {
    started(dir, &[], args)
}

/// Starts `wgpt` with variables of the environment.
pub fn wgpt_with(dir: &Path, environment: &[(&str, &Path)], args: &[&str]) -> Outcome {
    started(dir, environment, &args.iter().map(OsStr::new).collect::<Vec<_>>())
}

fn started(dir: &Path, environment: &[(&str, &Path)], args: &[&OsStr]) -> Outcome {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = env!("CARGO_BIN_EXE_wgpt");
    let mut command = if cfg!(target_os = "linux") {
        let mut command = Command::new(root.join("tools/run"));
        command.arg(program);
        command
    } else {
        Command::new(program)
    };
    let begin = std::time::Instant::now();
    // no record of a user's own tuning, but one of the test's
    command.args(args).current_dir(dir).env("WGPT_QUIET", "1").env("WGPT_CACHE", dir.join("cache"));
    command.env_remove("WGPT_TUNING").envs(environment.iter().copied());
    let output = command.output().expect("the program starts");
    Outcome {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        seconds: begin.elapsed().as_secs_f64(),
    }
}

impl Outcome {
    /// Panics unless the exit code is `code`.
    #[track_caller]
    pub fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "standard output:\n{}\nstandard error:\n{}", self.out, self.err);
        self
    }
}

/// Words to train on: any text will do.
pub fn text_file(dir: &Path, name: &str, bytes: usize) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, wgpt::data::Stories::new(7).text(bytes)).expect("the test's folder can be written");
    path
}

/// A small model's flags.
pub const SMALL: [&str; 8] = ["--tokenizer", "bytes", "--layers", "1", "--heads", "2", "--channels", "32"];

/// `wgpt train` on a text with a small model, batch 2, context 16 and more flags.
pub fn train(dir: &Path, more: &[&str]) -> Outcome {
    let base = ["train", "--text", "text.txt", "--batch", "2", "--context", "16"];
    let args: Vec<&str> = base.iter().chain(&SMALL).chain(more).copied().collect();
    wgpt(dir, &args)
}

/// The lines of a run's metrics.
pub fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics.jsonl");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}
