//! What a step takes, and how it is told.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::ops::stepcontrol::Report;

/// Time between the ends of steps, without validation, samples and saves.
pub(super) struct Clock {
    /// The first step of this process, which compiles and allocates.
    first: usize,
    last: Instant,
    pause: Duration,
    /// Pauses before the last tick that nobody was told of.
    paused: Duration,
    /// Milliseconds of a step, smoothed as llm.c does: an average that forgets, corrected for its start.
    smooth: f64,
    weight: f64,
}

impl Clock {
    pub(super) fn new(first: usize) -> Self {
        Self { first, last: Instant::now(), pause: Duration::ZERO, paused: Duration::ZERO, smooth: 0.0, weight: 0.0 }
    }

    pub(super) fn pause<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let result = work();
        self.pause += begin.elapsed();
        result
    }

    /// Takes out the time since `begin`.
    pub(super) fn pause_since(&mut self, begin: Instant) {
        self.pause += begin.elapsed();
    }

    /// Milliseconds of each of the steps whose reports have come in together, the last of them now.
    pub(super) fn tick(&mut self, reports: &[Report]) -> f64 {
        let now = Instant::now();
        let ms =
            now.duration_since(self.last).saturating_sub(self.pause).as_secs_f64() * 1e3 / reports.len().max(1) as f64;
        self.paused += self.pause;
        (self.last, self.pause) = (now, Duration::ZERO);
        for _ in reports.iter().filter(|r| r.step as usize > self.first) {
            self.smooth = 0.95 * self.smooth + 0.05 * ms;
            self.weight = 0.95 * self.weight + 0.05;
        }
        ms
    }

    /// Milliseconds of the pauses before the last tick, once; less than one is none.
    pub(super) fn take_pause_ms(&mut self) -> Option<f32> {
        let ms = std::mem::take(&mut self.paused).as_secs_f32() * 1e3;
        (ms >= 1.0).then_some(ms)
    }

    pub(super) fn mean_ms(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.smooth / self.weight)
    }
}

/// A duration as `1:02:03` or `2:03`.
#[must_use]
pub fn clock_text(duration: Duration) -> String {
    let s = duration.as_secs_f64().round() as u64;
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        h => format!("{h}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}
