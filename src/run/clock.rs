//! How long a step takes.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::gpu::Lap;
use crate::ops::stepcontrol::Report;

/// Reports that are held back at most until one comes in apart from them: more than are in flight.
const MOST_HELD: usize = 8;
/// Milliseconds between reports that did not come in together, whatever a step takes.
const SURELY_APART_MS: f64 = 20.0;

/// Times steps, without validation, samples and saves.
///
/// Where the device has a clock, a step's time is that between its begin and its end there, and the time that the device
/// stood idle before it. The host learns of a step's end when it next looks, so on its clock several steps may end
/// together: without a device's clock their reports are held until one comes in apart from them, and each gets an equal
/// share of their time.
pub(super) struct Clock {
    /// The first step of this process, which compiles and allocates.
    first: usize,
    /// The step that is to be submitted next.
    next: usize,
    /// Pauses between two submissions, by the step that follows.
    pauses: BTreeMap<usize, Duration>,
    /// The end of the last step that was timed: on the host's clock, and in milliseconds on the device's.
    last: Instant,
    last_lap: Option<f64>,
    /// Reports of steps that the host's clock has not told apart yet; the newest came in at `held_at`.
    held: Vec<Report>,
    held_at: Instant,
    /// When the first step's report came in.
    first_at: Instant,
    /// Pauses since `last` in which no step ran, and those in which steps may have run.
    idle: Duration,
    busy: Duration,
    /// The newest step whose report is here.
    arrived: usize,
    ready: VecDeque<(Report, f64)>,
    /// Milliseconds of pauses that are part of no step, by the step that follows.
    left_out: BTreeMap<usize, f64>,
    /// Milliseconds of a step, smoothed as llm.c does: an average that forgets, corrected for its start.
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

    /// Notes a pause that ends now. Steps that were submitted before it may have run meanwhile.
    pub(super) fn paused(&mut self, pause: Duration) {
        *self.pauses.entry(self.next).or_default() += pause;
        if self.arrived + 1 >= self.next {
            self.idle += pause;
        } else {
            self.busy += pause;
        }
    }

    /// Notes that a step was submitted.
    pub(super) fn submitted(&mut self, step: usize) {
        self.next = step + 1;
    }

    /// Takes a report that came in at `now`, and times the steps that can be told from their neighbours.
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
        // before the first lap nothing is known of the device
        let gap = self.last_lap.map_or(0.0, |end| (lap.begin_ms - end).max(0.0));
        let left_out = if self.last_lap.is_some() { paused.min(gap) } else { paused };
        let ms = lap.end_ms - lap.begin_ms + (gap - left_out).max(0.0);
        (self.last, self.last_lap) = (now, Some(lap.end_ms));
        (self.idle, self.busy) = (Duration::ZERO, Duration::ZERO);
        self.left_out.insert(step, left_out);
        self.timed(report, ms, step > self.first);
    }

    /// True if a report that comes in at `now` is none of those that came in together before.
    fn is_apart(&self, now: Instant) -> bool {
        let gap = now.saturating_duration_since(self.held_at).as_secs_f64() * 1e3;
        let share = self.held_ms() / self.held.len().max(1) as f64;
        let apart = match self.mean_ms() {
            // the first steps compile: their time tells nothing of those to come
            None => gap >= SURELY_APART_MS,
            // a share that is far too small: the report before was noticed late
            Some(usual) => gap >= 0.5 * share.max(usual) && share >= 0.25 * usual,
        };
        apart || self.held.len() >= MOST_HELD
    }

    /// Milliseconds of all held steps.
    fn held_ms(&self) -> f64 {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let passed = ms(self.held_at.saturating_duration_since(self.last).saturating_sub(self.idle));
        let usual = self.mean_ms().unwrap_or(f64::INFINITY) * self.held.len() as f64;
        passed - ms(self.busy).min((passed - usual).max(0.0))
    }

    /// Times the held steps, each with an equal share.
    pub(super) fn share(&mut self) {
        if self.held.len() >= MOST_HELD && self.held[0].step as usize == self.first {
            // so many are not in flight: the first is apart from most of them
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
            // none of those that came in with the first step
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

    /// Returns the oldest step that is timed, with its milliseconds, once.
    pub(super) fn oldest(&mut self) -> Option<(Report, f64)> {
        self.ready.pop_front()
    }

    /// Returns the newest, likewise.
    pub(super) fn newest(&mut self) -> Option<(Report, f64)> {
        self.ready.pop_back()
    }

    /// Returns the milliseconds of the pauses before a step that are no part of its time, once; less than one is none.
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
