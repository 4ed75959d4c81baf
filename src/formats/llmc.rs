//! llm.c's model files, such as `gpt2_124M.bin`: 256 little-endian i32, then the 16 tensors of [`PARAMS`] one after the
//! other, as f32 in version 3 and as bf16 in version 5.

use std::io::Write;
use std::path::Path;

use super::ModelInfo;
use super::element::Element;
use super::mapped::Mapped;
use crate::error::{Error, Fault, Result};
use crate::files::atomic;
use crate::files::kind::LLMC_WEIGHTS;
use crate::model::config::Config;
use crate::model::params::{PARAMS, Weights};
use crate::units::{count, counted};

/// First word of the file.
const MAGIC: i32 = LLMC_WEIGHTS;
/// Bytes of the header.
const HEADER_BYTES: usize = 1024;
/// llm.c's names of the header's words from word 2 on.
const FIELDS: [&str; 6] = ["max_seq_len", "vocab_size", "num_layers", "num_heads", "channels", "padded_vocab_size"];
/// Bound of all sizes: larger than any model's, and small enough that no product of sizes overflows a u128.
const MOST: i32 = 1 << 24;

/// Returns whether a file begins like one of llm.c's models.
#[must_use]
pub fn is_magic(start: &[u8]) -> bool {
    start.starts_with(&MAGIC.to_le_bytes())
}

/// The contents of a header.
struct Header {
    config: Config,
    padded_vocab: usize,
    element: Element,
}

/// Reads a model file. The file is mapped, and the memory of its bytes is released as weights are decoded. It must not
/// change meanwhile.
///
/// Ignores the padding rows of `wte`, of which a file may have any number. The file does not record a tokenizer.
///
/// # Errors
/// [`Error::Data`] naming file and field if the file cannot be read, is of another kind, is shorter or longer than its
/// header states, or a weight is not finite.
pub fn load(path: &Path) -> Result<(Weights, ModelInfo)> {
    let (map, header) = map(path)?;
    let weights = read(path, &header, &map, &map[HEADER_BYTES..])?;
    Ok((weights, ModelInfo::default()))
}

/// Reads the shape of a model file.
///
/// # Errors
/// Those of [`load`], except the ones about weights.
pub fn describe(path: &Path) -> Result<Config> {
    map(path).map(|(_, header)| header.config)
}

/// Maps a model file and reads its header.
fn map(path: &Path) -> Result<(Mapped, Header)> {
    let map = Mapped::open(path)?;
    let size = map.len();
    if size < HEADER_BYTES {
        return Err(data(
            path,
            Fault::from("header is cut short")
                .expected(format!("at least {}", counted(HEADER_BYTES as u64, "byte")))
                .found(count(size as u64))
                .advice("is it a model of llm.c?"),
        ));
    }
    let (head, body) = map.split_at(HEADER_BYTES);
    let header = header(path, head, body.len());
    map.check()?;
    header.map(|header| (map, header))
}

/// Writes a model file atomically: version 3 for f32, version 5 for bf16.
///
/// # Errors
/// [`Error::Output`] naming the file if writing fails; [`Error::Data`] if a weight becomes infinite in bf16;
/// [`Error::Usage`] for f16, which llm.c does not support.
pub fn save(path: &Path, weights: &Weights, element: Element) -> Result<()> {
    let version = match element {
        Element::F32 => 3,
        Element::Bf16 => 5,
        Element::F16 => {
            return Err(Error::usage(
                Fault::at("dtype", "llm.c has no such element type").expected("f32 or bf16").found(element.name()),
            ));
        }
    };
    element.check(weights)?;
    let c = weights.config;
    let mut header = [0; HEADER_BYTES / 4];
    let fields = [c.positions, c.vocab, c.layers, c.heads, c.channels, c.padded_vocab()];
    header[..2].copy_from_slice(&[MAGIC, version]);
    for (word, (field, value)) in header[2..].iter_mut().zip(FIELDS.iter().zip(fields)) {
        *word = i32::try_from(value)
            .map_err(|_| Error::usage(Fault::at("convert", format!("{field} is {value}")).expected("below 2^31")))?;
    }
    atomic::write(path, |out: &mut dyn Write| {
        out.write_all(&header.map(i32::to_le_bytes).concat())?;
        weights.tensors.iter().try_for_each(|values| element.write(values, out))
    })
}

fn data(path: &Path, fault: impl Into<Fault>) -> Error {
    Error::data(fault.into().within(path.display()))
}

fn header(path: &Path, bytes: &[u8], body: usize) -> Result<Header> {
    let words: Vec<i32> = bytes.as_chunks().0.iter().map(|word| i32::from_le_bytes(*word)).collect();
    if words[0] != MAGIC {
        return Err(data(
            path,
            Fault::from("bad magic").expected(MAGIC).found(words[0]).advice("is it a model of llm.c?"),
        ));
    }
    let element = match words[1] {
        3 => Element::F32,
        5 => Element::Bf16,
        other => {
            return Err(data(
                path,
                Fault::from("unknown version")
                    .expected("3 (f32) or 5 (bf16)")
                    .found(other)
                    .advice("try a newer export of llm.c's train_gpt2.py"),
            ));
        }
    };
    for (field, value) in FIELDS.iter().zip(&words[2..]) {
        if !(1..MOST).contains(value) {
            let fault = Fault::at(field, "out of range").expected(format!("1 to {}", MOST - 1));
            return Err(data(path, fault.found(value)));
        }
    }
    let [positions, vocab, layers, heads, channels, padded_vocab] = std::array::from_fn(|i| words[2 + i] as usize);
    if padded_vocab < vocab {
        return Err(data(
            path,
            Fault::at("padded_vocab_size", "too small")
                .expected(format!("at least vocab_size {vocab}"))
                .found(padded_vocab),
        ));
    }
    // check the size first: a broken header must not decide how much is allocated
    let config = Config { positions, vocab, layers, heads, channels };
    let want = elements(&config, padded_vocab) * element.bytes() as u128;
    if want != body as u128 {
        let bytes = u64::try_from(HEADER_BYTES as u128 + want).map_or("more bytes".into(), |n| counted(n, "byte"));
        let [layers, channels] = [counted(layers as u64, "layer"), counted(channels as u64, "channel")];
        return Err(data(
            path,
            Fault::from("wrong file size")
                .expected(format!("{bytes} for {layers} of {channels}"))
                .found(count((HEADER_BYTES + body) as u64))
                .advice("try copying it again"),
        ));
    }
    config.check().map_err(|e| Error::data(e.fault().clone().within(path.display())))?;
    Ok(Header { config, padded_vocab, element })
}

/// Returns the number of weights in the file: all of [`PARAMS`], `wte` with the file's padding. Sizes are below 2^24
/// each.
fn elements(config: &Config, padded_vocab: usize) -> u128 {
    let padding = (padded_vocab as i128 - config.padded_vocab() as i128) * config.channels as i128;
    let ours: i128 = PARAMS
        .iter()
        .map(|p| {
            let [rows, columns] = (p.shape)(config);
            rows as i128 * columns as i128 * p.copies(config) as i128
        })
        .sum();
    (ours + padding) as u128
}

fn read(path: &Path, header: &Header, map: &Mapped, body: &[u8]) -> Result<Weights> {
    let (config, width) = (header.config, header.element.bytes());
    let mut weights = Weights::zeros(config);
    let mut rest = body;
    for (param, values) in PARAMS.iter().zip(&mut weights.tensors) {
        let wte = param.name == "wte";
        let stored = if wte { header.padded_vocab * config.channels } else { values.len() };
        let kept = if wte { config.vocab * config.channels } else { stored };
        let (tensor, later) = rest.split_at(stored * width);
        rest = later;
        let out = &mut values[..kept];
        let read = map.decode(header.element.dtype(), &tensor[..kept * width], out);
        map.check()?;
        read.map_err(|(index, value)| {
            let name = param.name;
            data(
                path,
                Fault::from(format!("tensor `{name}` holds {value} at index {index}"))
                    .expected("finite numbers")
                    .advice("try another copy"),
            )
        })?;
    }
    Ok(weights)
}

#[cfg(test)]
#[path = "llmc_tests.rs"]
mod tests;
