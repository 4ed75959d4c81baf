//! Files of the corpus that are not written by hand. `WGPT_BLESS=1 cargo test --release --test timing seeds` writes
//! them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use safetensors::Dtype;
use serde_json::json;

use wgpt::data::write_shard;
use wgpt::formats::safetensors_file::{self, Entry};
use wgpt::formats::tokenizer_files::spell;
use wgpt::formats::{Element, ModelInfo, hf, llmc as bin};
use wgpt::gpu::Elem;
use wgpt::measure::plan::assumed;
use wgpt::measure::tune::jobs;
use wgpt::model::params::PARAMS;
use wgpt::model::{Config, Weights, init};

/// A model's description, of the shape [`config`].
pub const CONFIG: &str = include_str!("corpus/config_json/a");
/// A run's configuration.
pub const TOY: &str = include_str!("corpus/config_toml/a");

/// The shape of the models.
pub fn config() -> Config {
    Config::new(4, 5, 1, 1, 8).expect("a shape")
}

fn written(write: impl FnOnce(&Path)) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a");
    write(&path);
    fs::read(path).expect("a file")
}

/// Weights as transformers has them.
pub fn safetensors() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    hf::save(folder.path(), &init::init(config(), 1), &ModelInfo::default()).expect("saved");
    fs::read(folder.path().join("model.safetensors")).expect("a file")
}

/// Weights as a checkpoint has them, with `prefix` before the names.
pub fn weights(prefix: &str) -> Vec<u8> {
    sets(&[(prefix, &init::init(config(), 1))])
}

/// The moments of a checkpoint.
pub fn moments() -> Vec<u8> {
    let weights = init::init(config(), 1);
    sets(&[("m.", &weights), ("v.", &weights)])
}

fn sets(sets: &[(&str, &Weights)]) -> Vec<u8> {
    let all = || sets.iter().flat_map(|(prefix, set)| PARAMS.iter().zip(&set.tensors).map(move |pair| (prefix, pair)));
    let entries: Vec<Entry> = all()
        .map(|(prefix, (param, values))| {
            let shape = vec![param.copies(&config()), values.len() / param.copies(&config())];
            Entry { name: format!("{prefix}{}", param.name), dtype: Dtype::F32, shape }
        })
        .collect();
    let values: Vec<&Vec<f32>> = all().map(|(_, (_, values))| values).collect();
    written(|path| {
        safetensors_file::write(path, &BTreeMap::new(), &entries, |i, out| {
            out.write_all(bytemuck::cast_slice(values[i]))
        })
        .expect("written");
    })
}

fn llmc(element: Element) -> Vec<u8> {
    written(|path| bin::save(path, &init::init(config(), 1), element).expect("saved"))
}

/// A byte-level tokenizer of few ids.
fn tokenizer(more: &[(&str, serde_json::Value)]) -> Vec<u8> {
    let letters = "Once a123b".bytes().map(|byte| spell(&[byte])).collect::<std::collections::BTreeSet<_>>();
    let words = letters.into_iter().chain(["On".into(), "ce".into()]);
    let vocab: serde_json::Map<_, _> = words.zip(0..).map(|(token, id)| (token, json!(id))).collect();
    let end = vocab.len();
    let mut tokenizer = json!({
        "version": "1.0",
        "added_tokens": [{ "id": end, "content": "<|endoftext|>", "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false }],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocab, "merges": [["O", "n"], ["c", "e"]] },
    });
    for (key, value) in more {
        tokenizer[*key] = value.clone();
    }
    tokenizer.to_string().into_bytes()
}

/// A pre-tokenizer of a pattern and bytes, as newer models have it.
fn split(pattern: &str) -> serde_json::Value {
    json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
        { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
    ]})
}

/// A column of texts, or a set of questions.
fn parquet(schema: &str, columns: &[&[&str]], encoding: Option<Encoding>, version: WriterVersion) -> Vec<u8> {
    let properties = WriterProperties::builder().set_writer_version(version);
    let properties = match encoding {
        Some(encoding) => properties.set_dictionary_enabled(false).set_encoding(encoding),
        None => properties.set_compression(Compression::ZSTD(ZstdLevel::default())),
    };
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, schema, Arc::new(properties.build())).expect("a file");
    let mut group = writer.next_row_group().expect("a group");
    for texts in columns {
        let mut column = group.next_column().expect("a column").expect("one more");
        let (optional, is_list) = (texts[0], texts[0] == "list");
        let texts: Vec<ByteArray> = texts[1..].iter().map(|text| ByteArray::from(*text)).collect();
        match optional {
            "number" => drop(column.typed::<Int32Type>().write_batch(&[1], None, None).expect("written")),
            _ => {
                let definitions = vec![if is_list { 3 } else { 1 }; texts.len()];
                let repetitions: Vec<i16> = (0..texts.len()).map(|i| i16::from(i > 0)).collect();
                let (definitions, repetitions) = (Some(&definitions[..]), is_list.then_some(&repetitions[..]));
                column.typed::<ByteArrayType>().write_batch(&texts, definitions, repetitions).expect("written");
            }
        }
        column.close().expect("closed");
    }
    group.close().expect("closed");
    writer.close().expect("closed");
    file
}

const TEXTS: &str = "message m { optional binary text (UTF8); }";
const QUESTIONS: &str = "message m { optional binary ctx (UTF8); required int32 label;
    optional group endings (LIST) { repeated group list { optional binary element (UTF8); } } }";

fn questions_bin() -> Vec<u8> {
    let mut file: Vec<u8> = [20_240_522_i32, 1, 1, 40].iter().flat_map(|word| word.to_le_bytes()).collect();
    file.resize(1024, 0);
    let body = [u16::MAX, 0, 0, 2, 4, 2, 7, 8, 1, 9, 1, 10, 2, 11, 12, 1, 13];
    let mut body = body.to_vec();
    body[1] = 2 * body.len() as u16;
    file.extend(body.iter().flat_map(|word| word.to_le_bytes()));
    file
}

fn packed() -> [(&'static str, Vec<u8>); 4] {
    let text = b"Once upon a time\n";
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    for out in [&mut gzip as &mut dyn Write, &mut bzip2, &mut xz] {
        out.write_all(text).expect("written");
    }
    [
        ("gz", gzip.finish().expect("gzip")),
        ("bz2", bzip2.finish().expect("bzip2")),
        ("xz", xz.finish().expect("xz")),
        ("zst", zstd::encode_all(&text[..], 1).expect("zstd")),
    ]
}

/// A record with the first two kernels of each job.
fn tune_record() -> Vec<u8> {
    let caps = assumed(Elem::F16, 1 << 30);
    let kernels = jobs(&caps, &config(), Elem::F16, [1, 4]).into_iter().filter_map(|job| {
        let choice = job.candidates(&caps, Elem::F16).into_iter().nth(1)?;
        Some((job.key(Elem::F16), choice.text().ok()?))
    });
    let kernels: BTreeMap<String, String> = kernels.take(4).collect();
    json!({ "version": "0.1.0", "adapter": "a", "driver": "d", "kernels": kernels }).to_string().into_bytes()
}

fn npy() -> Vec<u8> {
    let header = "{'descr': '<u2', 'fortran_order': False, 'shape': (3,), }\n";
    [b"\x93NUMPY\x01\0", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), &[1, 0, 2, 0, 3, 0]].concat()
}

/// Target, name and contents.
fn all() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let (first, second) = (WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0);
    let texts: &[&[&str]] = &[&["", "one", "two", "two more", "one"]];
    let questions: &[&[&str]] = &[&["", "A man is"], &["number"], &["list", "sitting", "running", "a", "b"]];
    let pair = [
        "{\"a\":0,\"b\":1,\"ab\":2,\"<|endoftext|>\":3}",
        "#version: 0.2\na b\n",
        "{\"eos_token\":\"<|endoftext|>\"}",
        "{\"<x>\":4}",
        "{\"eos_token_id\":3}",
    ];
    let delta = |encoding, version| parquet(TEXTS, texts, Some(encoding), version);
    let mut all = vec![
        ("safetensors", "a", safetensors()),
        ("checkpoint_weights", "a", weights("")),
        ("llmc", "f32", llmc(Element::F32)),
        ("llmc", "bf16", llmc(Element::Bf16)),
        ("tokenizer_json", "a", tokenizer(&[])),
        ("tokenizer_json", "split", tokenizer(&[("pre_tokenizer", split("(?i:'s|'t)|\\p{L}+|\\s+(?!\\S)|\\s+"))])),
        (
            "tokenizer_json",
            "normalized",
            tokenizer(&[(
                "normalizer",
                json!({ "type": "Sequence", "normalizers":
            [{ "type": "NFC" }, { "type": "Replace", "pattern": { "Regex": "a+" }, "content": "b" }] }),
            )]),
        ),
        ("tokenizer_pair", "a", pair.join("\n===\n").into_bytes()),
        ("shard", "a", written(|path| write_shard(path, &[50_256, 1, 2, 3]).expect("written"))),
        ("ids", "u16", (0..64_u16).flat_map(u16::to_le_bytes).collect()),
        ("ids", "u32", (0..64_u32).flat_map(u32::to_le_bytes).collect()),
        ("npy", "a", npy()),
        ("hellaswag_bin", "a", questions_bin()),
        ("hellaswag_parquet", "plain", parquet(QUESTIONS, questions, Some(Encoding::PLAIN), first)),
        ("hellaswag_parquet", "packed", parquet(QUESTIONS, questions, None, second)),
        ("parquet", "packed", parquet(TEXTS, texts, None, first)),
        ("parquet", "packed-2", parquet(TEXTS, texts, None, second)),
        ("parquet", "plain", delta(Encoding::PLAIN, first)),
        ("parquet", "lengths", delta(Encoding::DELTA_LENGTH_BYTE_ARRAY, first)),
        ("parquet", "shared", delta(Encoding::DELTA_BYTE_ARRAY, second)),
        ("tune_record", "whole", tune_record()),
    ];
    all.extend(packed().map(|(name, bytes)| ("text_packed", name, bytes)));
    all
}

#[test]
fn seeds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/timing/fuzz/corpus");
    for (target, name, bytes) in all() {
        let path = corpus.join(target).join(name);
        if std::env::var_os("WGPT_BLESS").is_some() {
            fs::write(&path, &bytes).expect("written");
        }
        assert!(path.is_file(), "{}: run this with WGPT_BLESS=1", path.display());
    }
}
