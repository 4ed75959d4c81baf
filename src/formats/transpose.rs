//! The only change of layout: Hugging Face's `Conv1D` stores (in, out), this program stores (out, in).

use rayon::prelude::*;

/// Side of the square tiles: 32 rows of 32 f32 stay in the L1 cache while they are read by rows and written by columns.
const TILE: usize = 32;

/// `out[c, r] = map(inp[r, c])`. Overwrites `out`.
///
/// `inp`: (rows, columns).  `out`: (columns, rows).
///
/// # Panics
/// If a length is not `rows * columns`: a bug of the caller.
pub fn transpose<A: Copy + Sync, B: Send>(
    inp: &[A],
    [rows, columns]: [usize; 2],
    out: &mut [B],
    map: impl Fn(A) -> B + Sync,
) {
    assert_eq!(inp.len(), rows * columns, "transpose: length of `inp`");
    assert_eq!(out.len(), rows * columns, "transpose: length of `out`");
    if out.is_empty() {
        return;
    }
    out.par_chunks_mut(TILE * rows).enumerate().for_each(|(band, out)| {
        let first_column = band * TILE;
        for first_row in (0..rows).step_by(TILE) {
            let last_row = rows.min(first_row + TILE);
            for (i, out_row) in out.chunks_exact_mut(rows).enumerate() {
                for r in first_row..last_row {
                    out_row[r] = map(inp[r * columns + first_column + i]);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_definition() {
        for [rows, columns] in [[1, 1], [1, 7], [7, 1], [31, 33], [32, 64], [97, 101], [0, 5]] {
            let inp: Vec<usize> = (0..rows * columns).collect();
            let mut out = vec![usize::MAX; inp.len()];
            transpose(&inp, [rows, columns], &mut out, |x| x + 1);
            for r in 0..rows {
                for c in 0..columns {
                    assert_eq!(out[c * rows + r], inp[r * columns + c] + 1, "({rows}, {columns}) at ({r}, {c})");
                }
            }
        }
    }
}
