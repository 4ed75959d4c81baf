//! `tools/gpu-check` reports every stage in time, whether the stage succeeds, fails or hangs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use super::{read_json, root, succeeded, text};
use crate::common::not_run::not_run;

const STAGES: [&str; 8] = ["adapter", "statistics", "roofs", "races", "tune", "steps", "pytorch", "kernels"];
const OTHERS: [&str; 4] = ["races-unrepaired", "pytorch-batches", "products", "peers"];

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
fn stage(record: &Value, name: &str) -> (String, String, Value) {
    let stages = record["stages"].as_array().expect("stages");
    let stage = stages.iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("no stage {name} in {record:#}"));
    let word = |key: &str| stage[key].as_str().expect("a string").to_owned();
    (word("status"), word("note"), stage["result"].clone())
}

/// The outcome of a run of gpu-check.
struct Checked {
    record: Value,
    printed: String,
    well: bool,
    seconds: f64,
}

impl Checked {
    fn status(&self, name: &str) -> String {
        stage(&self.record, name).0
    }
}

fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(root().join("tools/gpu-check"));
    if environment.contains(&AS_IT_IS) {
        // this test was itself started through tools/run, which leaves a note for those it starts
        command.env_remove("WGPT_SOFTWARE_HOME").env_remove("WGPT_SOFTWARE");
    }
    command.args(arguments).envs(environment.iter().copied());
    command
}

/// Runs gpu-check and checks that its record has these stages.
fn check(dir: &Path, stages: &[&str], arguments: &[&str], environment: &[(&str, &str)]) -> Checked {
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

/// Makes shell scripts that print what the real programs would, to test how gpu-check handles them.
fn stubs(dir: &Path) -> String {
    let bin = dir.join("bin");
    fs::create_dir(&bin).expect("folder");
    let wgpt = "case $1 in devices) echo '0: Stub GPU (Vulkan, stub driver 1.0)';; \
                tune) echo \"tuning with $(cat \"$WGPT_TUNING\" 2>/dev/null)\"; echo '{}' >\"$WGPT_TUNING\";; esac\n\
                echo \"wgpt $*\"\n\
                while [ $# -gt 0 ]; do [ \"$1\" = --json ] && echo '{ \"ms\": 200.0 }' >\"$2\"; shift; done; true";
    let step = "printf 'summary\\td12\\tf16\\t8\\t1024\\t100000\\t200000\\t400000\\n'";
    for (name, body) in
        [("wgpt", wgpt), ("ops", "echo \"ops $*\"; echo '{\"rows\": []}' >\"$WGPT_BENCH_JSON\""), ("step", step)]
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

/// Where the user names a driver, tools/run starts a program directly.
const AS_IT_IS: (&str, &str) = ("VK_DRIVER_FILES", "stub");

#[test]
fn a_stage_that_fails_or_hangs_does_not_lose_the_others() {
    let dir = tempfile::tempdir().expect("folder");
    let bin = stubs(dir.path());
    let arguments = ["--bin", &bin, "--seconds", "40", "--python", "/nonexistent/python3"];
    let sound = check(dir.path(), &STAGES, &arguments, &[AS_IT_IS]);
    assert!(sound.well, "{}", sound.printed);
    for name in STAGES {
        assert_eq!(sound.status(name), if name == "pytorch" { "not run" } else { "ok" }, "{name}: {}", sound.printed);
    }
    assert!(stage(&sound.record, "pytorch").1.contains("expected a Python with PyTorch"), "{}", sound.printed);
    assert_eq!(
        (&sound.record["adapter"], &sound.record["driver"]),
        (&"Stub GPU".into(), &"Vulkan, stub driver 1.0".into())
    );
    assert_eq!(sound.record["rehearsal"], false);
    assert_eq!(stage(&sound.record, "roofs").2["ms"], 200.0);
    for part in [
        "profile --statistics --heaviest 12",
        "--driver-checks",
        "profile --roofs",
        "ops --races 100",
        "tune --model d12",
    ] {
        assert!(sound.printed.contains(part), "no `{part}`\n{}", sound.printed);
    }
    // measured, predicted, ratio
    let line = sound.printed.lines().find(|line| line.starts_with("wgpt d12 f16 8x1024")).expect("a summary");
    assert_eq!(line.split_whitespace().skip(4).collect::<Vec<_>>(), ["100000", "200000", "0.500"], "{line}");

    for failing in STAGES {
        let found = check(dir.path(), &STAGES, &arguments, &[AS_IT_IS, ("WGPT_CHECK_FAIL", failing)]);
        assert!(!found.well, "{failing} failed and the script ended with 0");
        for name in STAGES {
            let expected = if name == failing { "failed" } else { &sound.status(name) };
            assert_eq!(found.status(name), expected, "{failing}, {name}: {}", found.printed);
        }
    }

    script(&Path::new(&bin).join("ops"), "echo begun; sleep 100");
    fs::remove_file(Path::new(&bin).join("step")).expect("removed");
    let hung = check(dir.path(), &STAGES, &[&arguments[..2], &["--seconds", "20"]].concat(), &[AS_IT_IS]);
    assert!(!hung.well && hung.seconds < 35.0, "{} s\n{}", hung.seconds, hung.printed);
    for (name, status) in [("races", "timeout"), ("tune", "ok"), ("steps", "not run"), ("kernels", "timeout")] {
        assert_eq!(hung.status(name), status, "{name}: {}", hung.printed);
    }
    assert!(hung.printed.contains("begun"));
}

#[test]
fn without_an_adapter_only_why_and_the_peers_are_recorded() {
    let dir = tempfile::tempdir().expect("folder");
    let bin = stubs(dir.path());
    script(&Path::new(&bin).join("wgpt"), "echo 'error: devices: no adapter found'; exit 4");
    let found = check(dir.path(), &STAGES, &["--bin", &bin, "--python", "/nonexistent/python3"], &[AS_IT_IS]);
    assert!(!found.well && found.seconds < 20.0, "{}", found.printed);
    for name in STAGES {
        assert_eq!(
            found.status(name),
            if name == "adapter" { "failed" } else { "not run" },
            "{name}: {}",
            found.printed
        );
    }
    assert!(found.printed.contains("drivers: "), "{}", found.printed);
}

#[test]
fn stages_are_chosen_and_a_record_of_tuning_is_taken_along() {
    let dir = tempfile::tempdir().expect("folder");
    let bin = stubs(dir.path());
    let record = dir.path().join("tuned.json");
    fs::write(&record, "an old record").expect("written");
    // as Python with PyTorch would print
    let python = dir.path().join("python3");
    script(&python, "printf 'pytorch\\tcompile, flash attention\\tbf16\\t8\\t20.48\\tPyTorch\\n'");
    let paths = [&bin, &*record.to_string_lossy(), &*python.to_string_lossy()].map(ToString::to_string);
    let arguments = ["--stages", "tune,steps,pytorch", "--bin", &paths[0], "--tuned", &paths[1], "--python", &paths[2]];
    let found = check(dir.path(), &["tune", "steps", "pytorch"], &arguments, &[AS_IT_IS]);
    assert!(found.well && found.printed.contains("tuning with an old record"), "{}", found.printed);
    assert_eq!(fs::read_to_string(&record).expect("a file"), "an old record", "the given record was changed");
    assert_eq!(fs::read_to_string(dir.path().join("record/tuned.json")).expect("a file"), "{}\n");
    // 8 x 1024 tokens in 20.48 ms, beside the figure of others that the step bench names; ours are a quarter
    let line = found.printed.lines().find(|line| line.starts_with("PyTorch compile")).expect("a line");
    assert!(line.ends_with("1.000") && line.contains("400000"), "{line}");
    assert!(found.printed.contains("wgpt f16 / PyTorch compile, flash attention bf16: 0.250"), "{}", found.printed);

    script(&python, "echo \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1");
    let found = check(dir.path(), &["pytorch"], &[&arguments[2..], &["--stages", "pytorch"]].concat(), &[AS_IT_IS]);
    assert!(found.well && found.status("pytorch") == "not run", "{}", found.printed);
    assert!(stage(&found.record, "pytorch").1.contains("No module named 'torch'"), "{}", found.printed);

    // what was recorded is not overwritten
    let out = dir.path().join("record").to_string_lossy().into_owned();
    for (wrong, code, what) in [
        (&["--out", &out, "--stages", "adapter"][..], 2, "contains a record, expected a new folder"),
        (&["--stages", "tune,speed"], 2, "unknown stage speed"),
        (&["--seconds", "0"], 2, "--seconds: 0"),
        (&["--seconds"], 2, "--seconds needs a value"),
        (&["--rehearse", "--stages", "tune"], 2, "--rehearse runs every stage"),
        (&["--tuned", "/nonexistent/tuned.json"], 3, "cannot read /nonexistent/tuned.json"),
        (&["--speed"], 2, "unknown argument --speed"),
    ] {
        let output = command(wrong, &[AS_IT_IS]).output().expect("gpu-check starts");
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{wrong:?}: {err}");
        assert!(err.contains(what) && err.lines().count() == 1, "{wrong:?}: {err}");
    }
}

/// Rehearses a first visit to a GPU on software Vulkan: every stage, with the programs as a machine without Rust gets
/// them.
#[test]
fn the_rehearsal_runs_every_stage_to_its_end() {
    if cfg!(debug_assertions) {
        not_run("a rehearsal of gpu-check", "a debug build; cargo test --release runs it");
        return;
    }
    let dir = tempfile::tempdir().expect("folder");
    let bin = dir.path().join("bin");
    let mut build = command(&["--build", &bin.to_string_lossy()], &[]);
    // with cargo's variables of this test, build scripts would run again and everything behind them be compiled again
    let of_cargo = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_"].iter().any(|of| name.starts_with(of));
    for (name, _) in std::env::vars().filter(|(name, _)| of_cargo(name)) {
        build.env_remove(name);
    }
    let output = build.output().expect("gpu-check starts");
    let built = succeeded(&output);
    assert!(built.contains("pack:  tar czf") && built.contains("--seconds 420 --out record-1"), "{built}");
    a_slowed_kernel_shows_against_a_baseline(&bin);
    super::record::is_raced(&bin);
    let stages = [&STAGES[..], &OTHERS].concat();
    let arguments = ["--rehearse", "--bin", &bin.to_string_lossy()];
    let found = check(dir.path(), &stages, &arguments, &[]);
    assert!(found.seconds < 125.0, "{} s\n{}", found.seconds, found.printed);
    for name in stages {
        let (status, note, _) = stage(&found.record, name);
        // where Debian is out of reach there are no stand-ins for a GPU
        let without = name == "statistics" && status == "not run" && note.contains("tools/isa");
        assert!(status == "ok" || without, "{name}: {status}: {note}\n{}", found.printed);
    }
    assert!(found.well && found.printed.contains("its figures are not results"), "{}", found.printed);
    assert_eq!(found.record["rehearsal"], true);
    assert!(stage(&found.record, "pytorch").2[0]["ms"].is_f64(), "{:#}", found.record);
    assert!(stage(&found.record, "tune").2.is_object() && stage(&found.record, "roofs").2.is_object());
}

/// Runs the same kernel on one thread and a quarter of the lanes, through variables of software Vulkan: several times
/// slower.
fn a_slowed_kernel_shows_against_a_baseline(bin: &Path) {
    let devices = succeeded(&started(&bin.join("wgpt")).arg("devices").output().expect("the program starts"));
    if !devices.lines().any(|line| line.starts_with("0: ") && line.contains(", software)")) {
        not_run("a slowed kernel against a baseline", "the adapter is no software adapter");
        return;
    }
    let bench = |baseline: &str, environment: &[(&str, &str)]| {
        let mut command = started(&bin.join("ops"));
        command.args(["--bench", "--noplot", "matmul_tiled.forward", baseline, "before"]);
        command.env("CRITERION_HOME", bin.join("criterion")).env("WGPT_BENCH_SECONDS", "30");
        succeeded(&command.envs(environment.iter().copied()).output().expect("the program starts"))
    };
    // slower by a factor that other tests on the same cores cannot hide
    let before = bench("--save-baseline", &[("GALLIVM_PERF", "")]);
    assert!(before.contains("1 row in") && !before.contains("regressed"), "{before}");
    let slow = [("GALLIVM_PERF", "nopt"), ("LP_NATIVE_VECTOR_WIDTH", "128"), ("LP_NUM_THREADS", "1")];
    let slow = bench("--baseline", &slow);
    assert!(slow.contains("Performance has regressed"), "{before}\n{slow}");
}
