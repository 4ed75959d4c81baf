//! `tools/gpu-check` reports every stage in time, whether the stage succeeds, fails or hangs. Its rehearsal on software
//! Vulkan is in `tests/timing`.

use std::fs;
use std::path::Path;

use crate::common::gpu_check::{AS_IT_IS, STAGES, check, command, stage, text};

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
