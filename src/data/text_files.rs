//! Text files as tokens in memory: the data of `wgpt train --text`.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::recognize::{Format, Input};
use super::separators::{SPELLED_END, count_spelled_ends, documents};
use super::tokenizer::Tokenizer;
use super::tokens::cannot_read;
use super::unpack::Packing;
use crate::error::{Error, Fault, Result};
use crate::files::shell;
use crate::units::{counted, size};

/// Largest unpacked size of a packed file. The text is held in memory, and its size is not known beforehand.
const UNPACKED_BYTES: u64 = 1 << 30;

/// Returns the tokens of text files, with end of text before each document. A file is one document, unless `split_on`
/// is given: then the file is cut at each occurrence of this text, which is dropped.
///
/// # Errors
/// [`Error::Data`] if no file is given, or a file is missing, a folder, unreadable, empty or not text.
pub fn tokens_of_text_files(
    paths: &[impl AsRef<Path>],
    tokenizer: &Tokenizer,
    split_on: Option<&str>,
) -> Result<Vec<u16>> {
    if paths.is_empty() {
        return Err(Error::data(Fault::at("text", "no file given").expected("at least one")));
    }
    let mut tokens = Vec::new();
    for path in paths {
        let path = path.as_ref();
        let text = read_text(path, UNPACKED_BYTES)?;
        let (mut replaced, mut ends, start) = (0, 0, tokens.len());
        for document in documents(&text, split_on.unwrap_or_default().as_bytes()) {
            let (ids, invalid) = tokenizer.encode_counted(document)?;
            replaced += invalid;
            ends += count_spelled_ends(document);
            tokens.push(tokenizer.end_of_text());
            tokens.extend(ids);
        }
        let name = path.display();
        if tokens.len() == start {
            return Err(empty(path, split_on.map_or("text is empty", |_| "nothing but separators")));
        }
        if replaced > 0 {
            log::warn!("{name}: replaced {}", counted(replaced as u64, "invalid UTF-8 sequence"));
        }
        if ends > 0 {
            log::warn!(
                "{name}: {SPELLED_END} is spelled {} and read as text; --split-on '{SPELLED_END}' cuts the file into \
                 documents there",
                counted(ends, "time")
            );
        }
    }
    Ok(tokens)
}

fn empty(path: &Path, what: &str) -> Error {
    Error::data(Fault::at(path.display(), what).expected("at least one byte").found("0"))
}

/// Returns the bytes of a non-empty text file. A packed file may unpack to at most `most` bytes.
fn read_text(path: &Path, most: u64) -> Result<Vec<u8>> {
    let name = path.display().to_string();
    let is_pattern = path.as_os_str().as_encoded_bytes().iter().any(|byte| b"*?[".contains(byte));
    if path.is_dir() || is_pattern && path.symlink_metadata().is_err() {
        let what = if path.is_dir() { "is a folder" } else { "no such file: only the shell expands patterns here" };
        let call = format!("`wgpt data prepare {} --out OUT` and its shards as --data", shell::word(path));
        return Err(Error::data(Fault::at(name, what).expected("text files").advice(format!("try {call}"))));
    }
    let Input { content, packing, doubt, stream, .. } = Input::open(path, Arc::default())?;
    match content {
        Ok(Format::Text) => {}
        Ok(format) => {
            let fault = Fault::at(&name, format!("contains {}", format.name())).expected("a text file");
            return Err(Error::data(fault.advice("try `wgpt data prepare FILE --out DIR` and its shards as --data")));
        }
        Err(foreign) => return Err(foreign.refused(&name)),
    }
    if let Some(doubt) = doubt {
        log::warn!("{name}: {doubt}");
    }
    // the user can see the size of an unpacked file
    let limit = if packing == Packing::Plain { u64::MAX } else { most };
    let mut text = Vec::new();
    let broken = |e| if packing == Packing::Plain { cannot_read(&name, &e) } else { packing.error(&name, &e) };
    stream.take(limit.saturating_add(1)).read_to_end(&mut text).map_err(broken)?;
    if text.len() as u64 > limit {
        return Err(Error::data(
            Fault::at(name, "the unpacked text is too long to be held in memory")
                .expected(format!("at most {}", size(limit)))
                .advice("try `wgpt data prepare FILE --out DIR` and its shards as --data"),
        ));
    }
    if text.is_empty() {
        return Err(empty(path, "text is empty"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::path::PathBuf;

    fn tokens(path: &Path, split_on: Option<&str>) -> Result<Vec<u16>> {
        tokens_of_text_files(&[path], &Tokenizer::Bytes, split_on)
    }

    fn fault<T: std::fmt::Debug>(result: Result<T>) -> Fault {
        match result {
            Err(Error::Data(fault)) => *fault,
            other => panic!("expected a data error, got {other:?}"),
        }
    }

    fn gzip(path: &Path, bytes: &[u8]) {
        let mut out = flate2::write::GzEncoder::new(std::fs::File::create(path).unwrap(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap();
    }

    #[test]
    fn end_of_text_begins_each_file() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a", "b", "c"].map(|name| dir.path().join(name));
        std::fs::write(&paths[0], "ab").unwrap();
        std::fs::write(&paths[1], b"\xef\xbb\xbfcaf\xe9").unwrap();
        gzip(&paths[2], b"packed");
        let all = tokens_of_text_files(&paths, &Tokenizer::Bytes, None).unwrap();
        let expected = [&b"ab"[..], b"caf\xe9", b"packed"];
        let expected = expected.iter().flat_map(|text| std::iter::once(256).chain(text.iter().map(|&b| b.into())));
        assert_eq!(all, expected.collect::<Vec<u16>>());
        let gpt2 = tokens_of_text_files(&paths[..1], &Tokenizer::Gpt2, None).unwrap();
        assert_eq!(gpt2, [50_256, 397]);
    }

    #[test]
    fn separators_begin_documents() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, "<|endoftext|>a<|endoftext|><|endoftext|>b").unwrap();
        assert_eq!(tokens(&path, Some(SPELLED_END)).unwrap(), [256, 97, 256, 98]);
        assert_eq!(tokens(&path, None).unwrap().len(), 1 + 41);
        std::fs::write(&path, "xx").unwrap();
        assert_eq!(fault(tokens(&path, Some("x"))).what, "nothing but separators");
    }

    #[test]
    fn files_that_are_not_text_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| -> PathBuf {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let of = |path: &Path| {
            let fault = fault(tokens(path, None));
            format!("{}; {}", fault.what, fault.advice)
        };
        assert!(of(&put("empty", b"")).starts_with("text is empty"));
        let folder = of(dir.path());
        assert!(
            folder.starts_with("is a folder; try `wgpt data prepare") && folder.contains(" --out OUT`"),
            "{folder}"
        );
        let pattern = of(&dir.path().join("*.txt"));
        assert!(
            pattern.contains("only the shell expands patterns") && pattern.contains("*.txt' --out OUT`"),
            "{pattern}"
        );
        assert!(of(&dir.path().join("none")).contains("no such file"));
        assert_eq!(fault(tokens_of_text_files(&[] as &[&str], &Tokenizer::Bytes, None)).what, "no file given");
        for (name, bytes, said) in [
            ("a.jsonl", &b"{\"text\":\"a\"}\n"[..], "contains JSON Lines; try `wgpt data prepare"),
            ("data", b"{\"text\":\"a\"}\n", "contains JSON Lines; try `wgpt data prepare"),
            ("a.parquet", b"PAR1....PAR1", "contains Parquet; try `wgpt data prepare"),
            (
                "shard.txt",
                &crate::data::tokens::header(3),
                "is a token shard; it is prepared already: wgpt train --data",
            ),
            ("a.zip", b"PK\x03\x04\0\0", "is a zip archive"),
        ] {
            let text = of(&put(name, bytes));
            assert!(text.starts_with(said), "{name}: {text}");
        }
    }

    #[test]
    fn a_packed_text_that_never_ends_is_refused_before_memory_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let (packed, plain) = (dir.path().join("a.gz"), dir.path().join("a.txt"));
        gzip(&packed, &[b'a'; 100_001]);
        std::fs::write(&plain, [b'a'; 100_001]).unwrap();
        assert_eq!(read_text(&packed, 100_001).unwrap().len(), 100_001);
        assert_eq!(read_text(&plain, 100_000).unwrap().len(), 100_001);
        let fault = fault(read_text(&packed, 100_000));
        assert!(fault.what.contains("too long") && fault.expected == "at most 97.7 KiB", "{fault:?}");
    }
}
