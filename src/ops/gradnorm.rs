//! The sum of squares of gradients, first stage: one partial sum per workgroup.

use crate::error::Result;
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Immediates, KernelId, OpPass, Pass, Tensor};

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
    KernelId::shader(FORWARD, "forward", width, &[include_str!("../../shaders/gradnorm.wgsl")])
        .set("WORKGROUP", reduce_group(caps))
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
    /// Flat windows of gradients that together hold each of them once, each small enough to bind.
    pub grads: &'a [Tensor],
    /// (P, 1), overwritten from row `first` on: so many rows as [`partials`] says.
    pub partials: &'a Tensor,
    /// Rows before, which hold sums of other gradients.
    pub first: usize,
}

/// `partials[first + g] = sum of squares of workgroup g's share`. The sum of all rows is the squared norm.
///
/// # Errors
/// [`crate::error::Error::Shape`] if `partials` ends elsewhere.
pub fn forward(pass: &mut Pass, io: Forward) -> Result<()> {
    io.partials.check_shape("gradnorm.forward", "partials", io.first + partials(io.grads), 1)?;
    let mut first = io.first;
    for grads in io.grads {
        let width = Width::of(&[grads.len()]);
        let groups = groups_of(grads.len());
        let kernel = kernel(&pass.gpu.caps, width);
        let params =
            Params { count: (grads.len() / width.elements()) as u32, first: first as u32, groups: groups as u32 };
        pass.dispatch(&Dispatch {
            kernel: &kernel,
            tensors: &[grads, io.partials],
            immediates: Immediates::of(&params),
            groups: groups as u64,
            flops: 2 * grads.len() as u64,
            bytes: grads.bytes(),
        })?;
        first += groups;
    }
    Ok(())
}
