//! Layer normalisation over the channels of each row.

/// Added to the variance, as in GPT-2.
pub const EPS: f64 = 1e-5;

/// The result of [`forward`].
#[derive(Debug, Clone)]
pub struct Forward {
    /// (N, C): the normalised input, `(inp - mean) * rstd`.
    pub xhat: Vec<f64>,
    /// (N, C).
    pub out: Vec<f64>,
    /// (N): mean of each row.
    pub mean: Vec<f64>,
    /// (N): 1 / sqrt(variance + [`EPS`]) of each row.
    pub rstd: Vec<f64>,
}

/// `out[n,c] = (inp[n,c] - mean[n]) * rstd[n] * weight[c] + bias[c]`. Returns the normalised input too.
///
/// The variance is the biased one (divided by C), summed in a second pass over `inp - mean`.
///
/// `inp`: (N, C). `weight`, `bias`: (C).
/// Source: Ba et al. 2016, arXiv:1607.06450.
#[must_use]
pub fn forward(inp: &[f64], weight: &[f64], bias: &[f64], C: usize) -> Forward {
    assert_eq!(inp.len() % C, 0, "layernorm.forward: inp");
    assert_eq!((weight.len(), bias.len()), (C, C), "layernorm.forward: weight, bias");
    let N = inp.len() / C;
    let (mut xhat, mut mean, mut rstd) = (vec![0.0; N * C], vec![0.0; N], vec![0.0; N]);
    for n in 0..N {
        let row = &inp[n * C..(n + 1) * C];

        let mut sum = 0.0;
        for c in 0..C {
            sum += row[c];
        }
        mean[n] = sum / C as f64;

        let mut squares = 0.0;
        for c in 0..C {
            squares += (row[c] - mean[n]).powi(2);
        }
        rstd[n] = 1.0 / (squares / C as f64 + EPS).sqrt();

        for c in 0..C {
            xhat[n * C + c] = (row[c] - mean[n]) * rstd[n];
        }
    }
    Forward { out: affine(&xhat, weight, bias, C), xhat, mean, rstd }
}

/// `out[n,c] = xhat[n,c] * weight[c] + bias[c]`. Returns `out`.
///
/// `xhat`: (N, C). `weight`, `bias`: (C).
#[must_use]
pub fn affine(xhat: &[f64], weight: &[f64], bias: &[f64], C: usize) -> Vec<f64> {
    xhat.iter().enumerate().map(|(i, x)| x * weight[i % C] + bias[i % C]).collect()
}

/// With `g = weight * dout`, for each row: `dinp[c] = rstd * (g[c] - avg(g) - xhat[c] * avg(g * xhat))`;
/// `dweight[c] += Σₙ dout * xhat`; `dbias[c] += Σₙ dout`.
///
/// Returns only `dinp`, which the model adds to the gradient of the residual stream.
/// Accumulates into `dweight` and `dbias`.
///
/// `dout`, `xhat`, `dinp`: (N, C). `rstd`: (N). `weight`, `dweight`, `dbias`: (C). `xhat` and `rstd` are [`forward`]'s.
/// Source: llm.c's `layernorm_backward`. The terms with `avg` are the gradients through the mean and the variance.
#[must_use]
pub fn backward(
    dout: &[f64],
    xhat: &[f64],
    rstd: &[f64],
    weight: &[f64],
    dweight: &mut [f64],
    dbias: &mut [f64],
    C: usize,
) -> Vec<f64> {
    assert_eq!(dout.len(), xhat.len(), "layernorm.backward: dout");
    assert_eq!((dweight.len(), dbias.len()), (C, C), "layernorm.backward: dweight, dbias");
    let N = xhat.len() / C;
    let mut dinp = vec![0.0; N * C];
    for n in 0..N {
        let xhat = |c: usize| xhat[n * C + c];
        let g = |c: usize| weight[c] * dout[n * C + c];

        let (mut avg_g, mut avg_g_xhat) = (0.0, 0.0);
        for c in 0..C {
            avg_g += g(c) / C as f64;
            avg_g_xhat += g(c) * xhat(c) / C as f64;
        }

        for c in 0..C {
            dinp[n * C + c] = rstd[n] * (g(c) - avg_g - xhat(c) * avg_g_xhat);
            dweight[c] += dout[n * C + c] * xhat(c);
            dbias[c] += dout[n * C + c];
        }
    }
    dinp
}
