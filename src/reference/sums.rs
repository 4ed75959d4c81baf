//! Sums of partial sums.

/// `out[i] += Σₚ parts[p,i]`: the column sums. Accumulates into `out` and returns the sum of its squares.
///
/// `parts`: (P, N). `out`: (N).
pub fn add(parts: &[f64], out: &mut [f64]) -> f64 {
    let N = out.len();
    assert_eq!(parts.len() % N, 0, "sums.add: parts");
    for p in 0..parts.len() / N {
        for i in 0..N {
            out[i] += parts[p * N + i];
        }
    }
    out.iter().map(|x| x * x).sum()
}
