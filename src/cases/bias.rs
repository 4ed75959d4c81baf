//! Cases of the gradient of a bias.

use crate::gpu::{Pass, Tensor};
use crate::ops::bias::{self, BACKWARD, Backward};
use crate::ops::sums::Sums;
use crate::reference;

use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &bias::OPERATOR, tests, benches, minimum_cost };

/// Returns a case for `dbias[c] += sum over n of dout[n,c]`.
pub fn backward(stored: Stored, [n, c]: [usize; 2], sample: Sample) -> Case {
    let slots = vec![
        Slot::input("dout", [n, c]).of(stored.0),
        Slot::accumulated("dbias", [1, c]),
        Slot::scratch("scratch", [bias::BLOCKS, c]),
    ];
    let launch = |pass: &mut Pass, t: &[Tensor]| {
        let [dout, dbias, scratch] = each(t);
        let mut sums = Sums::new(None, scratch);
        bias::backward(pass, Backward { dout, dbias }, &mut sums)?;
        sums.finish(pass).map(|_| ())
    };
    Case::new(BACKWARD, format!("{n}x{c}{}", stored.suffix()), slots, launch, move || {
        let mut inputs = Inputs::new();
        let (dout, before) = (stored.values(&mut inputs, n * c), inputs.values(c));
        let columns = sample.of(c, 64);
        let (g, start) = (wide(&gather_columns(&dout, &columns, c)), wide(&gather(&before, &columns)));
        let (mut want, mut magnitude) = (start.clone(), absolute(&start));
        reference::bias::backward(&g, &mut want);
        reference::bias::backward(&absolute(&g), &mut magnitude);
        let want = STORED_F32.near(want, rounding(n + 1), &magnitude).at(columns, c);
        vec![stored.contents(&dout), Contents::floats(&before).wanting(want), Contents::scratch()]
    })
}

fn tests(caps: &Caps, breadth: Breadth) -> Vec<Case> {
    let of = |kind, shape| backward(kind, shape, Sample::All);
    // one block of rows and several, with one row less and more, and the largest number of blocks
    let full = [[33, 12], [127, 63], [1, 1], [31, 5], [32, 8], [2048, 3], [2049, 7], [257, 768]];
    let mut cases = Vec::new();
    for kind in storage_types(caps) {
        let shapes = if kind == STORED_F32 {
            breadth.of([1, 2], &full)
        } else {
            breadth.of([0, 3], &[[33, 12], [127, 63], [33, 16], [257, 768]])
        };
        cases.extend(shapes.into_iter().map(|shape| of(kind, shape)));
    }
    if breadth >= Breadth::Full {
        cases.extend([of(STORED_F32, [257, 13]).bound(64 * 13 * 4), of(STORED_F32, [257, 64]).bound(100 * 256)]);
        cases.extend(caps.f16.then(|| of(STORED_F16, [257, 13]).bound(128 * 13 * 4)));
        cases.push(of(STORED_F32, [2049, 401]).folded());
        cases.push(of(STORED_F32, [257, 13]).beginning(&["dbias"]));
        cases.push(of(STORED_F32, [257, 13]).beginning(&["dbias"]).bound(64 * 13 * 4));
    }
    cases
}

fn benches(shape: &BenchShape, _caps: &Caps) -> Vec<Case> {
    vec![backward(STORED_F32, [shape.rows(), 4 * shape.config.channels], Sample::Subset)]
}

/// Returns the minimum for the biases of qkv and fc. Layernorm's backward sums those of the projections.
fn minimum_cost(shape: &StepShape) -> Vec<MinimumCost> {
    let [micro, n, _, l, c, _, f, s] = shape.counts();
    vec![(BACKWARD, micro * (s * n + f * 2) * l * 7 * c, micro * n * l * 7 * c)]
}
