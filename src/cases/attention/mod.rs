//! Cases of attention.

mod expected;

use crate::gpu::{Pass, Tensor};
use crate::ops::attention::{self, AttentionSizes, BACKWARD, Backward, FORWARD, Forward, STEP, Step};

use super::*;
use expected::{EXACT, Expected, ROUNDED, expect};

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &attention::OPERATOR, tests, benches, minimum_cost };

/// B, T, NH, HS.
pub type Sizes = [usize; 4];
/// A function that returns the value at row t, part (query, key, value) and element of a head, or `None` for a random
/// value.
pub type Hard = fn(usize, usize, usize) -> Option<f32>;

/// The heads that attend.
#[derive(Debug, Clone)]
pub struct Heads {
    /// Element type of all tensors except statistics.
    pub stored: Stored,
    /// Whether weights and dscores may be rounded to f16, as on matrix units.
    pub rounded: bool,
    /// B, T, NH, HS.
    pub sizes: Sizes,
    /// Values that are not random.
    pub hard: Option<Hard>,
    /// The heads that are compared with the reference.
    pub sample: Sample,
}

impl Heads {
    /// Returns heads with queries, keys and values in (-2, 2), all of which are compared with the reference.
    pub fn new(stored: Stored, sizes: Sizes) -> Self {
        Self { stored, rounded: false, sizes, hard: None, sample: Sample::All }
    }

    fn what(&self) -> String {
        let [b, t, heads, hs] = self.sizes;
        format!("{b}x{t}x{heads} heads of {hs}{}", self.stored.suffix())
    }

    fn shape(&self) -> AttentionSizes {
        let [batch, positions, heads, _] = self.sizes;
        AttentionSizes { batch, positions, heads }
    }

    fn slot(&self, slot: fn(&'static str, [usize; 2]) -> Slot, name: &'static str, parts: usize) -> Slot {
        let [b, t, heads, hs] = self.sizes;
        slot(name, [b * t, parts * heads * hs]).of(self.stored.0)
    }

    fn statistics(&self, slot: fn(&'static str, [usize; 2]) -> Slot, name: &'static str) -> Slot {
        let [b, t, heads, _] = self.sizes;
        slot(name, [b * heads, t])
    }

    fn qkv(&self) -> Vec<f32> {
        let [b, t, heads, hs] = self.sizes;
        let c = heads * hs;
        let scale = if self.hard.is_some() { 1.0 } else { 2.0 };
        let mut qkv = self.stored.scaled(&mut Inputs::new(), b * t * 3 * c, scale);
        if let Some(hard) = self.hard {
            for (i, x) in qkv.iter_mut().enumerate() {
                *x = hard(i / (3 * c), i % (3 * c) / c, i % hs).unwrap_or(*x);
            }
        }
        qkv
    }

    fn dout(&self) -> Vec<f32> {
        let [b, t, heads, hs] = self.sizes;
        self.stored.values(&mut Inputs::new(), b * t * heads * hs)
    }

    /// Returns the positions of a head in a (B T, parts C) tensor, as (T, parts HS).
    fn positions(&self, head: usize, parts: usize) -> Vec<usize> {
        let [_, t, heads, hs] = self.sizes;
        let (b, h) = (head / heads, head % heads);
        let row = |at: usize| (b * t + at) * parts * heads * hs;
        let of =
            |at: usize| (0..parts).flat_map(move |part| (0..hs).map(move |e| row(at) + part * heads * hs + h * hs + e));
        (0..t).flat_map(of).collect()
    }

    fn sampled(&self) -> Vec<usize> {
        self.sample.of(self.sizes[0] * self.sizes[2], 3)
    }

    /// Returns the reference of the sampled heads.
    fn expected(&self, qkv: &[f32], dout: &[f32]) -> Vec<(usize, Expected)> {
        let ([_, t, _, hs], weights) = (self.sizes, if self.rounded { ROUNDED } else { EXACT });
        let of = |head: usize| {
            let gathered = |x: &[f32], parts| wide(&gather(x, &self.positions(head, parts)));
            (head, expect(self.stored, weights, [t, hs], &gathered(qkv, 3), &gathered(dout, 1)))
        };
        self.sampled().into_iter().map(of).collect()
    }
}

/// Combines the values and tolerances of some heads.
fn joined<'a>(stored: Stored, n: usize, heads: impl Iterator<Item = (Vec<usize>, &'a Vec<f64>, &'a Vec<f64>)>) -> Want {
    let mut elements: Vec<(usize, f64, f64)> = heads
        .flat_map(|(at, want, off)| at.into_iter().zip(want).zip(off).map(|((at, want), off)| (at, *want, *off)))
        .collect();
    elements.sort_unstable_by_key(|(at, ..)| *at);
    let at = elements.iter().map(|(at, ..)| *at).collect();
    let (want, off) = elements.iter().map(|(_, want, off)| (want, off)).unzip();
    stored.within(want, off).at(at, n)
}

/// Returns a case for `out` and `lse`.
pub fn forward(heads: Heads) -> Case {
    let slots = vec![
        heads.slot(Slot::input, "qkv", 3),
        heads.slot(Slot::overwritten, "out", 1),
        heads.statistics(Slot::overwritten, "lse"),
    ];
    let (shape, sizes) = (heads.shape(), [slots[1].elements(), slots[2].elements()]);
    let launch = move |pass: &mut Pass, s: &[Tensor]| {
        let [qkv, out, lse] = each(s);
        attention::forward(pass, Forward { shape, qkv, out, lse })
    };
    Case::new(FORWARD, heads.what(), slots, launch, move || {
        let (qkv, t) = (heads.qkv(), heads.sizes[1]);
        let all = heads.expected(&qkv, &heads.dout());
        let out = all.iter().map(|(head, e)| (heads.positions(*head, 1), &e.out, &e.out_off));
        let lse = all.iter().map(|(head, e)| ((head * t..(head + 1) * t).collect(), &e.lse, &e.lse_off));
        let (out, lse) = (joined(heads.stored, sizes[0], out), joined(STORED_F32, sizes[1], lse));
        vec![heads.stored.contents(&qkv), Contents::unwritten(out), Contents::unwritten(lse)]
    })
}

/// Returns a case for `dqkv`.
pub fn backward(heads: Heads) -> Case {
    let slots = vec![
        heads.slot(Slot::input, "dout", 1),
        heads.slot(Slot::input, "qkv", 3),
        heads.slot(Slot::input, "out", 1),
        heads.statistics(Slot::input, "lse"),
        heads.statistics(Slot::overwritten, "delta"),
        heads.slot(Slot::overwritten, "dqkv", 3),
    ];
    let (shape, sizes) = (heads.shape(), [slots[2].elements(), slots[3].elements(), slots[5].elements()]);
    let launch = move |pass: &mut Pass, s: &[Tensor]| {
        let [dout, qkv, out, lse, delta, dqkv] = each(s);
        attention::backward(pass, Backward { shape, dout, qkv, out, lse, delta, dqkv })
    };
    Case::new(BACKWARD, heads.what(), slots, launch, move || {
        let (qkv, dout, t) = (heads.qkv(), heads.dout(), heads.sizes[1]);
        let all = heads.expected(&qkv, &dout);
        // heads that are not sampled have random values of the same magnitude, and their results are not checked
        let mut out = heads.stored.values(&mut Inputs::new(), sizes[0]);
        let mut lse: Vec<f32> = (0..sizes[1]).map(|i| ((i % t + 1) as f32).ln()).collect();
        for (head, expected) in &all {
            let stored = heads.stored.round(&expected.out);
            heads.positions(*head, 1).into_iter().zip(stored).for_each(|(at, x)| out[at] = x);
            lse[head * t..(head + 1) * t].copy_from_slice(&STORED_F32.round(&expected.lse));
        }
        let dqkv = all.iter().map(|(head, e)| (heads.positions(*head, 3), &e.dqkv, &e.dqkv_off));
        vec![
            heads.stored.contents(&dout),
            heads.stored.contents(&qkv),
            heads.stored.contents(&out),
            Contents::floats(&lse),
            Contents::scratch(),
            Contents::unwritten(joined(heads.stored, sizes[2], dqkv)),
        ]
    })
}

/// Returns cases for both passes.
pub fn passes(heads: &Heads) -> [Case; 2] {
    [forward(heads.clone()), backward(heads.clone())]
}

/// Returns a case for position t of T, which is the last of t + 1 positions. The cache holds NaN where nothing may be
/// read: in row t, which gets the new keys and values, and in later rows.
pub fn step([t, positions, heads, hs]: Sizes, hard: Option<Hard>) -> Case {
    let c = heads * hs;
    let slots = vec![
        Slot::input("qkv", [1, 3 * c]),
        Slot::words("at", 1, Role::Input),
        Slot::accumulated("cache", [positions, 3 * c]),
        Slot::overwritten("out", [1, c]),
    ];
    let launch = move |pass: &mut Pass, s: &[Tensor]| {
        let [qkv, at, cache, out] = each(s);
        attention::step(pass, Step { heads, qkv, at, cache, out })
    };
    Case::new(STEP, format!("{t} of {positions}, {heads} heads of {hs}"), slots, launch, move || {
        let past = Heads { hard, ..Heads::new(STORED_F32, [1, t + 1, heads, hs]) };
        let (qkv, dout) = (past.qkv(), vec![0.0; (t + 1) * c]);
        let all = past.expected(&qkv, &dout);
        let last = |head: usize| (head * hs..(head + 1) * hs).collect();
        let ends: Vec<_> =
            all.iter().map(|(head, e)| (*head, e.out[t * hs..].to_vec(), e.out_off[t * hs..].to_vec())).collect();
        let out = joined(STORED_F32, c, ends.iter().map(|(head, want, off)| (last(*head), want, off)));
        let mut cache = qkv[..t * 3 * c].to_vec();
        cache.resize(positions * 3 * c, f32::NAN);
        let mut after = STORED_F32.bits(&cache);
        let written = t * 3 * c + c..(t + 1) * 3 * c;
        after[written.clone()].copy_from_slice(&STORED_F32.bits(&qkv[written]));
        vec![
            Contents::floats(&qkv[t * 3 * c..]),
            Contents::integers(vec![t as u32]),
            Contents::floats(&cache).wanting(bits(&after)),
            Contents::unwritten(out),
        ]
    })
}

/// Sizes with small heads, one for each size whose kernels are listed: odd rows, whole `Vec`; one position, one block
/// and several; a long sequence.
const SMALL: [Sizes; 6] =
    [[2, 67, 2, 8], [2, 13, 3, 11], [1, 1, 2, 16], [2, 130, 1, 16], [3, 7, 2, 13], [1, 1031, 1, 16]];
/// Sizes with large heads, including GPT-2's 12 and 1558M's 25.
const LARGE: [Sizes; 6] =
    [[1, 19, 1, 32], [1, 127, 12, 64], [1, 64, 25, 64], [1, 65, 1, 80], [1, 17, 2, 96], [1, 33, 1, 128]];
/// Sizes for f16 without matrix units.
const F16_SHAPES: [Sizes; 4] = [[2, 33, 1, 8], [1, 31, 2, 16], [2, 13, 3, 11], [3, 7, 2, 13]];
/// The same for which CPU drivers take minutes. Except for one type the kernels' text is that of f32.
const SLOW_F16_SHAPES: [Sizes; 5] = [[1, 127, 2, 64], [1, 19, 1, 32], [1, 65, 1, 80], [1, 17, 2, 96], [1, 33, 1, 128]];
/// Position, T, NH, HS: fewer keys than lanes, as many as lanes, one more.
const STEPS: [Sizes; 6] =
    [[16, 40, 2, 64], [0, 1, 1, 8], [1, 4, 3, 11], [15, 16, 2, 13], [9, 10, 2, 16], [300, 301, 2, 8]];
/// The same with large heads.
const LARGE_STEPS: [Sizes; 5] =
    [[33, 40, 1, 32], [17, 18, 1, 80], [128, 129, 2, 96], [129, 140, 1, 128], [1023, 1024, 2, 64]];

fn tests(caps: &Caps, breadth: Breadth) -> Vec<Case> {
    let full = |sizes| passes(&Heads::new(STORED_F32, sizes));
    let half = |sizes| passes(&Heads::new(STORED_F16, sizes));
    let mut cases: Vec<Case> = breadth.of([1, 1], &[SMALL, LARGE].concat()).into_iter().flat_map(full).collect();
    cases.extend(breadth.of([1, 1], &[&STEPS[..], &LARGE_STEPS].concat()).into_iter().map(|sizes| step(sizes, None)));
    if breadth >= Breadth::Full {
        cases.extend([full([3, 64, 1, 8]).map(|case| case.bound(64 * 24 * 4))].into_iter().flatten());
        // statistics of an odd number of positions and heads, which cannot be bound sequence by sequence
        cases.extend(full([7, 64, 3, 8]).map(|case| case.bound(3 * 64 * 24 * 4 * 3)));
        cases.extend(full([5, 43, 1, 128]).map(|case| case.bound(128 * 129 * 4)));
        cases.extend(full([3, 67, 7, 8]).map(Case::folded));
        // limits as on GPUs that also draw the screen: dispatches of several heads, of one, and of parts of a head's
        // rows
        for most_flops in [2_000_000, 600_000, 100_000, 1] {
            cases.extend(full([2, 130, 3, 8]).map(|case| case.on(move |caps| caps.most_flops = most_flops)));
        }
        let hard = |hard| passes(&Heads { hard: Some(hard), ..Heads::new(STORED_F32, [1, 37, 2, 16]) });
        cases.extend([far as Hard, equal as Hard].into_iter().flat_map(hard));
        cases.extend(passes(&Heads { hard: Some(far), ..Heads::new(STORED_F32, [1, 37, 2, 11]) }));
        cases.push(step([50, 51, 2, 16], Some(far)));
    }
    if caps.f16 && caps.matrix_edges.is_empty() {
        cases.extend(breadth.of([0, 1], &F16_SHAPES).into_iter().flat_map(half));
        if breadth >= Breadth::Full {
            cases.extend(half([9, 64, 1, 11]).map(|case| case.bound(2 * 64 * 33 * 4 + 1)));
            let slow = if breadth == Breadth::All { 5 } else { usize::from(caps.software) };
            cases.extend(SLOW_F16_SHAPES[..slow].iter().flat_map(|&sizes| half(sizes)));
        }
    }
    if caps.f16 && !caps.matrix_edges.is_empty() && caps.emulated_edge.is_none() {
        cases.extend(on_matrices(caps, breadth));
    }
    cases
}

/// Returns values for which `q . k` is +-1e4 before scaling, so that weights are 0 and 1, or equal. The sums are exact.
pub fn far(row: usize, part: usize, e: usize) -> Option<f32> {
    match part {
        0 => Some(if e == row % 3 { 100.0 } else { 0.0 }),
        1 => Some(if e < 3 { [100.0, -100.0][(row + e) % 2] } else { 0.0 }),
        _ => None,
    }
}

/// Returns values with equal keys, so that every position attends equally to all before it.
pub fn equal(_row: usize, part: usize, _e: usize) -> Option<f32> {
    (part == 1).then_some(0.25)
}

/// Returns values for which scores grow by a half from key to key, by 32 in total over 65 positions.
pub fn growing(row: usize, part: usize, e: usize) -> Option<f32> {
    match part {
        0 => Some(if e == 0 { 2.0 } else { 0.0 }),
        1 => Some(if e == 0 { row as f32 } else { 0.0 }),
        _ => None,
    }
}

/// Returns cases for both passes on matrix units. Software adapters run the kernels for GPUs with matrices of `edge`
/// and `kib` KiB of workgroup memory; they have more workgroup memory than they report.
pub fn of_blocks(caps: &Caps, sizes: Sizes, hard: Option<Hard>, [edge, kib]: [u32; 2]) -> [Case; 2] {
    let software = caps.software;
    let change = move |caps: &mut Caps| {
        if software {
            (caps.emulated_edge, caps.max_workgroup_bytes) = (Some(edge), kib << 10);
        }
    };
    passes(&Heads { hard, rounded: true, ..Heads::new(STORED_F16, sizes) }).map(|case| case.on(change))
}

/// Returns the edge of the matrices, and KiB of workgroup memory into which blocks of 16 by 16 fit and hardly larger
/// ones: CPU drivers compile their kernels fastest.
fn small_blocks(caps: &Caps) -> [u32; 2] {
    // without functions the products go through workgroup memory too
    [8, if caps.matrix_functions && caps.backend != "Metal" { 4 } else { 6 }]
}

fn on_matrices(caps: &Caps, breadth: Breadth) -> Vec<Case> {
    if breadth < Breadth::Full {
        let narrow = breadth == Breadth::Narrow;
        return if narrow { of_blocks(caps, [2, 67, 2, 16], None, small_blocks(caps)).into() } else { Vec::new() };
    }
    let mut cases = Vec::new();
    // one position more than the blocks, and one less. CPU drivers take long for the kernels of another length: those of
    // a single position are checked where `wgpt tune` is tested.
    let others: &[[usize; 3]] =
        if caps.software { &[] } else { &[[2, 1, 3], [2, 31, 3], [2, 257, 3], [1, 1031, 1], [1, 131, 2]] };
    for &[b, t, heads] in [[2, 65, 3], [1, 1023, 1]].iter().chain(others) {
        cases.extend(of_blocks(caps, [b, t, heads, 16], None, small_blocks(caps)));
    }
    // scores that exceed earlier ones by thousands or by a little, again and again; sums that each block rescales
    for hard in [far as Hard, growing, equal] {
        cases.extend(of_blocks(caps, [2, 65, 3, 16], Some(hard), small_blocks(caps)));
    }
    if caps.software {
        // CPU drivers take long for heads that are several matrices wide, and longest for GPT-2's
        let [forward, _] = of_blocks(caps, [1, 67, 2, 32], None, [8, 6]);
        let [_, backward] = of_blocks(caps, [1, 67, 2, 48], None, [8, 8]);
        cases.extend([forward, backward]);
    } else {
        cases.extend(of_blocks(caps, [1, 67, 2, 64], None, [8, 9]));
    }
    if breadth == Breadth::All {
        if caps.software {
            cases.extend(of_blocks(caps, [1, 67, 2, 64], None, [8, 9]));
            cases.extend(of_blocks(caps, [1, 150, 2, 16], None, [16, 5]));
        }
        // multiples of the blocks and a prime, as long as other models' contexts
        for t in [2048, 4093, 4096] {
            cases.extend(of_blocks(caps, [1, t, 1, 16], None, [8, 16]));
        }
        for hs in [32, 48, 64, 80, 96, 112, 128] {
            let blocks: &[[u32; 2]] =
                if caps.software { &[[8, 16], [16, 16], [16, 32], [16, 48], [16, 64]] } else { &[[8, 16]] };
            cases.extend(blocks.iter().flat_map(|blocks| of_blocks(caps, [1, 150, 1, hs], None, *blocks)));
        }
    }
    cases
}

fn benches(shape: &BenchShape, caps: &Caps) -> Vec<Case> {
    let config = &shape.config;
    let sizes = [shape.batch, shape.context, config.heads, config.head_size()];
    storage_types(caps).into_iter().flat_map(|kind| passes(&bench(kind, sizes))).collect()
}

/// Returns the heads that benches measure.
pub fn bench(stored: Stored, sizes: Sizes) -> Heads {
    Heads { rounded: stored == STORED_F16, sample: Sample::Subset, ..Heads::new(stored, sizes) }
}

fn minimum_cost(shape: &StepShape) -> Vec<MinimumCost> {
    let [micro, n, t, l, c, _, f, s] = shape.counts();
    let rows = n * shape.config.heads as u64;
    // operations of one product over the causal half
    let half = n * (t + 1) * c;
    vec![
        (FORWARD, micro * l * (s * 4 * n * c + f * rows), micro * l * 2 * half),
        (BACKWARD, micro * l * (s * 8 * n * c + f * rows), micro * l * (5 * half + 2 * n * c)),
    ]
}
