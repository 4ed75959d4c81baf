//! Recipes and `--set`: how they are printed, and runs that follow them.

use std::fs;
use std::path::Path;

use super::bad_input::refused;
use super::{metrics, text_file, wgpt, wgpt_with};

/// A model and a step as small as they come.
const TINY: &str = "# tiny
[data]
text = [\"text.txt\"]
tokenizer = \"bytes\"
[model]
layers = 1
heads = 2
channels = 32
[training]
batch = 2
context = 16
steps = 4
lr = 1e-3
final-lr-frac = 0.5
schedule = \"linear\"
[run]
val_every = 2
";

fn recipe(dir: &Path, text: &str) {
    fs::write(dir.join("r.toml"), text).expect("write");
}

#[test]
fn every_recipe_is_parsed_and_planned_without_its_data() {
    let dir = tempfile::tempdir().expect("folder");
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/recipes");
    let expected = [
        (
            "gpt2-124M",
            "12 layers, 12 heads, 768 channels, 1,024 positions",
            "batch 64 x context 1024 x 8 micro-steps; one epoch",
        ),
        ("gpt2-350M", "24 layers, 16 heads, 1,024 channels", "batch 64 x context 1024 x 8 micro-steps; 60,000 steps"),
        ("gpt2-774M", "36 layers, 20 heads, 1,280 channels", "batch 32 x context 1024 x 16 micro-steps; 286,102 steps"),
        ("gpt2-1558M", "48 layers, 25 heads, 1,600 channels", "batch 16 x context 1024 x 64 micro-steps; 32,000 steps"),
        (
            "gpt3-125M",
            "12 layers, 12 heads, 768 channels, 2,048 positions",
            "batch 32 x context 2048 x 8 micro-steps; 572,204",
        ),
        ("laptop", "6 layers, 6 heads, 384 channels", "batch 16 x context 256 x 4 micro-steps; 5,000 steps"),
        ("shakespeare", "12 layers, 12 heads, 768 channels", "batch 4 x context 1024 x 1 micro-step; one epoch"),
    ];
    let names =
        fs::read_dir(&recipes).expect("recipes").flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    assert_eq!(names.filter(|name| name.ends_with(".toml")).count(), expected.len());
    for (name, model, step) in expected {
        let path = recipes.join(format!("{name}.toml")).display().to_string();
        // a cache with nothing in it
        let cache = [("HF_HUB_CACHE", Path::new("none"))];
        let out = wgpt_with(dir.path(), &cache, &["train", &path, "--dry-run"]).ends_with(0).out;
        for words in [model, step, "not here", "memory   in f16", "memory   in f32", "weights", "AdamW v", "in all"] {
            assert!(out.contains(words), "{name}: expected `{words}` in\n{out}");
        }
        refused(
            wgpt(dir.path(), &["train", &path, "--dry-run", "--memory", "64MiB"]),
            5,
            &["expected at most 64.0 MiB"],
        );
    }
    let own = wgpt(dir.path(), &["train", "--dry-run"]).ends_with(0).out;
    assert!(own.contains("data     generated stories\n") && own.contains("700 steps"), "{own}");
    let eight = fs::read_to_string(recipes.join("gpt2-124M.toml")).expect("recipe");
    assert!(eight.contains("emulate-ranks = 8"));
    assert_eq!(fs::read_dir(dir.path()).expect("folder").count(), 0, "a dry run left files");
}

#[test]
fn every_value_says_where_it_comes_from() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    recipe(dir, TINY);
    let print = |more: &[&str]| {
        let args = [&["train", "r.toml", "--print-config"][..], more].concat();
        wgpt(dir, &args).ends_with(0).out
    };
    let line = |out: &str, key: &str| -> String {
        let found = out.lines().find(|line| line.trim_start_matches("# ").split_whitespace().next() == Some(key));
        found.unwrap_or_else(|| panic!("no `{key}` in\n{out}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let out = print(&["--set", "lr=2e-3", "--set", "batch=3", "--batch", "4", "--set", "training.no_shuffle=true"]);
    for (key, expected) in [
        ("layers", "layers = 1 # r.toml:6"),
        ("val-every", "val-every = 2 # r.toml:17"),
        ("lr", "lr = 0.002 # --set lr"),
        ("batch", "batch = 4 # flag"),
        ("no-shuffle", "no-shuffle = true # --set training.no_shuffle"),
        ("warmup", "# warmup = 0 # default"),
        ("clip", "# clip = 1 # default"),
        ("tokens-per-step", "# tokens-per-step = 64 # derived"),
        ("device", "# device # not given"),
        ("text", "text = [\"text.txt\"] # r.toml:3"),
    ] {
        assert_eq!(line(&out, key), expected);
    }
    // what is printed is a recipe of the same run
    fs::write(dir.join("again.toml"), &out).expect("write");
    let again = wgpt(dir, &["train", "again.toml", "--print-config"]).ends_with(0).out;
    let values = |out: &str| -> Vec<String> {
        out.lines().map(|line| line.rsplit_once(" # ").map_or(line, |(value, _)| value.trim_end()).to_owned()).collect()
    };
    assert_eq!(values(&out), values(&again));
    let out = print(&["--set", "text=", "--set", "schedule="]);
    assert_eq!(line(&out, "schedule"), "# schedule = \"cosine\" # --set schedule");
    assert_eq!(line(&out, "text"), "# text # --set text");
    // what contradicts a flag gives way and is told
    let other = print(&["--model", "d12", "--context", "16"]);
    assert_eq!(line(&other, "model"), "model = \"d12\" # flag");
    for key in ["layers", "heads", "channels"] {
        assert!(other.contains(&format!("{key} is overridden by --model")), "{other}");
    }
    assert!(!dir.join("runs").exists());
}

#[test]
fn a_run_follows_its_recipe_and_the_same_command_goes_on() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 4000);
    recipe(dir, TINY);
    let out = wgpt(dir, &["train", "r.toml", "--set", "lr=2e-3", "--out", "run"]).ends_with(0).out;
    assert!(out.contains("batch 2 x context 16 x 1 micro-step; 4 steps"), "{out}");
    let lines = metrics(&dir.join("run"));
    let rates: Vec<f64> = lines.iter().filter_map(|m| m["lr"].as_f64()).collect();
    // from 2e-3 down to half of it over four steps
    for (rate, expected) in rates.iter().zip([2e-3, 1.75e-3, 1.5e-3, 1.25e-3]) {
        assert!((rate - expected).abs() < 1e-9, "{rates:?}");
    }
    assert_eq!(rates.len(), 4);
    let config = fs::read_to_string(dir.join("run/config.toml")).expect("config");
    assert!(config.contains("schedule = \"linear\"") && config.contains("lr = 0.002"), "{config}");
    let again = wgpt(dir, &["train", "r.toml", "--set", "lr=2e-3", "--out", "run"]).ends_with(0).out;
    assert!(again.contains("finished"), "{again}");
    let other = wgpt(dir, &["train", "r.toml", "--set", "lr=2e-3", "--schedule", "wsd", "--out", "run"]);
    refused(other, 2, &["schedule: linear there, wsd here", "--resume run"]);
}

#[test]
fn without_steps_a_run_is_one_epoch_and_an_overfitted_batch_is_that_of_the_validation() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let shard = |name: &str, tokens: &[u16]| wgpt::data::write_shard(dir.join(name), tokens).expect("shard");
    let random: Vec<u16> = (0..500_u32).map(|i| (i * i * 7919 % 257) as u16).collect();
    shard("train.bin", &random);
    shard("val.bin", &[[7; 100], [9; 100]].concat());
    let data = "data = \"train.bin\"\nval = \"val.bin\"";
    recipe(dir, &TINY.replace("text = [\"text.txt\"]", data).replace("steps = 4\n", "tokens-per-step = 64\n"));
    // of 500 tokens 15 batches of 32, two to a step
    let out = wgpt(dir, &["train", "r.toml", "--dry-run"]).ends_with(0).out;
    assert!(out.contains("batch 2 x context 16 x 2 micro-steps; 7 steps"), "{out}");
    let args = ["train", "r.toml", "--overfit-one-batch", "--steps", "12", "--lr", "1e-2", "--out", "run"];
    wgpt(dir, &args).ends_with(0);
    // a seven follows a seven: that is learnt at once, the random tokens of the training are not
    let last = metrics(&dir.join("run"))[12]["loss"].as_f64().expect("loss");
    assert!(last < 1.0, "{last}");
    let config = fs::read_to_string(dir.join("run/config.toml")).expect("config");
    assert!(config.contains("overfit-one-batch = true") && config.contains("no-shuffle = true"), "{config}");
}

#[test]
fn one_batch_again_and_again_and_hellaswag_beside_it() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 4000);
    let question = "{\"ctx\": \"Once upon\", \"endings\": [\"a time\", \"the sea\", \"b\", \"it\"], \"label\": 1}\n";
    fs::write(dir.join("q.jsonl"), question.repeat(3)).expect("write");
    recipe(dir, &TINY.replace("steps = 4", "steps = 40").replace("val_every = 2", "val_every = 20"));
    let more = [
        "--overfit-one-batch",
        "--set",
        "lr=1e-2",
        "--hellaswag",
        "q.jsonl",
        "--hellaswag-every",
        "15",
        "--out",
        "run",
    ];
    let out = wgpt(dir, &[&["train", "r.toml"][..], &more].concat()).ends_with(0).out;
    let lines = metrics(&dir.join("run"));
    let loss = |step: usize| lines[step]["loss"].as_f64().expect("loss");
    // 32 tokens are learnt by heart, those of the validation are not
    assert!(loss(40) < 0.5 * loss(1), "{} to {}", loss(1), loss(40));
    assert!(lines[40]["val_loss"].as_f64().expect("validation") > 1.5 * loss(40));
    let asked: Vec<u64> =
        lines.iter().filter(|m| m["hellaswag"].is_number()).filter_map(|m| m["step"].as_u64()).collect();
    assert_eq!(asked, [15, 30, 40]);
    let accuracy = lines[40]["hellaswag"].as_f64().expect("accuracy");
    assert!(accuracy == 0.0 || accuracy == 1.0, "three times the same question: {accuracy}");
    assert!(out.contains("| hellaswag "), "{out}");
    let log = fs::read_to_string(dir.join("run/main.log")).expect("log");
    assert!(log.contains(&format!("s:40 eval:{accuracy:.4}\n")), "{log}");
    // an ending longer than a row is found before anything is made
    fs::write(dir.join("q.jsonl"), question.replace("the sea", "a sea as wide as wide can be")).expect("write");
    let args = ["train", "r.toml", "--hellaswag", "q.jsonl", "--out", "other"];
    refused(wgpt(dir, &args), 3, &["hellaswag", "expected fewer than the model's 16 positions"]);
    assert!(!dir.join("other").exists());
}

#[test]
fn recipes_that_are_wrong() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let with = |text: &str, more: &[&str]| {
        recipe(dir, text);
        wgpt(dir, &[&["train", "r.toml", "--dry-run"][..], more].concat())
    };
    refused(wgpt(dir, &["train", "missing.toml"]), 3, &["missing.toml: no such recipe or run"]);
    refused(wgpt(dir, &["train", "."]), 3, &[".: holds no run"]);
    refused(with("\nwramup = 3\n", &[]), 2, &["r.toml:2: unknown key `wramup`", "nearest is `warmup`"]);
    refused(with("[trainin]\nlr = 1\n", &[]), 2, &["r.toml:1: unknown table `trainin`", "nearest is `training`"]);
    refused(with("[run]\nprint-config = true\n", &[]), 2, &["r.toml:2: unknown key `print-config`"]);
    let advice = "try --restart on the command line";
    refused(with("[run]\nrestart = true\n", &[]), 2, &["r.toml:2: unknown key `restart`", advice]);
    refused(with("", &["--set", "run.restart=true"]), 2, &["--set run.restart: unknown key `restart`", advice]);
    refused(with("lr = 1\n\nlr = = 3\n", &[]), 2, &["r.toml:3: is not TOML"]);
    refused(
        with("lr = 1e-3\n[training]\nlr = 1e-4\n", &[]),
        2,
        &["r.toml:3: duplicate key `lr`; first set at r.toml:1"],
    );
    refused(with("batch = 1.5\n", &[]), 2, &["r.toml:1: `batch`: `1.5`, expected a number or auto"]);
    refused(
        with("[model]\nmodel = \"d12\"\nlayers = 2\nheads = 2\nchannels = 32\n", &[]),
        2,
        &["r.toml:2: model", "contradicts r.toml:3: layers"],
    );
    refused(with("batch = 0\n", &[]), 2, &["--batch 0"]);
    refused(with("", &["--set", "lr"]), 2, &["--set: `lr` has no `=`", "lr=3e-4"]);
    refused(with("", &["--set", "checked=yes"]), 2, &["--set checked: `yes`, expected true or false"]);
    refused(with("", &["--layers", "2"]), 2, &["--layers: needs --heads"]);
    refused(with("", &["--model", "d12", "--init", "gpt2"]), 2, &["--model: contradicts --init"]);
    assert_eq!(fs::read_dir(dir).expect("folder").count(), 1);
}
