//! Runs on several devices have the records and weights of one device, whatever ends them in between.

use std::fs;
use std::path::Path;

use wgpt::data::{BatchSource as _, Loader, LoaderConfig, TokenSource};
use wgpt::model::{Config, init};
use wgpt::reference::gpt2::{self, Batch, Settings};
use wgpt::reference::random::Random;

use super::resume::{signal, start, wait_for};
use super::{metrics, same, text_file, wgpt};

const FOUR_RANKS: [&str; 2] = ["--emulate-ranks", "4"];
const TOKENS: [&str; 2] = ["--tokens-per-step", "128"];

fn shared(list: &str) -> Vec<&str> {
    vec!["--devices", list, "--share-device"]
}

/// Runs to the end.
#[track_caller]
fn finish(dir: &Path, out: &str, more: &[&str]) {
    let done = start(dir, out, more).wait_with_output().expect("waited for");
    assert!(done.status.success(), "{out}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn several_devices_leave_what_one_leaves_however_they_end() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 4000);
    let question = "{\"ctx\": \"Once\", \"endings\": [\" a time\", \" the sea\", \" b\", \" it\"], \"label\": 1}\n";
    fs::write(dir.join("q.jsonl"), question.repeat(192)).expect("write");
    let of = |more: &[&'static str]| [&TOKENS, &["--hellaswag", "q.jsonl"], more].concat();
    finish(dir, "one", &of(&FOUR_RANKS));
    // as many ranks as devices, if nothing else is said
    finish(dir, "four", &of(&shared("0,0,0,0")));
    same(&dir.join("one"), &dir.join("four"));

    // killed, then stopped by a signal, each time on another number of devices
    let mut killed = start(dir, "ended", &of(&shared("0,0,0,0")));
    assert!(wait_for(&mut killed, "step 9/"), "the run ended");
    signal(&killed, "-KILL");
    killed.wait().expect("waited for");
    let mut stopped = start(dir, "ended", &of(&shared("0,0")));
    assert!(wait_for(&mut stopped, "step 17/"), "the run ended");
    signal(&stopped, "-INT");
    assert_eq!(stopped.wait().expect("waited for").code(), Some(75));
    // the run's ranks are known, whatever the command says
    finish(dir, "ended", &of(&[]));
    same(&dir.join("one"), &dir.join("ended"));
    finish(dir, "four", &of(&shared("0,0,0,0")));
}

/// Two ranks on two devices read llm.c's batches from two shards and a second epoch.
#[test]
fn devices_take_the_batches_of_their_ranks_from_shards() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let paths = ["a.bin", "b.bin"].map(|name| dir.join(name));
    let mut random = Random::new(5);
    for (path, tokens) in paths.iter().zip([400, 300]) {
        let tokens: Vec<u16> = random.tokens(tokens, 257).into_iter().map(|token| token as u16).collect();
        wgpt::data::write_shard(path, &tokens).expect("shard");
    }
    let size = ["--tokenizer", "bytes", "--layers", "1", "--heads", "2", "--channels", "32", "--precision", "f32"];
    let steps = ["--batch", "2", "--context", "16", "--steps", "12", "--lr", "1e-2", "--schedule", "constant"];
    let run = |out: &str, more: &[&str]| {
        let args = [&["train", "--data", "a.bin", "b.bin", "--out", out], &size[..], &steps, more].concat();
        wgpt(dir, &args).ends_with(0);
        metrics(&dir.join(out)).iter().filter_map(|line| line["loss"].as_f64()).collect::<Vec<f64>>()
    };
    let one = run("one", &["--emulate-ranks", "2"]);
    let two = run("two", &shared("0,0"));
    assert_eq!(one, two);
    assert!(one.len() >= 12, "{one:?}");
    // the batches of both ranks in an order that tests of the loader hold against llm.c's
    let config = Config::new(16, 257, 1, 2, 32).expect("a model");
    let sources = || paths.iter().map(|path| TokenSource::open(path).expect("tokens")).collect::<Vec<_>>();
    let loader = |rank| LoaderConfig { ranks: 2, rank, ..LoaderConfig::new(2, 16, 257, Some(42)) };
    let mut loaders = [0, 1].map(|rank| Loader::new(sources(), loader(rank)).expect("batches"));
    let settings = Settings { lr: 1e-2, weight_decay: 0.1, ..Settings::default() };
    let mut reference = gpt2::Trainer::new(&init::init(config, 42), settings);
    for (step, found) in one.iter().enumerate().take(3) {
        let batches = loaders.each_mut().map(|loader| {
            let batch = loader.next_batch().expect("a batch");
            (batch.inputs().to_vec(), batch.targets().to_vec())
        });
        let batches = batches.each_ref().map(|(tokens, targets)| Batch { tokens, targets, T: 16 });
        let want = reference.step(&batches).loss;
        assert!((found - want).abs() < 1e-4 * want, "step {}: {found}, expected {want}", step + 1);
    }
}

#[test]
fn a_run_says_on_how_many_devices_its_bits_repeat() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 3000);
    let bf16 = |list| [&shared(list)[..], &["--wire", "bf16", "--tokens-per-step", "64"]].concat();
    let run = |out: &str, more: &[&str]| {
        let done = start(dir, out, more).wait_with_output().expect("waited for");
        (
            done.status.code(),
            String::from_utf8_lossy(&done.stdout).into_owned(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        )
    };
    let (code, out, err) = run("a", &[&bf16("0,0")[..], &["--steps", "3"]].concat());
    assert!(
        code == Some(0) && out.contains("gradients go through host memory in bf16: bits repeat only on 2 devices"),
        "{out}{err}"
    );
    // it may go on on one device, but not as it would have
    let (code, out, err) =
        run("a", &["--set", "devices=", "--steps", "4", "--wire", "bf16", "--tokens-per-step", "64"]);
    let says = |text: &str| out.contains(text);
    assert!(code == Some(0) && says("bf16 on 2 devices there, not rounded here"), "{out}{err}");
    assert!(says("2 on one device, one after the other, which rounds no gradient to bf16"), "{out}");
    let (code, _, err) = run("a", &["--set", "devices=", "--steps", "5", "--tokens-per-step", "64", "--wire", "f32"]);
    assert!(code == Some(2) && err.contains("wire: bf16 there, f32 here"), "{err}");
    // what is left over of shared devices is no mistake
    let resumed = wgpt(dir, &["train", "--resume", "a", "--device", "0", "--steps", "5"]);
    assert_eq!(resumed.code, 0, "{}", resumed.err);
}

#[test]
fn a_profile_of_devices_shows_and_draws_their_exchange() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let size =
        ["--layers", "2", "--heads", "4", "--channels", "64", "--vocab", "257", "--batch", "2", "--context", "32"];
    let args = [
        "--devices",
        "0,0",
        "--share-device",
        "--wire",
        "f16",
        "--steps",
        "4",
        "--trace",
        "t.json",
        "--json",
        "f.json",
    ];
    let done = wgpt(dir, &[&["profile"], &size[..], &args].concat()).ends_with(0);
    assert!(done.out.contains("exchange gradients ") && done.out.contains("gradients in f16"), "{}", done.out);
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(dir.join(name)).expect("written")).expect("JSON")
    };
    let (figures, trace) = (json("f.json"), json("t.json"));
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    let (step, exchange) = (number(&figures["step"]["ms"]), &figures["exchange"]);
    let parts = number(&exchange["gradients_ms"]) + number(&exchange["weights_ms"]);
    // both are parts of a step, on a machine with other work
    assert!(parts > 0.0 && parts < 3.0 * step, "{figures:#}");
    assert_eq!(figures["step"]["tokens"], 128);
    let events = trace["traceEvents"].as_array().expect("events");
    for process in [1, 3] {
        for name in ["exchange gradients", "wait for other devices", "copy from other devices", "exchange weights"] {
            assert!(events.iter().any(|event| event["pid"] == process && event["name"] == name), "{process}: {name}");
        }
    }
    let kernels = figures["profile"]["kernels"].as_array().expect("kernels");
    assert!(kernels.iter().any(|row| row["name"] == "wire.widen.f16"), "{figures:#}");
}

#[test]
fn devices_that_cannot_be_are_refused_with_one_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 3000);
    let text =
        ["train", "--text", "text.txt", "--tokenizer", "bytes", "--batch", "1", "--context", "8", "--steps", "1"];
    let size = ["--layers", "1", "--heads", "1", "--channels", "8"];
    for (flags, code, says) in [
        (&["--devices", "0,0"][..], 2, "is listed twice"),
        (&["--devices", "97"], 4, "no adapter is `97`"),
        (&["--devices", "0000:ff:1f.7"], 4, "no adapter is `0000:ff:1f.7`"),
        (&["--devices", ""], 2, "`` is neither a number"),
        (&["--devices", "0-1"], 2, "a list such as 0,1"),
        (&["--dry-run", "--devices", "0,0"], 2, "is listed twice"),
        (&["--devices", "0", "--device", "0"], 2, "--devices"),
        (
            &["--devices", "0,0,0", "--share-device", "--emulate-ranks", "4", "--tokens-per-step", "32"],
            2,
            "one of 1, 2, 4 devices",
        ),
    ] {
        let done = wgpt(dir, &[&text[..], &size, flags].concat());
        assert_eq!(done.code, code, "{flags:?}: {}", done.err);
        assert!(done.err.contains("--device") && done.err.contains(says), "{flags:?}: {}", done.err);
        assert_eq!(done.err.lines().filter(|line| line.starts_with("error")).count(), 1, "{}", done.err);
        assert!(!dir.join("runs").exists(), "{flags:?} left a folder");
    }
    // a model whose parts of the exchange are large enough for a table of MiB
    let size = ["--layers", "2", "--heads", "2", "--channels", "128", "--dry-run", "--devices", "0,1,2,3"];
    let planned = wgpt(dir, &[&text[..], &size].concat());
    assert_eq!(planned.code, 0, "{}", planned.err);
    assert!(planned.out.contains("exchange out") && planned.out.contains("received sums"), "{}", planned.out);
}

#[test]
fn a_run_keeps_its_ranks_on_other_devices() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 3000);
    finish(dir, "one", &["--steps", "2"]);
    // one rank is not shared by two devices
    let done = start(dir, "one", &[&["--steps", "3"][..], &shared("0,0")].concat()).wait_with_output().expect("waited");
    let text = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{text}");
    assert!(text.contains("2 devices cannot share 1 rank evenly"), "{text}");
}
