//! The working copy of weights for matrix products: f32 rounded to f16.

use crate::error::{Error, Result};
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Elem, Kernel, Pass, Tensor};

use super::{group, groups};

fn kernel(caps: &Caps, width: Width) -> Kernel {
    let body = include_str!("../../shaders/cast.wgsl");
    Kernel::stored("cast.forward", "forward", width, Elem::F16, body).set("WG", group(caps))
}

/// The kernels an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<Kernel> {
    if !caps.f16 {
        return Vec::new();
    }
    [Width::Vec4, Width::Scalar].map(|width| kernel(caps, width)).into()
}

/// `out = inp`, f32 rounded to the nearest f16, of flat windows of equal length. Overwrites `out`.
///
/// # Errors
/// [`Error::Shape`] if lengths or types are others.
pub fn forward(pass: &mut Pass, inp: &Tensor, out: &Tensor) -> Result<()> {
    inp.expect_elem("cast.forward", "inp", Elem::F32)?;
    out.expect_elem("cast.forward", "out", Elem::F16)?;
    if inp.len() != out.len() {
        let (n, found) = (inp.len(), out.len());
        return Err(Error::Shape(format!("cast.forward: `out` has {found} elements, expected {n}")));
    }
    let width = Width::of(&[inp.len()]);
    let count = inp.len() / width.elements();
    pass.dispatch(&Dispatch {
        kernel: &kernel(&pass.gpu.caps, width),
        tensors: &[inp, out],
        immediates: bytemuck::bytes_of(&(count as u32)),
        groups: groups(count, group(&pass.gpu.caps)),
        flops: inp.len() as u64,
        bytes: inp.bytes() + out.bytes(),
    })
}
