//! Conversions between f32 and f16, for the f16 copy of weights that matrix products read and for the row of
//! activations that sampling reads.

use crate::error::{Error, Fault, Result};
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Elem, Immediates, KernelId, OpPass, Pass, Tensor};

use super::{ELEMENTWISE_WORKGROUP, Operator, widths, workgroups};

/// The pass that [`forward`] records.
pub const FORWARD: OpPass = OpPass::new("cast", "forward");
/// The pass that [`widen`] records.
pub const WIDEN: OpPass = OpPass::new("cast", "widen");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator = Operator { name: "cast", passes: &[FORWARD, WIDEN], kernels, tried: super::none_tried };

crate::shared_struct! {
    struct CastImmediates {
        count: u32,
        first: u32,
    }
}

fn kernel(of: OpPass, width: Width) -> KernelId {
    let body = [include_str!("../../shaders/cast.wgsl")];
    KernelId::shader(of, of.pass, width, &body).stored(Elem::F16).set("WORKGROUP", ELEMENTWISE_WORKGROUP)
}

/// Returns the kernels that an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    if !caps.f16 {
        return Vec::new();
    }
    widths(Elem::F16).iter().flat_map(|&width| [FORWARD, WIDEN].map(|of| kernel(of, width))).collect()
}

/// `out = inp`, f32 rounded to the nearest f16. Both are flat windows of equal length. Overwrites `out`.
///
/// # Errors
/// [`Error::Shape`] if the lengths differ or a tensor has the wrong element type.
pub fn forward(pass: &mut Pass, inp: &Tensor, out: &Tensor) -> Result<()> {
    inp.check_elem("cast.forward", "inp", Elem::F32)?;
    out.check_elem("cast.forward", "out", Elem::F16)?;
    if inp.len() != out.len() {
        let (n, found) = (inp.len(), out.len());
        return Err(Error::shape(Fault::at("cast.forward", format!("`out` has {found} elements")).expected(n)));
    }
    let width = Width::stored(Elem::F16, &[inp.len()]);
    let count = inp.len() / width.elements();
    pass.dispatch(&Dispatch {
        kernel: &kernel(FORWARD, width),
        tensors: &[inp, out],
        immediates: Immediates::of(&CastImmediates { count: count as u32, first: 0 }),
        groups: workgroups(count, ELEMENTWISE_WORKGROUP),
        flops: inp.len() as u64,
        bytes: inp.bytes() + out.bytes(),
    })
}

/// `out = inp[row]`: one row of `inp`, f16 (N, C), as f32 (1, C). Overwrites `out`. A buffer copy would not do, because
/// rows with an odd number of f16 start in the middle of a 32-bit word.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn widen(pass: &mut Pass, inp: &Tensor, row: usize, out: &Tensor) -> Result<()> {
    inp.check_elem("cast.widen", "inp", Elem::F16)?;
    out.check_elem("cast.widen", "out", Elem::F32)?;
    out.check_shape("cast.widen", "out", 1, inp.columns())?;
    if row >= inp.rows() {
        return Err(Error::shape(
            Fault::at("cast.widen", format!("row {row}")).expected(format!("below {}", inp.rows())),
        ));
    }
    let width = Width::stored(Elem::F16, &[inp.columns()]);
    let count = inp.columns() / width.elements();
    pass.dispatch(&Dispatch {
        kernel: &kernel(WIDEN, width),
        tensors: &[inp, out],
        immediates: Immediates::of(&CastImmediates { count: count as u32, first: (row * count) as u32 }),
        groups: workgroups(count, ELEMENTWISE_WORKGROUP),
        flops: 0,
        bytes: inp.row_bytes() + out.bytes(),
    })
}
