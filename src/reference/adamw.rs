//! Adam with decoupled weight decay.

/// The numbers of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; 0 for vectors.
    pub weight_decay: f64,
    /// Factor of every gradient, for clipping.
    pub grad_scale: f64,
    /// Number of this update, counted from 1, for the bias correction.
    pub t: u32,
}

/// `g = grad * grad_scale`; `m = β₁m + (1-β₁)g`; `v = β₂v + (1-β₂)g²`; `m̂ = m/(1-β₁ᵗ)`; `v̂ = v/(1-β₂ᵗ)`;
/// `param -= lr * (m̂/(sqrt(v̂)+eps) + weight_decay * param)`. Updates `param`, `m` and `v` in place.
///
/// All slices have the same length.
/// Source: Loshchilov and Hutter 2017, arXiv:1711.05101.
pub fn update(param: &mut [f64], grad: &[f64], m: &mut [f64], v: &mut [f64], settings: &Settings) {
    let Settings { lr, beta1, beta2, eps, weight_decay, grad_scale, t } = *settings;
    assert!(t >= 1, "adamw.update: t counts from 1");
    assert_eq!((grad.len(), m.len(), v.len()), (param.len(), param.len(), param.len()), "adamw.update: lengths");
    for i in 0..param.len() {
        let g = grad[i] * grad_scale;
        m[i] = beta1 * m[i] + (1.0 - beta1) * g;
        v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
        let mhat = m[i] / (1.0 - beta1.powi(t as i32));
        let vhat = v[i] / (1.0 - beta2.powi(t as i32));
        param[i] -= lr * (mhat / (vhat.sqrt() + eps) + weight_decay * param[i]);
    }
}
