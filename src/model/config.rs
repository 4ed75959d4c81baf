//! The shape of a GPT-2 model, and the names of the usual shapes.

use crate::error::{Error, Fault, Result};

/// The numbers that fix every tensor's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Longest sequence the position table holds, e.g. 1024.
    pub positions: usize,
    /// Vocabulary size V, e.g. 50257.
    pub vocab: usize,
    /// Number of blocks L, e.g. 12.
    pub layers: usize,
    /// Number of attention heads NH, e.g. 12.
    pub heads: usize,
    /// Width C of the residual stream, e.g. 768.
    pub channels: usize,
}

/// GPT-2's vocabulary size.
pub const GPT2_VOCAB: usize = 50_257;

impl Config {
    /// Builds a configuration and checks it.
    ///
    /// # Errors
    /// [`Error::Usage`] if a number is zero, `heads` does not divide `channels`, or a head is not 8 to 128 wide.
    pub fn new(positions: usize, vocab: usize, layers: usize, heads: usize, channels: usize) -> Result<Self> {
        let config = Self { positions, vocab, layers, heads, channels };
        config.check()?;
        Ok(config)
    }

    /// Checks the configuration as [`Config::new`] does.
    ///
    /// # Errors
    /// [`Error::Usage`] if a number is zero, `heads` does not divide `channels`, or a head is not 8 to 128 wide.
    pub fn check(&self) -> Result<()> {
        for (name, value, most) in [
            ("context", self.positions, 1 << 24),
            ("vocab", self.vocab, 1 << 24),
            ("layers", self.layers, 1 << 12),
            ("heads", self.heads, 1 << 20),
            ("channels", self.channels, 1 << 20),
        ] {
            if !(1..=most).contains(&value) {
                let fault = Fault::at(name, "out of range").expected(format!("1 to {most}"));
                return Err(Error::usage(fault.found(value)));
            }
        }
        if !self.channels.is_multiple_of(self.heads) {
            let fault = Fault::at("heads", format!("{} heads do not divide {} channels", self.heads, self.channels));
            let divisor = nearest_divisor(self.channels, self.heads);
            return Err(Error::usage(fault.expected(format!("a divisor, for example {divisor}"))));
        }
        if !(8..=128).contains(&self.head_size()) {
            let fault = Fault::at("heads", format!("{} over {} channels", self.heads, self.channels));
            let found = format!("{} channels", self.head_size());
            return Err(Error::usage(fault.expected("heads of 8 to 128 channels").found(found)));
        }
        Ok(())
    }

    /// Reads a descriptor as llm.c does: `d12`, `gpt2:d12` (1,024 positions) or `gpt3:c768` (2,048 positions).
    ///
    /// # Errors
    /// [`Error::Usage`], which lists the known descriptors, if the descriptor is unknown.
    pub fn from_descriptor(name: &str) -> Result<Self> {
        let unknown = || {
            let known =
                "one of d6 d12 d24 d36 d48 d60 d72 d84 or gpt3:cN with N one of 384 768 1024 1536 2048 2560 4096 12288";
            Error::usage(Fault::at("model", "unknown model").expected(known).found(format!("`{name}`")))
        };
        if let Some(channels) = name.strip_prefix("gpt3:c") {
            let channels: usize = channels.parse().map_err(|_| unknown())?;
            // depth and head size from the table in the GPT-3 paper, as in llm.c
            let (layers, head_size) = match channels {
                384 => (6, 64),
                768 => (12, 64),
                1024 => (24, 64),
                1536 => (24, 96),
                2048 => (24, 128),
                2560 => (32, 80),
                4096 => (32, 128),
                12288 => (96, 128),
                _ => return Err(unknown()),
            };
            return Self::new(2048, GPT2_VOCAB, layers, channels / head_size, channels);
        }
        let depth = name.strip_prefix("gpt2:").unwrap_or(name).strip_prefix('d').ok_or_else(unknown)?;
        let layers: usize = depth.parse().map_err(|_| unknown())?;
        let (channels, heads) = match layers {
            6 => (384, 6),
            12 => (768, 12),
            24 => (1024, 16),
            36 => (1280, 20),
            48 => (1600, 25),
            60 => (1920, 30),
            72 => (2880, 30),
            84 => (3456, 36),
            _ => return Err(unknown()),
        };
        Self::new(1024, GPT2_VOCAB, layers, heads, channels)
    }

    /// Returns the width of one head, HS = C / NH.
    #[must_use]
    pub fn head_size(&self) -> usize {
        self.channels / self.heads
    }

    /// Returns the stored rows of the token embedding: V rounded up to a multiple of 128. The rows from V on stay
    /// exactly zero.
    #[must_use]
    pub fn padded_vocab(&self) -> usize {
        self.vocab.next_multiple_of(128)
    }

    /// Returns the number of parameters, including the padding of the vocabulary (124,475,904 for d12).
    #[must_use]
    pub fn parameters(&self) -> usize {
        super::params::PARAMS.iter().map(|p| p.elements(self) * p.copies(self)).sum()
    }
}

/// Returns the divisor of `n` nearest to `near`, for an error's advice.
fn nearest_divisor(n: usize, near: usize) -> usize {
    (1..=n).filter(|d| n.is_multiple_of(*d)).min_by_key(|d| d.abs_diff(near)).unwrap_or(1)
}
