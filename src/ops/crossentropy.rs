//! Softmax, cross-entropy loss and their gradient, fused over a chunk of rows.

use crate::error::{Error, Fault, Result};
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Elem, Immediates, KernelId, OpPass, Pass, Tensor};

use super::stepcontrol::StepControl;
use super::{Operator, reduction_workgroup, storage_types, subgroup_lanes, widths};

/// The pass that [`forward`] records.
pub const FORWARD: OpPass = OpPass::new("crossentropy", "forward");
/// The pass that [`forward_backward`] records.
pub const FORWARD_BACKWARD: OpPass = OpPass::new("crossentropy", "forward_backward");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator =
    Operator { name: "crossentropy", passes: &[FORWARD, FORWARD_BACKWARD], kernels, tried: super::none_tried };

crate::shared_struct! {
    struct CrossentropyImmediates {
        rows: u32,
        vocab: u32,
        stride: u32,
        scale: f32,
    }
}

/// The target that excludes a row: its loss and gradient are zero.
pub const IGNORED: u32 = u32::MAX;

/// Most invocations that share a row. With that many, a GPU has few enough rows in flight that the second read of a row
/// hits the L2 cache: an H100 has 264 rows in flight and 50 MB of L2, and a row of GPT-2's logits takes 100 KB in f16.
const MOST: u32 = 1024;
/// Smallest number of accesses to a row per invocation, where a row gets more invocations than a usual workgroup has.
const ACCESSES: usize = 4;
/// Row length of the kernels in the translation tests. Kernels for longer rows differ only in their workgroup size,
/// which not every adapter supports.
const SAMPLE_COLUMNS: usize = 384;

/// Returns the number of invocations that share a row of `accesses` accesses: a power of two.
fn row_workgroup(caps: &Caps, accesses: usize) -> u32 {
    if caps.software {
        return reduction_workgroup(caps);
    }
    // each invocation uses two numbers of workgroup memory
    let most = MOST.min(caps.max_invocations).min(caps.max_workgroup_bytes / 8);
    let wanted = ((accesses / ACCESSES) as u32).next_power_of_two();
    wanted.min((most + 1).next_power_of_two() / 2).max(reduction_workgroup(caps))
}

fn kernel(caps: &Caps, of: OpPass, width: Width, elem: Elem, columns: usize) -> KernelId {
    let body = [include_str!("../../shaders/shared/step.wgsl"), include_str!("../../shaders/crossentropy.wgsl")];
    let workgroup = row_workgroup(caps, columns / width.elements());
    let kernel = KernelId::shader(of, of.pass, width, &body).stored(elem).set("WORKGROUP", workgroup);
    match subgroup_lanes(caps) {
        None => kernel.with_text(include_str!("../../shaders/shared/group_tree.wgsl")),
        Some(lanes) => kernel
            .with_hidden_const("SUBGROUP", lanes)
            .with_text(include_str!("../../shaders/shared/group_subgroups.wgsl"))
            .in_subgroups_of(lanes),
    }
}

/// Returns the kernels that an adapter may be given, for one sample row length.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    let mut list = Vec::new();
    for elem in storage_types(caps) {
        for &width in widths(elem) {
            list.extend([FORWARD, FORWARD_BACKWARD].map(|of| kernel(caps, of, width, elem, SAMPLE_COLUMNS)));
        }
    }
    list
}

/// Tensors of [`forward`] and [`forward_backward`].
#[derive(Debug)]
pub struct Forward<'a> {
    /// (n, Vp), f32 or f16: a chunk of rows.
    pub logits: &'a Tensor,
    /// (n, 1) u32 below `vocab`, or [`IGNORED`].
    pub targets: &'a Tensor,
    /// (n, 1), overwritten.
    pub losses: &'a Tensor,
    /// V. Columns from V on are padding.
    pub vocab: usize,
}

/// `losses[n] = -log softmax(logits[n, ..V])[targets[n]]`. Overwrites `losses`.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn forward(pass: &mut Pass, io: &Forward) -> Result<()> {
    run(pass, FORWARD, io, 0.0, None)
}

/// Does the same as [`forward`], and overwrites `logits` with their gradient `(softmax - onehot) scale loss_scale`,
/// where `loss_scale` is that of `control`. Padded columns become zero.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn forward_backward(pass: &mut Pass, io: &Forward, control: &StepControl, scale: f32) -> Result<()> {
    run(pass, FORWARD_BACKWARD, io, scale, Some(&control.state))
}

fn run(pass: &mut Pass, of: OpPass, io: &Forward, scale: f32, state: Option<&Tensor>) -> Result<()> {
    let (n, stride) = (io.logits.rows(), io.logits.columns());
    let place = "crossentropy.forward";
    io.targets.check_shape(place, "targets", n, 1)?;
    io.losses.check_shape(place, "losses", n, 1)?;
    if io.vocab > stride {
        return Err(Error::shape(
            Fault::at(place, format!("`logits` has {stride} columns")).expected(format!("at least {}", io.vocab)),
        ));
    }
    let width = Width::stored(io.logits.elem(), &[stride]);
    let kernel = kernel(&pass.gpu.caps, of, width, io.logits.elem(), stride);
    let mut tensors = vec![io.logits, io.targets, io.losses];
    tensors.extend(state);
    pass.dispatch(&Dispatch {
        kernel: &kernel,
        tensors: &tensors,
        immediates: Immediates::of(&CrossentropyImmediates {
            rows: n as u32,
            vocab: io.vocab as u32,
            stride: (stride / width.elements()) as u32,
            scale,
        }),
        groups: n as u64,
        flops: 6 * io.logits.len() as u64,
        bytes: if of == FORWARD { 1 } else { 2 } * io.logits.bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_rows_have_large_workgroups_where_the_adapter_has_them() {
        let gpu = Caps { max_invocations: 1024, ..Caps::webgpu_defaults() };
        let workgroups =
            |caps: &Caps| [1, 48, 512, 2048, 6288, 12_576, 50_257].map(|accesses| row_workgroup(caps, accesses));
        assert_eq!(workgroups(&gpu), [128, 128, 128, 512, 1024, 1024, 1024]);
        assert_eq!(workgroups(&Caps::webgpu_defaults())[3..], [256; 4]);
        assert_eq!(row_workgroup(&Caps { max_invocations: 768, ..gpu.clone() }, 6288), 512);
        assert_eq!(row_workgroup(&Caps { max_workgroup_bytes: 4 << 10, ..gpu.clone() }, 6288), 512);
        assert_eq!(workgroups(&Caps { software: true, lanes: 8, ..gpu }), [8; 7]);
    }
}
