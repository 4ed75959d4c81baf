//! The elements of a result that are compared with the reference: all in tests, a sample where f64 would take minutes.

use crate::reference::random::Random;

/// Elements of a result that a case computes in f64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// All elements.
    All,
    /// Some rows, columns or heads, and always the first and the last.
    Subset,
}

impl Sample {
    /// Returns at most `most` of `n` positions in ascending order.
    pub fn of(self, n: usize, most: usize) -> Vec<usize> {
        if self == Self::All || n <= most {
            return (0..n).collect();
        }
        let mut random = Random::new(n as u64);
        let mut positions: Vec<usize> = (0..most).map(|_| random.below(n)).collect();
        positions.extend([0, n - 1]);
        positions.sort_unstable();
        positions.dedup();
        positions
    }

    /// Returns positions in a result whose elements do not depend on each other.
    pub fn elements(self, n: usize) -> Vec<usize> {
        self.of(n, 4096)
    }

    /// Returns rows of a result, fewer where rows are long.
    pub fn rows(self, n: usize, columns: usize) -> Vec<usize> {
        self.of(n, ((1 << 20) / columns.max(1)).clamp(4, 64))
    }
}

/// Returns the elements at `positions`.
pub fn gather<T: Copy>(values: &[T], positions: &[usize]) -> Vec<T> {
    positions.iter().map(|&at| values[at]).collect()
}

/// Returns some rows of a matrix with `columns` columns.
pub fn gather_rows<T: Copy>(values: &[T], rows: &[usize], columns: usize) -> Vec<T> {
    rows.iter().flat_map(|&row| &values[row * columns..(row + 1) * columns]).copied().collect()
}

/// Returns some columns of a matrix that has `width` columns.
pub fn gather_columns<T: Copy>(values: &[T], columns: &[usize], width: usize) -> Vec<T> {
    values.chunks(width).flat_map(|row| columns.iter().map(|&c| row[c])).collect()
}

/// Returns the positions of the elements of some rows and columns in a matrix that has `width` columns.
pub fn positions(rows: &[usize], columns: &[usize], width: usize) -> Vec<usize> {
    rows.iter().flat_map(|&row| columns.iter().map(move |&column| row * width + column)).collect()
}

/// Returns all positions below `n`.
pub fn all(n: usize) -> Vec<usize> {
    (0..n).collect()
}
