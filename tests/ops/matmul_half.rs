//! Matrix products of f16 operands, on cooperative matrices and without, with all that is fused to them; and the fused
//! ends of the f32 products.

use std::sync::Arc;

use wgpt::ops::matmul::{self, Algorithm, BackwardInp, BackwardWeight, Coop, Forward, Product, choose};
use wgpt::reference;

use crate::harness::{
    Device, FOLD, FULL, HALF, Inputs, Kind, Want, absolute, bits, check, devices, half_devices, input, listing, near,
    overwritten, rounding, scratch, updated, wide, windowed, with_other_vectors,
};

type Shape = [usize; 3];

/// The largest slope of GELU is 1.13; a value's error passes on by it, and the formula adds a few roundings.
const SLOPE: f64 = 1.2;

/// The fused ends of a product that a test runs.
#[derive(Clone, Copy, PartialEq)]
enum Ends {
    All,
    /// One of each product, the one that reads and writes most.
    Widest,
    /// None: products alone.
    Plain,
}

fn run_forward(devices: &[Device], kind: Kind, shape: Shape) {
    run_forward_with(Ends::All, devices, kind, shape);
}

fn run_forward_with(ends: Ends, devices: &[Device], kind: Kind, shape: Shape) {
    let [m, n, k] = shape;
    let mut inputs = Inputs::new();
    let (inp, weight) = (kind.values(&mut inputs, m * k), kind.values(&mut inputs, n * k));
    let (bias, residual) = (inputs.values(n), inputs.values(m * n));
    let sum = |bias: Option<&[f64]>| reference::matmul::forward(&wide(&inp), &wide(&weight), bias, m, n, k);
    let size = |bias: Option<&[f64]>| {
        reference::matmul::forward(&absolute(&wide(&inp)), &absolute(&wide(&weight)), bias, m, n, k)
    };
    let operands = || [kind.input("inp", [m, k], &inp), kind.input("weight", [n, k], &weight)];

    if ends != Ends::Widest {
        let [inp_slot, weight_slot] = operands();
        let plain = kind.near(sum(None), rounding(k), &size(None));
        let slots = [inp_slot, weight_slot, kind.overwritten("out", [m, n], plain)];
        check(devices, "matmul.forward", &shape, slots, |pass, [inp, weight, out]| {
            matmul::forward(pass, Forward { inp, weight, bias: None, out })
        });
    }

    if ends == Ends::Plain {
        return;
    }

    if kind == HALF && ends == Ends::All {
        let [inp_slot, weight_slot] = operands();
        let slots = [inp_slot, weight_slot, overwritten("out", [m, n], near(sum(None), rounding(k), &size(None)))];
        check(devices, "matmul.forward to f32", &shape, slots, |pass, [inp, weight, out]| {
            matmul::forward(pass, Forward { inp, weight, bias: None, out })
        });
    }

    let (want, magnitude) = (sum(Some(&wide(&bias))), size(Some(&absolute(&wide(&bias)))));
    let biased = || kind.overwritten("out", [m, n], kind.near(want.clone(), rounding(k + 1), &magnitude));
    if ends == Ends::All {
        let [inp_slot, weight_slot] = operands();
        let slots = [inp_slot, weight_slot, input("bias", [1, n], &bias), biased()];
        check(devices, "matmul.forward with bias", &shape, slots, |pass, [inp, weight, bias, out]| {
            matmul::forward(pass, Forward { inp, weight, bias: Some(bias), out })
        });
    }

    // GELU of what is kept: f16 adds its own rounding, half a unit, to the argument
    let gelu = reference::gelu::forward(&want);
    let argument = if kind == HALF { 2f64.powi(-11) / f64::from(f32::EPSILON) } else { 0.0 };
    let budget = SLOPE * (rounding(k + 1) + argument) + 16.0;
    let [inp_slot, weight_slot] = operands();
    let gelu_slot = kind.overwritten("gelu", [m, n], kind.near(gelu, budget, &magnitude));
    let slots = [inp_slot, weight_slot, input("bias", [1, n], &bias), biased(), gelu_slot];
    check(devices, "matmul.forward_gelu", &shape, slots, |pass, [inp, weight, bias, out, gelu]| {
        matmul::forward_gelu(pass, Forward { inp, weight, bias: Some(bias), out }, gelu)
    });
    if ends == Ends::Widest {
        return;
    }

    let total: Vec<f64> = want.iter().zip(&residual).map(|(x, r)| x + f64::from(*r)).collect();
    let size: Vec<f64> = magnitude.iter().zip(&residual).map(|(x, r)| x + f64::from(r.abs())).collect();
    let [inp_slot, weight_slot] = operands();
    let out = overwritten("out", [m, n], near(total, rounding(k + 2), &size));
    let slots = [inp_slot, weight_slot, input("bias", [1, n], &bias), input("residual", [m, n], &residual), out];
    check(devices, "matmul.forward_residual", &shape, slots, |pass, [inp, weight, bias, residual, out]| {
        matmul::forward_residual(pass, Forward { inp, weight, bias: Some(bias), out }, residual)
    });
}

fn run_backward_inp(devices: &[Device], kind: Kind, shape: Shape) {
    run_backward_inp_with(Ends::All, devices, kind, shape);
}

fn run_backward_inp_with(ends: Ends, devices: &[Device], kind: Kind, shape: Shape) {
    let [m, n, k] = shape;
    let mut inputs = Inputs::new();
    let (dout, weight) = (kind.values(&mut inputs, m * n), kind.values(&mut inputs, n * k));
    let pre = kind.values(&mut inputs, m * k);
    let want = reference::matmul::backward_inp(&wide(&dout), &wide(&weight), m, n, k);
    let magnitude = reference::matmul::backward_inp(&absolute(&wide(&dout)), &absolute(&wide(&weight)), m, n, k);
    let operands = || [kind.input("dout", [m, n], &dout), kind.input("weight", [n, k], &weight)];

    // every window of the weight's rows but the last leaves its part of the sum in `dinp`, rounded
    let pieces = |caps: &wgpt::gpu::Caps| (n * k * kind.0.bytes() as usize).div_ceil(caps.max_binding_bytes as usize);
    let kept = devices.iter().map(|d| pieces(&d.gpu.caps) - 1).max().unwrap_or(0) as f64;
    let rounded = if kind == HALF { kept * 2f64.powi(-11) / f64::from(f32::EPSILON) } else { kept };
    if ends != Ends::Widest {
        let [dout_slot, weight_slot] = operands();
        let plain = kind.near(want.clone(), rounding(n) + rounded, &magnitude);
        let slots = [dout_slot, weight_slot, kind.overwritten("dinp", [m, k], plain)];
        check(devices, "matmul.backward_inp", &shape, slots, |pass, [dout, weight, dinp]| {
            matmul::backward_inp(pass, BackwardInp { dout, weight, dinp })
        });
    }

    if ends == Ends::Plain {
        return;
    }

    let back = reference::gelu::backward(&want, &wide(&pre));
    let slots_of = |want: Want| {
        let [dout_slot, weight_slot] = operands();
        [dout_slot, weight_slot, kind.input("pre", [m, k], &pre), kind.overwritten("dinp", [m, k], want)]
    };
    let want = kind.near(back, SLOPE * (rounding(n) + rounded) + 16.0, &magnitude);
    check(devices, "matmul.backward_inp_gelu", &shape, slots_of(want), |pass, [dout, weight, pre, dinp]| {
        matmul::backward_inp_gelu(pass, BackwardInp { dout, weight, dinp }, pre)
    });
}

fn run_backward_weight(devices: &[Device], kind: Kind, shape: Shape) {
    run_backward_weight_with(Ends::All, devices, kind, shape);
}

fn run_backward_weight_with(ends: Ends, devices: &[Device], kind: Kind, shape: Shape) {
    let [m, n, k] = shape;
    let mut inputs = Inputs::new();
    let (dout, inp) = (kind.values(&mut inputs, m * n), kind.values(&mut inputs, m * k));
    let before = inputs.values(n * k);
    let (mut want, mut magnitude) = (wide(&before), absolute(&wide(&before)));
    reference::matmul::backward_weight(&wide(&dout), &wide(&inp), &mut want, m, n, k);
    reference::matmul::backward_weight(&absolute(&wide(&dout)), &absolute(&wide(&inp)), &mut magnitude, m, n, k);
    let dweight = || updated("dweight", [n, k], &before, near(want.clone(), rounding(m + 1), &magnitude));
    let operands = || [kind.input("dout", [m, n], &dout), kind.input("inp", [m, k], &inp)];
    let [dout_slot, inp_slot] = operands();
    check(devices, "matmul.backward_weight", &shape, [dout_slot, inp_slot, dweight()], |pass, [dout, inp, dweight]| {
        matmul::backward_weight(pass, BackwardWeight { dout, inp, dweight })
    });

    let room = devices.iter().map(|d| matmul::partials(&d.gpu.caps, kind.0, m, n, k)).max().unwrap_or(0);
    if room == 0 || ends != Ends::All {
        return;
    }
    let [dout_slot, inp_slot] = operands();
    let slots = [dout_slot, inp_slot, scratch("partials", [1, room]), dweight()];
    check(devices, "matmul.backward_weight_in_parts", &shape, slots, |pass, [dout, inp, partials, dweight]| {
        matmul::backward_weight_in_parts(pass, BackwardWeight { dout, inp, dweight }, partials)
    });

    // the bias's gradient on the way, by all devices that compute this in parts
    let bias = inputs.values(n);
    let (mut want_bias, mut size) = (wide(&bias), absolute(&wide(&bias)));
    for (i, g) in wide(&dout).iter().enumerate() {
        want_bias[i % n] += g;
        size[i % n] += g.abs();
    }
    for device in devices.iter().filter(|d| matmul::partials(&d.gpu.caps, kind.0, m, n, k) > 0) {
        let [dout_slot, inp_slot] = operands();
        let parts = matmul::partials(&device.gpu.caps, kind.0, m, n, k) / (n * k);
        let dbias = updated("dbias", [1, n], &bias, near(want_bias.clone(), rounding(m + 1), &size));
        let (partials, sums) = (scratch("partials", [1, room]), scratch("scratch", [1, parts * n]));
        let slots = [dout_slot, inp_slot, partials, sums, dweight(), dbias];
        let shape = [m, n, k];
        check(
            std::slice::from_ref(device),
            "matmul.backward_weight_and_bias",
            &shape,
            slots,
            |pass, [dout, inp, partials, scratch, dweight, dbias]| {
                let room = matmul::Room { partials, scratch };
                let done = matmul::backward_weight_and_bias(pass, BackwardWeight { dout, inp, dweight }, dbias, room)?;
                assert!(done, "the bias was left out");
                Ok(())
            },
        );
    }
}

fn run_all(devices: &[Device], kind: Kind, shape: Shape) {
    run_forward(devices, kind, shape);
    run_backward_inp(devices, kind, shape);
    run_backward_weight(devices, kind, shape);
}

/// Ones, primes, all remainders of 4 and 8, one under and over the tiles of 64, whole tiles, a depth of many parts.
const SHAPES: [Shape; 11] = [
    [1, 1, 1],
    [3, 5, 7],
    [13, 17, 19],
    [63, 64, 65],
    [64, 128, 64],
    [65, 36, 8],
    [68, 124, 132],
    [127, 129, 6],
    [1100, 64, 64],
    [1100, 60, 36],
    [1027, 7, 13],
];

/// The devices of [`half_devices`] in some of the modes.
fn modes(wanted: &[&str]) -> Vec<Device> {
    half_devices().into_iter().filter(|d| d.mode == "dry" || wanted.contains(&d.mode)).collect()
}

#[test]
pub fn products_of_half() {
    let devices = modes(&["release", "no matrices"]);
    // with other vectors the least regular: each kernel is compiled anew there
    let shapes = if with_other_vectors() { &[[13, 17, 19], [68, 124, 132]][..] } else { &SHAPES };
    shapes.iter().for_each(|&shape| run_all(&devices, HALF, shape));
}

/// The other dialects and the checked mode. Software adapters take seconds to compile each kernel: one ragged shape. Checked
/// they take ten times as long: one end of each product there, of those that [`fused_ends`] runs all checked.
#[test]
pub fn products_of_half_in_other_modes() {
    let shape = [68, 120, 136];
    let devices = modes(&["SPIR-V as naga writes it", "tiles for Metal", "subgroups of several sizes"]);
    run_all(&devices, HALF, shape);
    if !listing() {
        let devices = modes(&["checked"]);
        run_forward_with(Ends::Widest, &devices, HALF, shape);
        run_backward_inp_with(Ends::Widest, &devices, HALF, shape);
        run_backward_weight_with(Ends::Widest, &devices, HALF, shape);
    }
}

/// Matrices of 16 put together from 8.
#[test]
pub fn products_of_half_with_edge_16() {
    let devices = modes(&["edge 16 of 8"]);
    run_all(&devices, HALF, [68, 120, 136]);
    run_backward_weight(&devices, HALF, [1088, 64, 64]);
}

/// Tiles of 128 by 128, of which there must be many, or the small ones are taken.
#[test]
pub fn large_tiles_of_half() {
    let devices = modes(&["no matrices"]);
    for [m, n, depth] in [[1030, 2050, 9], [1028, 2052, 12], [1024, 2048, 32]] {
        run_forward(&devices, HALF, [m, n, depth]);
        run_backward_inp(&devices, HALF, [m, depth, n]);
        run_backward_weight(&devices, HALF, [depth, m, n]);
    }
    // of matrices one kernel: it takes a software adapter long to compile
    let devices = if listing() { Vec::new() } else { modes(&["edge 16 of 8"]) };
    run_backward_weight(&devices, HALF, [9, 1028, 2052]);
}

/// Products of ragged tiles of a candidate of `wgpt tune`, chosen as a record chooses it.
fn run_candidate(devices: &mut [Device], coop: Coop, products: &[Product]) {
    let [m, n, k] = [coop.tile_m + 12, coop.tile_n + 8, 2 * coop.tile_k + 8].map(|x| x as usize);
    for &product in products {
        let text = serde_json::to_string(&Algorithm::Coop(coop)).expect("serialises");
        for device in &mut *devices {
            let record = [(choose::key(product, HALF.0, [m, n, k]), text.clone())];
            device.gpu.caps.tuned = Arc::new(record.into_iter().collect());
            let chosen = choose::choose(&device.gpu.caps, product, HALF.0, [m, n, k]);
            assert_eq!(chosen, Algorithm::Coop(coop));
        }
        match product {
            Product::Forward => run_forward_with(Ends::Plain, devices, HALF, [m, n, k]),
            Product::BackwardInp => run_backward_inp_with(Ends::Plain, devices, HALF, [m, k, n]),
            Product::BackwardWeight => run_backward_weight_with(Ends::Plain, devices, HALF, [k, m, n]),
        }
    }
}

/// The adapter's matrices as if they had an edge of 16, and workgroup memory enough for the largest tiles.
fn roomy() -> (Vec<Device>, Vec<Coop>) {
    let mut devices = if listing() { Vec::new() } else { modes(&["edge 16 of 8"]) };
    devices.iter_mut().for_each(|device| device.gpu.caps.max_workgroup_bytes = 48 << 10);
    let candidates = devices.first().map_or(Vec::new(), |d| choose::candidates(&d.gpu.caps, HALF.0));
    let coops = candidates.into_iter().filter_map(|algorithm| match algorithm {
        Algorithm::Coop(coop) => Some(coop),
        _ => None,
    });
    (devices, coops.collect())
}

/// A tile with lines of 96, which do not divide evenly among a workgroup's invocations and whose indices divide by 12. A
/// driver of the CPU takes ten seconds over each kernel: one here, the others by hand, with `--ignored`.
#[test]
fn candidates_with_lines_of_96() {
    let (mut devices, coops) = roomy();
    let coop = coops.iter().find(|c| [c.tile_m, c.tile_n, c.tile_k, c.grid_n] == [96, 128, 16, 4]);
    assert!(coop.is_some() || devices.is_empty(), "no such candidate");
    coop.iter().for_each(|coop| run_candidate(&mut devices, **coop, &[Product::BackwardWeight]));
}

#[test]
#[ignore = "takes half an hour on software Vulkan"]
fn all_candidates() {
    let (mut devices, coops) = roomy();
    for coop in coops {
        let begin = std::time::Instant::now();
        run_candidate(&mut devices, coop, &[Product::Forward, Product::BackwardInp, Product::BackwardWeight]);
        println!("{}: {:.0} s", Algorithm::Coop(coop), begin.elapsed().as_secs_f64());
    }
}

/// The weight in windows of 128 rows, of which all but the first add to the sum; then folded grids.
#[test]
pub fn half_in_windows_and_folded_grids() {
    let mut devices = modes(&["release", "no matrices"]);
    for device in &mut devices {
        device.gpu.caps.max_binding_bytes = 128 * 64 * 2;
    }
    for shape in [[5, 200, 64], [5, 260, 60], [5, 257, 62], [3, 300, 33], [64, 256, 64]] {
        run_forward(&devices, HALF, shape);
        run_backward_inp(&devices, HALF, shape);
    }
    for device in &mut devices {
        device.gpu.caps.max_binding_bytes = 128 << 20;
        device.gpu.caps.max_groups = FOLD;
    }
    run_all(&devices, HALF, [64 * 66, 64, 7]);
    // where indices are clamped, groups past the end of the grid would write over the last element
    let mut checked = if listing() { Vec::new() } else { modes(&["checked"]) };
    for device in &mut checked {
        device.gpu.caps.max_groups = FOLD;
    }
    run_backward_inp_with(Ends::Widest, &checked, HALF, [64 * 66, 7, 64]);
}

/// The fused ends of f32 products, whose plain forms `matmul.rs` tests.
#[test]
pub fn fused_ends() {
    let devices = devices();
    for shape in [[1, 1, 1], [1, 12, 20], [1, 68, 132], [3, 5, 7], [31, 33, 32], [65, 36, 8], [68, 124, 132]] {
        run_forward(&devices, FULL, shape);
        run_backward_inp(&devices, FULL, shape);
    }
    // sums over more than one piece
    let mut devices = windowed(64 * 16 * 4);
    run_backward_inp(&devices, FULL, [5, 200, 13]);
    run_backward_inp(&devices, FULL, [5, 200, 12]);
    for device in &mut devices {
        device.gpu.caps.software = false;
    }
    run_backward_inp(&devices, FULL, [5, 200, 12]);
    run_backward_inp(&devices, FULL, [5, 200, 13]);
}

/// The fused ends of large tiles.
#[test]
pub fn fused_ends_of_large_tiles() {
    let devices: Vec<Device> = devices().into_iter().filter(|device| !device.gpu.caps.software).take(1).collect();
    for [m, n, depth] in [[1030, 2050, 9], [1028, 2052, 12]] {
        run_forward(&devices, FULL, [m, n, depth]);
        run_backward_inp(&devices, FULL, [m, depth, n]);
    }
}

/// Products near f16's largest number, and beyond: what does not fit is infinite, never a wrong number.
#[test]
pub fn results_past_the_largest_f16_are_infinite() {
    let devices = modes(&["release", "no matrices"]);
    let (m, n, k) = (3, 8, 64);
    // 64 products of 30 and 34 are 65,280, of 32 and 32 are 65,536: 65,504 is the largest f16
    for (a, b, want) in [(30.0, 34.0, 65_280.0), (32.0, 32.0, f64::INFINITY), (-32.0, 33.0, f64::NEG_INFINITY)] {
        let (inp, weight) = (vec![a; m * k], vec![b; n * k]);
        let infinite = u32::from(half::f16::from_f64(want).to_bits());
        let slots = [
            HALF.input("inp", [m, k], &inp),
            HALF.input("weight", [n, k], &weight),
            HALF.overwritten("out", [m, n], bits(&vec![infinite; m * n])),
        ];
        check(&devices, "matmul.forward", &[m, n, k], slots, |pass, [inp, weight, out]| {
            matmul::forward(pass, Forward { inp, weight, bias: None, out })
        });
    }
}
