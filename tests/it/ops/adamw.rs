use wgpt::cases::adamw::settings;
use wgpt::cases::stepcontrol::HYPER;
use wgpt::cases::{EPS, Inputs, wide};
use wgpt::gpu::{Elem, Gpu, Pass, Tensor};
use wgpt::ops::adamw::{self, Forward};
use wgpt::ops::gradnorm;
use wgpt::ops::stepcontrol::{self, Hyper, Report, State, StepControl};
use wgpt::reference;

use super::harness::devices;

/// Everything that ends a step, on one parameter tensor.
struct Training<'g> {
    gpu: &'g Gpu,
    control: StepControl,
    losses: Tensor,
    grad: Tensor,
    weights: [Tensor; 3],
    program: wgpt::gpu::Program,
}

const LOSSES: usize = 5;

impl<'g> Training<'g> {
    fn new(gpu: &'g Gpu, param: &[f32]) -> Self {
        let n = param.len();
        let tensor = |name, n| gpu.tensor(name, 1, n, Elem::F32).expect("memory");
        let control = StepControl::new(gpu).expect("memory");
        let losses = tensor("losses", LOSSES).reshape(LOSSES, 1);
        let grad = tensor("grad", n);
        let weights = ["param", "m", "v"].map(|name| tensor(name, n));
        gpu.write(&weights[0], bytemuck::cast_slice(param)).expect("written");
        let grads = [grad.clone()];
        let count = gradnorm::partial_count(&grads);
        let partials = tensor("partials", count).reshape(count, 1);
        let mut pass = Pass::new(gpu);
        let loss = tensor("loss", 1);
        pass.declare_zero(&loss);
        stepcontrol::accumulate(&mut pass, &loss, &losses).expect("recorded");
        gradnorm::forward(&mut pass, gradnorm::Forward { grads: &grads, partials: &partials, first: 0 })
            .expect("recorded");
        stepcontrol::decide(&mut pass, &control, &partials, &loss).expect("recorded");
        let [param, m, v] = &weights;
        adamw::forward(&mut pass, Forward { param, grad: &grad, m, v, copy: None, control: &control, decays: true })
            .expect("recorded");
        let program = pass.finish();
        Self { gpu, control, losses, grad, weights, program }
    }

    fn step(&self, hyper: &Hyper, losses: &[f32; LOSSES], grad: &[f32]) -> Report {
        let write = |tensor, bytes| self.gpu.write(tensor, bytes).expect("written");
        write(&self.control.hyper, bytemuck::bytes_of(hyper));
        write(&self.losses, bytemuck::cast_slice(losses));
        write(&self.grad, bytemuck::cast_slice(grad));
        self.program.run(self.gpu).expect("run");
        bytemuck::pod_read_unaligned(&self.gpu.read(&self.control.report).expect("read"))
    }

    fn state(&self) -> State {
        bytemuck::pod_read_unaligned(&self.gpu.read(&self.control.state).expect("read"))
    }

    fn bits(&self) -> [Vec<u8>; 3] {
        self.weights.each_ref().map(|tensor| self.gpu.read(tensor).expect("read"))
    }
}

#[track_caller]
fn close(what: &str, got: f64, want: f64, tolerance: f64) {
    let fine = (got - want).abs() <= tolerance;
    assert!(fine, "{what}: got {got:e}, want {want:e} within {tolerance:e}");
}

/// Twelve steps from the first on, every third one spoilt in another way, against the reference, which never sees the
/// spoilt ones.
#[test]
fn steps_follow_the_reference_and_spoilt_ones_leave_no_trace() {
    let spoilers = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30];
    for (device, n) in devices().iter().flat_map(|device| [67, 768].map(|n| (device, n))) {
        device.run(&device.caps, |gpu| {
            let mut inputs = Inputs::new();
            let param = inputs.values(n);
            let training = Training::new(gpu, &param);
            let [mut p, mut m, mut v] = [wide(&param), vec![0.0; n], vec![0.0; n]];
            let [mut p_off, mut m_abs] = [vec![0.0; n], vec![0.0; n]];
            let (mut updates, mut skipped) = (0, 0);
            for step in 1..=12_u32 {
                // clipped in even steps: the norm of n values with deviation 1/3 is some sqrt(n) / 3
                let scale = if step % 2 == 0 { 1.0 } else { 0.1 / (n as f64).sqrt() };
                let lr = 1e-2 / step as f32;
                let hyper = Hyper { step, lr, inverse_tokens: 1.0 / LOSSES as f32, grad_unit: 1.0, ..HYPER };
                let mut grad = inputs.scaled(n, scale);
                let mut losses = [1.0, 2.0, 3.0, 4.0, 5.5];
                let (before, state) = (training.bits(), training.state());
                let spoilt = step % 3 == 0;
                if spoilt {
                    let spoiler = spoilers[(step / 3 - 1) as usize];
                    // 1e30 is finite, its square is not
                    if step == 6 { losses[3] = spoiler } else { grad[n - 2] = spoiler }
                }
                let report = training.step(&hyper, &losses, &grad);
                let place = format!("adamw, n = {n}, step {step} on {}", device.mode);
                assert_eq!((report.step, report.lr.to_bits()), (step, hyper.lr.to_bits()), "{place}");
                if spoilt {
                    skipped += 1;
                    assert_eq!(
                        [report.skipped_now, report.skipped, report.skipped_in_a_row],
                        [1, skipped, 1],
                        "{place}"
                    );
                    assert!(!(report.loss.is_finite() && report.grad_norm.is_finite()), "{place}: {report:?}");
                    assert!(before == training.bits(), "{place}: a skipped step changed parameters or moments");
                    let want = State { skipped, skipped_in_a_row: 1, apply: 0, grad_scale: 1.0, ..state };
                    assert_eq!(training.state(), want, "{place}");
                    continue;
                }
                updates += 1;
                assert_eq!([report.skipped_now, report.skipped, report.skipped_in_a_row], [0, skipped, 0], "{place}");
                assert_eq!(report.updates, updates, "{place}");
                let g = wide(&grad);
                let norm = reference::gradnorm::forward(std::slice::from_ref(&g));
                let clip = reference::gradnorm::clip_scale(norm, hyper.clip.into());
                close(&format!("{place}: loss"), report.loss.into(), 3.1, 8.0 * EPS * 3.1);
                close(&format!("{place}: norm"), report.grad_norm.into(), norm, 16.0 * EPS * norm);
                assert_eq!(clip < 1.0, step % 2 == 0, "{place}: clipping");
                let settings = settings(&hyper, clip, true, updates);
                reference::adamw::update(&mut p, &g, &mut m, &mut v, &settings);
                let t = f64::from(updates);
                let powers = t * EPS / (1.0 - settings.beta1.powf(t)) + t * EPS / (1.0 - settings.beta2.powf(t));
                let [got_p, got_m, got_v] = training.bits().map(|b| bytemuck::pod_collect_to_vec::<u8, f32>(&b));
                for i in 0..n {
                    m_abs[i] = settings.beta1 * m_abs[i] + (1.0 - settings.beta1) * (g[i] * clip).abs();
                    let spread = (v[i] / (1.0 - settings.beta2.powf(t))).sqrt() + settings.eps;
                    let moved = settings.lr * m_abs[i] / (1.0 - settings.beta1.powf(t)) / spread;
                    // every update so far has rounded the moments once more, and the clip factor is off by the norm
                    p_off[i] += moved * ((20.0 + 8.0 * t) * EPS + powers) + 2.0 * EPS * (p[i].abs() + moved);
                    let place = |what: &str| format!("{place}: {what}[{i}]");
                    close(&place("m"), got_m[i].into(), m[i], (20.0 + 4.0 * t) * EPS * m_abs[i] + 1e-30);
                    close(&place("v"), got_v[i].into(), v[i], (40.0 + 5.0 * t) * EPS * v[i] + 1e-30);
                    close(&place("param"), got_p[i].into(), p[i], p_off[i]);
                }
            }
        });
    }
}
