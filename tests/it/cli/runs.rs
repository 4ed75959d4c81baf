//! A run's folder, its records, and what stays the same when it is run again.

use std::fs;
use std::path::Path;

use super::{metrics, text_file, train, wgpt};

#[test]
fn a_run_writes_its_records_and_the_same_seed_gives_the_same_bits() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    let more = ["--steps", "7", "--val-every", "3", "--tokens-per-step", "64", "--warmup", "2", "--sample-every", "5"];
    for out in ["a", "b"] {
        train(dir, &[&more[..], &["--out", out]].concat()).ends_with(0);
    }
    let (a, b) = (metrics(&dir.join("a")), metrics(&dir.join("b")));
    let steps: Vec<u64> = a.iter().map(|m| m["step"].as_u64().expect("step")).collect();
    assert_eq!(steps, [0, 1, 2, 3, 4, 5, 6, 7]);
    let validated: Vec<u64> =
        a.iter().filter(|m| m["val_loss"].is_number()).filter_map(|m| m["step"].as_u64()).collect();
    assert_eq!(validated, [0, 3, 6, 7]);
    for (a, b) in a.iter().zip(&b) {
        for key in ["loss", "grad_norm", "lr", "val_loss"] {
            assert_eq!(a[key].to_string(), b[key].to_string(), "step {}: {key}", a["step"]);
        }
        if a["step"] != 0 {
            assert!(["loss", "grad_norm", "lr", "ms", "tokens_per_s"].iter().all(|k| a[*k].is_number()), "{a}");
        }
    }
    let files = ["config.toml", "main.log", "samples.txt", "model/config.json", "model/model.safetensors"];
    assert!(files.iter().all(|f| dir.join("a").join(f).exists()));
    let saved = |run: &str| fs::read(dir.join(run).join("model/model.safetensors")).expect("model");
    assert!(saved("a") == saved("b"), "the saved weights differ");

    // from the weights: text goes on, the same twice, and training starts where they are
    let prompt = ["generate", "--from", "a", "Once upon", "--max-tokens", "20", "--seed", "3"];
    let first = wgpt(dir, &prompt).ends_with(0).out;
    assert!(first.starts_with("Once upon"), "{first}");
    assert_eq!(first, wgpt(dir, &prompt).ends_with(0).out);
    let init = ["train", "--text", "text.txt", "--init", "a", "--batch", "2", "--steps", "1", "--out", "c"];
    wgpt(dir, &init).ends_with(0);
    let loss = |m: &serde_json::Value, key: &str| m[key].as_f64().expect("a number");
    let (was, is) = (loss(&a[7], "val_loss"), loss(&metrics(&dir.join("c"))[0], "val_loss"));
    assert!((was - is).abs() < 1e-5, "validation {was} at the end, {is} from the saved weights");
}

#[test]
fn a_folder_that_holds_a_run_is_respected() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    train(dir, &["--steps", "2", "--out", "run"]).ends_with(0);
    let before = snapshot(&dir.join("run"));

    let again = train(dir, &["--steps", "2", "--out", "run"]).ends_with(0);
    assert!(again.out.contains("finished"), "{}", again.out);
    let other = train(dir, &["--steps", "2", "--lr", "0.01", "--out", "run"]).ends_with(2);
    assert!(other.err.contains("lr: 0.0006 there, 0.01 here"), "{}", other.err);
    fs::create_dir(dir.join("other")).expect("folder");
    fs::write(dir.join("other/notes.txt"), "mine").expect("write");
    let foreign = train(dir, &["--steps", "2", "--out", "other"]).ends_with(2);
    assert!(foreign.err.contains("holds files but no run"), "{}", foreign.err);
    assert!(before == snapshot(&dir.join("run")), "a refused run changed the folder");

    // with the slash that a shell's completion adds
    train(dir, &["--steps", "2", "--lr", "0.01", "--out", "run/", "--restart"]).ends_with(0);
    assert!(before == snapshot(&dir.join("run.1")), "the run put aside has changed");

    // what was cut short before anything was saved begins again from the start
    fs::remove_dir_all(dir.join("run/checkpoints")).expect("checkpoints");
    fs::remove_file(dir.join("run/saved.json")).expect("the note of the first one");
    let text = fs::read_to_string(dir.join("run/metrics.jsonl")).expect("metrics");
    let cut: Vec<&str> = text.lines().take(2).collect();
    fs::write(dir.join("run/metrics.jsonl"), cut.join("\n") + "\n").expect("write");
    let config = fs::read_to_string(dir.join("run/config.toml")).expect("config");
    fs::write(dir.join("run/config.toml"), config.replace("finished = true\n", "finished = false\n")).expect("write");
    let unfinished = train(dir, &["--steps", "2", "--lr", "0.01", "--out", "run"]).ends_with(0);
    assert!(unfinished.out.contains("from the start"), "{}", unfinished.out);
    assert_eq!(metrics(&dir.join("run")).len(), 3);
}

/// Every file of a folder with its contents.
fn snapshot(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("folder").flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(dir).expect("inside").display().to_string();
                files.push((name, fs::read(entry.path()).expect("file")));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn runs_number_themselves() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    for _ in 0..2 {
        train(dir, &["--steps", "1"]).ends_with(0);
    }
    assert!(dir.join("runs/1/model").exists() && dir.join("runs/2/model").exists());
}

#[test]
fn two_runs_started_at_once_get_folders_of_their_own() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    std::thread::scope(|scope| {
        for seed in ["1", "2"] {
            scope.spawn(move || train(dir, &["--steps", "3", "--seed", seed]).ends_with(0));
        }
    });
    for run in ["runs/1", "runs/2"] {
        assert_eq!(metrics(&dir.join(run)).len(), 4, "{run}");
        assert!(dir.join(run).join("model").exists(), "{run}");
    }
}

#[test]
fn a_sample_that_is_garbage_costs_nothing() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    // untrained, the model writes bytes that are no text
    let args = [
        "train",
        "--layers",
        "1",
        "--heads",
        "2",
        "--channels",
        "32",
        "--batch",
        "2",
        "--context",
        "16",
        "--steps",
        "2",
    ];
    let args: Vec<&str> = args.iter().copied().chain(["--val-steps", "2", "--out", "run"]).collect();
    wgpt(dir, &args).ends_with(0);
    assert!(dir.join("run/model/model.safetensors").exists());
    let again = wgpt(dir, &args).ends_with(0);
    assert!(again.out.contains("finished"), "{}", again.out);
}

#[test]
fn shards_with_fewer_ids_than_their_tokenizer_are_saved() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let tokens: Vec<u16> = (0..500).map(|i| i % 90).collect();
    wgpt::data::write_shard(dir.join("a.bin"), &tokens).expect("shard");
    let args = ["train", "--data", "a.bin", "--tokenizer", "gpt2", "--vocab", "257", "--layers", "1", "--heads", "2"];
    let more = ["--channels", "32", "--batch", "2", "--context", "16", "--steps", "2", "--out", "run"];
    wgpt(dir, &[&args[..], &more].concat()).ends_with(0);
    assert!(dir.join("run/model/config.json").exists());
}

#[test]
fn eight_skipped_steps_end_the_run_as_diverged() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    // a learning rate that throws the weights to infinity at once
    let outcome = train(dir, &["--steps", "30", "--lr", "3e38", "--clip", "0", "--out", "run"]).ends_with(8);
    assert!(outcome.err.contains("8 steps in a row were skipped"), "{}", outcome.err);
    let lines = metrics(&dir.join("run"));
    let skipped: Vec<&serde_json::Value> = lines.iter().filter(|m| m["skipped"] == true).collect();
    assert!(skipped.len() >= 8 && skipped.iter().any(|m| m["loss"].is_null()), "{lines:?}");
}
