//! Lists the adapters, picks one, and gathers its capabilities.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Fault, Result};

/// Vendor of a GPU. Compiled kernels differ more between vendors than between the GPUs of one vendor.
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
    /// Any other vendor, and software adapters.
    Other,
}

impl Vendor {
    /// Returns the vendor by its PCI vendor id. Not every backend reports the id, so the adapter's name is the
    /// fallback.
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

/// Cooperative matrices with f16 operands, f32 sums and dimensions that a kernel chooses (`VK_NV_cooperative_matrix2`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlexibleMatrices {
    /// Numbers of which M, N and K must be multiples.
    pub granularity: [u32; 3],
    /// Largest value of any dimension.
    pub largest: u32,
    /// Whether a workgroup holds a matrix; otherwise a subgroup does.
    pub workgroup: bool,
    /// Invocations of a workgroup that holds matrices; 0 for a subgroup's matrices.
    pub invocations: u32,
}

/// Capabilities of an adapter, gathered once. Kernels are chosen from these alone, so that the choice can be tested
/// without a GPU.
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
    /// Its PCI bus id, such as `0000:41:00.0`; empty if the backend does not report it.
    pub bus: String,
    /// Whether the adapter computes on the CPU, as Mesa's lavapipe does.
    pub software: bool,
    /// Whether the GPU shares the system's memory and drives the display.
    pub integrated: bool,
    /// Invocations that a software adapter computes at once; 0 for GPUs, where it does not matter.
    pub lanes: u32,
    /// Largest storage binding in bytes.
    pub max_binding_bytes: u64,
    /// Largest number of floating-point operations in one dispatch. It is limited on adapters that also draw the
    /// screen, where the system takes a long dispatch for a hung one (Windows after two seconds).
    pub most_flops: u64,
    /// Largest number of bytes that one dispatch should move. It is limited on the same adapters.
    pub most_bytes: u64,
    /// Largest buffer in bytes.
    pub max_buffer_bytes: u64,
    /// Largest number of storage buffers that one kernel may bind.
    pub max_storage_buffers: u32,
    /// Workgroup memory in bytes.
    pub max_workgroup_bytes: u32,
    /// Largest number of invocations in a workgroup.
    pub max_invocations: u32,
    /// Largest number of workgroups in one dimension of a dispatch.
    pub max_groups: u32,
    /// Alignment of a binding's offset in bytes.
    pub offset_alignment: u64,
    /// SMs or compute units, if the driver reports them.
    pub compute_units: Option<u32>,
    /// Whether kernels may use f16.
    pub f16: bool,
    /// Whether kernels may use 64-bit integers.
    pub int64: bool,
    /// Whether kernels may use subgroup operations.
    pub subgroups: bool,
    /// Smallest and largest subgroup size.
    pub subgroup_sizes: (u32, u32),
    /// Whether a kernel can require a subgroup size. wgpu's own devices cannot: see [`super::Gpu::device_kind`].
    pub subgroup_control: bool,
    /// Whether passes can be timed on the GPU.
    pub timestamps: bool,
    /// Whether clears and copies, which are between passes, can be timed too.
    pub encoder_timestamps: bool,
    /// Edges of the square cooperative matrix shapes with f16 operands and f32 results. For an open device these are
    /// the edges that kernels may use: none unless it was opened with [`super::Options::matrices`].
    pub matrix_edges: Vec<u32>,
    /// Whether kernels may have functions of whole cooperative matrices, which our SPIR-V passes write, and matrices of
    /// all of `matrix_edges` may also have f16 results.
    pub matrix_functions: bool,
    /// Matrices whose dimensions a kernel chooses. Only a device opened with [`super::Options::experimental`] has them.
    pub flexible: Option<FlexibleMatrices>,
    /// Edge of the matrices that kernels compose from the adapter's smaller ones. Tests set it to run kernels for other
    /// adapters.
    pub emulated_edge: Option<u32>,
    /// Tuning record of this adapter: maps an operator and shape, in the operator's own wording, to the fastest kernel.
    /// Empty unless a record is loaded.
    #[serde(skip)]
    pub tuned: Arc<BTreeMap<String, String>>,
}

impl Caps {
    /// Returns the capabilities that WebGPU guarantees everywhere, for tests and for plans without a device.
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

    /// Returns these capabilities for a GPU that also drives the display, where dispatches must be short.
    #[must_use]
    pub fn integrated(self) -> Self {
        Self { integrated: true, most_flops: 1 << 35, most_bytes: 2 << 30, ..self }
    }

    /// Returns the largest number of bytes of one tensor that a dispatch uses: the largest binding, or less where a
    /// dispatch of eight such tensors would move more than `most_bytes`.
    #[must_use]
    pub fn window_bytes(&self) -> u64 {
        self.max_binding_bytes.min(self.most_bytes / 8)
    }

    /// Returns whether a kernel can require subgroups of `lanes` invocations.
    #[must_use]
    pub fn can_require_subgroups_of(&self, lanes: u32) -> bool {
        let (least, most) = self.subgroup_sizes;
        self.subgroup_control && lanes.is_power_of_two() && (least..=most).contains(&lanes)
    }

    /// Returns whether the adapter has this PCI bus id. The domain may be missing, or have 8 digits as `nvidia-smi`
    /// prints it.
    #[must_use]
    pub fn is_at(&self, bus: &str) -> bool {
        let place = |text: &str| {
            let text = text.to_lowercase();
            let (domain, rest) = if text.matches(':').count() > 1 { text.split_once(':')? } else { ("0", &*text) };
            Some((u32::from_str_radix(domain, 16).ok()?, rest.to_owned()))
        };
        !self.bus.is_empty() && place(&self.bus).is_some_and(|own| place(bus) == Some(own))
    }

    /// Returns ` at ` and the PCI bus id, to follow a name; empty if the id is unknown.
    #[must_use]
    pub fn at_bus(&self) -> String {
        if self.bus.is_empty() { String::new() } else { format!(" at {}", self.bus) }
    }

    /// Describes the adapter in one line, for the header of a run.
    #[must_use]
    pub fn summary(&self) -> String {
        let software = if self.software { ", software" } else { "" };
        format!("{} ({}, {}{software})", self.name, self.backend, self.driver)
    }
}

/// An entry in the list of adapters.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// Its position in the list. [`find`] and [`super::Gpu::open`] accept it as the adapter's name.
    pub index: usize,
    /// Its capabilities.
    pub caps: Caps,
    /// See [`super::Gpu::device_kind`].
    pub kind: String,
}

impl DeviceInfo {
    /// Names the adapter by number, name and PCI bus id.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}: {}{}", self.index, self.caps.name, self.caps.at_bus())
    }
}

fn instance_descriptor(checked: bool) -> wgpu::InstanceDescriptor {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    // set explicitly: by default, debug builds compile shaders without optimisation on DX12
    descriptor.flags = if checked { wgpu::InstanceFlags::VALIDATION } else { wgpu::InstanceFlags::empty() };
    descriptor.with_env()
}

/// Returns the backends to use. GL is left out unless the environment asks for it, because it lists software adapters a
/// second time.
fn backends() -> wgpu::Backends {
    wgpu::Backends::from_env().unwrap_or(wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12)
}

/// Returns the adapters that the environment does not hide. The default comes first: GPUs before software adapters, and
/// adapters of a kind in the order of the PCI bus, which is also `nvidia-smi`'s.
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

/// The lines of the first listing. They are kept because listing again would make another instance, which Vulkan's
/// layers would see.
static NOTES: OnceLock<Vec<String>> = OnceLock::new();

/// Returns a line for each environment variable that hides some GPUs. Empty until adapters have been listed.
#[must_use]
pub fn environment_notes() -> &'static [String] {
    NOTES.get().map_or(&[], Vec::as_slice)
}

/// Lists all adapters without opening them; [`DeviceInfo::kind`] is empty.
#[must_use]
pub fn list() -> Vec<DeviceInfo> {
    listed(|_| String::new())
}

/// Lists all adapters, and opens each to learn its [`DeviceInfo::kind`].
#[must_use]
pub fn list_opened() -> Vec<DeviceInfo> {
    listed(super::context::kind)
}

fn listed(kind: impl Fn(&wgpu::Adapter) -> String) -> Vec<DeviceInfo> {
    let (_instance, adapters) = adapters(false);
    let caps = |adapter: &wgpu::Adapter| caps(adapter, &adapter.limits(), adapter.features());
    let of = |(index, adapter)| DeviceInfo { index, caps: caps(adapter), kind: kind(adapter) };
    adapters.iter().enumerate().map(of).collect()
}

/// Returns the capabilities of the adapter that [`super::Gpu::open`] would open, without opening it.
///
/// # Errors
/// [`Error::Device`] if there is no adapter or the requested one is unknown.
pub fn find(device: Option<&str>) -> Result<Caps> {
    let (_instance, adapters) = adapters(false);
    let adapter = &adapters[pick(&adapters, device)?];
    Ok(caps(adapter, &adapter.limits(), adapter.features()))
}

/// Place of an error about the requested adapter.
pub const ADAPTER_CHOICE: &str = "adapter";

/// Returns the error of a machine without adapters.
pub(super) fn none() -> Error {
    let fault = Fault::at("device", "no adapter found").expected("a GPU with a Vulkan, Metal or DX12 driver");
    Error::device(fault.advice("install one, or on Linux start through tools/run, which fetches software Vulkan"))
}

/// Picks an adapter by index or by part of its name, else by `WGPU_ADAPTER_NAME`, else the first.
pub(super) fn pick(adapters: &[wgpu::Adapter], device: Option<&str>) -> Result<usize> {
    if adapters.is_empty() {
        return Err(none());
    }
    let wanted = match device {
        Some(device) => (ADAPTER_CHOICE, device.to_owned()),
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
    if wanted.0 == ADAPTER_CHOICE
        && let Ok(index) = wanted.1.parse::<usize>()
    {
        return if index < names.len() { Ok(index) } else { Err(unknown()) };
    }
    let needle = wanted.1.to_lowercase();
    names.iter().position(|name| name.to_lowercase().contains(&needle)).ok_or_else(unknown)
}

/// Gathers the capabilities of an adapter under the given limits and features.
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

/// Returns the lanes of a software adapter. A subgroup of Mesa's software Vulkan is one vector.
pub(super) fn software_lanes(info: &wgpu::AdapterInfo) -> u32 {
    info.subgroup_max_size.clamp(4, 16)
}

/// Makes Mesa's software Vulkan compute with vectors of 512 bits where the CPU has them, which makes f32 kernels some
/// 1.3 times as fast; its default is 256. Must be called first, before any [`super::Gpu`] is opened, so that all
/// timings and comparisons use the same width. A value of `LP_NATIVE_VECTOR_WIDTH` that the user has set stays.
pub fn use_wide_vectors() {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        // one entry per thread: the environment may change only while the process has a single thread
        let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1);
        if alone
            && std::env::var_os("LP_NATIVE_VECTOR_WIDTH").is_none()
            && std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512bw")
        {
            // SAFETY: writing the environment races only with threads that read it. There is no other thread: they were
            // counted above, and this one has started none since.
            unsafe { std::env::set_var("LP_NATIVE_VECTOR_WIDTH", "512") };
        }
    }
}
