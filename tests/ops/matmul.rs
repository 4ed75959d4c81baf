use wgpt::ops::matmul::{self, BackwardInp, BackwardWeight, Forward};
use wgpt::reference;

use crate::harness::{
    Device, FOLD, Inputs, absolute, check, devices, devices_with_and_without_int64, input, near, overwritten, rounding,
    updated, wide, windowed,
};

/// M rows, N outputs, K inputs of the linear layer.
type Shape = [usize; 3];

fn run_forward(devices: &[Device], shape: Shape) {
    let [m, n, k] = shape;
    let mut inputs = Inputs::new();
    let (inp, weight, bias) = (inputs.values(m * k), inputs.values(n * k), inputs.values(n));
    let product = |bias: Option<&[f64]>, of: &dyn Fn(&[f32]) -> Vec<f64>| {
        reference::matmul::forward(&of(&inp), &of(&weight), bias, m, n, k)
    };
    let magnitude = |x: &[f32]| absolute(&wide(x));
    let slots = [
        input("inp", [m, k], &inp),
        input("weight", [n, k], &weight),
        overwritten("out", [m, n], near(product(None, &wide), rounding(k), &product(None, &magnitude))),
    ];
    check(devices, "matmul.forward", &shape, slots, |pass, [inp, weight, out]| {
        matmul::forward(pass, Forward { inp, weight, bias: None, out })
    });
    let want =
        near(product(Some(&wide(&bias)), &wide), rounding(k + 1), &product(Some(&absolute(&wide(&bias))), &magnitude));
    let slots = [
        input("inp", [m, k], &inp),
        input("weight", [n, k], &weight),
        input("bias", [1, n], &bias),
        overwritten("out", [m, n], want),
    ];
    check(devices, "matmul.forward with bias", &shape, slots, |pass, [inp, weight, bias, out]| {
        matmul::forward(pass, Forward { inp, weight, bias: Some(bias), out })
    });
}

fn run_backward_inp(devices: &[Device], shape: Shape) {
    let [m, n, k] = shape;
    let mut inputs = Inputs::new();
    let (dout, weight) = (inputs.values(m * n), inputs.values(n * k));
    let want = reference::matmul::backward_inp(&wide(&dout), &wide(&weight), m, n, k);
    let magnitude = reference::matmul::backward_inp(&absolute(&wide(&dout)), &absolute(&wide(&weight)), m, n, k);
    let slots = [
        input("dout", [m, n], &dout),
        input("weight", [n, k], &weight),
        overwritten("dinp", [m, k], near(want, rounding(n), &magnitude)),
    ];
    check(devices, "matmul.backward_inp", &shape, slots, |pass, [dout, weight, dinp]| {
        matmul::backward_inp(pass, BackwardInp { dout, weight, dinp })
    });
}

fn run_backward_weight(devices: &[Device], shape: Shape) {
    let [m, n, k] = shape;
    let mut inputs = Inputs::new();
    let (dout, inp, before) = (inputs.values(m * n), inputs.values(m * k), inputs.values(n * k));
    let (mut want, mut magnitude) = (wide(&before), absolute(&wide(&before)));
    reference::matmul::backward_weight(&wide(&dout), &wide(&inp), &mut want, m, n, k);
    reference::matmul::backward_weight(&absolute(&wide(&dout)), &absolute(&wide(&inp)), &mut magnitude, m, n, k);
    let slots = [
        input("dout", [m, n], &dout),
        input("inp", [m, k], &inp),
        updated("dweight", [n, k], &before, near(want, rounding(m + 1), &magnitude)),
    ];
    check(devices, "matmul.backward_weight", &shape, slots, |pass, [dout, inp, dweight]| {
        matmul::backward_weight(pass, BackwardWeight { dout, inp, dweight })
    });
}

/// Ones, primes, one under and one over the tiles of 32, 64 and 128, and all remainders of 4; then C = 768.
const SHAPES: [Shape; 15] = [
    [1, 1, 1],
    [1, 4, 4],
    [3, 5, 7],
    [13, 17, 19],
    [31, 33, 32],
    [33, 31, 36],
    [32, 32, 32],
    [63, 64, 65],
    [64, 63, 12],
    [65, 65, 8],
    [64, 64, 64],
    [68, 124, 132],
    [127, 129, 6],
    [131, 6, 127],
    [33, 768, 768],
];

#[test]
pub fn forward() {
    let devices = devices_with_and_without_int64();
    SHAPES.iter().for_each(|&shape| run_forward(&devices, shape));
}

#[test]
pub fn backward_inp() {
    let devices = devices_with_and_without_int64();
    SHAPES.iter().for_each(|&shape| run_backward_inp(&devices, shape));
}

#[test]
pub fn backward_weight() {
    let devices = devices_with_and_without_int64();
    SHAPES.iter().for_each(|&shape| run_backward_weight(&devices, shape));
}

/// Results so large that adapters with GPU kernels take their largest tiles, of 128 by 128.
#[test]
pub fn large_tiles() {
    let devices: Vec<Device> = devices().into_iter().filter(|device| !device.gpu.caps.software).take(1).collect();
    for [m, n, depth] in [[1030, 2050, 9], [1028, 2052, 12]] {
        run_forward(&devices, [m, n, depth]);
        run_backward_inp(&devices, [m, depth, n]);
        run_backward_weight(&devices, [depth, m, n]);
    }
}

/// The same where the weight comes in two windows, of which the second adds its part of the sum.
#[test]
pub fn large_tiles_in_windows() {
    for [m, n, k] in [[128, 132, 16_260], [128, 130, 16_258]] {
        let mut devices = windowed((m * k * 4) as u64);
        for device in &mut devices {
            device.gpu.caps.software = false;
        }
        run_backward_inp(&devices, [m, n, k]);
    }
}

fn run_all(devices: &[Device], shape: Shape) {
    run_forward(devices, shape);
    run_backward_inp(devices, shape);
    run_backward_weight(devices, shape);
}

/// The products of a block of 1558M on 64 tokens, which is too large a model to train here.
#[test]
pub fn products_of_1558m() {
    let devices: Vec<Device> = devices().into_iter().take(1).collect();
    for [n, k] in [[4800, 1600], [1600, 1600], [6400, 1600], [1600, 6400]] {
        run_all(&devices, [64, n, k]);
    }
}

/// Weights and batches in windows of 64 rows, as an output layer's. Then rows of 256 bytes, which would allow windows
/// of any number of rows, beside rows of 20 bytes, which begin aligned only every 64. Then folded grids.
#[test]
pub fn windows_and_folded_grids() {
    let mut devices = windowed(64 * 16 * 4);
    for shape in [[5, 200, 13], [5, 200, 12], [3, 131, 16], [150, 13, 12], [150, 16, 13]] {
        run_all(&devices, shape);
    }
    for device in &mut devices {
        device.gpu.caps.max_binding_bytes = 100 * 256;
    }
    run_all(&devices, [150, 5, 64]);
    run_all(&devices, [150, 64, 5]);
    for device in &mut devices {
        device.gpu.caps.max_binding_bytes = 128 << 20;
        device.gpu.caps.max_groups = FOLD;
    }
    run_all(&devices, [1030, 66, 7]);
    run_all(&devices, [516, 260, 12]);
}
