//! Rounding to f16.

/// The nearest f16, ties to even; past 65,504 and half a step, infinity.
#[must_use]
pub fn forward(inp: &[f64]) -> Vec<f64> {
    inp.iter().map(|&x| half::f16::from_f64(x).to_f64()).collect()
}
