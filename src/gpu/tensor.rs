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
    /// Bytes of one element.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::F16 => 2,
            Self::F32 | Self::U32 => 4,
        }
    }

    /// Returns its name, as WGSL has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::U32 => "u32",
        }
    }
}

/// A GPU buffer. Without a device (a dry run) there is only its size.
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

    /// Name of the buffer, for messages.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.buffer.label
    }

    /// Which buffer it lies in.
    #[must_use]
    pub fn buffer_id(&self) -> u64 {
        self.buffer.id
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// True if there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type.
    #[must_use]
    pub fn elem(&self) -> Elem {
        self.elem
    }

    /// Bytes of the window.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.len() as u64 * self.elem.bytes()
    }

    /// Bytes of one row.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        self.columns as u64 * self.elem.bytes()
    }

    /// The rows of `range`.
    ///
    /// # Panics
    /// If the range passes the end.
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

    /// The first `rows * columns` elements of the same memory under another shape.
    ///
    /// # Panics
    /// If that is more than there is.
    #[must_use]
    pub fn reshape(&self, rows: usize, columns: usize) -> Self {
        assert!(rows * columns <= self.len(), "{}: {rows} x {columns} of {} elements", self.label(), self.len());
        let mut window = self.clone();
        (window.rows, window.columns) = (rows, columns);
        window
    }

    /// `columns` elements from element `start` on, as one row.
    ///
    /// # Panics
    /// If that passes the end.
    #[must_use]
    pub fn flat(&self, range: Range<usize>) -> Self {
        let mut window = self.reshape(1, self.len());
        assert!(range.end <= self.len(), "{}: elements {range:?} of {}", self.label(), self.len());
        window.offset += range.start as u64 * self.elem.bytes();
        window.columns = range.len();
        window
    }

    /// Elements up to where [`super::Gpu::arena`] puts the next tensor.
    fn padded_len(&self) -> u64 {
        (self.len() as u64).next_multiple_of(ALIGNMENT)
    }

    /// Returns true if `other` is the same window of the same buffer.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (self.buffer.id, self.offset, self.bytes()) == (other.buffer.id, other.offset, other.bytes())
    }

    /// Returns true if `next` is the next tensor of the same arena.
    #[must_use]
    pub fn is_followed_by(&self, next: &Self) -> bool {
        let end = self.offset + self.padded_len() * self.elem.bytes();
        self.buffer.id == next.buffer.id && self.elem == next.elem && next.offset == end
    }

    /// Returns all from this tensor of an arena to `last`, a later one of the same buffer or the same, as one row, each
    /// with the padding behind it.
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

    /// Fails unless the shape is `(rows, columns)`; `place` and `name` say where and which.
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

    /// Fails unless the elements are of the type `elem`.
    ///
    /// # Errors
    /// [`Error::Shape`] naming what was found.
    pub fn check_elem(&self, place: &str, name: &str, elem: Elem) -> Result<()> {
        if self.elem == elem {
            return Ok(());
        }
        let fault = Fault::at(place, format!("`{name}` holds other elements"));
        Err(Error::shape(fault.expected(elem.name()).found(self.elem.name())))
    }
}

/// Cuts `rows` rows into ranges of at most `limit` bytes each. Where 128 rows fit, every range starts at a multiple of
/// 128: then windows of tensors with these rows start at multiples of 256 bytes, however few their columns and whatever
/// their elements. Where 64 fit, the same holds for elements of 4 bytes.
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
