//! Tests of token layouts: the same tokens in every layout, and files of another layout than the one asked for.

use std::path::PathBuf;

use super::*;
use crate::data::batches::{BatchSource as _, Batches};
use crate::data::loader::LoaderConfig;
use crate::data::tokens::{TokenSource, write_shard};

fn tokens() -> Vec<u16> {
    (0..70_001_u32).map(|i| ((i * 7919) % 50_257) as u16).collect()
}

fn le16(tokens: &[u16]) -> Vec<u8> {
    tokens.iter().flat_map(|id| id.to_le_bytes()).collect()
}

fn le32(tokens: &[u16]) -> Vec<u8> {
    tokens.iter().flat_map(|id| u32::from(*id).to_le_bytes()).collect()
}

/// Returns a file of NumPy with this version, element type, number of elements, and data.
fn npy(version: u8, descr: &str, len: usize, data: &[u8]) -> Vec<u8> {
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({len},), }}\n");
    let mut bytes = [b"\x93NUMPY", &[version, 0][..]].concat();
    bytes.extend(&(text.len() as u32).to_le_bytes()[..if version == 1 { 2 } else { 4 }]);
    [bytes, text.into_bytes(), data.to_vec()].concat()
}

struct Made(tempfile::TempDir);

impl Made {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("x.bin");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn fault(&self, bytes: &[u8], format: TokenFormat) -> Fault {
        match TokenSource::open_as(self.file(bytes), format) {
            Err(Error::Data(fault)) => *fault,
            other => panic!("expected a data error, got {other:?}"),
        }
    }

    fn read(&self, bytes: &[u8], format: TokenFormat) -> Vec<u16> {
        let source = TokenSource::open_as(self.file(bytes), format).unwrap();
        let mut tokens = vec![0; source.len()];
        source.read(0, &mut tokens).unwrap();
        tokens
    }
}

#[test]
fn the_same_tokens_in_every_layout_make_the_same_batches() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens();
    let shard = dir.path().join("shard");
    write_shard(&shard, &tokens).unwrap();
    let files = [
        (TokenFormat::Shard, std::fs::read(shard).unwrap()),
        (TokenFormat::U16, le16(&tokens)),
        (TokenFormat::U32, le32(&tokens)),
        (TokenFormat::Npy, npy(1, "<u2", tokens.len(), &le16(&tokens))),
        (TokenFormat::Npy, npy(3, "<u4", tokens.len(), &le32(&tokens))),
    ];
    let mut seen = Vec::new();
    for (i, (format, bytes)) in files.iter().enumerate() {
        let path = dir.path().join(i.to_string());
        std::fs::write(&path, bytes).unwrap();
        let sources = vec![TokenSource::open_as(path, *format).unwrap(); 2];
        let config = LoaderConfig { ranks: 2, ..LoaderConfig::new(2, 500, 50_257, Some(42)) };
        let mut batches = Batches::new(sources, config).unwrap();
        let mut all = vec![batches.fingerprint().to_owned()];
        // more than an epoch
        for _ in 0..150 {
            let batch = batches.next_batch().unwrap();
            all.push(format!("{:?}", (batch.inputs(), batch.targets())));
        }
        all.push(serde_json::to_string(&batches.state()).unwrap());
        seen.push(all);
    }
    assert!(seen.iter().all(|all| *all == seen[0]));
}

#[test]
fn a_file_without_llmcs_magic_says_what_it_is() {
    let made = Made::new();
    let text = "It was a dark and stormy night; the rain fell in torrents. ".repeat(9);
    let json = "{\"text\": \"It was a dark and stormy night; the rain fell in torrents.\"}\n".repeat(3);
    let stream = [&[0xff; 4][..], &[0x10, 1, 0, 0], &[0; 400]].concat();
    let mut tar = vec![0; 600];
    tar[257..262].copy_from_slice(b"ustar");
    tar[..5].copy_from_slice(b"x.bin");
    let gzip = [b"\x1f\x8b\x08\0\0\0\0\0\0\x03"[..].to_vec(), vec![7; 90]].concat();
    for (bytes, found, advice) in [
        (le16(&[50_256, 1, 2, 3]), "16-bit numbers up to 50256 at the start", "--data-format u16"),
        (le32(&tokens()[..500]), "32-bit ids", "--data-format u32"),
        (npy(1, "<u2", 1, &[0, 0]), "a NumPy array", "--data-format npy"),
        (b"version https://git-lfs.github.com/spec/v1\noid".to_vec(), "Git LFS", "git lfs pull"),
        (b"PK\x03\x04 and more".to_vec(), "a zip archive", "unzip"),
        (gzip, "packed with gzip", "gunzip"),
        (b"\x28\xb5\x2f\xfd......".to_vec(), "packed with zstd", "zstd -d"),
        (b"\xfd7zXZ\0.....".to_vec(), "packed with xz", "unxz"),
        (b"BZh91AY&SY....".to_vec(), "packed with bzip2", "bunzip2"),
        (tar, "a tar archive", "tar -xf"),
        (b"PAR1........PAR1".to_vec(), "a Parquet file", "wgpt data prepare"),
        (b"ARROW1\0\0....".to_vec(), "an Arrow file", "to_parquet"),
        (stream, "an Arrow file", "to_parquet"),
        (json.into_bytes(), "JSON", "wgpt data prepare"),
        (b"<!DOCTYPE html><html>".to_vec(), "a web page", ""),
        (MAGIC.to_be_bytes().to_vec(), "a token shard of a big-endian machine", ""),
    ] {
        let fault = made.fault(&bytes, TokenFormat::Shard);
        assert!(fault.found.contains(found) && fault.advice.contains(advice), "{fault}");
        assert!(fault.expected == "a token shard (magic 20240520)" && !fault.to_string().contains('\n'), "{fault}");
    }
    let latin1 = "caf\u{e9} na\u{ef}ve: ".repeat(9).chars().map(|c| c as u8).collect();
    for bytes in [text.into_bytes(), b"hello".to_vec(), latin1] {
        let fault = made.fault(&bytes, TokenFormat::Shard);
        // each command adds its own advice
        assert!(fault.to_string().ends_with(": not a token shard (it looks like text)"), "{fault}");
    }
    assert_eq!(made.fault(&[0xff, 0xff, 0xff, 0x7f, 0, 0], TokenFormat::Shard).what, "bad magic");
    assert_eq!(made.fault(&[1, 0, 0], TokenFormat::Shard).found, "fewer than 4 bytes");
}

#[test]
fn a_shard_or_an_array_is_never_read_as_bare_ids() {
    let made = Made::new();
    let mut shard = Vec::new();
    shard.extend(crate::data::tokens::header(4));
    shard.extend(le16(&[1, 2, 3, 4]));
    let array = npy(1, "<u2", 4, &le16(&[1, 2, 3, 4]));
    let text = "It was a dark and stormy night; the rain fell in torrents. ".repeat(4).into_bytes();
    for format in [TokenFormat::U16, TokenFormat::U32] {
        assert_eq!(made.fault(&shard, format).advice, "leave out --data-format");
        assert_eq!(made.fault(&array, format).advice, "try --data-format npy");
        assert!(made.fault(&text, format).what.ends_with(LOOKS_LIKE_TEXT));
        assert_eq!(made.fault(&[], format).what, "is empty");
    }
    assert_eq!(made.fault(&array, TokenFormat::Shard).advice, "try --data-format npy");
    assert_eq!(made.fault(&shard, TokenFormat::Npy).advice, "leave out --data-format");
    assert_eq!(made.fault(&[], TokenFormat::Npy).what, "is empty");
    // a few ids whose bytes are by chance the first bytes of another kind
    assert_eq!(made.read(b"hi", TokenFormat::U16), [26_984]);
    assert_eq!(made.read(&le16(&[0x8b1f, 9, 1]), TokenFormat::U16), [0x8b1f, 9, 1]);
    assert_eq!(made.read(&le16(&[0x0280, 9, 1]), TokenFormat::U16), [0x0280, 9, 1]);
    assert_eq!(made.read(&[0; 400], TokenFormat::U16), [0; 200]);
}

#[test]
fn ids_of_the_wrong_width_and_cut_files_are_named() {
    let made = Made::new();
    let wide = le32(&tokens()[..500]);
    assert_eq!(made.fault(&wide, TokenFormat::U16).advice, "try --data-format u32");
    let fault = made.fault(&le16(&[1, 2, 3])[..5], TokenFormat::U16);
    assert_eq!(
        [fault.what.as_str(), &fault.expected, &fault.found],
        ["wrong file size", "a multiple of 2 bytes (u16)", "5"]
    );
    assert_eq!(made.fault(&wide[..2], TokenFormat::U32).expected, "a multiple of 4 bytes (u32)");
    let array = npy(1, "<u2", 4, &le16(&[1, 2, 3]));
    let expected = format!("{} bytes for 4 tokens", array.len() + 2);
    assert_eq!(made.fault(&array, TokenFormat::Npy).expected, expected);
    assert_eq!(made.fault(&npy(1, "<u2", 0, &[]), TokenFormat::Npy).what, "bad number of tokens");
    assert!(made.fault(&npy(1, "<i8", 1, &[0; 8]), TokenFormat::Npy).found.contains("<i8"));
    // an id beyond 16 bits is named with its position, wherever reading starts
    let mut ids: Vec<u8> = le32(&tokens());
    ids[4 * 65_537..4 * 65_538].copy_from_slice(&70_000_u32.to_le_bytes());
    let source = TokenSource::open_as(made.file(&ids), TokenFormat::U32).unwrap();
    source.read(0, &mut vec![0; 65_537]).unwrap();
    let error = source.read(10, &mut vec![0; 65_600]).unwrap_err();
    assert_eq!([error.fault().what.as_str(), &error.fault().found], ["token 65537 is too large", "70000"]);
    assert_eq!(error.exit_code(), 3);
}
