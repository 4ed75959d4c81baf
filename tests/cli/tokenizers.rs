//! Models and data whose tokenizer is their own, or not the one that somebody says.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::models::{refused, run};
use super::text_file;
use wgpt::formats::tokenizer_files::spell;

/// A byte-level BPE of 256 bytes, two marks and some merges, in a folder of its own.
fn own_tokenizer(dir: &Path, name: &str, merges: &[&str]) {
    let marks = ["<s>", "</s>"].map(str::to_owned);
    let tokens =
        marks.into_iter().chain((0..=255).map(|b| spell(&[b]))).chain(merges.iter().map(|m| m.replace(' ', "")));
    let vocab: serde_json::Map<String, Value> = tokens.zip((0..).map(Value::from)).collect();
    let mark = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false})
    };
    let split = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [mark(0, "<s>"), mark(1, "</s>")], "pre_tokenizer": split, "decoder": split,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    fs::create_dir_all(dir.join(name)).expect("folder");
    fs::write(dir.join(name).join("tokenizer.json"), tokenizer.to_string()).expect("written");
    let settings = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"});
    fs::write(dir.join(name).join("tokenizer_config.json"), settings.to_string()).expect("written");
}

const SMALL: &str = "--layers 1 --heads 1 --channels 16 --context 16 --batch 2 --val-every 0";

fn same_files(dir: &Path, a: &str, b: &str) {
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let read =
            |folder: &str| fs::read(dir.join(folder).join(name)).unwrap_or_else(|e| panic!("{folder}/{name}: {e}"));
        assert!(read(a) == read(b), "{name} of {a} and {b}");
    }
}

#[test]
fn a_model_with_a_tokenizer_of_its_own_keeps_it_everywhere() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    own_tokenizer(dir, "german", &["Ġ t", "h e", "Ġt he", "a n", "an d"]);
    let begun = run(dir, &format!("train --text text.txt --tokenizer german {SMALL} --steps 2 --out run")).ends_with(0);
    assert!(begun.out.contains("own (german, 263 ids"), "{}", begun.out);
    same_files(dir, "german", "run/model");
    let config: Value =
        serde_json::from_slice(&fs::read(dir.join("run/model/config.json")).expect("read")).expect("JSON");
    assert_eq!(
        (&config["wgpt_tokenizer"], &config["eos_token_id"], &config["vocab_size"]),
        (&json!("own"), &json!(1), &json!(263))
    );

    // the same command resumes; another tokenizer is another run
    let again = |tokenizer: &str| {
        run(dir, &format!("train --text text.txt --tokenizer {tokenizer} {SMALL} --steps 3 --out run"))
    };
    again("german").ends_with(0);
    own_tokenizer(dir, "french", &["Ġ t", "l e"]);
    refused(again("french --vocab 263"), 2, &["tokenizer: own:"]);

    // the folder that it came from may go: the run has it
    fs::rename(dir.join("german"), dir.join("gone")).expect("renamed");
    run(dir, "train --resume run --steps 4").ends_with(0);
    fs::rename(dir.join("run/tokenizer"), dir.join("aside")).expect("renamed");
    refused(run(dir, "train --resume run --steps 5"), 3, &["run/tokenizer", "is missing", "run/model"]);
    fs::rename(dir.join("aside"), dir.join("run/tokenizer")).expect("renamed");
    fs::rename(dir.join("run/model"), dir.join("model")).expect("renamed");
    let text =
        |from: &str| run(dir, &format!("generate --from {from} --temperature 0 --max-tokens 6 and")).ends_with(0).out;
    assert_eq!(text("run"), text("model"), "a checkpoint has the same tokenizer");
    run(dir, "train run/config.toml --steps 1 --out again").ends_with(0);
    same_files(dir, "gone", "again/model");

    // a token that was added to the tokenizer and not to the model is no obstacle, where no text has it
    own_tokenizer(dir, "longer", &["Ġ t", "h e", "Ġt he", "a n", "an d", "Q Q"]);
    fs::create_dir(dir.join("short")).expect("made");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(dir.join("model").join(name), dir.join("short").join(name)).expect("copied");
    }
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(dir.join("longer").join(name), dir.join("short").join(name)).expect("copied");
    }
    run(dir, "train --init short --text text.txt --context 16 --batch 2 --steps 1 --out longer-run").ends_with(0);

    // another run begins with it, and data are made with it
    run(dir, "train --init model --text text.txt --context 16 --batch 2 --steps 1 --out second").ends_with(0);
    same_files(dir, "gone", "second/model");
    run(dir, "convert model other").ends_with(0);
    same_files(dir, "gone", "other");
    run(dir, "data prepare text.txt --tokenizer gone --out own-data --name t").ends_with(0);
    same_files(dir, "gone", "own-data");
    let report = run(dir, "data inspect own-data --json").ends_with(0).out;
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!((&report["tokenizer"], &report["vocab"], &report["documents"]), (&json!("own"), &json!(263), &json!(1)));
    run(dir, &format!("train --data own-data/t_train_*.bin {SMALL} --steps 1 --out third")).ends_with(0);
    same_files(dir, "gone", "third/model");
    let question = r#"{"ctx": "and the", "endings": ["the", "dog", "was", "a dog"], "label": 1}"#;
    fs::write(dir.join("h.jsonl"), question).expect("write");
    run(dir, "eval --from model --data own-data/t_val_*.bin --hellaswag h.jsonl").ends_with(0);
}

#[test]
fn two_tokenizers_in_one_command_are_named_before_anything_is_read() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    own_tokenizer(dir, "german", &["Ġ t", "h e"]);
    own_tokenizer(dir, "french", &["Ġ t", "l e"]);
    for (tokenizer, name) in [("german", "a"), ("french", "b"), ("bytes", "c")] {
        run(dir, &format!("data prepare text.txt --tokenizer {tokenizer} --out {name} --name t")).ends_with(0);
    }
    run(dir, &format!("train --data a/t_train_*.bin {SMALL} --steps 1 --out run")).ends_with(0);
    // what comes after the tokenizers would fail
    fs::rename(dir.join("run/model"), dir.join("model")).expect("renamed");
    fs::write(dir.join("model/model.safetensors"), "broken").expect("written");
    for line in [
        "eval --from model --data b/t_val_*.bin",
        "eval --from model --data a/t_val_*.bin --tokenizer french",
        "generate --from model --tokenizer french x",
        "train --init model --data b/t_train_*.bin --out no",
        "train --init model --data a/t_train_*.bin --val b/t_val_*.bin --out no",
        "train --init model --text text.txt --tokenizer french --out no",
        "train --data a/t_train_*.bin --val b/t_val_*.bin --out no",
        "train --data [ab]/t_train_*.bin --out no",
        "train --data b/t_train_*.bin --tokenizer german --out no",
        "data inspect b --tokenizer german",
    ] {
        let outcome = run(dir, line);
        assert_eq!(outcome.err.matches("own (").count(), 2, "{line}: {}", outcome.err);
        refused(outcome, 2, &["another tokenizer", "260 ids"]);
    }
    refused(run(dir, "eval --from model --data c/t_val_*.bin"), 2, &["own (model, 260 ids", "bytes"]);
    refused(run(dir, "eval --from model --hellaswag h.bin"), 3, &["h.bin"]);
    refused(run(dir, "convert model no --tokenizer gpt2"), 2, &["own (model", "gpt2"]);
    assert!(!dir.join("no").exists());
    // files beside shards that did not make them
    fs::copy(dir.join("a/tokenizer.json"), dir.join("b/tokenizer.json")).expect("copied");
    refused(run(dir, "data inspect b"), 3, &["b/dataset.json", "did not make the shards"]);
}

#[test]
fn a_tokenizer_that_cannot_be_used_refuses_text_and_trains_on_tokens() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    run(dir, "data prepare text.txt --tokenizer bytes --out data --name t").ends_with(0);
    run(dir, &format!("train --data data/t_train_*.bin {SMALL} --vocab 50257 --steps 1 --out run")).ends_with(0);
    let model = dir.join("run/model");
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        fs::remove_file(model.join(name)).expect("removed");
    }
    let mut config: Value = serde_json::from_slice(&fs::read(model.join("config.json")).expect("read")).expect("JSON");
    config.as_object_mut().expect("an object").remove("wgpt_tokenizer");
    fs::write(model.join("config.json"), config.to_string()).expect("written");
    fs::rename(&model, dir.join("model")).expect("renamed");
    // without files it is taken for GPT-2's, and that is said
    let generated = run(dir, "generate --from model --max-tokens 1 x").ends_with(0);
    assert!(generated.err.contains("gpt2, assumed"), "{}", generated.err);
    fs::remove_file(dir.join("data/dataset.json")).expect("removed");
    let measured = run(dir, "eval --from model --data data/t_val_*.bin").ends_with(0);
    assert!(measured.out.contains("gpt2, assumed"), "{}", measured.out);

    fs::write(dir.join("model/vocab.txt"), "[PAD]\n[UNK]\n").expect("written");
    refused(run(dir, "generate --from model x"), 3, &["vocab.txt", "WordPiece", "--data"]);
    refused(run(dir, "train --init model --text text.txt --out no"), 3, &["vocab.txt", "WordPiece"]);
    fs::write(dir.join("h.jsonl"), "{}").expect("written");
    refused(run(dir, "eval --from model --hellaswag h.jsonl"), 3, &["WordPiece"]);
    run(dir, "eval --from model --data data/t_val_*.bin").ends_with(0);
    run(dir, "train --init model --data data/t_train_*.bin --context 16 --batch 2 --steps 1 --out kept").ends_with(0);
    assert_eq!(fs::read(dir.join("kept/model/vocab.txt")).expect("kept"), b"[PAD]\n[UNK]\n");
    refused(run(dir, "generate --from kept x"), 3, &["WordPiece"]);
    run(dir, "train --resume kept --steps 2").ends_with(0);
}
