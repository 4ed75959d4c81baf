//! What ends a step: the norm of the gradients, the decision about the step, AdamW.

use wgpt::gpu::{Elem, Tensor};
use wgpt::ops::stepcontrol::{Hyper, Report, State, StepControl, Window};
use wgpt::ops::{adamw, gradnorm, stepcontrol};
use wgpt::reference;
use wgpt::reference::random::Random;

use super::{rounding, zero};
use crate::case::{Case, EPS, Role, Slot, expect, positive, samples};

pub fn gradnorm_forward(flat: usize) -> Case {
    let partials = {
        let gpu = wgpt::gpu::Gpu::dry(wgpt::gpu::Caps::webgpu_defaults());
        gpu.tensor("grads", 1, flat, Elem::F32).map_or(1, |grads| gradnorm::partials(&[grads]))
    };
    Case {
        operator: "gradnorm.forward",
        what: format!("{flat}"),
        all_variants: true,
        slots: vec![
            Slot::input("grads", [1, flat]),
            Slot::output("partials", [partials, 1]),
            struct_slot::<State>("state", Role::Input, applied),
            struct_slot::<Hyper>("hyper", Role::Input, hyper),
            struct_slot::<Report>("report", Role::Scratch, zero),
        ],
        launch: Box::new(|pass, t| {
            let control = control(&t[2], &t[3], &t[4]);
            let io = gradnorm::Forward { grads: std::slice::from_ref(&t[0]), partials: &t[1], control: &control };
            gradnorm::forward(pass, io)
        }),
        check: Box::new(move |d| {
            let want: f64 = d.row(0, 0, flat).iter().map(|g| g * g).sum();
            let got: f64 = (0..partials).map(|i| d.is(1, i)).sum();
            let fine = (got - want).abs() <= rounding(flat / partials) * want;
            if fine { Ok(()) } else { Err(format!("sum of `partials`: got {got:e}, want {want:e}")) }
        }),
    }
}

pub fn applied(_: &mut Random, _: usize) -> Vec<u32> {
    let state =
        State { beta1_power: 0.9, beta2_power: 0.95, updates: 1, apply: 1, grad_scale: 0.5, ..State::default() };
    bytemuck::pod_collect_to_vec(bytemuck::bytes_of(&state))
}

pub fn hyper(_: &mut Random, _: usize) -> Vec<u32> {
    let hyper = Hyper {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        clip: 1.0,
        inverse_tokens: 1.0,
        step: 1,
        grad_unit: 1.0,
        dynamic: 0,
        skip_loss_z: 0.0,
        skip_norm_z: 0.0,
    };
    bytemuck::pod_collect_to_vec(bytemuck::bytes_of(&hyper))
}

/// Step control for kernels that do not look at the windows.
pub fn control(state: &Tensor, hyper: &Tensor, report: &Tensor) -> StepControl {
    StepControl { state: state.clone(), hyper: hyper.clone(), report: report.clone(), windows: report.clone() }
}

pub fn struct_slot<T>(name: &'static str, role: Role, before: fn(&mut Random, usize) -> Vec<u32>) -> Slot {
    Slot::new(name, [size_of::<T>() / 4, 1], role).holding(Elem::U32, before)
}

pub fn adamw_forward(flat: usize) -> Case {
    Case {
        operator: "adamw.forward",
        what: format!("{flat}"),
        all_variants: true,
        slots: vec![
            Slot::updated("param", [1, flat]),
            Slot::input("grad", [1, flat]),
            Slot::updated("m", [1, flat]),
            Slot::updated("v", [1, flat]).holding(Elem::F32, positive),
            struct_slot::<State>("state", Role::Input, applied),
            struct_slot::<Hyper>("hyper", Role::Input, hyper),
            struct_slot::<Report>("report", Role::Scratch, zero),
        ],
        launch: Box::new(|pass, t| {
            let control = control(&t[4], &t[5], &t[6]);
            let io = adamw::Forward {
                param: &t[0],
                grad: &t[1],
                m: &t[2],
                v: &t[3],
                control: &control,
                decays: true,
                copy: None,
            };
            adamw::forward(pass, io)
        }),
        check: Box::new(move |d| {
            // the numbers as the GPU sees them
            let f = |x: f32| f64::from(x);
            let settings = reference::adamw::Settings {
                lr: f(1e-3),
                beta1: f(0.9),
                beta2: f(0.95),
                eps: f(1e-8),
                weight_decay: f(0.1),
                grad_scale: 0.5,
                t: 1,
            };
            let want = |i: usize| {
                let (mut p, mut m, mut v) = ([d.was(0, i)], [d.was(2, i)], [d.was(3, i)]);
                reference::adamw::update(&mut p, &[d.was(1, i)], &mut m, &mut v, &settings);
                [p[0], m[0], v[0]]
            };
            for (slot, name, part) in [(0, "param", 0), (2, "m", 1), (3, "v", 2)] {
                // 1 - beta2 loses four bits
                expect(d, slot, name, &samples(flat), |i| (want(i)[part], 64.0 * EPS * (1.0 + want(i)[part].abs())))?;
            }
            Ok(())
        }),
    }
}

pub fn accumulate(n: usize) -> Case {
    Case {
        operator: "stepcontrol.accumulate",
        what: format!("{n}"),
        all_variants: true,
        slots: vec![
            Slot::input("losses", [n, 1]).holding(Elem::F32, positive),
            struct_slot::<State>("state", Role::Updated, applied),
            struct_slot::<Hyper>("hyper", Role::Input, hyper),
            struct_slot::<Report>("report", Role::Scratch, zero),
        ],
        launch: Box::new(|pass, t| stepcontrol::accumulate(pass, &control(&t[1], &t[2], &t[3]), &t[0])),
        check: Box::new(move |d| {
            let sum: f64 = d.row(0, 0, n).iter().sum();
            expect(d, 1, "state.loss_sum", &[7], |_| (sum, rounding(n) * sum))
        }),
    }
}

/// The norm's partial sums of a 124M model.
const PARTIALS: usize = 2048;

pub fn decide() -> Case {
    Case {
        operator: "stepcontrol.decide",
        what: format!("{PARTIALS}"),
        all_variants: true,
        slots: vec![
            Slot::input("partials", [PARTIALS, 1]).holding(Elem::F32, positive),
            struct_slot::<State>("state", Role::Updated, applied),
            struct_slot::<Hyper>("hyper", Role::Input, hyper),
            struct_slot::<Report>("report", Role::Output, zero),
            struct_slot::<[Window; 2]>("windows", Role::Updated, zero),
        ],
        launch: Box::new(|pass, t| {
            let control = StepControl { windows: t[4].clone(), ..control(&t[1], &t[2], &t[3]) };
            stepcontrol::decide(pass, &control, &t[0])
        }),
        check: Box::new(|d| {
            let norm = d.row(0, 0, PARTIALS).iter().sum::<f64>().sqrt();
            expect(d, 3, "report.grad_norm", &[2], |_| (norm, rounding(PARTIALS) * norm))
        }),
    }
}
