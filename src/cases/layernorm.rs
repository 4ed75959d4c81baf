//! Cases of layer normalisation.

use std::sync::Arc;

use crate::gpu::{Pass, Tensor};
use crate::ops::layernorm::{self, AFFINE, Affine, BACKWARD, Backward, FORWARD, Forward};
use crate::ops::sums::Sums;
use crate::reference;

use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &layernorm::OPERATOR, tests, benches, minimum_cost };

/// The rows that are normalised.
#[derive(Debug, Clone)]
pub struct Rows {
    /// Element type of all tensors except `inp`, `rstd` and parameters.
    pub stored: Stored,
    /// N, C.
    pub shape: [usize; 2],
    /// (N, C); by default bell-shaped.
    pub inp: Option<Arc<Vec<f32>>>,
    /// The rows and columns that are compared with the reference.
    pub sample: Sample,
}

impl Rows {
    /// Returns random rows, all of which are compared with the reference.
    pub fn new(stored: Stored, shape: [usize; 2]) -> Self {
        Self { stored, shape, inp: None, sample: Sample::All }
    }

    fn what(&self) -> String {
        format!("{}x{}{}", self.shape[0], self.shape[1], self.stored.suffix())
    }

    fn matrix(&self, slot: fn(&'static str, [usize; 2]) -> Slot, name: &'static str) -> Slot {
        slot(name, self.shape).of(self.stored.0)
    }

    fn row(&self, name: &'static str) -> Slot {
        Slot::input(name, [1, self.shape[1]])
    }

    fn data(&self) -> Data {
        let [n, c] = self.shape;
        let mut inputs = Inputs::new();
        let [weight, bias, dweight, dbias, dsum] = [(); 5].map(|()| inputs.values(c));
        let [dout, dinp] = [(); 2].map(|()| self.stored.values(&mut inputs, n * c));
        let inp = self.inp.as_ref().map_or_else(|| Inputs::new().values(n * c), |inp| inp.to_vec());
        Data { inp, weight, bias, dweight, dbias, dsum, dout, dinp }
    }

    /// Returns the values that the forward pass keeps, as they are stored: `xhat` and `rstd` of all rows.
    fn kept(&self, data: &Data) -> (Vec<f32>, Vec<f32>) {
        let want =
            reference::layernorm::forward(&wide(&data.inp), &wide(&data.weight), &wide(&data.bias), self.shape[1]);
        (self.stored.round(&want.xhat), STORED_F32.round(&want.rstd))
    }
}

/// All inputs of the passes.
struct Data {
    inp: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    dweight: Vec<f32>,
    dbias: Vec<f32>,
    dsum: Vec<f32>,
    dout: Vec<f32>,
    dinp: Vec<f32>,
}

fn average(values: impl Iterator<Item = f64>, c: usize) -> f64 {
    values.sum::<f64>() / c as f64
}

/// Returns the budgets of the forward pass for `xhat`, `out` and `rstd`.
fn budgets(kind: Stored, inp: &[f64], weight: &[f64], want: &reference::layernorm::Forward, c: usize) -> [Vec<f64>; 3] {
    let (sum, [mut xhats, mut outs, mut rstds]) = (rounding(c) * EPS, [vec![], vec![], vec![]]);
    for (n, row) in inp.chunks(c).enumerate() {
        let (mean, rstd) = (want.mean[n], want.rstd[n]);
        let mean_off = (sum + EPS) * average(row.iter().map(|x| x.abs()), c);
        let off = |x: f64| mean_off + EPS * (x - mean).abs();
        let variance = average(row.iter().map(|x| (x - mean).powi(2)), c);
        let variance_off = average(row.iter().map(|&x| (2.0 * (x - mean).abs() + off(x)) * off(x)), c) + sum * variance;
        // WGSL allows 2.5 ulp for the division and some ulp for the root
        let rstd_off = 0.5 * variance_off * rstd * rstd + 6.0 * EPS;
        rstds.push(rstd_off * rstd);
        for (i, &x) in row.iter().enumerate() {
            let xhat = (x - mean) * rstd;
            let xhat_off = rstd * off(x) + xhat.abs() * (rstd_off + 2.0 * EPS);
            // the result is computed from the stored, rounded normalised value
            let stored =
                (xhat.abs() + xhat_off) * kind.rounding() + if kind == STORED_F16 { 2f64.powi(-25) } else { 0.0 };
            xhats.push(xhat_off);
            outs.push(weight[i].abs() * (xhat_off + stored + EPS * xhat.abs()) + EPS * want.out[n * c + i].abs());
        }
    }
    [xhats, outs, rstds]
}

/// Returns a case for `xhat`, `out` and `rstd` from `inp`.
pub fn forward(rows: Rows) -> Case {
    let [n, c] = rows.shape;
    let slots = vec![
        Slot::input("inp", [n, c]),
        rows.row("weight"),
        rows.row("bias"),
        rows.matrix(Slot::overwritten, "xhat"),
        rows.matrix(Slot::overwritten, "out"),
        Slot::overwritten("rstd", [n, 1]),
    ];
    let launch = |pass: &mut Pass, t: &[Tensor]| {
        let [inp, weight, bias, xhat, out, rstd] = each(t);
        layernorm::forward(pass, Forward { inp, weight, bias, xhat, out, rstd })
    };
    Case::new(FORWARD, rows.what(), slots, launch, move || {
        let (data, kind) = (rows.data(), rows.stored);
        let sampled = rows.sample.rows(n, c);
        let (x, w) = (wide(&gather_rows(&data.inp, &sampled, c)), wide(&data.weight));
        let want = reference::layernorm::forward(&x, &w, &wide(&data.bias), c);
        let [xhat_off, out_off, rstd_off] = budgets(kind, &x, &w, &want, c);
        let at = positions(&sampled, &all(c), c);
        vec![
            Contents::floats(&data.inp),
            Contents::floats(&data.weight),
            Contents::floats(&data.bias),
            Contents::unwritten(kind.within(want.xhat, xhat_off).at(at.clone(), n * c)),
            Contents::unwritten(kind.within(want.out, out_off).at(at, n * c)),
            Contents::unwritten(STORED_F32.within(want.rstd, rstd_off).at(sampled, n)),
        ]
    })
}

/// Returns a case for `out` from `xhat`.
pub fn affine(rows: Rows) -> Case {
    let [n, c] = rows.shape;
    let slots = vec![
        rows.matrix(Slot::input, "xhat"),
        rows.row("weight"),
        rows.row("bias"),
        rows.matrix(Slot::overwritten, "out"),
    ];
    let launch = |pass: &mut Pass, t: &[Tensor]| {
        let [xhat, weight, bias, out] = each(t);
        layernorm::affine(pass, Affine { xhat, weight, bias, out })
    };
    Case::new(AFFINE, rows.what(), slots, launch, move || {
        let (data, kind) = (rows.data(), rows.stored);
        let (xhat, _) = rows.kept(&data);
        let sampled = rows.sample.rows(n, c);
        let (kept, w) = (wide(&gather_rows(&xhat, &sampled, c)), wide(&data.weight));
        let out = reference::layernorm::affine(&kept, &w, &wide(&data.bias), c);
        let magnitude: Vec<f64> = (0..out.len()).map(|i| (kept[i] * w[i % c]).abs() + out[i].abs()).collect();
        vec![
            kind.contents(&xhat),
            Contents::floats(&data.weight),
            Contents::floats(&data.bias),
            Contents::unwritten(kind.near(out, 1.0, &magnitude).at(positions(&sampled, &all(c), c), n * c)),
        ]
    })
}

/// A variant of the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// `dinp` accumulates, and its sums are a bias's gradient.
    Summed,
    /// `dinp` accumulates.
    Plain,
    /// `dinp` is overwritten, and summed.
    First,
    /// The result goes to `dinp_f32` as f32, and is summed: only where `dinp` is f16.
    Last,
}

/// Returns a case for `dinp`, `dweight`, `dbias` and, except for [`End::Plain`], `dsum`.
pub fn backward(rows: Rows, end: End) -> Case {
    let [n, c] = rows.shape;
    let variant = match end {
        End::Summed => "",
        End::Plain => " without dsum",
        End::First => ", where the gradient begins",
        End::Last => ", where it ends",
    };
    let mut slots = vec![
        rows.matrix(Slot::input, "dout"),
        rows.matrix(Slot::input, "xhat"),
        rows.row("weight"),
        Slot::input("rstd", [n, 1]),
        rows.matrix(if end == End::First { Slot::overwritten } else { Slot::accumulated }, "dinp"),
        Slot::accumulated("dweight", [1, c]),
        Slot::accumulated("dbias", [1, c]),
        Slot::scratch("scratch", [layernorm::SCRATCH_ROWS, c]),
    ];
    if end != End::Plain {
        slots.push(Slot::accumulated("dsum", [1, c]));
    }
    if end == End::Last {
        slots.push(Slot::overwritten("dinp_f32", [n, c]));
    }
    let launch = move |pass: &mut Pass, t: &[Tensor]| {
        let [dout, xhat, weight, rstd, dinp, dweight, dbias, scratch] = each(t);
        let (overwrite_dinp, dsum, dinp_f32) = (end == End::First, t.get(8), t.get(9));
        let mut sums = Sums::new(None, scratch);
        let io = Backward { dout, xhat, weight, rstd, dinp, overwrite_dinp, dinp_f32, dweight, dbias, dsum };
        layernorm::backward(pass, io, &mut sums)?;
        sums.finish(pass).map(|_| ())
    };
    Case::new(BACKWARD, rows.what(), slots, launch, move || backward_contents(&rows, end)).variant(variant)
}

/// Returns `dinp` of some rows, and its budget.
fn dinp(end: End, data: &Data, kept: (&[f32], &[f32]), sampled: &[usize], c: usize) -> [Vec<f64>; 2] {
    let of = |x: &[f32]| wide(&gather_rows(x, sampled, c));
    let (g, xhat, w, rstd) = (of(&data.dout), of(kept.0), wide(&data.weight), wide(&gather(kept.1, sampled)));
    let [mut dweight, mut dbias] = [(); 2].map(|()| vec![0.0; c]);
    let delta = reference::layernorm::backward(&g, &xhat, &rstd, &w, &mut dweight, &mut dbias, c);
    let before = if end == End::First { vec![0.0; g.len()] } else { of(&data.dinp) };
    let want: Vec<f64> = before.iter().zip(&delta).map(|(before, delta)| before + delta).collect();
    let (sum, mut off) = (rounding(c + 8) * EPS, Vec::with_capacity(g.len()));
    for (r, rstd) in rstd.iter().enumerate() {
        let scaled = |i: usize| (w[i] * g[r * c + i]).abs();
        let xhat = |i: usize| xhat[r * c + i].abs();
        let average_g = average((0..c).map(scaled), c);
        let average_gx = average((0..c).map(|i| scaled(i) * xhat(i)), c);
        for i in 0..c {
            let delta_off = rstd * sum * (scaled(i) + average_g + xhat(i) * average_gx);
            off.push(delta_off + EPS * (want[r * c + i].abs() + before[r * c + i].abs()));
        }
    }
    [want, off]
}

fn backward_contents(rows: &Rows, end: End) -> Vec<Contents> {
    let ([n, c], kind, data) = (rows.shape, rows.stored, rows.data());
    let (xhat, rstd) = rows.kept(&data);
    let column = rounding(n + 8) * EPS;
    // each of the parameters' gradients depends on one column alone
    let columns = rows.sample.of(c, 64);
    let of = |x: &[f32]| wide(&gather_columns(x, &columns, c));
    let (g, kept) = (of(&data.dout), of(&xhat));
    let (ones, all_ones) = (vec![1.0; columns.len()], vec![1.0; n]);
    let sums = |of: fn(f64) -> f64| {
        let each = |x: &[f64]| x.iter().map(|x| of(*x)).collect::<Vec<f64>>();
        let [mut dweight, mut dbias] = [&data.dweight, &data.dbias].map(|x| each(&wide(&gather(x, &columns))));
        let (g, kept) = (each(&g), each(&kept));
        let _ = reference::layernorm::backward(&g, &kept, &all_ones, &ones, &mut dweight, &mut dbias, columns.len());
        [dweight, dbias]
    };
    let (wanted, magnitudes) = (sums(|x| x), sums(f64::abs));
    let [dweight_want, dbias_want] = [0, 1].map(|i| {
        let off = magnitudes[i].iter().map(|m| column * m).collect();
        STORED_F32.within(wanted[i].clone(), off).at(columns.clone(), c)
    });
    // sums of `dinp` need every row
    let sampled = if end == End::Plain { rows.sample.rows(n, c) } else { all(n) };
    let [want, off] = dinp(end, &data, (&xhat, &rstd), &sampled, c);
    let mut dsum = wide(&data.dsum);
    let mut dsum_off: Vec<f64> = dsum.iter().map(|x| column * x.abs()).collect();
    if end != End::Plain {
        for (i, (want, off)) in want.iter().zip(&off).enumerate() {
            dsum[i % c] += want;
            dsum_off[i % c] += off + column * want.abs();
        }
    }
    let at = positions(&sampled, &all(c), c);
    let before = kind.contents(&data.dinp);
    let (dinp, wide_out) = match end {
        End::Last => (before.clone().wanting(bits(&before.before)), Some(STORED_F32.within(want, off).at(at, n * c))),
        End::First => (Contents::unwritten(kind.within(want, off).at(at, n * c)), None),
        _ => (before.wanting(kind.within(want, off).at(at, n * c)), None),
    };
    let mut contents = vec![
        kind.contents(&data.dout),
        kind.contents(&xhat),
        Contents::floats(&data.weight),
        Contents::floats(&rstd),
        dinp,
        Contents::floats(&data.dweight).wanting(dweight_want),
        Contents::floats(&data.dbias).wanting(dbias_want),
        Contents::scratch(),
    ];
    if end != End::Plain {
        contents.push(Contents::floats(&data.dsum).wanting(STORED_F32.within(dsum, dsum_off)));
    }
    contents.extend(wide_out.map(Contents::unwritten));
    contents
}

/// Returns cases for all passes on some rows.
pub fn passes(rows: &Rows) -> Vec<Case> {
    let mut cases = vec![forward(rows.clone()), affine(rows.clone())];
    let ends = [End::Summed, End::Plain, End::First, End::Last];
    let possible = ends.into_iter().filter(|end| *end != End::Last || rows.stored == STORED_F16);
    cases.extend(possible.map(|end| backward(rows.clone(), end)));
    cases
}

fn tests(caps: &Caps, breadth: Breadth) -> Vec<Case> {
    // rows of one Vec per lane, and one more; fewer columns than lanes; many blocks of rows; teams of 32 and of 64
    // and, for software adapters, rows of several Vec per lane, whose loops their drivers unroll
    let long = if caps.software { [65, 256] } else { [65, 768] };
    let full = [[7, 132], [31, 129], [3, 5], [2049, 7], long, [64, 1600]];
    let half = [[3, 136], [7, 132], [31, 129], [3, 5], long];
    let mut cases = Vec::new();
    for kind in storage_types(caps) {
        let shapes = if kind == STORED_F32 { breadth.of([1, 1], &full) } else { breadth.of([0, 1], &half) };
        cases.extend(shapes.into_iter().flat_map(|shape| passes(&Rows::new(kind, shape))));
    }
    if breadth >= Breadth::Full {
        let full = |shape| passes(&Rows::new(STORED_F32, shape));
        cases.extend(full([161, 129]).into_iter().map(|case| case.bound(64 * 129 * 4)));
        // windows of these tensors could begin at any row, but `rstd` has only 4 bytes per row
        cases.extend(full([257, 132]).into_iter().map(|case| case.bound(100 * 132 * 4)));
        cases.extend([[401, 129], [401, 132]].into_iter().flat_map(full).map(Case::folded));
        // gradients that begin, in one window and in several
        let begins = |end, names| backward(Rows::new(STORED_F32, [161, 132]), end).beginning(names);
        cases.push(begins(End::Plain, &["dweight", "dbias"]));
        cases.push(begins(End::Summed, &["dweight", "dbias", "dsum"]));
        cases.push(begins(End::Plain, &["dweight"]).bound(64 * 132 * 4));
        let half = if caps.f16 { passes(&Rows::new(STORED_F16, [261, 129])) } else { Vec::new() };
        cases.extend(half.into_iter().map(|case| case.bound(128 * 129 * 4)));
    }
    cases
}

fn benches(shape: &BenchShape, _caps: &Caps) -> Vec<Case> {
    let rows = Rows { sample: Sample::Subset, ..Rows::new(STORED_F32, [shape.rows(), shape.config.channels]) };
    vec![forward(rows.clone()), backward(rows, End::Plain)]
}

fn minimum_cost(shape: &StepShape) -> Vec<MinimumCost> {
    let [micro, n, _, l, c, _, f, s] = shape.counts();
    let norms = 2 * l + 1;
    let forward = norms * (f * (n * c + n + 2 * c) + s * 2 * n * c);
    // the first norm does not read the gradient, the last writes it as f32
    let backward = norms * (f * (n + 7 * c) + 4 * s * n * c) + f * n * c - 2 * s * n * c;
    vec![
        (FORWARD, micro * forward, micro * norms * 8 * n * c),
        (BACKWARD, micro * backward, micro * norms * 16 * n * c),
    ]
}
