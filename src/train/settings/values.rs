//! Types of settings. Flags and recipes share one spelling of each value.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data::{TokenFormat, TokenizerName};
use crate::formats::checkpoint::Keep;
use crate::model::Recompute;
use crate::ops::wire::Format;
use crate::train::schedule::Shape;

/// A value with the same spelling in flags and in recipes.
pub trait Value: Sized + fmt::Display {
    /// Parses the spelling.
    ///
    /// # Errors
    /// A message that names the expected values.
    fn parse(text: &str) -> Result<Self, String>;
}

/// Implements [`Value`] for numbers; the text names the expected values in an error.
macro_rules! numbers {
    ($($number:ty: $expected:literal;)+) => {$(
        impl Value for $number {
            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!("`{text}`, expected {}", $expected))
            }
        }
    )+};
}

numbers! {
    usize: "a whole number";
    u32: "a whole number up to 2^32 - 1";
    f32: "a number";
    bool: "true or false";
}

/// Reads a count of tokens: `524288`, `524_288`, `200k`, `1.5M`, `10B` or `1e9`, where `k` is 1,000 and `B` is 10^9.
///
/// # Errors
/// A sentence for a person.
pub fn token_count(text: &str) -> Result<usize, String> {
    let wrong = || format!("`{text}`, expected a whole number of tokens, such as 524288, 200k or 10B");
    if let Ok(count) = text.replace('_', "").parse::<usize>() {
        return Ok(count);
    }
    // beyond 2^53 a float is no count
    let whole = |number: &f64| *number >= 0.0 && number.fract() == 0.0 && *number < 9e15;
    quantity(text).filter(whole).map(|number| number as usize).ok_or_else(wrong)
}

/// Reads a number that may end in `k`, `M`, `B` (or `G`) or `T`, for 10^3, 10^6, 10^9 and 10^12.
#[must_use]
pub fn quantity(text: &str) -> Option<f64> {
    let plain = text.trim().replace('_', "");
    let unit = plain.chars().last()?;
    let factor = match unit.to_ascii_lowercase() {
        'k' => 1e3,
        'm' => 1e6,
        'b' | 'g' => 1e9,
        't' => 1e12,
        _ => 1.0,
    };
    let number = if factor > 1.0 { plain[..plain.len() - 1].trim_end() } else { plain.as_str() };
    // parts of tokens are rounding errors of 1.1 * 1e6 and the like
    let product = number.parse::<f64>().ok()? * factor;
    let rounded = product.round();
    Some(if factor > 1.0 && (product - rounded).abs() < 1e-6 * product.abs() { rounded } else { product })
}

/// [`Value`] for types that read themselves.
macro_rules! read_themselves {
    ($($value:ty),+) => {$(
        impl Value for $value {
            fn parse(text: &str) -> Result<Self, String> {
                text.parse::<Self>().map_err(|error| error.to_string())
            }
        }
    )+};
}

read_themselves!(Batch, Interval, Bytes, Peak, Positive, Precision, TokenFormat, TokenizerName, WhenFull, Wire);

impl Value for String {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Value for Recompute {
    fn parse(text: &str) -> Result<Self, String> {
        one_of(text, &Self::ALL)
    }
}

impl Value for Shape {
    fn parse(text: &str) -> Result<Self, String> {
        one_of(text, &Self::ALL.map(|shape| (shape.name(), shape)))
    }
}

/// Returns the value with this name.
fn one_of<T: Copy>(text: &str, names: &[(&str, T)]) -> Result<T, String> {
    let found = names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        format!("`{text}`, expected one of {}", names.join(", "))
    })
}

/// Serde for optional [`Value`]s. Numbers and booleans are written bare, everything else in quotes; both forms are
/// read.
pub(super) mod spelled {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::{Value, Written};

    pub fn serialize<T: Value, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(|value| Written::of(&value.to_string())).serialize(to)
    }

    pub fn deserialize<'de, T: Value, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
        T::parse(&Written::deserialize(from)?.to_string()).map(Some).map_err(D::Error::custom)
    }
}

/// Serde for an optional count of tokens: written as a whole number, read as [`token_count`] does.
pub(super) mod tokens {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::{Written, spelled, token_count};

    pub fn serialize<S: Serializer>(value: &Option<usize>, to: S) -> Result<S::Ok, S::Error> {
        spelled::serialize(value, to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
        token_count(&Written::deserialize(from)?.to_string()).map(Some).map_err(D::Error::custom)
    }
}

/// A value as TOML writes it.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "a string or a number")]
enum Written {
    Switch(bool),
    Whole(i64),
    Real(f64),
    Text(String),
}

impl Written {
    fn of(text: &str) -> Self {
        // a whole number beyond TOML's range must not become a rounded float
        let whole = text.chars().all(|c| c.is_ascii_digit());
        let real = || text.parse().ok().filter(|number: &f64| number.is_finite() && !whole).map(Self::Real);
        let number = || text.parse().ok().map(Self::Whole).or_else(real);
        let switch = || text.parse().ok().map(Self::Switch);
        number().or_else(switch).unwrap_or_else(|| Self::Text(text.to_owned()))
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(value) => value.fmt(f),
            Self::Whole(value) => value.fmt(f),
            Self::Real(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
        }
    }
}

/// Sequences per micro-step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// As many as memory holds.
    Auto,
    /// This many.
    Count(usize),
}

impl FromStr for Batch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Count).map_err(|_| format!("`{text}`, expected a number or auto")),
        }
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Count(count) => count.fmt(f),
        }
    }
}

/// The interval between checkpoints.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Interval {
    /// A number of steps; 0 for checkpoints only at the end and on a signal.
    Steps(usize),
    /// Minutes since the last checkpoint.
    Minutes(f64),
}

impl FromStr for Interval {
    type Err = String;

    /// Parses `250` as steps and `10m` as minutes.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}`, expected steps, such as 250, or minutes, such as 10m");
        match text.strip_suffix('m') {
            None => text.parse().map(Self::Steps).map_err(|_| wrong()),
            Some(minutes) => match minutes.parse::<f64>() {
                Ok(minutes) if minutes > 0.0 && minutes.is_finite() => Ok(Self::Minutes(minutes)),
                _ => Err(wrong()),
            },
        }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steps(steps) => steps.fmt(f),
            Self::Minutes(minutes) => write!(f, "{minutes}m"),
        }
    }
}

/// A number of bytes, spelled with a unit: `800MB`, `24GiB`, `1073741824B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Units of [`Bytes`], each with those that mean the same.
const UNITS: [(&str, f64); 10] = [
    ("gib", 1024.0 * 1024.0 * 1024.0),
    ("mib", 1024.0 * 1024.0),
    ("kib", 1024.0),
    ("b", 1.0),
    ("gb", 1e9),
    ("mb", 1e6),
    ("kb", 1e3),
    ("g", 1024.0 * 1024.0 * 1024.0),
    ("m", 1024.0 * 1024.0),
    ("k", 1024.0),
];

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let number: f64 =
            number.parse().map_err(|_| format!("`{text}`, expected a number and a unit, such as 24GiB"))?;
        let known = unit.trim().to_ascii_lowercase();
        if known.is_empty() {
            return Err(format!("`{text}` has no unit, expected a size such as {text}GiB or {text}MiB"));
        }
        let factor = UNITS.iter().find(|(name, _)| *name == known).map(|(_, factor)| *factor);
        let factor = factor.ok_or_else(|| format!("unknown unit `{unit}`, expected KiB, MiB, GiB, kB, MB or GB"))?;
        Ok(Self((number * factor) as u64))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, bytes) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 > 0 && self.0.is_multiple_of(bytes) {
                return write!(f, "{}{unit}", self.0 / bytes);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// A number above zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Positive(pub f64);

impl FromStr for Positive {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse::<f64>().ok().filter(|number| *number > 0.0 && number.is_finite());
        number.map(Self).ok_or_else(|| format!("`{text}`, expected a number above 0"))
    }
}

impl fmt::Display for Positive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Peak rate of the adapter, the denominator of MFU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Peak {
    /// TFLOP/s.
    Given(f64),
    /// Measured before the run.
    Measure,
}

impl FromStr for Peak {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "measure" {
            return Ok(Self::Measure);
        }
        text.parse().map(|Positive(tflops)| Self::Given(tflops)).map_err(|e: String| format!("{e}, or `measure`"))
    }
}

impl fmt::Display for Peak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(tflops) => tflops.fmt(f),
            Self::Measure => f.write_str("measure"),
        }
    }
}

/// Element type of matrix operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// 32-bit floats throughout
    F32,
    /// Mixed: 16-bit floats for matrix operands and stored activations, on matrix units where the adapter has them
    F16,
    /// f16 on GPUs with matrix units, else f32
    Auto,
}

/// Element type of gradients sent between devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Wire {
    /// 32-bit floats, unchanged
    #[default]
    F32,
    /// The upper 16 bits of f32: half the bytes
    Bf16,
    /// 16-bit floats, scaled into their range: half the bytes
    F16,
}

impl Wire {
    /// Returns the 16-bit format; `None` for f32.
    #[must_use]
    pub fn format(self) -> Option<Format> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some(Format::Bf16),
            Self::F16 => Some(Format::F16),
        }
    }
}

/// Reaction of a run to a full disk or a write error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum WhenFull {
    /// Try again until there is room
    #[default]
    Pause,
    /// End with exit code 6
    Stop,
}

/// Implements the spelling of enums by their clap names.
macro_rules! named_by_clap {
    ($($name:ty),+) => {$(
        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let names = <Self as clap::ValueEnum>::value_variants().iter().map(|value| (value.to_string(), *value));
                let names: Vec<(String, Self)> = names.collect();
                one_of(text, &names.iter().map(|(name, value)| (name.as_str(), *value)).collect::<Vec<_>>())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let value = clap::ValueEnum::to_possible_value(self);
                f.write_str(value.as_ref().map_or("", clap::builder::PossibleValue::get_name))
            }
        }
    )+};
}

named_by_clap!(Precision, WhenFull, Wire);

/// Returns the checkpoints to keep: at least the newest one.
pub(super) fn keep(newest: usize, every: usize) -> Keep {
    Keep { newest: newest.max(1), every }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_tokens_may_have_a_unit() {
        for (text, count) in [
            ("524288", 524_288),
            ("524_288", 524_288),
            ("0", 0),
            ("200k", 200_000),
            ("1.5M", 1_500_000),
            ("1.1M", 1_100_000),
            ("10B", 10_000_000_000),
            ("0.3g", 300_000_000),
            ("1e9", 1_000_000_000),
            ("2T", 2_000_000_000_000),
        ] {
            assert_eq!(token_count(text), Ok(count), "{text}");
        }
        for wrong in ["", "k", "-1", "-2k", "1.5", "1.0001k", "ten", "1e30", "5kk", "nan", "infB"] {
            assert!(token_count(wrong).is_err_and(|why| why.contains("such as 524288, 200k or 10B")), "{wrong}");
        }
    }

    #[test]
    fn a_spelling_reads_back() {
        for text in ["24GiB", "800MiB", "3KiB", "1500000001B"] {
            assert_eq!(text.parse::<Bytes>().unwrap().to_string(), text);
        }
        for (text, bytes) in [("1073741824b", 1 << 30), ("800MB", 800_000_000), ("1.5g", 3 << 29), ("7B", 7)] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for (text, same) in [("250", "250"), ("10m", "10m"), ("0.5m", "0.5m")] {
            assert_eq!(text.parse::<Interval>().unwrap().to_string(), same);
        }
        assert_eq!("auto".parse(), Ok(Batch::Auto));
        assert_eq!(("f16".parse(), Precision::F16.to_string()), (Ok(Precision::F16), "f16".to_owned()));
        assert_eq!("stop".parse(), Ok(WhenFull::Stop));
        assert_eq!("measure".parse(), Ok(Peak::Measure));
        for (error, part) in [
            (Precision::parse("bf16").unwrap_err(), "expected one of f32, f16, auto"),
            (Shape::parse("cosin").unwrap_err(), "expected one of cosine, linear, constant, wsd"),
            (Bytes::parse("24Gi").unwrap_err(), "unknown unit `Gi`"),
            (Bytes::parse("24").unwrap_err(), "`24` has no unit, expected a size such as 24GiB"),
            (Interval::parse("-1m").unwrap_err(), "such as 10m"),
            (usize::parse("1.5").unwrap_err(), "`1.5`, expected a whole number"),
            (Peak::parse("0").unwrap_err(), "above 0, or `measure`"),
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
