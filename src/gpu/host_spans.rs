//! Records what the host does and when, for profiles. Nothing is recorded unless it is requested.

use std::time::Instant;

use super::context::{Gpu, lock};

/// A piece of the host's work.
#[derive(Debug, Clone)]
pub struct Span {
    /// Name of the work: `encode`, `wait for a free upload slot`.
    pub name: &'static str,
    /// Time at which it began.
    pub begin: Instant,
    /// Time at which it ended.
    pub end: Instant,
}

impl Span {
    /// Returns its duration in milliseconds.
    #[must_use]
    pub fn ms(&self) -> f64 {
        self.end.duration_since(self.begin).as_secs_f64() * 1e3
    }

    /// Returns whether the host only waits for the device in it.
    #[must_use]
    pub fn is_wait(&self) -> bool {
        self.name.starts_with("wait")
    }
}

impl Gpu {
    /// Starts recording spans.
    pub fn record_spans(&self) {
        *lock(&self.spans) = Some(Vec::new());
    }

    /// Stops recording and returns the spans since [`Gpu::record_spans`], in the order in which they ended.
    #[must_use]
    pub fn take_spans(&self) -> Vec<Span> {
        lock(&self.spans).take().unwrap_or_default()
    }

    /// Does `work`, and records it under `name` if spans are being recorded. Spans may be nested.
    pub fn span<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let result = work();
        if let Some(spans) = lock(&self.spans).as_mut() {
            spans.push(Span { name, begin, end: Instant::now() });
        }
        result
    }
}
