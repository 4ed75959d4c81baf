//! Cases of the loss and its gradient.

use std::sync::Arc;

use crate::gpu::{Pass, Tensor};
use crate::ops::crossentropy::{self, FORWARD, FORWARD_BACKWARD, Forward, IGNORED};
use crate::ops::stepcontrol::State;
use crate::reference;

use super::stepcontrol::{STATE, control, state_slot};
use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &crossentropy::OPERATOR, tests, benches, minimum_cost };

/// The weight of a row, as in a step of 500 tokens with a loss scale of 2; in f16 also with a loss scale of 4,096.
const SCALE: f32 = 1e-3;
const LOSS_SCALE: [f32; 2] = [2.0, 4096.0];

/// A chunk of logits.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Element type of the logits.
    pub stored: Stored,
    /// n, V, Vp.
    pub shape: [usize; 3],
    /// Logits (n, V) and targets; random if not given.
    pub given: Option<Arc<(Vec<f32>, Vec<u32>)>>,
    /// The rows that are compared with the reference.
    pub sample: Sample,
}

impl Chunk {
    /// Returns random logits in (-8, 8), in which every third row is ignored.
    pub fn new(stored: Stored, shape: [usize; 3]) -> Self {
        Self { stored, shape, given: None, sample: Sample::All }
    }

    fn loss_scale(&self) -> f32 {
        LOSS_SCALE[usize::from(self.stored == STORED_F16)]
    }

    /// Returns padded logits and targets. Padding is NaN, so that a kernel that reads it fails.
    fn inputs(&self) -> (Vec<f32>, Vec<u32>) {
        let [n, v, vp] = self.shape;
        let random = || {
            let mut inputs = Inputs::new();
            let logits = self.stored.scaled(&mut inputs, n * v, 8.0);
            let mut targets = inputs.tokens(n, v);
            targets.iter_mut().skip(2).step_by(3).for_each(|target| *target = IGNORED);
            (logits, targets)
        };
        let (logits, targets) = self.given.as_ref().map_or_else(random, |given| (**given).clone());
        let mut padded = vec![f32::NAN; n * vp];
        for (row, values) in padded.chunks_mut(vp).zip(logits.chunks(v)) {
            row[..v].copy_from_slice(values);
        }
        (padded, targets)
    }

    fn slots(&self, role: Role) -> Vec<Slot> {
        let [n, _, vp] = self.shape;
        let logits = Slot { role, ..Slot::input("logits", [n, vp]) };
        vec![logits.of(self.stored.0), Slot::words("targets", n, Role::Input), Slot::overwritten("losses", [n, 1])]
    }

    fn what(&self) -> String {
        format!("{}x{}{}", self.shape[0], self.shape[2], self.stored.suffix())
    }
}

/// Returns the wanted losses and gradients.
fn wanted(chunk: &Chunk, padded: &[f32], targets: &[u32]) -> [Want; 2] {
    let [n, v, vp] = chunk.shape;
    let rows = chunk.sample.rows(n, vp);
    let (x, targets) = (wide(&gather_rows(padded, &rows, vp)), gather(targets, &rows));
    let losses = reference::crossentropy::forward(&x, &targets, v, vp);
    let scale = f64::from(SCALE) * f64::from(chunk.loss_scale());
    let dlogits = reference::crossentropy::backward(&x, &targets, scale, v, vp);
    // Errors of the sum of exponentials: those of its additions, and in each term those of its argument d and of exp,
    // for which WGSL allows 3 + 2 |d|. Weighted by the terms themselves, the mean of |d| is at most ln V.
    let spread = (v as f64).ln();
    let sum = rounding(v) + 16.0 + 3.0 * spread;
    let (mut losses_off, mut dlogits_off) = (vec![0.0; rows.len()], vec![0.0; rows.len() * vp]);
    for r in (0..rows.len()).filter(|&r| targets[r] != IGNORED) {
        let row = &x[r * vp..r * vp + v];
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let target = targets[r] as usize;
        losses_off[r] = EPS * (sum + 8.0 + 3.0 * spread + 2.0 * most.abs() + 2.0 * row[target].abs());
        for c in 0..v {
            let onehot = if c == target { 1.0 } else { 0.0 };
            let weight = (dlogits[r * vp + c] / scale + onehot).abs();
            let off = weight * (sum + 8.0 + 3.0 * (most - row[c])) + 2.0 * onehot;
            dlogits_off[r * vp + c] = EPS * scale * off + 1e-30;
        }
    }
    // ignored rows and padded columns are exactly 0
    let exact = |kind: Stored, want, off: Vec<f64>| kind.within(want, off.clone()).exact_where_zero(&off);
    let at = positions(&rows, &all(vp), vp);
    let dlogits = exact(chunk.stored, dlogits, dlogits_off).at(at, n * vp);
    [exact(STORED_F32, losses, losses_off).at(rows, n), dlogits]
}

/// Returns a case for the losses.
pub fn forward(chunk: Chunk) -> Case {
    let vocab = chunk.shape[1];
    let launch = move |pass: &mut Pass, t: &[Tensor]| {
        crossentropy::forward(pass, &Forward { logits: &t[0], targets: &t[1], losses: &t[2], vocab })
    };
    Case::new(FORWARD, chunk.what(), chunk.slots(Role::Input), launch, move || {
        let (padded, targets) = chunk.inputs();
        let [losses, _] = wanted(&chunk, &padded, &targets);
        vec![chunk.stored.contents(&padded), Contents::integers(targets), Contents::unwritten(losses)]
    })
}

/// Returns a case for the losses and their gradient in place of the logits.
pub fn forward_backward(chunk: Chunk) -> Case {
    let vocab = chunk.shape[1];
    let mut slots = chunk.slots(Role::Accumulated);
    slots.push(state_slot(Role::Input));
    let launch = move |pass: &mut Pass, t: &[Tensor]| {
        let io = Forward { logits: &t[0], targets: &t[1], losses: &t[2], vocab };
        crossentropy::forward_backward(pass, &io, &control(&t[3], &t[3]), SCALE)
    };
    Case::new(FORWARD_BACKWARD, chunk.what(), slots, launch, move || {
        let (padded, targets) = chunk.inputs();
        let [losses, dlogits] = wanted(&chunk, &padded, &targets);
        let state = Contents::integers(words(&State { loss_scale: chunk.loss_scale(), ..STATE }));
        let logits = chunk.stored.contents(&padded).wanting(dlogits);
        vec![logits, Contents::integers(targets), Contents::unwritten(losses), state]
    })
}

fn passes(chunk: &Chunk) -> [Case; 2] {
    [forward(chunk.clone()), forward_backward(chunk.clone())]
}

fn tests(caps: &Caps, breadth: Breadth) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in storage_types(caps) {
        // rows shorter than a workgroup, rows one longer, many rows, and GPT-2's; each with 4, 8 and 1 elements per
        // access
        let shapes = if kind == STORED_F32 {
            breadth
                .of([1, 2], &[[4, 129, 256], [1, 1, 1], [3, 7, 8], [5, 127, 128], [33, 257, 384], [2, 50_257, 50_304]])
        } else {
            breadth.of([0, 3], &[[3, 7, 8], [3, 11, 12], [1, 1, 1], [5, 127, 128], [33, 257, 384], [2, 50_257, 50_304]])
        };
        cases.extend(shapes.into_iter().flat_map(|shape| passes(&Chunk::new(kind, shape))));
    }
    if breadth >= Breadth::Full {
        cases.extend(passes(&Chunk::new(STORED_F32, [131, 67, 68])).map(Case::folded));
        cases.extend(hard());
    }
    cases
}

/// Returns cases with logits that are far apart, equal, rising (so that every lane rescales at every step) or falling,
/// and with targets that are all ignored.
fn hard() -> Vec<Case> {
    let (v, vp) = (301, 384);
    let logit = |row: usize, c: usize| match row {
        0 => 1e4,
        1 => -1e4,
        2 => [1e4, -1e4][c % 2],
        3 => c as f32,
        4 => -(c as f32) * 3.0,
        5 if c == 300 => 1e4,
        6 if c == 0 => -1e4,
        7 => [0.0, 88.0, 89.0, -104.0][c % 4],
        _ => 0.5,
    };
    let logits: Vec<f32> = (0..9 * v).map(|i| logit(i / v, i % v)).collect();
    let of = |targets: [u32; 9]| {
        let given = Some(Arc::new((logits.clone(), targets.to_vec())));
        passes(&Chunk { given, ..Chunk::new(STORED_F32, [9, v, vp]) })
    };
    [of([0, 300, 1, 0, 300, 300, 0, 3, IGNORED]), of([IGNORED; 9])].into_iter().flatten().collect()
}

fn benches(shape: &BenchShape, caps: &Caps) -> Vec<Case> {
    let (v, vp) = (shape.config.vocab, shape.config.padded_vocab());
    let chunk = [shape.chunk(caps, Elem::F32), v, vp];
    passes(&Chunk { sample: Sample::Subset, ..Chunk::new(STORED_F32, chunk) }).into()
}

fn minimum_cost(shape: &StepShape) -> Vec<MinimumCost> {
    let [micro, n, _, _, _, v, f, s] = shape.counts();
    vec![(FORWARD_BACKWARD, micro * (s * 2 * n * v + f * 2 * n), micro * 6 * n * v)]
}
