//! Time of every kernel of a program, by timestamps round each dispatch.

use crate::error::{Error, Result};

use super::context::Gpu;
use super::pass::Program;

/// Timestamps that one query set holds at most.
const QUERIES: usize = 4096;

/// One kernel's time in a run of a program.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Position in [`Program::commands`].
    pub command: usize,
    /// Begin in milliseconds since the program's first timestamp.
    pub begin_ms: f64,
    /// End, likewise.
    pub end_ms: f64,
}

impl Program {
    /// Runs the program once with every dispatch in a pass of its own, and returns the times of its dispatches.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the adapter has no timestamps; else as [`Gpu::check`].
    pub fn time(&self, gpu: &Gpu) -> Result<Vec<Timing>> {
        if !gpu.caps.timestamps {
            return Err(Error::Gpu(format!("timing: {} has no timestamps", gpu.caps.name)));
        }
        let raw = gpu.raw()?;
        let period_ms = f64::from(raw.queue.get_timestamp_period()) * 1e-6;
        let mut timings = Vec::new();
        let mut origin = None;
        let mut at = 0;
        let resolved = gpu.buffer("timestamps", QUERIES as u64 * 8, wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC)?;
        let set = raw.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count: QUERIES as u32,
        });
        while at < self.commands.len() {
            let mut encoder = gpu.encoder("timed program")?;
            let mut timed = Vec::new();
            while at < self.commands.len() && timed.len() < QUERIES / 2 {
                let command = &self.commands[at];
                if command.is_dispatch() {
                    let first = 2 * timed.len() as u32;
                    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                        label: Some(&command.name),
                        timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                            query_set: &set,
                            beginning_of_pass_write_index: Some(first),
                            end_of_pass_write_index: Some(first + 1),
                        }),
                    });
                    command.encode_dispatch(&mut pass);
                    timed.push(at);
                } else {
                    command.encode_transfer(&mut encoder);
                }
                at += 1;
            }
            if timed.is_empty() {
                gpu.submit(encoder)?;
                continue;
            }
            let (Some(target), count) = (resolved.raw.as_ref(), 2 * timed.len()) else {
                return Err(Error::Gpu("timing: a dry device was timed".into()));
            };
            encoder.resolve_query_set(&set, 0..count as u32, target, 0);
            gpu.submit(encoder)?;
            let window = super::Tensor::new(std::sync::Arc::clone(&resolved), 0, 1, 2 * count, super::Elem::U32);
            let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&gpu.read(&window)?);
            for (i, command) in timed.into_iter().enumerate() {
                let origin = *origin.get_or_insert(ticks[0]);
                let ms = |tick: u64| tick.wrapping_sub(origin) as f64 * period_ms;
                timings.push(Timing { command, begin_ms: ms(ticks[2 * i]), end_ms: ms(ticks[2 * i + 1]) });
            }
        }
        Ok(timings)
    }
}
