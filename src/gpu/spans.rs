//! What the host does and when, for profiles: nothing is recorded unless it was asked for.

use std::time::Instant;

use super::context::{Gpu, lock};

/// One thing that the host did.
#[derive(Debug, Clone)]
pub struct Span {
    /// What: `encode`, `wait for the upload ring`.
    pub name: &'static str,
    /// When it began.
    pub begin: Instant,
    /// When it was done.
    pub end: Instant,
}

impl Span {
    /// Milliseconds.
    #[must_use]
    pub fn ms(&self) -> f64 {
        self.end.duration_since(self.begin).as_secs_f64() * 1e3
    }

    /// True for time in which the host only waits for the device.
    #[must_use]
    pub fn is_wait(&self) -> bool {
        self.name.starts_with("wait")
    }
}

impl Gpu {
    /// Begins to record spans.
    pub fn record_spans(&self) {
        *lock(&self.spans) = Some(Vec::new());
    }

    /// The spans since [`Gpu::record_spans`], in the order in which they ended; ends the recording.
    #[must_use]
    pub fn take_spans(&self) -> Vec<Span> {
        lock(&self.spans).take().unwrap_or_default()
    }

    /// Does `work`, and records it under `name` if spans are recorded. Spans may lie in one another.
    pub fn span<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let result = work();
        if let Some(spans) = lock(&self.spans).as_mut() {
            spans.push(Span { name, begin, end: Instant::now() });
        }
        result
    }
}
