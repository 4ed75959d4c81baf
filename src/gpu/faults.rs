//! The seam through which tests let a device fail: the Nth allocation finds no memory, the Nth submission a device that is
//! gone, the Nth mapping too. In the program there is nothing of it.

use super::context::Gpu;

/// Calls that may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// A buffer is made.
    Allocate,
    /// Commands are handed over.
    Submit,
    /// A buffer is mapped.
    Map,
}

#[cfg(not(test))]
#[allow(clippy::unused_self)]
impl Gpu {
    /// True if this call is to fail: never.
    pub(super) fn fails(&self, _: Call) -> bool {
        false
    }

    /// Lets this call fail when it is made: never.
    pub(super) fn fault(&self, _: Call) -> impl FnOnce() + Send + use<> {
        || ()
    }
}

/// How many calls there were, and which one fails.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Faults {
    calls: std::sync::Arc<[std::sync::atomic::AtomicU64; 3]>,
    at: std::sync::Mutex<Option<(Call, u64)>>,
}

#[cfg(test)]
impl Gpu {
    /// Lets the call with this number fail, the first being 0, counted from now; none for no failure.
    pub(crate) fn fail_at(&self, at: Option<(Call, u64)>) {
        self.faults.calls.iter().for_each(|calls| calls.store(0, std::sync::atomic::Ordering::SeqCst));
        *super::context::lock(&self.faults.at) = at;
    }

    /// The numbers of calls, which outlive the device.
    pub(crate) fn counters(&self) -> std::sync::Arc<[std::sync::atomic::AtomicU64; 3]> {
        std::sync::Arc::clone(&self.faults.calls)
    }

    /// Calls since [`Gpu::fail_at`].
    pub(crate) fn calls(&self, call: Call) -> u64 {
        self.faults.calls[call as usize].load(std::sync::atomic::Ordering::SeqCst)
    }

    /// True if this call is to fail.
    pub(super) fn fails(&self, call: Call) -> bool {
        let number = self.faults.calls[call as usize].fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        *super::context::lock(&self.faults.at) == Some((call, number))
    }

    /// Counts a call now; what is returned loses the device, if the call is to fail, where the call is really made.
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
