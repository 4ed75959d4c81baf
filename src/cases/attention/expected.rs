//! The reference of one head, and the propagation of rounding errors through its formulas.

use crate::cases::{EPS, Stored, rounding};
use crate::reference;

/// Relative and absolute rounding error of weights: zero where they are f32.
pub const EXACT: [f64; 2] = [0.0; 2];
/// The same on matrix units, where weights are f16.
pub const ROUNDED: [f64; 2] = [1.0 / 2048.0, 1.0 / 33_554_432.0];

/// The outputs of one head, and their tolerances.
pub struct Expected {
    /// (T, HS).
    pub out: Vec<f64>,
    /// (T).
    pub lse: Vec<f64>,
    /// (T, 3 HS).
    pub dqkv: Vec<f64>,
    /// Tolerances of `out`.
    pub out_off: Vec<f64>,
    /// Tolerances of `lse`.
    pub lse_off: Vec<f64>,
    /// Tolerances of `dqkv`.
    pub dqkv_off: Vec<f64>,
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn dot_abs(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (x * y).abs()).sum()
}

/// Computes the outputs and gradients of one head, and propagates rounding errors through the formulas. A score has the
/// error of its own sum. Its weight has that error and the error of exp, which WGSL bounds by 3 + 2 |x| units. Sums
/// over positions add their own errors. On matrix units weights, and the dscores computed from them, are f16: they have
/// the relative error `factor`, and below f16's normal numbers the absolute error `least`.
///
/// `qkv`: (T, 3 HS). `dout`: (T, HS).
pub fn expect(kind: Stored, [factor, least]: [f64; 2], [t, hs]: [usize; 2], qkv: &[f64], dout: &[f64]) -> Expected {
    let reference::attention::Forward { out, lse } = reference::attention::forward(qkv, 1, t, hs, 1);
    let dqkv = reference::attention::backward(dout, qkv, 1, t, hs, 1);
    let (mut out_off, mut lse_off, mut dqkv_off) = (vec![0.0; out.len()], vec![0.0; t], vec![0.0; qkv.len()]);
    let scale = 1.0 / (hs as f64).sqrt();
    let sums = (rounding(t) + rounding(hs) + 12.0) * EPS;
    let at = |part: usize, i: usize| i * 3 * hs + part * hs;
    let part = |part: usize, i: usize| &qkv[at(part, i)..][..hs];
    for i in 0..t {
        let o = i * hs;
        let scores: Vec<f64> = (0..=i).map(|j| scale * dot(part(0, i), part(1, j))).collect();
        // twice the error: once for the product, once for q * scale or k * scale, which differ between the passes
        let score_off: Vec<f64> =
            (0..=i).map(|j| 2.0 * (rounding(hs) + 1.0) * EPS * scale * dot_abs(part(0, i), part(1, j))).collect();
        let worst = score_off.iter().copied().fold(0.0, f64::max);
        lse_off[i] = worst + sums + 2.0 * EPS * (lse[i].abs() + worst);
        let dout_row = &dout[o..o + hs];
        let mut out_abs = vec![0.0; hs];
        for (j, score) in scores.iter().enumerate() {
            let weight = (score - lse[i]).exp();
            out_abs.iter_mut().zip(part(2, j)).for_each(|(sum, v)| *sum += weight * v.abs());
        }
        for e in 0..hs {
            out_off[o + e] += (2.0 * worst).exp_m1().min(2.0) * out_abs[e];
        }
        let delta_abs = dot_abs(dout_row, &out_abs);
        for (j, score) in scores.iter().enumerate() {
            let below = score - lse[i];
            let weight = below.exp();
            // error of one weight: from its score, from the maximum or log-sum-exp, and from exp itself
            let off = (score_off[j] + lse_off[i]).exp_m1().min(1.0 / weight.max(1e-300))
                + (3.0 + 4.0 * below.abs()) * EPS
                + sums;
            let stored = (off + factor) * weight + least;
            let dscore = weight * (dot_abs(dout_row, part(2, j)) + delta_abs) * scale;
            // the row's sum is computed from the stored output, which is rounded
            let dscore_off =
                dscore * (2.0 * off + sums + factor) + weight * scale * kind.rounding() * delta_abs + least * scale;
            let [q, k, v] = [at(0, i), at(1, j), at(2, j)];
            for e in 0..hs {
                out_off[o + e] += stored * qkv[v + e].abs();
                dqkv_off[q + e] += dscore_off * qkv[k + e].abs();
                dqkv_off[k + e] += dscore_off * qkv[q + e].abs();
                dqkv_off[v + e] += stored * dout_row[e].abs();
            }
        }
    }
    Expected { out, lse, dqkv, out_off, lse_off, dqkv_off }
}
