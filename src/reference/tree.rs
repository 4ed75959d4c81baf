//! One addition of a tree.

/// `left += right`, element by element. Accumulates into `left`.
pub fn add(left: &mut [f64], right: &[f64]) {
    assert_eq!(left.len(), right.len(), "tree.add: right");
    for (left, right) in left.iter_mut().zip(right) {
        *left += right;
    }
}
