//! Commands that measure take the kernels of the adapter's record of `wgpt tune`, and print that they do.

use std::path::Path;

use serde_json::Value;

use crate::common::gpu_check::{read_json, started, succeeded};
use crate::common::not_run::not_run;
use crate::common::tuned::{other_rows, record_of, write};

const MODEL: [&str; 12] =
    ["--layers", "1", "--heads", "4", "--channels", "64", "--vocab", "257", "--batch", "2", "--context", "64"];

#[test]
fn a_profile_takes_the_record_and_says_so() {
    let dir = tempfile::tempdir().expect("folder");
    let profile = |cache: &Path| -> (String, Value) {
        let figures = dir.path().join("figures.json");
        let mut command = started(Path::new(env!("CARGO_BIN_EXE_wgpt")));
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
