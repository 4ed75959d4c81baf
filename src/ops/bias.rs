//! The gradient of a bias. Its forward is part of the matrix product.

use crate::error::Result;
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Elem, Immediates, KernelId, OpPass, Pass, Tensor};

use super::sums::Sums;
use super::{ELEMENTWISE_WORKGROUP, Operator, storage_types, widths, workgroups};

/// The pass that [`backward`] records.
pub const BACKWARD: OpPass = OpPass::new("bias", "backward");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator = Operator { name: "bias", passes: &[BACKWARD], kernels, tried: super::none_tried };

crate::shared_struct! {
    struct BiasImmediates {
        rows: u32,
        columns: u32,
        block_rows: u32,
        blocks: u32,
    }
}

/// Largest number of row blocks that are summed separately, which is the number of rows `scratch` must have.
pub const BLOCKS: usize = 64;
/// Smallest number of rows in a block.
const BLOCK_ROWS: usize = 32;

/// Returns the rows per block and the number of blocks for N rows. Both depend on the shape alone, so that sums never
/// change.
fn blocks(rows: usize) -> (usize, usize) {
    let block_rows = rows.div_ceil(BLOCKS).max(BLOCK_ROWS);
    (block_rows, rows.div_ceil(block_rows))
}

fn kernel(width: Width, elem: Elem) -> KernelId {
    let body = [include_str!("../../shaders/bias.wgsl")];
    KernelId::shader(BACKWARD, "backward", width, &body).stored(elem).set("WORKGROUP", ELEMENTWISE_WORKGROUP)
}

/// Returns the kernels that an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    let mut list = Vec::new();
    for elem in storage_types(caps) {
        list.extend(widths(elem).iter().map(|&width| kernel(width, elem)));
    }
    list
}

/// Tensors of [`backward`].
#[derive(Debug)]
pub struct Backward<'a> {
    /// (N, C), f32 or f16.
    pub dout: &'a Tensor,
    /// (1, C), accumulated, or overwritten where it [begins](Pass::take_zero).
    pub dbias: &'a Tensor,
}

/// `dbias[c] += sum over n of dout[n,c]`, in two deterministic stages. `sums` records the second stage later. Its
/// scratch must have at least `BLOCKS * C` elements.
///
/// # Errors
/// [`crate::error::Error::Shape`] if `dbias` is not (1, C).
pub fn backward(pass: &mut Pass, io: Backward, sums: &mut Sums) -> Result<()> {
    let c = io.dout.columns();
    io.dbias.check_shape("bias.backward", "dbias", 1, c)?;
    let width = Width::stored(io.dout.elem(), &[c]);
    let kernel = kernel(width, io.dout.elem());
    let units = c / width.elements();
    for rows in pass.row_windows(io.dout.rows(), io.dout.row_bytes()) {
        let dout = io.dout.slice(rows);
        let (block_rows, blocks) = blocks(dout.rows());
        let scratch = sums.scratch(pass)?.reshape(blocks, c);
        pass.dispatch(&Dispatch {
            kernel: &kernel,
            tensors: &[&dout, &scratch],
            immediates: Immediates::of(&BiasImmediates {
                rows: dout.rows() as u32,
                columns: units as u32,
                block_rows: block_rows as u32,
                blocks: blocks as u32,
            }),
            groups: workgroups(blocks * units, ELEMENTWISE_WORKGROUP),
            flops: dout.len() as u64,
            bytes: dout.bytes() + scratch.bytes(),
        })?;
        sums.queue_rows(blocks, c, &[io.dbias])?;
    }
    Ok(())
}
