//! Kinds of files that preparation reads: packings, Parquet's own packings, columns in groups, paths of any bytes.

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{BrotliLevel, Compression, GzipLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use wgpt::data::Tokenizer;
use wgpt::data::prepare::{Manifest, Options, Outcome, prepare};
use wgpt::error::{Error, Result};

use crate::made::{parquet, tokens, zstd};

/// Every packing of Parquet.
pub fn compressions() -> [Compression; 7] {
    [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        zstd(),
    ]
}

/// The packings of whole files: a name's ending and what packs.
#[expect(clippy::type_complexity, reason = "a table")]
pub fn packings() -> [(&'static str, fn(&[u8]) -> Vec<u8>); 4] {
    [
        ("gz", |bytes| {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        }),
        ("zst", |bytes| zstd::encode_all(bytes, 1).unwrap()),
        ("xz", |bytes| {
            let mut out = liblzma::write::XzEncoder::new(Vec::new(), 0);
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        }),
        ("bz2", |bytes| {
            let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        }),
    ]
}

fn options(path: &Path, field: &str) -> Options {
    let out = path.with_extension("prepared");
    let (tokenizer, field) = (Tokenizer::Bytes, field.to_owned());
    let (threads, val_tokens, restart) = (1, Some(0), true);
    Options { tokenizer, field, threads, val_tokens, restart, ..Options::new(vec![path.to_owned()], out, "x") }
}

fn note_of(path: &Path, field: &str) -> Result<Manifest> {
    match prepare(&options(path, field), &mut |_| ControlFlow::Continue(()))? {
        Outcome::Done(note) => Ok(note),
        other => panic!("{other:?}"),
    }
}

/// The documents that a file becomes.
fn documents(path: &Path, field: &str) -> Vec<String> {
    note_of(path, field).unwrap();
    let ids = tokens(&options(path, field).out).1;
    let text = |ids: &[u16]| ids.iter().map(|&id| char::from(id as u8)).collect();
    ids.split(|&id| id == 256).skip(1).map(text).collect()
}

fn refused(path: &Path, field: &str) -> String {
    match note_of(path, field).unwrap_err() {
        Error::Data(fault) => fault.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_packing_is_read_whatever_the_file_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let lines = "{\"text\":\"one\"}\n{\"text\":\"two\"}\n";
    for (i, (ending, pack)) in packings().into_iter().enumerate() {
        // under its own name, without one, and under another packing's
        for (j, name) in [format!("a.jsonl.{ending}"), format!("a{i}"), format!("{i}.jsonl.lzma")].iter().enumerate() {
            let path = dir.path().join(format!("{j}{name}"));
            std::fs::write(&path, pack(lines.as_bytes())).unwrap();
            assert_eq!(documents(&path, "text"), ["one", "two"], "{name}");
        }
        let path = dir.path().join(format!("t.txt.{ending}"));
        std::fs::write(&path, [pack(b"\xef\xbb\xbfone text"), pack(b" of two")].concat()).unwrap();
        assert_eq!(documents(&path, "text"), ["one text of two"], "{ending}");
        let path = dir.path().join(format!("tar.{ending}"));
        let mut tar = vec![0; 1024];
        tar[257..262].copy_from_slice(b"ustar");
        std::fs::write(&path, pack(&tar)).unwrap();
        assert!(refused(&path, "text").contains("is a tar archive inside"), "{ending}");
    }
}

#[test]
fn a_broken_first_line_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::fs::write(&path, "{\"text\":\"cut\n{\"text\":\"one\"}\n{\"text\":\"two\"}\n").unwrap();
    let error = refused(&path, "text");
    assert!(error.contains("line 1: not a JSON object with a text"), "{error}");
}

#[test]
fn every_packing_of_parquet_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let rows = |g: usize| -> Vec<Option<String>> {
        (0..90).map(|i| (i % 7 != 3).then(|| format!("row {i} of group {g}: {}", "word ".repeat(i)))).collect()
    };
    let groups = [rows(0), rows(1)];
    let expected: Vec<String> = groups.iter().flatten().flatten().cloned().collect();
    for (i, compression) in compressions().into_iter().enumerate() {
        let path = dir.path().join(format!("{i}.parquet"));
        parquet(&path, &groups, compression, true);
        assert_eq!(documents(&path, "text"), expected, "{compression}");
    }
}

/// A column of texts by a schema, with the levels that say which of them are there.
fn column(path: &Path, schema: &str, texts: &[&str], levels: &[i16], version: WriterVersion) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder()
        .set_writer_version(version)
        .set_compression(Compression::GZIP(GzipLevel::default()))
        .build();
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    while let Some(mut column) = group.next_column().unwrap() {
        let values: Vec<ByteArray> = texts.iter().map(|&text| text.into()).collect();
        let levels = (!levels.is_empty()).then_some(levels);
        column.typed::<ByteArrayType>().write_batch(&values, levels, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn a_column_in_groups_is_named_by_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let inside =
        |group: &str, leaf: &str| format!("message m {{ {group} group meta {{ {leaf} binary text (UTF8); }} }}");
    for (i, (group, leaf, levels, missing)) in [
        ("optional", "optional", &[0, 2, 1, 2, 0, 2][..], 3),
        ("optional", "required", &[0, 1, 1, 0, 1], 2),
        ("required", "optional", &[1, 0, 1, 1], 1),
        ("required", "required", &[], 0),
    ]
    .into_iter()
    .enumerate()
    {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            let path = path(&format!("{i}{version:?}.parquet"));
            column(&path, &inside(group, leaf), &["a", "", "b"], levels, version);
            assert_eq!(documents(&path, "meta.text"), ["a", "", "b"], "{group} {leaf}");
            let note = Manifest::read(&options(&path, "").out).unwrap().unwrap();
            assert_eq!(note.counts.missing, missing, "{group} {leaf}");
        }
        assert!(refused(&path(&format!("{i}PARQUET_1_0.parquet")), "text").contains("expected one of meta.text"));
    }
    let version = WriterVersion::PARQUET_1_0;
    let dotted = path("dotted.parquet");
    column(&dotted, "message m { required binary a.b (UTF8); }", &["a", "b"], &[], version);
    assert_eq!(documents(&dotted, "a.b"), ["a", "b"]);
    let twice = path("twice.parquet");
    let schema = "message m { required binary text (UTF8); required binary text (UTF8); }";
    column(&twice, schema, &["a", "b"], &[], version);
    assert!(refused(&twice, "text").contains("2 columns are called `text`"));
}

#[cfg(unix)]
#[test]
fn a_path_that_is_not_utf_8_is_prepared_and_resumed() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = tempfile::tempdir().unwrap();
    let of = |bytes: &[u8]| -> PathBuf { dir.path().join(std::ffi::OsStr::from_bytes(bytes)) };
    let folder = of(b"caf\xe9 %");
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join(std::ffi::OsStr::from_bytes(b"na\xefve.txt"));
    std::fs::write(&path, "some text, long enough for a tenth").unwrap();
    let mut one = options(&folder, "text");
    one.restart = false;
    one.out = of(b"out\xff");
    one.save_every = std::time::Duration::ZERO;
    prepare(&one, &mut |_| ControlFlow::Break(())).unwrap();
    let Outcome::Done(note) = prepare(&one, &mut |_| ControlFlow::Continue(())).unwrap() else { panic!("not done") };
    assert_eq!(note.recipe.sources[0].path, path);
    assert!(
        matches!(prepare(&one, &mut |_| ControlFlow::Continue(())).unwrap(), Outcome::AlreadyPrepared(there) if there == note)
    );
}
