//! Times repeated work by the device's clock. The timestamps come back with the work's results, so they need neither a
//! wait nor a submission of their own.

use std::sync::Arc;

use crate::error::Result;

use super::context::Gpu;
use super::mapping::{After, raw};
use super::ring::ReadRing;
use super::tensor::{Elem, Tensor};

/// Bytes between two resolved timestamps. wgpu resolves only to multiples of this.
const STRIDE: u64 = wgpu::QUERY_RESOLVE_BUFFER_ALIGNMENT;

/// A lap: one repetition of the work. Times are milliseconds of the device's clock since the stopwatch's first lap
/// began.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lap {
    /// Time at which the device had finished everything before the lap.
    pub begin_ms: f64,
    /// Time at which it had finished the lap's work.
    pub end_ms: f64,
}

/// Times laps of one or more submissions each: see [`super::UploadRing::submit_timed`].
pub struct Stopwatch {
    /// Absent in a dry run.
    set: Option<wgpu::QuerySet>,
    resolved: Tensor,
    ring: ReadRing,
    tick_ms: f64,
    /// Beginning of the first lap, in ticks.
    origin: Option<u64>,
}

/// The position of a submission in its lap.
pub struct Timed<'w> {
    /// The lap's stopwatch.
    pub watch: &'w mut Stopwatch,
    /// Whether this is the lap's first submission.
    pub starts: bool,
    /// Whether this is the lap's last submission.
    pub stops: bool,
}

impl Stopwatch {
    /// Makes a stopwatch for up to `slots` laps in flight. `None` if the adapter has no timestamps between passes.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn new(gpu: &Gpu, slots: usize) -> Result<Option<Self>> {
        if !gpu.caps.encoder_timestamps {
            return Ok(None);
        }
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let buffer = gpu.buffer("timestamps", STRIDE + 8, usage)?;
        let words = buffer.size as usize / 4;
        let resolved = Tensor::new(Arc::clone(&buffer), 0, 1, words, Elem::U32);
        let (set, period) = match &gpu.raw {
            None => (None, 0.0),
            Some(raw) => {
                let set = raw.device.create_query_set(&wgpu::QuerySetDescriptor {
                    label: Some("stopwatch"),
                    ty: wgpu::QueryType::Timestamp,
                    count: 2,
                });
                (Some(set), raw.queue.get_timestamp_period())
            }
        };
        let ring = ReadRing::new(gpu, slots, &resolved)?;
        Ok(Some(Self { set, resolved, ring, tick_ms: f64::from(period) * 1e-6, origin: None }))
    }

    /// Returns whether all slots are in use: take a lap before another one ends.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.ring.is_full()
    }

    /// Waits for the oldest lap that was not yet taken, and returns it. `None` if there is none, or if the clock
    /// restarted from zero meanwhile.
    ///
    /// # Errors
    /// Those of [`Gpu::check`].
    pub fn take(&mut self, gpu: &Gpu) -> Result<Option<Lap>> {
        let Some(bytes) = self.ring.take(gpu, true)? else { return Ok(None) };
        let ticks = |at: u64| bytemuck::pod_read_unaligned::<u64>(&bytes[at as usize..at as usize + 8]);
        Ok(self.lap(ticks(0), ticks(STRIDE)))
    }

    fn lap(&mut self, begin: u64, end: u64) -> Option<Lap> {
        let origin = *self.origin.get_or_insert(begin);
        if end <= begin || begin < origin {
            self.origin = None;
            return None;
        }
        // subtract whole ticks first: ticks since the machine's start may exceed the precision of an f64
        let ms = |ticks: u64| (ticks - origin) as f64 * self.tick_ms;
        Some(Lap { begin_ms: ms(begin), end_ms: ms(end) })
    }

    /// Encodes a timestamp: `which` is 0 for the lap's beginning, 1 for its end. It is resolved at once, so that the
    /// two may be in different submissions.
    fn mark(&self, encoder: &mut wgpu::CommandEncoder, which: u32) -> Result<()> {
        let Some(set) = &self.set else { return Ok(()) };
        encoder.write_timestamp(set, which);
        encoder.resolve_query_set(set, which..which + 1, raw(&self.resolved.buffer)?, u64::from(which) * STRIDE);
        Ok(())
    }
}

impl Timed<'_> {
    /// Encodes the timestamp before the submission's work, if the submission starts the lap.
    pub(super) fn begin(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        if self.starts { self.watch.mark(encoder, 0) } else { Ok(()) }
    }

    /// Encodes the timestamp after the submission's work, if the submission ends the lap. Returns the closure that
    /// requests the lap; call it once the encoder is submitted.
    pub(super) fn end(&mut self, gpu: &Gpu, encoder: &mut wgpu::CommandEncoder) -> Result<Option<After>> {
        if !self.stops {
            return Ok(None);
        }
        self.watch.mark(encoder, 1)?;
        self.watch.ring.encode(gpu, encoder).map(Some)
    }

    pub(super) fn submitted(&mut self, submission: &super::context::Ticket) {
        self.watch.ring.submitted(submission);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Options;

    #[test]
    fn laps_count_from_the_first_and_a_clock_that_restarts_gives_none() {
        let gpu = Gpu::open(&Options::default()).unwrap();
        let Some(mut watch) = Stopwatch::new(&gpu, 2).unwrap() else {
            crate::not_run::not_run("laps of the stopwatch", "the adapter has no timestamps between passes");
            return;
        };
        watch.tick_ms = 0.5;
        let late = 1 << 60;
        assert_eq!(watch.lap(late, late + 4), Some(Lap { begin_ms: 0.0, end_ms: 2.0 }));
        assert_eq!(watch.lap(late + 5, late + 9), Some(Lap { begin_ms: 2.5, end_ms: 4.5 }));
        assert_eq!(watch.lap(late + 9, 3), None);
        assert_eq!(watch.lap(4, 6), Some(Lap { begin_ms: 0.0, end_ms: 1.0 }));
        assert_eq!(watch.lap(6, 6), None);
    }
}
