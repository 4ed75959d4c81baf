//! Files that tests make.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use wgpt::data::TokenSource;
use wgpt::random::Mt19937;

/// English enough: words of a fixed list, sentences, paragraphs, numbers.
pub fn prose(seed: u32, bytes: usize) -> String {
    const WORDS: [&str; 24] = [
        "the",
        "of",
        "and",
        "a",
        "in",
        "to",
        "model",
        "learns",
        "that",
        "is",
        "was",
        "from",
        "language",
        "it's",
        "training",
        "on",
        "data",
        "we",
        "they'll",
        "science",
        "naïve",
        "Tokenizer",
        "house",
        "under",
    ];
    let mut rng = Mt19937::new(seed);
    let mut text = String::with_capacity(bytes + 20);
    while text.len() < bytes {
        match rng.next_u32() % 40 {
            0 => text += ".\n\n",
            1..=3 => text += ". ",
            4 => text += &format!(" {}", rng.next_u32() % 3000),
            5 => text += ", ",
            n => {
                text.push(' ');
                text += WORDS[(rng.next_u32().wrapping_add(n) % 24) as usize];
            }
        }
    }
    text
}

/// Characters of every kind.
pub fn unicode(seed: u32, chars: usize) -> String {
    let mut rng = Mt19937::new(seed);
    let ranges: [(u32, u32); 14] = [
        (0x20, 0x7f),
        (0x20, 0x7f),
        (0x9, 0xe),
        (0x20, 0x21),
        (0xa0, 0x180),
        (0x300, 0x370),
        (0x370, 0x600),
        (0x900, 0xa00),
        (0x2000, 0x2070),
        (0x2150, 0x2190),
        (0x3000, 0x3100),
        (0x4e00, 0x5000),
        (0x1f300, 0x1f700),
        (0, 0x11_0000),
    ];
    let mut text = String::new();
    while chars > 0 && text.chars().count() < chars {
        for _ in 0..chars.min(1000) {
            let (low, high) = ranges[rng.next_u32() as usize % ranges.len()];
            let run = if rng.next_u32().is_multiple_of(8) { rng.next_u32() % 6 } else { 1 };
            let c = char::from_u32(low + rng.next_u32() % (high - low)).unwrap_or('\u{fffd}');
            (0..run).for_each(|_| text.push(c));
        }
    }
    text
}

/// A Parquet file with an id and a text that may be null, in groups of rows.
pub fn parquet(path: &Path, groups: &[Vec<Option<String>>], compression: Compression, nullable: bool) {
    let kind = if nullable { "OPTIONAL" } else { "REQUIRED" };
    let schema = format!("message m {{ REQUIRED INT64 id; {kind} BYTE_ARRAY text (UTF8); }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let properties = WriterProperties::builder().set_compression(compression).set_data_page_size_limit(4096).build();
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    for rows in groups {
        let mut group = writer.next_row_group().unwrap();
        let mut ids = group.next_column().unwrap().unwrap();
        let numbers: Vec<i64> = (0..rows.len() as i64).collect();
        ids.typed::<Int64Type>().write_batch(&numbers, None, None).unwrap();
        ids.close().unwrap();
        let mut texts = group.next_column().unwrap().unwrap();
        let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.is_some())).collect();
        let values: Vec<ByteArray> = rows.iter().flatten().map(|t| ByteArray::from(t.as_str())).collect();
        texts.typed::<ByteArrayType>().write_batch(&values, nullable.then_some(&levels[..]), None).unwrap();
        texts.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

pub fn zstd() -> Compression {
    Compression::ZSTD(ZstdLevel::try_new(3).unwrap())
}

/// All tokens of the shards in a folder: validation, training.
pub fn tokens(folder: &Path) -> (Vec<u16>, Vec<u16>) {
    let mut both = (Vec::new(), Vec::new());
    for path in bins(folder) {
        let source = TokenSource::open(&path).unwrap();
        let mut ids = vec![0; source.len()];
        source.read(0, &mut ids).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.contains("_val_") { both.0.extend(ids) } else { both.1.extend(ids) }
    }
    both
}

/// The shards of a folder by name.
pub fn bins(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "bin"))
        .collect();
    paths.sort();
    paths
}

/// The program, with a limit on its address space where the system has one.
pub fn wgpt(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wgpt"));
    command.args(arguments).env_remove("RUST_LOG");
    command
}
