//! Two-dimensional windows on GPU buffers.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::context::ALIGNMENT;
use crate::error::{Error, Fault, Result};

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Elem {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// 32-bit unsigned integer: indices, counters, state.
    U32,
}

impl Elem {
    /// Returns the bytes of one element.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::F16 => 2,
            Self::F32 | Self::U32 => 4,
        }
    }

    /// Returns its name in WGSL.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::U32 => "u32",
        }
    }
}

/// A GPU buffer. On a dry device it has a size but no memory.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) id: u64,
    pub(super) label: String,
    pub(super) size: u64,
    pub(super) raw: Option<wgpu::Buffer>,
    /// The device's count of allocated bytes.
    pub(super) meter: Arc<AtomicU64>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.meter.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// A (rows, columns) window on a buffer, row-major and dense. Cloning shares the buffer.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub(super) buffer: Arc<Buffer>,
    /// First byte of the window.
    pub(super) offset: u64,
    rows: usize,
    columns: usize,
    elem: Elem,
}

impl Tensor {
    pub(super) fn new(buffer: Arc<Buffer>, offset: u64, rows: usize, columns: usize, elem: Elem) -> Self {
        Self { buffer, offset, rows, columns, elem }
    }

    /// Returns the name of the buffer, for messages.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.buffer.label
    }

    /// Returns the id of its buffer.
    #[must_use]
    pub fn buffer_id(&self) -> u64 {
        self.buffer.id
    }

    /// Returns the number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns the number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Returns whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the element type.
    #[must_use]
    pub fn elem(&self) -> Elem {
        self.elem
    }

    /// Returns the bytes of the window.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.len() as u64 * self.elem.bytes()
    }

    /// Returns the bytes of one row.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        self.columns as u64 * self.elem.bytes()
    }

    /// Returns the rows of `range`.
    ///
    /// # Panics
    /// If the range exceeds the tensor.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.rows,
            "{}: rows {range:?} of {}",
            self.label(),
            self.rows
        );
        let mut window = self.clone();
        window.offset += range.start as u64 * self.row_bytes();
        window.rows = range.len();
        window
    }

    /// Returns the first `rows * columns` elements under another shape.
    ///
    /// # Panics
    /// If the tensor has fewer elements.
    #[must_use]
    pub fn reshape(&self, rows: usize, columns: usize) -> Self {
        assert!(rows * columns <= self.len(), "{}: {rows} x {columns} of {} elements", self.label(), self.len());
        let mut window = self.clone();
        (window.rows, window.columns) = (rows, columns);
        window
    }

    /// Returns the elements of `range` as one row.
    ///
    /// # Panics
    /// If the range exceeds the tensor.
    #[must_use]
    pub fn flat(&self, range: Range<usize>) -> Self {
        let mut window = self.reshape(1, self.len());
        assert!(range.end <= self.len(), "{}: elements {range:?} of {}", self.label(), self.len());
        window.offset += range.start as u64 * self.elem.bytes();
        window.columns = range.len();
        window
    }

    /// Returns the number of elements up to the next tensor in a [`super::Gpu::arena`].
    fn padded_len(&self) -> u64 {
        (self.len() as u64).next_multiple_of(ALIGNMENT)
    }

    /// Returns whether `other` is the same window of the same buffer.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (self.buffer.id, self.offset, self.bytes()) == (other.buffer.id, other.offset, other.bytes())
    }

    /// Returns whether `next` is the next tensor of the same arena.
    #[must_use]
    pub fn is_followed_by(&self, next: &Self) -> bool {
        let end = self.offset + self.padded_len() * self.elem.bytes();
        self.buffer.id == next.buffer.id && self.elem == next.elem && next.offset == end
    }

    /// Returns the tensors of an arena from this one to `last` as one row, with the padding after each. `last` is this
    /// tensor or a later one in the same buffer.
    ///
    /// # Panics
    /// If `last` is in another buffer or before this one.
    #[must_use]
    pub fn through(&self, last: &Self) -> Self {
        assert!(
            self.buffer.id == last.buffer.id && self.offset <= last.offset,
            "{}: not before {}",
            self.label(),
            last.label()
        );
        let columns = ((last.offset - self.offset) / self.elem.bytes() + last.padded_len()) as usize;
        Self { rows: 1, columns, ..self.clone() }
    }

    /// Checks that the shape is `(rows, columns)`. The error names the operator, `place`, and the tensor, `name`.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn check_shape(&self, place: &str, name: &str, rows: usize, columns: usize) -> Result<()> {
        if (self.rows, self.columns) == (rows, columns) {
            return Ok(());
        }
        let shape = |rows: usize, columns: usize| format!("({rows}, {columns})");
        let fault = Fault::at(place, format!("`{name}` has another shape")).expected(shape(rows, columns));
        Err(Error::shape(fault.found(shape(self.rows, self.columns))))
    }

    /// Checks that the element type is `elem`. The error names the operator, `place`, and the tensor, `name`.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn check_elem(&self, place: &str, name: &str, elem: Elem) -> Result<()> {
        if self.elem == elem {
            return Ok(());
        }
        let fault = Fault::at(place, format!("`{name}` has another element type"));
        Err(Error::shape(fault.expected(elem.name()).found(self.elem.name())))
    }
}

/// Cuts `rows` rows into ranges of at most `limit` bytes each. If 128 rows fit, every range begins at a multiple of 128
/// rows, so that windows of tensors with these rows begin at multiples of 256 bytes, whatever their columns and element
/// type. If only 64 rows fit, the same holds for elements of 4 bytes.
#[must_use]
pub fn row_windows(rows: usize, row_bytes: u64, limit: u64) -> Vec<Range<usize>> {
    let whole = (limit / row_bytes.max(1)) as usize;
    let step = match whole {
        _ if whole >= rows => rows,
        _ if whole >= 128 => whole / 128 * 128,
        _ if whole >= 64 => 64,
        _ => whole,
    };
    (0..rows).step_by(step.max(1)).map(|start| start..(start + step).min(rows)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_every_row_once_within_the_limit() {
        for (rows, row_bytes, limit) in [(1, 4, 256), (50_304, 3072, 128 << 20), (1000, 12, 4096), (64, 1, 1)] {
            let windows = row_windows(rows, row_bytes, limit);
            assert_eq!(windows.iter().map(Range::len).sum::<usize>(), rows);
            assert!(windows.windows(2).all(|w| w[0].end == w[1].start));
        }
        assert_eq!(row_windows(50_304, 3072, 128 << 20).len(), 2);
    }
}
