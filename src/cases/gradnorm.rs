//! Cases of the norm of the gradients.

use crate::gpu::{Pass, Tensor};
use crate::model::PARAMS;
use crate::ops::gradnorm::{self, BLOCK, FORWARD, Forward};
use crate::reference;

use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &gradnorm::OPERATOR, tests, benches, minimum_cost };

/// Returns the number of partial sums for windows of these lengths: one per 16,384 elements, at most 1,024 per window.
fn partials(lengths: &[usize]) -> usize {
    lengths.iter().map(|n| n.div_ceil(16_384).clamp(1, 1024)).sum()
}

/// Returns a case for windows of these lengths. The sum of the partial sums must be the squared norm.
pub fn forward(lengths: &[usize], scale: f64) -> Case {
    let groups = partials(lengths);
    let mut slots = vec![Slot::overwritten("partials", [groups, 1])];
    slots.extend(lengths.iter().map(|&n| Slot::input("grads", [1, n])));
    let launch =
        |pass: &mut Pass, t: &[Tensor]| gradnorm::forward(pass, Forward { grads: &t[1..], partials: &t[0], first: 0 });
    let what = lengths.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
    let lengths = lengths.to_vec();
    Case::new(FORWARD, what, slots, launch, move || {
        let mut inputs = Inputs::new();
        let grads: Vec<Vec<f32>> = lengths.iter().map(|&n| inputs.scaled(n, scale)).collect();
        let norm = reference::gradnorm::forward(&grads.iter().map(|g| wide(g)).collect::<Vec<_>>());
        let want = norm.powi(2);
        // each lane sums its part of a workgroup's share in a chain; all terms are positive
        let longest = lengths.iter().copied().max().unwrap_or(1);
        let tolerance = want * (rounding(longest) + 8.0) * EPS;
        let partials = Contents::unwritten(Want::Total { want, tolerance });
        let mut contents = vec![partials];
        contents.extend(grads.iter().map(|g| Contents::floats(g)));
        contents
    })
}

/// Returns a case for the blocks of `n` elements. Each result is the sum of squares of a block's own elements; the
/// first `first` rows stay unchanged.
pub fn blocks(n: usize, first: usize) -> Case {
    let count = n.div_ceil(BLOCK);
    let slots = vec![Slot::accumulated("partials", [first + count, 1]), Slot::input("grads", [1, n])];
    let launch = move |pass: &mut Pass, t: &[Tensor]| gradnorm::forward_blocks(pass, &t[1], &t[0], first);
    Case::new(FORWARD, format!("{n} blocks"), slots, launch, move || {
        let mut inputs = Inputs::new();
        let grads = inputs.values(n);
        let before = inputs.values(first + count);
        let mut want = wide(&before);
        for (block, want) in grads.chunks(BLOCK).zip(&mut want[first..]) {
            *want = reference::gradnorm::forward(&[wide(block)]).powi(2);
        }
        let magnitude = absolute(&want);
        // all terms are positive
        let terms = rounding(n.min(BLOCK)) + 8.0;
        vec![Contents::floats(&before).wanting(STORED_F32.near(want, terms, &magnitude)), Contents::floats(&grads)]
    })
}

fn tests(_caps: &Caps, breadth: Breadth) -> Vec<Case> {
    let lengths = [[127, 128, 129], [1, 3, 4], [16_383, 16_384, 16_388], [1, 300_007, 400_000]];
    let mut cases: Vec<Case> = breadth.of([1, 1], &lengths).into_iter().map(|n| forward(&n, 1.0)).collect();
    if breadth >= Breadth::Full {
        cases.extend([1e4, 1e-12].map(|scale| forward(&[13, 768, 1], scale)));
        cases.push(forward(&[65 * 16_384, 3, 65 * 16_384 + 1], 1.0).folded());
        cases.push(blocks(5 * BLOCK + 1, 3).folded());
    }
    let lengths = breadth.of([1, 1], &[BLOCK + 128, 127, BLOCK, 3 * BLOCK + 1]);
    cases.extend(lengths.into_iter().zip([0, 2, 5, 1]).map(|(n, first)| blocks(n, first)));
    cases
}

fn benches(shape: &BenchShape, _caps: &Caps) -> Vec<Case> {
    vec![forward(&[shape.flat], 1.0)]
}

/// Returns the number of parameters of the model.
pub(super) fn parameters(shape: &StepShape) -> u64 {
    PARAMS.iter().map(|p| (p.elements(&shape.config) * p.copies(&shape.config)) as u64).sum()
}

fn minimum_cost(shape: &StepShape) -> Vec<MinimumCost> {
    vec![(FORWARD, Elem::F32.bytes() * parameters(shape), 2 * parameters(shape))]
}
