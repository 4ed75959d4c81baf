//! When the host began to wait for the device: seen from another thread, which can tell that a driver hangs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The waits of one device. Clones see the same.
///
/// Waits are counted in time in which the process ran: a process that was suspended, by a signal or by a laptop's lid, has
/// not waited meanwhile. The thread that watches the waits also tells the time ([`Waits::tick`]): where its ticks have a gap,
/// nothing ran.
#[derive(Debug, Clone, Default)]
pub struct Waits {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    clock: Clock,
    /// The running time at the begin of the wait at hand.
    since: Option<Duration>,
    longest: Duration,
    ended: u64,
}

/// Time in which the process ran.
#[derive(Debug)]
struct Clock {
    epoch: Instant,
    /// The last tick, and how long it is to the next one at most.
    tick: Option<(Instant, Duration)>,
    /// Sum of the gaps between ticks.
    suspended: Duration,
}

impl Default for Clock {
    fn default() -> Self {
        Self { epoch: Instant::now(), tick: None, suspended: Duration::ZERO }
    }
}

impl Clock {
    /// The part of the time since the last tick in which nothing can have run.
    fn gap(&self, now: Instant) -> Duration {
        self.tick.map_or(Duration::ZERO, |(last, most)| now.saturating_duration_since(last).saturating_sub(most))
    }

    fn tick(&mut self, now: Instant, most: Duration) {
        self.suspended += self.gap(now);
        self.tick = Some((now, most));
    }

    /// The running time since the epoch.
    fn running(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch).saturating_sub(self.suspended + self.gap(now))
    }
}

impl Waits {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // numbers that a panic cannot leave half changed
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what may wait. Only one thread does so at a time.
    pub(crate) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        let begin = {
            let mut inner = self.inner();
            let begin = inner.clock.running(Instant::now());
            inner.since = Some(begin);
            begin
        };
        let result = work();
        let mut inner = self.inner();
        let end = inner.clock.running(Instant::now());
        inner.since = None;
        inner.longest = inner.longest.max(end.saturating_sub(begin));
        inner.ended += 1;
        result
    }

    /// Tells that the process runs; the next tick comes within `most`, unless nothing runs.
    pub fn tick(&self, most: Duration) {
        self.inner().clock.tick(Instant::now(), most);
    }

    /// Returns how long the wait at hand has lasted.
    #[must_use]
    pub fn current(&self) -> Option<Duration> {
        let inner = self.inner();
        inner.since.map(|since| inner.clock.running(Instant::now()).saturating_sub(since))
    }

    /// Returns how long the longest wait lasted that has ended.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.inner().longest
    }

    /// Returns how many waits have ended: work got on.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.inner().ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_nothing_ticked_is_no_running_time() {
        let mut clock = Clock::default();
        let seconds = Duration::from_secs_f64;
        let at = |s: f64| clock_epoch(&clock) + seconds(s);
        let (begin, later) = (at(0.0), [1.0, 2.0, 5000.0, 5001.0, 5001.5].map(at));
        assert_eq!(clock.running(later[1]), seconds(2.0));
        clock.tick(begin, seconds(2.0));
        clock.tick(later[0], seconds(2.0));
        assert_eq!(clock.running(later[1]), seconds(2.0));
        // seen before the tick that follows, and after it
        assert_eq!(clock.running(later[2]), seconds(3.0));
        clock.tick(later[2], seconds(2.0));
        assert_eq!(clock.running(later[2]), seconds(3.0));
        assert_eq!(clock.running(later[3]), seconds(4.0));
        clock.tick(later[4], seconds(2.0));
        assert_eq!(clock.running(later[4]), seconds(4.5));
    }

    fn clock_epoch(clock: &Clock) -> Instant {
        clock.epoch
    }
}
