//! Token and position embedding.

use crate::error::{Error, Fault, Result};
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Elem, Gpu, Immediates, KernelId, OpPass, Pass, Tensor};

use super::{Operator, group, groups, reduce_group};

/// The pass that [`forward`] records.
pub const FORWARD: OpPass = OpPass::new("embedding", "forward");
/// The pass that [`forward_at`] records.
pub const FORWARD_AT: OpPass = OpPass::new("embedding", "forward_at");
/// The pass that [`backward`] records.
pub const BACKWARD: OpPass = OpPass::new("embedding", "backward");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator =
    Operator { name: "embedding", passes: &[FORWARD, FORWARD_AT, BACKWARD], kernels, tried: super::none_tried };

crate::shared_struct! {
    struct Params {
        rows: u32,
        row0: u32,
        positions: u32,
        columns: u32,
        first: u32,
        tokens: u32,
    }
}

/// The passes and their kernels' entry points.
const ENTRIES: [(OpPass, &str); 4] =
    [(FORWARD, "forward"), (FORWARD_AT, "forward_at"), (BACKWARD, "backward_wte"), (BACKWARD, "backward_wpe")];

fn kernel(caps: &Caps, (of, entry): (OpPass, &'static str), width: Width) -> KernelId {
    let wg = if entry == "backward_wte" { reduce_group(caps) } else { group(caps) };
    KernelId::shader(of, entry, width, &[include_str!("../../shaders/embedding.wgsl")]).set("WORKGROUP", wg)
}

/// The kernels an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    let mut list = Vec::new();
    for width in [Width::Vec4, Width::Scalar] {
        list.extend(ENTRIES.map(|entry| kernel(caps, entry, width)));
    }
    list
}

/// Tensors of [`forward`].
#[derive(Debug)]
pub struct Forward<'a> {
    /// (N, 1) u32, below the rows of `wte`.
    pub tokens: &'a Tensor,
    /// (V, C), of any size: it is bound in windows.
    pub wte: &'a Tensor,
    /// At least T rows of C.
    pub wpe: &'a Tensor,
    /// (N, C), overwritten. N is a multiple of T.
    pub out: &'a Tensor,
    /// T.
    pub positions: usize,
}

/// `out[n,c] = wte[tokens[n],c] + wpe[n mod T,c]`. Overwrites `out`.
///
/// # Errors
/// [`Error::Shape`].
pub fn forward(pass: &mut Pass, io: Forward) -> Result<()> {
    run(pass, FORWARD, io, None)
}

/// `out[n,c] = wte[tokens[n],c] + wpe[at + n,c]`, with `at` a (1, 1) u32 on the GPU, so that one recording serves
/// every position. Overwrites `out`. Positions past T are taken for the last.
///
/// # Errors
/// [`Error::Shape`].
pub fn forward_at(pass: &mut Pass, io: Forward, at: &Tensor) -> Result<()> {
    at.check_shape("embedding.forward_at", "at", 1, 1)?;
    run(pass, FORWARD_AT, io, Some(at))
}

fn run(pass: &mut Pass, of: OpPass, io: Forward, at: Option<&Tensor>) -> Result<()> {
    let (n, c) = (io.out.rows(), io.out.columns());
    io.tokens.check_shape("embedding.forward", "tokens", n, 1)?;
    io.wte.check_shape("embedding.forward", "wte", io.wte.rows(), c)?;
    if io.wpe.rows() < io.positions || io.wpe.columns() != c {
        io.wpe.check_shape("embedding.forward", "wpe", io.positions, c)?;
    }
    let wpe = io.wpe.slice(0..io.positions);
    let width = Width::of(&[c]);
    let kernel = kernel(&pass.gpu.caps, (of, of.pass), width);
    for rows in pass.row_windows(n, io.out.row_bytes()) {
        for window in pass.row_windows(io.wte.rows(), io.wte.row_bytes()) {
            let (tokens, out) = (io.tokens.slice(rows.clone()), io.out.slice(rows.clone()));
            let wte = io.wte.slice(window.clone());
            let params = Params {
                rows: out.rows() as u32,
                row0: rows.start as u32,
                positions: io.positions as u32,
                columns: (c / width.elements()) as u32,
                first: window.start as u32,
                tokens: window.len() as u32,
            };
            let mut tensors = vec![&tokens, &wte, &wpe, &out];
            tensors.extend(at);
            pass.dispatch(&Dispatch {
                kernel: &kernel,
                tensors: &tensors,
                immediates: Immediates::of(&params),
                groups: groups(out.len() / width.elements(), group(&pass.gpu.caps)),
                flops: out.len() as u64,
                bytes: 2 * out.bytes() + wpe.bytes(),
            })?;
        }
    }
    Ok(())
}

/// The tokens of a batch sorted on the host, so that the gradient of each is summed in a fixed order without atomics.
#[derive(Debug)]
pub struct Buckets {
    /// (1 + 3 N, 1) u32: the number of buckets, then token, begin and end in `order` of each.
    pub table: Tensor,
    /// (N, 1) u32: all rows, sorted by token.
    pub order: Tensor,
}

impl Buckets {
    /// Room for N rows.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(gpu: &Gpu, rows: usize) -> Result<Self> {
        Ok(Self {
            table: gpu.tensor("buckets", 1 + 3 * rows, 1, Elem::U32)?,
            order: gpu.tensor("bucket order", rows, 1, Elem::U32)?,
        })
    }
}

/// Sorts a batch of N tokens into the contents of [`Buckets`]: `table` of 1 + 3 N words, `order` of N. Overwrites both
/// and allocates nothing.
///
/// # Panics
/// If a slice has another length.
pub fn sort(tokens: &[u32], table: &mut [u32], order: &mut [u32]) {
    assert!(table.len() == 1 + 3 * tokens.len() && order.len() == tokens.len(), "embedding.sort: wrong lengths");
    order.iter_mut().zip(0..).for_each(|(row, n)| *row = n);
    // equal tokens stay in the order of n, as if the sort were stable; a stable one would allocate
    order.sort_unstable_by_key(|&n| (tokens[n as usize], n));
    table.fill(0);
    let mut begin = 0;
    for bucket in order.chunk_by(|&a, &b| tokens[a as usize] == tokens[b as usize]) {
        let at = 1 + 3 * table[0] as usize;
        let end = begin + bucket.len() as u32;
        table[at..at + 3].copy_from_slice(&[tokens[bucket[0] as usize], begin, end]);
        table[0] += 1;
        begin = end;
    }
}

/// Tensors of [`backward`].
#[derive(Debug)]
pub struct Backward<'a> {
    /// The batch's tokens, sorted.
    pub buckets: &'a Buckets,
    /// (N, C).
    pub dout: &'a Tensor,
    /// (V, C), accumulated.
    pub dwte: &'a Tensor,
    /// At least T rows of C; the first T are accumulated.
    pub dwpe: &'a Tensor,
    /// T.
    pub positions: usize,
}

/// `dwte[tokens[n],c] += dout[n,c]` and `dwpe[n mod T,c] += dout[n,c]`.
///
/// # Errors
/// [`Error::Shape`].
pub fn backward(pass: &mut Pass, io: Backward) -> Result<()> {
    let (n, c) = (io.dout.rows(), io.dout.columns());
    let place = "embedding.backward";
    io.buckets.order.check_shape(place, "order", n, 1)?;
    io.dwte.check_shape(place, "dwte", io.dwte.rows(), c)?;
    if io.positions == 0 || io.dwpe.rows() < io.positions || io.dwpe.columns() != c {
        return Err(Error::shape(
            Fault::at(place, format!("`dwpe` has {} rows", io.dwpe.rows()))
                .expected(format!("at least {}", io.positions)),
        ));
    }
    let width = Width::of(&[c]);
    let (wte_kernel, wpe_kernel) =
        (kernel(&pass.gpu.caps, ENTRIES[2], width), kernel(&pass.gpu.caps, ENTRIES[3], width));
    let dwpe = io.dwpe.slice(0..io.positions);
    for rows in pass.row_windows(n, io.dout.row_bytes()) {
        let dout = io.dout.slice(rows.clone());
        let params = |first: usize, tokens: usize| Params {
            rows: dout.rows() as u32,
            row0: rows.start as u32,
            positions: io.positions as u32,
            columns: (c / width.elements()) as u32,
            first: first as u32,
            tokens: tokens as u32,
        };
        for window in pass.row_windows(io.dwte.rows(), io.dwte.row_bytes()) {
            let dwte = io.dwte.slice(window.clone());
            pass.dispatch(&Dispatch {
                kernel: &wte_kernel,
                tensors: &[&io.buckets.table, &io.buckets.order, &dout, &dwte],
                immediates: Immediates::of(&params(window.start, window.len())),
                groups: n as u64,
                flops: dout.len() as u64,
                // no more rows than tokens, or than there are
                bytes: dout.bytes() + 2 * dwte.row_bytes() * dout.rows().min(dwte.rows()) as u64,
            })?;
        }
        pass.dispatch(&Dispatch {
            kernel: &wpe_kernel,
            tensors: &[&dout, &dwpe],
            immediates: Immediates::of(&params(0, 0)),
            groups: groups(dwpe.len() / width.elements(), group(&pass.gpu.caps)),
            flops: dout.len() as u64,
            bytes: dout.bytes() + 2 * dwpe.bytes(),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::sort;

    #[test]
    fn buckets_hold_every_row_once_in_order() {
        let (mut table, mut order) = ([9; 19], [9; 6]);
        sort(&[7, 3, 7, 7, 0, 3], &mut table, &mut order);
        assert_eq!(order, [4, 1, 5, 0, 2, 3]);
        assert_eq!(&table[..10], &[3, 0, 0, 1, 3, 1, 3, 7, 3, 6]);
        assert_eq!(table[10..], [0; 9]);
    }
}
