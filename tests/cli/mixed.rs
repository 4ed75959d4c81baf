//! Mixed precision and tuning from outside.

use serde_json::Value;

use super::{text_file, train, wgpt, wgpt_with};

fn metrics(dir: &std::path::Path, run: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join(run).join("metrics.jsonl")).expect("metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn f16_is_here() -> bool {
    let here = wgpt::gpu::adapter::find(None).is_ok_and(|caps| caps.f16);
    if !here {
        eprintln!("not run: --precision f16: the adapter has no f16");
    }
    here
}

#[test]
fn f16_trains_beside_f32_names_its_kernels_and_writes_the_loss_scale() {
    if !f16_is_here() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    text_file(dir.path(), "text.txt", 4000);
    let steps = ["--steps", "5", "--sample-every", "5"];
    let run = |precision: &str, out: &str| {
        let more = [&steps[..], &["--precision", precision, "--out", out]].concat();
        train(dir.path(), &more).ends_with(0)
    };
    let half = run("f16", "half");
    let text = half.out + &half.err;
    assert!(text.contains(" parameters, f16\n"), "{text}");
    assert!(text.contains("matmul_coop.forward") || text.contains("no matrix units"), "{text}");
    run("f32", "full");
    let [half, full] = ["half", "full"].map(|name| metrics(dir.path(), name));
    assert_eq!(half.len(), full.len());
    for (h, f) in half.iter().zip(&full).filter(|(h, _)| h["loss"].is_number()) {
        assert_eq!(h["loss_scale"], 1024.0);
        assert!(f["loss_scale"].is_null());
        let [a, b] = [h, f].map(|line| line["loss"].as_f64().expect("a loss"));
        assert!((a - b).abs() < 2e-3 * b, "f16 {a}, f32 {b}");
    }
    // what f16 has trained is saved in f32 like everything
    wgpt(dir.path(), &["generate", "--from", "half", "--max-tokens", "4", "The"]).ends_with(0);
}

#[test]
fn auto_is_f32_on_a_software_adapter() {
    let caps = wgpt::gpu::adapter::find(None).expect("an adapter");
    if !caps.software {
        eprintln!("not run: {} is no software adapter", caps.name);
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    text_file(dir.path(), "text.txt", 4000);
    train(dir.path(), &["--steps", "1", "--out", "run"]).ends_with(0);
    let config = std::fs::read_to_string(dir.path().join("run/config.toml")).expect("config");
    assert!(config.contains("precision = \"f32\""), "{config}");
}

#[test]
fn a_record_of_tuning_is_used_and_a_broken_or_stale_one_is_named_and_ignored() {
    let dir = tempfile::tempdir().expect("a folder");
    text_file(dir.path(), "text.txt", 4000);
    let shape = ["--layers", "1", "--heads", "2", "--channels", "32", "--batch", "2", "--context", "16"];
    let tune = wgpt(
        dir.path(),
        &[&["tune"], &shape[..], &["--vocab", "257", "--precision", "f32", "--seconds", "0"]].concat(),
    )
    .ends_with(0);
    let text = tune.out + &tune.err;
    assert_eq!(text.matches(" % of the roof; the table's choice; 1 of 1 right").count(), 15, "{text}");
    assert!(text.contains("\nroofs ") && text.contains(": matmul_rows.forward."), "{text}");
    let folder = dir.path().join("cache/tune");
    let file =
        std::fs::read_dir(&folder).expect("a folder of records").next().expect("a record").expect("a file").path();
    let says = |what: &str| {
        let run = train(dir.path(), &["--steps", "1"]).ends_with(0);
        let text = run.out + &run.err;
        assert!(text.contains(what), "expected {what:?} in\n{text}");
    };
    says("tuned    15 kernels");
    let record = std::fs::read_to_string(&file).expect("a record");
    let mut other: Value = serde_json::from_str(&record).expect("JSON");
    other["driver"] = "another 1.0".into();
    std::fs::write(&file, other.to_string()).expect("written");
    says("another 1.0");
    std::fs::write(&file, &record[..record.len() / 2]).expect("written");
    says("tuned    no: ");
    wgpt(dir.path(), &["tune", "--batch", "0"]).ends_with(2);
    wgpt(dir.path(), &["tune", "--seconds", "-1"]).ends_with(2);
    wgpt(dir.path(), &["tune", "--total", "nan"]).ends_with(2);
}

#[test]
fn tuning_lists_all_kernels_and_keeps_its_record_where_it_is_told_to() {
    let dir = tempfile::tempdir().expect("a folder");
    text_file(dir.path(), "text.txt", 4000);
    let file = dir.path().join("a record.json");
    let named = [("WGPT_TUNING", file.as_path())];
    let shape = ["--layers", "1", "--heads", "2", "--channels", "32", "--batch", "2", "--context", "16"];
    let more = ["tune", "--vocab", "257", "--precision", "f32", "--total", "3", "--json", "trials.json"];
    wgpt_with(dir.path(), &named, &[&more[..], &shape].concat()).ends_with(0);
    assert!(!dir.path().join("cache/tune").exists());
    let record: Value = serde_json::from_str(&std::fs::read_to_string(&file).expect("a record")).expect("JSON");
    let text = std::fs::read_to_string(dir.path().join("trials.json")).expect("trials");
    let trials: Value = serde_json::from_str(&text).expect("JSON");
    let jobs = trials["jobs"].as_array().expect("jobs");
    assert_eq!(jobs.len(), 15);
    let shares: Vec<f64> = jobs.iter().map(|job| job["share"].as_f64().expect("a share")).collect();
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9 && shares.is_sorted_by(|a, b| a >= b), "{shares:?}");
    for job in jobs {
        let list = job["trials"].as_array().expect("trials");
        assert_eq!(list[0]["kernel"], job["table"]);
        let right = list.iter().filter(|trial| trial["ms"].as_f64().is_some_and(|ms| ms > 0.0));
        let best = right.min_by(|a, b| a["ms"].as_f64().partial_cmp(&b["ms"].as_f64()).expect("numbers")).expect("one");
        assert_eq!(best["kernel"], job["best"]);
        let kept: Value = record["kernels"][job["key"].as_str().expect("a key")].clone();
        let kept: Value = serde_json::from_str(kept.as_str().expect("a kernel")).expect("JSON");
        assert_eq!(kept, best["choice"]);
    }
    assert!(jobs.iter().any(|job| job["trials"].as_array().is_some_and(|list| list.len() > 1)), "{text}");
    let args = ["train", "--text", "text.txt", "--tokenizer", "bytes", "--steps", "1"];
    let run = wgpt_with(dir.path(), &named, &[&args[..], &shape].concat()).ends_with(0);
    assert!((run.out + &run.err).contains("tuned    15 kernels"));
}
