use wgpt::ops::crossentropy::{self, Forward, IGNORED};
use wgpt::ops::stepcontrol::{State, StepControl};
use wgpt::reference;

use crate::harness::{
    Device, EPS, FULL, HALF, Inputs, Kind, bits, check, devices, devices_with_f16, folded, integers, overwritten,
    rounding, wide, within,
};
use crate::stepcontrol::{as_words, state};

/// The weight of a row, as in a step of 500 tokens with a loss scale of 2; in f16 with one of 4,096 as well.
const SCALE: f32 = 1e-3;
const LOSS_SCALE: [f32; 2] = [2.0, 4096.0];

/// n, V, Vp. Padding is NaN, so that reading it shows.
fn run(devices: &[Device], kind: Kind, shape: [usize; 3], logits: &[f32], targets: &[u32]) {
    let [n, v, vp] = shape;
    let mut padded = vec![f32::NAN; n * vp];
    for (row, values) in padded.chunks_mut(vp).zip(logits.chunks(v)) {
        row[..v].copy_from_slice(values);
    }
    let x = wide(&padded);
    let losses = reference::crossentropy::forward(&x, targets, v, vp);
    let loss_scale = LOSS_SCALE[usize::from(kind == HALF)];
    let scale = f64::from(SCALE) * f64::from(loss_scale);
    let dlogits = reference::crossentropy::backward(&x, targets, scale, v, vp);
    // The sum of exponentials: its additions, and in each term the errors of its argument d and of exp, which WGSL
    // allows 3 + 2 |d|. Weighted by the terms themselves the mean of |d| is at most ln V.
    let spread = (v as f64).ln();
    let sum = rounding(v) + 16.0 + 3.0 * spread;
    let (mut losses_off, mut dlogits_off) = (vec![0.0; n], vec![0.0; n * vp]);
    for r in (0..n).filter(|&r| targets[r] != IGNORED) {
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
    let losses = || {
        // rows that do not count are exactly 0, and so are padded columns: no tolerance at all
        let mut want = within(losses.clone(), losses_off.clone());
        exact_zeros(&mut want, &losses_off);
        overwritten("losses", [n, 1], want)
    };
    let logits = |want| kind.updated("logits", [n, vp], &padded, want);
    let slots = [logits(bits(&kind.bits(&padded))), integers("targets", [n, 1], targets), losses()];
    check(devices, "crossentropy.forward", &shape, slots, |pass, [logits, targets, losses]| {
        crossentropy::forward(pass, &Forward { logits, targets, losses, vocab: v })
    });
    let mut want = kind.within(dlogits, dlogits_off.clone());
    exact_zeros(&mut want, &dlogits_off);
    let state = as_words(&State { loss_scale, ..state() });
    let slots =
        [logits(want), integers("targets", [n, 1], targets), losses(), integers("state", [state.len(), 1], &state)];
    check(devices, "crossentropy.forward_backward", &shape, slots, |pass, [logits, targets, losses, state]| {
        let control =
            StepControl { state: state.clone(), hyper: state.clone(), report: state.clone(), windows: state.clone() };
        crossentropy::forward_backward(pass, &Forward { logits, targets, losses, vocab: v }, &control, SCALE)
    });
}

/// No tolerance where there is no budget.
fn exact_zeros(want: &mut crate::harness::Want, budgets: &[f64]) {
    if let crate::harness::Want::Near { tolerance, .. } = want {
        for (tolerance, budget) in tolerance.iter_mut().zip(budgets) {
            if *budget == 0.0 {
                *tolerance = 0.0;
            }
        }
    }
}

fn random(devices: &[Device], kind: Kind, shape: [usize; 3]) {
    let [n, v, _] = shape;
    let mut inputs = Inputs::new();
    let logits = kind.scaled(&mut inputs, n * v, 8.0);
    let mut targets = inputs.tokens(n, v);
    for row in (2..n).step_by(3) {
        targets[row] = IGNORED;
    }
    run(devices, kind, shape, &logits, &targets);
}

#[test]
pub fn forward_and_backward() {
    let devices = devices();
    for shape in [[1, 1, 1], [1, 1, 4], [3, 7, 8], [5, 127, 128], [4, 129, 256], [33, 257, 384], [2, 50_257, 50_304]] {
        random(&devices, FULL, shape);
    }
    let devices = devices_with_f16();
    for shape in [[1, 1, 1], [3, 7, 8], [3, 11, 12], [5, 127, 128], [33, 257, 384], [2, 50_257, 50_304]] {
        random(&devices, HALF, shape);
    }
}

#[test]
fn hard_logits() {
    let devices = devices();
    let (v, vp) = (301, 384);
    let mut logits = Vec::new();
    for row in 0..9 {
        logits.extend((0..v).map(|c| match row {
            0 => 1e4,
            1 => -1e4,
            2 => [1e4, -1e4][c % 2],
            3 => c as f32,          // rising: every lane rescales at every step
            4 => -(c as f32) * 3.0, // falling
            5 if c == 300 => 1e4,
            6 if c == 0 => -1e4,
            7 => [0.0, 88.0, 89.0, -104.0][c % 4],
            _ => 0.5,
        }));
    }
    let targets = [0, 300, 1, 0, 300, 300, 0, 3, IGNORED];
    run(&devices, FULL, [9, v, vp], &logits, &targets);
    run(&devices, FULL, [9, v, vp], &logits, &[IGNORED; 9]);
}

#[test]
fn forward_and_backward_in_a_folded_grid() {
    random(&folded(), FULL, [131, 67, 68]);
}
