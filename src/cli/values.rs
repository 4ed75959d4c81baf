//! Values of flags that several commands take.

use wgpt::train::settings::{Bytes, Positive, values};

/// Reads a number above zero.
pub fn parse_positive(text: &str) -> Result<f64, String> {
    text.parse().map(|Positive(number)| number)
}

/// Reads a number of tokens above zero, which may have a unit: `1e9`, `200k`, `10B`.
pub fn parse_tokens(text: &str) -> Result<f64, String> {
    let number = values::quantity(text).filter(|number| *number > 0.0 && number.is_finite());
    number.ok_or_else(|| format!("`{text}`, expected a number of tokens above 0, such as 524288, 200k or 10B"))
}

/// Reads a whole number of tokens.
pub fn parse_token_count(text: &str) -> Result<u64, String> {
    values::token_count(text).map(|count| count as u64)
}

/// Reads a number of bytes with its unit: `800MB`, `24GiB`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    text.parse().map(|Bytes(bytes)| bytes)
}
