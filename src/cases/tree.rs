//! Cases of the tree that sums over ranks.

use crate::gpu::{Pass, Tensor};
use crate::ops::tree::{self, ADD, Add};
use crate::reference;

use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &tree::OPERATOR, tests, benches, minimum_cost: nothing_needed };

/// Returns a case for `left += right` of (1, N).
pub fn add(n: usize, sample: Sample) -> Case {
    let slots = vec![Slot::accumulated("left", [1, n]), Slot::input("right", [1, n])];
    let launch = |pass: &mut Pass, t: &[Tensor]| {
        let [left, right] = each(t);
        tree::add(pass, Add { left, right })
    };
    Case::new(ADD, n.to_string(), slots, launch, move || {
        let mut inputs = Inputs::new();
        let (left, right) = (inputs.values(n), inputs.values(n));
        let at = sample.elements(n);
        let mut want = wide(&gather(&left, &at));
        reference::tree::add(&mut want, &wide(&gather(&right, &at)));
        let magnitude = absolute(&want);
        let left = Contents::floats(&left).wanting(STORED_F32.near(want, 1.0, &magnitude).at(at, n));
        vec![left, Contents::floats(&right)]
    })
}

fn tests(_caps: &Caps, breadth: Breadth) -> Vec<Case> {
    let lengths = breadth.of([1, 2], &[260, 127, 1, 4, 256, 255, 100_003]);
    let mut cases: Vec<Case> = lengths.into_iter().map(|n| add(n, Sample::All)).collect();
    if breadth >= Breadth::Full {
        cases.push(add(900_004, Sample::All).folded());
    }
    cases
}

fn benches(shape: &BenchShape, _caps: &Caps) -> Vec<Case> {
    vec![add(shape.flat, Sample::Subset)]
}
