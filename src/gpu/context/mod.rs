//! The device: opened once, it allocates buffers, builds kernels, submits and waits, and turns every failure into an
//! [`Error`].

mod allocate;
mod build;
mod open;
mod submit;
mod submitter;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Fault, Result};

use crate::gpu::adapter::Caps;
use crate::gpu::kernel::Kernels;
use crate::gpu::spans::Span;
use crate::gpu::waits::Waits;

use build::panic_text;
pub(in crate::gpu) use open::kind;
use submitter::Submitter;
pub(in crate::gpu) use submitter::Ticket;

/// How long a submission may run before a GPU counts as hung. A software adapter may take as long as it needs.
pub(in crate::gpu) const HANG: Duration = Duration::from_secs(600);
/// How long to wait for what was submitted, to see whether the device is lost.
const LOSS: Duration = Duration::from_secs(10);
/// Elements at whose multiples the tensors of an arena start: at least 256 bytes, the largest offset alignment of any
/// adapter, and the same for elements of 2 and of 4 bytes, so that arenas of both are laid out alike.
pub const ALIGNMENT: u64 = 128;

/// How a device is opened.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Index or part of the name; `None` takes `WGPU_ADAPTER_NAME`, else the first real GPU.
    pub device: Option<String>,
    /// Keep bounds checks in kernels, zero workgroup memory, and ask for the driver's validation.
    pub checked: bool,
    /// Ask for no more than WebGPU's default limits: for tests.
    pub webgpu_limits: bool,
    /// Ask for cooperative matrices where the adapter lists them. wgpu calls them experimental.
    pub matrices: bool,
    /// Hand kernels to Vulkan as naga writes them, without [`crate::gpu::spirv::repair`]: to compare.
    pub unrepaired: bool,
    /// Leave the driver's bounds checks on, on Vulkan: to compare.
    pub driver_checks: bool,
    /// Ask the driver for figures on each kernel: see [`Gpu::statistics`].
    pub statistics: bool,
    /// Also ask for `VK_NV_cooperative_matrix2`, if `matrices` are asked for: to compare.
    pub experimental: bool,
}

/// What wgpu holds; absent in a dry run.
#[derive(Debug)]
pub(in crate::gpu) struct Raw {
    /// First, so that what was handed over is done before the device goes.
    submitter: Submitter,
    pub(in crate::gpu) device: wgpu::Device,
    pub(in crate::gpu) queue: wgpu::Queue,
    _instance: wgpu::Instance,
}

/// A driver's figures on a kernel: names in its own words, and values.
pub type KernelStatistics = Vec<(String, String)>;

/// Kernels by their printed names, and the driver's figures on each, in the order of building.
type StatisticsList = Vec<(String, KernelStatistics)>;

/// Key of a bind group: pipeline, then (buffer, offset, size) of each binding.
pub(in crate::gpu) type BindKey = (u64, Vec<(u64, u64, u64)>);

/// An open device, or with [`Gpu::dry`] the mere bookkeeping of one.
#[derive(Debug)]
pub struct Gpu {
    /// What the adapter can do.
    pub caps: Caps,
    pub(in crate::gpu) raw: Option<Arc<Raw>>,
    /// The open device's own capabilities, which tests do not change as they do [`Gpu::caps`].
    granted: Caps,
    checked: bool,
    /// On Vulkan, the version of SPIR-V in which kernels are handed over after [`crate::gpu::spirv::repair`].
    spirv: Option<(u8, u8)>,
    /// See [`Options::unrepaired`].
    unrepaired: bool,
    /// The driver checks bounds, by [`Options::driver_checks`] or because a device of our own does not open.
    driver_checks: bool,
    /// Which kind of device this is, for a run's header; empty where there is but one kind.
    device: String,
    /// Kernels and the driver's figures on each, if somebody asked.
    statistics: Arc<Mutex<Option<StatisticsList>>>,
    /// Shared with all handles and dry copies.
    kernels: Arc<Kernels>,
    pub(in crate::gpu) bind_groups: Mutex<HashMap<BindKey, wgpu::BindGroup>>,
    next_id: Arc<AtomicU64>,
    buffers_created: AtomicU64,
    pub(in crate::gpu) bind_groups_created: AtomicU64,
    submissions: AtomicU64,
    pub(in crate::gpu) spans: Mutex<Option<Vec<Span>>>,
    allocated_bytes: Arc<AtomicU64>,
    /// Bytes ever allocated under each label, in the order of the first allocation.
    ledger: Mutex<Vec<(String, u64)>>,
    /// In a dry run, the first buffer that the adapter could not make.
    oversized: Mutex<Option<(String, u64)>>,
    /// First error that wgpu reported outside a scope.
    fault: Arc<Mutex<Option<String>>>,
    lost: Arc<AtomicBool>,
    /// Since when the host waits for the device, for a watchdog.
    waits: Waits,
    #[cfg(test)]
    pub(in crate::gpu) faults: crate::gpu::faults::Faults,
}

/// A poisoned lock holds nothing half-done here: what is guarded is set in one assignment, after all that may panic.
pub(in crate::gpu) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// A device that only keeps books: buffers have sizes and no memory, programs can be counted and not run.
    #[must_use]
    pub fn dry(caps: Caps) -> Self {
        Self {
            granted: caps.clone(),
            caps,
            raw: None,
            checked: false,
            spirv: None,
            unrepaired: false,
            driver_checks: false,
            device: String::new(),
            statistics: Arc::default(),
            kernels: Arc::default(),
            bind_groups: Mutex::default(),
            next_id: Arc::new(AtomicU64::new(1)),
            buffers_created: AtomicU64::new(0),
            bind_groups_created: AtomicU64::new(0),
            submissions: AtomicU64::new(0),
            spans: Mutex::default(),
            allocated_bytes: Arc::default(),
            ledger: Mutex::default(),
            oversized: Mutex::default(),
            fault: Arc::default(),
            lost: Arc::default(),
            waits: Waits::default(),
            #[cfg(test)]
            faults: crate::gpu::faults::Faults::default(),
        }
    }

    /// A dry device for the same adapter, with its own memory ledger. It shares this device's kernels: what it has read this
    /// one need not read again.
    #[must_use]
    pub fn dry_copy(&self) -> Self {
        Self { kernels: Arc::clone(&self.kernels), ..Self::dry(self.caps.clone()) }
    }

    /// Takes over the kernels that a dry device has read. Keeps its own if it has any already, or if another device has built
    /// some of those.
    #[must_use]
    pub fn adopting(self, dry: Self) -> Self {
        if self.kernels.is_empty() && !dry.kernels.is_built() { Self { kernels: dry.kernels, ..self } } else { self }
    }

    /// Another handle of the same device, for which kernels and windows are chosen by other capabilities. It shares the
    /// device and its kernels, and keeps its own bind groups and memory ledger. An error that wgpu reports outside a call goes
    /// to the handle that asks first, so handles must not be used at the same time.
    #[must_use]
    pub fn with_caps(&self, caps: Caps) -> Self {
        Self {
            raw: self.raw.clone(),
            granted: self.granted.clone(),
            checked: self.checked,
            spirv: self.spirv,
            unrepaired: self.unrepaired,
            driver_checks: self.driver_checks,
            device: self.device.clone(),
            statistics: Arc::clone(&self.statistics),
            kernels: Arc::clone(&self.kernels),
            next_id: Arc::clone(&self.next_id),
            fault: Arc::clone(&self.fault),
            lost: Arc::clone(&self.lost),
            waits: self.waits.clone(),
            ..Self::dry(caps)
        }
    }

    pub(in crate::gpu) fn raw(&self) -> Result<&Raw> {
        self.raw.as_deref().ok_or_else(|| Error::gpu(Fault::at("gpu", "a dry device was asked to compute")))
    }

    fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// How kernels are built, where it is not as usual: other code rounds differently.
    #[must_use]
    pub fn built(&self) -> &'static str {
        match (self.checked, self.unrepaired, self.driver_checks) {
            (true, ..) => "checked",
            (_, true, _) => "as naga writes them",
            (_, _, true) => "with the driver's checks",
            _ => "",
        }
    }

    /// One line that says whether this is a device of our own or wgpu's, and why; empty where there is but one kind.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Returns the driver's figures on each kernel built so far, in the order of building. `None` if nobody asked
    /// ([`Options::statistics`]) or the driver has none.
    #[must_use]
    pub fn statistics(&self) -> Option<Vec<(String, KernelStatistics)>> {
        lock(&self.statistics).clone()
    }

    /// Buffers created so far.
    #[must_use]
    pub fn buffers_created(&self) -> u64 {
        self.buffers_created.load(Ordering::Relaxed)
    }

    /// Bind groups created so far.
    #[must_use]
    pub fn bind_groups_created(&self) -> u64 {
        self.bind_groups_created.load(Ordering::Relaxed)
    }

    /// Drops all bind groups that are kept for programs to come. They keep the memory of the tensors that they bind, also of
    /// those that nobody else has any more; recorded programs have their own.
    pub fn forget_bindings(&self) {
        lock(&self.bind_groups).clear();
    }

    /// Command buffers handed to the device so far.
    #[must_use]
    pub fn submissions(&self) -> u64 {
        self.submissions.load(Ordering::Relaxed)
    }

    /// Device memory that wgpu's allocator holds, where the backend tells: what our buffers take, and what it has
    /// reserved for them and others.
    #[must_use]
    pub fn driver_bytes(&self) -> Option<(u64, u64)> {
        let report = self.raw.as_deref()?.device.generate_allocator_report()?;
        Some((report.total_allocated_bytes, report.total_reserved_bytes))
    }

    /// Bytes of all buffers that were created and not dropped.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes.load(Ordering::Relaxed)
    }

    /// Bytes allocated under each label so far, in the order of the first allocation: the table of what needs how much.
    #[must_use]
    pub fn ledger(&self) -> Vec<(String, u64)> {
        lock(&self.ledger).clone()
    }

    /// In a dry run: label and bytes of the first buffer that is larger than any the adapter makes.
    #[must_use]
    pub fn oversized(&self) -> Option<(String, u64)> {
        lock(&self.oversized).clone()
    }
}
