//! Element types of stored weights.

use std::io::{self, Write};

use half::f16;
use safetensors::Dtype;

use crate::error::{Error, Fault, Result};
use crate::model::params::{PARAMS, Weights};

/// Element type of weights in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Element {
    /// 32-bit float, as training uses.
    #[default]
    F32,
    /// IEEE half precision, rounded to nearest even.
    F16,
    /// The upper half of an f32, rounded to nearest even.
    Bf16,
}

/// Number of values that are encoded at once.
const BATCH: usize = 1 << 14;

impl Element {
    /// Returns the bytes per element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Returns the name in flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Returns the name in Hugging Face's configurations.
    pub(super) fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// Writes values in little-endian order.
    pub(super) fn write(self, values: &[f32], out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::F32 if cfg!(target_endian = "little") => out.write_all(bytemuck::cast_slice(values)),
            Self::F32 => write_as(values, out, f32::to_le_bytes),
            Self::F16 => write_as(values, out, |x| f16::from_f32(x).to_le_bytes()),
            Self::Bf16 => write_as(values, out, |x| to_bf16(x).to_le_bytes()),
        }
    }

    /// Rounds a finite `value` to this element type and back to f32. The result is infinite if the value is too large.
    pub(super) fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => f32::from_bits(u32::from(to_bf16(value)) << 16),
        }
    }

    /// Fails if this element type turns a weight into infinity.
    pub(super) fn check(self, weights: &Weights) -> Result<()> {
        PARAMS.iter().zip(&weights.tensors).try_for_each(|(param, values)| self.check_values(param.name, values))
    }

    /// Fails if this element type turns a value of the tensor `name` into infinity.
    pub(super) fn check_values(self, name: &str, values: &[f32]) -> Result<()> {
        let found = if self == Self::F32 { None } else { values.iter().find(|x| self.round(**x).is_infinite()) };
        found.map_or(Ok(()), |value| Err(too_large(name, *value, self.name())))
    }
}

/// Returns the error for a value that an element type cannot represent.
pub(super) fn too_large(name: &str, value: f32, element: &str) -> Error {
    Error::data(
        Fault::at("weights", format!("`{name}` contains {value}"))
            .expected(format!("numbers that {element} can represent"))
            .advice(if element == "bf16" { "try f32" } else { "try bf16 or f32" }),
    )
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
    fn halves_round_to_nearest_even() {
        for (value, want) in [
            (1.0, 0x3c00),
            (-2.0, 0xc000),
            // halfway between 1 and the next half rounds to the even one; a little more rounds to the next
            (1.0 + 1.0 / 2048.0, 0x3c00),
            (1.0 + 1.0 / 2048.0 + f32::EPSILON, 0x3c01),
            (1.0 + 3.0 / 2048.0, 0x3c02),
            (2_f32.powi(-24), 1),
            (2_f32.powi(-25), 0),
            (65_519.0, 0x7bff),
        ] {
            let mut bytes = Vec::new();
            Element::F16.write(&[value], &mut bytes).unwrap();
            assert_eq!(bytes, u16::to_le_bytes(want), "{value}");
        }
    }

    #[test]
    fn what_becomes_infinite_is_refused() {
        let mut weights = Weights::zeros(Config::new(4, 9, 1, 1, 8).unwrap());
        weights.get_mut("fcb", 0)[3] = f32::MAX;
        assert!(Element::F32.check(&weights).is_ok());
        let error = Element::Bf16.check(&weights).unwrap_err();
        let Error::Data(fault) = &error else { panic!("{error:?}") };
        assert!(fault.what.contains("`fcb` contains 340282350000000000000000000000000000000"), "{error}");
        assert_eq!((&*fault.expected, &*fault.advice), ("numbers that bf16 can represent", "try f32"));
        // 65519 rounds to the largest half, 65520 to infinity
        weights.get_mut("fcb", 0)[3] = -65_519.0;
        assert!(Element::F16.check(&weights).is_ok());
        weights.get_mut("fcb", 0)[3] = -65_520.0;
        assert!(Element::Bf16.check(&weights).is_ok());
        let error = Element::F16.check(&weights).unwrap_err().to_string();
        assert_eq!(error, "weights: `fcb` contains -65520, expected numbers that f16 can represent; try bf16 or f32");
    }
}
