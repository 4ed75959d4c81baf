//! Decisions about a step, made on the GPU: clipping, the test for non-finite values, skipping, Adam's powers of beta.

use crate::error::Result;
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Elem, Gpu, Immediates, KernelId, OpPass, Pass, Tensor};

use super::{Operator, reduction_workgroup};

/// The pass that [`accumulate`] records.
pub const ACCUMULATE: OpPass = OpPass::new("stepcontrol", "accumulate");
/// The pass that [`decide`] records.
pub const DECIDE: OpPass = OpPass::new("stepcontrol", "decide");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator =
    Operator { name: "stepcontrol", passes: &[ACCUMULATE, DECIDE], kernels, tried: super::none_tried };

crate::shared_struct! {
    /// The state that stays on the GPU from step to step. Part of a checkpoint.
    pub struct State {
        /// beta1 to the power of the updates applied.
        pub beta1_power: f32,
        /// beta2 to the power of the updates applied.
        pub beta2_power: f32,
        /// Updates applied: Adam's t.
        pub updates: u32,
        /// Updates skipped in all.
        pub skipped: u32,
        /// Updates skipped since the last applied one.
        pub skipped_in_a_row: u32,
        /// 1 if the current step's update is applied.
        pub apply: u32,
        /// Factor by which the current step's gradients are multiplied: it removes their unit and clips them.
        pub grad_scale: f32,
        /// Unused; it keeps the layout of checkpoints.
        pub reserved: u32,
        /// Factor by which gradients are scaled in addition to [`Hyper::grad_unit`]: a power of two, 1 in f32.
        pub loss_scale: f32,
        /// Updates applied since the loss scale last changed.
        pub clean_steps: u32,
    }
}

impl Default for State {
    fn default() -> Self {
        Self { beta1_power: 1.0, beta2_power: 1.0, loss_scale: 1.0, ..bytemuck::Zeroable::zeroed() }
    }
}

impl State {
    /// Loss scale at the start of a run in mixed precision.
    pub const FIRST_LOSS_SCALE: f32 = 1024.0;
}

crate::shared_struct! {
    /// A step's hyperparameters, sent from the host.
    pub struct Hyper {
        /// Learning rate.
        pub lr: f32,
        /// Decay of the first moment.
        pub beta1: f32,
        /// Decay of the second moment.
        pub beta2: f32,
        /// Added to the root of the second moment.
        pub eps: f32,
        /// Decoupled weight decay.
        pub weight_decay: f32,
        /// Largest gradient norm; 0 disables clipping.
        pub clip: f32,
        /// 1 / tokens of a step.
        pub inverse_tokens: f32,
        /// The step's number, from 1.
        pub step: u32,
        /// Factor by which gradients are scaled in addition to [`State::loss_scale`].
        pub grad_unit: f32,
        /// 1 if the loss scale is dynamic: overflows halve it.
        pub dynamic: u32,
        /// Largest z-score of the loss, above which a step is skipped; 0 disables it.
        pub skip_loss_z: f32,
        /// Largest z-score of the gradient norm, above which a step is skipped; 0 disables it.
        pub skip_norm_z: f32,
    }
}

crate::shared_struct! {
    /// The last finite losses or gradient norms, with which the z-scores of outliers are computed. Part of a
    /// checkpoint.
    pub struct OutlierWindow {
        /// Number of values so far, at most the length of `values`.
        pub count: u32,
        /// Position of the next value, where the oldest is overwritten.
        pub next: u32,
        /// Values; zero where there is none yet.
        pub values: [f32; 128],
    }
}

crate::shared_struct! {
    /// A step's outcome, read back some steps later.
    pub struct Report {
        /// The step's number.
        pub step: u32,
        /// Mean loss in nats per token.
        pub loss: f32,
        /// Gradient norm before clipping.
        pub grad_norm: f32,
        /// 0 if this step's update was applied; one of [`Report::NOT_FINITE`], [`Report::LOSS_OUTLIER`] and
        /// [`Report::NORM_OUTLIER`] if it was skipped.
        pub skipped_now: u32,
        /// Updates skipped in all.
        pub skipped: u32,
        /// Updates skipped since the last applied one, not counting overflows while the loss scale is above its
        /// minimum.
        pub skipped_in_a_row: u32,
        /// Updates applied.
        pub updates: u32,
        /// Learning rate.
        pub lr: f32,
        /// Loss scale with which the step was computed.
        pub loss_scale: f32,
        /// z-score of the loss among the last 128; 0 while there are fewer.
        pub loss_z: f32,
        /// z-score of the gradient norm among the last 128; 0 while there are fewer.
        pub norm_z: f32,
    }
}

impl Report {
    /// Value of [`Report::skipped_now`] if the loss or the gradient norm was not finite.
    pub const NOT_FINITE: u32 = 1;
    /// Value of [`Report::skipped_now`] if the loss's z-score was above [`Hyper::skip_loss_z`].
    pub const LOSS_OUTLIER: u32 = 2;
    /// Value of [`Report::skipped_now`] if the norm's z-score was above [`Hyper::skip_norm_z`].
    pub const NORM_OUTLIER: u32 = 3;
}

/// The four small tensors of step control.
#[derive(Debug)]
pub struct StepControl {
    /// One [`State`].
    pub state: Tensor,
    /// One [`Hyper`].
    pub hyper: Tensor,
    /// One [`Report`].
    pub report: Tensor,
    /// Two [`OutlierWindow`]s: of losses, of norms.
    pub windows: Tensor,
}

impl StepControl {
    /// Allocates the tensors and writes a fresh state.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let words = |label: &str, bytes: usize| gpu.tensor(label, bytes / 4, 1, Elem::U32);
        let control = Self {
            state: words("step state", size_of::<State>())?,
            hyper: words("step hyperparameters", size_of::<Hyper>())?,
            report: words("step report", size_of::<Report>())?,
            windows: words("step windows", 2 * size_of::<OutlierWindow>())?,
        };
        gpu.write(&control.state, bytemuck::bytes_of(&State::default()))?;
        Ok(control)
    }
}

crate::shared_struct! {
    struct StepcontrolImmediates {
        count: u32,
        adds: u32,
    }
}

fn kernel(caps: &Caps, of: OpPass) -> KernelId {
    // only one workgroup is dispatched, so it has as many invocations as every adapter allows
    let wg = if caps.software { reduction_workgroup(caps) } else { 256 };
    let body = [include_str!("../../shaders/shared/step.wgsl"), include_str!("../../shaders/stepcontrol.wgsl")];
    KernelId::shader(of, of.pass, Width::Vec4, &body).set("WORKGROUP", wg)
}

/// Returns the kernels that an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    [ACCUMULATE, DECIDE].map(|of| kernel(caps, of)).into()
}

/// `loss += sum of losses`, or `loss =` where it [begins](Pass::take_zero). `loss` is (1, 1), `losses` (N, 1).
///
/// # Errors
/// [`crate::error::Error::Gpu`] if the kernel cannot be built.
pub fn accumulate(pass: &mut Pass, loss: &Tensor, losses: &Tensor) -> Result<()> {
    let adds = !pass.take_zero(loss);
    let kernel = kernel(&pass.gpu.caps, ACCUMULATE);
    pass.dispatch(&Dispatch {
        kernel: &kernel,
        tensors: &[losses, loss],
        immediates: Immediates::of(&StepcontrolImmediates { count: losses.len() as u32, adds: adds.into() }),
        groups: 1,
        flops: losses.len() as u64,
        bytes: losses.bytes(),
    })
}

/// Decides whether the step is applied, and writes the report. `partials` (P, 1) add up to the sum of squares of all
/// gradients, which are scaled by `grad_unit loss_scale`. `loss` (1, 1) is the sum of the step's losses.
///
/// # Errors
/// [`crate::error::Error::Gpu`] if the kernel cannot be built.
pub fn decide(pass: &mut Pass, control: &StepControl, partials: &Tensor, loss: &Tensor) -> Result<()> {
    let kernel = kernel(&pass.gpu.caps, DECIDE);
    pass.dispatch(&Dispatch {
        kernel: &kernel,
        tensors: &[partials, &control.state, &control.hyper, &control.report, &control.windows, loss],
        immediates: Immediates::of(&StepcontrolImmediates { count: partials.len() as u32, adds: 0 }),
        groups: 1,
        flops: partials.len() as u64,
        bytes: partials.bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Kernel;
    use crate::ops::OPERATORS;

    /// Checks that the structs of the state, the hyperparameters, the report and the windows are the same in shaders
    /// and in Rust.
    #[test]
    fn structs_are_the_same_in_rust_and_wgsl() {
        let caps = Caps { f16: true, ..Caps::webgpu_defaults() };
        let kernels: Vec<Kernel> = OPERATORS
            .iter()
            .flat_map(|operator| (operator.kernels)(&caps))
            .map(|id| id.kernel())
            .filter(|kernel| kernel.source.contains("struct State"))
            .collect();
        let mut found = [0; 4];
        for kernel in &kernels {
            let have = [
                kernel.check_struct::<State>("State"),
                kernel.check_struct::<Hyper>("Hyper"),
                kernel.check_struct::<Report>("Report"),
                kernel.check_struct::<OutlierWindow>("OutlierWindow"),
            ];
            for (count, have) in found.iter_mut().zip(have) {
                *count += usize::from(have.unwrap_or_else(|e| panic!("{e}")));
            }
        }
        // AdamW, cross-entropy and step control bind state and hyperparameters; step control alone binds report and
        // windows
        assert!(found[0] >= 8 && found[1] == found[0] && found[2] >= 1 && found[3] >= 1, "{found:?}");
    }
}
