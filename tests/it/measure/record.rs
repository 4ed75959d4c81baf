//! Commands that measure take the kernels of the adapter's record of `wgpt tune`, and print that they do.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use wgpt::gpu::{Caps, Elem};
use wgpt::measure::tune::{self, Record};
use wgpt::ops::attention;
use wgpt::ops::matmul::{Algorithm, Product, choose};

use super::{check, read_json, succeeded};
use crate::common::not_run::not_run;

const MODEL: [&str; 12] =
    ["--layers", "1", "--heads", "4", "--channels", "64", "--vocab", "257", "--batch", "2", "--context", "64"];

/// Puts a hand-written record for the adapter of these figures into a cache folder.
fn write(cache: &Path, adapter: &str, driver: &str, kernels: BTreeMap<String, String>) {
    let caps =
        Caps { name: adapter.into(), driver: driver.into(), backend: "Vulkan".into(), ..Caps::webgpu_defaults() };
    let path = tune::path(&caps).expect("a cache folder");
    let path = cache.join("tune").join(path.file_name().expect("a file"));
    let (adapter, driver) = (adapter.into(), driver.into());
    let record = Record { version: env!("CARGO_PKG_VERSION").into(), adapter, driver, kernels };
    std::fs::create_dir_all(cache.join("tune")).expect("folder");
    std::fs::write(path, serde_json::to_string(&record).expect("JSON")).expect("record");
}

/// A kernel that this software adapter can run and does not take by itself: its name lacks `.pairs`.
fn other_rows(adapter: &str) -> Option<Algorithm> {
    let bits: u32 = adapter.split(", ").find_map(|part| part.strip_suffix(" bits)")?.parse().ok())?;
    let caps = Caps { software: true, lanes: bits / 32, ..Caps::webgpu_defaults() };
    choose::candidates(&caps, Elem::F32).into_iter().find(|a| matches!(a, Algorithm::Rows { pairs: false, .. }))
}

fn record_of(algorithm: &Algorithm, shape: [usize; 3]) -> BTreeMap<String, String> {
    let text = serde_json::to_string(algorithm).expect("JSON");
    BTreeMap::from([(choose::key(Product::Forward, Elem::F32, shape), text)])
}

#[test]
fn a_profile_takes_the_record_and_says_so() {
    let dir = tempfile::tempdir().expect("folder");
    let profile = |cache: &Path| -> (String, Value) {
        let figures = dir.path().join("figures.json");
        let mut command = check::started(Path::new(env!("CARGO_BIN_EXE_wgpt")));
        command.arg("profile").args(MODEL).args(["--steps", "2", "--seconds", "0", "--wall", "--json"]).arg(&figures);
        let out = succeeded(&command.env("WGPT_CACHE", cache).output().expect("the program starts"));
        (out, read_json(&figures))
    };
    let (out, plain) = profile(&dir.path().join("none"));
    assert!(plain["step"]["tuned"].is_null() && !out.contains("\ntuned"), "{out}");
    let word = |name: &str| plain["about"][name].as_str().expect("a word").to_owned();
    let (adapter, driver) = (word("adapter"), word("driver"));
    let Some(algorithm) = other_rows(&adapter) else {
        not_run("a profile with a record of tuning", "the adapter is no software adapter");
        return;
    };
    // the product of qkv, of 2 x 64 rows
    let kernels = record_of(&algorithm, [128, 192, 64]);
    let (recorded, foreign) = (dir.path().join("recorded"), dir.path().join("foreign"));
    write(&recorded, &adapter, &driver, kernels.clone());
    let (out, tuned) = profile(&recorded);
    let line = tuned["step"]["tuned"].as_str().expect("a line").to_owned();
    assert!(line.starts_with("1 of 15 products, from ") && line.ends_with(".json"), "{line}");
    assert!(out.contains(&format!("\ntuned   {line}\n")), "{out}");
    assert_ne!(tuned["step"]["kernels"], plain["step"]["kernels"], "the record's kernel is not taken");

    write(&foreign, &adapter, &driver, kernels);
    let file = std::fs::read_dir(foreign.join("tune")).expect("folder").next().expect("a file").expect("a file").path();
    let text = std::fs::read_to_string(&file).expect("record").replace(&driver, "another driver");
    std::fs::write(&file, text).expect("record");
    let (out, _) = profile(&foreign);
    assert!(out.contains("\ntuned   no: ") && out.contains("another driver"), "{out}");
}

/// The bench of operators races a record's kernel at shapes of its own: as one of the record.
pub fn is_raced(bin: &Path) {
    let dir = tempfile::tempdir().expect("folder");
    let races = |variable: &str, record: &Path| -> (String, Value) {
        let figures = dir.path().join("races.json");
        let mut command = check::started(&bin.join("ops"));
        command.args(["--bench", "--races", "1"]).env(variable, record).env("WGPT_BENCH_JSON", &figures);
        command.envs([("WGPT_BENCH_SECONDS", "2"), ("WGPT_BATCH", "1"), ("WGPT_CONTEXT", "16")]);
        let out = command.output().expect("the program starts");
        (super::text(&out.stdout) + &super::text(&out.stderr), read_json(&figures))
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
