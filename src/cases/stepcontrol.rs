//! Cases of step control. It has no reference; the expected decisions are computed here from the documented rules.

use bytemuck::Zeroable;

use crate::gpu::{Pass, Tensor};
use crate::ops::stepcontrol::{self, ACCUMULATE, DECIDE, Hyper, OutlierWindow, Report, State, StepControl};

use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &stepcontrol::OPERATOR, tests, benches, minimum_cost };

/// The hyperparameters of a step in the middle of a run.
pub const HYPER: Hyper = Hyper {
    lr: 3e-4,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    clip: 1.0,
    inverse_tokens: 1.0 / 512.0,
    step: 7,
    grad_unit: 3.0,
    dynamic: 0,
    skip_loss_z: 0.0,
    skip_norm_z: 0.0,
};

/// A state in the middle of a run.
pub const STATE: State = State {
    beta1_power: 0.81,
    beta2_power: 0.9025,
    updates: 2,
    skipped: 3,
    skipped_in_a_row: 1,
    apply: 1,
    grad_scale: 0.5,
    reserved: 0,
    loss_scale: 64.0,
    clean_steps: 5,
};

/// Returns a slot for a [`State`].
pub(super) fn state_slot(role: Role) -> Slot {
    Slot::words("state", size_of::<State>() / 4, role)
}

/// Returns a slot for a [`Hyper`].
pub(super) fn hyper_slot() -> Slot {
    Slot::words("hyper", size_of::<Hyper>() / 4, Role::Input)
}

/// Returns step control for passes that read only state and hyperparameters.
pub(super) fn control(state: &Tensor, hyper: &Tensor) -> StepControl {
    StepControl { state: state.clone(), hyper: hyper.clone(), report: hyper.clone(), windows: hyper.clone() }
}

fn exact(value: f32) -> Word {
    Word::Bits(value.to_bits())
}

/// The sum of a step's losses.
const LOSS: f32 = 2560.0;

/// Returns a case for `loss += sum of losses`.
pub fn accumulate(losses: Vec<f32>) -> Case {
    let n = losses.len();
    let slots = vec![Slot::input("losses", [n, 1]), Slot::accumulated("loss", [1, 1])];
    let launch = |pass: &mut Pass, t: &[Tensor]| stepcontrol::accumulate(pass, &t[1], &t[0]);
    Case::new(ACCUMULATE, format!("{n}"), slots, launch, move || {
        let (total, before): (f64, _) = (wide(&losses).iter().sum(), f64::from(LOSS));
        let magnitude: f64 = wide(&losses).iter().map(|x| x.abs()).sum::<f64>() + before;
        let want = if total.is_finite() {
            STORED_F32.near(vec![before + total], rounding(n + 1), &[magnitude])
        } else {
            Want::Words(vec![Word::NonFinite])
        };
        vec![Contents::floats(&losses), Contents::floats(&[LOSS]).wanting(want)]
    })
}

/// Returns a case for the decision about a step with these partial sums of the squared norm.
pub fn decide(partials: Vec<f32>, loss: f32, before: State, hyper: Hyper) -> Case {
    let n = partials.len();
    let slots = vec![
        Slot::input("partials", [n, 1]),
        state_slot(Role::Accumulated),
        hyper_slot(),
        Slot::words("report", size_of::<Report>() / 4, Role::Accumulated),
        Slot::words("windows", size_of::<[OutlierWindow; 2]>() / 4, Role::Accumulated),
        Slot::input("loss", [1, 1]),
    ];
    let launch = |pass: &mut Pass, t: &[Tensor]| {
        let [partials, state, hyper, report, windows, loss] = each(t);
        let control = StepControl { report: report.clone(), windows: windows.clone(), ..control(state, hyper) };
        stepcontrol::decide(pass, &control, partials, loss)
    };
    Case::new(DECIDE, format!("{n}"), slots, launch, move || {
        let outcome = Outcome::of(&partials, loss, &before, &hyper);
        let report = Report { step: 99, ..Report::zeroed() };
        vec![
            Contents::floats(&partials),
            Contents::integers(words(&before)).wanting(Want::Words(outcome.state(&before, &hyper))),
            Contents::integers(words(&hyper)),
            Contents::integers(words(&report)).wanting(Want::Words(outcome.report(&before, &hyper))),
            Contents::integers(words(&[OutlierWindow::zeroed(); 2])).wanting(Want::Words(outcome.windows())),
            Contents::floats(&[loss]),
        ]
    })
}

fn number(value: f64, off: f64) -> Word {
    if value.is_finite() { Word::Near(value, off * value) } else { Word::NonFinite }
}

/// The expected decision about a step.
struct Outcome {
    loss: f64,
    norm: f64,
    /// Relative error of the norm.
    norm_off: f64,
    good: bool,
    skipped: u32,
    in_a_row: u32,
    updates: u32,
}

impl Outcome {
    fn of(partials: &[f32], loss: f32, before: &State, hyper: &Hyper) -> Self {
        let squares: f64 = wide(partials).iter().sum();
        // an f32 cannot hold more
        let squares = if squares > f64::from(f32::MAX) { f64::INFINITY } else { squares };
        let loss = f64::from(loss) * f64::from(hyper.inverse_tokens);
        let good = squares.is_finite() && loss.is_finite();
        // an overflow while the loss scale is above its minimum is not counted
        let blamed = u32::from(!(hyper.dynamic == 1 && before.loss_scale > 1.0));
        let (updates, skipped, in_a_row) = if good {
            (before.updates + 1, before.skipped, 0)
        } else {
            (before.updates, before.skipped + 1, before.skipped_in_a_row + blamed)
        };
        // the root halves the relative error; WGSL allows some ulp for it and for the divisions
        let norm_off = (0.5 * rounding(partials.len()) + 8.0) * EPS;
        let unit = f64::from(hyper.grad_unit) * f64::from(before.loss_scale);
        Self { loss, norm: squares.sqrt() / unit, norm_off, good, skipped, in_a_row, updates }
    }

    fn state(&self, before: &State, hyper: &Hyper) -> Vec<Word> {
        let clipped = self.good && hyper.clip > 0.0 && self.norm > f64::from(hyper.clip);
        let (loss_scale, clean_steps) = match (hyper.dynamic == 1, self.good) {
            (false, _) => (before.loss_scale, before.clean_steps),
            (true, false) => ((before.loss_scale / 2.0).max(1.0), 0),
            (true, true) if before.clean_steps + 1 >= 2000 => ((before.loss_scale * 2.0).min(32_768.0), 0),
            (true, true) => (before.loss_scale, before.clean_steps + 1),
        };
        let unscale = 1.0 / (f64::from(hyper.grad_unit) * f64::from(before.loss_scale));
        let power = |power: f32, beta: f32| {
            if self.good { number(f64::from(power) * f64::from(beta), EPS) } else { exact(power) }
        };
        vec![
            power(before.beta1_power, hyper.beta1),
            power(before.beta2_power, hyper.beta2),
            Word::Bits(self.updates),
            Word::Bits(self.skipped),
            Word::Bits(self.in_a_row),
            Word::Bits(u32::from(self.good)),
            if clipped {
                number(unscale * f64::from(hyper.clip) / self.norm, self.norm_off + 8.0 * EPS)
            } else {
                number(unscale, 4.0 * EPS)
            },
            Word::Bits(before.reserved),
            exact(loss_scale),
            Word::Bits(clean_steps),
        ]
    }

    fn report(&self, before: &State, hyper: &Hyper) -> Vec<Word> {
        vec![
            Word::Bits(hyper.step),
            number(self.loss, EPS),
            number(self.norm, self.norm_off),
            Word::Bits(u32::from(!self.good)),
            Word::Bits(self.skipped),
            Word::Bits(self.in_a_row),
            Word::Bits(self.updates),
            exact(hyper.lr),
            exact(before.loss_scale),
            exact(0.0),
            exact(0.0),
        ]
    }

    /// Returns the windows after the step. Both were empty, so a finite value is their first.
    fn windows(&self) -> Vec<Word> {
        let entered = |value: f64, off: f64| {
            let mut window = vec![Word::Bits(0); size_of::<OutlierWindow>() / 4];
            if value.is_finite() {
                (window[0], window[1], window[2]) = (Word::Bits(1), Word::Bits(1), number(value, off));
            }
            window
        };
        [entered(self.loss, EPS), entered(self.norm, self.norm_off)].concat()
    }
}

/// Returns positive losses.
fn positive(n: usize) -> Vec<f32> {
    Inputs::new().values(n).iter().map(|x| x.abs()).collect()
}

/// Returns partial sums of squares of gradients that are scaled by the factors in [`HYPER`] and [`STATE`].
fn squares(n: usize) -> Vec<f32> {
    let unit = HYPER.grad_unit * STATE.loss_scale;
    positive(n).iter().map(|x| x * unit * unit).collect()
}

fn tests(_caps: &Caps, breadth: Breadth) -> Vec<Case> {
    let counts = breadth.of([1, 1], &[129, 1, 7, 128, 257, 5003]);
    let mut cases: Vec<Case> = counts.into_iter().map(|n| accumulate(Inputs::new().scaled(n, 10.0))).collect();
    for n in breadth.of([1, 1], &[129, 1, 3, 128, 1024, 3001]) {
        cases.push(decide(squares(n), LOSS, STATE, HYPER));
        cases.push(decide(squares(n), LOSS, STATE, Hyper { clip: 1e3, ..HYPER }));
        cases.push(decide(squares(n), LOSS, STATE, Hyper { clip: 0.0, ..HYPER }));
        cases.push(decide(squares(n), 1.5, State::default(), Hyper { step: 1, ..HYPER }));
    }
    if breadth >= Breadth::Full {
        // a norm of exactly the limit, which is not clipped; gradients of zero; squares whose sum alone overflows, of
        // gradients that are scaled by 4 * 64
        let hard: [&[f32]; 3] = [&[16_384.0, 49_152.0], &[0.0; 5], &[3e38, 3e38]];
        cases.extend(hard.map(|partials| decide(partials.into(), LOSS, STATE, Hyper { grad_unit: 4.0, ..HYPER })));
        cases.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().flat_map(not_finite));
        cases.extend(loss_scales());
    }
    cases
}

/// Returns cases in which the loss, a gradient or both are not finite, so that the step is skipped.
fn not_finite(bad: f32) -> Vec<Case> {
    let with = |mut values: Vec<f32>| {
        values[271] = bad;
        values
    };
    vec![
        accumulate(with(Inputs::new().values(300))),
        decide(with(squares(300)), LOSS, STATE, HYPER),
        decide(squares(300), bad, STATE, HYPER),
        decide(with(squares(300)), bad, STATE, Hyper { clip: 0.0, ..HYPER }),
    ]
}

/// Returns cases in which the loss scale is halved by an overflow, doubled after 2,000 clean steps, or kept at its
/// limits.
fn loss_scales() -> Vec<Case> {
    let mut cases = Vec::new();
    for second in [0.5, f32::INFINITY] {
        for loss_scale in [1.0, 2.0, 1024.0, 16_384.0, 32_768.0] {
            let states = [0, 1998, 1999].map(|clean_steps| State { loss_scale, clean_steps, ..STATE });
            cases.extend(states.map(|state| decide(vec![1.0, second], LOSS, state, Hyper { dynamic: 1, ..HYPER })));
        }
    }
    cases
}

/// Number of sums of squares in a 124M model: one per 1,024 elements of the blocks' weights, and those of other
/// parameters.
const PARTIALS: usize = 84_000;

fn benches(shape: &BenchShape, _caps: &Caps) -> Vec<Case> {
    vec![accumulate(positive(shape.rows())), decide(squares(PARTIALS), LOSS, STATE, HYPER)]
}

fn minimum_cost(shape: &StepShape) -> Vec<MinimumCost> {
    let losses = (shape.accumulation * shape.batch * shape.context) as u64;
    vec![(ACCUMULATE, Elem::F32.bytes() * losses, losses)]
}
