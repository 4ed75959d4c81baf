//! Tests of measuring: `wgpt profile`, with and without a device, `tools/gpu-check` and `tools/peers`.

mod check;
mod peers;
mod record;
mod schema;

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::gpu_check::{read_json, started, succeeded};
use crate::common::not_run::not_run;

/// The program is started without tools/run and without anything that could be a driver.
#[test]
fn counting_needs_no_device() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("count.json");
    let output = Command::new(env!("CARGO_BIN_EXE_wgpt"))
        .args([
            "profile",
            "--count",
            "--model",
            "d12",
            "--batch",
            "2",
            "--context",
            "1024",
            "--accumulation",
            "3",
            "--json",
        ])
        .arg(&path)
        .env("VK_DRIVER_FILES", "/nonexistent")
        .env("WGPU_BACKEND", "none")
        .output()
        .expect("the program starts");
    let out = succeeded(&output);
    for word in ["f16 on matrix units", "dispatches", "least MB", "attention_coop.", "adamw.forward", "llm.c's formula"]
    {
        assert!(out.contains(word), "no `{word}` in\n{out}");
    }
    let count = read_json(&path);
    assert_eq!(count["tokens"], 6144);
    assert_eq!(count["submissions"], 3);
    // 6 N + 6 L C T
    assert_eq!(count["formula_flops_per_token"], 6.0 * 124_475_904.0 + 6.0 * 12.0 * 768.0 * 1024.0);
    let dispatches: u64 = count["kernels"]
        .as_array()
        .expect("kernels")
        .iter()
        .filter(|k| k["workgroups"] != 0)
        .map(|k| k["count"].as_u64().expect("a count"))
        .sum();
    assert_eq!(count["dispatches"], dispatches);
    let count = ["profile", "--count", "--model", "d12", "--precision", "f32"];
    let of_f32 = Command::new(env!("CARGO_BIN_EXE_wgpt")).args(count).output().expect("the program starts");
    let out = succeeded(&of_f32);
    assert!(out.contains("attention_tiled.backward_kv") && !out.contains("f16"), "{out}");
    let error = Command::new(env!("CARGO_BIN_EXE_wgpt")).args(["profile", "--count", "--context", "4096"]).output();
    assert_eq!(error.expect("the program starts").status.code(), Some(2));
}

#[test]
fn a_profile_adds_up_and_its_trace_is_a_trace() {
    let dir = tempfile::tempdir().expect("folder");
    let (figures, trace) = (dir.path().join("figures.json"), dir.path().join("trace.json"));
    let model =
        ["--layers", "2", "--heads", "4", "--channels", "64", "--vocab", "257", "--batch", "2", "--context", "64"];
    let mut command = started(Path::new(env!("CARGO_BIN_EXE_wgpt")));
    command.arg("profile").args(model).args(["--accumulation", "2", "--seconds", "1", "--json"]).arg(&figures);
    let out = succeeded(&command.arg("--trace").arg(&trace).output().expect("the program starts"));
    let figures = read_json(&figures);
    let step = &figures["step"];
    assert_eq!(step["created"], 0, "buffers were created in a later step: {out}");
    assert_eq!(step["planned_bytes"], step["allocated_bytes"], "{out}");
    assert_eq!(step["submissions"], 2.0);
    assert_eq!((&step["batch"], &step["context"], &step["accumulation"]), (&json!(2), &json!(64), &json!(2)));
    // `auto`, as `wgpt train` takes it: of software adapters no f16 but where it is asked for
    let printed = step["precision"].as_str().expect("a precision");
    assert!(out.contains(&format!("x 2; {printed}\n")), "{out}");
    assert!(!out.contains(", software)") || printed == "f32", "{out}");
    let profile = &figures["profile"];
    if profile.is_null() {
        not_run("times of kernels and the trace", "the adapter has no timestamps");
        return;
    }
    let number = |name: &str| profile[name].as_f64().expect("a number");
    let (sum, span) = (number("commands_ms") + number("gaps_ms"), number("span_ms"));
    assert!((sum / span - 1.0).abs() < 0.01, "kernels and gaps are {sum} ms, the step {span} ms\n{out}");
    let listed: f64 = profile["gaps"].as_array().expect("gaps").iter().map(|g| g["ms"].as_f64().expect("ms")).sum();
    assert!((listed - number("gaps_ms")).abs() < 1e-6);

    let schema: Value = serde_json::from_str(include_str!("trace.schema.json")).expect("JSON");
    let trace = read_json(&trace);
    let found = schema::faults(&schema, &trace, "trace");
    assert!(found.is_empty(), "{} faults, the first {:?}", found.len(), &found[..found.len().min(5)]);
    let events = trace["traceEvents"].as_array().expect("events");
    let has = |category: &str, name: &str| events.iter().any(|e| e["cat"] == category && e["name"] == name);
    for (category, name) in
        [("layer", "h.0"), ("layer", "h.1"), ("layer", "head"), ("host", "read a batch"), ("step", "step 1")]
    {
        assert!(has(category, name), "no {category} called {name}");
    }
    let kernels = events.iter().filter(|e| e["cat"] == "kernel");
    let dispatches = step["dispatches"].as_u64().expect("dispatches");
    assert!(kernels.clone().count() as u64 >= dispatches, "fewer kernels than the {dispatches} dispatches");
    assert!(kernels.clone().all(|e| e["args"]["layer"].is_string()));
    // one after the other on their track
    let mut end = 0.0;
    for kernel in kernels {
        let (begin, duration) = (kernel["ts"].as_f64().expect("ts"), kernel["dur"].as_f64().expect("dur"));
        assert!(begin >= end - 1.0, "{kernel} begins before the one before it ends at {end}");
        end = begin + duration;
    }
}

#[test]
fn planted_faults_of_a_trace_are_found() {
    let schema: Value = serde_json::from_str(include_str!("trace.schema.json")).expect("JSON");
    let event = json!({"ph": "X", "name": "gelu.forward", "cat": "kernel", "pid": 2, "tid": 1, "ts": 1.5, "dur": 0.5, "args": {}});
    let trace = |event: &Value| {
        let about = json!({"adapter": "a", "driver": "d", "version": "v"});
        json!({"displayTimeUnit": "ms", "otherData": about, "traceEvents": vec![event; 10]})
    };
    assert_eq!(schema::faults(&schema, &trace(&event), "trace"), Vec::<String>::new());
    for (name, wrong) in [
        ("ts", json!("1.5")),
        ("ts", json!(-1)),
        ("dur", Value::Null),
        ("cat", json!("x")),
        ("ph", json!("B")),
        ("id", json!(1)),
    ] {
        let mut event = event.clone();
        event[name] = wrong;
        assert_eq!(schema::faults(&schema, &trace(&event), "trace").len(), 10, "{event}");
    }
    let mut few = trace(&event);
    few["traceEvents"] = json!([event]);
    assert_eq!(schema::faults(&schema, &few, "trace"), ["trace.traceEvents: fewer than 10 items"]);
}
