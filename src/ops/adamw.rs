//! AdamW: the update of all parameters from their gradients.

use crate::error::{Error, Fault, Result};
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Elem, Immediates, KernelId, OpPass, Pass, Tensor};

use super::{ELEMENTWISE_WORKGROUP, Operator, stepcontrol::StepControl, widths, workgroups};

/// The pass that [`forward`] records.
pub const FORWARD: OpPass = OpPass::new("adamw", "forward");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator = Operator { name: "adamw", passes: &[FORWARD], kernels, tried: super::none_tried };

crate::shared_struct! {
    struct AdamwImmediates {
        count: u32,
        decays: u32,
    }
}

/// Returns the element type that decides how much the kernel loads and stores at once.
fn stored_copy(copied: bool) -> Elem {
    if copied { Elem::F16 } else { Elem::F32 }
}

fn kernel(width: Width, copied: bool) -> KernelId {
    let entry = if copied { "forward_copied" } else { "forward" };
    let body = [include_str!("../../shaders/shared/step.wgsl"), include_str!("../../shaders/adamw.wgsl")];
    KernelId::shader(FORWARD, entry, width, &body).stored(stored_copy(copied)).set("WORKGROUP", ELEMENTWISE_WORKGROUP)
}

/// Returns the kernels that an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    let copied: &[bool] = if caps.f16 { &[false, true] } else { &[false] };
    let of = |&c: &bool| widths(stored_copy(c)).iter().map(move |&width| kernel(width, c));
    copied.iter().flat_map(of).collect()
}

/// Tensors of [`forward`]: flat windows of equal length.
#[derive(Debug)]
pub struct Forward<'a> {
    /// The parameters, updated in place.
    pub param: &'a Tensor,
    /// Their gradients, read.
    pub grad: &'a Tensor,
    /// First moment, updated.
    pub m: &'a Tensor,
    /// Second moment, updated.
    pub v: &'a Tensor,
    /// Overwritten with the updated parameters as f16, if given.
    pub copy: Option<&'a Tensor>,
    /// Decides whether the step is applied, and with which gradient scale and hyperparameters.
    pub control: &'a StepControl,
    /// Whether weight decay applies.
    pub decays: bool,
}

/// Records one AdamW update. The kernel writes nothing in a step that is skipped. `shaders/adamw.wgsl` has the formula.
///
/// # Errors
/// [`Error::Shape`] if the lengths differ.
pub fn forward(pass: &mut Pass, io: Forward) -> Result<()> {
    let n = io.param.len();
    if let Some(copy) = io.copy {
        copy.check_elem("adamw.forward", "copy", Elem::F16)?;
    }
    let others = [("grad", Some(io.grad)), ("m", Some(io.m)), ("v", Some(io.v)), ("copy", io.copy)];
    for (name, tensor) in others.into_iter().filter_map(|(name, t)| t.map(|t| (name, t))) {
        if tensor.len() != n {
            return Err(Error::shape(
                Fault::at("adamw.forward", format!("`{name}` has {} elements", tensor.len())).expected(n),
            ));
        }
    }
    let width = Width::stored(stored_copy(io.copy.is_some()), &[n]);
    let count = n / width.elements();
    let kernel = kernel(width, io.copy.is_some());
    let mut tensors = vec![io.param, io.grad, io.m, io.v, &io.control.state, &io.control.hyper];
    tensors.extend(io.copy);
    pass.dispatch(&Dispatch {
        kernel: &kernel,
        tensors: &tensors,
        immediates: Immediates::of(&AdamwImmediates { count: count as u32, decays: u32::from(io.decays) }),
        groups: workgroups(count, ELEMENTWISE_WORKGROUP),
        flops: 14 * n as u64,
        bytes: 7 * io.param.bytes() + io.copy.map_or(0, Tensor::bytes),
    })
}
