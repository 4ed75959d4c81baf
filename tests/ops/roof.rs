use wgpt::gpu::Options;
use wgpt::ops::roof::{self, Copy, FED_TILES, Fused, Matrix, MatrixFed, Scalar, TILES};
use wgpt::reference;

use crate::harness::{
    Case, Device, HALF, Inputs, check, devices, folded, input, integers, near, not_run, overwritten, verify, wide,
    within,
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

/// Devices that run cooperative matrices, or list the kernels with them; `name` is a kernel's, for those that do not.
fn with_matrices(name: &str) -> Vec<Device> {
    let listing = devices().first().is_some_and(|device| device.gpu.caps.backend == "none");
    let devices = if listing {
        devices()
    } else {
        vec![Device::open("matrices", &Options { matrices: true, ..Options::default() })]
    };
    let devices = devices.into_iter().map(|device| {
        offering(device, |caps| {
            (caps.matrix_edges, caps.f16, caps.subgroups) = (vec![8, 16], true, true);
            (caps.subgroup_sizes, caps.max_workgroup_bytes) = ((32, 32), 32 << 10);
        })
    });
    let runs = |device: &Device| {
        let caps = &device.gpu.caps;
        if caps.matrix_edges.is_empty() {
            not_run(&format!("{name}: {} has no cooperative matrices of f16 and f32", caps.name));
        }
        let crashes = caps.software && caps.lanes != 8;
        if crashes {
            not_run(&format!("{name}: {} has no working cooperative matrices at {} lanes", caps.name, caps.lanes));
        }
        !crashes
    };
    devices.filter(runs).collect()
}

#[test]
pub fn matrix() {
    for device in with_matrices("roof.matrix") {
        let edges = device.gpu.caps.matrix_edges.clone();
        let devices = [device];
        for edge in edges {
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

/// A case of [`matrix_fed`]: `rounds` rounds that read tiles `stride` apart, held against those `expected` apart.
fn fed(device: &Device, edge: u32, groups: usize, [stride, expected]: [u32; 2]) -> Result<(), String> {
    let rounds = 3;
    let [m, n, k] = roof::fed_shape(&device.gpu.caps);
    let lines = FED_TILES * (m + n);
    let values: Vec<f32> = (0..lines * k).map(|i| ((i * i + i / 7) % 19) as f32 / 8.0).collect();
    // sums of multiples of 1/64 below 2^14 are exact
    let want = reference::roof::matrix_fed(&wide(&values), rounds, expected, [m, n, k]).repeat(groups);
    let tolerance = vec![0.0; want.len()];
    let slots =
        [HALF.input("operands", [lines, k], &values), overwritten("out", [groups * m, n], within(want, tolerance))];
    let (kernel, shape) = ("roof.matrix_fed", [edge as usize, groups, stride as usize]);
    let launch = |pass: &mut wgpt::gpu::Pass, [operands, out]: &[wgpt::gpu::Tensor; 2]| {
        roof::matrix_fed(pass, MatrixFed { operands, out, edge, rounds, stride })
    };
    if device.gpu.caps.backend == "none" {
        check(std::slice::from_ref(device), kernel, &shape, slots, launch);
        return Ok(());
    }
    verify(device, &Case { kernel, shape: &shape, slots, launch: &launch })
}

#[test]
pub fn matrix_fed() {
    for device in with_matrices("roof.matrix_fed") {
        let edges = device.gpu.caps.matrix_edges.clone();
        for edge in edges {
            if let Some(why) = roof::without_fed(&device.gpu.caps, edge) {
                not_run(&format!("roof.matrix_fed: {why}"));
                continue;
            }
            for (groups, stride) in [(3, 1), (1, 2)] {
                fed(&device, edge, groups, [stride; 2]).unwrap_or_else(|report| panic!("{report}"));
            }
        }
    }
}

#[test]
fn a_fed_product_of_other_tiles_is_found() {
    for device in with_matrices("roof.matrix_fed") {
        let caps = device.gpu.caps.clone();
        // scalars in workgroup memory and more subgroups than places, as on Metal
        let device = device.with(|caps| caps.backend = "Metal".into());
        for edge in caps.matrix_edges.iter().copied().filter(|edge| roof::without_fed(&caps, *edge).is_none()) {
            fed(&device, edge, 1, [3, 1]).unwrap_or_else(|report| panic!("{report}"));
            let report = fed(&device, edge, 1, [1, 2]).expect_err("three times the first tile, not the second as well");
            assert!(report.contains("out") && report.contains("roof.matrix_fed"), "{report}");
        }
    }
}
