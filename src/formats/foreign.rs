//! Recognises files in place of a model's files that are something else: pointers of Git LFS, responses of a server,
//! pickles, models for other programs.

use std::io::{self, Read};
use std::path::Path;

use serde_json::Value;

use crate::error::Fault;
use crate::files::kind::{Kind, without_bom};
use crate::files::open;

/// Advice for weights that transformers saved as a pickle.
pub const SAVE_PRETRAINED: &str = "try in Python `GPT2LMHeadModel.from_pretrained(DIR).save_pretrained(DIR)`";
/// Advice for weights in nanoGPT's layout, in a pickle or not.
pub const FROM_NANOGPT: &str = "for nanoGPT's weights try the Python lines at the end of `wgpt convert --help`";

const SAFETENSORS: &str = "try the same model's folder with model.safetensors";
const DOWNLOAD: &str = "try downloading it again";

/// Number of first bytes that decide a file's kind.
const START_BYTES: u64 = 1 << 16;
/// Longest text, in bytes, that counts as a server's response in place of a file.
const ANSWER_BYTES: usize = 256;
/// Extensions of files that PyTorch's `torch.save` writes.
const PICKLES: [&str; 5] = ["bin", "pt", "pth", "ckpt", "pkl"];

/// Returns advice for a kind of file that is not a model.
fn advice(kind: Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::LfsPointer => "try `git lfs pull`",
        Kind::Gguf | Kind::Hdf5 => SAFETENSORS,
        Kind::Npy | Kind::Parquet | Kind::Arrow | Kind::Avro | Kind::Sqlite => "try a model",
        Kind::Gzip | Kind::Zstd | Kind::Xz | Kind::Bzip2 | Kind::Lz4 | Kind::SevenZip | Kind::Rar | Kind::Tar => {
            "try unpacking it"
        }
        _ => return None,
    })
}

/// Reads the first bytes of a file, enough for [`fault`].
///
/// # Errors
/// Those of [`open::input`].
pub fn read_start(path: &Path) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    open::input(path)?.take(START_BYTES).read_to_end(&mut start)?;
    Ok(start)
}

/// Returns a fault that names the kind of a file that begins with `start`, if it cannot contain weights. The fault has
/// no place.
#[must_use]
pub fn fault(path: &Path, start: &[u8]) -> Option<Fault> {
    kind(path, start).or_else(|| answer(start))
}

/// Returns a fault as [`fault`] does, if a file that begins with `start` can be neither a configuration nor a
/// tokenizer's file. These files are texts themselves and may be short.
#[must_use]
pub fn text_fault(path: &Path, start: &[u8]) -> Option<Fault> {
    let text = start.trim_ascii();
    let is_line =
        !text.contains(&b'\n') && !text.starts_with(b"{") && !text.starts_with(b"[") && !text.starts_with(b"#");
    kind(path, start).or_else(|| answer(start).filter(|_| is_line))
}

/// Parses a file of JSON.
///
/// # Errors
/// A fault without a place, which names the kind of file if it is not JSON.
pub fn json(path: &Path, text: &[u8]) -> Result<Value, Fault> {
    serde_json::from_slice(without_bom(text))
        .map_err(|e| text_fault(path, text).unwrap_or_else(|| format!("broken JSON ({e})").into()))
}

fn kind(path: &Path, start: &[u8]) -> Option<Fault> {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    let extension = extension.as_deref().unwrap_or_default();
    if start.is_empty() {
        return Some(Fault::from("an empty file").advice("try copying it again"));
    }
    if let Some((kind, advice)) = Kind::sure(start, u64::MAX).and_then(|kind| Some((kind, advice(kind)?))) {
        return Some(Fault::from(kind.name()).advice(advice));
    }
    let is_zip = start.starts_with(b"PK\x03\x04");
    // torch.save writes a zip, or in older versions a bare pickle of protocol 2 to 5
    let is_pickle = start.first() == Some(&0x80) && matches!(start.get(1), Some(2..=5));
    if is_pickle || is_zip && (PICKLES.contains(&extension) || contains(start, b"data.pkl")) {
        return Some(pickle(path));
    }
    if is_zip {
        return Some(Fault::from("a zip archive").advice("try unpacking it"));
    }
    // ONNX's version number, then the name of the program that wrote the file
    if extension == "onnx" || matches!(start, [8, 1..=31, 0x12, ..]) {
        return Some(Fault::from("an ONNX model, which is not supported").advice(SAFETENSORS));
    }
    page(start)
}

/// Returns the fault of a pickle. Pickles are never read, because reading one runs the code in it.
fn pickle(path: &Path) -> Fault {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let advice = if name.starts_with("pytorch_model") {
        SAVE_PRETRAINED.to_owned()
    } else {
        format!("{FROM_NANOGPT}, for transformers' {}", SAVE_PRETRAINED.trim_start_matches("try in Python "))
    };
    Fault::from("a pickle file, which can run any program when it is read")
        .expected("safetensors or a .bin of llm.c")
        .advice(advice)
}

/// Returns the fault of a web page saved under the file's name.
fn page(start: &[u8]) -> Option<Fault> {
    let text = without_bom(start).trim_ascii();
    let head = text[..text.len().min(1024)].to_ascii_lowercase();
    if head.starts_with(b"<") && (contains(&head, b"<!doctype html") || contains(&head, b"<html")) {
        return Some(Fault::from("an HTML page in place of the file").advice(DOWNLOAD));
    }
    let xml = Fault::from("an XML text in place of the file").advice(DOWNLOAD);
    head.starts_with(b"<?xml").then_some(xml)
}

/// Returns the fault of a short text, such as a server's message that there is no such file.
fn answer(start: &[u8]) -> Option<Fault> {
    let text = without_bom(start).trim_ascii();
    let line = std::str::from_utf8(text).ok().filter(|line| (1..=ANSWER_BYTES).contains(&line.len()))?;
    let shows = line.chars().all(|c| !c.is_control() || c == '\n' || c == '\r' || c == '\t');
    let line: Vec<&str> = line.split_whitespace().collect();
    shows.then(|| Fault::from(format!("only the text `{}`", line.join(" "))).advice(DOWNLOAD))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_place_of_weights_are_named() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n";
        for (name, start, what, advice) in [
            ("model.safetensors", &pointer[..], "a pointer of Git LFS", "git lfs pull"),
            ("model.safetensors", b"", "an empty file", "copying"),
            ("model.safetensors", b"Entry not found", "only the text `Entry not found`", "downloading"),
            ("m.bin", b"{\"error\":\n \"Repository not found\"}", "only the text `{\"error\": \"Rep", "downloading"),
            ("m.bin", b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "an HTML page", "downloading"),
            ("m.bin", b"<HTML lang=en>", "an HTML page", "downloading"),
            ("m.bin", b"<?xml version='1.0'?><Error>", "an XML text", "downloading"),
            ("m.bin", b"GGUF\x03\0\0\0", "a GGUF model", "safetensors"),
            ("tf_model.h5", b"\x89HDF\r\n\x1a\n\0", "an HDF5 file", "safetensors"),
            ("m", b"\x08\x07\x12\x07pytorch", "an ONNX model", "safetensors"),
            ("pytorch_model.bin", b"PK\x03\x04....", "a pickle file", "try in Python `GPT2LMHeadModel"),
            ("ckpt.pt", b"PK\x03\x04....", "a pickle file", "convert --help"),
            ("ckpt", b"PK\x03\x04\0\0 ckpt/data.pkl", "a pickle file", "convert --help"),
            ("old", b"\x80\x02\x8a\x0al", "a pickle file", "convert --help"),
            ("a.zip", b"PK\x03\x04\0\0 model.txt", "a zip archive", "unpacking"),
            ("m.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "packed with gzip", "unpacking"),
        ] {
            let fault = fault(Path::new(name), start).unwrap_or_else(|| panic!("{name}: {start:?}"));
            assert!(fault.what.starts_with(what) && fault.advice.contains(advice), "{name}: {fault}");
            assert!(!fault.to_string().contains('\n'), "{fault}");
        }
    }

    #[test]
    fn short_texts_are_configurations() {
        let what = |name: &str, start: &[u8]| text_fault(Path::new(name), start).map(|fault| fault.what);
        for (name, start) in
            [("a.json", "{}"), ("a.json", "[1]"), ("merges.txt", "#version: 0.2"), ("m.txt", "a b\nc d\n")]
        {
            assert_eq!(what(name, start.as_bytes()), None, "{start}");
        }
        assert_eq!(what("vocab.json", b"Entry not found").as_deref(), Some("only the text `Entry not found`"));
        assert!(what("merges.txt", b"version https://git-lfs.github.com/spec/v1\n").is_some());
        assert!(what("merges.txt", b"\n<!doctype html>\n<html>").is_some() && what("a.json", b"").is_some());
    }

    #[test]
    fn weights_have_no_fault() {
        let header = b"\x40\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"}}";
        for start in [&header[..], &20_240_326_i32.to_le_bytes(), &[1, 2], &[7; 2000]] {
            assert_eq!(fault(Path::new("model.bin"), start), None, "{start:?}");
        }
    }
}
