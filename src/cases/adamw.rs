//! Cases of AdamW.

use crate::gpu::{Pass, Tensor};
use crate::model::PARAMS;
use crate::ops::adamw::{self, FORWARD, Forward};
use crate::ops::stepcontrol::{Hyper, State};
use crate::reference;
use crate::reference::adamw::Settings;

use super::gradnorm::parameters;
use super::stepcontrol::{HYPER, STATE, control, hyper_slot, state_slot};
use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &adamw::OPERATOR, tests, benches, minimum_cost };

/// An update of parameters.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Number of parameters.
    pub n: usize,
    /// State of step control, which decides whether the step is applied.
    pub state: State,
    /// Whether weight decay applies.
    pub decays: bool,
    /// Whether the parameters are also copied as f16.
    pub copied: bool,
    /// The elements that are compared with the reference.
    pub sample: Sample,
}

impl Update {
    /// Returns the third update of `n` parameters, with weight decay.
    pub fn third(n: usize) -> Self {
        let power = |beta: f32| beta * beta * beta;
        let (beta1_power, beta2_power) = (power(HYPER.beta1), power(HYPER.beta2));
        let state = State { beta1_power, beta2_power, updates: 3, ..STATE };
        Self { n, state, decays: true, copied: false, sample: Sample::All }
    }
}

/// Returns the reference's settings.
pub fn settings(hyper: &Hyper, grad_scale: f64, decays: bool, t: u32) -> Settings {
    Settings {
        lr: hyper.lr.into(),
        beta1: hyper.beta1.into(),
        beta2: hyper.beta2.into(),
        eps: hyper.eps.into(),
        weight_decay: if decays { hyper.weight_decay.into() } else { 0.0 },
        grad_scale,
        t,
    }
}

/// Returns a case for one update in the middle of a run, or for a skipped one if the state demands it.
pub fn forward(update: Update) -> Case {
    let Update { n, decays, copied, .. } = update;
    let flat = |name| Slot::accumulated(name, [1, n]);
    let mut slots = vec![flat("param"), Slot::input("grad", [1, n]), flat("m"), flat("v")];
    slots.extend([state_slot(Role::Input), hyper_slot()]);
    slots.extend(copied.then(|| flat("copy").of(Elem::F16)));
    let launch = move |pass: &mut Pass, t: &[Tensor]| {
        let [param, grad, m, v, state, hyper] = each(t);
        let control = &control(state, hyper);
        adamw::forward(pass, Forward { param, grad, m, v, copy: t.get(6), control, decays })
    };
    let case = Case::new(FORWARD, format!("{n}"), slots, launch, move || contents(&update));
    let variant = match (copied, update.state.apply) {
        (false, 1) => "",
        (true, 1) => " with a copy",
        (false, _) => " skipped",
        (true, _) => " with a copy skipped",
    };
    case.variant(variant)
}

fn contents(update: &Update) -> Vec<Contents> {
    let (n, applied) = (update.n, update.state.apply == 1);
    let mut inputs = Inputs::new();
    let [param, grad, m] = [(); 3].map(|()| inputs.values(n));
    let v: Vec<f32> = inputs.values(n).iter().map(|x| x * x).collect();
    let at = update.sample.elements(n);
    let of = |x: &[f32]| wide(&gather(x, &at));
    let [before, g, m_before] = [&param, &grad, &m].map(|x| of(x));
    let settings = settings(&HYPER, f64::from(update.state.grad_scale), update.decays, update.state.updates);
    let (mut p, mut first, mut second) = (before.clone(), m_before.clone(), of(&v));
    reference::adamw::update(&mut p, &g, &mut first, &mut second, &settings);
    let [left1, left2] = [settings.beta1, settings.beta2].map(|beta| 1.0 - beta.powi(settings.t as i32));
    let [mut p_off, mut m_off, mut v_off] = [vec![], vec![], vec![]];
    for i in 0..p.len() {
        let g = (g[i] * settings.grad_scale).abs();
        // four multiplications and additions, treated as if all terms had one sign; for v of squares
        let m_abs = settings.beta1 * m_before[i].abs() + (1.0 - settings.beta1) * g;
        m_off.push(4.0 * EPS * m_abs);
        v_off.push(5.0 * EPS * second[i]);
        // the powers for t = 3 are f32 that were rounded three times; 1 - power magnifies that error
        let magnify = 3.0 * EPS / left1 + 3.0 * EPS / left2;
        let spread = (second[i] / left2).sqrt() + settings.eps;
        let step = settings.lr * m_abs / left1 / spread;
        let decay = settings.lr * settings.weight_decay * before[i].abs();
        p_off.push((16.0 * EPS + magnify) * step + 4.0 * EPS * decay + EPS * before[i].abs());
    }
    let output = |stored: Stored, values: &[f32], want: &[f64], off: &[f64]| {
        let contents = stored.contents(values);
        let same = bits(&contents.before);
        let updated = stored.within(want.into(), off.into()).at(at.clone(), n);
        contents.wanting(if applied { updated } else { same })
    };
    let mut contents = vec![
        output(STORED_F32, &param, &p, &p_off),
        Contents::floats(&if applied { grad } else { vec![f32::NAN; n] }),
        output(STORED_F32, &m, &first, &m_off),
        output(STORED_F32, &v, &second, &v_off),
        Contents::integers(words(&update.state)),
        Contents::integers(words(&HYPER)),
    ];
    // a skipped step leaves the f16 copy unchanged, even if it differs from the parameters
    contents.extend(update.copied.then(|| output(STORED_F16, &STORED_F16.values(&mut inputs, n), &p, &p_off)));
    contents
}

fn tests(caps: &Caps, breadth: Breadth) -> Vec<Case> {
    let mut cases = Vec::new();
    for n in breadth.of([1, 2], &[260, 63, 1, 3, 4, 64, 255, 256, 257 * 768]) {
        cases.extend([true, false].map(|decays| forward(Update { decays, ..Update::third(n) })));
    }
    let copied = if caps.f16 { breadth.of([0, 3], &[260, 264, 3, 1, 4]) } else { Vec::new() };
    cases.extend(copied.into_iter().map(|n| forward(Update { copied: true, ..Update::third(n) })));
    if breadth >= Breadth::Full {
        cases.extend([64 * 300 + 1, 64 * 4 * 300 + 4].map(|n| forward(Update::third(n)).folded()));
        for (n, copied) in [13, 260, 264].into_iter().flat_map(|n| [false, true].map(|copied| (n, copied))) {
            let third = Update::third(n);
            let skipped = Update { state: State { apply: 0, ..third.state }, copied, ..third };
            cases.extend((caps.f16 || !copied).then(|| forward(skipped)));
        }
    }
    cases
}

fn benches(shape: &BenchShape, _caps: &Caps) -> Vec<Case> {
    vec![forward(Update { sample: Sample::Subset, ..Update::third(shape.flat) })]
}

fn minimum_cost(shape: &StepShape) -> Vec<MinimumCost> {
    let (config, f) = (&shape.config, Elem::F32.bytes());
    let matrices: u64 =
        PARAMS.iter().filter(|p| p.decays).map(|p| (p.elements(config) * p.copies(config)) as u64).sum();
    // in mixed precision also the f16 copy of the matrices
    let copy = if shape.elem == Elem::F16 { shape.elem.bytes() * matrices } else { 0 };
    vec![(FORWARD, 7 * f * parameters(shape) + copy, 14 * parameters(shape))]
}
