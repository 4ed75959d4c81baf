//! Cases of the residual connection.

use crate::gpu::{Pass, Tensor};
use crate::ops::residual::{self, FORWARD, Forward};
use crate::reference;

use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &residual::OPERATOR, tests, benches, minimum_cost: nothing_needed };

/// Returns a case for `out = inp + branch` of (N, C).
pub fn forward(shape: [usize; 2], sample: Sample) -> Case {
    let n = shape[0] * shape[1];
    let slots = vec![Slot::input("inp", shape), Slot::input("branch", shape), Slot::overwritten("out", shape)];
    let launch = |pass: &mut Pass, t: &[Tensor]| {
        let [inp, branch, out] = each(t);
        residual::forward(pass, Forward { inp, branch, out })
    };
    Case::new(FORWARD, format!("{}x{}", shape[0], shape[1]), slots, launch, move || {
        let mut inputs = Inputs::new();
        let (inp, branch) = (inputs.values(n), inputs.values(n));
        let at = sample.elements(n);
        let out = reference::residual::forward(&wide(&gather(&inp, &at)), &wide(&gather(&branch, &at)));
        let magnitude = absolute(&out);
        let want = STORED_F32.near(out, 1.0, &magnitude).at(at, n);
        vec![Contents::floats(&inp), Contents::floats(&branch), Contents::unwritten(want)]
    })
}

fn tests(_caps: &Caps, breadth: Breadth) -> Vec<Case> {
    let of = |shape| forward(shape, Sample::All);
    let mut cases: Vec<Case> =
        breadth.of([1, 2], &[[65, 4], [3, 5], [1, 1], [64, 4], [257, 768]]).into_iter().map(of).collect();
    if breadth >= Breadth::Full {
        cases.extend([of([257, 13]).bound(64 * 13 * 4), of([257, 64]).bound(100 * 256)]);
        cases.extend([of([401, 13]).folded(), of([401, 44]).folded()]);
    }
    cases
}

fn benches(shape: &BenchShape, _caps: &Caps) -> Vec<Case> {
    vec![forward([shape.rows(), shape.config.channels], Sample::Subset)]
}
