//! Which adapters there are, which one is taken, and what it can do.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Fault, Result};

/// Who made a GPU: what compilers make of a kernel differs more between vendors than between their GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Vendor {
    /// NVIDIA.
    Nvidia,
    /// AMD.
    Amd,
    /// Intel.
    Intel,
    /// Apple.
    Apple,
    /// Anyone else, and software.
    Other,
}

impl Vendor {
    /// Returns the vendor by its number on the PCI bus, which not every backend tells, or else by an adapter's name.
    #[must_use]
    pub fn of(id: u32, name: &str) -> Self {
        let named = |word: &str| name.contains(word);
        match id {
            0x10de => Self::Nvidia,
            0x1002 | 0x1022 => Self::Amd,
            0x8086 => Self::Intel,
            0x106b => Self::Apple,
            _ if named("NVIDIA") => Self::Nvidia,
            _ if named("AMD") || named("Radeon") => Self::Amd,
            _ if named("Intel") => Self::Intel,
            _ if named("Apple") => Self::Apple,
            _ => Self::Other,
        }
    }
}

/// Cooperative matrices of f16 with f32 sums whose dimensions a kernel chooses: Vulkan's flexible ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flexible {
    /// M, N and K are multiples of these.
    pub granularity: [u32; 3],
    /// The largest of any dimension.
    pub largest: u32,
    /// A workgroup holds a matrix, not a subgroup.
    pub workgroup: bool,
    /// Invocations that such a workgroup has; 0 for a subgroup's matrices.
    pub invocations: u32,
}

/// What an adapter can do, gathered once. Kernels are chosen from this alone, so that choosing is testable without
/// a GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Caps {
    /// The adapter's name.
    pub name: String,
    /// Its vendor.
    pub vendor: Vendor,
    /// Vulkan, Metal, DX12.
    pub backend: String,
    /// The driver's name and version.
    pub driver: String,
    /// Its place on the PCI bus, as `0000:41:00.0`; empty where the backend does not say.
    pub bus: String,
    /// True for adapters that compute on the CPU, such as Mesa's lavapipe.
    pub software: bool,
    /// True where the GPU shares the system's memory and the display.
    pub integrated: bool,
    /// Invocations that a software adapter computes at once; 0 where it does not matter.
    pub lanes: u32,
    /// Largest storage binding in bytes.
    pub max_binding_bytes: u64,
    /// Floating-point operations that one dispatch should not exceed: on adapters that draw the screen too, where a
    /// system takes a long one for a hung one (Windows after two seconds).
    pub most_flops: u64,
    /// Bytes that one dispatch should not move more of, on the same adapters.
    pub most_bytes: u64,
    /// Largest buffer in bytes.
    pub max_buffer_bytes: u64,
    /// Storage buffers that one kernel may bind.
    pub max_storage_buffers: u32,
    /// Workgroup memory in bytes.
    pub max_workgroup_bytes: u32,
    /// Invocations in a workgroup.
    pub max_invocations: u32,
    /// Workgroups in one dimension of a dispatch.
    pub max_groups: u32,
    /// Alignment of a binding's offset in bytes.
    pub offset_alignment: u64,
    /// SMs or compute units, where the driver tells.
    pub compute_units: Option<u32>,
    /// True if kernels may use f16.
    pub f16: bool,
    /// True if kernels may use 64-bit integers.
    pub int64: bool,
    /// True if kernels may use subgroup operations.
    pub subgroups: bool,
    /// Smallest and largest subgroup.
    pub subgroup_sizes: (u32, u32),
    /// True if a kernel can require a subgroup size: on a device of our own, see [`super::Gpu::device`].
    pub subgroup_control: bool,
    /// True if passes can be timed on the GPU.
    pub timestamps: bool,
    /// True if what lies between passes, clears and copies, can be timed too.
    pub encoder_timestamps: bool,
    /// Square cooperative matrix shapes with f16 operands and f32 results: their edges. Of an open device those that
    /// kernels may use: none unless it was opened with [`super::Options::matrices`].
    pub matrix_edges: Vec<u32>,
    /// True if kernels may have functions of whole cooperative matrices, which our SPIR-V passes write, and if matrices of
    /// all of `matrix_edges` may be results of f16 too.
    pub matrix_functions: bool,
    /// Matrices whose dimensions a kernel chooses: only on a device that was opened with [`super::Options::experimental`].
    pub flexible: Option<Flexible>,
    /// Put matrices of this edge together from the smaller ones that the adapter has: for tests of kernels for other
    /// adapters.
    pub emulated_edge: Option<u32>,
    /// The fastest kernels on this adapter: for an operator and shape, as the operator words it, the kernel to take.
    /// Empty unless somebody loads a record.
    #[serde(skip)]
    pub tuned: Arc<BTreeMap<String, String>>,
}

impl Caps {
    /// The capabilities that WebGPU promises everywhere: for tests and for plans without a device.
    #[must_use]
    pub fn webgpu_defaults() -> Self {
        Self {
            name: "WebGPU defaults".into(),
            vendor: Vendor::Other,
            backend: "none".into(),
            driver: String::new(),
            bus: String::new(),
            software: false,
            integrated: false,
            lanes: 0,
            max_binding_bytes: 128 << 20,
            most_flops: u64::MAX,
            most_bytes: u64::MAX,
            max_buffer_bytes: 256 << 20,
            max_storage_buffers: 8,
            max_workgroup_bytes: 16 << 10,
            max_invocations: 256,
            max_groups: 65_535,
            offset_alignment: 256,
            f16: false,
            int64: false,
            subgroups: false,
            subgroup_sizes: (4, 128),
            subgroup_control: false,
            timestamps: false,
            encoder_timestamps: false,
            matrix_edges: Vec::new(),
            matrix_functions: false,
            compute_units: None,
            flexible: None,
            emulated_edge: None,
            tuned: Arc::default(),
        }
    }

    /// The same where the GPU shares the display: its dispatches are short.
    #[must_use]
    pub fn integrated(self) -> Self {
        Self { integrated: true, most_flops: 1 << 35, most_bytes: 2 << 30, ..self }
    }

    /// Bytes of a tensor that one dispatch uses: what is bound at once, and less where a dispatch of eight tensors would
    /// move too much.
    #[must_use]
    pub fn window_bytes(&self) -> u64 {
        self.max_binding_bytes.min(self.most_bytes / 8)
    }

    /// True if a kernel can require subgroups of so many invocations.
    #[must_use]
    pub fn can_require_subgroups_of(&self, lanes: u32) -> bool {
        let (least, most) = self.subgroup_sizes;
        self.subgroup_control && lanes.is_power_of_two() && (least..=most).contains(&lanes)
    }

    /// True if this is its place on the PCI bus. The domain may be left out, or be as long as `nvidia-smi` prints it.
    #[must_use]
    pub fn is_at(&self, bus: &str) -> bool {
        let place = |text: &str| {
            let text = text.to_lowercase();
            let (domain, rest) = if text.matches(':').count() > 1 { text.split_once(':')? } else { ("0", &*text) };
            Some((u32::from_str_radix(domain, 16).ok()?, rest.to_owned()))
        };
        !self.bus.is_empty() && place(&self.bus).is_some_and(|own| place(bus) == Some(own))
    }

    /// Where it is on the bus, to follow a name; empty where the backend does not say.
    #[must_use]
    pub fn at_bus(&self) -> String {
        if self.bus.is_empty() { String::new() } else { format!(" at {}", self.bus) }
    }

    /// One line for the header of a run.
    #[must_use]
    pub fn summary(&self) -> String {
        let software = if self.software { ", software" } else { "" };
        format!("{} ({}, {}{software})", self.name, self.backend, self.driver)
    }
}

/// An adapter in the list of all.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// Its position, which [`find`] and [`super::Gpu::open`] take as its name too.
    pub index: usize,
    /// What it can do.
    pub caps: Caps,
    /// See [`super::Gpu::device`].
    pub kind: String,
}

impl DeviceInfo {
    /// Names it by number, name and place on the bus.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}: {}{}", self.index, self.caps.name, self.caps.at_bus())
    }
}

fn instance_descriptor(checked: bool) -> wgpu::InstanceDescriptor {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    // Set, not defaulted: debug builds would otherwise compile shaders without optimisation on DX12.
    descriptor.flags = if checked { wgpu::InstanceFlags::VALIDATION } else { wgpu::InstanceFlags::empty() };
    descriptor.with_env()
}

/// GL is left out unless the environment asks for it: it lists software adapters a second time.
fn backends() -> wgpu::Backends {
    wgpu::Backends::from_env().unwrap_or(wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12)
}

/// All adapters that the environment leaves, the one that is taken by default first: real GPUs before software ones, those of a
/// kind in the order of the PCI bus, which is that of `nvidia-smi`.
pub(super) fn adapters(checked: bool) -> (wgpu::Instance, Vec<wgpu::Adapter>) {
    let descriptor = instance_descriptor(checked);
    let instance = wgpu::Instance::new(descriptor);
    let mut adapters = pollster::block_on(instance.enumerate_adapters(backends()));
    adapters.sort_by_key(|adapter| {
        let info = adapter.get_info();
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        };
        (kind, info.device_pci_bus_id)
    });
    let (left, lines) = left_by_environment(&adapters);
    NOTES.get_or_init(|| lines);
    let mut left = left.into_iter();
    adapters.retain(|_| left.next().unwrap_or(true));
    (instance, adapters)
}

fn left_by_environment(adapters: &[wgpu::Adapter]) -> (Vec<bool>, Vec<String>) {
    let seen = |adapter: &wgpu::Adapter| {
        let info = adapter.get_info();
        let vendor = (info.device_type != wgpu::DeviceType::Cpu).then(|| Vendor::of(info.vendor, &info.name));
        super::devices::Seen { vendor, backend: format!("{:?}", info.backend), bus: info.device_pci_bus_id }
    };
    super::devices::visible(&adapters.iter().map(seen).collect::<Vec<_>>(), |name| std::env::var(name).ok())
}

/// The lines of the first listing: Vulkan's layers would see an instance that is made for these alone.
static NOTES: OnceLock<Vec<String>> = OnceLock::new();

/// Returns a line for each variable of the environment that leaves some GPUs only, once adapters were listed.
#[must_use]
pub fn notes() -> &'static [String] {
    NOTES.get().map_or(&[], Vec::as_slice)
}

/// Lists all adapters without opening one.
#[must_use]
pub fn found() -> Vec<DeviceInfo> {
    listed(|_| String::new())
}

/// Lists all adapters, each opened to see how.
#[must_use]
pub fn list() -> Vec<DeviceInfo> {
    listed(super::context::kind)
}

fn listed(kind: impl Fn(&wgpu::Adapter) -> String) -> Vec<DeviceInfo> {
    let (_instance, adapters) = adapters(false);
    let caps = |adapter: &wgpu::Adapter| caps(adapter, &adapter.limits(), adapter.features());
    let of = |(index, adapter)| DeviceInfo { index, caps: caps(adapter), kind: kind(adapter) };
    adapters.iter().enumerate().map(of).collect()
}

/// What the adapter that [`super::Gpu::open`] would take can do, without opening it.
///
/// # Errors
/// [`Error::Device`] if there is none or the one asked for is unknown.
pub fn find(device: Option<&str>) -> Result<Caps> {
    let (_instance, adapters) = adapters(false);
    let adapter = &adapters[pick(&adapters, device)?];
    Ok(caps(adapter, &adapter.limits(), adapter.features()))
}

/// The place of an error about the adapter that was asked for.
pub const CHOICE: &str = "adapter";

/// Picks an adapter: by index or by part of the name, else by `WGPU_ADAPTER_NAME`, else the first.
pub(super) fn pick(adapters: &[wgpu::Adapter], device: Option<&str>) -> Result<usize> {
    if adapters.is_empty() {
        let fault = Fault::at("device", "no adapter found").expected("a GPU with a Vulkan, Metal or DX12 driver");
        return Err(Error::device(
            fault.advice("install one, or on Linux start through tools/run, which fetches software Vulkan"),
        ));
    }
    let wanted = match device {
        Some(device) => (CHOICE, device.to_owned()),
        None => match std::env::var("WGPU_ADAPTER_NAME") {
            Ok(name) if !name.is_empty() => ("WGPU_ADAPTER_NAME", name),
            _ => return Ok(0),
        },
    };
    let names: Vec<String> = adapters.iter().map(|a| a.get_info().name).collect();
    let unknown = || {
        let known: Vec<String> = names.iter().enumerate().map(|(i, name)| format!("{i}: {name}")).collect();
        let fault = Fault::at(wanted.0, format!("no adapter is `{}`", wanted.1));
        Error::device(fault.expected(format!("one of {}", known.join(", "))))
    };
    if wanted.0 == CHOICE
        && let Ok(index) = wanted.1.parse::<usize>()
    {
        return if index < names.len() { Ok(index) } else { Err(unknown()) };
    }
    let needle = wanted.1.to_lowercase();
    names.iter().position(|name| name.to_lowercase().contains(&needle)).ok_or_else(unknown)
}

/// Gathers what an adapter can do under the given limits and features.
pub(super) fn caps(adapter: &wgpu::Adapter, limits: &wgpu::Limits, features: wgpu::Features) -> Caps {
    let info = adapter.get_info();
    let software = info.device_type == wgpu::DeviceType::Cpu;
    let lanes = software_lanes(&info);
    let listed = if features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        adapter.cooperative_matrix_properties()
    } else {
        Vec::new()
    };
    let edges_of = |results: wgpu::CooperativeScalarType| {
        let mut edges: Vec<u32> = listed
            .iter()
            .filter(|p| p.m_size == p.n_size && p.n_size == p.k_size)
            .filter(|p| p.ab_type == wgpu::CooperativeScalarType::F16 && p.cr_type == results)
            .map(|p| p.m_size)
            .collect();
        edges.sort_unstable();
        edges.dedup();
        edges
    };
    let [matrix_edges, of_f16] = [wgpu::CooperativeScalarType::F32, wgpu::CooperativeScalarType::F16].map(edges_of);
    let own_spirv = features.contains(wgpu::Features::PASSTHROUGH_SHADERS) && info.backend == wgpu::Backend::Vulkan;
    let matrix_functions =
        own_spirv && !matrix_edges.is_empty() && matrix_edges.iter().all(|edge| of_f16.contains(edge));
    let integrated = info.device_type == wgpu::DeviceType::IntegratedGpu;
    let caps = Caps {
        vendor: if software { Vendor::Other } else { Vendor::of(info.vendor, &info.name) },
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        bus: info.device_pci_bus_id,
        name: info.name,
        backend: format!("{:?}", info.backend),
        software,
        integrated,
        lanes: if software { lanes } else { 0 },
        // wgpu-core caps a binding at 2^31 - 1 bytes; a multiple of 256 keeps windows aligned
        max_binding_bytes: limits.max_storage_buffer_binding_size.min((1 << 31) - 256),
        most_flops: u64::MAX,
        most_bytes: u64::MAX,
        max_buffer_bytes: limits.max_buffer_size,
        max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
        max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
        max_invocations: limits.max_compute_invocations_per_workgroup,
        max_groups: limits.max_compute_workgroups_per_dimension,
        offset_alignment: u64::from(limits.min_storage_buffer_offset_alignment),
        compute_units: super::vulkan::compute_units(adapter),
        f16: features.contains(wgpu::Features::SHADER_F16),
        int64: features.contains(wgpu::Features::SHADER_INT64),
        subgroups: features.contains(wgpu::Features::SUBGROUP),
        subgroup_sizes: (info.subgroup_min_size, info.subgroup_max_size),
        subgroup_control: false,
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
        encoder_timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS),
        matrix_edges,
        matrix_functions,
        flexible: None,
        emulated_edge: None,
        tuned: Arc::default(),
    };
    if integrated { caps.integrated() } else { caps }
}

/// Lanes of a software adapter: a subgroup of Mesa's software Vulkan is one vector.
pub(super) fn software_lanes(info: &wgpu::AdapterInfo) -> u32 {
    info.subgroup_max_size.clamp(4, 16)
}

/// Lets Mesa's software Vulkan compute with vectors of 512 bits where the CPU has them, which makes f32 kernels some 1.3
/// times as fast; by itself it uses 256. To be called first thing, before any [`super::Gpu`] is opened: whoever times or
/// compares anything must compute alike. A value of `LP_NATIVE_VECTOR_WIDTH` that the user has set stays.
pub fn use_wide_vectors() {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        // one entry a thread; this process alone may see its environment change
        let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1);
        if alone
            && std::env::var_os("LP_NATIVE_VECTOR_WIDTH").is_none()
            && std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512bw")
        {
            // SAFETY: writing the environment is a race only with threads that read it. There is no other thread: they
            // were counted above, and this one starts none in between.
            unsafe { std::env::set_var("LP_NATIVE_VECTOR_WIDTH", "512") };
        }
    }
}
