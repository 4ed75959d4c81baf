//! Opens an adapter with all its limits and the features that we use. On Vulkan we open the device ourselves if
//! possible, otherwise wgpu does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Error, Fault, Result};
use crate::gpu::adapter::{self, Caps};
use crate::gpu::{spirv, vulkan};

use super::submitter::Submitter;
use super::{Gpu, Options, Raw, lock};

/// An open device, opened by us or by wgpu.
struct Opened {
    device: wgpu::Device,
    queue: wgpu::Queue,
    /// See [`Gpu::device_kind`].
    kind: String,
    /// Whether the driver checks bounds, on Vulkan.
    driver_checks: bool,
    abilities: vulkan::Abilities,
}

impl Gpu {
    /// Opens an adapter with all its limits and those of the features we use that it lists.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no adapter, the requested one is unknown, or the driver refuses.
    pub fn open(options: &Options) -> Result<Self> {
        let (instance, adapters) = adapter::adapters(options.checked);
        let index = adapter::pick(&adapters, options.device.as_deref())?;
        let adapter = &adapters[index];
        let limits = if options.webgpu_limits {
            wgpu::Limits { max_immediate_size: 64, ..wgpu::Limits::default() }
        } else {
            adapter.limits()
        };
        // masked below by the features that the adapter lists: wgpu-hal panics on others
        let mut wanted = wgpu::Features::IMMEDIATES
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS
            | wgpu::Features::SHADER_F16
            | wgpu::Features::SUBGROUP
            | wgpu::Features::SUBGROUP_BARRIER;
        let vulkan = vulkan::version(adapter);
        // software Vulkan lists this feature at 4 lanes but refuses it, and crashes on it at 16 lanes
        let software = adapter.get_info().device_type == wgpu::DeviceType::Cpu;
        let matrices = options.matrices && !(software && adapter::software_lanes(&adapter.get_info()) != 8);
        wanted.set(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, matrices);
        wanted.set(wgpu::Features::PASSTHROUGH_SHADERS, vulkan.is_some() && !options.unrepaired);
        // no browser has 64-bit integers
        wanted.set(wgpu::Features::SHADER_INT64, !options.webgpu_limits);
        let features = adapter.features() & wanted;
        let experimental = if features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            // SAFETY: this only acknowledges that wgpu's checks of cooperative matrices are unfinished. The kernels
            // that use them stay inside their buffers and load only matrices of the element type that they declare;
            // both are tested (tests/ops, tests/translate).
            unsafe { wgpu::ExperimentalFeatures::enabled() }
        } else {
            wgpu::ExperimentalFeatures::disabled()
        };
        let name = adapter.get_info().name;
        if !features.contains(wgpu::Features::IMMEDIATES) {
            return Err(Error::device(Fault::at(
                "device",
                format!("{name} has no immediates (push constants), which every kernel needs"),
            )));
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("wgpt"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features: experimental,
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        let Opened { device, queue, kind, driver_checks, abilities } = opened(adapter, &descriptor, options)?;
        let fault = Arc::new(Mutex::new(None));
        let sink = Arc::clone(&fault);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&sink).get_or_insert_with(|| error.to_string());
        }));
        let lost = Arc::new(AtomicBool::new(false));
        let (flag, sink) = (Arc::clone(&lost), Arc::clone(&fault));
        device.set_device_lost_callback(move |reason, message| {
            // dropping the device at the end is not a loss
            if reason != wgpu::DeviceLostReason::Destroyed || !message.is_empty() {
                lock(&sink).get_or_insert_with(|| format!("device lost: {message}"));
            }
            flag.store(true, Ordering::SeqCst);
        });
        let submitter = Submitter::new(queue.clone(), Arc::clone(&fault))
            .map_err(|e| Error::device(Fault::at("device", format!("no thread can be started: {e}"))))?;
        let caps = adapter::caps(adapter, &limits, features);
        let passthrough = features.contains(wgpu::Features::PASSTHROUGH_SHADERS);
        Ok(Self {
            raw: Some(Arc::new(Raw { submitter, device, queue, _instance: instance })),
            checked: options.checked,
            spirv: vulkan.filter(|_| passthrough).map(spirv::version_for),
            unrepaired: options.unrepaired,
            driver_checks,
            device_kind: kind,
            statistics: Arc::new(Mutex::new(abilities.statistics.then(Vec::new))),
            fault,
            lost,
            ..Self::dry(Caps {
                subgroup_control: abilities.subgroup_control,
                // only our own SPIR-V can declare these matrices
                flexible: abilities.flexible.filter(|_| passthrough && matrices),
                ..caps
            })
        })
    }
}

/// Opens the device ourselves if that is possible and wanted, otherwise through wgpu.
fn opened(adapter: &wgpu::Adapter, descriptor: &wgpu::DeviceDescriptor, options: &Options) -> Result<Opened> {
    let own_options = vulkan::DeviceOptions {
        driver_checks: options.driver_checks,
        statistics: options.statistics,
        experimental: options.experimental && options.matrices,
    };
    let own = match (vulkan::version(adapter), options.checked) {
        (None, _) => Err(String::new()),
        (Some(_), true) => Err("checked".into()),
        (Some(_), false) => vulkan::open(adapter, descriptor, own_options),
    };
    let reason = match own {
        Ok((device, queue, abilities)) => {
            let checks = if options.driver_checks { "on" } else { "off" };
            let kind = format!("bounds checks by the driver: {checks} (Vulkan device opened by wgpt)");
            return Ok(Opened { device, queue, kind, driver_checks: options.driver_checks, abilities });
        }
        Err(reason) => reason,
    };
    let (device, queue) = pollster::block_on(adapter.request_device(descriptor)).map_err(|e| {
        Error::device(Fault::at("device", format!("{} cannot be opened: {e}", adapter.get_info().name)))
    })?;
    let driver_checks = !reason.is_empty();
    let kind = match reason.as_str() {
        "" => String::new(),
        reason => format!("bounds checks by the driver: on (Vulkan device opened by wgpu: {reason})"),
    };
    Ok(Opened { device, queue, kind, driver_checks, abilities: vulkan::Abilities::default() })
}

/// Opens an adapter and returns its [`Gpu::device_kind`], or why it cannot be opened.
pub(in crate::gpu) fn kind(adapter: &wgpu::Adapter) -> String {
    let descriptor = wgpu::DeviceDescriptor {
        required_features: adapter.features() & (wgpu::Features::IMMEDIATES | wgpu::Features::SUBGROUP),
        required_limits: adapter.limits(),
        ..Default::default()
    };
    match opened(adapter, &descriptor, &Options::default()) {
        Ok(opened) => opened.kind,
        Err(error) => error.to_string(),
    }
}
