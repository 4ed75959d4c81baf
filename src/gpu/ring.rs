//! Uploads and read-backs of a running step: mapped buffers in a ring, so that a step creates nothing and never waits
//! for its own results.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::channel::oneshot;

use crate::error::{Error, Result};

use super::context::Gpu;
use super::faults::Call;
use super::pass::Program;
use super::tensor::{Buffer, Tensor};

type Mapped = oneshot::Receiver<std::result::Result<(), wgpu::BufferAsyncError>>;

/// Asks for a mapping; the receiver fires when the GPU has let go of the buffer.
fn map(gpu: &Gpu, buffer: &wgpu::Buffer, mode: wgpu::MapMode) -> Mapped {
    let _failed = gpu.fails(Call::Map);
    let (sender, receiver) = oneshot::channel();
    buffer.slice(..).map_async(mode, move |result| {
        let _ = sender.send(result);
    });
    receiver
}

fn raw(buffer: &Buffer) -> Result<&wgpu::Buffer> {
    buffer.raw.as_ref().ok_or_else(|| Error::Gpu("gpu: a dry ring was used".into()))
}

/// Checks on a mapping without waiting.
fn is_mapped(gpu: &Gpu, mapped: &mut Mapped, what: &str) -> Result<bool> {
    match mapped.try_recv() {
        Ok(None) => Ok(false),
        Ok(Some(Ok(()))) => Ok(true),
        Ok(Some(Err(error))) => Err(gpu.loss(&format!("mapping {what} failed ({error})"))),
        Err(oneshot::Canceled) => Err(gpu.loss(&format!("mapping {what} was dropped"))),
    }
}

struct UploadSlot {
    buffer: Arc<Buffer>,
    mapped: Mapped,
    submission: Option<wgpu::SubmissionIndex>,
}

/// Sends small data ahead of a program. One slot is in use for each submission in flight.
pub struct UploadRing {
    slots: VecDeque<UploadSlot>,
}

impl UploadRing {
    /// Makes `slots` buffers of `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(gpu: &Gpu, slots: usize, bytes: u64) -> Result<Self> {
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let slots = (0..slots)
            .map(|_| {
                let buffer = gpu.buffer("upload ring", bytes, usage)?;
                // a dry ring is never mapped: it only counts
                let mapped =
                    buffer.raw.as_ref().map_or_else(|| oneshot::channel().1, |b| map(gpu, b, wgpu::MapMode::Write));
                Ok(UploadSlot { buffer, mapped, submission: None })
            })
            .collect::<Result<_>>()?;
        Ok(Self { slots })
    }

    /// Uploads every `data` to its tensor, then runs the programs and the read-backs, in one submission. Waits only if
    /// all slots are in flight.
    ///
    /// # Errors
    /// [`Error::Shape`] if data and tensor differ in size or the slot is too small; else as [`Gpu::check`].
    pub fn submit(
        &mut self,
        gpu: &Gpu,
        uploads: &[(&Tensor, &[u8])],
        programs: &[&Program],
        reads: &mut [&mut ReadRing],
    ) -> Result<()> {
        // before a slot is taken: a refused upload leaves the ring whole
        if reads.iter().any(|read| read.is_full()) {
            return Err(Error::Gpu("gpu: the read ring is full, its results must be taken first".into()));
        }
        let room = self.slots.front().map_or(0, |slot| slot.buffer.size);
        let mut need = 0;
        for (tensor, data) in uploads {
            need += data.len() as u64;
            if data.len() as u64 != tensor.bytes() || need > room {
                return Err(Error::Shape(format!(
                    "upload: `{}` has {} bytes, got {}, {need} of {room} in the slot",
                    tensor.label(),
                    tensor.bytes(),
                    data.len()
                )));
            }
        }
        let Some(mut slot) = self.slots.pop_front() else {
            return Err(Error::Gpu("gpu: an upload ring without slots".into()));
        };
        gpu.poll(None)?;
        if !is_mapped(gpu, &mut slot.mapped, "the upload ring")? {
            gpu.span("wait for a free upload slot", || gpu.poll(slot.submission.take()))?;
            if !is_mapped(gpu, &mut slot.mapped, "the upload ring")? {
                return Err(gpu.loss("the upload ring was not given back"));
            }
        }
        let mut encoder = gpu.encoder("step")?;
        let source = raw(&slot.buffer)?;
        let mut at = 0;
        {
            let mut view = source
                .slice(..)
                .get_mapped_range_mut()
                .map_err(|e| Error::Gpu(format!("gpu: the upload ring cannot be written: {e}")))?;
            for (_, data) in uploads {
                let bytes = data.len() as u64;
                view.slice(at as usize..(at + bytes) as usize).copy_from_slice(data);
                at += bytes;
            }
        }
        source.unmap();
        at = 0;
        for (tensor, data) in uploads {
            let target = raw(&tensor.buffer)?;
            encoder.copy_buffer_to_buffer(source, at, target, tensor.offset, data.len() as u64);
            at += data.len() as u64;
        }
        gpu.span("encode", || programs.iter().for_each(|program| program.encode(&mut encoder)));
        for read in reads.iter_mut() {
            read.encode(gpu, &mut encoder)?;
        }
        slot.submission = Some(gpu.span("submit", || gpu.submit(encoder))?);
        slot.mapped = map(gpu, source, wgpu::MapMode::Write);
        for read in reads.iter_mut() {
            read.submitted(gpu, slot.submission.clone())?;
        }
        self.slots.push_back(slot);
        Ok(())
    }
}

struct ReadSlot {
    buffer: Arc<Buffer>,
    mapped: Option<Mapped>,
    submission: Option<wgpu::SubmissionIndex>,
}

/// Brings one small tensor back after every submission that names the ring, in order, some steps later.
pub struct ReadRing {
    tensor: Tensor,
    free: VecDeque<ReadSlot>,
    /// Encoded, not yet submitted.
    encoded: Option<ReadSlot>,
    flying: VecDeque<ReadSlot>,
}

impl ReadRing {
    /// Makes `slots` buffers for copies of `tensor`.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(gpu: &Gpu, slots: usize, tensor: &Tensor) -> Result<Self> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let free = (0..slots)
            .map(|_| {
                Ok(ReadSlot { buffer: gpu.buffer("read ring", tensor.bytes(), usage)?, mapped: None, submission: None })
            })
            .collect::<Result<_>>()?;
        Ok(Self { tensor: tensor.clone(), free, encoded: None, flying: VecDeque::new() })
    }

    /// Copies in flight or waiting to be taken.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.flying.len()
    }

    /// True if the next submission would find no free slot: take a result first.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    fn encode(&mut self, _gpu: &Gpu, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        let slot = self
            .free
            .pop_front()
            .ok_or_else(|| Error::Gpu("gpu: the read ring is full, its results must be taken first".into()))?;
        encoder.copy_buffer_to_buffer(
            raw(&self.tensor.buffer)?,
            self.tensor.offset,
            raw(&slot.buffer)?,
            0,
            self.tensor.bytes(),
        );
        self.encoded = Some(slot);
        Ok(())
    }

    fn submitted(&mut self, gpu: &Gpu, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        if let Some(mut slot) = self.encoded.take() {
            slot.mapped = Some(map(gpu, raw(&slot.buffer)?, wgpu::MapMode::Read));
            slot.submission = submission;
            self.flying.push_back(slot);
        }
        Ok(())
    }

    /// The oldest result: waits for it if `wait`, else `None` while it is not there.
    ///
    /// # Errors
    /// As [`Gpu::check`].
    pub fn take(&mut self, gpu: &Gpu, wait: bool) -> Result<Option<Vec<u8>>> {
        let Some(slot) = self.flying.front_mut() else { return Ok(None) };
        if wait {
            gpu.span("wait for a read-back", || gpu.poll(slot.submission.clone()))?;
        } else {
            gpu.poll(None)?;
        }
        let Some(mapped) = &mut slot.mapped else { return Ok(None) };
        if !is_mapped(gpu, mapped, "a read-back")? {
            if wait {
                return Err(gpu.loss("a read-back did not arrive"));
            }
            return Ok(None);
        }
        let Some(mut slot) = self.flying.pop_front() else { return Ok(None) };
        let buffer = raw(&slot.buffer)?;
        let mut bytes = buffer
            .slice(..)
            .get_mapped_range()
            .map_err(|e| Error::Gpu(format!("gpu: a read-back failed: {e}")))?
            .to_vec();
        buffer.unmap();
        bytes.truncate(self.tensor.bytes() as usize);
        slot.mapped = None;
        slot.submission = None;
        self.free.push_back(slot);
        Ok(Some(bytes))
    }
}
