//! Lets tests make a device fail: the Nth allocation runs out of memory, or the Nth submission or mapping loses the
//! device. Outside tests these functions do nothing.

use super::context::Gpu;

/// Calls that tests can make fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Creation of a buffer.
    Allocate,
    /// Submission of commands.
    Submit,
    /// Mapping of a buffer.
    Map,
}

#[cfg(not(test))]
#[allow(clippy::unused_self)]
impl Gpu {
    /// Returns whether this call must fail: never outside tests.
    pub(super) fn fails(&self, _: Call) -> bool {
        false
    }

    /// Returns a closure that makes this call fail: it does nothing outside tests.
    pub(super) fn fault(&self, _: Call) -> impl FnOnce() + Send + use<> {
        || ()
    }
}

/// Counts of the calls, and the call that fails.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Faults {
    calls: std::sync::Arc<[std::sync::atomic::AtomicU64; 3]>,
    at: std::sync::Mutex<Option<(Call, u64)>>,
}

#[cfg(test)]
impl Gpu {
    /// Makes the call with this number fail, counted from now and from 0; `None` means no failure.
    pub(crate) fn fail_at(&self, at: Option<(Call, u64)>) {
        self.faults.calls.iter().for_each(|calls| calls.store(0, std::sync::atomic::Ordering::SeqCst));
        *super::context::lock(&self.faults.at) = at;
    }

    /// Returns the counters of calls, which outlive the device.
    pub(crate) fn counters(&self) -> std::sync::Arc<[std::sync::atomic::AtomicU64; 3]> {
        std::sync::Arc::clone(&self.faults.calls)
    }

    /// Returns the number of calls since [`Gpu::fail_at`].
    pub(crate) fn calls(&self, call: Call) -> u64 {
        self.faults.calls[call as usize].load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Counts a call, and returns whether it must fail.
    pub(super) fn fails(&self, call: Call) -> bool {
        let number = self.faults.calls[call as usize].fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        *super::context::lock(&self.faults.at) == Some((call, number))
    }

    /// Counts a call now. The returned closure is run where the call is really made, and loses the device if the call
    /// must fail.
    pub(super) fn fault(&self, call: Call) -> impl FnOnce() + Send + use<> {
        let fails = self.fails(call);
        let device = self.raw.as_ref().filter(|_| fails).map(|raw| raw.device.clone());
        move || {
            if let Some(device) = device {
                device.destroy();
            }
        }
    }
}
