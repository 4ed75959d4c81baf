//! Kinds of files that users give as token files, recognised by their first bytes, with advice for each.

use std::path::Path;

use super::token_format::TokenFormat;
use super::tokens::MAGIC;
use crate::error::Fault;
use crate::files::kind::{self, LLMC_SHARD, LLMC_WEIGHTS};
use crate::files::shell;

/// Bytes at the start of a file that decide its kind.
pub(super) const START_BYTES: usize = 4096;

/// End of the fault of a file that looks like text instead of tokens. Such a fault has no advice: each command has its
/// own.
pub const LOOKS_LIKE_TEXT: &str = "(it looks like text)";

/// Least length of certain text in bytes: shorter text may be ids by chance.
const SURE_TEXT_BYTES: usize = 64;
/// Least number of 16-bit pairs whose second half is zero in certain 32-bit ids: fewer may occur by chance.
const SURE_PAIRS: usize = 32;
/// Bound of GPT-2's ids: the vocabulary size that nanoGPT pads to.
const USUAL_VOCAB: u16 = 50_304;

/// Kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// llm.c's token shard.
    Shard,
    /// Another file of llm.c, by its magic.
    Llmc(i32),
    /// A NumPy array.
    Npy,
    /// A pointer of Git LFS in place of the file.
    LfsPointer,
    /// A packed file: its name and the program that unpacks it.
    Packed(&'static str, &'static str),
    /// A table or JSON, which `wgpt data prepare` reads.
    Corpus(&'static str),
    /// Arrow, as Hugging Face's `datasets` stores it.
    Arrow,
    /// Another known kind, with its name.
    Other(&'static str),
    /// Text; true if it is long enough to be certain.
    Text(bool),
    /// 32-bit numbers that are all below 65,536 at the start of the file.
    Wide,
    /// 16-bit numbers that may be GPT-2's ids, with the highest at the start of the file.
    Ids(u16),
    /// No known kind.
    Unknown,
}

/// Programs that unpack files.
const UNPACK: [(kind::Kind, &str); 8] = [
    (kind::Kind::Zip, "unzip"),
    (kind::Kind::Zstd, "zstd -d"),
    (kind::Kind::Xz, "unxz"),
    (kind::Kind::Lz4, "lz4 -d"),
    (kind::Kind::Gzip, "gunzip"),
    (kind::Kind::Bzip2, "bunzip2"),
    (kind::Kind::SevenZip, "7z x"),
    (kind::Kind::Tar, "tar -xf"),
];

impl Kind {
    /// Returns the kind of a file of `size` bytes that begins with `start`.
    pub(super) fn of(start: &[u8], size: u64) -> Self {
        let word: Option<[u8; 4]> = start.first_chunk().copied();
        if word.map(i32::from_be_bytes) == Some(MAGIC) {
            return Self::Other("a token shard of a big-endian machine");
        }
        if let Some(known) = kind::Kind::sure(start, size) {
            return Self::of_known(known);
        }
        if is_text(start) {
            let text = String::from_utf8_lossy(start).trim_start().to_ascii_lowercase();
            return match text.chars().next() {
                Some('{' | '[') => Self::Corpus("JSON"),
                Some('<') if text.starts_with("<!doctype") || text.starts_with("<html") => Self::Other("a web page"),
                _ => Self::Text(start.len() >= SURE_TEXT_BYTES),
            };
        }
        numbers(start, size)
    }

    fn of_known(known: kind::Kind) -> Self {
        match known {
            kind::Kind::Llmc(LLMC_SHARD) => Self::Shard,
            kind::Kind::Llmc(word) => Self::Llmc(word),
            kind::Kind::Npy => Self::Npy,
            kind::Kind::LfsPointer => Self::LfsPointer,
            kind::Kind::Arrow => Self::Arrow,
            kind::Kind::Parquet | kind::Kind::Avro => Self::Corpus(known.name()),
            _ => match UNPACK.iter().find(|(packing, _)| *packing == known) {
                Some((_, program)) => Self::Packed(known.name(), program),
                None => Self::Other(known.name()),
            },
        }
    }

    /// Returns whether the file certainly does not contain ids without a header.
    pub(super) fn is_certain(self) -> bool {
        !matches!(self, Self::Wide | Self::Ids(_) | Self::Unknown | Self::Text(false))
    }

    /// Returns the fault of a file of this kind, which begins with `start`, where one of layout `format` is expected.
    pub(super) fn fault(self, path: &Path, start: &[u8], format: TokenFormat) -> Fault {
        let shard = format == TokenFormat::Shard;
        let magic = start.first_chunk().map(|word| i32::from_le_bytes(*word));
        let name = match format {
            TokenFormat::Shard => "a token shard",
            TokenFormat::U16 => "16-bit ids without a header",
            TokenFormat::U32 => "32-bit ids without a header",
            TokenFormat::Npy => "a NumPy array",
        };
        let expected = if shard { format!("{name} (magic {MAGIC})") } else { name.to_owned() };
        let prepare = format!("`wgpt data prepare {} --out DIR`", shell::quoted(path));
        let (found, advice) = match self {
            Self::Llmc(magic) if shard => {
                let fault = Fault::from("bad magic").expected(MAGIC).found(magic);
                return fault.advice(hint_of_magic(magic));
            }
            Self::Shard => ("a token shard".to_owned(), "leave out --data-format".to_owned()),
            Self::Llmc(magic) => ("another file of llm.c".to_owned(), hint_of_magic(magic)),
            Self::Npy => ("a NumPy array".to_owned(), "try --data-format npy".to_owned()),
            Self::LfsPointer => ("a pointer of Git LFS".to_owned(), "try `git lfs pull`".to_owned()),
            Self::Packed(what, program) => {
                (what.to_owned(), format!("unpack it first (`{program}`); for text try `wgpt data prepare`"))
            }
            Self::Corpus(what) => (what.to_owned(), format!("try {prepare}")),
            Self::Arrow => ("an Arrow file of Hugging Face's datasets".to_owned(), ARROW_ADVICE.to_owned()),
            Self::Other(what) => (what.to_owned(), String::new()),
            Self::Text(_) => return Fault::from(format!("not {name} {LOOKS_LIKE_TEXT}")),
            Self::Wide => ("a file that looks like 32-bit ids".to_owned(), "try --data-format u32".to_owned()),
            Self::Ids(highest) => {
                let advice = "if these are ids without a header, as nanoGPT writes: --data-format u16";
                (format!("no header, and 16-bit numbers up to {highest} at the start"), advice.to_owned())
            }
            Self::Unknown if shard => {
                let fault = Fault::from("bad magic").expected(MAGIC);
                let fault =
                    if let Some(magic) = magic { fault.found(magic) } else { fault.found("fewer than 4 bytes") };
                return fault.advice("was it made by `wgpt data prepare`?");
            }
            Self::Unknown => ("an unknown kind of file".to_owned(), String::new()),
        };
        Fault::from("wrong kind of file").expected(expected).found(found).advice(advice)
    }
}

/// Advice for a data set of Hugging Face's `datasets`.
pub(super) const ARROW_ADVICE: &str =
    "try in Python `datasets.load_from_disk(DIR).to_parquet(FILE)`, then `wgpt data prepare FILE --out DIR`";

/// Returns whether bytes look like text: no control characters, and UTF-8 or mostly ASCII.
fn is_text(start: &[u8]) -> bool {
    let control = |byte: &u8| *byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c | 0x1b) || *byte == 0x7f;
    if start.is_empty() || start.iter().any(control) {
        return false;
    }
    let ascii = start.iter().filter(|byte| byte.is_ascii()).count();
    // a character may be cut at the end
    let utf8 = std::str::from_utf8(start).map_or_else(|e| e.error_len().is_none(), |_| true);
    utf8 || ascii * 10 >= start.len() * 7
}

/// Distinguishes 16-bit numbers from 32-bit numbers.
fn numbers(start: &[u8], size: u64) -> Kind {
    if !size.is_multiple_of(2) {
        return Kind::Unknown;
    }
    let words: Vec<u16> = start.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let pairs = words.chunks_exact(2);
    let wide = size.is_multiple_of(4) && pairs.len() >= SURE_PAIRS;
    if wide && pairs.clone().all(|pair| pair[1] == 0) && pairs.clone().any(|pair| pair[0] != 0) {
        return Kind::Wide;
    }
    let highest = words.iter().copied().max().unwrap_or(u16::MAX);
    if highest < USUAL_VOCAB { Kind::Ids(highest) } else { Kind::Unknown }
}

/// Returns a hint about a file of llm.c with another magic: what it is, and which command reads it.
fn hint_of_magic(magic: i32) -> String {
    let name = kind::Kind::Llmc(magic).name();
    match magic {
        LLMC_WEIGHTS => format!("this is {name}; try `wgpt convert`"),
        20_240_522 => format!("this is {name}; try `wgpt eval --hellaswag`"),
        _ => format!("this is {name}"),
    }
}
