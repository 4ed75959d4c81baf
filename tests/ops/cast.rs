use wgpt::ops::cast;
use wgpt::reference;

use crate::harness::{
    Device, HALF, Inputs, Want, Word, bits, check, devices_with_f16, folded, input, overwritten, wide,
};

/// The nearest f16, ties to even; past the largest, infinity.
fn run(devices: &[Device], values: &[f32]) {
    let n = values.len();
    let want = reference::cast::forward(&wide(values));
    let want = want.iter().map(|&x| Word::Bits(u32::from(half::f16::from_f64(x).to_bits()))).collect();
    let slots = [input("inp", [1, n], values), HALF.overwritten("out", [1, n], Want::Words(want))];
    check(devices, "cast.forward", &[n], slots, |pass, [inp, out]| cast::forward(pass, inp, out));
}

#[test]
pub fn forward() {
    let devices = devices_with_f16();
    for n in [1, 3, 4, 255, 260, 1024] {
        run(&devices, &Inputs::new().scaled(n, 100.0));
    }
    run(
        &devices,
        &[0.0, -0.0, 65_504.0, 65_519.0, 65_520.0, 1e9, -1e9, f32::INFINITY, 1.0 + 1.0 / 2048.0, 3.0 / 2048.0 + 1.0],
    );
}

/// Any row of any number of columns, whatever word it begins in.
#[test]
pub fn widen() {
    let devices = devices_with_f16();
    for [n, c] in [[1, 1], [3, 9], [5, 12], [5, 24], [7, 65]] {
        let values = HALF.values(&mut Inputs::new(), n * c);
        for row in [0, n / 2, n - 1] {
            let want: Vec<u32> = values[row * c..(row + 1) * c].iter().map(|x| x.to_bits()).collect();
            let slots = [HALF.input("inp", [n, c], &values), overwritten("out", [1, c], bits(&want))];
            check(&devices, "cast.widen", &[n, c, row], slots, |pass, [inp, out]| cast::widen(pass, inp, row, out));
        }
    }
}

#[test]
fn forward_in_a_folded_grid() {
    run(&folded(), &Inputs::new().values(64 * 300 + 1));
}
