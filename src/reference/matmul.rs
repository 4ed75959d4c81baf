//! The linear layer. Weights are (out, in): `out = inp weightᵀ + bias`.

/// `out[m,n] = Σₖ inp[m,k] * weight[n,k] + bias[n]`. Returns `out`.
///
/// `inp`: (M, K). `weight`: (N, K). `bias`: (N), or none. `out`: (M, N).
#[must_use]
pub fn forward(inp: &[f64], weight: &[f64], bias: Option<&[f64]>, M: usize, N: usize, K: usize) -> Vec<f64> {
    assert_eq!((inp.len(), weight.len()), (M * K, N * K), "matmul.forward: inp, weight");
    let mut out = vec![0.0; M * N];
    for m in 0..M {
        for n in 0..N {
            let mut sum = 0.0;
            for k in 0..K {
                sum += inp[m * K + k] * weight[n * K + k];
            }
            out[m * N + n] = sum + bias.map_or(0.0, |bias| bias[n]);
        }
    }
    out
}

/// `dinp[m,k] = Σₙ dout[m,n] * weight[n,k]`. Returns `dinp`.
///
/// `dout`: (M, N). `weight`: (N, K). `dinp`: (M, K).
#[must_use]
pub fn backward_inp(dout: &[f64], weight: &[f64], M: usize, N: usize, K: usize) -> Vec<f64> {
    assert_eq!((dout.len(), weight.len()), (M * N, N * K), "matmul.backward_inp: dout, weight");
    let mut dinp = vec![0.0; M * K];
    for m in 0..M {
        for n in 0..N {
            for k in 0..K {
                dinp[m * K + k] += dout[m * N + n] * weight[n * K + k];
            }
        }
    }
    dinp
}

/// `dweight[n,k] += Σₘ dout[m,n] * inp[m,k]`. Accumulates into `dweight`.
///
/// `dout`: (M, N). `inp`: (M, K). `dweight`: (N, K).
pub fn backward_weight(dout: &[f64], inp: &[f64], dweight: &mut [f64], M: usize, N: usize, K: usize) {
    assert_eq!((dout.len(), inp.len()), (M * N, M * K), "matmul.backward_weight: dout, inp");
    assert_eq!(dweight.len(), N * K, "matmul.backward_weight: dweight");
    for m in 0..M {
        for n in 0..N {
            for k in 0..K {
                dweight[n * K + k] += dout[m * N + n] * inp[m * K + k];
            }
        }
    }
}
