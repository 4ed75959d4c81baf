//! The residual connection.

use crate::error::Result;
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Immediates, KernelId, OpPass, Pass, Tensor};

use super::{ELEMENTWISE_WORKGROUP, Operator, workgroups};

/// The pass that [`forward`] records.
pub const FORWARD: OpPass = OpPass::new("residual", "forward");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator = Operator { name: "residual", passes: &[FORWARD], kernels, tried: super::none_tried };

crate::shared_struct! {
    struct ResidualImmediates {
        count: u32,
    }
}

fn kernel(width: Width) -> KernelId {
    KernelId::shader(FORWARD, "forward", width, &[include_str!("../../shaders/residual.wgsl")])
        .set("WORKGROUP", ELEMENTWISE_WORKGROUP)
}

/// Returns the kernels that an adapter may be given.
#[must_use]
pub fn kernels(_caps: &Caps) -> Vec<KernelId> {
    [Width::Vec4, Width::Scalar].map(kernel).into()
}

/// Tensors of [`forward`].
#[derive(Debug)]
pub struct Forward<'a> {
    /// (N, C): the residual stream.
    pub inp: &'a Tensor,
    /// (N, C): the branch's output, which is added to it.
    pub branch: &'a Tensor,
    /// (N, C), overwritten.
    pub out: &'a Tensor,
}

/// `out = inp + branch`. Overwrites `out`. There is no backward, because the gradient of both inputs is that of `out`.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes differ.
pub fn forward(pass: &mut Pass, io: Forward) -> Result<()> {
    let (n, c) = (io.inp.rows(), io.inp.columns());
    io.branch.check_shape("residual.forward", "branch", n, c)?;
    io.out.check_shape("residual.forward", "out", n, c)?;
    let width = Width::of(&[c]);
    let kernel = kernel(width);
    for rows in pass.row_windows(n, io.inp.row_bytes()) {
        let (inp, branch, out) = (io.inp.slice(rows.clone()), io.branch.slice(rows.clone()), io.out.slice(rows));
        let count = inp.len() / width.elements();
        pass.dispatch(&Dispatch {
            kernel: &kernel,
            tensors: &[&inp, &branch, &out],
            immediates: Immediates::of(&ResidualImmediates { count: count as u32 }),
            groups: workgroups(count, ELEMENTWISE_WORKGROUP),
            flops: inp.len() as u64,
            bytes: 3 * inp.bytes(),
        })?;
    }
    Ok(())
}
