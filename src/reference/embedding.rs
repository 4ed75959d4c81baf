//! Token and position embedding: the sum of two rows looked up in tables.

/// `out[n,c] = wte[tokens[n],c] + wpe[n % T,c]`. Returns `out`.
///
/// `tokens`: (N), N a multiple of T. `wte`: (Vp, C). `wpe`: (at least T, C). `out`: (N, C).
#[must_use]
pub fn forward(tokens: &[u32], wte: &[f64], wpe: &[f64], T: usize, C: usize) -> Vec<f64> {
    let N = tokens.len();
    assert_eq!(N % T, 0, "embedding.forward: rows are not a multiple of T");
    let mut out = vec![0.0; N * C];
    for n in 0..N {
        let (token, t) = (tokens[n] as usize, n % T);
        for c in 0..C {
            out[n * C + c] = wte[token * C + c] + wpe[t * C + c];
        }
    }
    out
}

/// `dwte[tokens[n],c] += dout[n,c]`, `dwpe[n % T,c] += dout[n,c]`. Accumulates into `dwte` and `dwpe`.
///
/// `dout`: (N, C). `tokens`: (N). `dwte`: (Vp, C). `dwpe`: (at least T, C); its rows from T on are not changed.
pub fn backward(dout: &[f64], tokens: &[u32], dwte: &mut [f64], dwpe: &mut [f64], T: usize, C: usize) {
    let N = tokens.len();
    assert_eq!(N % T, 0, "embedding.backward: rows are not a multiple of T");
    assert_eq!(dout.len(), N * C, "embedding.backward: dout");
    for n in 0..N {
        let (token, t) = (tokens[n] as usize, n % T);
        for c in 0..C {
            dwte[token * C + c] += dout[n * C + c];
            dwpe[t * C + c] += dout[n * C + c];
        }
    }
}
