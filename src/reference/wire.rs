//! Conversion of values to and from 16 bits.

use half::{bf16, f16};

/// Returns the bits of values times `factor` as bf16, or as f16: the nearest, ties to even. Values below bf16's
/// smallest normal number become zero.
#[must_use]
pub fn narrow(values: &[f32], factor: f64, is_bf16: bool) -> Vec<u16> {
    let bits = |value: &f32| {
        let scaled = f64::from(*value) * factor;
        match is_bf16 {
            true if scaled.abs() < bf16::MIN_POSITIVE.to_f64() => bf16::from_f64(0.0_f64.copysign(scaled)).to_bits(),
            true if scaled.is_nan() => bf16::NAN.to_bits() | u16::from(value.is_sign_negative()) << 15,
            false if scaled.is_nan() => f16::NAN.to_bits() | u16::from(value.is_sign_negative()) << 15,
            // an f32 times a power of two converts to f32 exactly; `half` would truncate an f64 before it rounds
            true => bf16::from_f32(scaled as f32).to_bits(),
            false => f16::from_f32(scaled as f32).to_bits(),
        }
    };
    values.iter().map(bits).collect()
}

/// Returns the values of the bits, each times `factor`.
#[must_use]
pub fn widen(bits: &[u16], factor: f64, is_bf16: bool) -> Vec<f64> {
    let value = |bits: &u16| match is_bf16 {
        true => bf16::from_bits(*bits).to_f64(),
        false => f16::from_bits(*bits).to_f64(),
    };
    bits.iter().map(|bits| value(bits) * factor).collect()
}
