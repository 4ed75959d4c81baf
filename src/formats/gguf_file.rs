//! Writes GGUF files, version 3, tensor by tensor, so that a model is never in memory twice.
//!
//! The layout, all little-endian: the magic, the version, the numbers of tensors and keys; the keys with their values;
//! for each tensor its name, its dimensions with the fastest first, its type and its offset; then the tensors, each at
//! a multiple of 32 bytes.

use std::io::{self, Write};
use std::path::Path;

use super::element::Element;
use super::q8_0;
use crate::error::Result;
use crate::files::atomic;

/// Tensors begin at multiples of this many bytes.
const ALIGNMENT: usize = 32;
const VERSION: u32 = 3;

/// The value of a key.
#[derive(Debug, Clone)]
pub enum Value {
    /// An unsigned number.
    U32(u32),
    /// A float.
    F32(f32),
    /// A text.
    Text(String),
    /// A list of texts, possibly empty.
    Texts(Vec<String>),
    /// A list of signed numbers.
    I32s(Vec<i32>),
}

/// The representation of a tensor in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Single elements.
    Plain(Element),
    /// Blocks of [`q8_0`].
    Q8_0,
}

impl Storage {
    /// Returns the name in flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain(element) => element.name(),
            Self::Q8_0 => "q8_0",
        }
    }

    /// Returns ggml's number for the type.
    fn id(self) -> u32 {
        match self {
            Self::Plain(Element::F32) => 0,
            Self::Plain(Element::F16) => 1,
            Self::Q8_0 => 8,
            Self::Plain(Element::Bf16) => 30,
        }
    }

    fn bytes(self, elements: usize) -> usize {
        match self {
            Self::Plain(element) => elements * element.bytes(),
            Self::Q8_0 => elements / q8_0::BLOCK * q8_0::BLOCK_BYTES,
        }
    }

    fn write(self, values: &[f32], out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Plain(element) => element.write(values, out),
            Self::Q8_0 => q8_0::write(values, out),
        }
    }
}

/// A tensor to be written.
#[derive(Debug, Clone)]
pub struct Tensor<'a> {
    /// Name in the file.
    pub name: String,
    /// Shape, last axis fastest.
    pub shape: Vec<usize>,
    /// Representation in the file.
    pub storage: Storage,
    /// Values.
    pub values: &'a [f32],
}

/// Writes the file `path` atomically, see [`atomic::write`].
///
/// # Errors
/// [`crate::error::Error::Output`] naming `path`.
pub fn write(path: &Path, keys: &[(&str, Value)], tensors: &[Tensor]) -> Result<()> {
    let mut header = header(keys, tensors);
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    atomic::write(path, |out| {
        out.write_all(&header)?;
        for tensor in tensors {
            tensor.storage.write(tensor.values, out)?;
            let bytes = tensor.storage.bytes(tensor.values.len());
            out.write_all(&[0; ALIGNMENT][..bytes.next_multiple_of(ALIGNMENT) - bytes])?;
        }
        Ok(())
    })
}

fn header(keys: &[(&str, Value)], tensors: &[Tensor]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(VERSION.to_le_bytes());
    put_length(&mut out, tensors.len());
    put_length(&mut out, keys.len());
    for (key, value) in keys {
        put_text(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|length| put_length(&mut out, *length));
        out.extend(tensor.storage.id().to_le_bytes());
        put_length(&mut out, offset);
        offset += tensor.storage.bytes(tensor.values.len()).next_multiple_of(ALIGNMENT);
    }
    out
}

/// Appends the number of a value's type and the value.
fn put_value(out: &mut Vec<u8>, value: &Value) {
    const U32: u32 = 4;
    const I32: u32 = 5;
    const F32: u32 = 6;
    const TEXT: u32 = 8;
    const ARRAY: u32 = 9;
    match value {
        Value::U32(value) => out.extend([U32.to_le_bytes(), value.to_le_bytes()].concat()),
        Value::F32(value) => out.extend([F32.to_le_bytes(), value.to_le_bytes()].concat()),
        Value::Text(text) => {
            out.extend(TEXT.to_le_bytes());
            put_text(out, text);
        }
        Value::Texts(texts) => {
            out.extend([ARRAY.to_le_bytes(), TEXT.to_le_bytes()].concat());
            put_length(out, texts.len());
            texts.iter().for_each(|text| put_text(out, text));
        }
        Value::I32s(values) => {
            out.extend([ARRAY.to_le_bytes(), I32.to_le_bytes()].concat());
            put_length(out, values.len());
            values.iter().for_each(|value| out.extend(value.to_le_bytes()));
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_length(out, text.len());
    out.extend(text.as_bytes());
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    out.extend((length as u64).to_le_bytes());
}
