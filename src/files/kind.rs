//! Kinds of files, recognised by their first bytes.

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A zip archive. `torch.save` writes one too.
    Zip,
    /// An archive of 7-Zip.
    SevenZip,
    /// A RAR archive.
    Rar,
    /// A tar archive.
    Tar,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// xz.
    Xz,
    /// bzip2.
    Bzip2,
    /// lz4.
    Lz4,
    /// Another compression, which is not read.
    Packed,
    /// Parquet.
    Parquet,
    /// Parquet with an encrypted footer.
    EncryptedParquet,
    /// Arrow, a file or a stream, as Hugging Face's `datasets` saves it.
    Arrow,
    /// A NumPy array.
    Npy,
    /// An Avro file.
    Avro,
    /// An ORC file.
    Orc,
    /// An SQLite database.
    Sqlite,
    /// HDF5.
    Hdf5,
    /// PDF and other documents for reading or printing.
    Document,
    /// An image, sound or film.
    Media,
    /// A Python pickle.
    Pickle,
    /// An executable.
    Program,
    /// A GGUF model.
    Gguf,
    /// A model in safetensors.
    Safetensors,
    /// An index of Megatron's token files.
    Megatron,
    /// A file of llm.c, with its first word.
    Llmc(i32),
    /// A Git LFS pointer in place of a file.
    LfsPointer,
}

/// First word of llm.c's token shards.
pub const LLMC_SHARD: i32 = 20_240_520;
/// First word of llm.c's weights.
pub const LLMC_WEIGHTS: i32 = 20_240_326;

/// First words of llm.c's files, and the names of those files in messages.
pub const LLMC: [(i32, &str); 7] = [
    (LLMC_SHARD, "a token shard"),
    (LLMC_WEIGHTS, "llm.c's weights"),
    (20_240_327, "llm.c's debug state"),
    (20_240_328, "llm.c's tokenizer"),
    (20_240_522, "llm.c's HellaSwag"),
    (20_240_527, "llm.c's optimizer state"),
    (20_240_801, "tokens of Llama 3, 32 bits each"),
];

/// Byte sequences, with their offsets, with which a file of token ids without a header is very unlikely to begin.
const SURE: [(usize, &[u8], Kind); 34] = [
    (0, b"PK\x03\x04", Kind::Zip),
    (0, b"PK\x05\x06", Kind::Zip),
    (0, b"PK\x07\x08", Kind::Zip),
    (0, b"7z\xbc\xaf\x27\x1c", Kind::SevenZip),
    (0, b"Rar!\x1a\x07", Kind::Rar),
    (257, b"ustar", Kind::Tar),
    (0, b"\x28\xb5\x2f\xfd", Kind::Zstd),
    (0, b"\xfd7zXZ\0", Kind::Xz),
    (0, b"\x04\x22\x4d\x18", Kind::Lz4),
    (0, b"\x02\x21\x4c\x18", Kind::Lz4),
    (0, b"LZIP\x01", Kind::Packed),
    (0, b"\x89LZO", Kind::Packed),
    (0, b"\xff\x06\x00\x00sNaPpY", Kind::Packed),
    (0, b"PAR1", Kind::Parquet),
    (0, b"PARE", Kind::EncryptedParquet),
    (0, b"ARROW1\0\0", Kind::Arrow),
    (0, b"\x93NUMPY", Kind::Npy),
    (0, b"Obj\x01", Kind::Avro),
    (0, b"SQLite format 3\0", Kind::Sqlite),
    (0, b"\x89HDF\r\n\x1a\n", Kind::Hdf5),
    (0, b"%PDF-", Kind::Document),
    (0, b"{\\rtf", Kind::Document),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Kind::Document),
    (0, b"\x89PNG\r\n\x1a\n", Kind::Media),
    (0, b"\x1a\x45\xdf\xa3", Kind::Media),
    (0, b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20", Kind::Pickle),
    (0, b"\x7fELF", Kind::Program),
    (0, b"\xcf\xfa\xed\xfe", Kind::Program),
    (0, b"\xca\xfe\xba\xbe", Kind::Program),
    (0, b"\0asm", Kind::Program),
    (0, b"GGUF", Kind::Gguf),
    (0, b"MMIDIDX\0", Kind::Megatron),
    (0, b"version https://git-lfs", Kind::LfsPointer),
    (0, b"version https://hawser.github.com/spec/", Kind::LfsPointer),
];

/// Byte sequences, with their offsets, with which no text begins, but a file of token ids may.
const NO_TEXT: [(usize, &[u8], Kind); 12] = [
    (0, b"\x1f\x8b", Kind::Gzip),
    (0, b"\x1f\x9d", Kind::Packed),
    (0, b"\x1f\xa0", Kind::Packed),
    (0, b"\x5d\x00\x00", Kind::Packed),
    (0, b"\xff\xff\xff\xff", Kind::Arrow),
    (0, b"\xff\xd8\xff", Kind::Media),
    (0, b"II*\0", Kind::Media),
    (0, b"MM\0*", Kind::Media),
    (0, b"\x80\x02", Kind::Pickle),
    (0, b"\x80\x03", Kind::Pickle),
    (0, b"\x80\x04", Kind::Pickle),
    (0, b"\x80\x05", Kind::Pickle),
];

impl Kind {
    /// Returns the kind of a file of `size` bytes that begins with `start`, if it is certain: a file of token ids
    /// without a header is not mistaken for another kind.
    #[must_use]
    pub fn sure(start: &[u8], size: u64) -> Option<Self> {
        let word = start.first_chunk().map(|word| i32::from_le_bytes(*word));
        if let Some((word, _)) = LLMC.iter().find(|(magic, _)| word == Some(*magic)) {
            return Some(Self::Llmc(*word));
        }
        find(&SURE, start).or_else(|| by_fields(start, size))
    }

    /// Returns the kind of a file that should be text or have its own header.
    #[must_use]
    pub fn of(start: &[u8]) -> Option<Self> {
        Self::sure(start, u64::MAX).or_else(|| find(&NO_TEXT, start))
    }

    /// Returns the phrase that follows "is" in a message about a file of this kind, as in "is a zip archive".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Zip => "a zip archive",
            Self::SevenZip => "a 7z archive",
            Self::Rar => "a RAR archive",
            Self::Tar => "a tar archive",
            Self::Gzip => "packed with gzip",
            Self::Zstd => "packed with zstd",
            Self::Xz => "packed with xz",
            Self::Bzip2 => "packed with bzip2",
            Self::Lz4 => "packed with lz4",
            Self::Packed => "packed in a format that is not supported",
            Self::Parquet => "a Parquet file",
            Self::EncryptedParquet => "encrypted Parquet",
            Self::Arrow => "an Arrow file, as the `datasets` library saves",
            Self::Npy => "a NumPy array",
            Self::Avro => "an Avro file",
            Self::Orc => "an ORC file",
            Self::Sqlite => "an SQLite database",
            Self::Hdf5 => "an HDF5 file",
            Self::Document => "a document for reading or printing",
            Self::Media => "an image, sound or film",
            Self::Pickle => "a Python or PyTorch pickle",
            Self::Program => "a program",
            Self::Gguf => "a GGUF model",
            Self::Safetensors => "a model in safetensors",
            Self::Megatron => "an index of Megatron's token files",
            Self::Llmc(word) => {
                LLMC.iter().find(|(magic, _)| *magic == word).map_or("a file of llm.c", |(_, name)| name)
            }
            Self::LfsPointer => "a Git LFS pointer in place of the file",
        }
    }
}

/// Returns a text without the byte order mark with which some programs begin UTF-8.
#[must_use]
pub fn without_bom(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

fn find(table: &[(usize, &[u8], Kind)], start: &[u8]) -> Option<Kind> {
    let begins = |(at, bytes, _): &&(usize, &[u8], Kind)| start.get(*at..).is_some_and(|rest| rest.starts_with(bytes));
    table.iter().find(begins).map(|(_, _, kind)| *kind)
}

/// Recognises the kinds that take several header fields, none of which suffices alone.
fn by_fields(start: &[u8], size: u64) -> Option<Kind> {
    let long = |at: usize| {
        let bytes = start.get(at..at + 8)?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    };
    let within = |n: u64| n > 0 && n < size;
    match start {
        [0x1f, 0x8b, 8, flags, _, _, _, _, 0 | 2 | 4, 0..=13 | 255, ..] if flags & 0xe0 == 0 => Some(Kind::Gzip),
        [b'B', b'Z', b'h', b'1'..=b'9', rest @ ..]
            if rest.starts_with(b"\x31\x41\x59\x26\x53\x59") || rest.starts_with(b"\x17\x72\x45\x38\x50\x90") =>
        {
            Some(Kind::Bzip2)
        }
        // a skippable frame, before the frames with data
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Kind::Zstd),
        // an Arrow stream: a marker, the length of its schema, a FlatBuffers table
        [0xff, 0xff, 0xff, 0xff, a, b, c, d, ..] => {
            let length = u32::from_le_bytes([*a, *b, *c, *d]);
            (length.is_multiple_of(8) && within(length.into())).then_some(Kind::Arrow)
        }
        [0x80, 4 | 5, 0x95, ..] if long(3).is_some_and(within) => Some(Kind::Pickle),
        [_, _, _, _, _, _, _, _, b'{', b'"', ..] if long(0).is_some_and(|n| n < size.min(1 << 32)) => {
            Some(Kind::Safetensors)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_no_other_kind_by_the_chance_of_two_bytes() {
        for start in [&b"\x80\x02\x10\x20"[..], b"\x1f\x8b\x41\x42\x43\x44", b"\xff\xd8\xff\0"] {
            assert_eq!(Kind::sure(start, 4000), None, "{start:?}");
            assert!(Kind::of(start).is_some(), "{start:?}");
        }
        let shard = LLMC_SHARD.to_le_bytes();
        assert_eq!(Kind::sure(&shard, 4000), Some(Kind::Llmc(LLMC_SHARD)));
        assert_eq!(Kind::Llmc(20_240_522).name(), "llm.c's HellaSwag");
        assert_eq!(Kind::of(b"version https://git-lfs.github.com/spec/v1"), Some(Kind::LfsPointer));
        assert_eq!(Kind::of(b"\x10\0\0\0\0\0\0\0{\"a\":1}"), Some(Kind::Safetensors));
        assert_eq!(Kind::of(b"once upon a time {\"a\":"), None);
    }
}
