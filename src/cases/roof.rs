//! Cases of the roofs.

use crate::gpu::{Pass, Tensor};
use crate::ops::roof::{
    self, COPY, Copy, FED_TILES, FUSED, Fused, FusedScalar, MATRIX, MATRIX_FED, MATRIX_FLEXIBLE, Matrix, MatrixFed,
    MatrixFlexible, TILES,
};
use crate::reference;

use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &roof::OPERATOR, tests, benches: no_benches, minimum_cost: nothing_needed };

/// Distance from 1 to the next f16.
const EPS16: f64 = 1.0 / 1024.0;
/// Rounds of products. Their sums are multiples of 1/64 below 2^14, so they are exact.
const ROUNDS: u32 = 3;

/// Returns a case that copies `n` times 16 bytes, `each` of these pieces per invocation.
pub fn copy(n: usize, each: u32) -> Case {
    let slots = vec![Slot::input("inp", [n, 4]), Slot::overwritten("out", [n, 4])];
    let launch = move |pass: &mut Pass, t: &[Tensor]| roof::copy(pass, Copy { inp: &t[0], out: &t[1], each });
    Case::new(COPY, format!("{n} by {each}"), slots, launch, move || {
        let inp = Inputs::new().values(4 * n);
        let want = STORED_F32.within(wide(&inp), vec![0.0; 4 * n]);
        vec![Contents::floats(&inp), Contents::unwritten(want)]
    })
}

/// Returns a case for chains of multiply-adds in `n` invocations.
pub fn fused(scalar: FusedScalar, n: usize) -> Case {
    let (a, b) = (0.75, 0.125);
    let launch = move |pass: &mut Pass, t: &[Tensor]| {
        roof::fused(pass, Fused { out: &t[0], scalar, rounds: ROUNDS, a: a as f32, b: b as f32 })
    };
    Case::new(FUSED, format!("{n} {scalar:?}"), vec![Slot::overwritten("out", [n, 1])], launch, move || {
        let eps = if scalar == FusedScalar::F16 { EPS16 } else { f64::from(f32::EPSILON) };
        let want = reference::roof::fused(ROUNDS, a, b);
        // each of 16 chains converges to 1/2; roundings of earlier steps decay by a, so they add up to 1 / (1 - a)
        // roundings
        let tolerance = 16.0 * eps / (1.0 - a) + 16.0 * f64::from(f32::EPSILON);
        vec![Contents::unwritten(STORED_F32.within(vec![want; n], vec![tolerance; n]))]
    })
}

/// Returns a case for products of matrices in registers.
pub fn matrix(edge: u32) -> Case {
    let (e, groups) = (edge as usize, 5);
    let slots =
        vec![Slot::words("operands", 2 * e * e, Role::Input), Slot::overwritten("out", [groups * TILES * e, e])];
    let launch = move |pass: &mut Pass, t: &[Tensor]| {
        roof::matrix(pass, Matrix { operands: &t[0], out: &t[1], edge, rounds: ROUNDS })
    };
    Case::new(MATRIX, format!("{edge}x{edge}"), slots, launch, move || {
        let values: Vec<f32> = (0..4 * e * e).map(|i| ((i * i + i / 7) % 19) as f32 / 8.0).collect();
        let packed = STORED_F16.bits(&values).chunks(2).map(|two| two[0] | two[1] << 16).collect();
        let want = reference::roof::matrix(&wide(&values), ROUNDS, e).repeat(groups);
        let tolerance = vec![0.0; want.len()];
        vec![Contents::integers(packed), Contents::unwritten(STORED_F32.within(want, tolerance))]
    })
}

/// Returns a case for products from workgroup memory. Rounds read tiles that are `stride` apart; the wanted values are
/// for tiles that are `expected` apart.
pub fn matrix_fed(caps: &Caps, edge: u32, groups: usize, [stride, expected]: [u32; 2]) -> Case {
    let [m, n, k] = roof::fed_shape(caps);
    let lines = FED_TILES * (m + n);
    let slots = vec![Slot::input("operands", [lines, k]).of(Elem::F16), Slot::overwritten("out", [groups * m, n])];
    let launch = move |pass: &mut Pass, t: &[Tensor]| {
        roof::matrix_fed(pass, MatrixFed { operands: &t[0], out: &t[1], edge, rounds: ROUNDS, stride })
    };
    Case::new(MATRIX_FED, format!("{edge}x{edge} {groups} groups, stride {stride}"), slots, launch, move || {
        let values: Vec<f32> = (0..lines * k).map(|i| ((i * i + i / 7) % 19) as f32 / 8.0).collect();
        let want = reference::roof::matrix_fed(&wide(&values), ROUNDS, expected, [m, n, k]).repeat(groups);
        let tolerance = vec![0.0; want.len()];
        vec![STORED_F16.contents(&values), Contents::unwritten(STORED_F32.within(want, tolerance))]
    })
}

/// Returns a case for a product with `times` matrices of `shape` along M, N and K.
pub fn matrix_flexible(shape: [u32; 3], times: [usize; 3]) -> Case {
    let [m, n, k]: [usize; 3] = std::array::from_fn(|i| shape[i] as usize * times[i]);
    let half = |name, rows| Slot::input(name, [rows, k]).of(Elem::F16);
    let slots = vec![half("a", m), half("b", n), Slot::overwritten("out", [m, n])];
    let launch = move |pass: &mut Pass, t: &[Tensor]| {
        roof::matrix_flexible(pass, MatrixFlexible { a: &t[0], b: &t[1], out: &t[2], shape })
    };
    Case::new(MATRIX_FLEXIBLE, format!("{shape:?} {m}x{n}x{k}"), slots, launch, move || {
        let mut inputs = Inputs::new();
        let (a, b) = (STORED_F16.values(&mut inputs, m * k), STORED_F16.values(&mut inputs, n * k));
        let product = |a: &[f64], b: &[f64]| reference::matmul::forward(a, b, None, m, n, k);
        let (want, size) = (product(&wide(&a), &wide(&b)), product(&absolute(&wide(&a)), &absolute(&wide(&b))));
        vec![
            STORED_F16.contents(&a),
            STORED_F16.contents(&b),
            Contents::unwritten(STORED_F32.near(want, rounding(k), &size)),
        ]
    })
}

fn tests(caps: &Caps, breadth: Breadth) -> Vec<Case> {
    let copies = breadth.of([1, 1], &[(1000, 8), (1, 1), (3, 8), (64, 1), (1000, 3)]);
    let mut cases: Vec<Case> = copies.into_iter().map(|(n, each)| copy(n, each)).collect();
    let scalars = if caps.f16 { vec![FusedScalar::F32, FusedScalar::F16] } else { vec![FusedScalar::F32] };
    for scalar in scalars {
        cases.extend(breadth.of([1, 1], &[1000, 1, 64]).into_iter().map(|n| fused(scalar, n)));
    }
    let shapes = roof::flexible_shapes(caps).into_iter();
    cases.extend(shapes.flat_map(|shape| [[1, 1, 1], [3, 2, 5]].map(|times| matrix_flexible(shape, times))));
    if breadth < Breadth::Full {
        return cases;
    }
    cases.extend([copy(5000, 1).folded(), fused(FusedScalar::F32, 61 * 64 + 100).folded()]);
    for &edge in &caps.matrix_edges {
        cases.push(matrix(edge));
        if roof::without_fed(caps, edge).is_none() {
            cases.extend([(3, 1), (1, 2)].map(|(groups, stride)| matrix_fed(caps, edge, groups, [stride; 2])));
        }
    }
    cases
}
