//! The device: it is opened once, allocates buffers, builds kernels, submits work and waits for it, and turns every
//! failure into an [`Error`].

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
use crate::gpu::host_spans::Span;
use crate::gpu::host_wait::Waits;
use crate::gpu::kernel::Kernels;

use build::panic_text;
pub(in crate::gpu) use open::kind;
use submitter::Submitter;
pub(in crate::gpu) use submitter::Ticket;

/// Time after which a submission that still runs counts as hung. A software adapter may take as long as it needs.
pub(in crate::gpu) const HANG: Duration = Duration::from_secs(600);
/// Longest wait for submitted work when the device may be lost.
const LOSS: Duration = Duration::from_secs(10);
/// Number of elements at whose multiples the tensors of an arena begin. It is at least 256 bytes, the largest offset
/// alignment of any adapter. It is the same for elements of 2 and of 4 bytes, so that arenas of both have the same
/// layout.
pub const ALIGNMENT: u64 = 128;

/// Options for opening a device.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Index or part of the name; `None` means `WGPU_ADAPTER_NAME`, else the first GPU.
    pub device: Option<String>,
    /// Whether to keep bounds checks in kernels, zero workgroup memory, and request the driver's validation.
    pub checked: bool,
    /// Whether to request no more than WebGPU's default limits, for tests.
    pub webgpu_limits: bool,
    /// Whether to request cooperative matrices if the adapter lists them. wgpu calls them experimental.
    pub matrices: bool,
    /// Whether to pass kernels to Vulkan as naga writes them, without [`crate::gpu::spirv::repair`], for comparisons.
    pub unrepaired: bool,
    /// Whether to leave the driver's bounds checks on, on Vulkan, for comparisons.
    pub driver_checks: bool,
    /// Whether to request the driver's figures on each kernel: see [`Gpu::statistics`].
    pub statistics: bool,
    /// Whether to request `VK_NV_cooperative_matrix2` in addition to `matrices`, for comparisons.
    pub experimental: bool,
}

/// wgpu's handles; absent in a dry run.
#[derive(Debug)]
pub(in crate::gpu) struct Raw {
    /// The first field, so that it is dropped first: it finishes all queued work before the device is dropped.
    submitter: Submitter,
    pub(in crate::gpu) device: wgpu::Device,
    pub(in crate::gpu) queue: wgpu::Queue,
    _instance: wgpu::Instance,
}

/// A driver's figures on a kernel: names in the driver's wording, and values.
pub type KernelStatistics = Vec<(String, String)>;

/// Printed names of kernels and the driver's figures on each, in the order in which they were built.
type StatisticsList = Vec<(String, KernelStatistics)>;

/// Key of a bind group: pipeline, then (buffer, offset, size) of each binding.
pub(in crate::gpu) type BindKey = (u64, Vec<(u64, u64, u64)>);

/// An open device, or a dry one ([`Gpu::dry`]) that only counts.
#[derive(Debug)]
pub struct Gpu {
    /// Capabilities by which kernels and windows are chosen.
    pub caps: Caps,
    pub(in crate::gpu) raw: Option<Arc<Raw>>,
    /// The open device's real capabilities. Tests change [`Gpu::caps`], but not these.
    granted: Caps,
    checked: bool,
    /// On Vulkan, the SPIR-V version of the modules passed to the driver after [`crate::gpu::spirv::repair`].
    spirv: Option<(u8, u8)>,
    /// See [`Options::unrepaired`].
    unrepaired: bool,
    /// Whether the driver checks bounds, by [`Options::driver_checks`] or because we could not open the device
    /// ourselves.
    driver_checks: bool,
    /// See [`Gpu::device_kind`].
    device_kind: String,
    /// Kernels and the driver's figures on each, if they were requested.
    statistics: Arc<Mutex<Option<StatisticsList>>>,
    /// The kernel cache, shared with all handles and dry copies.
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
    /// First error that wgpu reported outside an error scope.
    fault: Arc<Mutex<Option<String>>>,
    lost: Arc<AtomicBool>,
    /// The host's waits for the device, for a watchdog.
    waits: Waits,
    #[cfg(test)]
    pub(in crate::gpu) faults: crate::gpu::faults::Faults,
}

/// Locks a mutex and ignores poisoning: every guarded value is set in one assignment, after everything that may panic,
/// so it is never half changed.
pub(in crate::gpu) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Makes a dry device: its buffers have sizes but no memory, and its programs can be counted but not run.
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
            device_kind: String::new(),
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

    /// Makes a dry device for the same adapter, with its own memory ledger. The two share their kernels: each kernel is
    /// parsed only once.
    #[must_use]
    pub fn dry_copy(&self) -> Self {
        Self { kernels: Arc::clone(&self.kernels), ..Self::dry(self.caps.clone()) }
    }

    /// Takes over the kernels that a dry device has parsed. Keeps its own kernels if it already has any, or if another
    /// device has built some of the dry device's.
    #[must_use]
    pub fn adopting_kernels(self, dry: Self) -> Self {
        if self.kernels.is_empty() && !dry.kernels.is_built() { Self { kernels: dry.kernels, ..self } } else { self }
    }

    /// Makes another handle of the same device, for which kernels and windows are chosen by `caps`. It shares the
    /// device and its kernels, and has its own bind groups and memory ledger. An error that wgpu reports outside a call
    /// is returned to the handle that asks first, so handles must not be used at the same time.
    #[must_use]
    pub fn with_caps(&self, caps: Caps) -> Self {
        Self {
            raw: self.raw.clone(),
            granted: self.granted.clone(),
            checked: self.checked,
            spirv: self.spirv,
            unrepaired: self.unrepaired,
            driver_checks: self.driver_checks,
            device_kind: self.device_kind.clone(),
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

    /// Names the way in which kernels are built if it is not the usual one; empty otherwise. Different code rounds
    /// differently.
    #[must_use]
    pub fn codegen_mode(&self) -> &'static str {
        match (self.checked, self.unrepaired, self.driver_checks) {
            (true, ..) => "checked",
            (_, true, _) => "as naga writes them",
            (_, _, true) => "with the driver's checks",
            _ => "",
        }
    }

    /// Returns a line that states whether we or wgpu opened the device, and why; empty on backends other than Vulkan,
    /// where only wgpu opens devices.
    #[must_use]
    pub fn device_kind(&self) -> &str {
        &self.device_kind
    }

    /// Returns the driver's figures on each kernel built so far, in the order in which they were built. `None` if they
    /// were not requested ([`Options::statistics`]) or the driver has none.
    #[must_use]
    pub fn statistics(&self) -> Option<Vec<(String, KernelStatistics)>> {
        lock(&self.statistics).clone()
    }

    /// Returns the number of buffers created so far.
    #[must_use]
    pub fn buffers_created(&self) -> u64 {
        self.buffers_created.load(Ordering::Relaxed)
    }

    /// Returns the number of bind groups created so far.
    #[must_use]
    pub fn bind_groups_created(&self) -> u64 {
        self.bind_groups_created.load(Ordering::Relaxed)
    }

    /// Drops all cached bind groups. They keep the memory of their tensors alive even when nothing else uses it.
    /// Recorded programs hold their own references and still run.
    pub fn forget_bindings(&self) {
        lock(&self.bind_groups).clear();
    }

    /// Returns the number of command buffers submitted so far.
    #[must_use]
    pub fn submissions(&self) -> u64 {
        self.submissions.load(Ordering::Relaxed)
    }

    /// Returns the device memory of wgpu's allocator: the bytes that our buffers occupy, and the bytes that it has
    /// reserved in total. `None` if the backend does not report them.
    #[must_use]
    pub fn driver_bytes(&self) -> Option<(u64, u64)> {
        let report = self.raw.as_deref()?.device.generate_allocator_report()?;
        Some((report.total_allocated_bytes, report.total_reserved_bytes))
    }

    /// Returns the bytes of all existing buffers.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes.load(Ordering::Relaxed)
    }

    /// Returns the bytes allocated under each label so far, in the order of the first allocation.
    #[must_use]
    pub fn ledger(&self) -> Vec<(String, u64)> {
        lock(&self.ledger).clone()
    }

    /// Returns, after a dry run, label and bytes of the first buffer that is larger than the adapter's largest.
    #[must_use]
    pub fn oversized(&self) -> Option<(String, u64)> {
        lock(&self.oversized).clone()
    }
}
