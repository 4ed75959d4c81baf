//! Rounding to f16.

/// Returns the nearest f16 of each value, ties to even. Values from half a step above 65,504 on become infinite.
#[must_use]
pub fn forward(inp: &[f64]) -> Vec<f64> {
    inp.iter().map(|&x| half::f16::from_f64(x).to_f64()).collect()
}
