//! Small files that unpack to more than the memory that the program is given.

use std::path::Path;
use std::process::Output;

use parquet::basic::Compression;

use crate::kinds::{compressions, packings};
use crate::made::parquet;

/// Bytes that each of the files becomes: more than the address space below.
const UNPACKED_BYTES: usize = 512 << 20;

/// Prepares a file with 400 MB of address space, what the program needs to start included.
fn prepare(path: &Path) -> Output {
    let script = "ulimit -v 400000; exec \"$0\" data prepare \"$1\" --out \"$2\" --threads 1 --tokenizer bytes";
    std::process::Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_wgpt")])
        .args([path, &path.with_extension("prepared")])
        .env("RAYON_NUM_THREADS", "1")
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

#[track_caller]
fn refused(path: &Path, what: &str) {
    let output = prepare(path);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{}: {text}", path.display());
    assert!(text.contains(what) && text.lines().count() == 1, "{}: {text}", path.display());
}

#[test]
fn packed_files_are_read_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let line = format!("{{\"text\":null,\"pad\":\"{}\"}}\n", "a".repeat(1000)).into_bytes();
    let part = line.repeat((16 << 20) / line.len());
    for (ending, pack) in packings() {
        let many = pack(&part).repeat(UNPACKED_BYTES / part.len());
        let path = dir.path().join(format!("lines.jsonl.{ending}"));
        std::fs::write(&path, &many).unwrap();
        // every line is read, and none has a text
        refused(&path, "the corpus is empty");
        let many = [pack(b"{\"text\":\""), pack(&vec![b'a'; 16 << 20]).repeat(UNPACKED_BYTES >> 24)].concat();
        let path = dir.path().join(format!("line.jsonl.{ending}"));
        std::fs::write(&path, &many).unwrap();
        refused(&path, "line 1: too long");
    }
}

#[test]
fn pages_of_parquet_are_not_unpacked_beyond_their_claim() {
    let dir = tempfile::tempdir().unwrap();
    for (i, compression) in compressions().into_iter().enumerate() {
        if compression == Compression::UNCOMPRESSED {
            continue;
        }
        let path = dir.path().join(format!("{i}.parquet"));
        // one page of 240 MiB, which is unpacked whole
        parquet(&path, &[vec![Some("a".repeat(240 << 20))]], compression, false);
        let bytes = std::fs::read(&path).unwrap();
        let is_large = bytes.len() as u64 > 200 << 20;
        assert!(!is_large, "{compression}: {} bytes", bytes.len());
        refused(&path, "Parquet page at byte ");
        // the same page says that it has 1 MiB
        std::fs::write(&path, smaller_claim(&bytes)).unwrap();
        let is_unpacked_by_us = matches!(compression, Compression::GZIP(_) | Compression::BROTLI(_));
        let what = "expected 1,048,576 bytes unpacked, as its header states, got more";
        refused(&path, if is_unpacked_by_us { what } else { "broken Parquet data" });
    }
}

#[test]
fn a_page_of_many_long_texts_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("many.parquet");
    // a page of 64 MiB in a file of three
    parquet(&path, &[vec![Some("a".repeat(1 << 20)); 64]], Compression::SNAPPY, false);
    let output = prepare(&path);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    // one text of the same length is refused, and so are longer ones, wherever the memory ends
    for mib in [64, 96, 128, 160, 200] {
        let path = dir.path().join(mib.to_string()).with_extension("parquet");
        parquet(&path, &[vec![Some("a".repeat(mib << 20))]], Compression::SNAPPY, false);
        refused(&path, ".parquet: the ");
    }
}

/// Makes the page of a quarter gigabyte claim to be a megabyte: a number of as many bytes.
fn smaller_claim(bytes: &[u8]) -> Vec<u8> {
    // a page header begins with field 1 (type), field 2 (unpacked size), field 3 (packed size)
    let is_size = |at: usize| {
        let header = &bytes[at..at + 9];
        header[0] == 0x15 && header[2] == 0x15 && header[3..7].iter().all(|b| b & 0x80 != 0) && header[8] == 0x15
    };
    let at = (4..bytes.len() - 9).find(|&at| is_size(at)).expect("a page of 240 MiB");
    let mut out = bytes.to_vec();
    out[at + 3..at + 8].copy_from_slice(&[0x80, 0x80, 0x80, 0x81, 0x00]);
    out
}

#[test]
fn an_allocation_that_fails_ends_with_one_line_and_the_exit_code_of_memory() {
    use wgpt::formats::{Element, llmc};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.bin");
    let mut shape = wgpt::model::Config::new(4, 5, 1, 1, 8).unwrap();
    llmc::save(&path, &wgpt::model::init::init(shape, 1), Element::Bf16).unwrap();
    // 124M in a file of holes: 250 MB are mapped, and 500 MB are asked for
    shape = wgpt::model::Config::from_descriptor("d12").unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let words = [shape.positions, shape.vocab, shape.layers, shape.heads, shape.channels, shape.padded_vocab()];
    for (i, word) in words.into_iter().enumerate() {
        bytes[8 + 4 * i..12 + 4 * i].copy_from_slice(&(word as u32).to_le_bytes());
    }
    std::fs::write(&path, &bytes[..1024]).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(1024 + 2 * shape.parameters() as u64).unwrap();
    let ends = |kib: u32, what: &str| {
        let script = format!("ulimit -v {kib}; exec \"$0\" convert \"$1\" \"$1.out\"");
        let output = std::process::Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_wgpt")])
            .arg(&path)
            .env("RAYON_NUM_THREADS", "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{}: {text}", output.status);
        assert!(text.starts_with("error: ") && text.contains(what) && text.lines().count() == 1, "{text}");
    };
    ends(500_000, "bytes left; try a smaller --batch");
    ends(200_000, "a.bin: there is not enough address space to map it");
}
