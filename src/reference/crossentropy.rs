//! Softmax and cross-entropy over the real columns of the logits.

/// The target that excludes a row: its loss and gradient are zero.
pub const IGNORED: u32 = u32::MAX;

/// Returns the log of the sum of exponentials. The largest value is subtracted first so that nothing overflows.
fn log_sum_exp(row: &[f64]) -> f64 {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for &x in row {
        sum += (x - max).exp();
    }
    max + sum.ln()
}

/// `losses[n] = -log softmax(logits[n,0..V])[targets[n]]`, in nats; 0 where the target is [`IGNORED`]. Returns
/// `losses`.
///
/// `logits`: (N, Vp), columns V.. are padding and never read. `targets`, `losses`: (N).
#[must_use]
pub fn forward(logits: &[f64], targets: &[u32], V: usize, Vp: usize) -> Vec<f64> {
    assert_eq!(logits.len(), targets.len() * Vp, "crossentropy.forward: logits");
    let mut losses = vec![0.0; targets.len()];
    for n in 0..targets.len() {
        if targets[n] == IGNORED {
            continue;
        }
        let row = &logits[n * Vp..n * Vp + V];
        losses[n] = log_sum_exp(row) - row[targets[n] as usize];
    }
    losses
}

/// `dlogits[n,v] = (softmax(logits[n,0..V])[v] - [v == targets[n]]) * dloss`; 0 in padded columns and ignored rows.
/// Returns `dlogits`.
///
/// `logits`, `dlogits`: (N, Vp). `targets`: (N). `dloss`: the weight of one row, 1 / (B T accumulation) in training.
#[must_use]
pub fn backward(logits: &[f64], targets: &[u32], dloss: f64, V: usize, Vp: usize) -> Vec<f64> {
    assert_eq!(logits.len(), targets.len() * Vp, "crossentropy.backward: logits");
    let mut dlogits = vec![0.0; logits.len()];
    for n in 0..targets.len() {
        if targets[n] == IGNORED {
            continue;
        }
        assert!((targets[n] as usize) < V, "crossentropy.backward: target {} of {V}", targets[n]);
        let row = &logits[n * Vp..n * Vp + V];
        let lse = log_sum_exp(row);
        for v in 0..V {
            let p = (row[v] - lse).exp();
            let onehot = if v == targets[n] as usize { 1.0 } else { 0.0 };
            dlogits[n * Vp + v] = (p - onehot) * dloss;
        }
    }
    dlogits
}
