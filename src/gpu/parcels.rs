//! Large read-backs and uploads of a running step: host memory that the device fills or empties, in a ring of two, without a
//! copy of its own on the host. What was read back stays where the device has put it until it is given back.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Error, Fault, Result};

use super::context::{Gpu, Ticket};
use super::mapping::{Mapping, raw};
use super::program::Program;
use super::ring::{ReadRing, UploadSlot};
use super::stopwatch::Timed;
use super::tensor::{Buffer, Tensor};

/// Parcels in flight in either direction: while one is on the host the other is copied.
const SLOTS: usize = 2;

/// Bytes that are worth a thread of their own.
const LEAST_SHARE: usize = 1 << 20;

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

/// Bytes that were read back, in the memory that the device wrote.
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

/// Brings bytes from the host to tensors.
pub struct Arrivals {
    slots: VecDeque<UploadSlot>,
}

/// Memory that is filled on the host. Pieces of it begin at multiples of 8 bytes and are multiples of 4 bytes long.
pub struct Arrival {
    slot: UploadSlot,
}

impl Arrival {
    /// Writes bytes from byte `at` on.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the memory cannot be written there.
    pub fn put(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        write(raw(&self.slot.buffer)?, at, bytes)
    }

    /// Writes several pieces, which do not overlap, on up to so many threads: one does not copy as fast as a GPU reads.
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
                // a cut inside a piece is at a multiple of 8 bytes of it
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
            let failed = || Error::gpu(Fault::at("arrivals", "a thread that copies panicked"));
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
    let mut view = view.map_err(|e| Error::gpu(Fault::at("arrivals", format!("memory cannot be written: {e}"))))?;
    view.slice(..).copy_from_slice(bytes);
    Ok(())
}

impl Arrivals {
    /// Makes room for parcels of at most `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(gpu: &Gpu, label: &'static str, bytes: u64) -> Result<Self> {
        let slots = (0..SLOTS).map(|_| UploadSlot::new(gpu, label, bytes));
        Ok(Self { slots: slots.collect::<Result<_>>()? })
    }

    /// Waits for memory that the device does not read any more.
    ///
    /// # Errors
    /// As [`Gpu::check`].
    pub fn open(&mut self, gpu: &Gpu) -> Result<Arrival> {
        let none = || Error::gpu(Fault::at("arrivals", "no memory is free"));
        let mut slot = self.slots.pop_front().ok_or_else(none)?;
        slot.wait(gpu)?;
        Ok(Arrival { slot })
    }

    /// Copies what was written to the tensors, in their order, and runs a program behind that and `reads`, in one submission.
    ///
    /// # Errors
    /// [`Error::Shape`] if the tensors are larger than the memory; [`Error::Gpu`] if a ring is full; else as [`Gpu::check`].
    pub fn land(
        &mut self,
        gpu: &Gpu,
        Arrival { mut slot }: Arrival,
        tensors: &[&Tensor],
        program: Option<&Program>,
        reads: &mut [&mut ReadRing],
        timed: Option<Timed<'_>>,
    ) -> Result<()> {
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
    fn what_departs_arrives_however_many_threads_copy() {
        let gpu = Gpu::open(&Options::default()).unwrap();
        let n = 1_200_000;
        let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let [from, to] = [(); 2].map(|()| gpu.tensor("values", 1, n, Elem::F32).unwrap());
        gpu.write(&from, bytemuck::cast_slice(&values)).unwrap();
        let mut departures = Departures::new(&gpu, "out", from.bytes()).unwrap();
        let mut arrivals = Arrivals::new(&gpu, "in", to.bytes()).unwrap();
        let halves = [from.flat(0..n / 3), from.flat(n / 3..n)];
        for threads in [1, 2, 3, 64] {
            departures.send(&gpu, None, &[&halves[0], &halves[1]]).unwrap();
            let parcel = departures.take(&gpu).unwrap();
            let bytes = parcel.as_ref();
            // with gaps that keep what was there
            let gap = 4 * 1000;
            let third = bytes.len() / 3;
            let pieces = [(0, &bytes[..third - gap]), (third, &bytes[third..third]), (third, &bytes[third..])];
            let mut arrival = arrivals.open(&gpu).unwrap();
            arrival.put(third - gap, &vec![0; gap]).unwrap();
            arrival.put_all(&pieces, threads).unwrap();
            departures.give_back(parcel).unwrap();
            gpu.write(&to, &vec![1; 4 * n]).unwrap();
            arrivals.land(&gpu, arrival, &[&to], None, &mut [], None).unwrap();
            let mut want = values.clone();
            want[(third - gap) / 4..third / 4].fill(0.0);
            assert!(gpu.read_f32(&to).unwrap() == want, "{threads} threads");
        }
        assert!(departures.take(&gpu).is_err());
        departures.send(&gpu, None, &[]).unwrap();
        departures.send(&gpu, None, &[&from]).unwrap();
        assert!(departures.send(&gpu, None, &[&from]).is_err(), "a third parcel");
        assert!(departures.take(&gpu).unwrap().as_ref().is_empty());
    }
}
