//! Software Vulkan with vectors of other widths. The driver reads the width when it starts, so each gets a process:
//! this very program, started again.

use std::process::Command;

use crate::harness::{CHILD, Device, not_run};

/// The tests that run with other widths: each operator's cases, of which one of each family of kernels runs there. The number
/// of lanes changes nothing in the harness, windows, programs, the queue, rings, nor in kernels for GPUs.
const RUN: [&str; 2] = ["cases::", "the_width_is_the_one_asked_for"];

fn again_with(lanes: u32) {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let device = Device::open("release", &wgpt::gpu::Options::default());
    if !device.caps.software {
        not_run(&format!("software Vulkan at {lanes} lanes: {} is no software adapter", device.caps.name));
        return;
    }
    if device.caps.lanes == lanes {
        not_run(&format!("software Vulkan at {lanes} lanes in a process of its own: all tests run with them"));
        return;
    }
    // started through tools/run, /proc/self/exe is the dynamic loader: the first argument names this program
    let program = std::env::args().next().expect("a program has a name");
    let runner = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/run");
    let mut command = if cfg!(target_os = "linux") { Command::new(runner) } else { Command::new(&program) };
    if cfg!(target_os = "linux") {
        command.arg(&program);
    }
    let output = command
        .arg("--test-threads=1")
        .args(RUN)
        .env("LP_NATIVE_VECTOR_WIDTH", (lanes * 32).to_string())
        .env(CHILD, lanes.to_string())
        .output()
        .expect("tools/run starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("test result: ok"),
        "at {lanes} lanes {}:\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn software_vulkan_at_4_lanes() {
    again_with(4);
}

#[test]
fn software_vulkan_at_16_lanes() {
    again_with(16);
}

/// In the processes above: that the environment arrived.
#[test]
fn the_width_is_the_one_asked_for() {
    let Ok(lanes) = std::env::var(CHILD) else { return };
    let device = Device::open("release", &wgpt::gpu::Options::default());
    assert_eq!(device.caps.lanes.to_string(), lanes);
}
