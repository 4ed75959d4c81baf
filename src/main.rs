//! The `wgpt` program: parses, calls, reports.

#![warn(clippy::expect_used, clippy::unwrap_used)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    quiet_wayland();
    cli::main()
}

/// Switches off Mesa's device-select layer in a session without a display. Where a distribution installs it, it asks
/// libwayland for the display's GPU, which then prints `error: XDG_RUNTIME_DIR is invalid or not set in the environment`. The
/// order of devices is wgpt's own, so that nothing else changes; a choice by the layer's variables is kept.
#[cfg(target_os = "linux")]
fn quiet_wayland() {
    const SWITCH: &str = "NODEVICE_SELECT";
    let is_set = |name| std::env::var_os(name).is_some();
    if !["XDG_RUNTIME_DIR", "MESA_VK_DEVICE_SELECT", "DRI_PRIME", SWITCH].into_iter().any(is_set) {
        // SAFETY: the process has no other thread yet
        unsafe { std::env::set_var(SWITCH, "1") };
    }
}
