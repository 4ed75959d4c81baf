//! Software Vulkan with vectors of other widths. The driver reads the width when it starts, so each width gets a
//! process: this program, started again.

use std::process::Command;

use super::harness::{CHILD, Device};
use crate::common::not_run;

/// The tests that run with other widths: the cases of each operator, one for each family of kernels. The number of
/// lanes changes nothing in the harness, windows, programs, the queue, rings or kernels for GPUs.
const RUN: [&str; 2] = ["ops::cases::", "ops::lanes::the_width_is_the_one_asked_for"];

fn again_with(lanes: u32) {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let caps = Device::open("release", &wgpt::gpu::Options::default()).caps;
    if !caps.software || caps.lanes == lanes {
        if !caps.software {
            not_run::not_run(&format!("operators at {lanes} lanes"), "the adapter is no software adapter");
        }
        // all tests run with the other width
        return;
    }
    // under tools/run /proc/self/exe is the dynamic loader: the first argument names this program
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
        .env(not_run::VARIABLE, not_run::folder())
        .output()
        .expect("tools/run starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let ran = |test: String| text.contains(&format!("test {test} ... ok"));
    let all = wgpt::cases::ALL.iter().all(|cases| ran(format!("ops::cases::{}", cases.operator.name)));
    assert!(
        output.status.success() && all && ran("ops::lanes::the_width_is_the_one_asked_for".into()),
        "at {lanes} lanes {}:\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn software_vulkan_at_4_and_16_lanes() {
    [4, 16].into_iter().for_each(again_with);
}

/// Checks in the processes above that the variable took effect.
#[test]
fn the_width_is_the_one_asked_for() {
    let Ok(lanes) = std::env::var(CHILD) else { return };
    let device = Device::open("release", &wgpt::gpu::Options::default());
    assert_eq!(device.caps.lanes.to_string(), lanes);
}
