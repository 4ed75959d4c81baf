//! Counts of words in which two tensors differ, and of elements that are out of tolerance.

/// Returns the number of words that differ, and the position of the first, or `u32::MAX` if none does.
#[must_use]
pub fn forward(first: &[u32], again: &[u32]) -> [u32; 2] {
    assert_eq!(first.len(), again.len(), "compare.forward: again");
    let mut result = [0, u32::MAX];
    for i in 0..first.len() {
        if first[i] != again[i] {
            result = [result[0] + 1, result[1].min(i as u32)];
        }
    }
    result
}

/// Returns the number of elements that are not within `tolerance + stored |want|` of `want`, the position of the first
/// of them or `u32::MAX`, and the number of nonzero elements. Rows have `line` elements, of which only those in
/// `columns` are compared.
#[must_use]
pub fn near(
    got: &[f64],
    want: &[f64],
    line: usize,
    columns: std::ops::Range<usize>,
    [tolerance, stored]: [f64; 2],
) -> [u32; 3] {
    assert_eq!(got.len(), want.len(), "compare.near: want");
    let mut result = [0, u32::MAX, 0];
    for i in 0..got.len() {
        if !columns.contains(&(i % line)) {
            continue;
        }
        let near = (got[i] - want[i]).abs() <= tolerance + stored * want[i].abs();
        if !(near && got[i].is_finite() && want[i].is_finite()) {
            result = [result[0] + 1, result[1].min(i as u32), result[2]];
        }
        result[2] += u32::from(got[i] != 0.0);
    }
    result
}
