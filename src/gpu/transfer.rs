//! Copies tensors between host and device outside of a step, and waits for the copies. A step uses the rings instead.

use crate::error::{Error, Fault, Result};

use super::context::Gpu;
use super::mapping::{Mapping, raw};
use super::tensor::{Elem, Tensor};

/// Largest number of bytes moved in one submission.
const CHUNK: u64 = 32 << 20;

impl Gpu {
    /// Overwrites a tensor from the host. A step uses [`super::UploadRing`] instead.
    ///
    /// # Errors
    /// [`Error::Shape`] if the sizes differ; otherwise those of [`Gpu::check`].
    pub fn write(&self, tensor: &Tensor, data: &[u8]) -> Result<()> {
        self.write_all(&[(tensor, data)])
    }

    /// Overwrites several tensors, in as few submissions as their bytes allow.
    ///
    /// # Errors
    /// Those of [`Gpu::write`].
    pub fn write_all(&self, list: &[(&Tensor, &[u8])]) -> Result<()> {
        // wgpu copies these bytes ahead of its next submission, so earlier work must have reached it
        self.drain()?;
        let mut waiting = 0;
        for (tensor, data) in list {
            let (label, expected, found) = (tensor.label(), tensor.bytes(), data.len());
            if found as u64 != expected {
                return Err(Error::shape(Fault::at("write", format!("`{label}` has {expected} bytes")).found(found)));
            }
            let (Some(raw), Some(buffer)) = (&self.raw, &tensor.buffer.raw) else { continue };
            for (i, chunk) in data.chunks(CHUNK as usize).enumerate() {
                if waiting > 0 && waiting + chunk.len() as u64 > CHUNK {
                    // wgpu frees its staging buffers when the copies are done
                    let ticket = self.submit(self.encoder("write")?)?;
                    self.wait_for(&ticket)?;
                    waiting = 0;
                }
                let at = tensor.offset + i as u64 * CHUNK;
                if chunk.len().is_multiple_of(4) {
                    raw.queue.write_buffer(buffer, at, chunk);
                } else {
                    // an odd number of f16: copies are whole words of 4 bytes, and only padding follows
                    let mut padded = chunk.to_vec();
                    padded.resize(chunk.len().next_multiple_of(4), 0);
                    raw.queue.write_buffer(buffer, at, &padded);
                }
                waiting += chunk.len() as u64;
            }
        }
        if waiting > 0 {
            self.submit(self.encoder("write")?)?;
        }
        Ok(())
    }

    /// Reads a tensor back, after waiting for all work before it. A step uses [`super::ReadRing`] instead.
    ///
    /// # Errors
    /// Those of [`Gpu::check`].
    pub fn read(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(tensor.bytes() as usize);
        self.read_all(&[tensor], |_, part| bytes.extend_from_slice(part))?;
        Ok(bytes)
    }

    /// Reads several tensors back, in as few submissions as their bytes allow. `take` gets the index of a tensor and
    /// its next bytes, in order.
    ///
    /// # Errors
    /// Those of [`Gpu::check`].
    pub fn read_all(&self, tensors: &[&Tensor], mut take: impl FnMut(usize, &[u8])) -> Result<()> {
        /// A part of a tensor in the staging buffer.
        struct Part {
            tensor: usize,
            first: u64,
            bytes: u64,
        }
        // copies are whole words of 4 bytes
        let words = |bytes: u64| bytes.next_multiple_of(4);
        let total: u64 = tensors.iter().map(|tensor| words(tensor.bytes())).sum();
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let staging = self.buffer("read-back", total.min(CHUNK), usage)?;
        let end = tensors.iter().rposition(|tensor| tensor.bytes() > 0);
        let (mut load, mut filled) = (Vec::<Part>::new(), 0);
        for (number, tensor) in tensors.iter().enumerate() {
            let mut first = 0;
            while first < tensor.bytes() {
                let bytes = (CHUNK - filled).min(tensor.bytes() - first);
                load.push(Part { tensor: number, first, bytes });
                (first, filled) = (first + bytes, filled + words(bytes));
                let last = Some(number) == end && first == tensor.bytes();
                if filled < CHUNK && !last {
                    continue;
                }
                let mut encoder = self.encoder("read")?;
                let mut at = 0;
                for part in &load {
                    let (from, to) = (raw(&tensors[part.tensor].buffer)?, raw(&staging)?);
                    let start = tensors[part.tensor].offset + part.first;
                    encoder.copy_buffer_to_buffer(from, start, to, at, words(part.bytes));
                    at += words(part.bytes);
                }
                let target = raw(&staging)?;
                let (mut mapping, ask) = Mapping::new(self, "a read-back", target, at, wgpu::MapMode::Read);
                let ticket = self.submit_then(encoder, ask)?;
                mapping.wait(self, Some(ticket))?;
                let view = target.slice(..at).get_mapped_range();
                let view = view.map_err(|e| self.failure(format!("reading back failed: {e}")))?;
                at = 0;
                for part in &load {
                    take(part.tensor, &view[at as usize..(at + part.bytes) as usize]);
                    at += words(part.bytes);
                }
                drop(view);
                target.unmap();
                load.clear();
                filled = 0;
            }
        }
        Ok(())
    }

    /// Reads a tensor back as f32. f16 is widened; the bits of u32 are reinterpreted.
    ///
    /// # Errors
    /// Those of [`Gpu::check`].
    pub fn read_f32(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let bytes = self.read(tensor)?;
        Ok(match tensor.elem() {
            Elem::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Elem::F32 | Elem::U32 => bytemuck::pod_collect_to_vec(&bytes),
        })
    }
}
