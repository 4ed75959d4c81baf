//! The Gaussian error linear unit in GPT-2's tanh approximation.

/// sqrt(2 / pi).
const SCALE: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
/// Coefficient of the cube.
const CUBE: f64 = 0.044715;

/// `out = 0.5 * x * (1 + tanh(u))`, `u = sqrt(2/pi) * (x + 0.044715 x³)`, element by element. Returns `out`.
///
/// Source: Hendrycks and Gimpel 2016, arXiv:1606.08415; `torch.nn.functional.gelu(approximate="tanh")`.
#[must_use]
pub fn forward(inp: &[f64]) -> Vec<f64> {
    inp.iter()
        .map(|&x| {
            let u = SCALE * (x + CUBE * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        })
        .collect()
}

/// `dinp = dout * (0.5 * (1 + tanh(u)) + 0.5 * x * (1 - tanh²(u)) * sqrt(2/pi) * (1 + 3 * 0.044715 x²))`.
/// Returns `dinp`.
///
/// `dout`, `inp`, `dinp`: the same shape; `inp` is the input of [`forward`].
#[must_use]
pub fn backward(dout: &[f64], inp: &[f64]) -> Vec<f64> {
    assert_eq!(dout.len(), inp.len(), "gelu.backward: dout");
    dout.iter()
        .zip(inp)
        .map(|(&dy, &x)| {
            let u = SCALE * (x + CUBE * x * x * x);
            let du = SCALE * (1.0 + 3.0 * CUBE * x * x);
            let tanh = u.tanh();
            dy * (0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * du)
        })
        .collect()
}
