//! GELU in its tanh form (Hendrycks and Gimpel; GPT-2's `gelu_new`).

use crate::error::Result;
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Elem, Immediates, KernelId, OpPass, Pass, Tensor};

use super::{ELEMENTWISE_WORKGROUP, Operator, storage_types, widths, workgroups};

/// The pass that [`forward`] records.
pub const FORWARD: OpPass = OpPass::new("gelu", "forward");
/// The pass that [`backward`] records.
pub const BACKWARD: OpPass = OpPass::new("gelu", "backward");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator =
    Operator { name: "gelu", passes: &[FORWARD, BACKWARD], kernels, tried: super::none_tried };

/// Floating-point operations per element. A transcendental function counts as one.
const FLOPS: u64 = 10;

crate::shared_struct! {
    struct GeluImmediates {
        count: u32,
    }
}

fn kernel(of: OpPass, width: Width, elem: Elem) -> KernelId {
    let body = [include_str!("../../shaders/shared/gelu.wgsl"), include_str!("../../shaders/gelu.wgsl")];
    KernelId::shader(of, of.pass, width, &body).stored(elem).set("WORKGROUP", ELEMENTWISE_WORKGROUP)
}

/// Returns the kernels that an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    let mut list = Vec::new();
    for elem in storage_types(caps) {
        for &width in widths(elem) {
            list.extend([FORWARD, BACKWARD].map(|of| kernel(of, width, elem)));
        }
    }
    list
}

/// Tensors of [`forward`].
#[derive(Debug)]
pub struct Forward<'a> {
    /// (N, C).
    pub inp: &'a Tensor,
    /// (N, C), overwritten.
    pub out: &'a Tensor,
}

/// `out = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`. Overwrites `out`.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes differ.
pub fn forward(pass: &mut Pass, io: Forward) -> Result<()> {
    io.out.check_shape("gelu.forward", "out", io.inp.rows(), io.inp.columns())?;
    elementwise(pass, FORWARD, io.inp, io.out, 2)
}

/// Tensors of [`backward`].
#[derive(Debug)]
pub struct Backward<'a> {
    /// (N, C): the input of [`forward`].
    pub inp: &'a Tensor,
    /// (N, C): the output's gradient on entry, the input's gradient afterwards.
    pub dout: &'a Tensor,
}

/// `dout *= gelu'(inp)`, in place.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes differ.
pub fn backward(pass: &mut Pass, io: Backward) -> Result<()> {
    io.dout.check_shape("gelu.backward", "dout", io.inp.rows(), io.inp.columns())?;
    elementwise(pass, BACKWARD, io.inp, io.dout, 3)
}

fn elementwise(pass: &mut Pass, of: OpPass, a: &Tensor, b: &Tensor, accesses: u64) -> Result<()> {
    let width = Width::stored(a.elem(), &[a.columns()]);
    b.check_elem("gelu", b.label(), a.elem())?;
    let kernel = kernel(of, width, a.elem());
    for rows in pass.row_windows(a.rows(), a.row_bytes()) {
        let (a, b) = (a.slice(rows.clone()), b.slice(rows));
        let count = a.len() / width.elements();
        pass.dispatch(&Dispatch {
            kernel: &kernel,
            tensors: &[&a, &b],
            immediates: Immediates::of(&GeluImmediates { count: count as u32 }),
            groups: workgroups(count, ELEMENTWISE_WORKGROUP),
            flops: FLOPS * a.len() as u64,
            bytes: accesses * a.bytes(),
        })?;
    }
    Ok(())
}
