//! Cases of GELU.

use std::sync::Arc;

use crate::gpu::{Pass, Tensor};
use crate::ops::gelu::{self, BACKWARD, Backward, FORWARD, Forward};
use crate::reference;

use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &gelu::OPERATOR, tests, benches, minimum_cost: nothing_needed };

/// Rounding errors of the tanh in units of EPS. WGSL allows 3 + 2 |u| for exp(u); errors at |u| > 9 have no effect
/// because exp(-2 |u|) is below EPS there. The rest are errors of the argument, one division and some multiplications.
const TANH: f64 = 12.0;

/// Returns cases for both passes on (N, C) values, by default bell-shaped in (-6, 6).
pub fn passes(stored: Stored, shape: [usize; 2], inp: Option<Arc<Vec<f32>>>, sample: Sample) -> [Case; 2] {
    let n = shape[0] * shape[1];
    let of = |slot: fn(&'static str, [usize; 2]) -> Slot, name| slot(name, shape).of(stored.0);
    let what = || format!("{}x{}{}", shape[0], shape[1], stored.suffix());
    let drawn = move || inp.as_ref().map_or_else(|| stored.scaled(&mut Inputs::new(), n, 6.0), |inp| inp.to_vec());
    let again = drawn.clone();
    let forward = Case::new(
        FORWARD,
        what(),
        vec![of(Slot::input, "inp"), of(Slot::overwritten, "out")],
        |pass: &mut Pass, t: &[Tensor]| {
            let [inp, out] = each(t);
            gelu::forward(pass, Forward { inp, out })
        },
        move || {
            let (inp, at) = (drawn(), sample.elements(n));
            let x = wide(&gather(&inp, &at));
            let tolerance = x.iter().map(|x| TANH * EPS * x.abs()).collect();
            let want = stored.within(reference::gelu::forward(&x), tolerance).at(at, n);
            vec![stored.contents(&inp), Contents::unwritten(want)]
        },
    );
    let backward = Case::new(
        BACKWARD,
        what(),
        vec![of(Slot::input, "inp"), of(Slot::accumulated, "dout")],
        |pass: &mut Pass, t: &[Tensor]| {
            let [inp, dout] = each(t);
            gelu::backward(pass, Backward { inp, dout })
        },
        move || {
            let (inp, dout, at) = (again(), stored.values(&mut Inputs::new(), n), sample.elements(n));
            let (x, g) = (wide(&gather(&inp, &at)), wide(&gather(&dout, &at)));
            let tolerance = x.iter().zip(&g).map(|(x, g)| {
                // 1 - tanh^2 has an absolute error, which x^3 multiplies, unless tanh is exactly 1
                let slope = if x.abs() < 8.0 { 0.4 * x.abs() * (1.0 + 0.135 * x * x) } else { 0.0 };
                TANH * EPS * g.abs() * (1.0 + 2.0 * slope)
            });
            let want = stored.within(reference::gelu::backward(&g, &x), tolerance.collect()).at(at, n);
            vec![stored.contents(&inp), stored.contents(&dout).wanting(want)]
        },
    );
    [forward, backward]
}

fn tests(caps: &Caps, breadth: Breadth) -> Vec<Case> {
    let of = |kind, shape| passes(kind, shape, None, Sample::All);
    let mut cases = Vec::new();
    for kind in storage_types(caps) {
        let shapes = if kind == STORED_F32 {
            breadth.of([1, 2], &[[65, 4], [3, 5], [1, 1], [63, 1], [65, 3072]])
        } else {
            breadth.of([0, 3], &[[65, 4], [3, 5], [65, 24], [1, 1]])
        };
        cases.extend(shapes.into_iter().flat_map(|shape| of(kind, shape)));
    }
    if breadth >= Breadth::Full {
        let bound = [([257, 13], 64 * 13 * 4), ([257, 64], 100 * 256)];
        cases.extend(bound.into_iter().flat_map(|(shape, bytes)| of(STORED_F32, shape).map(|case| case.bound(bytes))));
        cases.extend([[401, 13], [401, 44]].into_iter().flat_map(|shape| of(STORED_F32, shape).map(Case::folded)));
        // values far from zero, at it and near it
        let mut values = vec![0.0, -0.0, 1e-30, -1e-30, 1e-4, -1e-4, 1e4, -1e4, 1e9, -1e9];
        values.extend((-80..80).map(|i| i as f32 / 8.0 + 0.01));
        let hard = |kind, values: &[f32]| passes(kind, [1, values.len()], Some(Arc::new(values.into())), Sample::All);
        cases.extend(hard(STORED_F32, &values));
        cases.extend(hard(STORED_F32, &values[1..]));
        if caps.f16 {
            // the largest and the smallest f16
            cases.extend(hard(STORED_F16, &STORED_F16.round(&[65_504.0, -65_504.0, 6e-8, -6e-8, 1e3, -1e3, 0.0])));
        }
    }
    cases
}

fn benches(shape: &BenchShape, _caps: &Caps) -> Vec<Case> {
    passes(STORED_F32, [shape.rows(), 4 * shape.config.channels], None, Sample::Subset).into()
}
