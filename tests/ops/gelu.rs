use wgpt::ops::gelu::{self, Backward, Forward};
use wgpt::reference;

use crate::harness::{Device, EPS, FULL, HALF, Inputs, Kind, check, devices, devices_with_f16, folded, wide, windowed};

/// Rounding errors of the tanh in units of EPS: WGSL allows exp(u) 3 + 2 |u| of them, of which those at |u| > 9 count
/// for nothing since exp(-2 |u|) is below EPS there; then the argument's own, one division and some multiplications.
const TANH: f64 = 12.0;

fn run(devices: &[Device], kind: Kind, [n, c]: [usize; 2], inp: &[f32]) {
    let dout = kind.values(&mut Inputs::new(), n * c);
    let out = reference::gelu::forward(&wide(inp));
    let tolerance = inp.iter().map(|x| TANH * EPS * f64::from(x.abs())).collect();
    let slots = [kind.input("inp", [n, c], inp), kind.overwritten("out", [n, c], kind.within(out, tolerance))];
    check(devices, "gelu.forward", &[n, c], slots, |pass, [inp, out]| gelu::forward(pass, Forward { inp, out }));

    let dinp = reference::gelu::backward(&wide(&dout), &wide(inp));
    let tolerance = wide(inp)
        .iter()
        .zip(&wide(&dout))
        .map(|(x, dout)| {
            // 1 - tanh^2 has an absolute error that x^3 multiplies, as long as tanh is not exactly 1
            let slope = if x.abs() < 8.0 { 0.4 * x.abs() * (1.0 + 0.135 * x * x) } else { 0.0 };
            TANH * EPS * dout.abs() * (1.0 + 2.0 * slope)
        })
        .collect();
    let slots = [kind.input("inp", [n, c], inp), kind.updated("dout", [n, c], &dout, kind.within(dinp, tolerance))];
    check(devices, "gelu.backward", &[n, c], slots, |pass, [inp, dout]| gelu::backward(pass, Backward { inp, dout }));
}

fn random(devices: &[Device], kind: Kind, shape: [usize; 2]) {
    run(devices, kind, shape, &kind.scaled(&mut Inputs::new(), shape[0] * shape[1], 6.0));
}

#[test]
pub fn forward_and_backward() {
    let devices = devices();
    for shape in [[1, 1], [3, 5], [63, 1], [65, 4], [127, 13], [65, 3072]] {
        random(&devices, FULL, shape);
    }
    let devices = devices_with_f16();
    for shape in [[1, 1], [3, 5], [65, 4], [65, 24], [127, 13]] {
        random(&devices, HALF, shape);
    }
}

#[test]
fn far_from_zero_and_at_it() {
    let mut values = vec![0.0, -0.0, 1e-30, -1e-30, 1e-4, -1e-4, 1e4, -1e4, 1e9, -1e9];
    values.extend((-80..80).map(|i| i as f32 / 8.0 + 0.01));
    let devices = devices();
    run(&devices, FULL, [1, values.len()], &values[..]);
    run(&devices, FULL, [1, values.len() - 1], &values[1..]);
    // to the largest f16 and the smallest
    let halves: Vec<f64> = [65_504.0, -65_504.0, 6e-8, -6e-8, 1e3, -1e3, 0.0].into();
    run(&devices_with_f16(), HALF, [1, 7], &HALF.round(&halves));
}

#[test]
fn forward_and_backward_in_windows() {
    random(&windowed(64 * 13 * 4), FULL, [257, 13]);
    random(&windowed(100 * 256), FULL, [257, 64]);
}

#[test]
fn forward_and_backward_in_a_folded_grid() {
    random(&folded(), FULL, [401, 13]);
    random(&folded(), FULL, [401, 44]);
}
