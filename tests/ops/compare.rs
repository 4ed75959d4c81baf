use wgpt::gpu::Elem;
use wgpt::gpu::{Gpu, Pass};
use wgpt::ops::compare::{self, Forward, NONE, NONE_FAR, Near};
use wgpt::reference;

use crate::harness::{
    Device, FULL, HALF, Inputs, Kind, bits, check, devices, folded, input, integers, wide, windowed, words,
};

fn run(devices: &[Device], n: usize, differing: &[usize]) {
    // a NaN is no different from the same NaN, and 0 is from -0
    let first: Vec<u32> = (0..n as u32).map(|i| if i % 3 == 0 { 0x7fc0_0001 } else { i % 2 * 0x8000_0000 }).collect();
    let mut again = first.clone();
    differing.iter().for_each(|&i| again[i] ^= 0x8000_0000);
    let want = bits(&reference::compare::forward(&first, &again));
    let slots = [integers("first", [n, 1], &first), integers("again", [n, 1], &again), words("result", &NONE, want)];
    check(devices, "compare.forward", &[n, differing.len()], slots, |pass, [first, again, result]| {
        compare::forward(pass, Forward { first, again, result })
    });
}

#[test]
pub fn forward() {
    let devices = devices();
    for (n, differing) in
        [(1, &[][..]), (1, &[0]), (63, &[62]), (65, &[64, 3]), (1000, &[999, 500, 501, 17]), (4096, &[])]
    {
        run(&devices, n, differing);
    }
}

#[test]
fn forward_in_a_folded_grid() {
    run(&folded(), 61 * 64 + 100, &[61 * 64 + 99, 61 * 64 + 7]);
}

#[test]
fn other_sizes_are_refused() {
    let gpu = Gpu::dry(wgpt::gpu::Caps::webgpu_defaults());
    let t = |n| gpu.tensor("t", n, 1, Elem::U32).expect("memory");
    let (first, again, result) = (&t(8), &t(9), &t(2));
    let error = compare::forward(&mut Pass::new(&gpu), Forward { first, again, result }).expect_err("sizes");
    assert_eq!(error.to_string(), "compare.forward: `again` has 36 bytes, expected 32");
}

const TOLERANCE: f32 = 0.25;
const STORED: f32 = 0.125;

/// Numbers that are near but for those planted at some positions.
fn run_near(devices: &[Device], kind: Kind, [rows, line]: [usize; 2], planted: &[(usize, f32)]) {
    let mut inputs = Inputs::new();
    let want = kind.values(&mut inputs, rows * line);
    let off = |i: usize| [0.0, 0.125, -0.125][i % 3];
    let mut got: Vec<f32> = want.iter().enumerate().map(|(i, x)| kind.round(&[f64::from(x + off(i))])[0]).collect();
    // zeros where they are near
    got.iter_mut().zip(&want).filter(|(_, x)| x.abs() < 0.1).for_each(|(got, _)| *got = 0.0);
    planted.iter().for_each(|&(i, value)| got[i] = value);
    for columns in [0..line, 0..line.div_ceil(2), line / 2..line] {
        let tolerances = [TOLERANCE, STORED].map(f64::from);
        let expected = reference::compare::near(&wide(&got), &wide(&want), line, columns.clone(), tolerances);
        let slots = [
            kind.input("got", [rows, line], &got),
            input("want", [rows, line], &want),
            words("result", &NONE_FAR, bits(&expected)),
        ];
        check(devices, "compare.near", &[rows, line], slots, |pass, [got, want, result]| {
            let columns = columns.clone();
            compare::near(pass, Near { got, want, columns, tolerance: TOLERANCE, stored: STORED, result })
        });
    }
}

#[test]
pub fn near() {
    let devices = devices();
    for kind in [FULL, HALF] {
        run_near(&devices, kind, [1, 1], &[]);
        run_near(&devices, kind, [1, 1], &[(0, f32::NAN)]);
        run_near(&devices, kind, [3, 7], &[(20, 9.0)]);
        let odd = [(5, f32::INFINITY), (6, f32::NEG_INFINITY), (64, f32::NAN), (4103, -3.0), (8190, 5.0)];
        run_near(&devices, kind, [63, 131], &odd);
        run_near(&devices, kind, [4 * 1000, 64], &[(1000 * 64 + 63, 2.0)]);
    }
}

#[test]
fn near_in_a_folded_grid() {
    run_near(&folded(), HALF, [70, 64 * 64], &[(69 * 64 * 64 + 4095, 2.0)]);
}

/// Positions are those in the whole tensor.
#[test]
fn near_in_windows() {
    for kind in [FULL, HALF] {
        run_near(&windowed(128 * 32 * 4), kind, [500, 32], &[(499 * 32 + 31, 4.0), (300 * 32, -4.0)]);
    }
}

/// Every f16 that is a number is near itself, subnormal ones too.
#[test]
fn every_half_is_near_itself() {
    let numbers: Vec<f32> =
        (0..=u16::MAX).map(|i| half::f16::from_bits(i).to_f32()).filter(|x| x.is_finite()).collect();
    let nonzero = numbers.iter().filter(|x| **x != 0.0).count() as u32;
    let slots = [
        HALF.input("got", [1, numbers.len()], &numbers),
        input("want", [1, numbers.len()], &numbers),
        words("result", &NONE_FAR, bits(&[0, u32::MAX, nonzero])),
    ];
    check(&devices(), "compare.near", &[numbers.len()], slots, |pass, [got, want, result]| {
        let columns = 0..numbers.len();
        compare::near(pass, Near { got, want, columns, tolerance: 0.0, stored: 0.0, result })
    });
}
