//! Measures how long each step takes.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::gpu::Lap;
use crate::ops::stepcontrol::Report;

/// The most reports that are held back until one arrives apart from them. More than are in flight.
const MOST_HELD: usize = 8;
/// Milliseconds between two reports from which on they did not arrive together, however long a step takes.
const SURELY_APART_MS: f64 = 20.0;

/// Times steps, without validation, samples and saves.
///
/// If the device has a clock, a step's time is the time between its begin and its end on the device, plus the time for which
/// the device was idle before it. Without a device clock, the host's clock is used. The host notices a step's end only when it
/// next polls, so several steps may seem to end together. Their reports are held until one arrives apart from them, and each
/// step gets an equal share of their time.
pub(super) struct Clock {
    /// The first step of this process, which compiles and allocates.
    first: usize,
    /// The step that is submitted next.
    next: usize,
    /// Pauses between two submissions, keyed by the step that follows.
    pauses: BTreeMap<usize, Duration>,
    /// The end of the last timed step on the host's clock; the next field has it in milliseconds on the device's clock.
    last: Instant,
    last_lap: Option<f64>,
    /// Reports of steps that the host's clock cannot separate yet. The newest arrived at `held_at`.
    held: Vec<Report>,
    held_at: Instant,
    /// Arrival of the first step's report.
    first_at: Instant,
    /// Pauses since `last` in which no step ran, and those in which steps may have run.
    idle: Duration,
    busy: Duration,
    /// The newest step whose report has arrived.
    arrived: usize,
    ready: VecDeque<(Report, f64)>,
    /// Milliseconds of pauses that belong to no step, keyed by the step that follows.
    left_out: BTreeMap<usize, f64>,
    /// Milliseconds per step, smoothed as in llm.c: an exponential moving average with bias correction.
    smooth: f64,
    weight: f64,
}

impl Clock {
    pub(super) fn new(first: usize, now: Instant) -> Self {
        Self {
            first,
            next: first,
            pauses: BTreeMap::new(),
            last: now,
            last_lap: None,
            held: Vec::new(),
            held_at: now,
            first_at: now,
            idle: Duration::ZERO,
            busy: Duration::ZERO,
            arrived: first - 1,
            ready: VecDeque::new(),
            left_out: BTreeMap::new(),
            smooth: 0.0,
            weight: 0.0,
        }
    }

    pub(super) fn pause<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let result = work();
        self.paused(begin.elapsed());
        result
    }

    /// Records a pause that ends now. Steps that were submitted before it may have run during it.
    pub(super) fn paused(&mut self, pause: Duration) {
        *self.pauses.entry(self.next).or_default() += pause;
        if self.arrived + 1 >= self.next {
            self.idle += pause;
        } else {
            self.busy += pause;
        }
    }

    /// Records that a step was submitted.
    pub(super) fn submitted(&mut self, step: usize) {
        self.next = step + 1;
    }

    /// Takes a report that arrived at `now`, and times the steps that can be separated from their neighbours.
    pub(super) fn arrive(&mut self, report: Report, lap: Option<Lap>, now: Instant) {
        self.arrived = report.step as usize;
        if self.arrived == self.first {
            self.first_at = now;
        }
        let Some(lap) = lap else {
            if self.is_apart(now) {
                self.share();
            }
            self.held.push(report);
            self.held_at = now;
            return;
        };
        self.share();
        let step = report.step as usize;
        let later = self.pauses.split_off(&(step + 1));
        let paused = std::mem::replace(&mut self.pauses, later).into_values().sum::<Duration>().as_secs_f64() * 1e3;
        // before the first lap nothing is known about the device
        let gap = self.last_lap.map_or(0.0, |end| (lap.begin_ms - end).max(0.0));
        let left_out = if self.last_lap.is_some() { paused.min(gap) } else { paused };
        let ms = lap.end_ms - lap.begin_ms + (gap - left_out).max(0.0);
        (self.last, self.last_lap) = (now, Some(lap.end_ms));
        (self.idle, self.busy) = (Duration::ZERO, Duration::ZERO);
        self.left_out.insert(step, left_out);
        self.timed(report, ms, step > self.first);
    }

    /// Returns whether a report that arrives at `now` did not arrive together with the held ones.
    fn is_apart(&self, now: Instant) -> bool {
        let gap = now.saturating_duration_since(self.held_at).as_secs_f64() * 1e3;
        let share = self.held_ms() / self.held.len().max(1) as f64;
        let apart = match self.mean_ms() {
            // the first steps compile kernels, so their time says nothing about later steps
            None => gap >= SURELY_APART_MS,
            // if a share is far too small, the report before was noticed late
            Some(usual) => gap >= 0.5 * share.max(usual) && share >= 0.25 * usual,
        };
        apart || self.held.len() >= MOST_HELD
    }

    /// Returns the milliseconds of all held steps together.
    fn held_ms(&self) -> f64 {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let passed = ms(self.held_at.saturating_duration_since(self.last).saturating_sub(self.idle));
        let usual = self.mean_ms().unwrap_or(f64::INFINITY) * self.held.len() as f64;
        passed - ms(self.busy).min((passed - usual).max(0.0))
    }

    /// Times the held steps. Each gets an equal share.
    pub(super) fn share(&mut self) {
        if self.held.len() >= MOST_HELD && self.held[0].step as usize == self.first {
            // fewer steps than this are in flight, so the first ended apart from most of them
            let first = self.held.remove(0);
            let ms = self.first_at.saturating_duration_since(self.last).as_secs_f64() * 1e3;
            self.last = self.first_at;
            self.timed(first, ms, false);
        }
        let Some(oldest) = self.held.first().map(|report| report.step as usize) else { return };
        let all = self.held_ms();
        let passed = self.held_at.saturating_duration_since(self.last).as_secs_f64() * 1e3;
        self.left_out.insert(oldest, (passed - all).max(0.0));
        self.last = self.held_at;
        (self.idle, self.busy) = (Duration::ZERO, Duration::ZERO);
        let held = std::mem::take(&mut self.held);
        let ms = all / held.len() as f64;
        for report in held {
            self.pauses.remove(&(report.step as usize));
            // steps whose reports arrived with the first one's do not count
            self.timed(report, ms, oldest > self.first);
        }
    }

    fn timed(&mut self, report: Report, ms: f64, counts: bool) {
        if counts {
            self.smooth = 0.95 * self.smooth + 0.05 * ms;
            self.weight = 0.95 * self.weight + 0.05;
        }
        self.ready.push_back((report, ms));
    }

    /// Returns the oldest timed step and its milliseconds, and removes it.
    pub(super) fn oldest(&mut self) -> Option<(Report, f64)> {
        self.ready.pop_front()
    }

    /// Returns the newest timed step and its milliseconds, and removes it.
    pub(super) fn newest(&mut self) -> Option<(Report, f64)> {
        self.ready.pop_back()
    }

    /// Returns the milliseconds of the pauses before a step that are not part of its time, and removes them. Returns `None` if
    /// they are less than one.
    pub(super) fn take_pause_ms(&mut self, step: usize) -> Option<f32> {
        let ms = self.left_out.remove(&step).unwrap_or(0.0) as f32;
        (ms >= 1.0).then_some(ms)
    }

    pub(super) fn mean_ms(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.smooth / self.weight)
    }
}

#[cfg(test)]
#[path = "clock_tests.rs"]
mod tests;
