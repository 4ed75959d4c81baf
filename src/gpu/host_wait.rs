//! Records when the host waits for the device. Another thread, a watchdog, reads it to notice that a driver hangs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The host's waits for one device. Clones share the same record.
///
/// Waits are measured in time in which the process ran: a process that is suspended, by a signal or by a laptop's lid,
/// does not wait meanwhile. The thread that watches the waits also keeps the clock ([`Waits::tick`]): during a gap
/// between its ticks the process did not run.
#[derive(Debug, Clone, Default)]
pub struct Waits {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    clock: Clock,
    /// Running time at the beginning of the current wait.
    since: Option<Duration>,
    longest: Duration,
    ended: u64,
}

/// Time in which the process ran.
#[derive(Debug)]
struct Clock {
    epoch: Instant,
    /// The last tick, and the longest time to the next one.
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
    /// Returns the part of the time since the last tick in which the process cannot have run.
    fn gap(&self, now: Instant) -> Duration {
        self.tick.map_or(Duration::ZERO, |(last, most)| now.saturating_duration_since(last).saturating_sub(most))
    }

    fn tick(&mut self, now: Instant, most: Duration) {
        self.suspended += self.gap(now);
        self.tick = Some((now, most));
    }

    /// Returns the running time since the epoch.
    fn running(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch).saturating_sub(self.suspended + self.gap(now))
    }
}

impl Waits {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // poisoning is ignored: a panic cannot leave these numbers half changed
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work`, which may wait for the device, and records it as a wait. Only one thread may do so at a time.
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

    /// Records that the process is running. The next tick must come within `most`, unless the process is suspended.
    pub fn tick(&self, most: Duration) {
        self.inner().clock.tick(Instant::now(), most);
    }

    /// Returns the duration of the current wait so far; `None` if the host is not waiting.
    #[must_use]
    pub fn current(&self) -> Option<Duration> {
        let inner = self.inner();
        inner.since.map(|since| inner.clock.running(Instant::now()).saturating_sub(since))
    }

    /// Returns the duration of the longest finished wait.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.inner().longest
    }

    /// Returns the number of finished waits, which grows as long as work makes progress.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.inner().ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_between_ticks_are_not_running_time() {
        let mut clock = Clock::default();
        let seconds = Duration::from_secs_f64;
        let at = |s: f64| clock_epoch(&clock) + seconds(s);
        let (begin, later) = (at(0.0), [1.0, 2.0, 5000.0, 5001.0, 5001.5].map(at));
        assert_eq!(clock.running(later[1]), seconds(2.0));
        clock.tick(begin, seconds(2.0));
        clock.tick(later[0], seconds(2.0));
        assert_eq!(clock.running(later[1]), seconds(2.0));
        // the gap is seen both before the next tick and after it
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
