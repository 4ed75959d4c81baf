//! `--batch`, which is a number or `auto`.

use std::str::FromStr;

/// Sequences of a micro-step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// As many as memory holds.
    Auto,
    /// So many.
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
