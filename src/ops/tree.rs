//! One addition of the tree that sums gradients and losses over ranks.

use crate::error::Result;
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Immediates, KernelId, OpPass, Pass, Tensor};

use super::{ELEMENTWISE_WORKGROUP, Operator, workgroups};

/// The pass that [`add`] records.
pub const ADD: OpPass = OpPass::new("tree", "add");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator = Operator { name: "tree", passes: &[ADD], kernels, tried: super::none_tried };

crate::shared_struct! {
    struct TreeImmediates {
        count: u32,
    }
}

fn kernel(width: Width) -> KernelId {
    KernelId::shader(ADD, "add", width, &[include_str!("../../shaders/tree.wgsl")])
        .set("WORKGROUP", ELEMENTWISE_WORKGROUP)
}

/// Returns the kernels that an adapter may be given.
#[must_use]
pub fn kernels(_caps: &Caps) -> Vec<KernelId> {
    [Width::Vec4, Width::Scalar].map(kernel).into()
}

/// Tensors of [`add`].
#[derive(Debug)]
pub struct Add<'a> {
    /// (1, N), accumulated: the sum over the earlier ranks. It must fit one binding.
    pub left: &'a Tensor,
    /// (1, N): the sum over the later ranks, in another buffer.
    pub right: &'a Tensor,
}

/// `left += right`.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes differ.
pub fn add(pass: &mut Pass, Add { left, right }: Add) -> Result<()> {
    left.check_shape("tree.add", "left", 1, right.columns())?;
    right.check_shape("tree.add", "right", 1, left.columns())?;
    let width = Width::of(&[left.len()]);
    let count = left.len() / width.elements();
    pass.dispatch(&Dispatch {
        kernel: &kernel(width),
        tensors: &[left, right],
        immediates: Immediates::of(&TreeImmediates { count: count as u32 }),
        groups: workgroups(count, ELEMENTWISE_WORKGROUP),
        flops: left.len() as u64,
        bytes: 2 * left.bytes() + right.bytes(),
    })
}
