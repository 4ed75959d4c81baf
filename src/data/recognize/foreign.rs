//! Kinds of files that are refused, each with what to do.

use std::fmt;

use super::encoding::{self, Encoding};
use crate::data::tokens;
use crate::data::unpack::Packing;
use crate::error::{Error, Fault};

/// A kind of file that cannot be read as data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Foreign {
    /// The kind, as in "is a zip archive".
    pub what: &'static str,
    /// An action that helps.
    pub advice: &'static str,
    /// The packing around it.
    pub packing: Packing,
}

/// What can be read, for errors.
pub(crate) const READABLE: &str = "text, JSON Lines or Parquet";

const fn kind(what: &'static str, advice: &'static str) -> Foreign {
    Foreign { what, advice, packing: Packing::Plain }
}

pub(super) const EMPTY: Foreign = kind("empty, though its name says otherwise", "was it copied whole?");
pub(super) const NO_PARQUET: Foreign =
    kind("no Parquet, though its name says so", "was it downloaded whole? if it is text, name it .txt");
pub(super) const PACKED_PARQUET: Foreign = kind("Parquet", "try unpacking it first");
pub(super) const PACKED_TWICE: Foreign = kind("packed a second time", "try unpacking it once");
pub(super) const TABLE: Foreign = kind(
    "a table of comma- or tab-separated values",
    "try Python's pandas.read_csv(FILE).to_parquet(\"FILE.parquet\"), with sep=\"\\t\" for tabs",
);
pub(super) const JSON_ARRAY: Foreign =
    kind("one JSON array, not one object a line", "try `jq -c '.[]' FILE > FILE.jsonl`");
pub(super) const JSON_SPREAD: Foreign =
    kind("JSON with objects over several lines, not one a line", "try `jq -c . FILE > FILE.jsonl`");

const UNZIP: Foreign = kind("a zip archive", "try unpacking it and preparing the folder");
const TAR: Foreign = kind("a tar archive", "try `tar -xf FILE -C DIR` and the folder DIR");
const ARCHIVE: Foreign = kind("an archive", "try unpacking it and preparing the folder");
const OTHER_PACKING: Foreign =
    kind("packed in a way that is not read", "try unpacking it, or packing it with gzip, zstd, xz or bzip2");
const LZ4: Foreign = kind("packed by lz4", "try `lz4 -d FILE`, or packing it with gzip, zstd, xz or bzip2");
const ARROW: Foreign = kind(
    "an Arrow file, as the `datasets` library saves",
    "try Python's datasets.load_from_disk(DIR).to_parquet(FILE), and the Parquet file",
);
const TABLES: Foreign = kind("a table that is not read", "try writing it as Parquet or JSON Lines");
const DATABASE: Foreign = kind("a database", "try writing its texts as Parquet or JSON Lines");
const NUMPY: Foreign = kind(
    "a NumPy array",
    "if it holds token ids: wgpt train --data FILE --data-format npy; else write its texts as JSON Lines",
);
const DOCUMENT: Foreign = kind("a document for reading or printing", "try saving its text as .txt in UTF-8");
const MEDIA: Foreign = kind("an image, sound or film", "try files of text");
const PICKLE: Foreign = kind("a pickle of Python or PyTorch", "try writing its texts as JSON Lines in Python");
const PROGRAM: Foreign = kind("a program", "try files of text");
const WEIGHTS: Foreign = kind("a model's weights", "try files of text; weights go to --init, --from or `wgpt convert`");
const SHARD: Foreign = kind("a token shard", "it is prepared already: wgpt train --data FILE");
const LLMC: Foreign =
    kind("a file of llm.c that holds no text", "try files of text; its HellaSwag goes to `wgpt eval --hellaswag`");
const MEGATRON: Foreign = kind("an index of Megatron's token files", "try the texts that it was made from");
const ENCRYPTED: Foreign = kind("encrypted Parquet", "try writing it without encryption");
const LFS: Foreign = kind("a Git LFS pointer, the file itself is not here", "try `git lfs pull`");
pub(super) const BINARY: Foreign = kind(
    "binary data",
    "if it holds token ids without a header, as nanoGPT's train.bin: wgpt train --data FILE --data-format u16",
);
const UTF16: Foreign = kind("text in UTF-16", "try `iconv -f UTF-16 -t UTF-8 FILE > NEW.txt`");
const UTF32: Foreign = kind("text in UTF-32", "try `iconv -f UTF-32 -t UTF-8 FILE > NEW.txt`");
const OTHER_ENCODING: Foreign = kind("mostly not UTF-8", "if it is text: `iconv -f ENCODING -t UTF-8 FILE > NEW.txt`");

/// First bytes that no text has.
const BYTES: [(usize, &[u8], Foreign); 47] = [
    (0, b"PK\x03\x04", UNZIP),
    (0, b"PK\x05\x06", UNZIP),
    (0, b"PK\x07\x08", UNZIP),
    (0, b"7z\xbc\xaf\x27\x1c", ARCHIVE),
    (0, b"Rar!\x1a\x07", ARCHIVE),
    (257, b"ustar", TAR),
    (0, b"\x04\x22\x4d\x18", LZ4),
    (0, b"\x02\x21\x4c\x18", LZ4),
    (0, b"LZIP\x01", OTHER_PACKING),
    (0, b"\x89LZO", OTHER_PACKING),
    (0, b"\x1f\x9d", OTHER_PACKING),
    (0, b"\x1f\xa0", OTHER_PACKING),
    (0, b"\x5d\x00\x00", OTHER_PACKING),
    (0, b"\xff\x06\x00\x00sNaPpY", OTHER_PACKING),
    (0, b"ARROW1\0\0", ARROW),
    (0, b"\xff\xff\xff\xff", ARROW),
    (0, b"PARE", ENCRYPTED),
    (0, b"\x93NUMPY", NUMPY),
    (0, b"Obj\x01", TABLES),
    (0, b"SQLite format 3\0", DATABASE),
    (0, b"\x89HDF\r\n\x1a\n", TABLES),
    (0, b"%PDF-", DOCUMENT),
    (0, b"{\\rtf", DOCUMENT),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", DOCUMENT),
    (0, b"\x89PNG\r\n\x1a\n", MEDIA),
    (0, b"\xff\xd8\xff", MEDIA),
    (0, b"II*\0", MEDIA),
    (0, b"MM\0*", MEDIA),
    (0, b"\x1a\x45\xdf\xa3", MEDIA),
    (0, b"\x80\x02", PICKLE),
    (0, b"\x80\x03", PICKLE),
    (0, b"\x80\x04", PICKLE),
    (0, b"\x80\x05", PICKLE),
    (0, b"\x7fELF", PROGRAM),
    (0, b"\xcf\xfa\xed\xfe", PROGRAM),
    (0, b"\xca\xfe\xba\xbe", PROGRAM),
    (0, b"\0asm", PROGRAM),
    (0, b"MMIDIDX\0", MEGATRON),
    (0, &20_240_326_i32.to_le_bytes(), WEIGHTS),
    (0, &20_240_327_i32.to_le_bytes(), LLMC),
    (0, &20_240_328_i32.to_le_bytes(), LLMC),
    (0, &tokens::MAGIC.to_le_bytes(), SHARD),
    (0, &20_240_522_i32.to_le_bytes(), LLMC),
    (0, &20_240_527_i32.to_le_bytes(), LLMC),
    (0, &20_240_801_i32.to_le_bytes(), LLMC),
    (0, b"version https://git-lfs.github.com/spec/", LFS),
    (0, b"version https://hawser.github.com/spec/", LFS),
];

/// First bytes that a text may have too: the file is of this kind if a NUL follows.
const LETTERS: [(usize, &[u8], Foreign); 12] = [
    (0, b"GGUF", WEIGHTS),
    (0, b"FEA1", ARROW),
    (0, b"ORC", TABLES),
    (0, b"GIF8", MEDIA),
    (0, b"BM", MEDIA),
    (0, b"RIFF", MEDIA),
    (0, b"OggS", MEDIA),
    (0, b"fLaC", MEDIA),
    (0, b"ID3", MEDIA),
    (4, b"ftyp", MEDIA),
    (0, b"MZ", PROGRAM),
    (8, b"{\"", WEIGHTS),
];

/// Tells the kind of a file that cannot be read, by its first bytes. `is_whole` says that it ends with them.
pub(super) fn of(head: &[u8], is_whole: bool) -> Option<Foreign> {
    let begins = |(at, bytes, _): &&(usize, &[u8], Foreign)| head.get(*at..).is_some_and(|b| b.starts_with(bytes));
    let known = BYTES.iter().find(begins).map(|(_, _, kind)| *kind);
    let encoding = encoding::of(head, is_whole);
    let known = known.or_else(|| is_old_tar(head).then_some(TAR)).or_else(|| {
        let is_binary = encoding != Encoding::Utf16 && head.contains(&0);
        LETTERS.iter().filter(|_| is_binary).find(begins).map(|(_, _, kind)| *kind)
    });
    known.or(match encoding {
        Encoding::Utf8 => None,
        Encoding::Utf16 => Some(UTF16),
        Encoding::Utf32 => Some(UTF32),
        Encoding::Other => Some(OTHER_ENCODING),
        Encoding::Binary => Some(BINARY),
    })
}

/// Returns true for a tar archive of before 1988, which has no first bytes of its own, but a checksum.
fn is_old_tar(head: &[u8]) -> bool {
    let Some(header) = head.get(..512) else { return false };
    let digits = header[148..156].iter().filter(|byte| byte.is_ascii_digit());
    let noted = digits.fold(0_u32, |sum, digit| (8 * sum).saturating_add(u32::from(digit - b'0')));
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    header[0] != 0 && header[500..].iter().all(|&byte| byte == 0) && noted == sum(header) - sum(&header[148..156]) + 256
}

impl Foreign {
    /// Returns the error for a file of this kind.
    #[must_use]
    pub fn refused(self, name: &str) -> Error {
        Error::data(Fault::at(name, format!("is {self}")).expected(READABLE).advice(self.advice))
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.packing {
            Packing::Plain => f.write_str(self.what),
            packing => write!(f, "{} inside of {}", self.what, packing.name()),
        }
    }
}
