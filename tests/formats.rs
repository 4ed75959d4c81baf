//! Models in broken files: a stored corpus of them, and any number of others that proptest makes up. And names, paths and
//! memory, which are seen from outside only.
//!
//! The stored ones were written once by `cargo test --release --test formats -- --ignored make_the_broken_models`.

#[path = "formats/gguf.rs"]
mod gguf;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use proptest::prelude::*;
use serde_json::{Value, json};
use wgpt::data::{Tokenizer, hellaswag};
use wgpt::error::Error;
use wgpt::formats::{Element, ModelInfo, hf, llmc};
use wgpt::model::{Config, Weights};
use wgpt::run::model as any_model;

fn stored(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken").join(name)
}

/// Each model and what is said of it.
const MODELS: [(&str, &str); 24] = [
    ("model-empty.bin", "an empty file"),
    ("model-header-cut.bin", "header is cut short, expected at least 1,024 bytes, got 600"),
    ("model-shard.bin", "bad magic, expected 20240326, got 20240520"),
    ("model-version.bin", "unknown version, expected 3 (f32) or 5 (bf16), got 1"),
    ("model-absurd.bin", "wrong file size, expected 58"),
    ("model-negative.bin", "channels: out of range, expected 1 to"),
    ("model-padding.bin", "padded_vocab_size: too small, expected at least vocab_size 5, got 4"),
    ("model-heads.bin", "3 heads do not divide 8 channels"),
    ("model-short.bin", "wrong file size, expected 4,864 bytes for 1 layer of 8 channels, got 4,863"),
    ("model-long.bin", "wrong file size, expected 4,864 bytes for 1 layer of 8 channels, got 4,868"),
    ("model-nan.bin", "tensor `lnfb` holds NaN at index 7"),
    ("model-pickle.bin", "a pickle file, which can run any program when it is read"),
    ("hf-header-absurd", "a header of 18,446,744,073,709,551,615 bytes, expected at most 4,194,304"),
    ("hf-header-cut", "not a whole safetensors file"),
    ("hf-cut", "not a whole safetensors file"),
    ("hf-overlap", "not a whole safetensors file"),
    ("hf-missing", "tensor `h.0.ln_1.bias` is missing, expected by config.json"),
    ("hf-shape", "has another shape, expected (5, 8) by config.json, got (40)"),
    ("hf-type", "has another element type, expected F64, F32, F16 or BF16, got I32"),
    ("hf-infinite", "holds inf at index 1, expected finite numbers"),
    ("hf-layers", "tensor `h.1.ln_1.weight` is missing, expected by config.json"),
    ("hf-activation", "activation_function, expected \"gelu_new\", got \"relu\""),
    ("hf-config-cut", "broken JSON"),
    ("hf-index-outside", "expected names of files next to it, got \"../model.safetensors\""),
];

/// Each set of questions and what is said of it.
const QUESTIONS: [(&str, &str); 8] = [
    ("questions-header-cut.bin", "header is cut short"),
    ("questions-version.bin", "version is 7"),
    ("questions-count.bin", "example 2: is cut short"),
    ("questions-token.bin", "token 60000, expected below 50257"),
    ("questions-cut.jsonl", "line 2: broken JSON"),
    ("questions-three.jsonl", "example 1: 3 endings, expected 4"),
    ("questions-label.jsonl", "example 1: no label from 0 to 3"),
    ("questions-none.parquet", "not a whole Parquet file"),
];

/// The program, with no more than 400 MB of addresses, what it needs to start included.
fn wgpt(dir: &Path, arguments: &[&std::ffi::OsStr]) -> Output {
    let program = env!("CARGO_BIN_EXE_wgpt");
    let mut command = if cfg!(target_os = "linux") {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -v 400000; exec \"$0\" \"$@\"", program]);
        command
    } else {
        Command::new(program)
    };
    let command = command.args(arguments).current_dir(dir).env("HF_HOME", dir.join("cache")).env_remove("HF_HUB_CACHE");
    command.env_remove("RUST_LOG").env("RAYON_NUM_THREADS", "1").output().expect("the program starts")
}

fn convert(dir: &Path, from: impl AsRef<std::ffi::OsStr>, to: &str) -> Output {
    wgpt(dir, &["convert".as_ref(), from.as_ref(), to.as_ref()])
}

#[test]
fn stored_models_are_refused_with_a_line_that_tells() {
    let dir = tempfile::tempdir().expect("folder");
    for (name, what) in MODELS {
        for to in ["out", "out.bin"] {
            let output = convert(dir.path(), stored(name), to);
            let text = String::from_utf8(output.stderr).expect("text");
            assert_eq!(output.status.code(), Some(3), "{name}: {text}");
            assert!(text.contains(name) && text.contains(what), "{name}: {text}");
            assert!(text.lines().count() == 1 && output.stdout.is_empty(), "{name}: {text}");
            assert_eq!(fs::read_dir(dir.path()).expect("folder").count(), 0, "{name} left something");
        }
    }
}

#[test]
fn stored_questions_are_refused_with_a_line_that_tells() {
    for (name, what) in QUESTIONS {
        let error = hellaswag::read(&stored(name), &Tokenizer::Gpt2, usize::MAX).expect_err(name);
        assert!(is_line(&error) && error.to_string().contains(name), "{name}: {error}");
        assert!(error.to_string().contains(what), "{name}: {error}");
    }
}

/// The smallest model: 960 weights and no padding.
fn model() -> Weights {
    let mut weights = Weights::zeros(Config::new(4, 5, 1, 1, 8).expect("config"));
    let vocab = 5 * 8;
    for (i, x) in weights.tensors.iter_mut().flatten().enumerate() {
        *x = (i % 97) as f32 * 0.25 - 8.0;
    }
    weights.get_mut("wte", 0)[vocab..].fill(0.0);
    weights
}

/// llm.c's file of it, its padding cut away.
fn llmc_file(dir: &Path) -> Vec<u8> {
    let path = dir.join("whole.bin");
    llmc::save(&path, &model(), Element::F32).expect("saved");
    let mut bytes = fs::read(&path).expect("read");
    bytes.drain(1024 + 5 * 32..1024 + 128 * 32);
    bytes[28..32].copy_from_slice(&5_i32.to_le_bytes());
    bytes
}

/// Its folder: config.json and model.safetensors.
fn folder(dir: &Path) -> (Vec<u8>, Vec<u8>) {
    hf::save(dir, &model(), &ModelInfo::default()).expect("saved");
    let read = |name: &str| fs::read(dir.join(name)).expect("read");
    (read("config.json"), read("model.safetensors"))
}

/// A safetensors file with another header.
fn with_header(file: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
    let mut header: Value = serde_json::from_slice(&file[8..8 + length]).expect("JSON");
    change(&mut header);
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &file[8 + length..]].concat()
}

/// llm.c's file of one question.
fn questions() -> Vec<u8> {
    let mut header = [0_i32; 256];
    header[..4].copy_from_slice(&[20_240_522, 1, 1, 38]);
    let body: [u16; 19] = [u16::MAX, 38, 0, 2, 4, 3, 10, 11, 12, 1, 20, 2, 21, 22, 1, 23, 2, 24, 25];
    [header.map(i32::to_le_bytes).concat(), body.map(u16::to_le_bytes).concat()].concat()
}

#[test]
#[ignore = "writes tests/broken anew"]
fn make_the_broken_models() {
    let scratch = tempfile::tempdir().expect("folder");
    let write = |name: &str, bytes: &[u8]| fs::write(stored(name), bytes).expect("written");
    let whole = llmc_file(scratch.path());
    let with = |word: usize, value: i32| {
        let mut bytes = whole.clone();
        bytes[4 * word..4 * word + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    write("model-empty.bin", &[]);
    write("model-header-cut.bin", &whole[..600]);
    write("model-shard.bin", &with(0, 20_240_520));
    write("model-version.bin", &with(1, 1));
    write("model-absurd.bin", &with(4, (1 << 24) - 1));
    write("model-negative.bin", &with(6, -4));
    write("model-padding.bin", &with(7, 4));
    write("model-heads.bin", &with(5, 3));
    write("model-short.bin", &whole[..whole.len() - 1]);
    write("model-long.bin", &[&whole[..], &[0; 4]].concat());
    write("model-nan.bin", &[&whole[..whole.len() - 4], &f32::NAN.to_le_bytes()].concat());
    write("model-pickle.bin", b"PK\x03\x04\0\0\0\0\0\0 archive/data.pkl");
    let (config, file) = folder(scratch.path());
    let put = |name: &str, config: &[u8], file: &[u8]| {
        fs::create_dir_all(stored(name)).expect("folder");
        write(&format!("{name}/config.json"), config);
        write(&format!("{name}/model.safetensors"), file);
    };
    let (wte, norm) = ("transformer.wte.weight", "transformer.h.0.ln_1.bias");
    put("hf-header-absurd", &config, &[&[0xff; 8], &file[8..]].concat());
    put("hf-header-cut", &config, &file[..100]);
    put("hf-cut", &config, &file[..file.len() - 4]);
    put("hf-overlap", &config, &with_header(&file, |h| h[norm]["data_offsets"] = json!([0, 32])));
    let renamed = |h: &mut Value| {
        let entry = h[norm].take();
        let map = h.as_object_mut().expect("object");
        map.remove(norm);
        map.insert("transformer.h.0.ln_9.bias".into(), entry);
    };
    put("hf-missing", &config, &with_header(&file, renamed));
    put("hf-shape", &config, &with_header(&file, |h| h[wte]["shape"] = json!([40])));
    put("hf-type", &config, &with_header(&file, |h| h[wte]["dtype"] = json!("I32")));
    // the first tensor of the file is the last layer's bias of qkv
    let data = file.len() - 960 * 4;
    let mut infinite = file.clone();
    infinite[data + 4..data + 8].copy_from_slice(&f32::INFINITY.to_le_bytes());
    put("hf-infinite", &config, &infinite);
    let text = String::from_utf8(config.clone()).expect("text");
    put("hf-layers", text.replace("\"n_layer\": 1", "\"n_layer\": 2").as_bytes(), &file);
    put("hf-activation", text.replace("gelu_new", "relu").as_bytes(), &file);
    put("hf-config-cut", &config[..config.len() / 2], &file);
    put("hf-index-outside", &config, &[]);
    fs::remove_file(stored("hf-index-outside/model.safetensors")).expect("removed");
    let index = json!({ "weight_map": { "wte.weight": "../model.safetensors" } });
    write("hf-index-outside/model.safetensors.index.json", index.to_string().as_bytes());

    let whole = questions();
    let with = |at: usize, bytes: &[u8]| [&whole[..at], bytes, &whole[at + bytes.len()..]].concat();
    write("questions-header-cut.bin", &whole[..500]);
    write("questions-version.bin", &with(4, &[7]));
    write("questions-count.bin", &with(8, &[2]));
    write("questions-token.bin", &with(1024 + 12, &60_000_u16.to_le_bytes()));
    let line = r#"{"ctx": "a", "endings": ["b", "c", "d", "e"], "label": 1}"#;
    write("questions-cut.jsonl", format!("{line}\n{}", &line[..30]).as_bytes());
    write("questions-three.jsonl", line.replace(", \"e\"", "").as_bytes());
    write("questions-label.jsonl", line.replace("1}", "4}").as_bytes());
    write("questions-none.parquet", b"PAR1 and nothing else PAR1");
}

fn is_line(error: &Error) -> bool {
    matches!(error, Error::Data(_)) && !error.to_string().contains('\n')
}

/// So many cases, or `PROPTEST_CASES` for a long run.
fn cases(few: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(few);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// What is done to a file.
#[derive(Debug, Clone)]
enum Damage {
    Byte(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    More(Vec<u8>),
}

impl Damage {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            6 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, value)| Self::Byte(at, value)),
            1 => any::<prop::sample::Index>().prop_map(Self::Cut),
            1 => prop::collection::vec(any::<u8>(), 1..9).prop_map(Self::More),
        ]
    }

    /// To the whole file, or only to its beginning, where all that is dangerous stands.
    fn apply(&self, bytes: &mut Vec<u8>, within: usize) {
        let within = within.min(bytes.len());
        match self {
            Self::Byte(at, value) => bytes[at.index(within)] = *value,
            Self::Cut(at) => bytes.truncate(at.index(within)),
            Self::More(more) => bytes.extend(more),
        }
    }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn any_damage_to_a_model_of_llmc(damage in Damage::any(), whole in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = llmc_file(dir.path());
        damage.apply(&mut bytes, if whole { usize::MAX } else { 32 });
        let path = dir.path().join("m.bin");
        fs::write(&path, &bytes).unwrap();
        if let Err(error) = any_model::load(&path) {
            prop_assert!(is_line(&error) && error.to_string().contains("m.bin"), "{error}");
        } else {
            prop_assert!(matches!(damage, Damage::Byte(..)));
        }
    }

    #[test]
    fn any_damage_to_a_folder(damage in Damage::any(), config in any::<bool>(), whole in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let files = folder(dir.path());
        let (name, mut bytes) = if config { ("config.json", files.0) } else { ("model.safetensors", files.1) };
        damage.apply(&mut bytes, if whole { usize::MAX } else { 2000 });
        fs::write(dir.path().join(name), &bytes).unwrap();
        if let Err(error) = any_model::load(dir.path()) {
            prop_assert!(is_line(&error), "{error}");
        }
    }

    #[test]
    fn any_numbers_in_a_config(key in prop::sample::select(vec!["n_embd", "n_layer", "n_head", "n_positions", "vocab_size"]), value in prop_oneof![any::<i64>(), -3..70_i64, Just(1 << 24), Just((1 << 24) - 1)]) {
        let dir = tempfile::tempdir().unwrap();
        let (config, _) = folder(dir.path());
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        let same = config[key] == json!(value);
        config[key] = json!(value);
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        match any_model::load(dir.path()) {
            // heads of another size compute something else from the same tensors
            Ok(_) => prop_assert!(same || key == "n_head", "{key} {value}"),
            Err(error) => prop_assert!(is_line(&error), "{error}"),
        }
    }

    #[test]
    fn any_damage_to_questions(damage in Damage::any(), whole in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let line = r#"{"ctx": "a", "endings": ["b", "c", "d", "e"], "label": 1}"#;
        for (name, mut bytes, start) in [("q.bin", questions(), 1024), ("q.jsonl", line.into(), 0)] {
            let from = if whole { 0 } else { start };
            let mut rest = bytes.split_off(from);
            damage.apply(&mut rest, usize::MAX);
            let path = dir.path().join(name);
            fs::write(&path, [bytes, rest].concat()).unwrap();
            if let Err(error) = hellaswag::read(&path, &Tokenizer::Gpt2, 9) {
                prop_assert!(is_line(&error), "{error}");
            }
        }
    }
}

/// `gpt2` from Hugging Face's cache, then `OWNER/NAME`.
#[test]
fn models_are_found_by_name() {
    let dir = tempfile::tempdir().expect("folder");
    for (name, repository) in
        [("gpt2", "models--openai-community--gpt2"), ("some-body/tiny", "models--some-body--tiny")]
    {
        let output = convert(dir.path(), name, "a.bin");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{text}");
        assert!(text.contains(&format!("`wgpt data fetch {name}`")), "{text}");
        let snapshot = dir.path().join("cache/hub").join(repository).join("snapshots/1");
        hf::save(&snapshot, &model(), &ModelInfo::default()).expect("saved");
        let output = convert(dir.path(), name, "a.bin");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(any_model::load(&dir.path().join("a.bin")).expect("loaded").0, model());
        fs::remove_file(dir.path().join("a.bin")).expect("removed");
    }
}

/// Paths are bytes on Linux, and a message about one that is no UTF-8 must still be one line.
#[cfg(target_os = "linux")]
#[test]
fn paths_that_are_not_utf8() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join(std::ffi::OsStr::from_bytes(b"m\xff\xfe"));
    hf::save(&path, &model(), &ModelInfo::default()).expect("saved");
    let output = convert(dir.path(), &path, "a.bin");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_file(path.join("config.json")).expect("removed");
    for from in [path.as_os_str(), std::ffi::OsStr::from_bytes(b"no \xff\n folder")] {
        let output = convert(dir.path(), from, "b.bin");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), text.lines().count()), (Some(3), 1), "{text}");
    }
}

/// A model of 40 MB, read and written: what was decoded is given back, so that the file and the weights are never both in
/// memory. The program's own needs are below the 64 MB.
#[cfg(target_os = "linux")]
#[test]
fn memory_stays_near_the_size_of_the_file() {
    let dir = tempfile::tempdir().expect("folder");
    // three blocks of 3.1 M weights each, and little else
    let config = Config::new(64, 257, 3, 4, 512).expect("config");
    llmc::save(&dir.path().join("a.bin"), &Weights::zeros(config), Element::F32).expect("saved");
    let most = fs::metadata(dir.path().join("a.bin")).expect("metadata").len() / 1024 + 64 * 1024;
    for (from, to) in [("a.bin", "b"), ("b", "c.bin"), ("a.bin", "d.gguf")] {
        let script = "\"$0\" convert \"$1\" \"$2\" >/dev/null & pid=$!; most=0
            while value=$(sed -n 's/^VmHWM:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$pid/status 2>/dev/null) && [ -n \"$value\" ]; do most=$value; done
            wait $pid && echo $most";
        let output = Command::new("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_wgpt"), from, to])
            .current_dir(dir.path())
            .output();
        let text = String::from_utf8_lossy(&output.expect("started").stdout).trim().to_owned();
        let used: u64 = text.parse().unwrap_or_else(|_| panic!("no number: {text}"));
        assert!((1..most).contains(&used), "{from} to {to}: {used} KB, expected at most {most}");
    }
    assert_eq!(fs::read(dir.path().join("a.bin")).expect("read"), fs::read(dir.path().join("c.bin")).expect("read"));
}
