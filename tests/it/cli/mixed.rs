//! Mixed precision and tuning through the command line.

use std::path::Path;

use serde_json::Value;

use super::{text_file, train, wgpt, wgpt_with};
use crate::common::not_run::not_run;

fn metrics(dir: &std::path::Path, run: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join(run).join("metrics.jsonl")).expect("metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn f16_is_here() -> bool {
    let here = wgpt::gpu::adapter::find(None).is_ok_and(|caps| caps.f16);
    if !here {
        not_run("--precision f16", "the adapter has no f16");
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
    let noted = std::fs::read_to_string(dir.path().join("half/config.toml")).expect("config");
    let text = half.out + &half.err + &noted;
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
        not_run("the plan of a software adapter's tuning", "the adapter is no software adapter");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    text_file(dir.path(), "text.txt", 4000);
    train(dir.path(), &["--steps", "1", "--out", "run"]).ends_with(0);
    let config = std::fs::read_to_string(dir.path().join("run/config.toml")).expect("config");
    assert!(config.contains("precision = \"f32\""), "{config}");
}

const SHAPE: [&str; 10] = ["--layers", "1", "--heads", "2", "--channels", "32", "--batch", "2", "--context", "16"];

/// `wgpt tune` of that shape in f32, and what it printed.
fn tune(dir: &Path, named: &[(&str, &Path)], more: &[&str]) -> String {
    let args = [&["tune", "--vocab", "257", "--precision", "f32"], &SHAPE[..], more].concat();
    let run = wgpt_with(dir, named, &args).ends_with(0);
    run.out + &run.err
}

/// The first lines of `wgpt train` with a record and so many sequences.
fn header(dir: &Path, record: &Path, batch: &str) -> String {
    let args = ["train", "--text", "text.txt", "--tokenizer", "bytes", "--steps", "1"];
    let shape = [&SHAPE[..6], &["--batch", batch], &SHAPE[8..]].concat();
    let run = wgpt_with(dir, &[("WGPT_TUNING", record)], &[&args[..], &shape].concat()).ends_with(0);
    run.out + &run.err
}

#[track_caller]
fn has(text: &str, part: &str) {
    assert!(text.contains(part), "expected {part:?} in\n{text}");
}

#[test]
fn tuning_without_time_checks_the_table_and_keeps_the_record() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("a record.json");
    let named = [("WGPT_TUNING", file.as_path())];
    let text = tune(dir.path(), &named, &["--seconds", "0"]);
    has(&text, "tune     15 products, at most 0 s (--seconds 0 each)\n");
    assert_eq!(text.matches(": out of time; the table's kernel is taken; the table's matmul_").count(), 15, "{text}");
    has(&text, "\nattention: one kernel here, nothing to choose\n");
    has(&text, "\ntuned    0 of 15 products; 15 had no time: --seconds ");
    assert!(!file.exists(), "nothing was raced");

    tune(dir.path(), &named, &["--total", "4"]);
    let record = std::fs::read_to_string(&file).expect("a record");
    // an entry that the table would not choose shows whether it is kept
    let mut planted: Value = serde_json::from_str(&record).expect("JSON");
    let kernels = planted["kernels"].as_object_mut().expect("kernels");
    let (_, first) = kernels.iter_mut().next().expect("an entry");
    let mut rows: Value = serde_json::from_str(first.as_str().expect("a kernel")).expect("JSON");
    let pairs = rows["Rows"]["pairs"].as_bool();
    if let Some(pairs) = pairs {
        rows["Rows"]["pairs"] = (!pairs).into();
        *first = rows.to_string().into();
    }
    std::fs::write(&file, planted.to_string()).expect("written");
    for time in ["--seconds", "--total"] {
        let text = tune(dir.path(), &named, &[time, "0"]);
        has(&text, ": out of time; the record's entry is kept; the table's matmul_");
        let kept: Value = serde_json::from_str(&std::fs::read_to_string(&file).expect("a record")).expect("JSON");
        assert_eq!(kept, planted);
    }
    wgpt(dir.path(), &["tune", "--batch", "0"]).ends_with(2);
    wgpt(dir.path(), &["tune", "--seconds", "-1"]).ends_with(2);
    wgpt(dir.path(), &["tune", "--total", "nan"]).ends_with(2);
}

#[test]
fn a_record_of_tuning_is_counted_by_a_run_and_one_that_is_of_no_use_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    text_file(dir.path(), "text.txt", 4000);
    let (file, absent) = (dir.path().join("a record.json"), dir.path().join("none/a.json"));
    tune(dir.path(), &[("WGPT_TUNING", &file)], &["--total", "3"]);
    let says = |batch: &str, what: &str| has(&header(dir.path(), &file, batch), what);
    // a slow machine has time for fewer than all
    let text = header(dir.path(), &file, "2");
    let line = text.lines().find(|line| line.ends_with(&format!(" of 15 products, from {}", file.display())));
    let applies = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    assert!(applies.is_some_and(|count| (1..=15).contains(&count)), "{text}");
    let of = |what: &str| format!("of 15 products{what} {}", file.display());
    says("3", &format!("{} is for other shapes; try wgpt tune --batch 3 --context 16\n", of(": the record")));
    let text = header(dir.path(), &absent, "2");
    has(&text, &format!("tuned    no: {} does not exist\n", absent.display()));
    // its folder is not made for it
    // a file that is no record is neither read nor replaced
    let notes = dir.path().join("notes.txt");
    std::fs::write(&notes, "important").expect("written");
    let named = [("WGPT_TUNING", notes.as_path())];
    let refused = wgpt_with(dir.path(), &named, &[&["tune", "--precision", "f32"], &SHAPE[..]].concat()).ends_with(6);
    assert!(refused.err.contains("is not a record of wgpt tune"), "{}", refused.err);
    assert_eq!(std::fs::read_to_string(&notes).expect("a file"), "important");
    let named = [("WGPT_TUNING", absent.as_path())];
    let refused = wgpt_with(dir.path(), &named, &[&["tune", "--precision", "f32"], &SHAPE[..]].concat()).ends_with(6);
    assert!(refused.err.contains("none/a.json: cannot be written"), "{}", refused.err);
    assert!(!dir.path().join("none").exists());

    let record = std::fs::read_to_string(&file).expect("a record");
    let mut other: Value = serde_json::from_str(&record).expect("JSON");
    other["driver"] = "another 1.0".into();
    std::fs::write(&file, other.to_string()).expect("written");
    says("2", "another 1.0");
    std::fs::write(&file, &record[..record.len() / 2]).expect("written");
    says("2", "tuned    no: ");
    // the default folder is made
    tune(dir.path(), &[], &["--total", "1"]);
    assert!(dir.path().join("cache/tune").is_dir());
}

#[test]
fn tuning_lists_all_kernels_and_keeps_its_record_where_it_is_told_to() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("a record.json");
    tune(dir.path(), &[("WGPT_TUNING", &file)], &["--total", "6", "--json", "trials.json"]);
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
        if job["kept"] == false {
            assert!(list.len() == 1 && record["kernels"][job["key"].as_str().expect("a key")].is_null());
            continue;
        }
        let right = list.iter().filter(|trial| trial["ms"].as_f64().is_some_and(|ms| ms > 0.0));
        let best = right.min_by(|a, b| a["ms"].as_f64().partial_cmp(&b["ms"].as_f64()).expect("numbers")).expect("one");
        // less than 2 % faster than the table's may be noise
        let [table, fastest] = [&list[0], best].map(|trial| trial["ms"].as_f64().expect("right"));
        let best = if table < 1.02 * fastest { &list[0] } else { best };
        assert_eq!(best["kernel"], job["best"]);
        let kept: Value = record["kernels"][job["key"].as_str().expect("a key")].clone();
        let kept: Value = serde_json::from_str(kept.as_str().expect("a kernel")).expect("JSON");
        assert_eq!(kept, best["choice"]);
    }
    assert!(jobs.iter().any(|job| job["trials"].as_array().is_some_and(|list| list.len() > 1)), "{text}");
}
