//! The sum that carries the residual stream past a branch.

/// `out = inp1 + inp2`, element by element. Returns `out`. (Backward: both gradients are `dout`.)
#[must_use]
pub fn forward(inp1: &[f64], inp2: &[f64]) -> Vec<f64> {
    assert_eq!(inp1.len(), inp2.len(), "residual.forward: inp2");
    inp1.iter().zip(inp2).map(|(a, b)| a + b).collect()
}
