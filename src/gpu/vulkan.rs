//! Opens a Vulkan device through wgpu-hal and gives it to wgpu. This file has all of the project's calls into Vulkan.
//!
//! wgpu-hal 30 switches `robustBufferAccess` and `robustBufferAccess2` on wherever a driver lists them. Drivers then
//! check every access of every kernel: Mesa's compiler for NVIDIA splits a vector into its elements and branches around
//! each, which doubles the instructions of a step. This device has both off, and also `nullDescriptor`, which would
//! bring the checks back. It departs from what `device_from_raw` documents ("created using
//! `physical_device_features()`"): wgpu still assumes that the driver checks, and puts no checks into any module, so
//! **every index in a kernel is our own responsibility**. A checked run ([`super::Options::checked`]) uses a device
//! opened by wgpu instead.
//!
//! wgpu does not expose its pipelines. Required subgroup sizes and the driver's statistics therefore go through the
//! device's function table, in which [`create_pipelines`] replaces `vkCreateComputePipelines`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::sync::{Arc, LazyLock, Mutex};

use ash::{khr, vk};
use wgpu::hal;

use super::adapter::FlexibleMatrices;
use super::context::{KernelStatistics as Statistics, lock};

/// Options for the pipelines of a [`build_with`] call, beyond those that wgpu knows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PipelineOptions {
    /// Required subgroup size, with all invocations active.
    pub(super) subgroup_size: Option<u32>,
    /// Whether to keep the driver's statistics.
    pub(super) statistics: bool,
}

/// Options of the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeviceOptions {
    /// Whether to keep the bounds checks that wgpu requests, for comparisons.
    pub(super) driver_checks: bool,
    /// Whether pipelines have statistics, if the driver keeps them.
    pub(super) statistics: bool,
    /// Whether kernels may have matrices of flexible dimensions, if the driver has them.
    pub(super) experimental: bool,
}

/// Abilities of the device beyond wgpu's.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Abilities {
    /// Whether pipelines may require a subgroup size.
    pub(super) subgroup_control: bool,
    /// Whether pipelines have statistics: only if they were requested.
    pub(super) statistics: bool,
    /// The matrices of flexible dimensions that kernels may have: only if they were requested.
    pub(super) flexible: Option<FlexibleMatrices>,
}

/// The driver's function that creates pipelines, and the functions that read statistics.
struct Table {
    create: vk::PFN_vkCreateComputePipelines,
    statistics: Option<khr::pipeline_executable_properties::Device>,
}

/// The tables of all devices. [`create_pipelines`] is a C function that gets only the device's handle, so its data must
/// be in a static. Entries of closed devices stay until another device gets the same handle: wgpu-hal does not report
/// when it closes one.
static TABLES: LazyLock<Mutex<HashMap<vk::Device, Arc<Table>>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// Options of the pipeline that this thread is building, and the statistics on it. wgpu builds a pipeline on the
    /// thread that requests it.
    static BUILDING: RefCell<Option<(PipelineOptions, Statistics)>> = const { RefCell::new(None) };
}

/// Builds pipelines with the given options. Returns the result of `build` and the statistics of the last pipeline.
pub(super) fn build_with<T>(options: PipelineOptions, build: impl FnOnce() -> T) -> (T, Statistics) {
    /// Resets the options, also when a driver panics; otherwise they would apply to the next pipeline of this thread.
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            BUILDING.with_borrow_mut(Option::take);
        }
    }
    BUILDING.with_borrow_mut(|slot| *slot = Some((options, Vec::new())));
    let _reset = Reset;
    let built = build();
    let report = BUILDING.with_borrow_mut(Option::take).unwrap_or_default().1;
    (built, report)
}

/// Returns the Vulkan version `(major, minor)` of an adapter's devices; `None` if it is not a Vulkan adapter.
pub(super) fn version(adapter: &wgpu::Adapter) -> Option<(u32, u32)> {
    // SAFETY: the guard is only read, and dropped at the end of this function
    let hal = unsafe { adapter.as_hal::<hal::api::Vulkan>() }?;
    let device = hal.physical_device_capabilities().properties().api_version;
    let version = device.min(hal.shared_instance().instance_api_version());
    Some((vk::api_version_major(version), vk::api_version_minor(version)))
}

/// The part that we use of `VK_NV_cooperative_matrix2`, which ash 0.38 does not know.
mod cooperative_matrix2 {
    use std::ffi::{CStr, c_void};

    use ash::vk;
    use wgpu::hal;

    use crate::gpu::adapter::FlexibleMatrices;

    pub(super) const NAME: &CStr = c"VK_NV_cooperative_matrix2";

    const FEATURES: vk::StructureType = vk::StructureType::from_raw(1_000_593_000);
    const DIMENSIONS: vk::StructureType = vk::StructureType::from_raw(1_000_593_001);
    const PROPERTIES: vk::StructureType = vk::StructureType::from_raw(1_000_593_002);

    /// `VkPhysicalDeviceCooperativeMatrix2FeaturesNV`.
    #[repr(C)]
    pub(super) struct Features {
        s_type: vk::StructureType,
        pub(super) p_next: *mut c_void,
        pub(super) workgroup_scope: vk::Bool32,
        pub(super) flexible_dimensions: vk::Bool32,
        /// Reductions, conversions, per-element operations, tensor addressing, block loads.
        others: [vk::Bool32; 5],
    }

    impl Default for Features {
        fn default() -> Self {
            let [workgroup_scope, flexible_dimensions] = [vk::FALSE; 2];
            let (s_type, p_next) = (FEATURES, std::ptr::null_mut());
            Self { s_type, p_next, workgroup_scope, flexible_dimensions, others: [vk::FALSE; 5] }
        }
    }

    /// `VkCooperativeMatrixFlexibleDimensionsPropertiesNV`.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Dimensions {
        s_type: vk::StructureType,
        p_next: *mut c_void,
        granularity: [u32; 3],
        /// Types of a, b, c and the result.
        types: [vk::ComponentTypeKHR; 4],
        saturates: vk::Bool32,
        scope: vk::ScopeKHR,
        invocations: u32,
    }

    /// `VkPhysicalDeviceCooperativeMatrix2PropertiesNV`.
    #[repr(C)]
    struct Properties {
        s_type: vk::StructureType,
        p_next: *mut c_void,
        most_invocations: u32,
        largest: u32,
        reserved_bytes: u32,
    }

    type List = unsafe extern "system" fn(vk::PhysicalDevice, *mut u32, *mut Dimensions) -> vk::Result;

    /// Returns the adapter's flexible matrices with f16 operands and f32 sums. Prefers those held by a workgroup, of
    /// 256 invocations if several sizes are listed, to those held by a subgroup.
    pub(super) fn flexible(hal: &hal::vulkan::Adapter) -> Option<FlexibleMatrices> {
        let (listed, shared) = (hal.physical_device_capabilities(), hal.shared_instance());
        let (instance, physical) = (shared.raw_instance(), hal.raw_physical_device());
        if !listed.supports_extension(NAME) {
            return None;
        }
        let mut can = Features::default();
        let mut limits = Properties {
            s_type: PROPERTIES,
            p_next: std::ptr::null_mut(),
            most_invocations: 0,
            largest: 0,
            reserved_bytes: 0,
        };
        let mut features = vk::PhysicalDeviceFeatures2 { p_next: (&raw mut can).cast(), ..Default::default() };
        let mut properties = vk::PhysicalDeviceProperties2 { p_next: (&raw mut limits).cast(), ..Default::default() };
        // SAFETY: the handle is the adapter's, which lists the extension and so has Vulkan 1.1 or newer; both structs
        // have the layout that the extension gives them, and live until the calls return.
        unsafe {
            instance.get_physical_device_features2(physical, &mut features);
            instance.get_physical_device_properties2(physical, &mut properties);
        }
        if can.flexible_dimensions != vk::TRUE {
            return None;
        }
        let name = c"vkGetPhysicalDeviceCooperativeMatrixFlexibleDimensionsPropertiesNV";
        // SAFETY: the instance is alive, and the function of that name has this signature.
        let list: List = unsafe {
            std::mem::transmute::<unsafe extern "system" fn(), List>(
                shared.entry().get_instance_proc_addr(instance.handle(), name.as_ptr())?,
            )
        };
        let mut count = 0;
        // SAFETY: without an array the driver writes the number of entries.
        unsafe { list(physical, &raw mut count, std::ptr::null_mut()) }.result().ok()?;
        let empty = Dimensions {
            s_type: DIMENSIONS,
            p_next: std::ptr::null_mut(),
            granularity: [0; 3],
            types: [vk::ComponentTypeKHR::FLOAT16; 4],
            saturates: vk::FALSE,
            scope: vk::ScopeKHR::SUBGROUP,
            invocations: 0,
        };
        let mut entries = vec![empty; count as usize];
        // SAFETY: the array has `count` entries, each of the type that its `s_type` names.
        unsafe { list(physical, &raw mut count, entries.as_mut_ptr()) }.result().ok()?;
        let (half, full) = (vk::ComponentTypeKHR::FLOAT16, vk::ComponentTypeKHR::FLOAT32);
        let usable = |entry: &&Dimensions| {
            let of_workgroup = entry.scope == vk::ScopeKHR::WORKGROUP && can.workgroup_scope == vk::TRUE;
            entry.types == [half, half, full, full]
                && (of_workgroup || entry.scope == vk::ScopeKHR::SUBGROUP)
                && entry.granularity.iter().all(|size| *size > 0)
        };
        let worth =
            |entry: &&Dimensions| (entry.scope == vk::ScopeKHR::WORKGROUP, entry.invocations == 256, entry.invocations);
        let best = entries.iter().take(count as usize).filter(usable).max_by_key(worth)?;
        let workgroup = best.scope == vk::ScopeKHR::WORKGROUP;
        let invocations = if workgroup { best.invocations } else { 0 };
        Some(FlexibleMatrices { granularity: best.granularity, largest: limits.largest, workgroup, invocations })
    }
}

/// Returns the number of SMs of an NVIDIA GPU or of compute units of an AMD GPU, if the driver reports it.
pub(super) fn compute_units(adapter: &wgpu::Adapter) -> Option<u32> {
    // SAFETY: the guard is only read, and dropped at the end of this function
    let hal = unsafe { adapter.as_hal::<hal::api::Vulkan>() }?;
    let (listed, instance) = (hal.physical_device_capabilities(), hal.shared_instance().raw_instance());
    let mut nvidia = vk::PhysicalDeviceShaderSMBuiltinsPropertiesNV::default();
    let mut amd = vk::PhysicalDeviceShaderCoreProperties2AMD::default();
    let mut properties = vk::PhysicalDeviceProperties2::default();
    let [is_nvidia, is_amd] = [ash::nv::shader_sm_builtins::NAME, ash::amd::shader_core_properties2::NAME]
        .map(|x| listed.supports_extension(x));
    if !(is_nvidia || is_amd) || version(adapter) < Some((1, 1)) {
        return None;
    }
    if is_nvidia {
        properties = properties.push_next(&mut nvidia);
    }
    if is_amd {
        properties = properties.push_next(&mut amd);
    }
    // SAFETY: the device belongs to the instance, which has version 1.1, and lists the extensions of the structs in the
    // chain; all of them live until the call returns.
    unsafe { instance.get_physical_device_properties2(hal.raw_physical_device(), &mut properties) };
    Some(nvidia.shader_sm_count.max(amd.active_compute_unit_count)).filter(|units| *units > 0)
}

/// Opens an adapter as the head of this file describes.
///
/// # Errors
/// The reason for the failure. wgpu may still be able to open the device.
pub(super) fn open(
    adapter: &wgpu::Adapter,
    descriptor: &wgpu::DeviceDescriptor,
    options: DeviceOptions,
) -> Result<(wgpu::Device, wgpu::Queue, Abilities), String> {
    // SAFETY: the guard lives until the device is open; nothing destroys what it lends.
    let hal = unsafe { adapter.as_hal::<hal::api::Vulkan>() }.ok_or("not a Vulkan adapter")?;
    let (physical, instance) = (hal.raw_physical_device(), hal.shared_instance().raw_instance());
    let features = descriptor.required_features;

    let mut extensions = hal.required_device_extensions(features);
    let listed = hal.physical_device_capabilities();
    let statistics = options.statistics && listed.supports_extension(khr::pipeline_executable_properties::NAME);
    if statistics {
        extensions.push(khr::pipeline_executable_properties::NAME);
    }
    let flexible = match options.experimental && features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        true => cooperative_matrix2::flexible(&hal),
        false => None,
    };
    let mut matrices = cooperative_matrix2::Features::default();
    if let Some(flexible) = flexible {
        extensions.push(cooperative_matrix2::NAME);
        matrices.flexible_dimensions = vk::TRUE;
        matrices.workgroup_scope = if flexible.workgroup { vk::TRUE } else { vk::FALSE };
    }
    let names: Vec<_> = extensions.iter().map(|name| name.as_ptr()).collect();
    let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(0).queue_priorities(&[1.0])];
    let mut wanted = hal.physical_device_features(&extensions, features);
    let mut executables =
        vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
    let mut info = wanted.add_to_device_create(
        vk::DeviceCreateInfo::default().queue_create_infos(&queues).enabled_extension_names(&names),
    );
    if statistics {
        info = info.push_next(&mut executables);
    }

    // SAFETY: `add_to_device_create` has set `enabled_features` from `wanted`, which is alive. It is copied, because it
    // is borrowed as shared there.
    let mut core = unsafe { info.p_enabled_features.as_ref() }.copied().unwrap_or_default();
    if !options.driver_checks {
        core.robust_buffer_access = vk::FALSE;
    }
    info.p_enabled_features = &raw const core;
    let lanes = version(adapter) >= Some((1, 1)) && subgroup_control(instance, physical);
    let mut subgroup_control = false;
    let mut next = info.p_next.cast::<vk::BaseOutStructure>().cast_mut();
    while !next.is_null() {
        // SAFETY: the chain consists of the structs that `add_to_device_create` and `push_next` linked by exclusive
        // borrows, all alive until `info` is used. Each begins with its type and the next pointer; both are copied.
        let (kind, following) = unsafe { ((*next).s_type, (*next).p_next) };
        match kind {
            vk::StructureType::PHYSICAL_DEVICE_ROBUSTNESS_2_FEATURES_EXT if !options.driver_checks => {
                // SAFETY: as above; the struct is of the type that it names, and nothing else refers to it meanwhile.
                let robust = unsafe { &mut *next.cast::<vk::PhysicalDeviceRobustness2FeaturesEXT>() };
                robust.robust_buffer_access2 = vk::FALSE;
                robust.null_descriptor = vk::FALSE;
            }
            vk::StructureType::PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES if lanes => {
                // SAFETY: as for the one before.
                let control = unsafe { &mut *next.cast::<vk::PhysicalDeviceSubgroupSizeControlFeatures>() };
                // wgpu leaves the second feature off, but our kernels rely on full subgroups
                control.subgroup_size_control = vk::TRUE;
                control.compute_full_subgroups = vk::TRUE;
                subgroup_control = true;
            }
            _ => {}
        }
        next = following;
    }

    if flexible.is_some() {
        matrices.p_next = info.p_next.cast_mut();
        info.p_next = (&raw const matrices).cast();
    }

    let mut device = vk::Device::null();
    // SAFETY: `info` and all it points to are alive, its extensions and features are listed by the adapter: those that
    // wgpu-hal would ask for, less some, and those looked up here.
    unsafe { (instance.fp_v1_0().create_device)(physical, &raw const info, std::ptr::null(), &raw mut device) }
        .result()
        .map_err(|e| format!("vkCreateDevice: {e}"))?;
    let get = |name: &CStr| {
        // SAFETY: the handle is the one just created, and the name ends in a zero.
        unsafe { (instance.fp_v1_0().get_device_proc_addr)(device, name.as_ptr()) }
    };
    let own = |name: &CStr| match get(name) {
        Some(_) if name == c"vkCreateComputePipelines" => create_pipelines as *const c_void,
        Some(function) => function as *const c_void,
        None => std::ptr::null(),
    };
    // SAFETY: the driver returned every function for this device, except `create_pipelines`, which has the signature of
    // the function that it replaces.
    let raw = unsafe { ash::Device::load_with(own, device) };
    let Some(create) = get(c"vkCreateComputePipelines") else {
        // SAFETY: nothing was created from the device yet.
        unsafe { raw.destroy_device(None) };
        return Err("the driver has no vkCreateComputePipelines".into());
    };
    let table = Table {
        // SAFETY: this is the function of that name.
        create: unsafe { std::mem::transmute::<unsafe extern "system" fn(), vk::PFN_vkCreateComputePipelines>(create) },
        statistics: statistics.then(|| khr::pipeline_executable_properties::Device::new(instance, &raw)),
    };
    lock(&TABLES).insert(device, Arc::new(table));
    // SAFETY: the device belongs to this adapter, and has these extensions and queue family 0. Of the features in
    // `physical_device_features`, those named at the head of this file are off on purpose. wgpu-hal owns it from here
    // on.
    let open = unsafe {
        hal.device_from_raw(
            raw,
            None,
            &extensions,
            features,
            &descriptor.required_limits,
            &descriptor.memory_hints,
            0,
            0,
        )
    }
    .map_err(|e| format!("wgpu-hal: {e}"))?;
    // SAFETY: the device was created from this adapter, with all features of the descriptor.
    let (device, queue) =
        unsafe { adapter.create_device_from_hal(open, descriptor) }.map_err(|e| format!("wgpu: {e}"))?;
    Ok((device, queue, Abilities { subgroup_control, statistics, flexible }))
}

/// Returns whether compute pipelines may require a subgroup size and full subgroups. Needs Vulkan 1.1.
fn subgroup_control(instance: &ash::Instance, physical: vk::PhysicalDevice) -> bool {
    let mut can = vk::PhysicalDeviceSubgroupSizeControlFeatures::default();
    let mut sizes = vk::PhysicalDeviceSubgroupSizeControlProperties::default();
    // SAFETY: the handle is the adapter's, whose Vulkan is at least 1.1 and has both functions. The structs in the
    // chains are alive, and drivers ignore those that they do not know.
    unsafe {
        let mut features = vk::PhysicalDeviceFeatures2::default().push_next(&mut can);
        instance.get_physical_device_features2(physical, &mut features);
        let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut sizes);
        instance.get_physical_device_properties2(physical, &mut properties);
    }
    can.subgroup_size_control == vk::TRUE
        && can.compute_full_subgroups == vk::TRUE
        && sizes.required_subgroup_size_stages.contains(vk::ShaderStageFlags::COMPUTE)
}

/// Replaces `vkCreateComputePipelines`: creates pipelines with this thread's options.
unsafe extern "system" fn create_pipelines(
    device: vk::Device,
    cache: vk::PipelineCache,
    count: u32,
    infos: *const vk::ComputePipelineCreateInfo<'_>,
    allocator: *const vk::AllocationCallbacks<'_>,
    pipelines: *mut vk::Pipeline,
) -> vk::Result {
    let Some(table) = lock(&TABLES).get(&device).cloned() else { return vk::Result::ERROR_UNKNOWN };
    // wgpu-hal builds one pipeline at a time
    let options = BUILDING.with_borrow(|slot| slot.as_ref().map(|(options, _)| *options)).filter(|_| count == 1);
    let Some(options) = options else {
        // SAFETY: these are the caller's own arguments.
        return unsafe { (table.create)(device, cache, count, infos, allocator, pipelines) };
    };
    // SAFETY: the caller passes one valid struct.
    let mut info = unsafe { *infos };
    let mut required = vk::PipelineShaderStageRequiredSubgroupSizeCreateInfo::default();
    if let Some(lanes) = options.subgroup_size {
        // a varying and a required size exclude each other
        info.stage.flags &= !vk::PipelineShaderStageCreateFlags::ALLOW_VARYING_SUBGROUP_SIZE;
        info.stage.flags |= vk::PipelineShaderStageCreateFlags::REQUIRE_FULL_SUBGROUPS;
        required.required_subgroup_size = lanes;
        required.p_next = info.stage.p_next.cast_mut();
        info.stage.p_next = (&raw const required).cast();
    }
    if options.statistics && table.statistics.is_some() {
        info.flags |= vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR;
    }
    // SAFETY: these are the caller's arguments, except a copy of the one struct, which lives until the call returns.
    let result = unsafe { (table.create)(device, cache, 1, &raw const info, allocator, pipelines) };
    if let (vk::Result::SUCCESS, true, Some(executables)) = (result, options.statistics, &table.statistics) {
        // SAFETY: the driver has just written the pipeline, which was created to keep statistics.
        let report = unsafe { read(executables, *pipelines) };
        BUILDING.with_borrow_mut(|slot| *slot = Some((options, report)));
    }
    result
}

/// Reads the driver's figures on a pipeline.
///
/// # Safety
/// The pipeline must be alive, and created with `CAPTURE_STATISTICS_KHR` on the device of `executables`.
unsafe fn read(executables: &khr::pipeline_executable_properties::Device, pipeline: vk::Pipeline) -> Statistics {
    let mut report = Statistics::new();
    let which = vk::PipelineInfoKHR::default().pipeline(pipeline);
    // SAFETY: guaranteed by the caller.
    let Ok(parts) = (unsafe { executables.get_pipeline_executable_properties(&which) }) else { return report };
    for (index, part) in (0..).zip(&parts) {
        let part_info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(index);
        // SAFETY: guaranteed by the caller; the index is that of a part.
        let list = unsafe { executables.get_pipeline_executable_statistics(&part_info) }.unwrap_or_default();
        report.push(("subgroup size".into(), part.subgroup_size.to_string()));
        for statistic in list {
            let name = statistic.name_as_c_str().map_or_else(|_| "?".into(), |n| n.to_string_lossy().into_owned());
            // SAFETY: `format` states which member of the union the driver has written.
            let value = unsafe {
                match statistic.format {
                    vk::PipelineExecutableStatisticFormatKHR::BOOL32 => (statistic.value.b32 != 0).to_string(),
                    vk::PipelineExecutableStatisticFormatKHR::INT64 => statistic.value.i64.to_string(),
                    vk::PipelineExecutableStatisticFormatKHR::UINT64 => statistic.value.u64.to_string(),
                    _ => statistic.value.f64.to_string(),
                }
            };
            report.push((name, value));
        }
    }
    report
}
