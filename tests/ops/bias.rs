use wgpt::ops::bias::{self, Backward};
use wgpt::reference;

use crate::harness::{
    Device, FULL, HALF, Inputs, Kind, absolute, check, devices, devices_with_f16, folded, near, rounding, scratch,
    updated, wide, windowed,
};

fn run(devices: &[Device], kind: Kind, [n, c]: [usize; 2]) {
    let mut inputs = Inputs::new();
    let (dout, before) = (kind.values(&mut inputs, n * c), inputs.values(c));
    let (mut want, mut magnitude) = (wide(&before), absolute(&wide(&before)));
    reference::bias::backward(&wide(&dout), &mut want);
    reference::bias::backward(&absolute(&wide(&dout)), &mut magnitude);
    let slots = [
        kind.input("dout", [n, c], &dout),
        updated("dbias", [1, c], &before, near(want, rounding(n + 1), &magnitude)),
        scratch("scratch", [bias::BLOCKS, c]),
    ];
    check(devices, "bias.backward", &[n, c], slots, |pass, [dout, dbias, scratch]| {
        bias::backward(pass, Backward { dout, dbias, scratch })
    });
}

#[test]
pub fn backward() {
    let devices = devices();
    for shape in [[1, 1], [31, 5], [32, 8], [33, 12], [127, 63], [2048, 3], [2049, 7], [257, 768]] {
        run(&devices, FULL, shape);
    }
    let devices = devices_with_f16();
    for shape in [[1, 1], [33, 12], [127, 63], [257, 768]] {
        run(&devices, HALF, shape);
    }
}

#[test]
fn backward_in_windows() {
    run(&windowed(64 * 13 * 4), FULL, [257, 13]);
    run(&windowed(100 * 256), FULL, [257, 64]);
    run(&windowed(128 * 13 * 4), HALF, [257, 13]);
}

#[test]
fn backward_in_a_folded_grid() {
    run(&folded(), FULL, [2049, 401]);
}
