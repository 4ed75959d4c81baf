use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;

const TEXTS: [(&str, [&str; 4], usize); 3] = [
    (
        "A man sits on a roof. He",
        ["is using wrap.", "is ripping level tiles off.", "holds a cube.", "starts pulling."],
        3,
    ),
    ("Then, naïve 日本", ["one", "two two", "three three three", "é"], 0),
    ("The", ["end.", "start", "x", "y"], 2),
];

fn want(tokenizer: Tokenizer) -> Vec<Example> {
    let example = |(context, endings, label): (&str, [&str; 4], usize)| Example {
        context: tokenizer.encode(context).unwrap(),
        endings: endings.map(|ending| tokenizer.encode(format!(" {ending}")).unwrap()),
        label,
    };
    TEXTS.map(example).into()
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    #[track_caller]
    fn refused(&self, name: &str, bytes: &[u8], part: &str) {
        let error = read(&self.put(name, bytes), &Tokenizer::Gpt2, 9).expect_err(part);
        let Error::Data(fault) = &error else { panic!("{error:?}") };
        let text = error.to_string();
        assert!(fault.place.contains(name) && text.contains(part) && !text.contains('\n'), "{fault:?}");
    }
}

fn lines() -> String {
    let line = |(context, endings, label): (&str, [&str; 4], usize)| {
        serde_json::json!({ "ind": 4, "ctx": context, "endings": endings, "label": label }).to_string() + "\n"
    };
    TEXTS.map(line).concat()
}

/// Returns a file as llm.c's dev/data/hellaswag.py writes it.
fn llmc() -> Vec<u8> {
    let mut body: Vec<u16> = Vec::new();
    for (i, example) in want(Tokenizer::Gpt2).iter().enumerate() {
        let mut words = vec![START, 0, i as u16, example.label as u16, 4];
        for tokens in [&example.context].into_iter().chain(&example.endings) {
            words.push(tokens.len() as u16);
            words.extend(tokens);
        }
        words[1] = 2 * words.len() as u16;
        body.extend(words);
    }
    let mut header = [0_i32; 256];
    header[..4].copy_from_slice(&[MAGIC, 1, TEXTS.len() as i32, 200]);
    [header.map(i32::to_le_bytes).concat(), body.into_iter().flat_map(u16::to_le_bytes).collect()].concat()
}

/// Returns a file with the columns of the hub's file, with labels as text.
fn parquet() -> Vec<u8> {
    packed_parquet(parquet::basic::Compression::SNAPPY)
}

fn packed_parquet(compression: parquet::basic::Compression) -> Vec<u8> {
    let schema = "message schema {
        optional int32 ind; optional binary ctx (UTF8);
        optional group endings (LIST) { repeated group list { optional binary element (UTF8); } }
        optional binary label (UTF8);
    }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for name in ["ind", "ctx", "endings", "label"] {
        let mut column = group.next_column().unwrap().unwrap();
        if name == "ind" {
            column.typed::<parquet::data_type::Int32Type>().write_batch(&[1, 2, 3], Some(&[1; 3]), None).unwrap();
            column.close().unwrap();
            continue;
        }
        let texts: Vec<ByteArray> = match name {
            "ctx" => TEXTS.iter().map(|t| t.0.into()).collect(),
            "endings" => TEXTS.iter().flat_map(|t| t.1).map(ByteArray::from).collect(),
            _ => TEXTS.iter().map(|t| t.2.to_string().as_str().into()).collect(),
        };
        let column_writer = column.typed::<ByteArrayType>();
        if name == "endings" {
            column_writer.write_batch(&texts, Some(&[3; 12]), Some(&[0, 1, 1, 1].repeat(3))).unwrap();
        } else {
            column_writer.write_batch(&texts, Some(&[1; 3]), None).unwrap();
        }
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    out
}

#[test]
fn every_packing_of_parquet_is_read() {
    use parquet::basic::Compression;
    let files = Files::new();
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::GZIP(Default::default()),
        Compression::BROTLI(Default::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(Default::default()),
    ] {
        let path = files.put("h.parquet", &packed_parquet(compression));
        let set = read(&path, &Tokenizer::Gpt2, usize::MAX).unwrap();
        assert_eq!(set.examples, want(Tokenizer::Gpt2), "{compression}");
    }
}

#[test]
fn all_three_layouts_say_the_same() {
    let files = Files::new();
    let lines = files.put("h.jsonl", lines().as_bytes());
    for path in [files.put("h.bin", &llmc()), lines.clone(), files.put("h.parquet", &parquet())] {
        assert_eq!(
            read(&path, &Tokenizer::Gpt2, usize::MAX).unwrap().examples,
            want(Tokenizer::Gpt2),
            "{}",
            path.display()
        );
        assert_eq!(read(&path, &Tokenizer::Gpt2, 2).unwrap().examples, want(Tokenizer::Gpt2)[..2]);
    }
    assert_eq!(read(&lines, &Tokenizer::Bytes, 9).unwrap().examples, want(Tokenizer::Bytes));
    assert!(matches!(read(&files.put("b.bin", &llmc()), &Tokenizer::Bytes, 9), Err(Error::Usage(_))));
}

#[test]
fn invalid_utf8_is_replaced_and_counted() {
    let files = Files::new();
    let line = b"\n{\"ctx\": \"a\xff\", \"endings\": [\"\xc3\", \"b\", \"c\", \"d\"], \"label\": \"1\"}\n\n";
    let set = read(&files.put("h.jsonl", line), &Tokenizer::Gpt2, 9).unwrap();
    assert_eq!((set.replaced, set.examples.len()), (2, 1));
    assert_eq!(set.examples[0].context, Tokenizer::Gpt2.encode("a\u{fffd}").unwrap());
}

#[test]
fn broken_lines() {
    let files = Files::new();
    for (line, part) in [
        ("", "no example in it"),
        ("\n\n", "no example in it"),
        ("{", "line 1: broken JSON"),
        ("[1]", "line 1: no `ctx`"),
        (r#"{"ctx": 1}"#, "line 1: no `ctx`"),
        (r#"{"ctx": "a", "endings": ["a", 2]}"#, "line 1: no `endings`"),
        (r#"{"ctx": "a", "endings": ["a", "b", "c", "d"]}"#, "line 1: no `label`"),
        (r#"{"ctx": "a", "endings": ["a", "b", "c"], "label": 0}"#, "example 1: 3 endings, expected 4"),
        (r#"{"ctx": "a", "endings": ["a", "b", "c", "d"], "label": 4}"#, "no label from 0 to 3"),
        (r#"{"ctx": "a", "endings": ["a", "b", "c", "d"], "label": ""}"#, "no label from 0 to 3"),
        (r#"{"ctx": "", "endings": ["a", "b", "c", "d"], "label": 1}"#, "an empty context"),
    ] {
        files.refused("h.jsonl", line.as_bytes(), part);
    }
    files.refused("h.jsonl", &vec![b'x'; LINE_BYTES as usize + 5], "line 1 has more than");
    assert_eq!(read(&files.0.path().join("none"), &Tokenizer::Gpt2, 1).unwrap_err().exit_code(), 3);
}

#[test]
fn broken_files_of_llmc() {
    let (files, whole) = (Files::new(), llmc());
    for length in [4, 1023] {
        files.refused("h.bin", &whole[..length], "header is cut short");
    }
    files.refused("h.bin", b"ab", "header is cut short");
    for length in [1024, 1026, 1100, whole.len() - 2] {
        files.refused("h.bin", &whole[..length], "is cut short, expected");
    }
    files.refused("h.bin", &whole[..whole.len() - 1], "in whole words");
    files.refused("h.bin", &[whole.as_slice(), &[0, 0]].concat(), "2 bytes follow the last of 3 examples");
    let with = |at: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    files.refused("h.bin", &with(0, &[1]), "magic is");
    files.refused("h.bin", &with(4, &[2]), "version is 2");
    files.refused("h.bin", &with(8, &i32::MAX.to_le_bytes()), "example 4: is cut short");
    files.refused("h.bin", &with(8, &(-1_i32).to_le_bytes()), "-1 examples");
    files.refused("h.bin", &with(1024, &[0]), "example 1: begins with 65280");
    files.refused("h.bin", &with(1026, &[7]), "by its own count");
    files.refused("h.bin", &with(1030, &[4]), "label 4 of 4 endings");
    files.refused("h.bin", &with(1032, &[5]), "of 5 endings");
    files.refused("h.bin", &with(1034, &[0, 0]), "no tokens");
    files.refused("h.bin", &with(1036, &[0xff, 0xff]), "token 65535, expected below 50257");
}

/// A flipped bit leads to an error or to other text, never to a panic.
#[test]
fn flipped_bits() {
    let files = Files::new();
    for whole in [llmc(), lines().into_bytes()] {
        for bit in (0..8 * whole.len()).step_by(37) {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Err(error) = read(&files.put("h", &bytes), &Tokenizer::Gpt2, 9) {
                assert_eq!(error.exit_code(), 3, "{error}");
            }
        }
    }
}

#[test]
fn broken_parquet() {
    let (files, whole) = (Files::new(), parquet());
    for length in [5, 8, 100, whole.len() - 1] {
        files.refused("h.parquet", &whole[..length], "not a whole Parquet file");
    }
    for bit in (0..8 * whole.len()).step_by(41) {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Err(error) = read(&files.put("h.parquet", &bytes), &Tokenizer::Gpt2, 9) {
            assert_eq!(error.exit_code(), 3, "{error}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
    let schema = Arc::new(parse_message_type("message schema { required binary text (UTF8); }").unwrap());
    let mut other = Vec::new();
    SerializedFileWriter::new(&mut other, schema, Arc::default()).unwrap().close().unwrap();
    files.refused("h.parquet", &other, "no column `ctx`, expected ctx, endings and label, got text");
}
