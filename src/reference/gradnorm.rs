//! The Euclidean norm over all gradients, and the factor that clips it.

/// Returns `sqrt(Σ g²)` over all elements of all tensors.
#[must_use]
pub fn forward(grads: &[Vec<f64>]) -> f64 {
    let mut squares = 0.0;
    for tensor in grads {
        for g in tensor {
            squares += g * g;
        }
    }
    squares.sqrt()
}

/// Returns the factor that scales a gradient of this norm down to `clip`: `clip / norm` if `norm > clip`, else 1.
///
/// Source: llm.c's `gpt2_update`. (PyTorch's `clip_grad_norm_` divides by `norm + 1e-6` instead.)
#[must_use]
pub fn clip_scale(norm: f64, clip: f64) -> f64 {
    if norm > clip { clip / norm } else { 1.0 }
}
