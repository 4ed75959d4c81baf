//! Large read-backs and uploads of a running step: two host buffers in each direction, which the device writes or reads
//! directly, so that the host makes no further copy. Bytes that were read back stay in the device's buffer until it is
//! given back.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Error, Fault, Result};

use super::context::{Gpu, Ticket};
use super::mapping::{Mapping, raw};
use super::program::Program;
use super::ring::{ReadRing, UploadSlot};
use super::stopwatch::Timed;
use super::tensor::{Buffer, Tensor};

/// Buffers in each direction: while the host uses one, the device copies the other.
const SLOTS: usize = 2;

/// Smallest number of bytes that is worth another thread.
const LEAST_SHARE: usize = 1 << 20;

/// Returns the bytes of tensors one after another, each padded to a multiple of 4 bytes.
fn size_of(tensors: &[&Tensor]) -> u64 {
    tensors.iter().map(|tensor| tensor.bytes().next_multiple_of(4)).sum()
}

struct Sent {
    buffer: Arc<Buffer>,
    /// The mapping, its bytes and the submission; `None` if no bytes were sent.
    mapping: Option<(Mapping, u64, Ticket)>,
}

/// Copies large tensors to the host.
pub struct BulkReads {
    free: VecDeque<Arc<Buffer>>,
    sent: VecDeque<Sent>,
}

/// Bytes that were read back, in the memory that the device wrote.
#[derive(Debug)]
pub struct BulkRead {
    buffer: Arc<Buffer>,
    view: Option<wgpu::BufferView>,
}

impl AsRef<[u8]> for BulkRead {
    fn as_ref(&self) -> &[u8] {
        self.view.as_deref().unwrap_or_default()
    }
}

impl BulkReads {
    /// Makes buffers for read-backs of at most `bytes` bytes each.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(gpu: &Gpu, label: &str, bytes: u64) -> Result<Self> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let free = (0..SLOTS).map(|_| gpu.buffer(label, bytes, usage)).collect::<Result<_>>()?;
        Ok(Self { free, sent: VecDeque::new() })
    }

    /// Runs a program, then copies the tensors to the host, in one submission.
    ///
    /// # Errors
    /// [`Error::Gpu`] if both buffers are in use; [`Error::Shape`] if the tensors do not fit; otherwise those of
    /// [`Gpu::check`].
    pub fn send(&mut self, gpu: &Gpu, program: Option<&Program>, tensors: &[&Tensor]) -> Result<()> {
        let full = || Error::gpu(Fault::at("bulk read", "no buffer is free").advice("give one back first"));
        let buffer = self.free.pop_front().ok_or_else(full)?;
        let bytes = size_of(tensors);
        if bytes > buffer.size {
            let most = format!("at most {} bytes", buffer.size);
            return Err(Error::shape(Fault::at("bulk read", "the tensors are too large").expected(most).found(bytes)));
        }
        if bytes == 0 && program.is_none() {
            self.sent.push_back(Sent { buffer, mapping: None });
            return Ok(());
        }
        let mut encoder = gpu.encoder("bulk read")?;
        if let Some(program) = program {
            program.encode(&mut encoder);
        }
        let target = raw(&buffer)?;
        let mut at = 0;
        for tensor in tensors {
            let bytes = tensor.bytes().next_multiple_of(4);
            encoder.copy_buffer_to_buffer(raw(&tensor.buffer)?, tensor.offset, target, at, bytes);
            at += bytes;
        }
        if bytes == 0 {
            gpu.submit(encoder)?;
            self.sent.push_back(Sent { buffer, mapping: None });
            return Ok(());
        }
        let (mapping, request) = Mapping::new(gpu, "a bulk read", target, bytes, wgpu::MapMode::Read);
        let ticket = gpu.submit_then(encoder, request)?;
        self.sent.push_back(Sent { buffer, mapping: Some((mapping, bytes, ticket)) });
        Ok(())
    }

    /// Waits for the oldest read-back.
    ///
    /// # Errors
    /// [`Error::Gpu`] if there is none; otherwise those of [`Gpu::check`].
    pub fn take(&mut self, gpu: &Gpu) -> Result<BulkRead> {
        let none = || Error::gpu(Fault::at("bulk read", "nothing was sent"));
        let Sent { buffer, mapping } = self.sent.pop_front().ok_or_else(none)?;
        let Some((mut mapping, bytes, ticket)) = mapping else { return Ok(BulkRead { buffer, view: None }) };
        gpu.span("wait for a bulk read", || mapping.wait(gpu, Some(ticket)))?;
        let view = raw(&buffer)?.slice(..bytes).get_mapped_range();
        let view = view.map_err(|e| gpu.failure(format!("a bulk read failed: {e}")))?;
        Ok(BulkRead { buffer, view: Some(view) })
    }

    /// Frees a read-back's buffer for the next one.
    ///
    /// # Errors
    /// [`Error::Gpu`] on a dry device.
    pub fn give_back(&mut self, BulkRead { buffer, view }: BulkRead) -> Result<()> {
        if view.is_some() {
            drop(view);
            raw(&buffer)?.unmap();
        }
        self.free.push_back(buffer);
        Ok(())
    }
}

/// Copies many bytes from the host to tensors.
pub struct BulkUploads {
    slots: VecDeque<UploadSlot>,
}

/// Memory that the host fills for an upload. Its pieces begin at multiples of 8 bytes and are multiples of 4 bytes
/// long.
pub struct BulkUpload {
    slot: UploadSlot,
}

impl BulkUpload {
    /// Writes bytes at byte `at`.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the memory cannot be written there.
    pub fn put(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        write(raw(&self.slot.buffer)?, at, bytes)
    }

    /// Writes several pieces, which do not overlap, on up to `threads` threads: one thread copies slower than a GPU
    /// reads.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the memory cannot be written there.
    pub fn put_all(&mut self, pieces: &[(usize, &[u8])], threads: usize) -> Result<()> {
        let bytes: usize = pieces.iter().map(|(_, bytes)| bytes.len()).sum();
        let threads = threads.clamp(1, bytes.div_ceil(LEAST_SHARE).max(1));
        let share = bytes.div_ceil(threads).next_multiple_of(8).max(8);
        let mut work: Vec<Vec<(usize, &[u8])>> = vec![Vec::new()];
        let mut left = share;
        for &(mut at, mut rest) in pieces {
            while !rest.is_empty() {
                if left == 0 {
                    work.push(Vec::new());
                    left = share;
                }
                // a piece is cut only at multiples of 8 bytes from its start
                let length = if rest.len() <= left { rest.len() } else { left / 8 * 8 };
                let (piece, later) = rest.split_at(length);
                if let (Some(list), false) = (work.last_mut(), piece.is_empty()) {
                    list.push((at, piece));
                }
                left = if length == rest.len() { left - length } else { 0 };
                (at, rest) = (at + length, later);
            }
        }
        let target = raw(&self.slot.buffer)?;
        let copy = |list: &[(usize, &[u8])]| list.iter().try_for_each(|(at, bytes)| write(target, *at, bytes));
        let Some((own, others)) = work.split_last() else { return Ok(()) };
        std::thread::scope(|scope| {
            let threads: Vec<_> = others.iter().map(|list| scope.spawn(|| copy(list))).collect();
            let own = copy(own);
            let failed = || Error::gpu(Fault::at("bulk upload", "a copying thread panicked"));
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(failed()))).and(own)
        })
    }
}

/// Writes a part of a mapped buffer.
fn write(target: &wgpu::Buffer, at: usize, bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let view = target.slice(at as u64..(at + bytes.len()) as u64).get_mapped_range_mut();
    let mut view = view.map_err(|e| Error::gpu(Fault::at("bulk upload", format!("cannot be written: {e}"))))?;
    view.slice(..).copy_from_slice(bytes);
    Ok(())
}

impl BulkUploads {
    /// Makes buffers for uploads of at most `bytes` bytes each.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(gpu: &Gpu, label: &'static str, bytes: u64) -> Result<Self> {
        let slots = (0..SLOTS).map(|_| UploadSlot::new(gpu, label, bytes));
        Ok(Self { slots: slots.collect::<Result<_>>()? })
    }

    /// Waits for a buffer that the device no longer reads.
    ///
    /// # Errors
    /// [`Error::Gpu`] if all buffers are taken; otherwise those of [`Gpu::check`].
    pub fn begin(&mut self, gpu: &Gpu) -> Result<BulkUpload> {
        let none = || Error::gpu(Fault::at("bulk upload", "no buffer is free"));
        let mut slot = self.slots.pop_front().ok_or_else(none)?;
        slot.wait(gpu)?;
        Ok(BulkUpload { slot })
    }

    /// Copies the written bytes to the tensors, in order, then runs a program and `reads`, in one submission.
    ///
    /// # Errors
    /// [`Error::Shape`] if the tensors are larger than the buffer; [`Error::Gpu`] if a ring is full; otherwise those of
    /// [`Gpu::check`].
    pub fn submit(
        &mut self,
        gpu: &Gpu,
        BulkUpload { mut slot }: BulkUpload,
        tensors: &[&Tensor],
        program: Option<&Program>,
        reads: &mut [&mut ReadRing],
        timed: Option<Timed<'_>>,
    ) -> Result<()> {
        let source = raw(&slot.buffer)?;
        source.unmap();
        let bytes = size_of(tensors);
        if bytes > slot.buffer.size {
            let most = format!("at most {} bytes", slot.buffer.size);
            return Err(Error::shape(
                Fault::at("bulk upload", "the tensors are too large").expected(most).found(bytes),
            ));
        }
        let mut encoder = gpu.encoder("bulk upload")?;
        let mut at = 0;
        for tensor in tensors {
            let bytes = tensor.bytes().next_multiple_of(4);
            encoder.copy_buffer_to_buffer(source, at, raw(&tensor.buffer)?, tensor.offset, bytes);
            at += bytes;
        }
        if let Some(program) = program {
            program.encode(&mut encoder);
        }
        slot.submit(gpu, encoder, reads, timed)?;
        self.slots.push_back(slot);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Elem, Options};

    #[test]
    fn bytes_read_back_and_uploaded_stay_equal_however_many_threads_copy() {
        let gpu = Gpu::open(&Options::default()).unwrap();
        let n = 1_200_000;
        let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let [from, to] = [(); 2].map(|()| gpu.tensor("values", 1, n, Elem::F32).unwrap());
        gpu.write(&from, bytemuck::cast_slice(&values)).unwrap();
        let mut reads = BulkReads::new(&gpu, "out", from.bytes()).unwrap();
        let mut uploads = BulkUploads::new(&gpu, "in", to.bytes()).unwrap();
        let halves = [from.flat(0..n / 3), from.flat(n / 3..n)];
        for threads in [1, 2, 3, 64] {
            reads.send(&gpu, None, &[&halves[0], &halves[1]]).unwrap();
            let read = reads.take(&gpu).unwrap();
            let bytes = read.as_ref();
            // the pieces leave a gap, whose bytes must stay
            let gap = 4 * 1000;
            let third = bytes.len() / 3;
            let pieces = [(0, &bytes[..third - gap]), (third, &bytes[third..third]), (third, &bytes[third..])];
            let mut upload = uploads.begin(&gpu).unwrap();
            upload.put(third - gap, &vec![0; gap]).unwrap();
            upload.put_all(&pieces, threads).unwrap();
            reads.give_back(read).unwrap();
            gpu.write(&to, &vec![1; 4 * n]).unwrap();
            uploads.submit(&gpu, upload, &[&to], None, &mut [], None).unwrap();
            let mut want = values.clone();
            want[(third - gap) / 4..third / 4].fill(0.0);
            assert!(gpu.read_f32(&to).unwrap() == want, "{threads} threads");
        }
        assert!(reads.take(&gpu).is_err());
        reads.send(&gpu, None, &[]).unwrap();
        reads.send(&gpu, None, &[&from]).unwrap();
        assert!(reads.send(&gpu, None, &[&from]).is_err(), "a third read");
        assert!(reads.take(&gpu).unwrap().as_ref().is_empty());
    }
}
