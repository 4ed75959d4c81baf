//! Replaces `vulkan.rs` on systems where wgpu has no Vulkan backend.

/// See `vulkan.rs`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PipelineOptions {
    pub(super) subgroup_size: Option<u32>,
    pub(super) statistics: bool,
}

/// See `vulkan.rs`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Abilities {
    pub(super) subgroup_control: bool,
    pub(super) statistics: bool,
    pub(super) flexible: Option<super::adapter::FlexibleMatrices>,
}

/// See `vulkan.rs`.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeviceOptions {
    pub(super) driver_checks: bool,
    pub(super) statistics: bool,
    pub(super) experimental: bool,
}

/// Calls `build`. There are no options and no statistics.
pub(super) fn build_with<T>(
    options: PipelineOptions,
    build: impl FnOnce() -> T,
) -> (T, super::context::KernelStatistics) {
    let PipelineOptions { subgroup_size: _, statistics: _ } = options;
    (build(), Vec::new())
}

/// Returns `None`: no adapter is a Vulkan adapter.
pub(super) fn version(_adapter: &wgpu::Adapter) -> Option<(u32, u32)> {
    None
}

/// Returns `None`: no other backend reports compute units.
pub(super) fn compute_units(_adapter: &wgpu::Adapter) -> Option<u32> {
    None
}

/// Fails. Never called, because no adapter has a Vulkan version.
pub(super) fn open(
    _adapter: &wgpu::Adapter,
    _descriptor: &wgpu::DeviceDescriptor,
    options: DeviceOptions,
) -> Result<(wgpu::Device, wgpu::Queue, Abilities), String> {
    let DeviceOptions { driver_checks: _, statistics: _, experimental: _ } = options;
    Err("this system has no Vulkan".into())
}
