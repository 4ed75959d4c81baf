//! `tools/gpu-check`: that every stage is reported in time, whatever becomes of it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use super::{read_json, root, succeeded, text};

const STAGES: [&str; 5] = ["adapters", "races", "kernels", "step", "peers"];

/// A program of this project, through tools/run where that is how programs start.
pub fn started(program: &Path) -> Command {
    if cfg!(target_os = "linux") {
        let mut command = Command::new(root().join("tools/run"));
        command.arg(program).env("WGPT_QUIET", "1");
        command
    } else {
        Command::new(program)
    }
}

/// What a stage came to: status, note, result.
fn stage(record: &Value, name: &str) -> (String, String, Value) {
    let stages = record["stages"].as_array().expect("stages");
    let stage = stages.iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("no stage {name} in {record:#}"));
    let word = |key: &str| stage[key].as_str().expect("a string").to_owned();
    (word("status"), word("note"), stage["result"].clone())
}

/// Runs gpu-check and returns its record, what it printed, whether it ended well, and its seconds.
fn check(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> (Value, String, bool, f64) {
    let out = dir.join("record");
    let begin = Instant::now();
    let mut command = Command::new(root().join("tools/gpu-check"));
    if environment.contains(&AS_IT_IS) {
        // this test was itself started through tools/run, which leaves a note for those it starts
        command.env_remove("WGPT_SOFTWARE_HOME").env_remove("WGPT_SOFTWARE");
    }
    let output = command
        .args(arguments)
        .arg("--out")
        .arg(&out)
        .envs(environment.iter().copied())
        .output()
        .expect("gpu-check starts");
    let seconds = begin.elapsed().as_secs_f64();
    let printed = text(&output.stdout) + &text(&output.stderr);
    assert!(out.join("record.json").exists(), "no record\n{printed}");
    let written = fs::read_to_string(out.join("record.txt")).expect("record.txt");
    let record = read_json(&out.join("record.json"));
    for name in STAGES {
        let (status, note, _) = stage(&record, name);
        assert!(printed.contains(&format!("--- {name}: {status}")), "{name} was not printed as it went\n{printed}");
        assert!(["ok", "failed", "timeout", "not run"].contains(&status.as_str()), "{name}: {status}");
        assert_eq!(status == "ok", note.is_empty(), "{name}: {status}, {note}");
    }
    for private in [root().to_string_lossy(), dir.to_string_lossy()] {
        assert!(!written.contains(&*private), "a path of this machine is in the record:\n{written}");
        assert!(!record.to_string().contains(&*private), "a path of this machine is in the record: {record:#}");
    }
    (record, printed, output.status.success(), seconds)
}

/// Programs of shell that say what the real ones would: for how the script deals with them.
fn stubs(dir: &Path) -> String {
    let bin = dir.join("bin");
    fs::create_dir(&bin).expect("folder");
    let wgpt = "case $1 in devices) echo '0: Stub GPU (Vulkan, stub driver 1.0)';; \
                profile) while [ $# -gt 0 ]; do [ \"$1\" = --json ] && echo '{ \"ms\": 200.0 }' >\"$2\"; shift; done;; esac";
    for (name, body) in [("wgpt", wgpt), ("ops", "echo '{\"rows\": []}' >\"$WGPT_BENCH_JSON\""), ("step", "echo steps")]
    {
        script(&bin.join(name), body);
    }
    bin.to_string_lossy().into_owned()
}

fn script(path: &Path, body: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, format!("#!/bin/sh\n{body}\n")).expect("script");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("script");
}

/// tools/run starts a program as it is where the user names a driver.
const AS_IT_IS: (&str, &str) = ("VK_DRIVER_FILES", "stub");

#[test]
fn a_stage_that_fails_or_hangs_does_not_lose_the_others() {
    let dir = tempfile::tempdir().expect("folder");
    let bin = stubs(dir.path());
    let arguments = ["--bin", &bin, "--seconds", "20", "--python", "/nonexistent/python3"];
    let (record, _, well, _) = check(dir.path(), &arguments, &[AS_IT_IS]);
    assert!(well);
    assert!(STAGES.iter().all(|name| stage(&record, name).0 == "ok"), "{record:#}");
    assert_eq!((&record["adapter"], &record["driver"]), (&"Stub GPU".into(), &"Vulkan, stub driver 1.0".into()));
    let peers = stage(&record, "peers").2;
    let remarks: Vec<&str> =
        peers["peers"].as_array().expect("peers").iter().filter_map(|p| p["remark"].as_str()).collect();
    assert_eq!(peers["peers"][0]["ms"], 200.0);
    assert!(remarks.contains(&"not run: no python3"), "{remarks:?}");

    for failing in STAGES {
        let (record, _, well, _) = check(dir.path(), &arguments, &[AS_IT_IS, ("WGPT_CHECK_FAIL", failing)]);
        assert!(!well, "{failing} failed and the script ended with 0");
        for name in STAGES {
            assert_eq!(stage(&record, name).0, if name == failing { "failed" } else { "ok" }, "{failing}: {record:#}");
        }
    }

    script(&Path::new(&bin).join("ops"), "echo begun; sleep 100");
    fs::remove_file(Path::new(&bin).join("step")).expect("removed");
    let (record, printed, well, seconds) =
        check(dir.path(), &[&arguments[..2], &["--seconds", "8"]].concat(), &[AS_IT_IS]);
    assert!(!well && seconds < 25.0, "{seconds} s\n{printed}");
    let statuses = STAGES.map(|name| stage(&record, name).0);
    assert_eq!(&statuses[..4], ["ok", "timeout", "timeout", "not run"], "{printed}");
    assert!(printed.contains("begun"));
}

#[test]
fn a_python_without_pytorch_is_no_failure() {
    let dir = tempfile::tempdir().expect("folder");
    let bin = stubs(dir.path());
    let python = dir.path().join("python3");
    script(&python, "echo \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1");
    let (record, printed, well, _) =
        check(dir.path(), &["--bin", &bin, "--seconds", "20", "--python", &python.to_string_lossy()], &[AS_IT_IS]);
    assert!(well, "{printed}");
    assert!(printed.contains("not run: ModuleNotFoundError: No module named 'torch'"), "{printed}");
    assert_eq!(stage(&record, "peers").0, "ok");
}

/// The programs as a machine without Rust gets them, on this machine's adapter, in no time: most stages cannot finish.
#[test]
fn the_real_programs_end_in_time() {
    if cfg!(debug_assertions) {
        eprintln!("not run: gpu-check builds release programs; cargo test --release runs it");
        return;
    }
    let dir = tempfile::tempdir().expect("folder");
    let bin = dir.path().join("bin");
    let output =
        Command::new(root().join("tools/gpu-check")).arg("--build").arg(&bin).output().expect("gpu-check starts");
    let built = succeeded(&output);
    assert!(built.contains("MB together"), "{built}");
    a_slowed_kernel_shows_against_a_baseline(&bin);
    super::record::is_raced(&bin);
    let arguments = ["--bin", &bin.to_string_lossy(), "--seconds", "16", "--python", "/nonexistent/python3"];
    let (record, printed, _, seconds) = check(dir.path(), &arguments, &[("WGPT_CHECK_FAIL", "peers")]);
    assert!(seconds < 40.0, "{seconds} s\n{printed}");
    assert_eq!(stage(&record, "adapters").0, "ok", "{printed}");
    for name in ["races", "kernels", "step"] {
        let (status, note, _) = stage(&record, name);
        assert!(status == "ok" || status == "timeout", "{name}: {status}: {note}\n{printed}");
    }
}

/// The same kernel on one thread and a quarter of the lanes, which software Vulkan can be told: slower several times over.
fn a_slowed_kernel_shows_against_a_baseline(bin: &Path) {
    let devices = succeeded(&started(&bin.join("wgpt")).arg("devices").output().expect("the program starts"));
    if !devices.lines().any(|line| line.starts_with("0: ") && line.contains(", software)")) {
        eprintln!("not run: only software Vulkan can be told to be slow\n{devices}");
        return;
    }
    let bench = |baseline: &str, environment: &[(&str, &str)]| {
        let mut command = started(&bin.join("ops"));
        command.args(["--bench", "--noplot", "matmul_tiled.forward", baseline, "before"]);
        command.env("CRITERION_HOME", bin.join("criterion")).env("WGPT_BENCH_SECONDS", "30");
        succeeded(&command.envs(environment.iter().copied()).output().expect("the program starts"))
    };
    let before = bench("--save-baseline", &[]);
    assert!(before.contains("1 rows in") && !before.contains("regressed"), "{before}");
    let slow = bench("--baseline", &[("LP_NATIVE_VECTOR_WIDTH", "128"), ("LP_NUM_THREADS", "1")]);
    assert!(slow.contains("Performance has regressed"), "{before}\n{slow}");
}
