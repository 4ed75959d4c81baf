//! Cases of the conversions between f32 and f16.

use std::sync::Arc;

use crate::gpu::{Pass, Tensor};
use crate::ops::cast::{self, FORWARD, WIDEN};
use crate::reference;

use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &cast::OPERATOR, tests, benches: no_benches, minimum_cost: nothing_needed };

/// Returns a case for rounding to f16: to the nearest, ties to even, and to infinity past the largest f16.
pub fn forward(values: Arc<Vec<f32>>) -> Case {
    let n = values.len();
    let slots = vec![Slot::input("inp", [1, n]), Slot::overwritten("out", [1, n]).of(STORED_F16.0)];
    let launch = |pass: &mut Pass, t: &[Tensor]| cast::forward(pass, &t[0], &t[1]);
    Case::new(FORWARD, format!("{n}"), slots, launch, move || {
        let want = reference::cast::forward(&wide(&values)).into_iter();
        let want = want.map(|x| Word::Bits(u32::from(half::f16::from_f64(x).to_bits()))).collect();
        vec![Contents::floats(&values), Contents::unwritten(Want::Words(want))]
    })
}

/// Returns a case for one row of a matrix, which may start in the middle of a word.
pub fn widen([n, c]: [usize; 2], row: usize) -> Case {
    let slots = vec![Slot::input("inp", [n, c]).of(STORED_F16.0), Slot::overwritten("out", [1, c])];
    let launch = move |pass: &mut Pass, t: &[Tensor]| cast::widen(pass, &t[0], row, &t[1]);
    Case::new(WIDEN, format!("row {row} of {n}x{c}"), slots, launch, move || {
        let values = STORED_F16.values(&mut Inputs::new(), n * c);
        let want: Vec<u32> = values[row * c..(row + 1) * c].iter().map(|x| x.to_bits()).collect();
        vec![STORED_F16.contents(&values), Contents::unwritten(bits(&want))]
    })
}

fn tests(caps: &Caps, breadth: Breadth) -> Vec<Case> {
    if !caps.f16 {
        return Vec::new();
    }
    let random = |n| forward(Arc::new(Inputs::new().scaled(n, 100.0)));
    let mut cases: Vec<Case> = breadth.of([1, 3], &[260, 3, 1024, 1, 4, 255]).into_iter().map(random).collect();
    let rows = breadth.of([1, 3], &[[5, 12], [3, 9], [5, 24], [1, 1], [7, 65]]);
    cases.extend(rows.into_iter().flat_map(|[n, c]| [0, n / 2, n - 1].map(|row| widen([n, c], row))));
    if breadth >= Breadth::Full {
        let mut hard = vec![0.0, -0.0, 65_504.0, 65_519.0, 65_520.0, 1e9, -1e9, f32::INFINITY];
        hard.extend([1.0 + 1.0 / 2048.0, 3.0 / 2048.0 + 1.0]);
        cases.extend([forward(Arc::new(hard)), random(64 * 300 + 1).folded()]);
    }
    cases
}
