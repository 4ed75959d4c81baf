//! Tensors between host and device outside of a step, waiting for what it takes; a step has the rings.

use crate::error::{Error, Result};

use super::context::Gpu;
use super::faults::Call;
use super::tensor::{Elem, Tensor};

/// Bytes moved at once between host and device outside a step.
const CHUNK: u64 = 32 << 20;

impl Gpu {
    /// Overwrites a tensor from the host. Not for the step: [`super::UploadRing`] is.
    ///
    /// # Errors
    /// [`Error::Shape`] if the sizes differ, else as [`Gpu::check`].
    pub fn write(&self, tensor: &Tensor, data: &[u8]) -> Result<()> {
        if data.len() as u64 != tensor.bytes() {
            return Err(Error::Shape(format!(
                "write: `{}` has {} bytes, got {}",
                tensor.label(),
                tensor.bytes(),
                data.len()
            )));
        }
        let (Some(raw), Some(buffer)) = (&self.raw, &tensor.buffer.raw) else { return Ok(()) };
        for (i, chunk) in data.chunks(CHUNK as usize).enumerate() {
            let at = tensor.offset + i as u64 * CHUNK;
            if chunk.len().is_multiple_of(4) {
                raw.queue.write_buffer(buffer, at, chunk);
            } else {
                // an odd number of f16: no copy ends within a word, and what follows is nobody's
                let mut padded = chunk.to_vec();
                padded.resize(chunk.len().next_multiple_of(4), 0);
                raw.queue.write_buffer(buffer, at, &padded);
            }
            // submitting frees wgpu's staging copy
            let index = self.submit(self.encoder("write")?)?;
            if data.len() as u64 > CHUNK {
                self.poll(Some(index))?;
            }
        }
        Ok(())
    }

    /// Reads a tensor back, waiting for all work before it. Not for the step: [`super::ReadRing`] is.
    ///
    /// # Errors
    /// As [`Gpu::check`].
    pub fn read(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(tensor.bytes() as usize);
        let size = tensor.bytes().next_multiple_of(4).min(CHUNK);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let staging = self.buffer("read-back", size, usage)?;
        let source = tensor.buffer.raw.as_ref().ok_or_else(|| Error::Gpu("gpu: a dry tensor was read".into()))?;
        let target = staging.raw.as_ref().ok_or_else(|| Error::Gpu("gpu: a dry tensor was read".into()))?;
        let mut done = 0;
        while done < tensor.bytes() {
            // no copy ends within a word
            let n = CHUNK.min(tensor.bytes() - done).next_multiple_of(4);
            let mut encoder = self.encoder("read")?;
            encoder.copy_buffer_to_buffer(source, tensor.offset + done, target, 0, n);
            let index = self.submit(encoder)?;
            let (sender, mut receiver) = futures::channel::oneshot::channel();
            let _failed = self.fails(Call::Map);
            target.slice(..n).map_async(wgpu::MapMode::Read, move |result| {
                let _ = sender.send(result);
            });
            self.poll(Some(index))?;
            match receiver.try_recv() {
                Ok(Some(Ok(()))) => {}
                other => return Err(self.loss(&format!("reading `{}` back failed: {other:?}", tensor.label()))),
            }
            let view = target
                .slice(..n)
                .get_mapped_range()
                .map_err(|e| Error::Gpu(format!("gpu: reading `{}` back failed: {e}", tensor.label())))?;
            bytes.extend_from_slice(&view);
            drop(view);
            target.unmap();
            done += n;
        }
        bytes.truncate(tensor.bytes() as usize);
        Ok(bytes)
    }

    /// [`Gpu::read`] as f32, f16 widened.
    ///
    /// # Errors
    /// As [`Gpu::check`].
    pub fn read_f32(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let bytes = self.read(tensor)?;
        Ok(match tensor.elem() {
            Elem::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Elem::F32 | Elem::U32 => bytemuck::pod_collect_to_vec(&bytes),
        })
    }
}
