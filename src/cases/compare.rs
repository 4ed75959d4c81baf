//! Cases of the comparisons.

use std::ops::Range;

use crate::gpu::{Pass, Tensor};
use crate::ops::compare::{self, FORWARD, Forward, NEAR, NO_DIFFERENCE, NONE_FAR_YET, Near};
use crate::reference;

use super::*;

/// The operator's cases.
pub static CASES: Cases =
    Cases { operator: &compare::OPERATOR, tests, benches: no_benches, minimum_cost: nothing_needed };

/// Returns a case for words of which some differ. Equal NaNs do not differ; 0 and -0 do.
pub fn forward(n: usize, differing: &'static [usize]) -> Case {
    let words = |name| Slot::words(name, n, Role::Input);
    let slots = vec![words("first"), words("again"), Slot::words("result", NO_DIFFERENCE.len(), Role::Accumulated)];
    let launch = |pass: &mut Pass, t: &[Tensor]| {
        let [first, again, result] = each(t);
        compare::forward(pass, Forward { first, again, result })
    };
    Case::new(FORWARD, format!("{n} with {} others", differing.len()), slots, launch, move || {
        let word = |i: u32| if i.is_multiple_of(3) { 0x7fc0_0001 } else { i % 2 * 0x8000_0000 };
        let first: Vec<u32> = (0..n as u32).map(word).collect();
        let mut again = first.clone();
        differing.iter().for_each(|&i| again[i] ^= 0x8000_0000);
        let want = bits(&reference::compare::forward(&first, &again));
        let result = Contents::integers(NO_DIFFERENCE.into()).wanting(want);
        vec![Contents::integers(first), Contents::integers(again), result]
    })
}

const TOLERANCE: f32 = 0.25;
const STORED: f32 = 0.125;

/// Returns a case that compares some columns of numbers. All are within tolerance except those that are planted.
pub fn near(stored: Stored, [rows, line]: [usize; 2], columns: Range<usize>, planted: &'static [(usize, f32)]) -> Case {
    let what = format!("{rows}x{line}{}, columns {columns:?}, {} planted", stored.suffix(), planted.len());
    let compared = columns.clone();
    near_case(stored, [rows, line], what, [TOLERANCE, STORED], columns, move || {
        let mut inputs = Inputs::new();
        let want = stored.values(&mut inputs, rows * line);
        let off = |i: usize| [0.0, 0.125, -0.125][i % 3];
        let sums: Vec<f64> = want.iter().enumerate().map(|(i, x)| f64::from(x + off(i))).collect();
        let mut got = stored.round(&sums);
        // some zeros, where they are within tolerance
        got.iter_mut().zip(&want).filter(|(_, x)| x.abs() < 0.1).for_each(|(got, _)| *got = 0.0);
        planted.iter().for_each(|&(i, value)| got[i] = value);
        let tolerances = [TOLERANCE, STORED].map(f64::from);
        let expected = reference::compare::near(&wide(&got), &wide(&want), line, compared.clone(), tolerances);
        (got, want, expected)
    })
}

/// Returns a case in which every finite f16, including subnormal ones, is compared with itself.
fn every_half() -> Case {
    let numbers = || (0..=u16::MAX).map(|i| half::f16::from_bits(i).to_f32()).filter(|x| x.is_finite());
    let n = numbers().count();
    near_case(STORED_F16, [1, n], "every f16".into(), [0.0; 2], 0..n, move || {
        let nonzero = numbers().filter(|x| *x != 0.0).count() as u32;
        (numbers().collect(), numbers().collect(), [0, u32::MAX, nonzero])
    })
}

fn near_case(
    stored: Stored,
    shape: [usize; 2],
    what: String,
    [tolerance, rounded]: [f32; 2],
    columns: Range<usize>,
    fill: impl Fn() -> (Vec<f32>, Vec<f32>, [u32; 3]) + Send + Sync + 'static,
) -> Case {
    let result = Slot::words("result", NONE_FAR_YET.len(), Role::Accumulated);
    let slots = vec![Slot::input("got", shape).of(stored.0), Slot::input("want", shape), result];
    let launch = move |pass: &mut Pass, t: &[Tensor]| {
        let ([got, want, result], columns) = (each(t), columns.clone());
        compare::near(pass, Near { got, want, columns, tolerance, stored: rounded, result })
    };
    Case::new(NEAR, what, slots, launch, move || {
        let (got, want, expected) = fill();
        let result = Contents::integers(NONE_FAR_YET.into()).wanting(bits(&expected));
        vec![stored.contents(&got), Contents::floats(&want), result]
    })
}

fn tests(_caps: &Caps, breadth: Breadth) -> Vec<Case> {
    const ODD: [(usize, f32); 5] =
        [(5, f32::INFINITY), (6, f32::NEG_INFINITY), (64, f32::NAN), (4103, -3.0), (8190, 5.0)];
    let words: [(usize, &[usize]); 6] =
        [(1000, &[999, 500, 501, 17]), (65, &[64, 3]), (1, &[]), (1, &[0]), (63, &[62]), (4096, &[])];
    let mut cases: Vec<Case> =
        breadth.of([1, 2], &words).into_iter().map(|(n, differing)| forward(n, differing)).collect();
    type Planted = &'static [(usize, f32)];
    let numbers: [([usize; 2], Planted); 5] = [
        ([63, 131], &ODD),
        ([1, 1], &[]),
        ([1, 1], &[(0, f32::NAN)]),
        ([3, 7], &[(20, 9.0)]),
        ([4000, 64], &[(1000 * 64 + 63, 2.0)]),
    ];
    for (kind, (shape, planted)) in [STORED_F32, STORED_F16]
        .into_iter()
        .flat_map(|kind| breadth.of([1, 1], &numbers).into_iter().map(move |case| (kind, case)))
    {
        let line = shape[1];
        cases.extend([0..line, 0..line.div_ceil(2), line / 2..line].map(|columns| near(kind, shape, columns, planted)));
    }
    if breadth >= Breadth::Full {
        cases.push(forward(61 * 64 + 100, &[61 * 64 + 99, 61 * 64 + 7]).folded());
        cases.push(near(STORED_F16, [70, 4096], 0..4096, &[(69 * 4096 + 4095, 2.0)]).folded());
        // positions count from the start of the whole tensor
        let planted: Planted = &[(499 * 32 + 31, 4.0), (300 * 32, -4.0)];
        cases.extend([STORED_F32, STORED_F16].map(|kind| near(kind, [500, 32], 0..32, planted).bound(128 * 32 * 4)));
        cases.push(every_half());
    }
    cases
}
