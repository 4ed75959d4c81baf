//! The built-in demo: `wgpt train` without data.

use std::path::Path;

use super::{FOUR_LANES, metrics, wgpt_with};

/// A smaller model than the demo's, which learns in a sixth of the work.
const SMALL: [&str; 18] = [
    "--layers",
    "2",
    "--heads",
    "4",
    "--channels",
    "64",
    "--context",
    "64",
    "--batch",
    "8",
    "--steps",
    "800",
    "--lr",
    "3e-3",
    "--val-every",
    "800",
    "--val-limit",
    "20000",
];

#[test]
fn a_small_model_beats_the_markov_model_and_writes_words() {
    beats_the_markov_model(&SMALL, 0.5);
}

#[test]
#[ignore = "takes minutes on software Vulkan"]
fn with_no_arguments_it_beats_the_markov_model_and_writes_words() {
    beats_the_markov_model(&[], 0.95);
}

/// Trains on stories, and checks the loss after the last step and the share of the sample's words that the grammar has.
#[track_caller]
fn beats_the_markov_model(flags: &[&str], share: f64) {
    let dir = tempfile::tempdir().expect("folder");
    let arguments = [&["train"], flags].concat();
    // the run computes for longer than the driver compiles, so the driver may optimize, and has its widest vectors
    let environment = [("GALLIVM_PERF", Path::new("")), (FOUR_LANES.0, Path::new(""))];
    let outcome = wgpt_with(dir.path(), &environment, &arguments).ends_with(0);
    println!("{} s\n{}", outcome.seconds, outcome.out);
    let number = |label: &str| -> f64 {
        let rest = outcome.out.rsplit(label).next().expect("label").trim_start();
        rest.split(|c: char| c.is_whitespace() || c == ';').next().and_then(|n| n.parse().ok()).expect("a number")
    };
    let lines = metrics(&dir.path().join("runs/1"));
    let loss = lines.last().and_then(|m| m["val_loss"].as_f64()).expect("a validation after the last step");
    let (markov, entropy) = (number("order-2 Markov model"), number("entropy rate of the text"));
    assert!(entropy < loss && loss < markov, "validation {loss}, Markov {markov}, entropy {entropy}");
    let words = outcome.out.lines().find(|l| l.contains("words are words of the grammar")).expect("the count of words");
    let counts: Vec<f64> = words.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    assert!(counts[1] >= 20.0 && counts[0] / counts[1] >= share, "{words}\n{}", outcome.out);
}
