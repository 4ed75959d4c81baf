//! Values of flags that several commands take.

use wgpt::train::settings::{Bytes, Positive};

/// Reads a number above zero.
pub fn parse_positive(text: &str) -> Result<f64, String> {
    text.parse().map(|Positive(number)| number)
}

/// Reads a number of bytes: `800MB`, `24GiB`, `1073741824`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    text.parse().map(|Bytes(bytes)| bytes)
}
