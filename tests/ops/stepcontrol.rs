use bytemuck::Zeroable;
use wgpt::ops::stepcontrol::{self, Hyper, Report, State, StepControl, Window};

use crate::harness::{Device, EPS, Inputs, Want, Word, check, devices, input, integers, rounding, wide, words};

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
pub fn state() -> State {
    State {
        beta1_power: 0.81,
        beta2_power: 0.9025,
        updates: 2,
        skipped: 3,
        skipped_in_a_row: 1,
        apply: 1,
        grad_scale: 0.5,
        loss_sum: 2560.0,
        loss_scale: 64.0,
        clean_steps: 5,
    }
}

pub fn as_words<T: bytemuck::Pod>(value: &T) -> Vec<u32> {
    bytemuck::pod_collect_to_vec(bytemuck::bytes_of(value))
}

fn exact(value: f32) -> Word {
    Word::Bits(value.to_bits())
}

fn run_accumulate(devices: &[Device], losses: &[f32]) {
    let n = losses.len();
    let before = state();
    let total: f64 = wide(losses).iter().sum();
    let magnitude: f64 = wide(losses).iter().map(|x| x.abs()).sum::<f64>() + f64::from(before.loss_sum);
    let mut want: Vec<Word> = as_words(&before).into_iter().map(Word::Bits).collect();
    want[7] = if total.is_finite() {
        Word::Near(f64::from(before.loss_sum) + total, rounding(n + 1) * EPS * magnitude)
    } else {
        Word::NonFinite
    };
    let slots = [input("losses", [n, 1], losses), words("state", &as_words(&before), Want::Words(want))];
    check(devices, "stepcontrol.accumulate", &[n], slots, |pass, [losses, state]| {
        let other = wgpt::gpu::Gpu::dry(pass.gpu.caps.clone()).tensor("unused", 1, 1, wgpt::gpu::Elem::U32)?;
        let control = StepControl { state: state.clone(), hyper: other.clone(), report: other.clone(), windows: other };
        stepcontrol::accumulate(pass, &control, losses)
    });
}

#[test]
pub fn accumulate() {
    let devices = devices();
    for n in [1, 7, 127, 128, 129, 256, 257, 1024, 5003] {
        run_accumulate(&devices, &Inputs::new().scaled(n, 10.0));
    }
}

#[test]
fn accumulate_keeps_what_is_not_finite() {
    let devices = devices();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut losses = Inputs::new().values(300);
        losses[271] = bad;
        run_accumulate(&devices, &losses);
    }
}

/// What a step comes to, by the rules in words.
fn run_decide(devices: &[Device], partials: &[f32], before: State, hyper: Hyper) {
    let n = partials.len();
    let squares: f64 = wide(partials).iter().sum();
    // f32 holds no more
    let squares = if squares > f64::from(f32::MAX) { f64::INFINITY } else { squares };
    let loss = f64::from(before.loss_sum) * f64::from(hyper.inverse_tokens);
    let good = squares.is_finite() && loss.is_finite();
    // the root halves the relative error; WGSL allows it and the division some ulp
    let norm_off = (0.5 * rounding(n) + 4.0) * EPS;
    let norm = squares.sqrt();
    let number =
        |value: f64, off: f64| if value.is_finite() { Word::Near(value, off * value) } else { Word::NonFinite };
    let clipped = good && hyper.clip > 0.0 && norm > f64::from(hyper.clip);
    let dynamic = hyper.dynamic == 1;
    // an overflow above the floor is the scale's fault, not the model's
    let blamed = u32::from(!(dynamic && before.loss_scale > 1.0));
    let (updates, skipped, in_a_row) = if good {
        (before.updates + 1, before.skipped, 0)
    } else {
        (before.updates, before.skipped + 1, before.skipped_in_a_row + blamed)
    };
    let (loss_scale, clean_steps) = match (dynamic, good) {
        (false, _) => (before.loss_scale, before.clean_steps),
        (true, false) => ((before.loss_scale / 2.0).max(1.0), 0),
        (true, true) if before.clean_steps + 1 >= 2000 => ((before.loss_scale * 2.0).min(32_768.0), 0),
        (true, true) => (before.loss_scale, before.clean_steps + 1),
    };
    let unscale = 1.0 / (f64::from(hyper.grad_unit) * f64::from(before.loss_scale));
    let power =
        |power: f32, beta: f32| if good { number(f64::from(power) * f64::from(beta), EPS) } else { exact(power) };
    let state = vec![
        power(before.beta1_power, hyper.beta1),
        power(before.beta2_power, hyper.beta2),
        Word::Bits(updates),
        Word::Bits(skipped),
        Word::Bits(in_a_row),
        Word::Bits(u32::from(good)),
        if clipped {
            number(unscale * f64::from(hyper.clip) / norm, norm_off + 8.0 * EPS)
        } else {
            number(unscale, 4.0 * EPS)
        },
        exact(0.0),
        exact(loss_scale),
        Word::Bits(clean_steps),
    ];
    let report = vec![
        Word::Bits(hyper.step),
        number(loss, EPS),
        number(norm, norm_off),
        Word::Bits(u32::from(!good)),
        Word::Bits(skipped),
        Word::Bits(in_a_row),
        Word::Bits(updates),
        exact(hyper.lr),
        exact(before.loss_scale),
        exact(0.0),
        exact(0.0),
    ];
    // both windows were empty: a finite value is their first
    let entered = |value: f64, off: f64| {
        let mut window = vec![Word::Bits(0); size_of::<Window>() / 4];
        if value.is_finite() {
            (window[0], window[1], window[2]) = (Word::Bits(1), Word::Bits(1), number(value, off));
        }
        window
    };
    let windows = [entered(loss, EPS), entered(norm, norm_off)].concat();
    let slots = [
        input("partials", [n, 1], partials),
        words("state", &as_words(&before), Want::Words(state)),
        integers("hyper", [as_words(&hyper).len(), 1], &as_words(&hyper)),
        words("report", &as_words(&Report { step: 99, ..Report::zeroed() }), Want::Words(report)),
        words("windows", &as_words(&[Window::zeroed(); 2]), Want::Words(windows)),
    ];
    check(devices, "stepcontrol.decide", &[n], slots, |pass, [partials, state, hyper, report, windows]| {
        let control = StepControl {
            state: state.clone(),
            hyper: hyper.clone(),
            report: report.clone(),
            windows: windows.clone(),
        };
        stepcontrol::decide(pass, &control, partials)
    });
}

#[test]
pub fn decide_clips_and_counts() {
    let devices = devices();
    for n in [1, 3, 127, 128, 129, 1024, 3001] {
        let partials: Vec<f32> = Inputs::new().values(n).iter().map(|x| x.abs()).collect();
        run_decide(&devices, &partials, state(), HYPER);
        run_decide(&devices, &partials, state(), Hyper { clip: 1e3, ..HYPER });
        run_decide(&devices, &partials, state(), Hyper { clip: 0.0, ..HYPER });
        run_decide(&devices, &partials, State { loss_sum: 1.5, ..State::default() }, Hyper { step: 1, ..HYPER });
    }
    // a norm of exactly the limit is not clipped; no gradient at all is fine
    run_decide(&devices, &[0.25, 0.75], state(), HYPER);
    run_decide(&devices, &[0.0; 5], state(), HYPER);
}

#[test]
fn decide_skips_what_is_not_finite() {
    let devices = devices();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let good: Vec<f32> = Inputs::new().values(300).iter().map(|x| x.abs()).collect();
        let mut partials = good.clone();
        partials[271] = bad;
        run_decide(&devices, &partials, state(), HYPER);
        run_decide(&devices, &good, State { loss_sum: bad, ..state() }, HYPER);
        run_decide(&devices, &partials, State { loss_sum: bad, ..state() }, Hyper { clip: 0.0, ..HYPER });
    }
    // squares that overflow only in their sum
    run_decide(&devices, &[3e38, 3e38], state(), HYPER);
}

/// Halved by an overflow, doubled after 2,000 clean steps, within its limits.
#[test]
fn decide_moves_the_loss_scale() {
    let devices = devices();
    let hyper = Hyper { dynamic: 1, ..HYPER };
    for bad in [false, true] {
        let partials = [1.0, if bad { f32::INFINITY } else { 0.5 }];
        for loss_scale in [1.0, 2.0, 1024.0, 16_384.0, 32_768.0] {
            for clean_steps in [0, 1998, 1999] {
                run_decide(&devices, &partials, State { loss_scale, clean_steps, ..state() }, hyper);
            }
        }
    }
}

#[test]
fn a_fresh_control_has_a_fresh_state() {
    let device = Device::open("release", &wgpt::gpu::Options::default());
    let control = StepControl::new(&device.gpu).expect("memory");
    assert_eq!(device.gpu.read(&control.state).expect("read"), bytemuck::bytes_of(&State::default()));
}

/// llm.c's detector: running sums over a ring of doubles. Its first 128 values have no z-score, 0 here.
#[derive(Default)]
struct Ring {
    values: Vec<f64>,
    next: usize,
}

impl Ring {
    fn enter(&mut self, x: f64) -> f64 {
        if !x.is_finite() {
            return 0.0;
        }
        if self.values.len() < 128 {
            self.values.push(x);
            return 0.0;
        }
        self.values[self.next] = x;
        self.next = (self.next + 1) % 128;
        let [sum, squares] = [1, 2].map(|power| self.values.iter().map(|v| v.powi(power)).sum::<f64>() / 128.0);
        let deviation = (squares - sum * sum).max(0.0).sqrt();
        if deviation == 0.0 { 0.0 } else { (x - sum) / deviation }
    }
}

/// Series with spikes, and the steps that a threshold skips: the same as llm.c's formula finds.
#[test]
fn outliers_are_those_of_llm_c() {
    let device = Device::open("release", &wgpt::gpu::Options::default());
    let gpu = &device.gpu;
    let partials = gpu.tensor("partials", 1, 1, wgpt::gpu::Elem::F32).expect("memory");
    for (skip_loss_z, skip_norm_z) in [(0.0, 0.0), (5.0, 0.0), (0.0, 4.0), (3.0, 3.5)] {
        let control = StepControl::new(gpu).expect("memory");
        let mut pass = wgpt::gpu::Pass::new(gpu);
        stepcontrol::decide(&mut pass, &control, &partials).expect("kernel");
        let program = pass.finish();
        let noise = Inputs::new().values(800);
        let (mut losses, mut norms, mut skipped) = (Ring::default(), Ring::default(), [0; 4]);
        for step in 1..=400_usize {
            let mut loss = 3.0 + 0.3 * noise[step] - step as f32 / 400.0;
            let mut norm = (1.0 + 0.2 * noise[400 + step - 1]).max(0.1);
            match step {
                140 | 141 | 250 => loss += 2.0,
                150 | 300 => norm = 9.0,
                160 => loss = f32::NAN,
                170 => norm = f32::INFINITY,
                301 => (loss, norm) = (40.0, 40.0),
                _ => {}
            }
            let before = gpu.read(&control.state).expect("read");
            let state = State { loss_sum: loss, ..bytemuck::pod_read_unaligned(&before) };
            let hyper = Hyper {
                step: step as u32,
                inverse_tokens: 1.0,
                grad_unit: 1.0,
                clip: 0.0,
                skip_loss_z,
                skip_norm_z,
                ..HYPER
            };
            gpu.write(&control.state, bytemuck::bytes_of(&state)).expect("write");
            gpu.write(&control.hyper, bytemuck::bytes_of(&hyper)).expect("write");
            gpu.write(&partials, bytemuck::bytes_of(&(norm * norm))).expect("write");
            program.run(gpu).expect("run");
            let report: Report = bytemuck::pod_read_unaligned(&gpu.read(&control.report).expect("read"));
            let (loss_z, norm_z) = (losses.enter(loss.into()), norms.enter(report.grad_norm.into()));
            let place = format!("step {step}: {report:?}, expected {loss_z} and {norm_z}");
            assert!((f64::from(report.loss_z) - loss_z).abs() < 1e-4, "{place}");
            assert!((f64::from(report.norm_z) - norm_z).abs() < 1e-4, "{place}");
            let above = |z: f64, threshold: f32| threshold > 0.0 && z > f64::from(threshold);
            let why = match () {
                () if !(loss.is_finite() && norm.is_finite()) => Report::NOT_FINITE,
                () if above(loss_z, skip_loss_z) => Report::LOSS_OUTLIER,
                () if above(norm_z, skip_norm_z) => Report::NORM_OUTLIER,
                () => 0,
            };
            assert_eq!(report.skipped_now, why, "{place}");
            skipped[why as usize] += 1;
        }
        assert_eq!(skipped[Report::NOT_FINITE as usize], 2);
        assert_eq!(skipped[Report::LOSS_OUTLIER as usize] > 0, skip_loss_z > 0.0);
        assert_eq!(skipped[Report::NORM_OUTLIER as usize] > 0, skip_norm_z > 0.0);
    }
}

/// A constant series has no deviation: no outlier, whatever rounding does to its mean.
#[test]
fn equal_losses_are_no_outliers() {
    let device = Device::open("release", &wgpt::gpu::Options::default());
    let gpu = &device.gpu;
    let partials = gpu.tensor("partials", 1, 1, wgpt::gpu::Elem::F32).expect("memory");
    gpu.write(&partials, bytemuck::bytes_of(&0.1_f32)).expect("write");
    let control = StepControl::new(gpu).expect("memory");
    let hyper = Hyper { inverse_tokens: 1.0, skip_loss_z: 0.01, skip_norm_z: 0.01, ..HYPER };
    gpu.write(&control.hyper, bytemuck::bytes_of(&hyper)).expect("write");
    let mut pass = wgpt::gpu::Pass::new(gpu);
    stepcontrol::decide(&mut pass, &control, &partials).expect("kernel");
    let program = pass.finish();
    for _ in 0..300 {
        program.run(gpu).expect("run");
        let report: Report = bytemuck::pod_read_unaligned(&gpu.read(&control.report).expect("read"));
        assert_eq!((report.skipped_now, report.loss_z, report.norm_z), (0, 0.0, 0.0));
    }
}
