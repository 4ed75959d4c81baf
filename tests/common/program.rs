//! The program as a user starts it, and the files that a run leaves.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The exit code, the output and the duration of a finished process.
pub struct Outcome {
    pub code: i32,
    pub out: String,
    pub err: String,
    pub seconds: f64,
}

/// Starts `wgpt` with arguments in a folder.
pub fn wgpt(dir: &Path, args: &[&str]) -> Outcome {
    wgpt_with(dir, &[], args)
}

/// Starts `wgpt` with arguments that need not be valid UTF-8.
#[cfg(unix)]
pub fn wgpt_os(dir: &Path, args: &[&OsStr]) -> Outcome {
    started(dir, &[], args)
}

/// Starts `wgpt` with additional environment variables.
pub fn wgpt_with(dir: &Path, environment: &[(&str, &Path)], args: &[&str]) -> Outcome {
    started(dir, environment, &args.iter().map(OsStr::new).collect::<Vec<_>>())
}

/// The variable for vectors of 4 lanes in software Vulkan, and its value. Mesa compiles kernels for them in two thirds of
/// the time, and most processes that tests start compile more than they compute. An empty value is the default.
pub const FOUR_LANES: (&str, &str) = ("LP_NATIVE_VECTOR_WIDTH", "128");

/// Returns the command that starts `wgpt` with a Vulkan driver, without arguments.
pub fn program() -> Command {
    let program = env!("CARGO_BIN_EXE_wgpt");
    let mut command = if cfg!(target_os = "linux") {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/run"));
        command.arg(program);
        command
    } else {
        Command::new(program)
    };
    command.env(FOUR_LANES.0, FOUR_LANES.1);
    command
}

fn started(dir: &Path, environment: &[(&str, &Path)], args: &[&OsStr]) -> Outcome {
    let mut command = program();
    let begin = std::time::Instant::now();
    // never the user's own record of tuning, but the test's
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

/// Writes words to train on. Any text will do.
pub fn text_file(dir: &Path, name: &str, bytes: usize) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, wgpt::data::Stories::new(7).text(bytes)).expect("the test's folder can be written");
    path
}

/// The flags of a small model.
pub const SMALL: [&str; 8] = ["--tokenizer", "bytes", "--layers", "1", "--heads", "2", "--channels", "32"];

/// Runs `wgpt train` on `text.txt` with a small model, batch 2, context 16 and more flags.
pub fn train(dir: &Path, more: &[&str]) -> Outcome {
    let base = ["train", "--text", "text.txt", "--batch", "2", "--context", "16"];
    let args: Vec<&str> = base.iter().chain(&SMALL).chain(more).copied().collect();
    wgpt(dir, &args)
}

/// Returns the lines of a run's metrics.jsonl.
pub fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics.jsonl");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// Returns the scalars of a run's event files in order, as (step, name, value). The reader shares no code with our
/// writer.
pub fn scalars(run: &Path) -> Vec<(u64, String, f32)> {
    let mut files: Vec<_> = fs::read_dir(run.join("tb")).expect("tb").flatten().map(|entry| entry.path()).collect();
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let bytes = fs::read(&file).expect("events");
        let mut at = 0;
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a length")) as usize;
            let event = fields(&bytes[at + 12..at + 12 + length]);
            at += 12 + length + 4;
            let step = event.iter().find(|(field, _)| *field == 2).map_or(0, |(_, value)| value.0);
            for (_, (_, summary)) in event.iter().filter(|(field, _)| *field == 5) {
                for (_, (_, value)) in fields(summary) {
                    let value = fields(&value);
                    let name = String::from_utf8(value[0].1.1.clone()).expect("a name");
                    found.push((step, name, f32::from_bits(value[1].1.0 as u32)));
                }
            }
        }
        assert_eq!(at, bytes.len(), "{}: ends inside a record", file.display());
    }
    found
}

/// Returns the fields of a protocol buffer: the field's number, and its value as a number or as bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u8, (u64, Vec<u8>))> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let end = bytes.iter().position(|byte| *byte < 0x80).expect("an end");
        let value = bytes[..=end].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
        *bytes = &bytes[end + 1..];
        value
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = match key & 7 {
            0 => (varint(&mut bytes), Vec::new()),
            kind => {
                let size = if kind == 2 { varint(&mut bytes) as usize } else { 8 - 4 * usize::from(kind == 5) };
                let (own, rest) = bytes.split_at(size);
                bytes = rest;
                let number = own.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
                (number, own.to_vec())
            }
        };
        found.push(((key >> 3) as u8, value));
    }
    found
}

/// Panics unless two runs have the same steps with the same bits, the same logs, samples and weights.
#[track_caller]
pub fn same(a: &Path, b: &Path) {
    let (lines_a, lines_b) = (metrics(a), metrics(b));
    let steps = |lines: &[serde_json::Value]| lines.iter().map(|m| m["step"].to_string()).collect::<Vec<_>>();
    assert_eq!(steps(&lines_a), steps(&lines_b));
    for (a, b) in lines_a.iter().zip(&lines_b) {
        for key in ["loss", "grad_norm", "lr", "val_loss", "loss_scale", "skipped"] {
            assert_eq!(a[key].to_string(), b[key].to_string(), "step {}: {key}", a["step"]);
        }
    }
    let values = |run: &Path| -> Vec<String> {
        let all = scalars(run);
        all.iter().filter(|s| !s.1.starts_with("speed/")).map(|s| format!("{s:?}")).collect()
    };
    assert_eq!(values(a), values(b), "event files differ");
    for file in ["main.log", "samples.txt", "model/model.safetensors"] {
        assert!(fs::read(a.join(file)).expect(file) == fs::read(b.join(file)).expect(file), "{file} differs");
    }
}
