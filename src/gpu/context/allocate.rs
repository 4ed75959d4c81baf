//! Allocates buffers: one per tensor, or several tensors in one. An error names the tensor that does not fit.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{ALIGNMENT, Gpu, lock};
use crate::error::{Error, Fault, Result};
use crate::gpu::faults::Call;
use crate::gpu::tensor::{Buffer, Elem, Tensor};
use crate::units;

impl Gpu {
    /// Allocates a zeroed (rows, columns) tensor in its own buffer.
    ///
    /// # Errors
    /// [`Error::Memory`] naming the tensor, if it is larger than any buffer or the driver is out of memory.
    pub fn tensor(&self, label: &str, rows: usize, columns: usize, elem: Elem) -> Result<Tensor> {
        let bytes = (rows * columns) as u64 * elem.bytes();
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        Ok(Tensor::new(self.buffer(label, bytes, usage)?, 0, rows, columns, elem))
    }

    /// Allocates groups of tensors one after another, in as few buffers as the adapter's largest buffer allows. Each
    /// tensor begins at a multiple of [`ALIGNMENT`] elements. A group that fits into one buffer is not split. Returns
    /// the tensors in order, and each buffer as a tensor of one row.
    ///
    /// # Errors
    /// [`Error::Memory`], as for [`Gpu::tensor`].
    pub fn arena(&self, label: &str, groups: &[Vec<[usize; 2]>], elem: Elem) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        // counted in elements of 4 bytes whatever the element type
        let largest = self.caps.max_buffer_bytes / 4 / ALIGNMENT * ALIGNMENT;
        let length = |[rows, columns]: [usize; 2]| ((rows * columns) as u64).next_multiple_of(ALIGNMENT);
        type Member = (u64, [usize; 2]); // first element and shape
        let mut segments: Vec<(u64, Vec<Member>)> = Vec::new();
        for group in groups {
            let fits = group.iter().map(|shape| length(*shape)).sum::<u64>() <= largest;
            // `unit`: the tensors that must be in one buffer
            for unit in group.chunks(if fits { group.len().max(1) } else { 1 }) {
                let whole: u64 = unit.iter().map(|shape| length(*shape)).sum();
                if segments.last().is_none_or(|(used, _)| used + whole > largest) {
                    segments.push((0, Vec::new()));
                }
                let Some((used, members)) = segments.last_mut() else { continue };
                for &shape in unit {
                    members.push((*used, shape));
                    *used += length(shape);
                }
            }
        }
        let (mut tensors, mut wholes) = (Vec::new(), Vec::new());
        for (length, members) in segments {
            let whole = self.tensor(label, 1, length as usize, elem)?;
            for (first, [rows, columns]) in members {
                tensors.push(Tensor::new(Arc::clone(&whole.buffer), first * elem.bytes(), rows, columns, elem));
            }
            wholes.push(whole);
        }
        Ok((tensors, wholes))
    }

    pub(in crate::gpu) fn buffer(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<Arc<Buffer>> {
        let size = bytes.next_multiple_of(16).max(16);
        let refused = |why: &str| {
            let (size, used) = (units::size(size), units::size(self.allocated_bytes()));
            let what = format!("`{label}` needs {size}, in addition to {used} in use on {}{why}", self.caps.name);
            Fault::at("memory", what)
        };
        if size > self.caps.max_buffer_bytes && self.raw.is_none() {
            // a dry run continues, so that the whole plan can be shown
            lock(&self.oversized).get_or_insert_with(|| (label.to_owned(), size));
        } else if size > self.caps.max_buffer_bytes {
            let most = format!("at most {} per buffer", units::size(self.caps.max_buffer_bytes));
            return Err(Error::memory(refused("").expected(most)));
        }
        let raw = match &self.raw {
            None => None,
            Some(raw) => {
                let scope = raw.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
                let buffer = raw.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some(label),
                    size,
                    usage,
                    mapped_at_creation: false,
                });
                if pollster::block_on(scope.pop()).is_some() || self.fails(Call::Allocate) {
                    return Err(Error::memory(refused(", which is out of memory")));
                }
                Some(buffer)
            }
        };
        self.buffers_created.fetch_add(1, Ordering::Relaxed);
        self.allocated_bytes.fetch_add(size, Ordering::Relaxed);
        let mut ledger = lock(&self.ledger);
        match ledger.iter_mut().find(|(known, _)| known == label) {
            Some((_, bytes)) => *bytes += size,
            None => ledger.push((label.to_owned(), size)),
        }
        drop(ledger);
        let meter = Arc::clone(&self.allocated_bytes);
        Ok(Arc::new(Buffer { id: self.id(), label: label.to_owned(), size, raw, meter }))
    }
}
