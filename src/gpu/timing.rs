//! Times every command of a program, by timestamps before and after it.

use std::sync::Arc;

use crate::error::{Error, Fault, Result};

use super::context::Gpu;
use super::program::{Command, Program};

/// Largest number of timestamps in a query set.
const QUERIES: usize = 4096;

/// One command's time in a run of a program.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Position in [`Program::commands`].
    pub command: usize,
    /// Begin in milliseconds since the run's first timestamp, without the time between submissions.
    pub begin_ms: f64,
    /// End, counted in the same way.
    pub end_ms: f64,
}

impl Timing {
    /// Returns its duration in milliseconds.
    #[must_use]
    pub fn ms(&self) -> f64 {
        self.end_ms - self.begin_ms
    }
}

/// A timed run of a program.
#[derive(Debug, Clone, Default)]
pub struct Timings {
    /// Every dispatch in order, and every clear and copy if the adapter can time them.
    pub commands: Vec<Timing>,
    /// Milliseconds from before the first command to after the last. They have their own timestamps if the adapter can
    /// time between passes. A long program takes several submissions; the time between these does not count.
    pub span_ms: f64,
}

/// One submission's timestamps.
struct Batch<'g> {
    set: &'g wgpu::QuerySet,
    /// Commands timed so far, each with the position of the first of its two timestamps.
    timed: Vec<(usize, u32)>,
    /// Timestamps used.
    used: u32,
}

impl Batch<'_> {
    fn dispatch(&mut self, encoder: &mut wgpu::CommandEncoder, at: usize, command: &Command) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(command.name()),
            timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                query_set: self.set,
                beginning_of_pass_write_index: Some(self.used),
                end_of_pass_write_index: Some(self.used + 1),
            }),
        });
        command.encode_dispatch(&mut pass);
        drop(pass);
        self.timed.push((at, self.used));
        self.used += 2;
    }

    fn transfer(&mut self, encoder: &mut wgpu::CommandEncoder, at: usize, command: &Command) {
        encoder.write_timestamp(self.set, self.used);
        command.encode_transfer(encoder);
        encoder.write_timestamp(self.set, self.used + 1);
        self.timed.push((at, self.used));
        self.used += 2;
    }

    fn mark(&mut self, encoder: &mut wgpu::CommandEncoder) {
        encoder.write_timestamp(self.set, self.used);
        self.used += 1;
    }
}

impl Program {
    /// Returns [`Program::timings`] of only the dispatches, counted from the first.
    ///
    /// # Errors
    /// Those of [`Program::timings`].
    pub fn time(&self, gpu: &Gpu) -> Result<Vec<Timing>> {
        let mut timings = self.timings(gpu)?.commands;
        timings.retain(|t| self.commands[t.command].is_dispatch());
        let origin = timings.first().map_or(0.0, |t| t.begin_ms);
        for timing in &mut timings {
            (timing.begin_ms, timing.end_ms) = (timing.begin_ms - origin, timing.end_ms - origin);
        }
        Ok(timings)
    }

    /// Runs the program once as it always runs, without timestamps around each command, and returns the milliseconds
    /// that the device takes.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the adapter has no timestamps between passes; otherwise those of [`Gpu::check`].
    pub fn span_ms(&self, gpu: &Gpu) -> Result<f64> {
        if !gpu.caps.encoder_timestamps {
            return Err(Error::gpu(Fault::at("timing", format!("{} has no timestamps between passes", gpu.caps.name))));
        }
        let raw = gpu.raw()?;
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = gpu.buffer("timestamps", 16, usage)?;
        let Some(target) = resolved.raw.as_ref() else {
            return Err(Error::gpu(Fault::at("timing", "a dry device was timed")));
        };
        let set = raw.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        });
        let mut encoder = gpu.encoder("timed program")?;
        encoder.write_timestamp(&set, 0);
        self.encode(&mut encoder);
        encoder.write_timestamp(&set, 1);
        encoder.resolve_query_set(&set, 0..2, target, 0);
        gpu.submit(encoder)?;
        let window = super::Tensor::new(Arc::clone(&resolved), 0, 1, 4, super::Elem::U32);
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&gpu.read(&window)?);
        Ok(ticks[1].wrapping_sub(ticks[0]) as f64 * f64::from(raw.queue.get_timestamp_period()) * 1e-6)
    }

    /// Runs the program once with every dispatch in its own pass, waits, and returns the times of its commands.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the adapter has no timestamps; otherwise those of [`Gpu::check`].
    pub fn timings(&self, gpu: &Gpu) -> Result<Timings> {
        if !gpu.caps.timestamps {
            return Err(Error::gpu(Fault::at("timing", format!("{} has no timestamps", gpu.caps.name))));
        }
        let raw = gpu.raw()?;
        let period_ms = f64::from(raw.queue.get_timestamp_period()) * 1e-6;
        let between = gpu.caps.encoder_timestamps;
        let resolved = gpu.buffer(
            "timestamps",
            QUERIES as u64 * 8,
            wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
        )?;
        let Some(target) = resolved.raw.as_ref() else {
            return Err(Error::gpu(Fault::at("timing", "a dry device was timed")));
        };
        let set = raw.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count: QUERIES as u32,
        });
        let mut timings = Timings::default();
        let mut at = 0;
        while at < self.commands.len() {
            let mut encoder = gpu.encoder("timed program")?;
            let mut batch = Batch { set: &set, timed: Vec::new(), used: 0 };
            if between {
                batch.mark(&mut encoder);
            }
            // leaves space for the timestamps of one more command and the last mark
            while at < self.commands.len() && batch.used as usize + 3 <= QUERIES {
                let command = &self.commands[at];
                match (command.is_dispatch(), between) {
                    (true, _) => batch.dispatch(&mut encoder, at, command),
                    (false, true) => batch.transfer(&mut encoder, at, command),
                    (false, false) => command.encode_transfer(&mut encoder),
                }
                at += 1;
            }
            if between {
                batch.mark(&mut encoder);
            }
            if batch.used == 0 {
                gpu.submit(encoder)?;
                continue;
            }
            encoder.resolve_query_set(&set, 0..batch.used, target, 0);
            gpu.submit(encoder)?;
            let window = super::Tensor::new(Arc::clone(&resolved), 0, 1, 2 * batch.used as usize, super::Elem::U32);
            let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&gpu.read(&window)?);
            // signed, because clocks of different units of a GPU may differ by a tick
            let passed = |at: u32| ticks[at as usize].wrapping_sub(ticks[0]) as i64 as f64 * period_ms;
            let before = timings.span_ms;
            timings.span_ms += passed(batch.used - 1);
            let ms = |at: u32| before + passed(at);
            for (command, first) in batch.timed {
                timings.commands.push(Timing { command, begin_ms: ms(first), end_ms: ms(first + 1) });
            }
        }
        Ok(timings)
    }
}
