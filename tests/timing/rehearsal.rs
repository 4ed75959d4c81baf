//! `tools/gpu-check --rehearse` runs every stage on software Vulkan, each in its time.

use std::path::Path;

use serde_json::{Value, json};
use wgpt::ops::attention;

use crate::common::gpu_check::{OTHERS, STAGES, check, command, read_json, stage, started, succeeded, text};
use crate::common::not_run::not_run;
use crate::common::tuned::{other_rows, record_of, write};

/// The driver compiles without optimizations: these programs compile more than they compute.
const QUICK: (&str, &str) = ("GALLIVM_PERF", "nopt");

/// Rehearses a first visit to a GPU on software Vulkan: every stage, with the programs as a machine without Rust gets
/// them.
#[test]
fn the_rehearsal_runs_every_stage_to_its_end() {
    if cfg!(debug_assertions) {
        not_run("a rehearsal of gpu-check", "a debug build; cargo test --release runs it");
        return;
    }
    let _turn = super::alone();
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
    is_raced(&bin);
    let stages = [&STAGES[..], &OTHERS].concat();
    let arguments = ["--rehearse", "--bin", &bin.to_string_lossy()];
    let found = check(dir.path(), &stages, &arguments, &[QUICK]);
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
    let before = bench("--save-baseline", &[("GALLIVM_PERF", "")]);
    assert!(before.contains("1 row in") && !before.contains("regressed"), "{before}");
    let slow = [QUICK, ("LP_NATIVE_VECTOR_WIDTH", "128"), ("LP_NUM_THREADS", "1")];
    let slow = bench("--baseline", &slow);
    assert!(slow.contains("Performance has regressed"), "{before}\n{slow}");
}

/// The bench of operators races a record's kernel at shapes of its own: as one of the record.
fn is_raced(bin: &Path) {
    let dir = tempfile::tempdir().expect("folder");
    let races = |variable: &str, record: &Path| -> (String, Value) {
        let figures = dir.path().join("races.json");
        let mut command = started(&bin.join("ops"));
        command.args(["--bench", "--races", "1"]).env(variable, record).env("WGPT_BENCH_JSON", &figures);
        command.envs([QUICK, ("WGPT_BENCH_SECONDS", "2"), ("WGPT_BATCH", "1"), ("WGPT_CONTEXT", "16")]);
        let out = command.output().expect("the program starts");
        (text(&out.stdout) + &text(&out.stderr), read_json(&figures))
    };
    let (out, plain) = races("WGPT_CACHE", &dir.path().join("none"));
    let of_record = |figures: &Value| -> Vec<Value> {
        figures["cases"].as_array().expect("cases").iter().filter(|case| case["from_record"] == true).cloned().collect()
    };
    assert!(out.contains("\ntuned   no: "), "{out}");
    assert_eq!(of_record(&plain), Vec::<Value>::new());
    let word = |name: &str| plain[name].as_str().expect("a word").to_owned();
    let Some(algorithm) = other_rows(&word("adapter")) else {
        not_run("races with a record of tuning", "the adapter is no software adapter");
        return;
    };
    // found for shapes that the bench does not have; and attention on matrix units, which software adapters do without
    let mut kernels = record_of(&algorithm, [1024, 192, 64]);
    let block = attention::BlockSizes { rows: 64, columns: 32, grid_m: 4 };
    let block = serde_json::to_string(&block).expect("JSON");
    kernels.insert(attention::key(attention::AttentionKernel::Forward, 64, 1024), block);
    write(dir.path(), &word("adapter"), &word("driver"), kernels);
    let file =
        std::fs::read_dir(dir.path().join("tune")).expect("folder").next().expect("a file").expect("a file").path();
    let (out, tuned) = races("WGPT_TUNING", &file);
    assert!(out.contains("not run: attention Forward F16 64 16 is not used for "), "{out}");
    let found = of_record(&tuned);
    let shapes: Vec<&str> = found.iter().filter_map(|case| case["shape"].as_str()).collect();
    assert_eq!(shapes[0], "qkv 16x2304x768", "{out}");
    // software Vulkan computes the head in windows of its weights, which are other shapes
    let left_out = out.contains("not run: matmul Forward F32 16 50304 768 is not used for head 16x50304x768: ");
    assert!(shapes.len() == 2 || left_out, "{out}");
    for case in &found {
        assert_eq!((&case["operator"], &case["fault"]), (&json!("matmul.forward"), &Value::Null), "{out}");
        assert!(case["repeats"] == 1 && case["differing"] == 0, "{out}");
        let kernel = case["kernels"][0].as_str().expect("a kernel");
        assert!(kernel.starts_with("matmul_rows.forward") && !kernel.contains("pairs"), "{out}");
    }
    assert!(out.contains("of the record"), "{out}");
}
