//! Small uploads and read-backs of a running step, through rings of mapped buffers: a step creates no buffers and never
//! waits for its own results.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Error, Fault, Result};

use super::context::{Gpu, Ticket};
use super::mapping::{After, Mapping, raw};
use super::program::Program;
use super::stopwatch::Timed;
use super::tensor::{Buffer, Tensor};

const UPLOAD: &str = "the upload ring";

/// A buffer that the host writes and the device reads.
pub(super) struct UploadSlot {
    pub(super) buffer: Arc<Buffer>,
    mapping: Mapping,
    submission: Option<Ticket>,
}

impl UploadSlot {
    /// Makes a buffer of `bytes` bytes, mapped for the host to write.
    pub(super) fn new(gpu: &Gpu, label: &'static str, bytes: u64) -> Result<Self> {
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let buffer = gpu.buffer(label, bytes, usage)?;
        let Some(raw) = &buffer.raw else {
            return Ok(Self { buffer, mapping: Mapping::never(UPLOAD), submission: None });
        };
        let (mapping, request) = Mapping::new(gpu, UPLOAD, raw, raw.size(), wgpu::MapMode::Write);
        request();
        Ok(Self { buffer, mapping, submission: None })
    }

    /// Waits until the device no longer reads it.
    pub(super) fn wait(&mut self, gpu: &Gpu) -> Result<()> {
        gpu.poll()?;
        if !self.mapping.is_ready(gpu)? {
            gpu.span("wait for a free upload slot", || self.mapping.wait(gpu, self.submission.take()))?;
        }
        Ok(())
    }

    /// Appends the end of a lap and the read-backs to commands that read this slot, and submits all of them.
    pub(super) fn submit(
        &mut self,
        gpu: &Gpu,
        mut encoder: wgpu::CommandEncoder,
        reads: &mut [&mut ReadRing],
        mut timed: Option<Timed<'_>>,
    ) -> Result<()> {
        let mut after: Vec<After> = Vec::with_capacity(reads.len() + 2);
        // before the read-backs, so that when a result is ready its lap is too
        if let Some(timed) = &mut timed {
            after.extend(timed.end(gpu, &mut encoder)?);
        }
        for read in reads.iter_mut() {
            after.push(read.encode(gpu, &mut encoder)?);
        }
        // last, so that when this slot is free the results are ready too
        let source = raw(&self.buffer)?;
        let (mapping, request) = Mapping::new(gpu, UPLOAD, source, source.size(), wgpu::MapMode::Write);
        after.push(request);
        let requests = move || after.into_iter().for_each(|request| request());
        let submission = gpu.span("submit", || gpu.submit_then(encoder, requests))?;
        reads.iter_mut().for_each(|read| read.submitted(&submission));
        if let Some(timed) = &mut timed {
            timed.submitted(&submission);
        }
        (self.mapping, self.submission) = (mapping, Some(submission));
        Ok(())
    }
}

/// Tensors, and the bytes that fill them in order.
pub type Upload<'a> = (&'a [&'a Tensor], &'a [u8]);

/// Uploads small data before a program runs. Each submission in flight uses one slot.
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

    /// Uploads, then runs the programs and the read-backs, in one submission. The data of each upload are copied into
    /// the slot as a whole, so tensors whose contents come in one block cost one copy on the host. Waits only if all
    /// slots are in flight.
    ///
    /// # Errors
    /// [`Error::Shape`] if data and tensors differ in size or the slot is too small; otherwise those of [`Gpu::check`].
    pub fn submit(
        &mut self,
        gpu: &Gpu,
        uploads: &[Upload],
        programs: &[&Program],
        reads: &mut [&mut ReadRing],
    ) -> Result<()> {
        self.submit_timed(gpu, uploads, programs, reads, None)
    }

    /// Does what [`UploadRing::submit`] does, as a part of a stopwatch's lap.
    ///
    /// # Errors
    /// Those of [`UploadRing::submit`]; [`Error::Gpu`] if the stopwatch is full.
    pub fn submit_timed(
        &mut self,
        gpu: &Gpu,
        uploads: &[Upload],
        programs: &[&Program],
        reads: &mut [&mut ReadRing],
        timed: Option<Timed<'_>>,
    ) -> Result<()> {
        // checked before a slot is taken, so that a refused upload leaves the ring unchanged
        let no_lap = timed.as_ref().is_some_and(|timed| timed.stops && timed.watch.is_full());
        if no_lap || reads.iter().any(|read| read.is_full()) {
            return Err(Error::gpu(Fault::at("gpu", "the read ring is full").advice("take its results first")));
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
            return Err(Error::gpu(Fault::at("gpu", "the upload ring has no slots")));
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

/// A copy in flight.
struct Flight {
    buffer: Arc<Buffer>,
    mapping: Mapping,
    submission: Ticket,
}

/// Reads one small tensor back after every submission that names the ring. Results come in order, some steps later.
pub struct ReadRing {
    tensor: Tensor,
    free: VecDeque<Arc<Buffer>>,
    /// The copy that is encoded but not yet submitted.
    encoded: Option<(Arc<Buffer>, Mapping)>,
    in_flight: VecDeque<Flight>,
}

impl ReadRing {
    /// Makes `slots` buffers for copies of `tensor`.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(gpu: &Gpu, slots: usize, tensor: &Tensor) -> Result<Self> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let free = (0..slots).map(|_| gpu.buffer("read ring", tensor.bytes(), usage)).collect::<Result<_>>()?;
        Ok(Self { tensor: tensor.clone(), free, encoded: None, in_flight: VecDeque::new() })
    }

    /// Returns the number of copies in flight or waiting to be taken.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.in_flight.len()
    }

    /// Returns whether the next submission would find no free slot: take a result first.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Encodes a copy. Returns the closure that requests the result; call it once the encoder is submitted.
    pub(super) fn encode(&mut self, gpu: &Gpu, encoder: &mut wgpu::CommandEncoder) -> Result<After> {
        let buffer = self
            .free
            .pop_front()
            .ok_or_else(|| Error::gpu(Fault::at("gpu", "the read ring is full").advice("take its results first")))?;
        let target = raw(&buffer)?;
        encoder.copy_buffer_to_buffer(raw(&self.tensor.buffer)?, self.tensor.offset, target, 0, self.tensor.bytes());
        let (mapping, request) = Mapping::new(gpu, "a read-back", target, target.size(), wgpu::MapMode::Read);
        self.encoded = Some((buffer, mapping));
        Ok(request)
    }

    pub(super) fn submitted(&mut self, submission: &Ticket) {
        if let Some((buffer, mapping)) = self.encoded.take() {
            self.in_flight.push_back(Flight { buffer, mapping, submission: submission.clone() });
        }
    }

    /// Takes the oldest result. If it is not ready, waits for it if `wait`, else returns `None`. Also `None` if nothing
    /// is pending.
    ///
    /// # Errors
    /// Those of [`Gpu::check`].
    pub fn take(&mut self, gpu: &Gpu, wait: bool) -> Result<Option<Vec<u8>>> {
        let Some(flight) = self.in_flight.front_mut() else { return Ok(None) };
        gpu.poll()?;
        if !flight.mapping.is_ready(gpu)? {
            if !wait {
                return Ok(None);
            }
            let submission = flight.submission.clone();
            gpu.span("wait for a read-back", || flight.mapping.wait(gpu, Some(submission)))?;
        }
        let Some(Flight { buffer, .. }) = self.in_flight.pop_front() else { return Ok(None) };
        let target = raw(&buffer)?;
        let view = target.slice(..).get_mapped_range();
        let mut bytes = view.map_err(|e| gpu.failure(format!("a read-back failed: {e}")))?.to_vec();
        target.unmap();
        bytes.truncate(self.tensor.bytes() as usize);
        self.free.push_back(buffer);
        Ok(Some(bytes))
    }
}
