//! Stands in for `vulkan.rs` where wgpu builds no Vulkan backend.

/// See `vulkan.rs`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Order {
    pub(super) subgroup_size: Option<u32>,
    pub(super) statistics: bool,
}

/// See `vulkan.rs`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Abilities {
    pub(super) subgroup_control: bool,
    pub(super) statistics: bool,
    pub(super) flexible: Option<super::adapter::Flexible>,
}

/// See `vulkan.rs`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub(super) driver_checks: bool,
    pub(super) statistics: bool,
    pub(super) experimental: bool,
}

/// Does what `build` does.
pub(super) fn ordered<T>(order: Order, build: impl FnOnce() -> T) -> (T, super::context::KernelStatistics) {
    let Order { subgroup_size: _, statistics: _ } = order;
    (build(), Vec::new())
}

/// No adapter is one of Vulkan.
pub(super) fn version(_adapter: &wgpu::Adapter) -> Option<(u32, u32)> {
    None
}

/// No other backend tells.
pub(super) fn compute_units(_adapter: &wgpu::Adapter) -> Option<u32> {
    None
}

/// Never called, since no adapter has a version.
pub(super) fn open(
    _adapter: &wgpu::Adapter,
    _descriptor: &wgpu::DeviceDescriptor,
    wish: Wish,
) -> Result<(wgpu::Device, wgpu::Queue, Abilities), String> {
    let Wish { driver_checks: _, statistics: _, experimental: _ } = wish;
    Err("this system has no Vulkan".into())
}
