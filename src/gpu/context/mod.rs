//! The device: opened once, it allocates buffers, builds kernels, submits and waits, and turns every failure into an
//! [`Error`].

mod allocate;
mod submit;
mod submitter;

use std::borrow::Cow;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};

use crate::gpu::adapter::{self, Caps};
use crate::gpu::kernel::{Built, Kernel, Pipeline};
use crate::gpu::spans::Span;
use crate::gpu::waits::Waits;

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
    /// Hand kernels with cooperative matrices to Vulkan as naga writes them, without [`crate::gpu::spirv::repair`]: to compare.
    pub unrepaired: bool,
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

/// Key of a bind group: pipeline, then (buffer, offset, size) of each binding.
pub(in crate::gpu) type BindKey = (u64, Vec<(u64, u64, u64)>);

/// An open device, or with [`Gpu::dry`] the mere bookkeeping of one.
#[derive(Debug)]
pub struct Gpu {
    /// What the adapter can do.
    pub caps: Caps,
    pub(in crate::gpu) raw: Option<Raw>,
    checked: bool,
    /// Kernels with cooperative matrices go through [`crate::gpu::spirv::repair`].
    repairs: bool,
    pipelines: Arc<Mutex<HashMap<String, Arc<Pipeline>>>>,
    pub(in crate::gpu) bind_groups: Mutex<HashMap<BindKey, wgpu::BindGroup>>,
    next_id: AtomicU64,
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

/// A poisoned lock holds nothing half-done here: each is held for one insertion.
pub(in crate::gpu) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Opens an adapter with all the limits it has and the features among those we use that it lists.
    ///
    /// # Errors
    /// [`Error::Device`] if there is none, the one asked for is unknown, or the driver refuses.
    pub fn open(options: &Options) -> Result<Self> {
        let (instance, adapters) = adapter::adapters(options.checked);
        let index = adapter::pick(&adapters, options.device.as_deref())?;
        let adapter = &adapters[index];
        let limits = if options.webgpu_limits {
            wgpu::Limits { max_immediate_size: 64, ..wgpu::Limits::default() }
        } else {
            adapter.limits()
        };
        // Only what the adapter lists: wgpu-hal panics on others.
        let mut wanted = wgpu::Features::IMMEDIATES
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS
            | wgpu::Features::SHADER_F16
            | wgpu::Features::SUBGROUP;
        let vulkan = adapter.get_info().backend == wgpu::Backend::Vulkan;
        // software Vulkan lists the feature at 4 lanes and refuses it; at 16 it crashes on it
        let software = adapter.get_info().device_type == wgpu::DeviceType::Cpu;
        let matrices = options.matrices && !(software && adapter::software_lanes(&adapter.get_info()) != 8);
        wanted.set(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, matrices);
        wanted.set(wgpu::Features::PASSTHROUGH_SHADERS, matrices && vulkan && !options.unrepaired);
        // no browser has 64-bit integers
        wanted.set(wgpu::Features::SHADER_INT64, !options.webgpu_limits);
        let features = adapter.features() & wanted;
        let experimental = if features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            // SAFETY: this only says that we know of wgpu's unfinished checks of cooperative matrices. The kernels that
            // use them keep inside their buffers and load only matrices of the element type that they declare; both
            // are tested (tests/ops, tests/translate).
            unsafe { wgpu::ExperimentalFeatures::enabled() }
        } else {
            wgpu::ExperimentalFeatures::disabled()
        };
        let name = adapter.get_info().name;
        if !features.contains(wgpu::Features::IMMEDIATES) {
            return Err(Error::Device(format!(
                "device: {name} has no immediates (push constants), which every kernel needs"
            )));
        }
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("wgpt"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features: experimental,
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        });
        let (device, queue) =
            pollster::block_on(request).map_err(|e| Error::Device(format!("device: {name} cannot be opened: {e}")))?;
        let fault = Arc::new(Mutex::new(None));
        let sink = Arc::clone(&fault);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&sink).get_or_insert_with(|| error.to_string());
        }));
        let lost = Arc::new(AtomicBool::new(false));
        let (flag, sink) = (Arc::clone(&lost), Arc::clone(&fault));
        device.set_device_lost_callback(move |reason, message| {
            // Dropping the device at the end is no loss.
            if reason != wgpu::DeviceLostReason::Destroyed || !message.is_empty() {
                lock(&sink).get_or_insert_with(|| format!("device lost: {message}"));
            }
            flag.store(true, Ordering::SeqCst);
        });
        let submitter = Submitter::new(queue.clone(), Arc::clone(&fault))
            .map_err(|e| Error::Device(format!("device: no thread can be started: {e}")))?;
        let caps = adapter::caps(adapter, &limits, features);
        Ok(Self {
            raw: Some(Raw { submitter, device, queue, _instance: instance }),
            checked: options.checked,
            repairs: features.contains(wgpu::Features::PASSTHROUGH_SHADERS),
            fault,
            lost,
            ..Self::dry(caps)
        })
    }

    /// A device that only keeps books: buffers have sizes and no memory, programs can be counted and not run.
    #[must_use]
    pub fn dry(caps: Caps) -> Self {
        Self {
            caps,
            raw: None,
            checked: false,
            repairs: false,
            pipelines: Arc::default(),
            bind_groups: Mutex::default(),
            next_id: AtomicU64::new(1),
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

    /// Another device that only keeps books, on the same adapter. The books of this one are not its own; kernels that one
    /// of two without a device has read the other need not read again.
    #[must_use]
    pub fn twin(&self) -> Self {
        let pipelines = if self.raw.is_none() { Arc::clone(&self.pipelines) } else { Arc::default() };
        Self { pipelines, ..Self::dry(self.caps.clone()) }
    }

    pub(in crate::gpu) fn raw(&self) -> Result<&Raw> {
        self.raw.as_ref().ok_or_else(|| Error::Gpu("gpu: a dry device was asked to compute".into()))
    }

    fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// How kernels are built, where it is not as usual: other code rounds differently.
    #[must_use]
    pub fn built(&self) -> &'static str {
        match (self.checked, self.repairs || self.caps.matrix_edges.is_empty()) {
            (true, _) => "checked",
            (false, true) => "",
            (false, false) => "matrices as naga writes them",
        }
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

    /// Command buffers handed to the device so far.
    #[must_use]
    pub fn submissions(&self) -> u64 {
        self.submissions.load(Ordering::Relaxed)
    }

    /// Device memory that wgpu's allocator holds, where the backend tells: what our buffers take, and what it has
    /// reserved for them and others.
    #[must_use]
    pub fn driver_bytes(&self) -> Option<(u64, u64)> {
        let report = self.raw.as_ref()?.device.generate_allocator_report()?;
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

    /// The built pipeline of a kernel, from the cache if it was built before.
    pub(in crate::gpu) fn pipeline(&self, kernel: &Kernel) -> Result<Arc<Pipeline>> {
        let key = kernel.key();
        if let Some(pipeline) = lock(&self.pipelines).get(&key) {
            return Ok(Arc::clone(pipeline));
        }
        let reflection = kernel.reflect()?;
        reflection.check(&kernel.name, &self.caps)?;
        let raw = match &self.raw {
            None => None,
            Some(raw) => Some(self.build(raw, kernel, &reflection)?),
        };
        let pipeline = Arc::new(Pipeline { id: self.id(), reflection, raw });
        lock(&self.pipelines).insert(key, Arc::clone(&pipeline));
        Ok(pipeline)
    }

    fn build(&self, raw: &Raw, kernel: &Kernel, reflection: &crate::gpu::kernel::Reflection) -> Result<Built> {
        let entries: Vec<wgpu::BindGroupLayoutEntry> = reflection
            .bindings
            .iter()
            .map(|&(binding, writes)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: !writes },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let checks =
            if self.checked { wgpu::ShaderRuntimeChecks::checked() } else { wgpu::ShaderRuntimeChecks::unchecked() };
        let scope = raw.device.push_error_scope(wgpu::ErrorFilter::Validation);
        // naga's writers and some drivers panic on what they cannot translate
        let built = catch_unwind(AssertUnwindSafe(|| {
            let repaired = self.repairs && kernel.uses_matrices();
            let module = if repaired {
                let words = crate::gpu::spirv::repair(&crate::gpu::spirv::written(kernel, self.checked)?);
                let [x, y, z] = reflection.workgroup_size;
                let descriptor = wgpu::ShaderModuleDescriptorPassthrough {
                    label: Some(&kernel.name),
                    entry_points: vec![wgpu::PassthroughShaderEntryPoint {
                        name: kernel.entry.into(),
                        workgroup_size: (x, y, z),
                    }]
                    .into(),
                    spirv: Some(words.into()),
                    ..Default::default()
                };
                // SAFETY: the words are naga's own for this kernel; `repair` only adds what the memory model wants. What
                // is said below of indices and loops holds here too.
                unsafe { raw.device.create_shader_module_passthrough(descriptor) }
            } else {
                let descriptor = wgpu::ShaderModuleDescriptor {
                    label: Some(&kernel.name),
                    source: wgpu::ShaderSource::Naga(Cow::Owned(kernel.parsed()?)),
                };
                // SAFETY: unchecked kernels must not read or write out of bounds nor loop forever. Every kernel guards
                // its indices by the sizes it is given, launchers check those against the tensors, and the tests run
                // all kernels with guard words round their outputs, in both modes.
                unsafe { raw.device.create_shader_module_trusted(descriptor, checks) }
            };
            let bind_layout = raw.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(&kernel.name),
                entries: &entries,
            });
            let layout = raw.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(&kernel.name),
                bind_group_layouts: &[Some(&bind_layout)],
                immediate_size: reflection.immediate_bytes,
            });
            let pipeline = raw.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&kernel.name),
                layout: Some(&layout),
                module: &module,
                entry_point: Some(kernel.entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // the repaired module has them in its text
                    constants: if repaired { &[] } else { &kernel.constants },
                    zero_initialize_workgroup_memory: self.checked,
                },
                cache: None,
            });
            Ok((pipeline, bind_layout))
        }));
        let error = pollster::block_on(scope.pop());
        let fault = |what: String| Error::Gpu(format!("kernel {}: {} refuses it: {what}", kernel.name, self.caps.name));
        match (built, error) {
            (Ok(Err(error)), _) => Err(error),
            (Ok(Ok(pipeline)), None) => {
                self.check()?;
                Ok(pipeline)
            }
            (Ok(Ok(_)), Some(error)) => Err(fault(error.to_string())),
            (Err(panic), _) => Err(fault(panic_text(&*panic))),
        }
    }
}

/// The words of a caught panic.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "unknown panic".into())
}
