//! Broken files: a stored corpus of them, and any number of others that proptest makes up.
//!
//! The stored ones were written once by `cargo test --release --test data -- --ignored make_the_broken_files`.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use parquet::basic::Compression;
use proptest::prelude::*;
use wgpt::data::prepare::{Options, prepare};
use wgpt::data::{BatchSource, Loader, LoaderConfig, TokenSource, Tokenizer, inspect, write_shard};
use wgpt::error::{Error, Result};

use crate::kinds::{compressions, packings};
use crate::made::{parquet, wgpt, zstd};

fn stored(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken").join(name)
}

/// Each file and what is said of it.
const FILES: [(&str, &str); 22] = [
    ("shard-empty.bin", "header is cut short, expected at least 1,024 bytes, got 0"),
    ("shard-header-cut.bin", "header is cut short, expected at least 1,024 bytes, got 700"),
    ("shard-magic.bin", "bad magic, expected 20240520, got 20240521; was it made by"),
    ("shard-weights.bin", "bad magic, expected 20240520, got 20240326; this is llm.c's weights"),
    ("shard-version.bin", "unknown version, expected 1, got 2"),
    ("shard-none.bin", "bad number of tokens, expected at least 1, got 0"),
    ("shard-negative.bin", "bad number of tokens, expected at least 1, got -1"),
    ("shard-absurd.bin", "wrong file size, expected 4,294,968,318 bytes for 2,147,483,647 tokens, got 1,034"),
    ("shard-short.bin", "wrong file size, expected 1,034 bytes for 5 tokens, got 1,033"),
    ("shard-long.bin", "wrong file size, expected 1,034 bytes for 5 tokens, got 1,036"),
    ("shard-id.bin", "token 3 is outside the vocabulary, expected an id below 50257, got 50257"),
    ("lines-cut.jsonl", "line 2: not a JSON object with a text"),
    ("lines-other-field.jsonl", "line 1: no field `text`"),
    ("lines-number.jsonl", "line 3: not a JSON object with a text"),
    ("lines-deep.jsonl", "line 1: not a JSON object with a text"),
    ("lines-cut.jsonl.gz", "broken gzip data"),
    ("lines-flipped.jsonl.gz", "broken gzip data"),
    ("lines-cut.jsonl.zst", "broken Zstandard data"),
    ("table-cut.parquet", "broken Parquet data"),
    ("table-no-column.parquet", "no column `text`, expected one of id, body"),
    ("table-page-size.parquet", "broken Parquet page"),
    ("empty.txt", "the corpus is empty"),
];

fn prepare_file(path: &Path, out: &Path) -> Result<()> {
    let options = Options {
        threads: 1,
        restart: true,
        tokenizer: Tokenizer::Bytes,
        ..Options::new(vec![path.to_owned()], out.to_owned(), "x")
    };
    prepare(&options, &mut |_| ControlFlow::Continue(())).map(drop)
}

#[test]
fn stored_files_are_refused_with_a_line_that_tells() {
    for (name, what) in FILES {
        let dir = tempfile::tempdir().unwrap();
        let path = stored(name);
        let path = path.to_str().unwrap();
        let output = if name.ends_with(".bin") {
            wgpt(&["data", "inspect", path])
        } else {
            wgpt(&["data", "prepare", path, "--out", dir.path().join("out").to_str().unwrap()])
        };
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{name}: {text}");
        assert!(text.contains(what) && text.contains(name), "{name}: {text}");
        assert_eq!(text.lines().count(), 1, "{name}: {text}");
        assert!(output.stdout.is_empty(), "{name}");
    }
}

/// Address space for the program, what it needs to start included: any claim of a gigabyte would pass it.
#[cfg(target_os = "linux")]
#[test]
fn broken_files_are_not_believed_about_memory() {
    for (name, _) in FILES {
        let dir = tempfile::tempdir().unwrap();
        let (path, out) = (stored(name), dir.path().join("out"));
        let verb = if name.ends_with(".bin") {
            "inspect \"$1\""
        } else {
            "prepare \"$1\" --out \"$2\" --threads 1 --tokenizer bytes"
        };
        let script = format!("ulimit -v 400000; exec \"$0\" data {verb}");
        let output = std::process::Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_wgpt")])
            .args([&path, &out])
            .env("RAYON_NUM_THREADS", "1")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
#[ignore = "writes tests/broken anew"]
fn make_the_broken_files() {
    let dir = stored("");
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let shard = |words: [i32; 3], ids: &[u16]| -> Vec<u8> {
        let mut header = [0_i32; 256];
        header[..3].copy_from_slice(&words);
        let mut bytes: Vec<u8> = header.iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes
    };
    let ids = [50_256, 1, 2, 3, 4];
    let good = shard([20_240_520, 1, 5], &ids);
    write("shard-empty.bin", &[]);
    write("shard-header-cut.bin", &good[..700]);
    write("shard-magic.bin", &shard([20_240_521, 1, 5], &ids));
    write("shard-weights.bin", &shard([20_240_326, 3, 1024], &ids));
    write("shard-version.bin", &shard([20_240_520, 2, 5], &ids));
    write("shard-none.bin", &shard([20_240_520, 1, 0], &[]));
    write("shard-negative.bin", &shard([20_240_520, 1, -1], &ids));
    write("shard-absurd.bin", &shard([20_240_520, 1, i32::MAX], &ids));
    write("shard-short.bin", &good[..good.len() - 1]);
    write("shard-long.bin", &[&good[..], &[0, 0]].concat());
    write("shard-id.bin", &shard([20_240_520, 1, 5], &[50_256, 1, 2, 50_257, 4]));
    let lines = b"{\"text\":\"one\"}\n{\"text\":\"two\"}\n{\"text\":\"three\"}\n".repeat(20);
    write("lines-cut.jsonl", b"{\"text\":\"one\"}\n{\"text\":\"tw");
    write("lines-other-field.jsonl", b"{\"body\":\"one\"}\n");
    write("lines-number.jsonl", b"{\"text\":\"one\"}\n\n{\"text\":3}\n");
    write("lines-deep.jsonl", &[b"{\"a\":".to_vec(), vec![b'['; 4000]].concat());
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&lines).unwrap();
    let mut gz = gz.finish().unwrap();
    write("lines-cut.jsonl.gz", &gz[..gz.len() - 4]);
    let last = gz.len() - 8;
    gz[last] ^= 1;
    write("lines-flipped.jsonl.gz", &gz);
    let zst = zstd::encode_all(&lines[..], 3).unwrap();
    write("lines-cut.jsonl.zst", &zst[..zst.len() - 4]);
    let table = scratch.path().join("t.parquet");
    let rows: Vec<Option<String>> = (0..40).map(|i| Some(format!("row {i} of a table"))).collect();
    parquet(&table, &[rows], Compression::SNAPPY, true);
    let bytes = std::fs::read(&table).unwrap();
    write("table-cut.parquet", &bytes[..bytes.len() - 40]);
    // the same length, so that nothing else moves
    let renamed: Vec<u8> = replace(&bytes, b"text", b"body");
    write("table-no-column.parquet", &renamed);
    parquet(&table, &[vec![Some("a".repeat(3 << 20))]], zstd(), false);
    write("table-page-size.parquet", &page_size(&std::fs::read(&table).unwrap()));
    write("empty.txt", b"");
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for at in 0..=bytes.len() - from.len() {
        if &bytes[at..at + from.len()] == from {
            out[at..at + to.len()].copy_from_slice(to);
        }
    }
    out
}

/// Makes the first page of some megabytes claim to be 128 MiB: a number of as many bytes.
fn page_size(bytes: &[u8]) -> Vec<u8> {
    // a page header begins with field 1 (type), field 2 (unpacked size), field 3 (packed size)
    let is_size = |at: usize| {
        bytes[at] == 0x15
            && bytes[at + 1] <= 6
            && bytes[at + 2] == 0x15
            && bytes[at + 3..at + 6].iter().all(|b| b & 0x80 != 0)
    };
    let at = (4..bytes.len() - 8).find(|&at| is_size(at)).expect("a page of megabytes");
    let mut out = bytes.to_vec();
    out[at + 3..at + 7].copy_from_slice(&[0xfe, 0xff, 0xff, 0x7f]);
    out
}

fn is_line(error: &Error) -> bool {
    let text = error.to_string();
    matches!(error, Error::Data(_)) && !text.contains('\n')
}

/// So many cases, or `PROPTEST_CASES` for a long run.
fn cases(few: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(few);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// A good Parquet file to damage.
fn table(compression: Compression) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let rows = |g: usize| {
        (0..30).map(|i| (i % 7 != 3).then(|| format!("row {i} of group {g}: {}", "word ".repeat(i)))).collect()
    };
    parquet(&path, &[rows(0), rows(1)], compression, true);
    std::fs::read(&path).unwrap()
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn any_bytes_as_a_shard(head in prop::collection::vec(prop_oneof![Just(20_240_520_i32), Just(1), any::<i32>(), 0..64_i32], 3), body in any::<Vec<u8>>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.bin");
        let mut bytes: Vec<u8> = head.iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes.resize(1024, 0);
        bytes.extend(body);
        std::fs::write(&path, &bytes).unwrap();
        match inspect::inspect(std::slice::from_ref(&path), None) {
            Ok(report) => prop_assert_eq!(report.tokens, (bytes.len() as u64 - 1024) / 2),
            Err(error) => prop_assert!(is_line(&error), "{error}"),
        }
    }

    #[test]
    fn any_lines(text in any::<Vec<u8>>(), near in "(\\{\"text\": ?\"[a-z\\\\u0-9]{0,9}\"\\}\n){0,3}.{0,20}") {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [("a.jsonl", text), ("b.jsonl", near.into_bytes())] {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            if let Err(error) = prepare_file(&path, &dir.path().join("out")) {
                prop_assert!(is_line(&error), "{error}");
            }
        }
    }

    #[test]
    fn any_damage_to_packed_lines(at in 0..200_usize, value in any::<u8>(), cut in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let lines = b"{\"text\":\"one\"}\n{\"text\":\"two\"}\n".repeat(20);
        for (ending, pack) in packings() {
            let mut bytes = pack(&lines);
            let at = at % bytes.len();
            if cut { bytes.truncate(at) } else { bytes[at] = value }
            let path = dir.path().join(format!("a.jsonl.{ending}"));
            std::fs::write(&path, bytes).unwrap();
            if let Err(error) = prepare_file(&path, &dir.path().join("out")) {
                prop_assert!(is_line(&error), "{error}");
            }
        }
    }

    #[test]
    fn any_position_of_a_loader(shards in prop::collection::vec(0..4_u32, 0..4), samples in prop::collection::vec(0..20_u32, 0..20), shard in 0..4_usize, sample in 0..20_usize, words in 620..626_usize, next in 0..700_u32) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.bin");
        write_shard(&path, &[1; 100]).unwrap();
        let sources = || vec![TokenSource::open(&path).unwrap(); 3];
        let mut loader = Loader::new(sources(), LoaderConfig::new(2, 4, 9, Some(1))).unwrap();
        let mut state = loader.state();
        state.shards = shards;
        state.samples = samples;
        (state.shard, state.sample) = (shard, sample);
        state.rng = state.rng.map(|mut rng| { rng.words.resize(words, 1); rng.next = next; rng });
        if loader.restore(state).is_ok() {
            for _ in 0..40 {
                loader.next_batch().unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(250))]

    #[test]
    fn any_damage_to_a_table(at in any::<prop::sample::Index>(), value in any::<u8>(), cut in 0..10_u8, packing in any::<prop::sample::Index>()) {
        use std::sync::OnceLock;
        static TABLES: OnceLock<[Vec<u8>; 7]> = OnceLock::new();
        let tables = TABLES.get_or_init(|| compressions().map(table));
        let mut bytes = packing.get(tables).clone();
        let at = at.index(bytes.len());
        if cut == 0 { bytes.truncate(at) } else { bytes[at] = value }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.parquet");
        std::fs::write(&path, bytes).unwrap();
        if let Err(error) = prepare_file(&path, &dir.path().join("out")) {
            prop_assert!(is_line(&error), "{error}");
        }
    }
}
