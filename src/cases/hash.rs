//! Cases of the hash of weights.

use crate::gpu::{Pass, Tensor};
use crate::ops::hash::{self, FORWARD, Forward};
use crate::reference;

use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &hash::OPERATOR, tests, benches, minimum_cost: nothing_needed };

/// Returns a case for values from position `first` on. One value may differ in its last bit, and the hash must differ
/// then.
pub fn forward(n: usize, first: u32, other: Option<usize>) -> Case {
    let slots = vec![Slot::input("values", [1, n]), Slot::words("sums", 2, Role::Accumulated)];
    let launch = move |pass: &mut Pass, t: &[Tensor]| {
        let [values, sums] = each(t);
        hash::forward(pass, Forward { values, first, sums })
    };
    let what = format!("{n} from {first}{}", other.map_or(String::new(), |at| format!(", {at} is another")));
    Case::new(FORWARD, what, slots, launch, move || {
        let mut values = Inputs::new().values(n);
        if let Some(at) = other {
            values[at] = f32::from_bits(values[at].to_bits() ^ 1);
        }
        let words: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
        let before = [7, u32::MAX];
        let mut sums = before;
        reference::hash::forward(&words, first, &mut sums);
        vec![Contents::floats(&values), Contents::integers(before.into()).wanting(bits(&sums))]
    })
}

fn tests(_caps: &Caps, breadth: Breadth) -> Vec<Case> {
    let shapes =
        [(4, 0, None), (16_500, 3, Some(16_499)), (1, 0, None), (255, u32::MAX - 7, None), (100_003, 9, Some(0))];
    let mut cases: Vec<Case> =
        breadth.of([1, 2], &shapes).into_iter().map(|(n, first, other)| forward(n, first, other)).collect();
    if breadth >= Breadth::Full {
        cases.push(forward(900_004, 1, None).folded());
    }
    cases
}

fn benches(shape: &BenchShape, _caps: &Caps) -> Vec<Case> {
    vec![forward(shape.flat, 0, None)]
}
