use wgpt::gpu::Options;
use wgpt::ops::roof::{self, Copy, Fused, Matrix, Scalar, TILES};
use wgpt::reference;

use crate::harness::{
    Device, Inputs, check, devices, folded, input, integers, near, not_run, overwritten, wide, within,
};

/// Distance from 1 to the next f16.
const EPS16: f64 = 1.0 / 1024.0;

/// A device that only lists kernels is given all that there are.
fn offering(device: Device, change: impl FnOnce(&mut wgpt::gpu::Caps)) -> Device {
    if device.gpu.caps.backend == "none" { device.with(change) } else { device }
}

#[test]
pub fn copy() {
    for (n, each) in [(1, 1), (3, 8), (64, 1), (1000, 8), (1000, 3), (5000, 1)] {
        let inp = Inputs::new().values(4 * n);
        let slots = [input("inp", [n, 4], &inp), overwritten("out", [n, 4], within(wide(&inp), vec![0.0; 4 * n]))];
        let devices = if n == 5000 { folded() } else { devices() };
        check(&devices, "roof.copy", &[n, each as usize], slots, |pass, [inp, out]| {
            roof::copy(pass, Copy { inp, out, each })
        });
    }
}

fn run_fused(devices: &[Device], scalar: Scalar, n: usize) {
    let eps = if scalar == Scalar::F16 { EPS16 } else { f64::from(f32::EPSILON) };
    let (rounds, a, b) = (3, 0.75, 0.125);
    let want = reference::roof::fused(rounds, a, b);
    // each of 16 chains settles at 1/2, where one rounding adds to what is left of those before: 1 / (1 - a) in all
    let tolerance = 16.0 * eps / (1.0 - a) + 16.0 * f64::from(f32::EPSILON);
    let slots = [overwritten("out", [n, 1], within(vec![want; n], vec![tolerance; n]))];
    check(devices, "roof.fused", &[n], slots, |pass, [out]| {
        roof::fused(pass, Fused { out, scalar, rounds, a: a as f32, b: b as f32 })
    });
}

#[test]
pub fn fused() {
    for device in devices() {
        let device = offering(device, |caps| caps.f16 = true);
        let has_f16 = device.gpu.caps.f16;
        let devices = [device];
        [1, 64, 1000].iter().for_each(|&n| run_fused(&devices, Scalar::F32, n));
        if has_f16 {
            [1, 64, 1000].iter().for_each(|&n| run_fused(&devices, Scalar::F16, n));
        } else {
            not_run(&format!("roof.fused in f16: {} has none", devices[0].gpu.caps.name));
        }
    }
    run_fused(&folded(), Scalar::F32, 61 * 64 + 100);
}

/// Bits of a multiple of 1/8 below 4 as f16.
fn half(eighths: u32) -> u32 {
    if eighths == 0 {
        return 0;
    }
    let exponent = eighths.ilog2();
    ((exponent + 12) << 10) | ((eighths << (10 - exponent)) & 0x3ff)
}

#[test]
pub fn matrix() {
    let listing = devices().first().is_some_and(|device| device.gpu.caps.backend == "none");
    let devices = if listing {
        devices()
    } else {
        vec![Device::open("matrices", &Options { matrices: true, ..Options::default() })]
    };
    for device in devices {
        let device = offering(device, |caps| caps.matrix_edges = vec![8, 16]);
        let caps = device.gpu.caps.clone();
        if caps.matrix_edges.is_empty() {
            not_run(&format!("roof.matrix: {} has no cooperative matrices of f16 and f32", caps.name));
        }
        if caps.software && caps.lanes != 8 {
            not_run(&format!("roof.matrix: {} has no working cooperative matrices at {} lanes", caps.name, caps.lanes));
            continue;
        }
        let devices = [device];
        for edge in caps.matrix_edges {
            let e = edge as usize;
            let eighths: Vec<u32> = (0..4 * e * e).map(|i| (i * i + i / 7) as u32 % 19).collect();
            let packed: Vec<u32> = eighths.chunks(2).map(|two| half(two[0]) | half(two[1]) << 16).collect();
            let values: Vec<f64> = eighths.iter().map(|&x| f64::from(x) / 8.0).collect();
            let (rounds, groups) = (3, 5);
            // sums of multiples of 1/64 below 2^14 are exact
            let want = reference::roof::matrix(&values, rounds, e).repeat(groups);
            let magnitude = vec![0.0; want.len()];
            let slots = [
                integers("operands", [2 * e * e, 1], &packed),
                overwritten("out", [groups * TILES * e, e], near(want, 1.0, &magnitude)),
            ];
            check(&devices, "roof.matrix", &[e, groups], slots, |pass, [operands, out]| {
                roof::matrix(pass, Matrix { operands, out, edge, rounds })
            });
        }
    }
}
