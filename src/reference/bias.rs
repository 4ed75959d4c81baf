//! A vector added to every row.

/// `out[m,n] = inp[m,n] + bias[n]`. Returns `out`.
///
/// `inp`, `out`: (M, N). `bias`: (N).
#[must_use]
pub fn forward(inp: &[f64], bias: &[f64]) -> Vec<f64> {
    let N = bias.len();
    assert_eq!(inp.len() % N, 0, "bias.forward: inp");
    let mut out = inp.to_vec();
    for m in 0..inp.len() / N {
        for n in 0..N {
            out[m * N + n] += bias[n];
        }
    }
    out
}

/// `dbias[n] += Σₘ dout[m,n]`: the column sums. Accumulates into `dbias`.
///
/// `dout`: (M, N). `dbias`: (N).
pub fn backward(dout: &[f64], dbias: &mut [f64]) {
    let N = dbias.len();
    assert_eq!(dout.len() % N, 0, "bias.backward: dout");
    for m in 0..dout.len() / N {
        for n in 0..N {
            dbias[n] += dout[m * N + n];
        }
    }
}
