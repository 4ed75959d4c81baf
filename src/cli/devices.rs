//! `wgpt devices`.

use wgpt::error::{Error, Result};
use wgpt::gpu::adapter;

use super::terminal::say;
use super::train::header;

/// Lists the adapters. The first one is the default. GPUs of a kind are in the order of the PCI bus.
pub fn run() -> Result<()> {
    let devices = adapter::list_opened();
    adapter::environment_notes().iter().for_each(|note| say!("{note}"));
    if devices.is_empty() {
        return Err(Error::device(
            "devices: no adapter found, expected a GPU with a Vulkan, Metal or DX12 driver; install one, or on Linux start \
             through tools/run, which fetches software Vulkan",
        ));
    }
    for device in devices {
        let c = device.caps;
        say!("{}: {}{}", device.index, c.summary(), c.at_bus());
        say!(
            "   binding {} MiB, buffer {} MiB, workgroup {} KiB and {} invocations, {} storage buffers",
            c.max_binding_bytes.div_ceil(1 << 20),
            c.max_buffer_bytes.div_ceil(1 << 20),
            c.max_workgroup_bytes >> 10,
            c.max_invocations,
            c.max_storage_buffers
        );
        let yes = |have: bool| if have { "yes" } else { "no" };
        let edges: Vec<String> = c.matrix_edges.iter().map(|e| format!("{e}x{e}x{e} f16 to f32")).collect();
        say!(
            "   f16 {}, subgroups {} ({} to {}), timestamps {}, cooperative matrices {}",
            yes(c.f16),
            yes(c.subgroups),
            c.subgroup_sizes.0,
            c.subgroup_sizes.1,
            yes(c.timestamps),
            if edges.is_empty() { "no".into() } else { edges.join(", ") }
        );
        if header::is_old_mesa(&c) {
            say!("   {}", header::OLD_MESA);
        }
        if !device.kind.is_empty() {
            say!("   opened as: {}", device.kind);
        }
    }
    Ok(())
}
