//! Cases of adding partial sums.

use crate::gpu::{Pass, Tensor};
use crate::ops::sums::{self, ADD, PartialsMemory, Parts, Sums};
use crate::reference;

use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &sums::OPERATOR, tests, benches, minimum_cost: nothing_needed };

/// Sizes of a dispatch.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Number of parts of a weight's gradient (0 for rows alone), and its elements.
    pub parts: [usize; 2],
    /// Number of rows of sums (0 for parts alone), columns of a gradient, and number of gradients.
    pub rows: [usize; 3],
    /// Columns of a row that belong to no gradient.
    pub unused: usize,
}

impl Sizes {
    const fn new(parts: [usize; 2], rows: [usize; 3], unused: usize) -> Self {
        Self { parts, rows, unused }
    }

    /// Returns the number of gradients whose sums the rows hold.
    fn outs(&self) -> usize {
        if self.rows[0] > 0 { self.rows[2] } else { 0 }
    }

    fn stride(&self) -> usize {
        self.rows[1] * self.rows[2] + self.unused
    }

    /// Returns the number of sums of squares: one per workgroup. An invocation writes two elements, or two vectors of
    /// four.
    fn squares(&self, caps: &Caps) -> usize {
        let [parts, n] = self.parts;
        let lengths = [n, self.rows[1], self.stride()];
        let width = if lengths[..if self.rows[0] > 0 { 3 } else { 1 }].iter().all(|n| n % 4 == 0) { 4 } else { 1 };
        let group = if caps.software { caps.lanes as usize } else { 128 };
        if parts > 0 { n.div_ceil(2 * width * group) } else { 0 }
    }
}

const ALL: [&str; 4] = ["dweight", "out0", "out1", "out2"];

/// The sums of squares that a case wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Squares {
    /// This number of sums, whose total is checked.
    All(usize),
    /// Any number of unchecked sums, so that the case is the same for every adapter.
    Unchecked,
    /// None, because there is no memory for them.
    NoRoom,
}

/// Returns a case for `dweight += sum over parts`, with sums of its squares, and `out_k += sum over rows`.
pub fn add(sizes: Sizes, squares: Squares, begins: bool) -> Case {
    let Sizes { parts: [parts, n], rows: [rows, c, _], .. } = sizes;
    let mut slots = vec![Slot::input("scratch", [rows.max(1), sizes.stride().max(1)])];
    if parts > 0 {
        slots.extend([Slot::input("partials", [parts, n]), Slot::accumulated("dweight", [1, n])]);
        slots.push(match squares {
            Squares::All(count) => Slot::overwritten("squares", [count, 1]),
            Squares::Unchecked => Slot::scratch("squares", [n, 1]),
            Squares::NoRoom => Slot::scratch("squares", [1, 1]),
        });
    }
    let outs = sizes.outs();
    slots.extend(ALL[1..=outs].iter().map(|name| Slot::accumulated(name, [1, c])));
    let launch = move |pass: &mut Pass, t: &[Tensor]| {
        let (scratch, room) = (&t[0], (parts > 0).then(|| PartialsMemory { partials: &t[1], squares: &t[3] }));
        let mut sums = Sums::new(room, scratch);
        if rows > 0 {
            let gradients: Vec<&Tensor> = t[if parts > 0 { 4 } else { 1 }..].iter().collect();
            sums.queue_rows(rows, sizes.stride(), &gradients)?;
        }
        if parts > 0 {
            sums.add(pass, Parts { partials: &t[1], parts: parts as u32, dweight: &t[2], whole: true })?;
        }
        let squared = sums.finish(pass)?;
        let expected = parts > 0 && squares != Squares::NoRoom;
        assert_eq!(squared.of.len(), usize::from(expected), "gradients whose squares are summed");
        Ok(())
    };
    let fill = move || contents(&sizes, matches!(squares, Squares::All(_)), begins);
    let what = format!("{parts}x{n} and {rows}x{c}x{outs}");
    let case = Case::new(ADD, what, slots, launch, fill);
    let names: &[&str] = match (begins, parts > 0) {
        (false, _) => return case,
        (true, true) => &ALL[..=outs],
        (true, false) => &ALL[1..=outs],
    };
    case.beginning(names)
}

/// Adds the sum over `from`, (rows, C), to `before`. Returns it, its magnitudes, and the sum of its squares.
fn summed(from: &[f64], before: &[f64]) -> ([Vec<f64>; 2], f64) {
    let [mut want, mut magnitude] = [before.to_vec(), absolute(before)];
    let squares = reference::sums::add(from, &mut want);
    let _ = reference::sums::add(&absolute(from), &mut magnitude);
    ([want, magnitude], squares)
}

fn contents(sizes: &Sizes, squares: bool, begins: bool) -> Vec<Contents> {
    let Sizes { parts: [parts, n], rows: [rows, c, _], .. } = *sizes;
    let mut inputs = Inputs::new();
    let scratch = inputs.values(rows.max(1) * sizes.stride().max(1));
    let partials = inputs.values(parts * n);
    // squares are those of the new value: if the gradient begins, without its previous contents
    let mut before = |n: usize| if begins { vec![0.0; n] } else { inputs.values(n) };
    let mut all = vec![Contents::floats(&scratch)];
    if parts > 0 {
        let start = before(n);
        let ([want, magnitude], total) = summed(&wide(&partials), &wide(&start));
        let off = |(want, size): (&f64, &f64)| 2.0 * want.abs() * rounding(parts + 1) * EPS * size;
        let inherited: f64 = want.iter().zip(&magnitude).map(off).sum();
        let tolerance = inherited + total * (rounding(n) + 8.0) * EPS;
        let dweight = Contents::floats(&start).wanting(STORED_F32.near(want, rounding(parts + 1), &magnitude));
        let total = Contents::unwritten(Want::Total { want: total, tolerance });
        all.extend([Contents::floats(&partials), dweight, if squares { total } else { Contents::scratch() }]);
    }
    for out in 0..sizes.outs() {
        let start = before(c);
        let row = |row: usize| &scratch[row * sizes.stride() + out * c..][..c];
        let from: Vec<f64> = (0..rows).flat_map(|r| wide(row(r))).collect();
        let ([want, magnitude], _) = summed(&from, &wide(&start));
        all.push(Contents::floats(&start).wanting(STORED_F32.near(want, rounding(rows + 1), &magnitude)));
    }
    all
}

/// First sizes that need every kernel once: parts with rows of each number of gradients, parts alone and rows alone,
/// each in vectors and in elements. Then lengths around the number of elements that a workgroup writes.
const SIZES: [Sizes; 20] = [
    Sizes::new([3, 1028], [17, 36, 3], 0),
    Sizes::new([7, 600], [0, 0, 1], 0),
    Sizes::new([0, 0], [33, 12, 2], 12),
    Sizes::new([3, 257], [17, 33, 3], 0),
    Sizes::new([2, 4], [1, 4, 1], 0),
    Sizes::new([2, 519], [7, 257, 1], 0),
    Sizes::new([5, 1024], [64, 768, 2], 768),
    Sizes::new([2, 1024], [16, 33, 2], 33),
    Sizes::new([2, 255], [0, 0, 1], 0),
    Sizes::new([0, 0], [512, 132, 3], 0),
    Sizes::new([0, 0], [1, 1, 1], 0),
    Sizes::new([0, 0], [64, 768, 1], 0),
    Sizes::new([0, 0], [15, 7, 2], 7),
    Sizes::new([0, 0], [31, 129, 3], 0),
    Sizes::new([1, 1], [1, 1, 3], 0),
    Sizes::new([64, 36], [2, 4, 1], 0),
    Sizes::new([2, 127], [5, 8, 3], 0),
    Sizes::new([2, 8192], [5, 8, 3], 0),
    Sizes::new([2, 8196], [5, 8, 3], 0),
    Sizes::new([2, 100_003], [3, 5, 3], 2),
];

fn tests(caps: &Caps, breadth: Breadth) -> Vec<Case> {
    let of = |sizes: Sizes, begins| {
        let squares = Squares::All(sizes.squares(caps));
        add(sizes, squares, begins)
    };
    let sizes = breadth.of([2, 4], &SIZES);
    let mut cases: Vec<Case> = sizes.iter().map(|&sizes| of(sizes, false)).collect();
    if breadth >= Breadth::Full {
        cases.extend(sizes.iter().map(|&sizes| of(sizes, true)));
        // one gradient begins, the others do not
        cases.push(of(SIZES[0], false).beginning(&["out1"]));
        cases.push(of(SIZES[0], false).beginning(&["out0", "out2"]));
        cases.push(of(SIZES[2], false).beginning(&["out0"]));
        cases.push(of(Sizes::new([2, 60_000], [9, 5000, 3], 0), false).folded());
        // no memory for squares: the norm must then read the gradient
        cases.push(add(Sizes::new([2, 100_004], [3, 4, 1], 0), Squares::NoRoom, false));
    }
    cases
}

/// Returns a layer's two dispatches for its largest weights: with a bias's rows, and with a norm's.
fn benches(shape: &BenchShape, _caps: &Caps) -> Vec<Case> {
    let c = shape.config.channels;
    let of = |rows| add(Sizes::new([7, 4 * c * c], rows, 0), Squares::Unchecked, false);
    vec![of([7, 4 * c, 1]), of([512, c, 3])]
}
