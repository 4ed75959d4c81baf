//! Values of the flags of `wgpt train` that are neither numbers nor names of files.

use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use wgpt::data::Tokenizer;
use wgpt::train::schedule::Shape;

/// `--tokenizer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TokenizerName {
    /// GPT-2's byte pairs, 50,257 ids
    Gpt2,
    /// One id a byte, 257 ids
    Bytes,
}

impl TokenizerName {
    pub fn tokenizer(self) -> Tokenizer {
        match self {
            Self::Gpt2 => Tokenizer::Gpt2,
            Self::Bytes => Tokenizer::Bytes,
        }
    }
}

/// `--on-disk-full`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WhenFull {
    /// Try again until there is room
    Pause,
    /// End with exit code 6
    Stop,
}

/// The value of `--peak-tflops`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Peak {
    Given(f64),
    Measure,
}

impl std::str::FromStr for Peak {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "measure" {
            return Ok(Self::Measure);
        }
        parse_positive(text).map(Self::Given).map_err(|e| format!("{e}, or `measure`"))
    }
}

/// A number above zero.
pub fn parse_positive(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| *number > 0.0 && number.is_finite());
    number.ok_or_else(|| format!("`{text}`, expected a number above 0"))
}

/// `--schedule`.
pub fn schedule_names() -> impl TypedValueParser<Value = Shape> {
    let names = PossibleValuesParser::new(Shape::ALL.map(Shape::name));
    names.map(|name| Shape::ALL.into_iter().find(|shape| shape.name() == name).unwrap_or_default())
}

/// A number of bytes: `800MB`, `24GiB`, `1073741824`.
pub fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| format!("`{text}`, expected a number and a unit, such as 24GiB"))?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        other => return Err(format!("unknown unit `{other}`, expected KiB, MiB, GiB, kB, MB or GB")),
    };
    Ok((number * factor) as u64)
}
