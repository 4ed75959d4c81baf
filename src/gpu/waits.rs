//! When the host began to wait for the device: seen from another thread, which can tell that a driver hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The waits of one device. Clones see the same.
#[derive(Debug, Clone, Default)]
pub struct Waits {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    epoch: Instant,
    /// Microseconds from the epoch to the begin of the wait at hand, one more; 0 while there is none.
    since: AtomicU64,
    /// Microseconds of the longest wait that ended.
    longest: AtomicU64,
    /// Waits that ended.
    ended: AtomicU64,
}

impl Default for Inner {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self { epoch: Instant::now(), since: zero(), longest: zero(), ended: zero() }
    }
}

impl Inner {
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }
}

impl Waits {
    /// Does what may wait. Only one thread does so at a time.
    pub(crate) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        let begin = self.inner.now();
        self.inner.since.store(begin + 1, Ordering::SeqCst);
        let result = work();
        self.inner.since.store(0, Ordering::SeqCst);
        self.inner.longest.fetch_max(self.inner.now() - begin, Ordering::SeqCst);
        self.inner.ended.fetch_add(1, Ordering::SeqCst);
        result
    }

    /// How long the wait at hand has lasted.
    #[must_use]
    pub fn current(&self) -> Option<Duration> {
        let since = self.inner.since.load(Ordering::SeqCst).checked_sub(1)?;
        Some(Duration::from_micros(self.inner.now().saturating_sub(since)))
    }

    /// How long the longest wait lasted that has ended.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.inner.longest.load(Ordering::SeqCst))
    }

    /// How many waits have ended: work got on.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.inner.ended.load(Ordering::SeqCst)
    }
}
