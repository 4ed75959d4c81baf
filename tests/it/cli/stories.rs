//! The built-in demo: `wgpt train` without arguments.

use std::path::Path;

use super::{metrics, wgpt_with};

#[test]
fn with_no_arguments_it_beats_the_markov_model_and_writes_words() {
    let dir = tempfile::tempdir().expect("folder");
    // 700 steps compute for longer than the driver compiles, so it may optimize
    let outcome = wgpt_with(dir.path(), &[("GALLIVM_PERF", Path::new(""))], &["train"]).ends_with(0);
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
    assert!(counts[1] >= 20.0 && counts[0] / counts[1] >= 0.95, "{words}\n{}", outcome.out);
}
