//! The sum of squares of all gradients, first stage: one partial sum per workgroup.

use crate::error::Result;
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Immediates, KernelId, OpPass, Pass, Tensor};

use super::stepcontrol::StepControl;
use super::{Operator, reduce_group};

/// The pass that [`forward`] records.
pub const FORWARD: OpPass = OpPass::new("gradnorm", "forward");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator = Operator { name: "gradnorm", passes: &[FORWARD], kernels, tried: super::none_tried };

crate::shared_struct! {
    struct Params {
        count: u32,
        first: u32,
        groups: u32,
    }
}

/// Elements that a workgroup sums at least.
const SHARE: usize = 16_384;
/// Workgroups of one window at most.
const MOST: usize = 1024;

fn kernel(caps: &Caps, width: Width) -> KernelId {
    let body = [include_str!("../../shaders/shared/step.wgsl"), include_str!("../../shaders/gradnorm.wgsl")];
    KernelId::shader(FORWARD, "forward", width, &body).set("WORKGROUP", reduce_group(caps))
}

/// The kernels an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    [Width::Vec4, Width::Scalar].map(|width| kernel(caps, width)).into()
}

fn groups_of(elements: usize) -> usize {
    elements.div_ceil(SHARE).clamp(1, MOST)
}

/// Partial sums that windows of these many elements make.
#[must_use]
pub fn partials(windows: &[Tensor]) -> usize {
    windows.iter().map(|w| groups_of(w.len())).sum()
}

/// Tensors of [`forward`].
#[derive(Debug)]
pub struct Forward<'a> {
    /// Flat windows that together hold every gradient once, each small enough to bind.
    pub grads: &'a [Tensor],
    /// (partials, 1), overwritten; `partials` as [`partials`] says.
    pub partials: &'a Tensor,
    /// Says of what the gradients are multiples: `grad_unit loss_scale`.
    pub control: &'a StepControl,
}

/// `partials[g] = sum of squares of workgroup g's share`, each gradient divided by `grad_unit loss_scale`. Their sum is
/// the squared norm.
///
/// # Errors
/// [`crate::error::Error::Shape`] if `partials` has another length.
pub fn forward(pass: &mut Pass, io: Forward) -> Result<()> {
    io.partials.check_shape("gradnorm.forward", "partials", partials(io.grads), 1)?;
    let mut first = 0;
    for grads in io.grads {
        let width = Width::of(&[grads.len()]);
        let groups = groups_of(grads.len());
        let kernel = kernel(&pass.gpu.caps, width);
        let params =
            Params { count: (grads.len() / width.elements()) as u32, first: first as u32, groups: groups as u32 };
        pass.dispatch(&Dispatch {
            kernel: &kernel,
            tensors: &[grads, io.partials, &io.control.state, &io.control.hyper],
            immediates: Immediates::of(&params),
            groups: groups as u64,
            flops: 2 * grads.len() as u64,
            bytes: grads.bytes(),
        })?;
        first += groups;
    }
    Ok(())
}
