//! Cases of the embedding.

use std::sync::Arc;

use crate::gpu::{Pass, Tensor};
use crate::ops::embedding::{self, BACKWARD, Backward, Buckets, FORWARD, FORWARD_AT, Forward};
use crate::reference;

use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &embedding::OPERATOR, tests, benches, minimum_cost };

/// A batch of tokens.
#[derive(Debug, Clone)]
pub struct Batch {
    /// V, T, B, C.
    pub shape: [usize; 4],
    /// Additional rows of the position table from T on.
    pub more: usize,
    /// (B T); random by default.
    pub tokens: Option<Arc<Vec<u32>>>,
    /// The rows or columns that are compared with the reference.
    pub sample: Sample,
}

impl Batch {
    /// Returns random tokens, and a `wpe` with three more rows than there are positions.
    pub fn new(shape: [usize; 4]) -> Self {
        Self { shape, more: 3, tokens: None, sample: Sample::All }
    }

    fn rows(&self) -> usize {
        self.shape[1] * self.shape[2]
    }

    fn tokens(&self) -> Vec<u32> {
        let random = || Inputs::new().tokens(self.rows(), self.shape[0]);
        self.tokens.as_ref().map_or_else(random, |tokens| tokens.to_vec())
    }

    fn what(&self) -> String {
        format!("{}x{}", self.rows(), self.shape[3])
    }

    /// Returns the slots of `wte` and `wpe`, or of their gradients.
    fn tables(&self, slot: fn(&'static str, [usize; 2]) -> Slot, names: [&'static str; 2]) -> [Slot; 2] {
        let [v, t, _, c] = self.shape;
        [slot(names[0], [v, c]), slot(names[1], [t + self.more, c])]
    }
}

/// Returns a case for the sum of rows from both tables.
pub fn forward(batch: Batch) -> Case {
    let [v, t, _, c] = batch.shape;
    let n = batch.rows();
    let mut slots = vec![Slot::words("tokens", n, Role::Input)];
    slots.extend(batch.tables(Slot::input, ["wte", "wpe"]));
    slots.push(Slot::overwritten("out", [n, c]));
    let launch = move |pass: &mut Pass, s: &[Tensor]| {
        let [tokens, wte, wpe, out] = each(s);
        embedding::forward(pass, Forward { tokens, wte, wpe, out, positions: t })
    };
    Case::new(FORWARD, batch.what(), slots, launch, move || {
        let (tokens, mut inputs) = (batch.tokens(), Inputs::new());
        let (wte, wpe) = (inputs.values(v * c), inputs.values((t + batch.more) * c));
        let rows = batch.sample.rows(n, c);
        // token and position of each sampled row
        let token_rows: Vec<usize> = rows.iter().map(|&row| tokens[row] as usize).collect();
        let position_rows: Vec<usize> = rows.iter().map(|&row| row % t).collect();
        let of = |table: &[f32], rows: &[usize]| wide(&gather_rows(table, rows, c));
        let own: Vec<u32> = (0..rows.len() as u32).collect();
        let (wte_rows, wpe_rows) = (of(&wte, &token_rows), of(&wpe, &position_rows));
        let out = reference::embedding::forward(&own, &wte_rows, &wpe_rows, rows.len(), c);
        let magnitude = absolute(&out);
        let want = STORED_F32.near(out, 1.0, &magnitude).at(positions(&rows, &all(c), c), n * c);
        let tables = [Contents::floats(&wte), Contents::floats(&wpe)];
        [vec![Contents::integers(tokens)], tables.into(), vec![Contents::unwritten(want)]].concat()
    })
}

/// Returns a case for B = 1, in which rows are positions from `at` on.
pub fn forward_at([v, t, n, c]: [usize; 4], at: usize) -> Case {
    let slots = vec![
        Slot::words("tokens", n, Role::Input),
        Slot::input("wte", [v, c]),
        Slot::input("wpe", [t + 3, c]),
        Slot::words("at", 1, Role::Input),
        Slot::overwritten("out", [n, c]),
    ];
    let launch = move |pass: &mut Pass, s: &[Tensor]| {
        let [tokens, wte, wpe, at, out] = each(s);
        embedding::forward_at(pass, Forward { tokens, wte, wpe, out, positions: t }, at)
    };
    Case::new(FORWARD_AT, format!("{n}x{c} from {at}"), slots, launch, move || {
        let (tokens, mut inputs) = (Inputs::new().tokens(n, v), Inputs::new());
        let (wte, wpe) = (inputs.values(v * c), inputs.values((t + 3) * c));
        let out = reference::embedding::forward(&tokens, &wide(&wte), &wide(&wpe[at * c..]), n, c);
        let magnitude = absolute(&out);
        vec![
            Contents::integers(tokens),
            Contents::floats(&wte),
            Contents::floats(&wpe),
            Contents::integers(vec![at as u32]),
            Contents::unwritten(STORED_F32.near(out, 1.0, &magnitude)),
        ]
    })
}

/// Returns a case for the gradients of both tables.
pub fn backward(batch: Batch) -> Case {
    let [v, t, b, c] = batch.shape;
    let n = batch.rows();
    let words = embedding::table_words(n);
    let mut slots = vec![Slot::words("table", words, Role::Input), Slot::words("order", n, Role::Input)];
    slots.push(Slot::input("dout", [n, c]));
    slots.extend(batch.tables(Slot::accumulated, ["dwte", "dwpe"]));
    slots.push(Slot::scratch("scratch", [embedding::scratch_rows(n), c]));
    let launch = move |pass: &mut Pass, s: &[Tensor]| {
        let [table, order, dout, dwte, dwpe, scratch] = each(s);
        let buckets = &Buckets { table: table.clone(), order: order.clone() };
        embedding::backward(pass, Backward { buckets, dout, dwte, dwpe, positions: t, scratch })
    };
    Case::new(BACKWARD, batch.what(), slots, launch, move || {
        let (tokens, mut inputs) = (batch.tokens(), Inputs::new());
        let (dout, dwte, dwpe) = (inputs.values(n * c), inputs.values(v * c), inputs.values((t + batch.more) * c));
        let columns = batch.sample.of(c, 8);
        let of = |x: &[f32]| wide(&gather_columns(x, &columns, c));
        let sums = |of: &dyn Fn(&[f32]) -> Vec<f64>| {
            let (mut wte, mut wpe) = (of(&dwte), of(&dwpe));
            reference::embedding::backward(&of(&dout), &tokens, &mut wte, &mut wpe, t, columns.len());
            [wte, wpe]
        };
        let ([wte, wpe], [wte_sizes, wpe_sizes]) = (sums(&of), sums(&|x| absolute(&of(x))));
        let at = |rows: usize| positions(&all(rows), &columns, c);
        let (rows, more) = (v, t + batch.more);
        // a token occurs as often as it is drawn, at most n times; a position occurs b times
        let wte = STORED_F32.near(wte, rounding(n + 1), &wte_sizes).at(at(rows), rows * c);
        let wpe = STORED_F32.near(wpe, rounding(b + 1), &wpe_sizes).at(at(more), more * c);
        let (mut table, mut order) = (vec![0; words], vec![0; n]);
        embedding::sort_tokens(&tokens, &mut table, &mut order);
        vec![
            Contents::integers(table),
            Contents::integers(order),
            Contents::floats(&dout),
            Contents::floats(&dwte).wanting(wte),
            Contents::floats(&dwpe).wanting(wpe),
            Contents::scratch(),
        ]
    })
}

fn passes(batch: &Batch) -> [Case; 2] {
    [forward(batch.clone()), backward(batch.clone())]
}

/// Returns a batch of 2,600 rows. One token has half of them, one has a full run, one has a full run and one row, and
/// the others are rare.
pub fn common_and_rare(c: usize) -> Batch {
    let counts = [(0, 1300), (9, 128), (40, 129)];
    let common = counts.into_iter().flat_map(|(token, count)| vec![token; count]);
    let by_token: Vec<u32> = common.chain((0..1043).map(|n| 100 + n * n % 2400)).collect();
    let tokens = (0..by_token.len()).map(|n| by_token[n * 1009 % by_token.len()]).collect();
    Batch { tokens: Some(Arc::new(tokens)), ..Batch::new([2600, 130, 20, c]) }
}

fn tests(_caps: &Caps, breadth: Breadth) -> Vec<Case> {
    let of = |shape| passes(&Batch::new(shape));
    let shapes = breadth.of([1, 2], &[[50, 13, 10, 16], [7, 5, 3, 13], [1, 1, 1, 1], [257, 31, 4, 768]]);
    let mut cases: Vec<Case> = shapes.into_iter().flat_map(of).collect();
    let starts = [([7, 9, 1, 12], 8), ([257, 70, 65, 13], 5), ([5, 1, 1, 1], 0), ([3, 1024, 1, 768], 1023)];
    cases.extend(breadth.of([1, 2], &starts).into_iter().map(|(shape, at)| forward_at(shape, at)));
    if breadth >= Breadth::Full {
        // repeated tokens
        for tokens in [vec![30; 130], (0..130).map(|n| if n % 7 == 0 { 0 } else { 29 }).collect()] {
            cases.extend(passes(&Batch { tokens: Some(Arc::new(tokens)), ..Batch::new([31, 13, 10, 20]) }));
        }
        // one token: one run, full or not, or several
        for (t, b) in [(1, 1), (127, 1), (128, 1), (129, 1), (100, 10), (130, 20)] {
            cases.push(backward(Batch { tokens: Some(Arc::new(vec![1; t * b])), ..Batch::new([3, t, b, 20]) }));
        }
        // gradients that begin: rows without a token or position become zero
        let begins = || backward(Batch::new([200, 13, 10, 16])).beginning(&["dwte", "dwpe"]);
        cases.extend([begins(), begins().bound(64 * 16 * 4)]);
        // whole, in three windows of each table that cut runs, and in folded grids
        for c in [16, 13] {
            let mixed = || backward(common_and_rare(c));
            cases.extend([mixed(), mixed().bound(1100 * c as u64 * 4), mixed().folded()]);
        }
        // windows of 64 rows: 4 of `wte`, 3 of the batch, which begin in the middle of sequences
        cases.extend(of([200, 13, 10, 16]).map(|case| case.bound(64 * 16 * 4)));
        // rows of 256 bytes would allow windows of any number of rows, but rows of `tokens` have 4 bytes
        cases.extend(of([150, 13, 10, 64]).map(|case| case.bound(100 * 256)));
        cases.push(forward_at([200, 61, 58, 12], 3).bound(64 * 12 * 4));
        cases.extend([[300, 67, 3, 44], [300, 67, 3, 43]].into_iter().flat_map(of).map(Case::folded));
    }
    cases
}

fn benches(shape: &BenchShape, _caps: &Caps) -> Vec<Case> {
    let sizes = [shape.config.padded_vocab(), shape.context, shape.batch, shape.config.channels];
    // padded rows are never drawn
    let tokens = Inputs::new().tokens(shape.rows(), shape.config.vocab);
    passes(&Batch { shape: sizes, more: 0, tokens: Some(Arc::new(tokens)), sample: Sample::Subset }).into()
}

fn minimum_cost(shape: &StepShape) -> Vec<MinimumCost> {
    let [micro, n, t, _, c, v, f, _] = shape.counts();
    vec![
        (FORWARD, micro * f * (n + 2 * n * c + t * c), micro * n * c),
        (BACKWARD, micro * f * (n + n * c + 2 * n.min(v) * c + 2 * t * c), micro * 2 * n * c),
    ]
}
