//! Data sets by the names of `wgpt data fetch`, from a server that plays the hub to a finished run.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use super::bad_input::refused;
use super::server::{COMMIT, Manner, Served, Server};
use super::{Outcome, metrics, wgpt_with};

/// A shard of `tokens` tokens that are below `below`.
fn shard(seed: u32, tokens: u32, below: u32) -> Vec<u8> {
    let ids: Vec<u16> = (0..tokens).map(|i| ((i * 7919 + seed * 31) % below) as u16).collect();
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("x.bin");
    wgpt::data::write_shard(&path, &ids).expect("shard");
    fs::read(path).expect("shard")
}

/// llm.c's file of two questions.
fn questions() -> Vec<u8> {
    let mut words: Vec<u16> = Vec::new();
    for index in 0..2 {
        let example = [&[0, index, 1, 4, 2, 11, 12][..], &[1, 5], &[2, 6, 7], &[1, 8], &[1, 9]].concat();
        words.push(u16::MAX);
        words.push(2 * (example.len() as u16 + 1));
        words.extend(&example[1..]);
    }
    let mut bytes: Vec<u8> = [20_240_522_i32, 1, 2, 64].iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(1024, 0);
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

/// `wgpt` with a cache in `dir` and a hub at `endpoint`.
fn with_hub(dir: &Path, endpoint: &str, args: &[&str]) -> Outcome {
    let home = dir.join("hf");
    let variables = [
        ("HF_HOME", home.as_path()),
        ("HF_ENDPOINT", Path::new(endpoint)),
        ("HF_HUB_CACHE", Path::new("")),
        ("HF_HUB_OFFLINE", Path::new("")),
        ("HF_TOKEN", Path::new("")),
    ];
    wgpt_with(dir, &variables, args)
}

/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.1:9";
/// The recipe at a size that tests have time for: a step is one batch of each of its eight ranks.
const TINY: [&str; 10] = [
    "model=",
    "layers=1",
    "heads=2",
    "channels=16",
    "context=8",
    "batch=1",
    "tokens-per-step=64",
    "val-limit=64",
    "warmup=0",
    "sample-every=0",
];

#[test]
fn the_recipe_of_124m_trains_on_what_fetch_brought() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/recipes/gpt2-124M.toml").display().to_string();
    let sets: Vec<&str> = TINY.iter().flat_map(|set| ["--set", set]).collect();
    let train = |more: &[&str]| {
        let args = [&["train", &recipe, "--steps", "2", "--out", "run"][..], &sets, more].concat();
        with_hub(dir, NOWHERE, &args)
    };
    refused(train(&[]), 3, &["fineweb10B: its validation is not fetched", "try `wgpt data fetch fineweb10B`"]);
    assert!(!dir.join("run").exists());

    let name = |i: u32| format!("fineweb_train_{i:06}.bin");
    let mut files: Vec<Served> = (1..=103).map(|i| Served::new(&name(i), shard(i, 70, 50_257), Manner::Good)).collect();
    files.push(Served::new("fineweb_val_000000.bin", shard(0, 200, 50_257), Manner::Good));
    let hub = Server::new("datasets/kjj0/fineweb10B-gpt2", files, None);
    let some = with_hub(dir, &hub.address(), &["data", "fetch", "fineweb10B", "--shards", "2"]).ends_with(0).out;
    assert!(some.contains("train --data fineweb10B:2 --val fineweb10B\n"), "{some}");
    let words =
        ["fineweb10B: is only partly fetched, expected 103 training shards, got 2", "or fineweb10B:2 for the first 2"];
    refused(train(&[]), 3, &words);
    let all = with_hub(dir, &hub.address(), &["data", "fetch", "fineweb10B"]).ends_with(0).out;
    assert!(all.contains("fineweb10B: 103 training shards and validation, 104 files"), "{all}");
    assert!(all.contains("train --data fineweb10B --val fineweb10B\n"), "{all}");

    refused(train(&[]), 3, &["hellaswag: is not fetched", "try `wgpt data fetch hellaswag`"]);
    let file = Served::new("hellaswag_val.bin", questions(), Manner::Good);
    let hub = Server::new("datasets/karpathy/llmc-starter-pack", vec![file], None);
    let asked = with_hub(dir, &hub.address(), &["data", "fetch", "hellaswag"]).ends_with(0).out;
    assert!(asked.contains("eval --from gpt2 --hellaswag hellaswag\n"), "{asked}");

    let out = train(&[]).ends_with(0).out;
    assert!(out.contains("data     7,210 tokens in 103 shards, 200 for validation"), "{out}");
    let lines = metrics(&dir.join("run"));
    assert!(lines.len() == 3 && lines[2]["val_loss"].is_number() && lines[2]["hellaswag"].is_number(), "{lines:?}");
    let config = fs::read_to_string(dir.join("run/config.toml")).expect("config");
    assert!(config.contains("data = \"fineweb10B\"\nval = \"fineweb10B\"\n"), "{config}");
    assert!(config.contains("hellaswag = \"hellaswag\"\n"), "{config}");

    // the same bytes under another commit are the same data
    let snapshots = dir.join("hf/hub/datasets--kjj0--fineweb10B-gpt2/snapshots");
    fs::rename(snapshots.join(COMMIT), snapshots.join("another")).expect("the snapshot");
    with_hub(dir, NOWHERE, &["train", "--resume", "run", "--steps", "3"]).ends_with(0);
    assert_eq!(metrics(&dir.join("run")).len(), 4);
    let args = ["eval", "--from", "run", "--data", "fineweb10B", "--val-limit", "64", "--hellaswag", "hellaswag"];
    let measured = with_hub(dir, NOWHERE, &args).ends_with(0).out;
    let loss = metrics(&dir.join("run"))[3]["val_loss"].as_f64().expect("validation");
    assert!(measured.contains(&format!("validation {loss:.4} nats per token, over 64 tokens")), "{measured}");
    let shown = with_hub(dir, NOWHERE, &["data", "inspect", "fineweb10B"]).ends_with(0).out;
    assert!(shown.contains("7,410 tokens") && shown.contains("in 104 shards"), "{shown}");
}

#[test]
fn names_that_mean_no_tokens_say_what_helps() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let run = |args: &str| with_hub(dir, NOWHERE, &args.split(' ').collect::<Vec<_>>());
    refused(
        run("train --data finweb10B --model d6"),
        3,
        &["finweb10B: no such file", "the nearest names are fineweb10B"],
    );
    refused(run("train --data tinystories --model d6"), 3, &["contains text", "wgpt data fetch tinystories"]);
    refused(run("train --data gpt2 --model d6"), 3, &["gpt2: contains weights", "--init gpt2"]);
    refused(run("train --data hellaswag --model d6"), 3, &["contains questions", "--hellaswag hellaswag"]);
    refused(run("data inspect fineweb-edu10B"), 3, &["is not fetched", "try `wgpt data fetch fineweb-edu10B`"]);
    refused(run("train --init gpt2 --data fineweb10B"), 3, &["gpt2", "try `wgpt data fetch gpt2`"]);
    refused(run("data fetch fineweb"), 2, &["unknown name `fineweb`", "try fineweb10B"]);
    let dry = run("train --data fineweb10B --model d6 --dry-run").ends_with(0).out;
    assert!(dry.contains("data     fineweb10B: not here; try `wgpt data fetch fineweb10B`\n"), "{dry}");
    // a folder of this name is here: it wins, also over what is fetched
    fs::create_dir(dir.join("fineweb10B")).expect("folder");
    refused(run("train --data fineweb10B --model d6"), 3, &["fineweb10B: the folder has no matching files"]);
    fs::write(dir.join("fineweb10B/x_train_1.bin"), shard(1, 5000, 50_257)).expect("shard");
    let dry = run("train --data fineweb10B --model d6 --dry-run").ends_with(0).out;
    assert!(dry.contains("data     5,000 tokens in 1 shard,"), "{dry}");
    let weird: &OsStr = OsStr::new("fineweb10B:1");
    fs::write(dir.join(weird), shard(1, 6000, 50_257)).expect("shard");
    let dry = run("train --data fineweb10B:1 --model d6 --dry-run").ends_with(0).out;
    assert!(dry.contains("data     6,000 tokens in 1 shard,"), "{dry}");
}
