//! Uploads and read-backs of a running step: mapped buffers in a ring, so that a step creates nothing and never waits
//! for its own results.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Error, Fault, Result};

use super::context::{Gpu, Ticket};
use super::mapping::{After, Mapping, raw};
use super::program::Program;
use super::stopwatch::Timed;
use super::tensor::{Buffer, Tensor};

const UPLOAD: &str = "the upload ring";

/// Host memory that the device reads.
pub(super) struct UploadSlot {
    pub(super) buffer: Arc<Buffer>,
    mapping: Mapping,
    submission: Option<Ticket>,
}

impl UploadSlot {
    /// Makes one of `bytes` bytes, for the host to write.
    pub(super) fn new(gpu: &Gpu, label: &'static str, bytes: u64) -> Result<Self> {
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let buffer = gpu.buffer(label, bytes, usage)?;
        let Some(raw) = &buffer.raw else {
            return Ok(Self { buffer, mapping: Mapping::never(UPLOAD), submission: None });
        };
        let (mapping, ask) = Mapping::new(gpu, UPLOAD, raw, raw.size(), wgpu::MapMode::Write);
        ask();
        Ok(Self { buffer, mapping, submission: None })
    }

    /// Waits until the device does not read it any more.
    pub(super) fn wait(&mut self, gpu: &Gpu) -> Result<()> {
        gpu.poll()?;
        if !self.mapping.is_there(gpu)? {
            gpu.span("wait for a free upload slot", || self.mapping.wait(gpu, self.submission.take()))?;
        }
        Ok(())
    }

    /// Ends a lap, reads back and submits, behind commands that read this slot.
    pub(super) fn submit(
        &mut self,
        gpu: &Gpu,
        mut encoder: wgpu::CommandEncoder,
        reads: &mut [&mut ReadRing],
        mut timed: Option<Timed<'_>>,
    ) -> Result<()> {
        let mut after: Vec<After> = Vec::with_capacity(reads.len() + 2);
        // before the read-backs: who finds a result finds its lap there as well
        if let Some(timed) = &mut timed {
            after.extend(timed.end(gpu, &mut encoder)?);
        }
        for read in reads.iter_mut() {
            after.push(read.encode(gpu, &mut encoder)?);
        }
        // last: who finds this slot free finds the results there as well
        let source = raw(&self.buffer)?;
        let (mapping, ask) = Mapping::new(gpu, UPLOAD, source, source.size(), wgpu::MapMode::Write);
        after.push(ask);
        let ask = move || after.into_iter().for_each(|ask| ask());
        let submission = gpu.span("submit", || gpu.submit_then(encoder, ask))?;
        reads.iter_mut().for_each(|read| read.submitted(&submission));
        if let Some(timed) = &mut timed {
            timed.submitted(&submission);
        }
        (self.mapping, self.submission) = (mapping, Some(submission));
        Ok(())
    }
}

/// Tensors and the bytes that fill them, the first tensor's first.
pub type Upload<'a> = (&'a [&'a Tensor], &'a [u8]);

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
        let slots = (0..slots).map(|_| UploadSlot::new(gpu, "upload ring", bytes)).collect::<Result<_>>()?;
        Ok(Self { slots })
    }

    /// Uploads, then runs the programs and the read-backs, in one submission. The data of an upload are copied into the
    /// slot as a whole, so tensors whose contents come in one block cost one copy on the host. Waits only if all slots are
    /// in flight.
    ///
    /// # Errors
    /// [`Error::Shape`] if data and tensors differ in size or the slot is too small; else as [`Gpu::check`].
    pub fn submit(
        &mut self,
        gpu: &Gpu,
        uploads: &[Upload],
        programs: &[&Program],
        reads: &mut [&mut ReadRing],
    ) -> Result<()> {
        self.submit_timed(gpu, uploads, programs, reads, None)
    }

    /// [`UploadRing::submit`] as a part of a stopwatch's lap.
    ///
    /// # Errors
    /// [`Error::Shape`] and the others of [`UploadRing::submit`]; [`Error::Gpu`] if the stopwatch is full.
    pub fn submit_timed(
        &mut self,
        gpu: &Gpu,
        uploads: &[Upload],
        programs: &[&Program],
        reads: &mut [&mut ReadRing],
        timed: Option<Timed<'_>>,
    ) -> Result<()> {
        // before a slot is taken: a refused upload leaves the ring whole
        let no_lap = timed.as_ref().is_some_and(|timed| timed.stops && timed.watch.is_full());
        if no_lap || reads.iter().any(|read| read.is_full()) {
            return Err(Error::gpu(Fault::at("gpu", "the read ring is full, its results must be taken first")));
        }
        let room = self.slots.front().map_or(0, |slot| slot.buffer.size);
        let mut need = 0;
        for (tensors, data) in uploads {
            let bytes: u64 = tensors.iter().map(|tensor| tensor.bytes()).sum();
            need += bytes;
            if data.len() as u64 != bytes || need > room {
                let labels: Vec<&str> = tensors.iter().map(|tensor| tensor.label()).collect();
                let what = format!("wrong size for `{}`, {need} of {room} bytes in the slot", labels.join("`, `"));
                return Err(Error::shape(
                    Fault::at("upload", what).expected(format!("{bytes} bytes")).found(data.len()),
                ));
            }
        }
        let Some(mut slot) = self.slots.pop_front() else {
            return Err(Error::gpu(Fault::at("gpu", "an upload ring without slots")));
        };
        slot.wait(gpu)?;
        let mut encoder = gpu.encoder("step")?;
        let source = raw(&slot.buffer)?;
        let mut at = 0;
        {
            let mut view = source
                .slice(..)
                .get_mapped_range_mut()
                .map_err(|e| gpu.failure(format!("the upload ring cannot be written: {e}")))?;
            for (_, data) in uploads {
                let bytes = data.len() as u64;
                view.slice(at as usize..(at + bytes) as usize).copy_from_slice(data);
                at += bytes;
            }
        }
        source.unmap();
        if let Some(timed) = &timed {
            timed.begin(&mut encoder)?;
        }
        at = 0;
        for tensor in uploads.iter().flat_map(|(tensors, _)| *tensors) {
            let target = raw(&tensor.buffer)?;
            encoder.copy_buffer_to_buffer(source, at, target, tensor.offset, tensor.bytes());
            at += tensor.bytes();
        }
        gpu.span("encode", || programs.iter().for_each(|program| program.encode(&mut encoder)));
        slot.submit(gpu, encoder, reads, timed)?;
        self.slots.push_back(slot);
        Ok(())
    }
}

/// A copy on its way.
struct Flight {
    buffer: Arc<Buffer>,
    mapping: Mapping,
    submission: Ticket,
}

/// Brings one small tensor back after every submission that names the ring, in order, some steps later.
pub struct ReadRing {
    tensor: Tensor,
    free: VecDeque<Arc<Buffer>>,
    /// Encoded, not yet submitted.
    encoded: Option<(Arc<Buffer>, Mapping)>,
    flying: VecDeque<Flight>,
}

impl ReadRing {
    /// Makes `slots` buffers for copies of `tensor`.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(gpu: &Gpu, slots: usize, tensor: &Tensor) -> Result<Self> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let free = (0..slots).map(|_| gpu.buffer("read ring", tensor.bytes(), usage)).collect::<Result<_>>()?;
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

    /// What is returned asks for the result, once the encoder is submitted.
    pub(super) fn encode(&mut self, gpu: &Gpu, encoder: &mut wgpu::CommandEncoder) -> Result<After> {
        let buffer = self
            .free
            .pop_front()
            .ok_or_else(|| Error::gpu(Fault::at("gpu", "the read ring is full, its results must be taken first")))?;
        let target = raw(&buffer)?;
        encoder.copy_buffer_to_buffer(raw(&self.tensor.buffer)?, self.tensor.offset, target, 0, self.tensor.bytes());
        let (mapping, ask) = Mapping::new(gpu, "a read-back", target, target.size(), wgpu::MapMode::Read);
        self.encoded = Some((buffer, mapping));
        Ok(ask)
    }

    pub(super) fn submitted(&mut self, submission: &Ticket) {
        if let Some((buffer, mapping)) = self.encoded.take() {
            self.flying.push_back(Flight { buffer, mapping, submission: submission.clone() });
        }
    }

    /// The oldest result: waits for it if `wait`, else `None` while it is not there.
    ///
    /// # Errors
    /// As [`Gpu::check`].
    pub fn take(&mut self, gpu: &Gpu, wait: bool) -> Result<Option<Vec<u8>>> {
        let Some(flight) = self.flying.front_mut() else { return Ok(None) };
        gpu.poll()?;
        if !flight.mapping.is_there(gpu)? {
            if !wait {
                return Ok(None);
            }
            let submission = flight.submission.clone();
            gpu.span("wait for a read-back", || flight.mapping.wait(gpu, Some(submission)))?;
        }
        let Some(Flight { buffer, .. }) = self.flying.pop_front() else { return Ok(None) };
        let target = raw(&buffer)?;
        let view = target.slice(..).get_mapped_range();
        let mut bytes = view.map_err(|e| gpu.failure(format!("a read-back failed: {e}")))?.to_vec();
        target.unmap();
        bytes.truncate(self.tensor.bytes() as usize);
        self.free.push_back(buffer);
        Ok(Some(bytes))
    }
}
