//! What a file is, by its first bytes, and what to do with it where tokens are expected.

use std::path::Path;

use super::npy;
use super::token_format::TokenFormat;
use super::tokens::MAGIC;
use crate::error::Fault;

/// Bytes that are looked at.
pub(super) const START_BYTES: usize = 4096;

/// Text that is shorter may be ids by chance.
const SURE_TEXT_BYTES: usize = 64;
/// Pairs of 16 bits of which the second is always zero: fewer may be so by chance.
const SURE_PAIRS: usize = 32;
/// GPT-2's ids are below this, the vocabulary that nanoGPT pads it to.
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
    /// A pointer of Git LFS in the place of the file.
    LfsPointer,
    /// A packed file, with the program that unpacks it.
    Packed(&'static str, &'static str),
    /// A table or text, which `wgpt data prepare` reads.
    Corpus(&'static str),
    /// Arrow, as Hugging Face's `datasets` stores it.
    Arrow,
    /// Something else with a name.
    Other(&'static str),
    /// Text; certain if there is enough of it.
    Text(bool),
    /// 32-bit numbers below 65,536, by all that is seen.
    Wide,
    /// 16-bit numbers that may be GPT-2's ids, up to this one.
    Ids(u16),
    /// Anything.
    Unknown,
}

/// Kinds that the first bytes tell.
const MAGICS: [(&[u8], Kind); 17] = [
    (npy::MAGIC, Kind::Npy),
    (b"version https://git-lfs", Kind::LfsPointer),
    (b"PK\x03\x04", Kind::Packed("a zip archive", "unzip")),
    (b"PK\x05\x06", Kind::Packed("a zip archive", "unzip")),
    (b"\x28\xb5\x2f\xfd", Kind::Packed("packed with zstd", "zstd -d")),
    (b"\xfd7zXZ\0", Kind::Packed("packed with xz", "unxz")),
    (b"\x04\x22\x4d\x18", Kind::Packed("packed with lz4", "lz4 -d")),
    (b"7z\xbc\xaf\x27\x1c", Kind::Packed("a 7z archive", "7z x")),
    (b"PAR1", Kind::Corpus("a Parquet file")),
    (b"ARROW1\0\0", Kind::Arrow),
    (b"\x89HDF\r\n\x1a\n", Kind::Other("an HDF5 file")),
    (b"GGUF", Kind::Other("GGUF weights")),
    (b"SQLite format 3\0", Kind::Other("an SQLite database")),
    (b"\x7fELF", Kind::Other("a program")),
    (b"%PDF-", Kind::Other("a PDF")),
    (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20", Kind::Other("a pickle of PyTorch")),
    (b"Obj\x01", Kind::Corpus("an Avro file")),
];

impl Kind {
    /// Returns the kind of a file of `size` bytes that begins with `start`.
    pub(super) fn of(start: &[u8], size: u64) -> Self {
        let word: Option<[u8; 4]> = start.first_chunk().copied();
        match word.map(i32::from_le_bytes) {
            Some(MAGIC) => return Self::Shard,
            Some(magic) if hint_of_magic(magic).is_some() => return Self::Llmc(magic),
            _ => {}
        }
        if word.map(i32::from_be_bytes) == Some(MAGIC) {
            return Self::Other("a token shard of a big-endian machine");
        }
        if let Some((_, kind)) = MAGICS.iter().find(|(magic, _)| start.starts_with(magic)) {
            return *kind;
        }
        if let Some(kind) = container(start, size) {
            return kind;
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

    /// True if the file can hold no ids without a header.
    pub(super) fn is_certain(self) -> bool {
        !matches!(self, Self::Wide | Self::Ids(_) | Self::Unknown | Self::Text(false))
    }

    /// Returns the fault of a file of this kind, which begins with `start`, in the place of one of `format`.
    pub(super) fn fault(self, path: &Path, start: &[u8], format: TokenFormat) -> Fault {
        let shard = format == TokenFormat::Shard;
        let magic = start.first_chunk().map(|word| i32::from_le_bytes(*word));
        let expected = match format {
            TokenFormat::Shard => "a token shard",
            TokenFormat::U16 => "16-bit ids without a header",
            TokenFormat::U32 => "32-bit ids without a header",
            TokenFormat::Npy => "a NumPy array",
        };
        let file = path.display();
        let prepare = format!("`wgpt data prepare '{file}' --out DIR`");
        let (found, advice) = match self {
            Self::Llmc(magic) if shard => {
                let fault = Fault::from("bad magic").expected(MAGIC).found(magic);
                return fault.advice(hint_of_magic(magic).unwrap_or_default());
            }
            Self::Shard => ("a token shard".to_owned(), "leave out --data-format".to_owned()),
            Self::Llmc(magic) => {
                ("another file of llm.c".to_owned(), hint_of_magic(magic).unwrap_or_default().to_owned())
            }
            Self::Npy => ("a NumPy array".to_owned(), "try --data-format npy".to_owned()),
            Self::LfsPointer => ("a pointer of Git LFS".to_owned(), "try `git lfs pull`".to_owned()),
            Self::Packed(what, program) => {
                (what.to_owned(), format!("unpack it first (`{program}`); for text try `wgpt data prepare`"))
            }
            Self::Corpus(what) => (what.to_owned(), format!("try {prepare}")),
            Self::Arrow => ("an Arrow file of Hugging Face's datasets".to_owned(), ARROW_ADVICE.to_owned()),
            Self::Other(what) => (what.to_owned(), String::new()),
            Self::Text(_) => ("text".to_owned(), format!("to train on text: --text '{file}', or {prepare}")),
            Self::Wide => ("what looks like 32-bit ids".to_owned(), "try --data-format u32".to_owned()),
            Self::Ids(highest) => {
                let advice = "if these are ids without a header, as nanoGPT's: --data-format u16";
                (format!("no header, and 16-bit numbers up to {highest} at the start"), advice.to_owned())
            }
            Self::Unknown if shard => {
                let fault = Fault::from("bad magic").expected(MAGIC);
                let fault = if let Some(magic) = magic { fault.found(magic) } else { fault.found("less than a word") };
                return fault.advice("was it made by `wgpt data prepare`?");
            }
            Self::Unknown => ("bytes of no known kind".to_owned(), String::new()),
        };
        Fault::from("wrong kind of file").expected(expected).found(found).advice(advice)
    }
}

/// What to do with a data set of Hugging Face's `datasets`.
pub(super) const ARROW_ADVICE: &str =
    "try in Python `datasets.load_from_disk(DIR).to_parquet(FILE)`, then `wgpt data prepare FILE --out DIR`";

/// Kinds that several fields tell.
fn container(start: &[u8], size: u64) -> Option<Kind> {
    let long = |at: usize| {
        let bytes = start.get(at..at + 8)?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    };
    let within = |n: u64| n > 0 && n < size;
    match start {
        [0x1f, 0x8b, 8, flags, _, _, _, _, 0 | 2 | 4, 0..=13 | 255, ..] if flags & 0xe0 == 0 => {
            Some(Kind::Packed("packed with gzip", "gunzip"))
        }
        [b'B', b'Z', b'h', b'1'..=b'9', rest @ ..]
            if rest.starts_with(b"\x31\x41\x59\x26\x53\x59") || rest.starts_with(b"\x17\x72\x45\x38\x50\x90") =>
        {
            Some(Kind::Packed("packed with bzip2", "bunzip2"))
        }
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Kind::Packed("packed with zstd", "zstd -d")),
        // a stream of Arrow: a mark, the length of its schema, a table of flatbuffers
        [0xff, 0xff, 0xff, 0xff, a, b, c, d, ..] => {
            let length = u32::from_le_bytes([*a, *b, *c, *d]);
            (length.is_multiple_of(8) && within(length.into())).then_some(Kind::Arrow)
        }
        [0x80, 4 | 5, 0x95, ..] if long(3).is_some_and(within) => Some(Kind::Other("a pickle of Python")),
        [_, _, _, _, _, _, _, _, b'{', b'"', ..] if long(0).is_some_and(within) => {
            Some(Kind::Other("safetensors weights"))
        }
        _ if start.get(257..262) == Some(b"ustar") => Some(Kind::Packed("a tar archive", "tar -xf")),
        _ => None,
    }
}

/// True for bytes that somebody wrote to be read: no control characters, and UTF-8 or mostly ASCII.
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

/// Tells numbers of 16 bits from those of 32.
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

/// Says what a file of llm.c with another magic is.
fn hint_of_magic(magic: i32) -> Option<&'static str> {
    Some(match magic {
        20_240_326 => "these are llm.c weights; try `wgpt convert`",
        20_240_327 => "this is llm.c's debug state",
        20_240_328 => "this is llm.c's tokenizer",
        20_240_522 => "this is llm.c's HellaSwag; try `wgpt eval`",
        20_240_527 => "this is llm.c's optimizer state",
        20_240_801 => "these are tokens of Llama 3, 32 bits each",
        _ => return None,
    })
}
