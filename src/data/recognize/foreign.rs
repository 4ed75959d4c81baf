//! Unsupported kinds of files, with advice for each.

use std::fmt;

use super::encoding::{self, Encoding};
use crate::data::unpack::Packing;
use crate::error::{Error, Fault};
use crate::files::kind::{Kind, LLMC_SHARD, LLMC_WEIGHTS};

/// A kind of file that cannot be read as data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Foreign {
    /// The kind, as in "is a zip archive".
    pub what: &'static str,
    /// An action that helps.
    pub advice: &'static str,
    /// The packing of the file.
    pub packing: Packing,
}

/// The supported kinds, for errors.
pub(crate) const READABLE: &str = "text, JSON Lines or Parquet";

const fn kind(what: &'static str, advice: &'static str) -> Foreign {
    Foreign { what, advice, packing: Packing::Plain }
}

pub(super) const EMPTY: Foreign = kind("empty, though its name says otherwise", "was it copied whole?");
pub(super) const NO_PARQUET: Foreign =
    kind("not Parquet, though its name says so", "was it downloaded whole? if it is text, rename it to .txt");
pub(super) const PACKED_PARQUET: Foreign = kind("Parquet", "try unpacking it first");
pub(super) const PACKED_TWICE: Foreign = kind("packed a second time", "try unpacking it once");
pub(super) const TABLE: Foreign = kind(
    "a table of comma- or tab-separated values",
    "try Python's pandas.read_csv(FILE).to_parquet(\"FILE.parquet\"), with sep=\"\\t\" for tabs",
);
pub(super) const JSON_ARRAY: Foreign =
    kind("one JSON array, not one object per line", "try `jq -c '.[]' FILE > FILE.jsonl`");
pub(super) const JSON_SPREAD: Foreign =
    kind("JSON with objects over several lines, not one per line", "try `jq -c . FILE > FILE.jsonl`");

const UNZIP: Foreign = kind("a zip archive", "try unpacking it and preparing the folder");
const TAR: Foreign = kind("a tar archive", "try `tar -xf FILE -C DIR` and the folder DIR");
const ARCHIVE: Foreign = kind("an archive", "try unpacking it and preparing the folder");
const OTHER_PACKING: Foreign =
    kind("packed in an unsupported format", "try unpacking it, or packing it with gzip, zstd, xz or bzip2");
const LZ4: Foreign = kind("packed by lz4", "try `lz4 -d FILE`, or packing it with gzip, zstd, xz or bzip2");
const ARROW: Foreign = kind(
    "an Arrow file, as the `datasets` library saves",
    "try Python's datasets.load_from_disk(DIR).to_parquet(FILE), and the Parquet file",
);
const TABLES: Foreign = kind("a table in an unsupported format", "try writing it as Parquet or JSON Lines");
const DATABASE: Foreign = kind("a database", "try writing its texts as Parquet or JSON Lines");
const NUMPY: Foreign = kind(
    "a NumPy array",
    "if it contains token ids: wgpt train --data FILE --data-format npy; else write its texts as JSON Lines",
);
const DOCUMENT: Foreign = kind("a document for reading or printing", "try saving its text as .txt in UTF-8");
const MEDIA: Foreign = kind("an image, sound or video", "try text files");
const PICKLE: Foreign = kind("a pickle of Python or PyTorch", "try writing its texts as JSON Lines in Python");
const PROGRAM: Foreign = kind("a program", "try text files");
const WEIGHTS: Foreign = kind("a model's weights", "try text files; weights go to --init, --from or `wgpt convert`");
const SHARD: Foreign = kind("a token shard", "it is prepared already: wgpt train --data FILE");
const LLMC: Foreign =
    kind("a file of llm.c without text", "try text files; llm.c's HellaSwag goes to `wgpt eval --hellaswag`");
const MEGATRON: Foreign = kind("an index of Megatron's token files", "try the texts that it was made from");
const ENCRYPTED: Foreign = kind("encrypted Parquet", "try writing it without encryption");
const LFS: Foreign = kind("a Git LFS pointer in place of the file", "try `git lfs pull`");
pub(super) const BINARY: Foreign = kind(
    "binary data",
    "if it contains token ids without a header, like nanoGPT's train.bin: wgpt train --data FILE --data-format u16",
);
const UTF16: Foreign = kind("text in UTF-16", "try `iconv -f UTF-16 -t UTF-8 FILE > NEW.txt`");
const UTF32: Foreign = kind("text in UTF-32", "try `iconv -f UTF-32 -t UTF-8 FILE > NEW.txt`");
const OTHER_ENCODING: Foreign = kind("mostly not UTF-8", "if it is text: `iconv -f ENCODING -t UTF-8 FILE > NEW.txt`");

/// Returns the description of an unsupported kind; `None` for supported kinds.
fn of_kind(kind: Kind) -> Option<Foreign> {
    Some(match kind {
        Kind::Zip => UNZIP,
        Kind::SevenZip | Kind::Rar => ARCHIVE,
        Kind::Tar => TAR,
        Kind::Lz4 => LZ4,
        Kind::Packed => OTHER_PACKING,
        Kind::EncryptedParquet => ENCRYPTED,
        Kind::Arrow => ARROW,
        Kind::Npy => NUMPY,
        Kind::Avro | Kind::Orc | Kind::Hdf5 => TABLES,
        Kind::Sqlite => DATABASE,
        Kind::Document => DOCUMENT,
        Kind::Media => MEDIA,
        Kind::Pickle => PICKLE,
        Kind::Program => PROGRAM,
        Kind::Gguf | Kind::Safetensors | Kind::Llmc(LLMC_WEIGHTS) => WEIGHTS,
        Kind::Megatron => MEGATRON,
        Kind::Llmc(LLMC_SHARD) => SHARD,
        Kind::Llmc(_) => LLMC,
        Kind::LfsPointer => LFS,
        Kind::Gzip | Kind::Zstd | Kind::Xz | Kind::Bzip2 | Kind::Parquet => return None,
    })
}

/// First bytes that a text may also have: a file is of this kind only if it contains a NUL. Each entry has the bytes'
/// offset.
const LETTERS: [(usize, &[u8], Foreign); 10] = [
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
];

/// Returns the unsupported kind of a file by its first bytes, if it is one. `is_whole` means that the file ends with
/// them.
pub(super) fn of(head: &[u8], is_whole: bool) -> Option<Foreign> {
    let begins = |(at, bytes, _): &&(usize, &[u8], Foreign)| head.get(*at..).is_some_and(|b| b.starts_with(bytes));
    // a text may begin with these letters, but has no NUL
    let known = Kind::of(head).filter(|kind| *kind != Kind::Gguf || head.contains(&0)).and_then(of_kind);
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

/// Returns whether a file is a tar archive from before 1988, which has a checksum but no magic.
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
            packing => write!(f, "{} inside {}", self.what, packing.name()),
        }
    }
}
