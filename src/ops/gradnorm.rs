//! The sum of squares of gradients, first stage: one partial sum per workgroup.

use crate::error::Result;
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Immediates, KernelId, OpPass, Pass, Tensor};

use super::{Operator, reduction_workgroup};

/// The pass that [`forward`] records.
pub const FORWARD: OpPass = OpPass::new("gradnorm", "forward");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator = Operator { name: "gradnorm", passes: &[FORWARD], kernels, tried: super::none_tried };

crate::shared_struct! {
    struct GradnormImmediates {
        count: u32,
        first: u32,
        groups: u32,
        share: u32,
    }
}

/// Elements per block of [`forward_blocks`], a multiple of four.
pub const BLOCK: usize = 32_768;
/// Most elements that a workgroup sums, unless a window would then need more than [`MOST`] workgroups.
const SHARE: usize = 16_384;
/// Most workgroups for one window.
const MOST: usize = 1024;

fn kernel(caps: &Caps, width: Width) -> KernelId {
    KernelId::shader(FORWARD, "forward", width, &[include_str!("../../shaders/gradnorm.wgsl")])
        .set("WORKGROUP", reduction_workgroup(caps))
}

/// Returns the kernels that an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    [Width::Vec4, Width::Scalar].map(|width| kernel(caps, width)).into()
}

fn groups_of(elements: usize) -> usize {
    elements.div_ceil(SHARE).clamp(1, MOST)
}

/// Returns the number of partial sums that [`forward`] writes for these windows.
#[must_use]
pub fn partial_count(windows: &[Tensor]) -> usize {
    windows.iter().map(|w| groups_of(w.len())).sum()
}

/// Tensors of [`forward`].
#[derive(Debug)]
pub struct Forward<'a> {
    /// Flat windows of gradients that together hold each of them once, each small enough to bind.
    pub grads: &'a [Tensor],
    /// (P, 1), overwritten from row `first` on: [`partial_count`] rows.
    pub partials: &'a Tensor,
    /// Number of rows before these, which hold sums of other gradients.
    pub first: usize,
}

/// `partials[first + g] = sum of squares of workgroup g's share`. The sum of all rows is the squared norm.
///
/// # Errors
/// [`crate::error::Error::Shape`] if `partials` does not end with the last partial sum.
pub fn forward(pass: &mut Pass, io: Forward) -> Result<()> {
    io.partials.check_shape("gradnorm.forward", "partials", io.first + partial_count(io.grads), 1)?;
    let mut first = io.first;
    for grads in io.grads {
        let groups = groups_of(grads.len());
        let share = (grads.len() / Width::of(&[grads.len()]).elements()).div_ceil(groups);
        dispatch(pass, grads, io.partials, first, groups, share)?;
        first += groups;
    }
    Ok(())
}

/// `partials[first + b] = sum of squares of block b` of `grads` (1, N), whose blocks are [`BLOCK`] elements long. A
/// block's sum does not depend on which other blocks a device has, so devices of one kind compute the same sums.
/// `partials` is (P, 1) and ends with the last block.
///
/// # Errors
/// [`crate::error::Error::Shape`] if `partials` does not end with the last block.
pub fn forward_blocks(pass: &mut Pass, grads: &Tensor, partials: &Tensor, first: usize) -> Result<()> {
    let groups = grads.len().div_ceil(BLOCK);
    partials.check_shape("gradnorm.blocks", "partials", first + groups, 1)?;
    dispatch(pass, grads, partials, first, groups, BLOCK / Width::of(&[grads.len()]).elements())
}

fn dispatch(
    pass: &mut Pass,
    grads: &Tensor,
    partials: &Tensor,
    first: usize,
    groups: usize,
    share: usize,
) -> Result<()> {
    let width = Width::of(&[grads.len()]);
    let params = GradnormImmediates {
        count: (grads.len() / width.elements()) as u32,
        first: first as u32,
        groups: groups as u32,
        share: share as u32,
    };
    pass.dispatch(&Dispatch {
        kernel: &kernel(&pass.gpu.caps, width),
        tensors: &[grads, partials],
        immediates: Immediates::of(&params),
        groups: groups as u64,
        flops: 2 * grads.len() as u64,
        bytes: grads.bytes(),
    })
}
