//! The gradient of a bias. Its forward is part of the matrix product.

use crate::error::Result;
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Elem, Immediates, KernelId, OpPass, Pass, Tensor};

use super::{Operator, group, groups, stored, widths};

/// The pass that [`backward`] records.
pub const BACKWARD: OpPass = OpPass::new("bias", "backward");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator = Operator { name: "bias", passes: &[BACKWARD], kernels, tried: super::none_tried };

crate::shared_struct! {
    struct Params {
        rows: u32,
        columns: u32,
        block_rows: u32,
        blocks: u32,
        adds: u32,
    }
}

/// Most blocks of rows that are summed apart: the rows that `scratch` must have.
pub const BLOCKS: usize = 64;
/// Fewest rows of a block.
const BLOCK_ROWS: usize = 32;

/// Rows of a block and number of blocks for N rows: a function of the shape alone, so that sums never change.
fn blocks(rows: usize) -> (usize, usize) {
    let block_rows = rows.div_ceil(BLOCKS).max(BLOCK_ROWS);
    (block_rows, rows.div_ceil(block_rows))
}

fn kernel(caps: &Caps, entry: &'static str, width: Width, elem: Elem) -> KernelId {
    let body = [include_str!("../../shaders/bias.wgsl")];
    KernelId::shader(BACKWARD, entry, width, &body).stored(elem).set("WORKGROUP", group(caps))
}

/// The kernels an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    let mut list = Vec::new();
    for elem in stored(caps) {
        list.extend(widths(elem).iter().map(|&width| kernel(caps, "backward_blocks", width, elem)));
    }
    list.extend(widths(Elem::F32).iter().map(|&width| kernel(caps, "backward", width, Elem::F32)));
    list
}

/// Tensors of [`backward`].
#[derive(Debug)]
pub struct Backward<'a> {
    /// (N, C), f32 or f16.
    pub dout: &'a Tensor,
    /// (1, C), accumulated, or overwritten where it [begins](Pass::begins).
    pub dbias: &'a Tensor,
    /// At least `BLOCKS * C` elements, overwritten.
    pub scratch: &'a Tensor,
}

/// `dbias[c] += sum over n of dout[n,c]`, in two deterministic stages.
///
/// # Errors
/// [`crate::error::Error::Shape`] if `dbias` is not (1, C).
pub fn backward(pass: &mut Pass, io: Backward) -> Result<()> {
    let c = io.dout.columns();
    io.dbias.check_shape("bias.backward", "dbias", 1, c)?;
    let [wide, width] = [io.dout.elem(), Elem::F32].map(|elem| Width::stored(elem, &[c]));
    let wg = group(&pass.gpu.caps);
    let first = kernel(&pass.gpu.caps, "backward_blocks", wide, io.dout.elem());
    let second = kernel(&pass.gpu.caps, "backward", width, Elem::F32);
    for rows in pass.row_windows(io.dout.rows(), io.dout.row_bytes()) {
        let dout = io.dout.slice(rows);
        let (block_rows, blocks) = blocks(dout.rows());
        let scratch = io.scratch.reshape(blocks, c);
        let [units, columns] = [wide, width].map(|width| c / width.elements());
        let adds = !pass.begins(io.dbias);
        let params = |columns: usize| Params {
            rows: dout.rows() as u32,
            columns: columns as u32,
            block_rows: block_rows as u32,
            blocks: blocks as u32,
            adds: adds.into(),
        };
        pass.dispatch(&Dispatch {
            kernel: &first,
            tensors: &[&dout, &scratch],
            immediates: Immediates::of(&params(units)),
            groups: groups(blocks * units, wg),
            flops: dout.len() as u64,
            bytes: dout.bytes() + scratch.bytes(),
        })?;
        pass.dispatch(&Dispatch {
            kernel: &second,
            tensors: &[&scratch, io.dbias],
            immediates: Immediates::of(&params(columns)),
            groups: groups(columns, wg),
            flops: scratch.len() as u64,
            bytes: scratch.bytes() + (1 + u64::from(adds)) * io.dbias.bytes(),
        })?;
    }
    Ok(())
}
