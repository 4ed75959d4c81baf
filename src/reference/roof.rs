//! The results of the roof kernels. They are of no use except to check that the kernels compute.

/// Returns the sum of 16 numbers, initially 0/16 to 15/16, after `x = x a + b` was applied to each `8 * rounds` times.
#[must_use]
pub fn fused(rounds: u32, a: f64, b: f64) -> f64 {
    let mut sum = 0.0;
    for start in 0..16 {
        let mut x = f64::from(start) / 16.0;
        for _ in 0..8 * rounds {
            x = x * a + b;
        }
        sum += x;
    }
    sum
}

/// Returns `rounds` times `a0 b0`, `a0 b1`, `a1 b0` and `a1 b1`, one after the other: (4 E, E).
///
/// `operands`: (4 E, E), the matrices a0, a1, b0, b1.
#[must_use]
pub fn matrix(operands: &[f64], rounds: u32, E: usize) -> Vec<f64> {
    assert_eq!(operands.len(), 4 * E * E, "roof.matrix: operands");
    let at = |matrix: usize, row: usize, column: usize| operands[(matrix * E + row) * E + column];
    let mut out = Vec::new();
    for (a, b) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
        for m in 0..E {
            for n in 0..E {
                let mut sum = 0.0;
                for k in 0..E {
                    sum += at(a, m, k) * at(b, k, n);
                }
                out.push(sum * f64::from(rounds));
            }
        }
    }
    out
}

/// Returns the sum (M, N) of `rounds` products a bᵀ. Round r uses tile `r stride` modulo the number of tiles.
///
/// `operands`: tiles one after the other, each with an a (M, K) and a b (N, K).
#[must_use]
pub fn matrix_fed(operands: &[f64], rounds: u32, stride: u32, [M, N, K]: [usize; 3]) -> Vec<f64> {
    let tile = (M + N) * K;
    assert!(!operands.is_empty() && operands.len().is_multiple_of(tile), "roof.matrix_fed: operands");
    let tiles = operands.len() / tile;
    let mut out = vec![0.0; M * N];
    for round in 0..rounds {
        let (a, b) = operands[(round * stride) as usize % tiles * tile..][..tile].split_at(M * K);
        for (i, sum) in out.iter_mut().enumerate() {
            let (m, n) = (i / N, i % N);
            *sum += (0..K).map(|k| a[m * K + k] * b[n * K + k]).sum::<f64>();
        }
    }
    out
}
