//! A hash of weights, which devices compare to check that they hold the same weights.

use crate::error::Result;
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Immediates, KernelId, OpPass, Pass, Tensor};

use super::{ELEMENTWISE_WORKGROUP, Operator, workgroups};

/// The pass that [`forward`] records.
pub const FORWARD: OpPass = OpPass::new("hash", "forward");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator = Operator { name: "hash", passes: &[FORWARD], kernels, tried: super::none_tried };

/// Words that an invocation hashes: the shader's `EACH`.
const EACH: usize = 256;

crate::shared_struct! {
    struct HashImmediates {
        count: u32,
        first: u32,
    }
}

fn kernel() -> KernelId {
    KernelId::shader(FORWARD, "forward", Width::Vec4, &[include_str!("../../shaders/hash.wgsl")])
        .set("WORKGROUP", ELEMENTWISE_WORKGROUP)
}

/// Returns the kernels that an adapter may be given.
#[must_use]
pub fn kernels(_caps: &Caps) -> Vec<KernelId> {
    vec![kernel()]
}

/// Tensors of [`forward`].
#[derive(Debug)]
pub struct Forward<'a> {
    /// (1, N) of 4-byte elements, small enough for one binding.
    pub values: &'a Tensor,
    /// Position of the first value among all values that are hashed, modulo 2^32.
    pub first: u32,
    /// (2, 1) u32, accumulated: the two halves of the hash.
    pub sums: &'a Tensor,
}

/// `sums[k] += Σ mix(bits of value i, first + i, k)` modulo 2^32; see `shaders/hash.wgsl`. A single differing value
/// changes the hash.
///
/// # Errors
/// [`crate::error::Error::Shape`] if `sums` is not (2, 1) or `values` is not one row.
pub fn forward(pass: &mut Pass, Forward { values, first, sums }: Forward) -> Result<()> {
    sums.check_shape("hash.forward", "sums", 2, 1)?;
    values.check_shape("hash.forward", "values", 1, values.len())?;
    let count = values.len();
    pass.dispatch(&Dispatch {
        kernel: &kernel(),
        tensors: &[values, sums],
        immediates: Immediates::of(&HashImmediates { count: count as u32, first }),
        groups: workgroups(count.div_ceil(EACH), ELEMENTWISE_WORKGROUP),
        flops: 0,
        bytes: values.bytes(),
    })
}
