//! Token ids in memory or in files.
//!
//! A shard is 256 little-endian i32 (magic 20240520, version 1, number of tokens, zeros) and then that many
//! little-endian u16 ids, without further bytes. Files are read at offsets and never mapped: if another process
//! truncated a mapped file, this process would be killed.

use crate::data::contents::FileContents;
use crate::data::token_format::{Layout, TokenFormat};
use crate::error::{Error, Fault, Result};
use crate::files::kind::LLMC_SHARD;
use crate::files::open;
use crate::units::{count, counted};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// First word of a shard.
pub(crate) const MAGIC: i32 = LLMC_SHARD;
/// Second word of a shard.
pub(crate) const VERSION: i32 = 1;
/// Words of a shard's header.
pub(crate) const HEADER_WORDS: usize = 256;
/// Size of a shard's header.
pub(crate) const HEADER_BYTES: u64 = 1024;
/// Number of 32-bit ids that are read at once.
const WIDE_TOKENS: usize = 1 << 16;

/// A named sequence of token ids, held in memory or read from a file as needed.
///
/// A clone shares tokens in memory, but opens the file again.
#[derive(Debug, Clone)]
pub struct TokenSource {
    name: String,
    len: usize,
    kind: Kind,
    files: Arc<[FileContents]>,
}

#[derive(Debug, Clone)]
enum Kind {
    Memory(Arc<[u16]>),
    Stored(Stored),
}

/// A file of ids whose layout has been checked. It is open only while it is in use, because a data set may have more
/// files than a process may open.
#[derive(Debug)]
struct Stored {
    path: PathBuf,
    layout: Layout,
    file: Mutex<Option<File>>,
}

impl TokenSource {
    /// Returns a source of tokens held in memory. Errors call it `name`.
    #[must_use]
    pub fn from_tokens(name: impl Into<String>, tokens: Vec<u16>) -> Self {
        Self { name: name.into(), len: tokens.len(), kind: Kind::Memory(tokens.into()), files: Arc::default() }
    }

    /// Opens a shard file and checks its header and its size.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file, the field, and its expected and actual value.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_as(path, TokenFormat::Shard)
    }

    /// Opens a file of ids and checks that it has the layout `format` and its full size.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file, and the expected and actual layout or size.
    pub fn open_as(path: impl AsRef<Path>, format: TokenFormat) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let file = open_file(path)?;
        let metadata = file.metadata().map_err(|e| cannot_read(&name, &e))?;
        let layout = Layout::of(path, &file, metadata.len(), format)?;
        let stored = Stored { path: path.to_owned(), layout, file: Mutex::new(None) };
        let files = [FileContents::new(path, &metadata)].into();
        Ok(Self { name, len: layout.len, kind: Kind::Stored(stored), files })
    }

    /// Returns the name that errors use: for a file, its path.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets the files that tokens in memory were read from, as they were before they were read.
    #[must_use]
    pub fn with_files(self, files: Vec<FileContents>) -> Self {
        Self { files: files.into(), ..self }
    }

    /// Returns the files that the tokens come from; none for generated tokens.
    #[must_use]
    pub fn files(&self) -> &[FileContents] {
        &self.files
    }

    /// Returns the number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the source has no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Overwrites `out` with the tokens from position `offset` on.
    ///
    /// # Errors
    /// [`Error::Data`] if the source ends before `out` is full, or the file can no longer be read.
    pub fn read(&self, offset: usize, out: &mut [u16]) -> Result<()> {
        let end = offset.saturating_add(out.len());
        if end > self.len {
            return Err(Error::data(
                Fault::at(&self.name, "read past the end")
                    .expected(format!("at most {}", counted(self.len as u64, "token")))
                    .found(format!("a request for {}", count(end as u64))),
            ));
        }
        match &self.kind {
            Kind::Memory(tokens) => out.copy_from_slice(&tokens[offset..end]),
            Kind::Stored(stored) if stored.layout.width == 2 => {
                let at = stored.layout.start + 2 * offset as u64;
                stored.read(at, bytemuck::cast_slice_mut(out)).map_err(|e| cannot_read(&self.name, &e))?;
                out.iter_mut().for_each(|id| *id = u16::from_le(*id));
            }
            Kind::Stored(stored) => self.read_wide(stored, offset, out)?,
        }
        Ok(())
    }

    /// Reads 32-bit ids, each of which must fit in 16 bits.
    fn read_wide(&self, stored: &Stored, offset: usize, out: &mut [u16]) -> Result<()> {
        let mut wide = vec![0_u32; out.len().min(WIDE_TOKENS)];
        let mut at = offset;
        for block in out.chunks_mut(WIDE_TOKENS) {
            let wide = &mut wide[..block.len()];
            let byte = stored.layout.start + 4 * at as u64;
            stored.read(byte, bytemuck::cast_slice_mut(wide)).map_err(|e| cannot_read(&self.name, &e))?;
            for (i, (to, id)) in block.iter_mut().zip(wide).enumerate() {
                *to = u16::try_from(u32::from_le(*id)).map_err(|_| {
                    let fault = Fault::at(&self.name, format!("token {} is too large", at + i));
                    let fault = fault.expected("ids below 65536").found(u32::from_le(*id));
                    Error::data(fault.advice("are these 16-bit ids? try --data-format u16"))
                })?;
            }
            at += block.len();
        }
        Ok(())
    }

    /// Reads as [`read`](Self::read) does and checks that every id is below `vocab`: a larger id would read outside the
    /// embedding table.
    ///
    /// # Errors
    /// Those of `read`; [`Error::Data`] naming source, position, id and vocabulary.
    pub fn read_checked(&self, offset: usize, out: &mut [u16], vocab: usize) -> Result<()> {
        self.read(offset, out)?;
        match out.iter().position(|&id| usize::from(id) >= vocab) {
            None => Ok(()),
            Some(i) => Err(Error::data(
                Fault::at(&self.name, format!("token {} is outside the vocabulary", offset + i))
                    .expected(format!("an id below {vocab}"))
                    .found(out[i])
                    .advice("try the tokenizer that made this data"),
            )),
        }
    }

    /// Closes the file until the next read. Does nothing for tokens in memory.
    pub fn release(&self) {
        if let Kind::Stored(stored) = &self.kind {
            *stored.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

impl Clone for Stored {
    fn clone(&self) -> Self {
        Self { path: self.path.clone(), layout: self.layout, file: Mutex::new(None) }
    }
}

impl Stored {
    /// Fills `bytes` from offset `at` of the file, which is opened if it is closed.
    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        // a panic cannot leave the file half updated, so a poisoned lock is usable
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() {
            *file = Some(open::input(&self.path)?);
        }
        file.as_ref().map_or(Ok(()), |file| read_at(file, bytes, at))
    }
}

/// Writes a shard file, overwriting an existing file.
///
/// # Errors
/// [`Error::Output`] if the file cannot be written, or there are more tokens than a header can count (2³¹−1).
pub fn write_shard(path: impl AsRef<Path>, tokens: &[u16]) -> Result<()> {
    let path = path.as_ref();
    let len = i32::try_from(tokens.len()).map_err(|_| {
        Error::output(
            Fault::at(path.display(), "too many tokens for a shard")
                .expected(format!("at most {}", count(i32::MAX.unsigned_abs().into())))
                .found(count(tokens.len() as u64))
                .advice("try several shards"),
        )
    })?;
    write_words(path, len, tokens)
        .map_err(|e| Error::output(Fault::at(path.display(), format!("cannot be written: {}", describe(&e)))))
}

fn write_words(path: &Path, count: i32, tokens: &[u16]) -> io::Result<()> {
    let mut file = io::BufWriter::new(File::create(path)?);
    file.write_all(&header(count))?;
    write_tokens(&mut file, tokens)?;
    file.flush()
}

/// Returns the bytes of a header for `count` tokens.
pub(crate) fn header(count: i32) -> [u8; HEADER_BYTES as usize] {
    let mut words = [0_i32; HEADER_WORDS];
    words[..3].copy_from_slice(&[MAGIC, VERSION, count]);
    bytemuck::cast(words.map(i32::to_le))
}

/// Writes ids in the encoding of a shard.
pub(crate) fn write_tokens(out: &mut dyn Write, tokens: &[u16]) -> io::Result<()> {
    for block in tokens.chunks(1 << 15) {
        let block: Vec<u16> = block.iter().map(|id| id.to_le()).collect();
        out.write_all(bytemuck::cast_slice(&block))?;
    }
    Ok(())
}

/// Splits n tokens into training and validation: the last floor(n/10) tokens are for validation.
#[must_use]
pub fn split_validation(mut tokens: Vec<u16>) -> (Vec<u16>, Vec<u16>) {
    let validation = tokens.split_off(tokens.len() - tokens.len() / 10);
    (tokens, validation)
}

/// Opens a file. A folder is an error.
fn open_file(path: &Path) -> Result<File> {
    let name = path.display().to_string();
    if path.is_dir() {
        return Err(Error::data(
            Fault::at(name, "is a folder").expected("a token file").advice("try a pattern such as *.bin"),
        ));
    }
    open::input(path).map_err(|e| cannot_read(&name, &e))
}

/// Returns the error for an input that cannot be read.
pub(crate) fn cannot_read(name: &str, error: &io::Error) -> Error {
    let unread = || Fault::at(name, format!("cannot be read: {}", describe(error)));
    Error::data(open::refusal(name, error).unwrap_or_else(unread))
}

/// Describes an I/O error in the style of this program's errors: lower case, one line.
pub(crate) fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::UnexpectedEof => "it became shorter while in use".into(),
        io::ErrorKind::StorageFull => "the disk is full".into(),
        _ => error.to_string().to_lowercase().replace('\n', " "),
    }
}

/// Fills `bytes` from offset `at` without moving the file's cursor.
#[cfg(unix)]
pub(crate) fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

/// Fills `bytes` from offset `at`. Moves the file's cursor, which nothing here uses.
#[cfg(windows)]
pub(crate) fn read_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                bytes = &mut bytes[n..];
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault<T: std::fmt::Debug>(result: Result<T>) -> Fault {
        match result {
            Err(Error::Data(fault)) => *fault,
            other => panic!("expected a data error, got {other:?}"),
        }
    }

    #[test]
    fn a_shard_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.bin");
        let tokens: Vec<u16> = (0..70_000_u32).map(|i| (i % 50_257) as u16).collect();
        write_shard(&path, &tokens).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1024 + 140_000);
        let source = TokenSource::open(&path).unwrap();
        assert_eq!((source.len(), source.is_empty()), (70_000, false));
        for offset in [0, 1, 69_990] {
            let mut out = [0; 10];
            source.read(offset, &mut out).unwrap();
            assert_eq!(out, tokens[offset..offset + 10]);
            source.release();
        }
        assert_eq!(fault(source.read(69_991, &mut [0; 10])).expected, "at most 70,000 tokens");
    }

    #[test]
    fn broken_shards_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.bin");
        let damage = |edit: &dyn Fn(&mut Vec<u8>)| {
            write_shard(&path, &[1, 2, 3]).unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            edit(&mut bytes);
            std::fs::write(&path, bytes).unwrap();
            fault(TokenSource::open(&path))
        };
        let is = |fault: Fault, [what, expected, found]: [&str; 3]| {
            assert!(fault.place.ends_with("x.bin"), "{fault:?}");
            assert_eq!([fault.what.as_str(), &fault.expected, &fault.found], [what, expected, found]);
        };
        is(damage(&|b| b[0] = 0), ["bad magic", "20240520", "20240384"]);
        is(damage(&|b| b[4] = 7), ["unknown version", "1", "7"]);
        is(damage(&|b| b[11] = 0xff), ["bad number of tokens", "at least 1", "-16777213"]);
        is(damage(&|b| b[8] = 0), ["bad number of tokens", "at least 1", "0"]);
        is(damage(&|b| b[11] = 0x7f), ["wrong file size", "4,261,413,894 bytes for 2,130,706,435 tokens", "1,030"]);
        is(damage(&|b| b.push(0)), ["wrong file size", "1,030 bytes for 3 tokens", "1,031"]);
        is(damage(&|b| b.truncate(1023)), ["header is cut short", "at least 1,024 bytes", "1,023"]);
        assert_eq!(fault(TokenSource::open(dir.path())).what, "is a folder");
        assert!(fault(TokenSource::open(dir.path().join("none"))).what.contains("no such file"));
    }

    #[test]
    fn ids_outside_the_vocabulary_are_named() {
        let source = TokenSource::from_tokens("memory", vec![1, 2, 300, 4]);
        source.read_checked(0, &mut [0; 4], 301).unwrap();
        let fault = fault(source.read_checked(1, &mut [0; 3], 257));
        assert_eq!([fault.place.as_str(), &fault.what], ["memory", "token 2 is outside the vocabulary"]);
        assert_eq!([fault.expected.as_str(), &fault.found], ["an id below 257", "300"]);
    }

    #[test]
    fn validation_is_the_last_tenth() {
        let (training, validation) = split_validation((0..19).collect());
        assert_eq!((training.len(), validation), (18, vec![18]));
        assert_eq!(split_validation(vec![1; 9]).1.len(), 0);
    }
}
