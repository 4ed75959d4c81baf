//! Regions of buffers that count as zero without having been written.
//!
//! A gradient begins as zero and is added to. The first dispatch that adds to it can overwrite it instead, which saves
//! a clear and a read. A region that nothing overwrites is cleared when it is needed.

use std::ops::Range;
use std::sync::Arc;

use super::tensor::{Buffer, Tensor};

/// A window of a buffer, in bytes.
#[derive(Debug, Clone)]
pub(super) struct Region {
    pub(super) buffer: Arc<Buffer>,
    pub(super) bytes: Range<u64>,
}

impl Region {
    fn of(tensor: &Tensor) -> Self {
        // after an odd number of f16 there is only padding
        let end = tensor.offset + tensor.bytes().next_multiple_of(4);
        Self { buffer: Arc::clone(&tensor.buffer), bytes: tensor.offset..end }
    }
}

/// Regions that count as zero. They do not overlap.
#[derive(Debug, Default)]
pub(super) struct Zeros(Vec<Region>);

impl Zeros {
    pub(super) fn add(&mut self, tensor: &Tensor) {
        self.take(tensor);
        self.0.push(Region::of(tensor));
    }

    /// Removes a tensor, and returns its regions that counted as zero.
    pub(super) fn take(&mut self, tensor: &Tensor) -> Vec<Region> {
        let wanted = Region::of(tensor);
        let (mut taken, mut rest) = (Vec::new(), Vec::new());
        for Region { buffer, bytes } in std::mem::take(&mut self.0) {
            let start = bytes.start.max(wanted.bytes.start);
            let end = bytes.end.min(wanted.bytes.end);
            if buffer.id != wanted.buffer.id || start >= end {
                rest.push(Region { buffer, bytes });
                continue;
            }
            for left in [bytes.start..start, end..bytes.end].into_iter().filter(|left| !left.is_empty()) {
                rest.push(Region { buffer: Arc::clone(&buffer), bytes: left });
            }
            taken.push(Region { buffer, bytes: start..end });
        }
        self.0 = rest;
        taken
    }

    /// Returns whether all of a tensor counts as zero.
    pub(super) fn contains(&self, tensor: &Tensor) -> bool {
        let wanted = Region::of(tensor);
        self.0.iter().any(|region| {
            let inside = region.bytes.start <= wanted.bytes.start && wanted.bytes.end <= region.bytes.end;
            region.buffer.id == wanted.buffer.id && inside
        })
    }

    /// Removes and returns all regions.
    pub(super) fn take_all(&mut self) -> Vec<Region> {
        std::mem::take(&mut self.0)
    }
}
