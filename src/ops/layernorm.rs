//! Layer normalisation (Ba, Kiros and Hinton), with the normalised input and its reciprocal standard deviation kept for
//! the backward.

use bytemuck::{Pod, Zeroable};

use crate::error::{Error, Result};
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Elem, Kernel, Pass, Tensor};

use super::{bias, group, groups, reduce_group, stored};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    columns: u32,
    inverse: f32,
    block_rows: u32,
    blocks: u32,
}

/// Rows of (1, C) that the scratch of [`backward`] must have.
pub const SCRATCH_ROWS: usize = 2 * bias::BLOCKS;

fn kernel(caps: &Caps, entry: &'static str, width: Width, elem: Elem) -> Kernel {
    let by_rows = matches!(entry, "forward" | "backward" | "backward_copied");
    let wg = if by_rows { reduce_group(caps) } else { group(caps) };
    let body = include_str!("../../shaders/layernorm.wgsl");
    Kernel::stored(&format!("layernorm.{entry}"), entry, width, elem, body).set("WG", wg)
}

/// The kernels an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<Kernel> {
    let mut list = Vec::new();
    for width in [Width::Vec4, Width::Scalar] {
        for elem in stored(caps) {
            let backward = if elem == Elem::F16 { "backward_copied" } else { "backward" };
            list.extend(
                ["forward", "affine", backward, "backward_blocks"].map(|entry| kernel(caps, entry, width, elem)),
            );
        }
        list.push(kernel(caps, "backward_params", width, Elem::F32));
    }
    list
}

fn params(rows: usize, c: usize, width: Width) -> Params {
    let (block_rows, blocks) = bias::blocks(rows);
    Params {
        rows: rows as u32,
        columns: (c / width.elements()) as u32,
        inverse: 1.0 / c as f32,
        block_rows: block_rows as u32,
        blocks: blocks as u32,
    }
}

/// Tensors of [`forward`].
#[derive(Debug)]
pub struct Forward<'a> {
    /// (N, C).
    pub inp: &'a Tensor,
    /// (1, C).
    pub weight: &'a Tensor,
    /// (1, C).
    pub bias: &'a Tensor,
    /// (N, C), of the elements of `out`, overwritten: the normalised input.
    pub xhat: &'a Tensor,
    /// (N, C), f32 or f16, overwritten.
    pub out: &'a Tensor,
    /// (N, 1), overwritten: 1 / sqrt(variance + 1e-5).
    pub rstd: &'a Tensor,
}

/// `xhat[n,c] = (inp[n,c] - mean[n]) rstd[n]`, `out[n,c] = xhat[n,c] weight[c] + bias[c]`. Overwrites `xhat`, `out`, `rstd`.
///
/// # Errors
/// [`Error::Shape`].
pub fn forward(pass: &mut Pass, io: Forward) -> Result<()> {
    let (n, c) = (io.inp.rows(), io.inp.columns());
    let place = "layernorm.forward";
    check_affine(place, [n, c], [io.weight, io.bias, io.xhat, io.out])?;
    io.rstd.expect(place, "rstd", n, 1)?;
    let width = Width::of(&[c]);
    let kernel = kernel(&pass.gpu.caps, "forward", width, io.out.elem());
    for rows in pass.row_windows(n, io.inp.row_bytes()) {
        let [inp, xhat, out, rstd] = [io.inp, io.xhat, io.out, io.rstd].map(|t| t.slice(rows.clone()));
        pass.dispatch(&Dispatch {
            kernel: &kernel,
            tensors: &[&inp, io.weight, io.bias, &xhat, &out, &rstd],
            immediates: bytemuck::bytes_of(&params(inp.rows(), c, width)),
            groups: inp.rows() as u64,
            flops: 8 * inp.len() as u64,
            bytes: inp.bytes() + xhat.bytes() + out.bytes() + rstd.bytes() + 2 * io.weight.bytes(),
        })?;
    }
    Ok(())
}

/// That `weight`, `bias`, `xhat` and `out` fit (N, C) rows.
fn check_affine(place: &str, [n, c]: [usize; 2], [weight, bias, xhat, out]: [&Tensor; 4]) -> Result<()> {
    weight.expect(place, "weight", 1, c)?;
    bias.expect(place, "bias", 1, c)?;
    xhat.expect(place, "xhat", n, c)?;
    out.expect(place, "out", n, c)?;
    xhat.expect_elem(place, "xhat", out.elem())
}

/// Tensors of [`affine`].
#[derive(Debug)]
pub struct Affine<'a> {
    /// (N, C): what [`forward`] kept.
    pub xhat: &'a Tensor,
    /// (1, C).
    pub weight: &'a Tensor,
    /// (1, C).
    pub bias: &'a Tensor,
    /// (N, C), of the elements of `xhat`, overwritten.
    pub out: &'a Tensor,
}

/// `out[n,c] = xhat[n,c] weight[c] + bias[c]`: [`forward`]'s `out` once more, bit by bit. Overwrites `out`.
///
/// # Errors
/// [`Error::Shape`].
pub fn affine(pass: &mut Pass, io: Affine) -> Result<()> {
    let (n, c) = (io.xhat.rows(), io.xhat.columns());
    check_affine("layernorm.affine", [n, c], [io.weight, io.bias, io.xhat, io.out])?;
    let width = Width::of(&[c]);
    let kernel = kernel(&pass.gpu.caps, "affine", width, io.out.elem());
    for rows in pass.row_windows(n, io.xhat.row_bytes()) {
        let [xhat, out] = [io.xhat, io.out].map(|t| t.slice(rows.clone()));
        pass.dispatch(&Dispatch {
            kernel: &kernel,
            tensors: &[&xhat, io.weight, io.bias, &out],
            immediates: bytemuck::bytes_of(&params(xhat.rows(), c, width)),
            groups: groups(xhat.len() / width.elements(), group(&pass.gpu.caps)),
            flops: 2 * xhat.len() as u64,
            bytes: xhat.bytes() + out.bytes() + 2 * io.weight.bytes(),
        })?;
    }
    Ok(())
}

/// Tensors of [`backward`].
#[derive(Debug)]
pub struct Backward<'a> {
    /// (N, C), f32 or f16.
    pub dout: &'a Tensor,
    /// (N, C), of the elements of `dout`: what `forward` kept.
    pub xhat: &'a Tensor,
    /// (1, C).
    pub weight: &'a Tensor,
    /// (N, 1): what `forward` kept.
    pub rstd: &'a Tensor,
    /// (N, C), accumulated: the gradient of the residual stream.
    pub dinp: &'a Tensor,
    /// (N, C) of f16, overwritten by `dinp`; there if and only if `dout` is f16.
    pub copy: Option<&'a Tensor>,
    /// (1, C), accumulated.
    pub dweight: &'a Tensor,
    /// (1, C), accumulated.
    pub dbias: &'a Tensor,
    /// At least [`SCRATCH_ROWS`] * C elements, overwritten.
    pub scratch: &'a Tensor,
}

/// With `g = weight dout`: `dinp += rstd (g - mean(g) - xhat mean(g xhat))`, `dweight += sum over n of dout xhat`, `dbias += sum over n of dout`.
///
/// # Errors
/// [`Error::Shape`].
pub fn backward(pass: &mut Pass, io: Backward) -> Result<()> {
    let (n, c) = (io.xhat.rows(), io.xhat.columns());
    let place = "layernorm.backward";
    io.dout.expect(place, "dout", n, c)?;
    io.dinp.expect(place, "dinp", n, c)?;
    for (name, tensor) in [("weight", io.weight), ("dweight", io.dweight), ("dbias", io.dbias)] {
        tensor.expect(place, name, 1, c)?;
    }
    io.rstd.expect(place, "rstd", n, 1)?;
    let width = Width::of(&[c]);
    let elem = io.dout.elem();
    io.xhat.expect_elem(place, "xhat", elem)?;
    if io.copy.is_some() != (elem == Elem::F16) {
        return Err(Error::Shape(format!("{place}: `dout` holds {elem:?}, a copy is for f16 and only for it")));
    }
    if let Some(copy) = io.copy {
        copy.expect(place, "copy", n, c)?;
        copy.expect_elem(place, "copy", elem)?;
    }
    let caps = &pass.gpu.caps;
    let rows_kernel = kernel(caps, if io.copy.is_some() { "backward_copied" } else { "backward" }, width, elem);
    let blocks_kernel = kernel(caps, "backward_blocks", width, elem);
    let params_kernel = kernel(caps, "backward_params", width, Elem::F32);
    let wg = group(&pass.gpu.caps);
    for rows in pass.row_windows(n, io.dinp.row_bytes()) {
        let [dout, xhat, rstd, dinp] = [io.dout, io.xhat, io.rstd, io.dinp].map(|t| t.slice(rows.clone()));
        let p = params(xhat.rows(), c, width);
        let scratch = io.scratch.reshape(2 * p.blocks as usize, c);
        let copy = io.copy.map(|t| t.slice(rows.clone()));
        let mut tensors = vec![&dout, &xhat, io.weight, &rstd, &dinp];
        tensors.extend(&copy);
        let copied = copy.as_ref().map_or(0, Tensor::bytes);
        pass.dispatch(&Dispatch {
            kernel: &rows_kernel,
            tensors: &tensors,
            immediates: bytemuck::bytes_of(&p),
            groups: xhat.rows() as u64,
            flops: 10 * xhat.len() as u64,
            bytes: dout.bytes() + xhat.bytes() + 2 * dinp.bytes() + copied + rstd.bytes() + io.weight.bytes(),
        })?;
        pass.dispatch(&Dispatch {
            kernel: &blocks_kernel,
            tensors: &[&dout, &xhat, &scratch],
            immediates: bytemuck::bytes_of(&p),
            groups: groups((p.blocks * p.columns) as usize, wg),
            flops: 3 * xhat.len() as u64,
            bytes: dout.bytes() + xhat.bytes() + scratch.bytes(),
        })?;
        pass.dispatch(&Dispatch {
            kernel: &params_kernel,
            tensors: &[&scratch, io.dweight, io.dbias],
            immediates: bytemuck::bytes_of(&p),
            groups: groups(p.columns as usize, wg),
            flops: scratch.len() as u64,
            bytes: scratch.bytes() + 4 * io.dweight.bytes(),
        })?;
    }
    Ok(())
}
