//! GGUF files, read back by a reader of their own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use wgpt::formats::gguf::{self, Storage};
use wgpt::formats::{Element, ModelInfo, hf, tokenizer_files};
use wgpt::model::{Config, Weights};

use super::{convert, wgpt};

/// A key's value; of an array its elements.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Number(f64),
    Text(String),
    Array(u32, Vec<Value>),
}

/// A tensor's dimensions as the file has them, the number of its type, and the bytes from its beginning on.
struct Tensor {
    dimensions: Vec<u64>,
    kind: u32,
    offset: usize,
}

struct File {
    bytes: Vec<u8>,
    at: usize,
    keys: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Tensor>,
}

impl File {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).expect("read");
        assert_eq!(bytes[..8], *b"GGUF\x03\0\0\0");
        let mut file = Self { bytes, at: 8, keys: BTreeMap::new(), tensors: BTreeMap::new() };
        let [tensors, keys] = [file.u64(), file.u64()];
        for _ in 0..keys {
            let (key, kind) = (file.text(), file.u32());
            let value = file.value(kind);
            assert_eq!(file.keys.insert(key, value), None);
        }
        for _ in 0..tensors {
            let name = file.text();
            let axes = file.u32();
            let dimensions = (0..axes).map(|_| file.u64()).collect();
            let (kind, offset) = (file.u32(), file.u64() as usize);
            assert_eq!(offset % 32, 0, "{name}");
            assert!(file.tensors.insert(name, Tensor { dimensions, kind, offset }).is_none());
        }
        file.at = file.at.next_multiple_of(32);
        file
    }

    fn take(&mut self, count: usize) -> &[u8] {
        self.at += count;
        &self.bytes[self.at - count..self.at]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().expect("4 bytes"))
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().expect("8 bytes"))
    }

    fn text(&mut self) -> String {
        let length = self.u64() as usize;
        String::from_utf8(self.take(length).to_vec()).expect("UTF-8")
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            4 => Value::Number(self.u32().into()),
            5 => Value::Number((self.u32() as i32).into()),
            6 => Value::Number(f32::from_bits(self.u32()).into()),
            8 => Value::Text(self.text()),
            9 => {
                let (kind, count) = (self.u32(), self.u64());
                Value::Array(kind, (0..count).map(|_| self.value(kind)).collect())
            }
            other => panic!("a value of type {other}"),
        }
    }

    fn bytes_of(&self, name: &str, count: usize) -> &[u8] {
        let start = self.at + self.tensors[name].offset;
        &self.bytes[start..start + count]
    }

    fn number(&self, key: &str) -> f64 {
        let Value::Number(number) = self.keys[key] else { panic!("{key}: {:?}", self.keys[key]) };
        number
    }

    fn text_of(&self, key: &str) -> &str {
        let Value::Text(text) = &self.keys[key] else { panic!("{key}: {:?}", self.keys[key]) };
        text
    }

    fn texts(&self, key: &str) -> Vec<&str> {
        let Value::Array(8, values) = &self.keys[key] else { panic!("{key}: {:?}", self.keys[key]) };
        let texts =
            values.iter().map(|value| if let Value::Text(text) = value { &**text } else { panic!("{value:?}") });
        texts.collect()
    }
}

/// A model of rows of 32 and 128 numbers, all of them different.
fn model(channels: usize, vocab: usize) -> Weights {
    let mut weights = Weights::zeros(Config::new(6, vocab, 2, channels.div_ceil(16), channels).expect("config"));
    let rows = vocab * channels;
    for (i, x) in weights.tensors.iter_mut().flatten().enumerate() {
        *x = ((i * 7919 % 10_007) as f32 - 5_000.0) * 1.7e-4;
    }
    weights.get_mut("wte", 0)[rows..].fill(0.0);
    weights
}

/// GGUF's name of a matrix or vector of the second layer.
const NAMES: [(&str, &str, [u64; 2]); 8] = [
    ("wte", "token_embd.weight", [32, 257]),
    ("qkvw", "blk.1.attn_qkv.weight", [32, 96]),
    ("attprojw", "blk.1.attn_output.weight", [32, 32]),
    ("fcw", "blk.1.ffn_up.weight", [32, 128]),
    ("fcprojw", "blk.1.ffn_down.weight", [128, 32]),
    ("wpe", "position_embd.weight", [32, 6]),
    ("fcb", "blk.1.ffn_up.bias", [128, 1]),
    ("lnfw", "output_norm.weight", [32, 1]),
];

#[test]
fn gguf_holds_the_models_weights() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("small.gguf");
    let weights = model(32, 257);
    for (storage, file_type, kind) in [
        (Storage::Plain(Element::F32), 0.0, 0),
        (Storage::Plain(Element::F16), 1.0, 1),
        (Storage::Plain(Element::Bf16), 32.0, 30),
        (Storage::Q8_0, 7.0, 8),
    ] {
        gguf::save(&path, &weights, storage, tokenizer_files::vocabulary("bytes")).expect("saved");
        let file = File::read(&path);
        assert_eq!(file.number("general.file_type"), file_type);
        assert_eq!(file.tensors.len(), 4 + 2 * 12);
        assert!(!file.tensors.contains_key("output.weight"));
        for (ours, name, [columns, rows]) in NAMES {
            let (tensor, count) = (&file.tensors[name], (columns * rows) as usize);
            let vector = ours == "fcb" || ours == "lnfw";
            let expected = if vector { vec![columns] } else { vec![columns, rows] };
            assert_eq!(tensor.dimensions, expected, "{name}");
            let values = &weights.get(ours, if name.starts_with("blk") { 1 } else { 0 })[..count];
            let stored = if vector || ours == "wpe" { 0 } else { kind };
            assert_eq!(tensor.kind, stored, "{name}");
            let bytes: Vec<u8> = match stored {
                0 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
                1 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
                30 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
                _ => values.chunks(32).flat_map(block).collect(),
            };
            assert!(file.bytes_of(name, bytes.len()) == bytes, "{name} in {}", storage.name());
        }
        let last = file.tensors.iter().max_by_key(|(_, tensor)| tensor.offset).expect("tensors");
        assert_eq!(file.bytes.len(), file.at + last.1.offset + 128, "{} ends with padding", last.0);
    }
}

/// A block of q8_0, computed in f64: the scale and the numbers have no ties here.
fn block(values: &[f32]) -> Vec<u8> {
    let most = values.iter().fold(0.0_f64, |most, x| most.max(f64::from(x.abs())));
    let quants = values.iter().map(|x| (f64::from(*x) * 127.0 / most).round() as i8 as u8);
    f16::from_f64(most / 127.0).to_le_bytes().into_iter().chain(quants).collect()
}

#[test]
fn gguf_describes_shape_and_tokenizer() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("small.gguf");
    gguf::save(&path, &model(32, 257), Storage::Q8_0, tokenizer_files::vocabulary("bytes")).expect("saved");
    let file = File::read(&path);
    for (key, text) in [
        ("general.architecture", "gpt2"),
        ("general.type", "model"),
        ("general.name", "small"),
        ("general.size_label", "34K"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "gpt-2"),
    ] {
        assert_eq!(file.text_of(key), text, "{key}");
    }
    for (key, number) in [
        ("general.quantization_version", 2.0),
        ("gpt2.block_count", 2.0),
        ("gpt2.context_length", 6.0),
        ("gpt2.embedding_length", 32.0),
        ("gpt2.feed_forward_length", 128.0),
        ("gpt2.attention.head_count", 2.0),
        ("gpt2.attention.layer_norm_epsilon", f64::from(1e-5_f32)),
        ("tokenizer.ggml.bos_token_id", 256.0),
        ("tokenizer.ggml.eos_token_id", 256.0),
    ] {
        assert_eq!(file.number(key), number, "{key}");
    }
    let tokens = file.texts("tokenizer.ggml.tokens");
    assert_eq!((tokens.len(), tokens[65], tokens[32], tokens[256]), (257, "A", "Ġ", "<|endoftext|>"));
    assert_eq!(file.keys["tokenizer.ggml.merges"], Value::Array(8, Vec::new()));
    let kinds = [vec![Value::Number(1.0); 256], vec![Value::Number(3.0)]].concat();
    assert_eq!(file.keys["tokenizer.ggml.token_type"], Value::Array(5, kinds));
}

#[test]
fn gguf_with_more_rows_than_gpt2_has_tokens() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("a.gguf");
    gguf::save(&path, &model(8, 50_304), Storage::Plain(Element::F16), tokenizer_files::vocabulary("gpt2"))
        .expect("saved");
    let file = File::read(&path);
    let tokens = file.texts("tokenizer.ggml.tokens");
    assert_eq!((tokens.len(), tokens[0], tokens[15_496]), (50_304, "!", "Hello"));
    assert_eq!(tokens[50_255..50_258], ["Ġgazed", "<|endoftext|>", "[PAD50257]"]);
    let merges = file.texts("tokenizer.ggml.merges");
    assert_eq!((merges.len(), merges[0], merges[49_999]), (50_000, "Ġ t", "Ġg azed"));
    assert_eq!(file.number("tokenizer.ggml.eos_token_id"), 50_256.0);
    let Value::Array(5, kinds) = &file.keys["tokenizer.ggml.token_type"] else { panic!("kinds") };
    assert_eq!(kinds[50_255..50_258], [Value::Number(1.0), Value::Number(3.0), Value::Number(5.0)]);
    assert_eq!(file.tensors["token_embd.weight"].dimensions, [8, 50_304]);
}

#[test]
fn gguf_without_a_known_tokenizer() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("a.gguf");
    // none, and one of more tokens than the model has rows
    for vocabulary in [None, tokenizer_files::vocabulary("bytes")] {
        gguf::save(&path, &model(32, 200), Storage::Plain(Element::F32), vocabulary).expect("saved");
        let file = File::read(&path);
        assert_eq!((file.text_of("tokenizer.ggml.model"), file.number("gpt2.vocab_size")), ("none", 200.0));
        assert!(!file.keys.contains_key("tokenizer.ggml.tokens"));
    }
}

#[test]
fn gguf_of_rows_that_are_no_blocks_is_f16() {
    let dir = tempfile::tempdir().expect("folder");
    hf::save(&dir.path().join("m"), &model(8, 257), &ModelInfo::for_tokenizer("bytes")).expect("saved");
    let words = ["convert", "m", "a.gguf", "--dtype", "q8_0"].map(AsRef::as_ref);
    let output = wgpt(dir.path(), &words);
    let notice = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && notice.contains("7 matrices are stored as f16"), "{notice}");
    let file = File::read(&dir.path().join("a.gguf"));
    let kind = |name: &str| file.tensors[name].kind;
    assert_eq!((kind("blk.0.attn_qkv.weight"), kind("blk.0.ffn_down.weight")), (1, 8));
    assert_eq!((kind("token_embd.weight"), kind("position_embd.weight")), (1, 0));
}

#[test]
fn gguf_takes_no_weight_that_becomes_infinite() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("a.gguf");
    let mut weights = model(32, 257);
    // vectors are f32
    weights.get_mut("fcb", 0)[3] = 1e30;
    for (storage, value) in
        [(Storage::Plain(Element::F16), -65_520.0), (Storage::Q8_0, 1e7), (Storage::Plain(Element::Bf16), f32::MAX)]
    {
        gguf::save(&path, &weights, storage, None).expect("saved");
        fs::remove_file(&path).expect("removed");
        weights.get_mut("fcprojw", 1)[7] = value;
        let error = gguf::save(&path, &weights, storage, None).expect_err("an infinity");
        let what =
            format!("`blk.1.ffn_down.weight` contains {value}, expected numbers that {} can represent", storage.name());
        assert!(error.exit_code() == 3 && error.to_string().contains(&what), "{error}");
        weights.get_mut("fcprojw", 1)[7] = 0.5;
        assert!(!path.exists());
    }
}

#[test]
fn folders_of_pointers_are_not_converted() {
    let dir = tempfile::tempdir().expect("folder");
    let from = dir.path().join("m");
    hf::save(&from, &model(8, 257), &ModelInfo::for_tokenizer("bytes")).expect("saved");
    for name in ["tokenizer.json", "merges.txt", "config.json", "model.safetensors"] {
        let whole = fs::read(from.join(name)).ok();
        fs::write(from.join(name), "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
            .expect("written");
        let output = convert(dir.path(), "m", "out");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{name}: {text}");
        assert!(text.contains(&format!("{name}: a pointer of Git LFS")) && text.contains("`git lfs pull`"), "{text}");
        assert!(!dir.path().join("out").exists(), "{name}");
        match whole {
            Some(bytes) => fs::write(from.join(name), bytes).expect("written"),
            None => fs::remove_file(from.join(name)).expect("removed"),
        }
    }
    assert!(convert(dir.path(), "m", "out").status.success());
}
