use wgpt::cases::Inputs;
use wgpt::cases::stepcontrol::HYPER;
use wgpt::gpu::{Gpu, Options};
use wgpt::ops::stepcontrol::{self, Hyper, Report, State, StepControl};

fn open() -> Gpu {
    Gpu::open(&Options::default()).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn a_fresh_control_has_a_fresh_state() {
    let gpu = open();
    let control = StepControl::new(&gpu).expect("memory");
    assert_eq!(gpu.read(&control.state).expect("read"), bytemuck::bytes_of(&State::default()));
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
    let gpu = &open();
    let [partials, loss_sum] =
        ["partials", "loss"].map(|name| gpu.tensor(name, 1, 1, wgpt::gpu::Elem::F32).expect("memory"));
    for (skip_loss_z, skip_norm_z) in [(0.0, 0.0), (5.0, 0.0), (0.0, 4.0), (3.0, 3.5)] {
        let control = StepControl::new(gpu).expect("memory");
        let mut pass = wgpt::gpu::Pass::new(gpu);
        stepcontrol::decide(&mut pass, &control, &partials, &loss_sum).expect("kernel");
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
            let hyper = Hyper {
                step: step as u32,
                inverse_tokens: 1.0,
                grad_unit: 1.0,
                clip: 0.0,
                skip_loss_z,
                skip_norm_z,
                ..HYPER
            };
            gpu.write(&loss_sum, bytemuck::bytes_of(&loss)).expect("write");
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
    let gpu = &open();
    let [partials, loss_sum] =
        ["partials", "loss"].map(|name| gpu.tensor(name, 1, 1, wgpt::gpu::Elem::F32).expect("memory"));
    gpu.write(&partials, bytemuck::bytes_of(&0.1_f32)).expect("write");
    let control = StepControl::new(gpu).expect("memory");
    let hyper = Hyper { inverse_tokens: 1.0, skip_loss_z: 0.01, skip_norm_z: 0.01, ..HYPER };
    gpu.write(&control.hyper, bytemuck::bytes_of(&hyper)).expect("write");
    let mut pass = wgpt::gpu::Pass::new(gpu);
    stepcontrol::decide(&mut pass, &control, &partials, &loss_sum).expect("kernel");
    let program = pass.finish();
    for _ in 0..300 {
        program.run(gpu).expect("run");
        let report: Report = bytemuck::pod_read_unaligned(&gpu.read(&control.report).expect("read"));
        assert_eq!((report.skipped_now, report.loss_z, report.norm_z), (0, 0.0, 0.0));
    }
}
