//! Runs of `tools/gpu-check`, and what every record of one has.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use serde_json::Value;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
pub fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("the file is there")).expect("JSON")
}

/// Where the user names a driver, tools/run starts a program directly.
pub const AS_IT_IS: (&str, &str) = ("VK_DRIVER_FILES", "stub");

/// The stages of a check.
pub const STAGES: [&str; 8] = ["adapter", "statistics", "roofs", "races", "tune", "steps", "pytorch", "kernels"];
/// Further stages, which a rehearsal runs too.
pub const OTHERS: [&str; 4] = ["races-unrepaired", "pytorch-batches", "products", "peers"];

/// Returns the command of a program of this project, through tools/run on Linux.
pub fn started(program: &Path) -> Command {
    if cfg!(target_os = "linux") {
        let mut command = Command::new(root().join("tools/run"));
        command.arg(program).env("WGPT_QUIET", "1");
        command
    } else {
        Command::new(program)
    }
}

/// Returns a stage's status, note and result.
pub fn stage(record: &Value, name: &str) -> (String, String, Value) {
    let stages = record["stages"].as_array().expect("stages");
    let stage = stages.iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("no stage {name} in {record:#}"));
    let word = |key: &str| stage[key].as_str().expect("a string").to_owned();
    (word("status"), word("note"), stage["result"].clone())
}

/// The outcome of a run of gpu-check.
pub struct Checked {
    pub record: Value,
    pub printed: String,
    pub well: bool,
    pub seconds: f64,
}

impl Checked {
    /// Returns a stage's status.
    pub fn status(&self, name: &str) -> String {
        stage(&self.record, name).0
    }
}

/// Returns the command that starts gpu-check.
pub fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(root().join("tools/gpu-check"));
    if environment.contains(&AS_IT_IS) {
        // this test was itself started through tools/run, which leaves a note for those it starts
        command.env_remove("WGPT_SOFTWARE_HOME").env_remove("WGPT_SOFTWARE");
    }
    command.args(arguments).envs(environment.iter().copied());
    command
}

/// Runs gpu-check and checks that its record has these stages.
pub fn check(dir: &Path, stages: &[&str], arguments: &[&str], environment: &[(&str, &str)]) -> Checked {
    let out = dir.join("record");
    _ = fs::remove_dir_all(&out);
    let begin = Instant::now();
    let output = command(arguments, environment).arg("--out").arg(&out).output().expect("gpu-check starts");
    let seconds = begin.elapsed().as_secs_f64();
    let printed = text(&output.stdout) + &text(&output.stderr);
    assert!(out.join("record.json").exists(), "no record\n{printed}");
    let written = fs::read_to_string(out.join("record.txt")).expect("record.txt");
    let record = read_json(&out.join("record.json"));
    let names: Vec<&str> =
        record["stages"].as_array().expect("stages").iter().filter_map(|stage| stage["name"].as_str()).collect();
    assert_eq!(names, stages, "{printed}");
    for name in stages {
        let (status, note, _) = stage(&record, name);
        assert!(printed.contains(&format!("--- {name}: {status}")), "{name} was not printed as it went\n{printed}");
        assert!(["ok", "failed", "timeout", "not run"].contains(&status.as_str()), "{name}: {status}");
        assert_eq!(status == "ok", note.is_empty(), "{name}: {status}, {note}\n{printed}");
    }
    for private in [root().to_string_lossy(), dir.to_string_lossy()] {
        assert!(!written.contains(&*private), "a path of this machine is in the record:\n{written}");
        assert!(!record.to_string().contains(&*private), "a path of this machine is in the record: {record:#}");
    }
    Checked { record, printed, well: output.status.success(), seconds }
}
