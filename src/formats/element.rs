//! The element types that weights are written in.

use std::io::{self, Write};

use safetensors::Dtype;

use crate::error::{Error, Fault, Result};
use crate::model::params::{PARAMS, Weights};

/// How a weight is stored in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Element {
    /// 32-bit float: what training computes with.
    #[default]
    F32,
    /// The upper half of an f32, rounded to nearest even.
    Bf16,
}

/// Values that are encoded before they are written.
const BATCH: usize = 1 << 14;

impl Element {
    /// Bytes of one element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// The name in flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// Writes values, little-endian.
    pub(super) fn write(self, values: &[f32], out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::F32 if cfg!(target_endian = "little") => out.write_all(bytemuck::cast_slice(values)),
            Self::F32 => write_as(values, out, f32::to_le_bytes),
            Self::Bf16 => write_as(values, out, |x| to_bf16(x).to_le_bytes()),
        }
    }

    /// Refuses weights that this element type turns into infinity.
    pub(super) fn check(self, weights: &Weights) -> Result<()> {
        if self == Self::F32 {
            return Ok(());
        }
        for (param, values) in PARAMS.iter().zip(&weights.tensors) {
            // exponent bits all set after rounding: the value was finite before
            if let Some(value) = values.iter().find(|x| to_bf16(**x) & 0x7f80 == 0x7f80) {
                let name = param.name;
                return Err(Error::data(
                    Fault::at("weights", format!("`{name}` holds {value}"))
                        .expected("numbers that bf16 can hold")
                        .advice("try f32"),
                ));
            }
        }
        Ok(())
    }
}

fn write_as<const N: usize>(values: &[f32], out: &mut dyn Write, bytes: impl Fn(f32) -> [u8; N]) -> io::Result<()> {
    let mut encoded = Vec::with_capacity(BATCH.min(values.len()) * N);
    for batch in values.chunks(BATCH) {
        encoded.clear();
        encoded.extend(batch.iter().flat_map(|x| bytes(*x)));
        out.write_all(&encoded)?;
    }
    Ok(())
}

/// Rounds to nearest, ties to even, as PyTorch does. Not for NaN.
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::Config;

    #[test]
    fn rounds_to_nearest_even() {
        for (bits, want) in [
            (0x3f80_0000, 0x3f80),
            (0x3f80_7fff, 0x3f80),
            (0x3f80_8000, 0x3f80),
            (0x3f81_8000, 0x3f82),
            (0xbf80_8001, 0xbf81),
            (0x8000_0000, 0x8000),
            (0x0000_0001, 0),
            (0x7f7f_ffff, 0x7f80),
        ] {
            assert_eq!(to_bf16(f32::from_bits(bits)), want, "{bits:#x}");
        }
    }

    #[test]
    fn what_becomes_infinite_is_refused() {
        let mut weights = Weights::zeros(Config::new(4, 9, 1, 1, 8).unwrap());
        weights.get_mut("fcb", 0)[3] = f32::MAX;
        assert!(Element::F32.check(&weights).is_ok());
        let error = Element::Bf16.check(&weights).unwrap_err();
        let Error::Data(fault) = &error else { panic!("{error:?}") };
        assert!(fault.what.contains("`fcb` holds 340282350000000000000000000000000000000"), "{error}");
        assert_eq!(fault.expected, "numbers that bf16 can hold");
    }
}
