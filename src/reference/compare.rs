//! The words in which two tensors differ.

/// How many words differ, and the position of the first that does, or `u32::MAX`.
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
