//! Large read-backs and uploads of a running step: host memory that the device fills or empties, in a ring of two, without a
//! copy of its own on the host. What was read back stays where the device has put it until it is given back.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Error, Fault, Result};

use super::context::{Gpu, Ticket};
use super::mapping::{After, Mapping, raw};
use super::pass::Program;
use super::ring::ReadRing;
use super::stopwatch::Timed;
use super::tensor::{Buffer, Tensor};

/// Parcels in flight in either direction: while one is on the host the other is copied.
const SLOTS: usize = 2;

/// Bytes of tensors behind one another, each at a multiple of 4 bytes.
fn size_of(tensors: &[&Tensor]) -> u64 {
    tensors.iter().map(|tensor| tensor.bytes().next_multiple_of(4)).sum()
}

struct Sent {
    buffer: Arc<Buffer>,
    /// None if nothing was sent.
    mapping: Option<(Mapping, u64, Ticket)>,
}

/// Brings tensors to the host.
pub struct Departures {
    free: VecDeque<Arc<Buffer>>,
    sent: VecDeque<Sent>,
}

/// What was read back, in the memory that the device wrote.
#[derive(Debug)]
pub struct Parcel {
    buffer: Arc<Buffer>,
    view: Option<wgpu::BufferView>,
}

impl AsRef<[u8]> for Parcel {
    fn as_ref(&self) -> &[u8] {
        self.view.as_deref().unwrap_or_default()
    }
}

impl Departures {
    /// Makes room for parcels of at most `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(gpu: &Gpu, label: &str, bytes: u64) -> Result<Self> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let free = (0..SLOTS).map(|_| gpu.buffer(label, bytes, usage)).collect::<Result<_>>()?;
        Ok(Self { free, sent: VecDeque::new() })
    }

    /// Runs a program, then reads the tensors back, in one submission.
    ///
    /// # Errors
    /// [`Error::Gpu`] if both parcels are on their way; else as [`Gpu::check`].
    pub fn send(&mut self, gpu: &Gpu, program: Option<&Program>, tensors: &[&Tensor]) -> Result<()> {
        let full = || Error::gpu(Fault::at("departures", "no parcel is free").expected("one that was given back"));
        let buffer = self.free.pop_front().ok_or_else(full)?;
        let bytes = size_of(tensors);
        if bytes > buffer.size {
            let fault = Fault::at("departures", "a parcel is too large").expected(format!("{} bytes", buffer.size));
            return Err(Error::shape(fault.found(bytes)));
        }
        if bytes == 0 && program.is_none() {
            self.sent.push_back(Sent { buffer, mapping: None });
            return Ok(());
        }
        let mut encoder = gpu.encoder("departure")?;
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
        let (mapping, ask) = Mapping::new(gpu, "a departure", target, bytes, wgpu::MapMode::Read);
        let ticket = gpu.submit_then(encoder, ask)?;
        self.sent.push_back(Sent { buffer, mapping: Some((mapping, bytes, ticket)) });
        Ok(())
    }

    /// Waits for the oldest parcel.
    ///
    /// # Errors
    /// [`Error::Gpu`] if none is on its way; else as [`Gpu::check`].
    pub fn take(&mut self, gpu: &Gpu) -> Result<Parcel> {
        let none = || Error::gpu(Fault::at("departures", "no parcel is on its way"));
        let Sent { buffer, mapping } = self.sent.pop_front().ok_or_else(none)?;
        let Some((mut mapping, bytes, ticket)) = mapping else { return Ok(Parcel { buffer, view: None }) };
        gpu.span("wait for a departure", || mapping.wait(gpu, Some(ticket)))?;
        let view = raw(&buffer)?.slice(..bytes).get_mapped_range();
        let view = view.map_err(|e| gpu.failure(format!("a departure cannot be read: {e}")))?;
        Ok(Parcel { buffer, view: Some(view) })
    }

    /// Takes a parcel back, whose memory may be used again.
    ///
    /// # Errors
    /// [`Error::Gpu`] on a dry device.
    pub fn give_back(&mut self, Parcel { buffer, view }: Parcel) -> Result<()> {
        if view.is_some() {
            drop(view);
            raw(&buffer)?.unmap();
        }
        self.free.push_back(buffer);
        Ok(())
    }
}

struct Slot {
    buffer: Arc<Buffer>,
    mapping: Mapping,
    submission: Option<Ticket>,
}

/// Brings bytes from the host to tensors.
pub struct Arrivals {
    slots: VecDeque<Slot>,
}

/// Memory that is filled on the host.
pub struct Arrival {
    slot: Slot,
    view: wgpu::BufferViewMut,
}

impl Arrival {
    /// Writes bytes from byte `at` on.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.view.slice(at..at + bytes.len()).copy_from_slice(bytes);
    }
}

impl Arrivals {
    /// Makes room for parcels of at most `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(gpu: &Gpu, label: &'static str, bytes: u64) -> Result<Self> {
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let slots = (0..SLOTS).map(|_| {
            let buffer = gpu.buffer(label, bytes, usage)?;
            let Some(raw) = &buffer.raw else {
                return Ok(Slot { buffer, mapping: Mapping::never(label), submission: None });
            };
            let (mapping, ask) = Mapping::new(gpu, label, raw, raw.size(), wgpu::MapMode::Write);
            ask();
            Ok(Slot { buffer, mapping, submission: None })
        });
        Ok(Self { slots: slots.collect::<Result<_>>()? })
    }

    /// Waits for memory that the device does not read any more.
    ///
    /// # Errors
    /// As [`Gpu::check`].
    pub fn open(&mut self, gpu: &Gpu) -> Result<Arrival> {
        let none = || Error::gpu(Fault::at("arrivals", "no memory is free"));
        let mut slot = self.slots.pop_front().ok_or_else(none)?;
        gpu.poll()?;
        if !slot.mapping.is_there(gpu)? {
            gpu.span("wait for a free arrival", || slot.mapping.wait(gpu, slot.submission.take()))?;
        }
        let view = raw(&slot.buffer)?.slice(..).get_mapped_range_mut();
        let view = view.map_err(|e| gpu.failure(format!("an arrival cannot be written: {e}")))?;
        Ok(Arrival { slot, view })
    }

    /// Copies what was written to the tensors, in their order, and runs a program behind that and `reads`, in one submission.
    ///
    /// # Errors
    /// [`Error::Shape`] if the tensors are larger than the memory; [`Error::Gpu`] if a ring is full; else as [`Gpu::check`].
    pub fn land(
        &mut self,
        gpu: &Gpu,
        Arrival { mut slot, view }: Arrival,
        tensors: &[&Tensor],
        program: Option<&Program>,
        reads: &mut [&mut ReadRing],
        mut timed: Option<Timed<'_>>,
    ) -> Result<()> {
        drop(view);
        let source = raw(&slot.buffer)?;
        source.unmap();
        let bytes = size_of(tensors);
        if bytes > slot.buffer.size {
            let fault =
                Fault::at("arrivals", "the tensors are too large").expected(format!("{} bytes", slot.buffer.size));
            return Err(Error::shape(fault.found(bytes)));
        }
        let mut encoder = gpu.encoder("arrival")?;
        let mut at = 0;
        for tensor in tensors {
            let bytes = tensor.bytes().next_multiple_of(4);
            encoder.copy_buffer_to_buffer(source, at, raw(&tensor.buffer)?, tensor.offset, bytes);
            at += bytes;
        }
        if let Some(program) = program {
            program.encode(&mut encoder);
        }
        let mut after: Vec<After> = Vec::new();
        // before the read-backs: who finds a result finds its lap there as well
        if let Some(timed) = &mut timed {
            after.extend(timed.end(gpu, &mut encoder)?);
        }
        for read in reads.iter_mut() {
            after.push(read.encode(gpu, &mut encoder)?);
        }
        let (mapping, ask) = Mapping::new(gpu, "an arrival", source, source.size(), wgpu::MapMode::Write);
        after.push(ask);
        let ticket = gpu.submit_then(encoder, move || after.into_iter().for_each(|ask| ask()))?;
        reads.iter_mut().for_each(|read| read.submitted(&ticket));
        if let Some(timed) = &mut timed {
            timed.submitted(&ticket);
        }
        (slot.mapping, slot.submission) = (mapping, Some(ticket));
        self.slots.push_back(slot);
        Ok(())
    }
}
