//! Causal multi-head attention, computed with the full matrix of probabilities of one head at a time.
//!
//! `qkv` is (B, T, 3C): the first C channels of a row are the query, then the key, then the value; head h has the
//! channels `h*HS .. (h+1)*HS` of each, `HS = C / NH`.

/// The result of [`forward`].
#[derive(Debug, Clone)]
pub struct Forward {
    /// (B, T, C): the heads side by side.
    pub out: Vec<f64>,
    /// (B, NH, T): log of the sum of exponentials of the scaled scores of each query.
    pub lse: Vec<f64>,
}

/// Returns the offset of channel 0 of head h in the query (`part` 0), key (1) or value (2) of row (b, t).
fn offset(b: usize, t: usize, part: usize, h: usize, T: usize, C: usize, HS: usize) -> usize {
    (b * T + t) * 3 * C + part * C + h * HS
}

/// Returns the probabilities (T, T) and the log-sum-exp (T) of one head: `p[i,j] = exp(s[i,j] - lse[i])` for `j <= i`,
/// else 0, where `s[i,j] = q[i] · k[j] / sqrt(HS)`.
fn probabilities(qkv: &[f64], b: usize, h: usize, T: usize, C: usize, NH: usize) -> (Vec<f64>, Vec<f64>) {
    let HS = C / NH;
    let scale = 1.0 / (HS as f64).sqrt();
    let (mut p, mut lse) = (vec![0.0; T * T], vec![0.0; T]);
    for i in 0..T {
        let mut scores = vec![0.0; i + 1];
        for j in 0..=i {
            let (q, k) = (offset(b, i, 0, h, T, C, HS), offset(b, j, 1, h, T, C, HS));
            for e in 0..HS {
                scores[j] += scale * qkv[q + e] * qkv[k + e];
            }
        }
        // the largest score is subtracted so that no exponential overflows
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut sum = 0.0;
        for j in 0..=i {
            sum += (scores[j] - max).exp();
        }
        lse[i] = max + sum.ln();
        for j in 0..=i {
            p[i * T + j] = (scores[j] - lse[i]).exp();
        }
    }
    (p, lse)
}

/// `out[i] = Σ_{j<=i} softmax_j(q[i] · k[j] / sqrt(HS)) v[j]` for every head of every sequence. Returns `out`, `lse`.
///
/// `qkv`: (B, T, 3C). `out`: (B, T, C). `lse`: (B, NH, T).
/// Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.
#[must_use]
pub fn forward(qkv: &[f64], B: usize, T: usize, C: usize, NH: usize) -> Forward {
    assert_eq!(qkv.len(), B * T * 3 * C, "attention.forward: qkv");
    assert_eq!(C % NH, 0, "attention.forward: heads do not divide channels");
    let HS = C / NH;
    let mut out = vec![0.0; B * T * C];
    let mut lse = vec![0.0; B * NH * T];
    for b in 0..B {
        for h in 0..NH {
            let (p, head_lse) = probabilities(qkv, b, h, T, C, NH);
            for i in 0..T {
                lse[(b * NH + h) * T + i] = head_lse[i];
                for j in 0..=i {
                    let v = offset(b, j, 2, h, T, C, HS);
                    for e in 0..HS {
                        out[(b * T + i) * C + h * HS + e] += p[i * T + j] * qkv[v + e];
                    }
                }
            }
        }
    }
    Forward { out, lse }
}

/// With p the probabilities, for every head: `dv[j] = Σᵢ p[i,j] dout[i]`, `dp[i,j] = dout[i] · v[j]`,
/// `ds[i,j] = p[i,j] * (dp[i,j] - Σⱼ p[i,j] dp[i,j])`, `dq[i] = Σⱼ ds[i,j] k[j] / sqrt(HS)`,
/// `dk[j] = Σᵢ ds[i,j] q[i] / sqrt(HS)`. Returns `dqkv`.
///
/// `dout`: (B, T, C). `qkv`, `dqkv`: (B, T, 3C).
/// Source: `ds` is the derivative of softmax, row by row.
#[must_use]
pub fn backward(dout: &[f64], qkv: &[f64], B: usize, T: usize, C: usize, NH: usize) -> Vec<f64> {
    assert_eq!((dout.len(), qkv.len()), (B * T * C, B * T * 3 * C), "attention.backward: dout, qkv");
    let HS = C / NH;
    let scale = 1.0 / (HS as f64).sqrt();
    let mut dqkv = vec![0.0; B * T * 3 * C];
    for b in 0..B {
        for h in 0..NH {
            let (p, _) = probabilities(qkv, b, h, T, C, NH);
            for i in 0..T {
                let o = (b * T + i) * C + h * HS;
                let q = offset(b, i, 0, h, T, C, HS);

                let mut dp = vec![0.0; i + 1];
                let mut p_dp = 0.0;
                for j in 0..=i {
                    let v = offset(b, j, 2, h, T, C, HS);
                    for e in 0..HS {
                        dp[j] += dout[o + e] * qkv[v + e];
                        dqkv[v + e] += p[i * T + j] * dout[o + e];
                    }
                    p_dp += p[i * T + j] * dp[j];
                }

                for j in 0..=i {
                    let k = offset(b, j, 1, h, T, C, HS);
                    let ds = p[i * T + j] * (dp[j] - p_dp);
                    for e in 0..HS {
                        dqkv[q + e] += scale * ds * qkv[k + e];
                        dqkv[k + e] += scale * ds * qkv[q + e];
                    }
                }
            }
        }
    }
    dqkv
}
