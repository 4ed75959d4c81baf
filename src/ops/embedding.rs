//! Token and position embedding.

use std::ops::Range;

use crate::error::{Error, Fault, Result};
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Elem, Gpu, Immediates, KernelId, OpPass, Pass, Tensor};

use super::{ELEMENTWISE_WORKGROUP, Operator, reduction_workgroup, workgroups};

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
    struct EmbeddingImmediates {
        rows: u32,
        row0: u32,
        positions: u32,
        columns: u32,
        first: u32,
        tokens: u32,
        adds: u32,
    }
}

const BACKWARD_WTE: &str = "backward_wte";
const BACKWARD_SPLIT: &str = "backward_split";
const BACKWARD_WPE: &str = "backward_wpe";
/// The passes with the entry points of their kernels.
const ENTRIES: [(OpPass, &str); 5] = [
    (FORWARD, "forward"),
    (FORWARD_AT, "forward_at"),
    (BACKWARD, BACKWARD_WTE),
    (BACKWARD, BACKWARD_SPLIT),
    (BACKWARD, BACKWARD_WPE),
];

fn kernel(caps: &Caps, (of, entry): (OpPass, &'static str), width: Width) -> KernelId {
    let wg =
        if [BACKWARD_WTE, BACKWARD_SPLIT].contains(&entry) { reduction_workgroup(caps) } else { ELEMENTWISE_WORKGROUP };
    KernelId::shader(of, entry, width, &[include_str!("../../shaders/embedding.wgsl")]).set("WORKGROUP", wg)
}

/// Returns the kernels that an adapter may be given.
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
    /// (N, 1) u32, each below the number of rows of `wte`.
    pub tokens: &'a Tensor,
    /// (V, C), of any size, because it is bound in windows.
    pub wte: &'a Tensor,
    /// (at least T, C).
    pub wpe: &'a Tensor,
    /// (N, C), overwritten. N is a multiple of T.
    pub out: &'a Tensor,
    /// T.
    pub positions: usize,
}

/// `out[n,c] = wte[tokens[n],c] + wpe[n mod T,c]`. Overwrites `out`.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn forward(pass: &mut Pass, io: Forward) -> Result<()> {
    run(pass, FORWARD, io, None)
}

/// `out[n,c] = wte[tokens[n],c] + wpe[at + n,c]`. `at` is a (1, 1) u32 on the GPU, so that one recording serves every
/// position. Overwrites `out`. Positions from T on are treated as the last one.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
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
            let params = EmbeddingImmediates {
                rows: out.rows() as u32,
                row0: rows.start as u32,
                positions: io.positions as u32,
                columns: (c / width.elements()) as u32,
                first: window.start as u32,
                tokens: window.len() as u32,
                adds: 0,
            };
            let mut tensors = vec![&tokens, &wte, &wpe, &out];
            tensors.extend(at);
            pass.dispatch(&Dispatch {
                kernel: &kernel,
                tensors: &tensors,
                immediates: Immediates::of(&params),
                groups: workgroups(out.len() / width.elements(), ELEMENTWISE_WORKGROUP),
                flops: out.len() as u64,
                bytes: 2 * out.bytes() + wpe.bytes(),
            })?;
        }
    }
    Ok(())
}

/// Most rows in a run, which one workgroup sums.
const RUN_ROWS: usize = 128;
/// Words before the entries of [`Buckets::table`].
const HEADING: usize = 3;
/// Words per entry.
const ENTRY: usize = 3;

/// The rows of a batch, sorted by token on the host, so that each token's gradient is summed in a fixed order without
/// atomics. The rows of one token form a bucket. A bucket of at most 128 rows is one run; a larger one is split into
/// runs of 128 rows and a last run with the rest.
#[derive(Debug)]
pub struct Buckets {
    /// ([`table_words`], 1) u32. First the number of runs, the number of runs in split buckets and the number of split
    /// buckets. Then for each run its token and its begin and end in `order`, the runs of split buckets first. Then for
    /// each split bucket its token, its first run and the run after its last.
    pub table: Tensor,
    /// (N, 1) u32: all rows, sorted by token.
    pub order: Tensor,
}

impl Buckets {
    /// Allocates buckets for batches of N rows.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(gpu: &Gpu, rows: usize) -> Result<Self> {
        Ok(Self {
            table: gpu.tensor("buckets", table_words(rows), 1, Elem::U32)?,
            order: gpu.tensor("bucket order", rows, 1, Elem::U32)?,
        })
    }
}

/// Returns the number of words in [`Buckets::table`] for N rows.
#[must_use]
pub const fn table_words(rows: usize) -> usize {
    // a split bucket has far more rows than runs, so there are at most N runs and split buckets together
    HEADING + ENTRY * rows
}

/// Returns the largest number of split buckets that N rows can make.
fn most_split(rows: usize) -> usize {
    rows / (RUN_ROWS + 1)
}

/// Returns the rows of C elements that the scratch of [`backward`] must have for N rows: one for each run of a split
/// bucket, and at least one, because a binding cannot be empty.
#[must_use]
pub fn scratch_rows(rows: usize) -> usize {
    // two runs take at least 129 rows; if 128 rows remain, one bucket can have a third run
    let third = usize::from(most_split(rows) > 0 && rows % (RUN_ROWS + 1) == RUN_ROWS);
    (2 * most_split(rows) + third).max(1)
}

/// Sorts a batch of N tokens into the contents of [`Buckets`]: `table` of [`table_words`], `order` of N. Overwrites
/// both and allocates nothing.
///
/// # Panics
/// If `table` or `order` has the wrong length.
pub fn sort_tokens(tokens: &[u32], table: &mut [u32], order: &mut [u32]) {
    let right = table.len() == table_words(tokens.len()) && order.len() == tokens.len();
    assert!(right, "embedding.sort_tokens: `table` or `order` has the wrong length");
    order.iter_mut().zip(0..).for_each(|(row, n)| *row = n);
    // equal tokens keep the order of n, as in a stable sort, which would allocate
    order.sort_unstable_by_key(|&n| (tokens[n as usize], n));
    table.fill(0);
    let (heading, entries) = table.split_at_mut(HEADING);
    let mut free = entries.chunks_exact_mut(ENTRY);
    let mut put = |entry: [u32; ENTRY]| free.next().into_iter().for_each(|to| to.copy_from_slice(&entry));
    let token = |bucket: &[u32]| tokens[bucket[0] as usize];
    let buckets = || order.chunk_by(|&a, &b| tokens[a as usize] == tokens[b as usize]);
    // runs of split buckets come first because they take longest; the number of such a run is also its row of the
    // scratch
    for split in [true, false] {
        let mut begin = 0;
        for bucket in buckets() {
            for run in bucket.chunks(RUN_ROWS) {
                let end = begin + run.len() as u32;
                if (bucket.len() > RUN_ROWS) == split {
                    put([token(bucket), begin, end]);
                    heading[0] += 1;
                    heading[1] += u32::from(split);
                }
                begin = end;
            }
        }
    }
    let mut first = 0;
    for bucket in buckets().filter(|bucket| bucket.len() > RUN_ROWS) {
        let past = first + bucket.len().div_ceil(RUN_ROWS) as u32;
        put([token(bucket), first, past]);
        heading[2] += 1;
        first = past;
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
    /// (at least T, C). The first T rows are accumulated, or overwritten where they [begin](Pass::take_zero).
    pub dwpe: &'a Tensor,
    /// T.
    pub positions: usize,
    /// At least [`scratch_rows`] * C elements, overwritten.
    pub scratch: &'a Tensor,
}

/// `dwte[tokens[n],c] += dout[n,c]` and `dwpe[n mod T,c] += dout[n,c]`. Where a bucket can be split, `dwte` takes two
/// stages: the rows of each run, then the runs of each split bucket. The order of additions to `dwte` depends on the
/// tokens alone.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn backward(pass: &mut Pass, io: Backward) -> Result<()> {
    let (n, c) = (io.dout.rows(), io.dout.columns());
    let place = "embedding.backward";
    io.buckets.table.check_shape(place, "table", table_words(n), 1)?;
    io.buckets.order.check_shape(place, "order", n, 1)?;
    io.dwte.check_shape(place, "dwte", io.dwte.rows(), c)?;
    if io.positions == 0 || io.dwpe.rows() < io.positions || io.dwpe.columns() != c {
        return Err(Error::shape(
            Fault::at(place, format!("`dwpe` has {} rows", io.dwpe.rows()))
                .expected(format!("at least {}", io.positions)),
        ));
    }
    for window in pass.row_windows(io.dwte.rows(), io.dwte.row_bytes()) {
        backward_wte(pass, &io, window)?;
    }
    backward_wpe(pass, &io)
}

/// Records the gradient of the rows of `dwte` in `window`.
fn backward_wte(pass: &mut Pass, io: &Backward, window: Range<usize>) -> Result<()> {
    let (n, c) = (io.dout.rows(), io.dout.columns());
    let width = Width::of(&[c]);
    let [runs, split] = [BACKWARD_WTE, BACKWARD_SPLIT].map(|entry| kernel(&pass.gpu.caps, (BACKWARD, entry), width));
    let (dwte, scratch) = (io.dwte.slice(window.clone()), io.scratch.reshape(scratch_rows(n), c));
    let params = |rows: Range<usize>| EmbeddingImmediates {
        rows: rows.len() as u32,
        row0: rows.start as u32,
        positions: io.positions as u32,
        columns: (c / width.elements()) as u32,
        first: window.start as u32,
        tokens: window.len() as u32,
        adds: 1,
    };
    // rows of dwte that are read and written: at most one per bucket, and at most all of them
    let dwte_bytes = |buckets: usize| 2 * dwte.row_bytes() * buckets.min(dwte.rows()) as u64;
    let scratch_bytes = if most_split(n) > 0 { scratch.bytes() } else { 0 };
    for rows in pass.row_windows(n, io.dout.row_bytes()) {
        let dout = io.dout.slice(rows.clone());
        pass.dispatch(&Dispatch {
            kernel: &runs,
            tensors: &[&io.buckets.table, &io.buckets.order, &dout, &dwte, &scratch],
            immediates: Immediates::of(&params(rows)),
            groups: n as u64,
            flops: dout.len() as u64,
            bytes: dout.bytes() + dwte_bytes(dout.rows()) + scratch_bytes,
        })?;
    }
    pass.dispatch(&Dispatch {
        kernel: &split,
        tensors: &[&io.buckets.table, &scratch, &dwte],
        immediates: Immediates::of(&params(0..n)),
        groups: most_split(n) as u64,
        flops: scratch.len() as u64,
        bytes: scratch_bytes + dwte_bytes(most_split(n)),
    })
}

fn backward_wpe(pass: &mut Pass, io: &Backward) -> Result<()> {
    let (n, c) = (io.dout.rows(), io.dout.columns());
    let width = Width::of(&[c]);
    let kernel = kernel(&pass.gpu.caps, (BACKWARD, BACKWARD_WPE), width);
    let dwpe = io.dwpe.slice(0..io.positions);
    for rows in pass.row_windows(n, io.dout.row_bytes()) {
        let dout = io.dout.slice(rows.clone());
        let adds = !pass.take_zero(&dwpe);
        pass.dispatch(&Dispatch {
            kernel: &kernel,
            tensors: &[&dout, &dwpe],
            immediates: Immediates::of(&EmbeddingImmediates {
                rows: dout.rows() as u32,
                row0: rows.start as u32,
                positions: io.positions as u32,
                columns: (c / width.elements()) as u32,
                first: 0,
                tokens: 0,
                adds: adds.into(),
            }),
            groups: workgroups(dwpe.len() / width.elements(), ELEMENTWISE_WORKGROUP),
            flops: dout.len() as u64,
            bytes: dout.bytes() + (1 + u64::from(adds)) * dwpe.bytes(),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_every_row_once_in_order() {
        let (mut table, mut order) = ([9; 21], [9; 6]);
        sort_tokens(&[7, 3, 7, 7, 0, 3], &mut table, &mut order);
        assert_eq!(order, [4, 1, 5, 0, 2, 3]);
        assert_eq!(&table[..12], &[3, 0, 0, 0, 0, 1, 3, 1, 3, 7, 3, 6]);
        assert_eq!(table[12..], [0; 9]);
    }

    fn sorted(tokens: &[u32]) -> (Vec<u32>, Vec<u32>) {
        let (mut table, mut order) = (vec![9; table_words(tokens.len())], vec![9; tokens.len()]);
        sort_tokens(tokens, &mut table, &mut order);
        (table, order)
    }

    #[test]
    fn a_bucket_of_more_than_128_rows_is_split_and_comes_first() {
        let tokens: Vec<u32> = [vec![4; 128], vec![5; 129], vec![6], vec![8; 256]].concat();
        let (table, order) = sorted(&tokens);
        assert!(order.iter().zip(0..).all(|(&row, n)| row == n));
        let runs = [[5, 128, 256], [5, 256, 257], [8, 258, 386], [8, 386, 514], [4, 0, 128], [6, 257, 258]];
        assert_eq!(table[..21], [vec![6, 4, 2], runs.concat()].concat());
        assert_eq!(table[21..27], [5, 0, 2, 8, 2, 4]);
        assert!(table[27..].iter().all(|&word| word == 0));
    }

    /// Buckets of 129 rows, with the rest in one of them, need the most scratch.
    #[test]
    fn scratch_has_room_for_the_runs_of_any_batch() {
        for rows in [1, 127, 128, 129, 256, 257, 258, 385, 386, 387, 1000, 1031, 2600] {
            let most = most_split(rows);
            let tokens: Vec<u32> = (0..rows).map(|n| (n / 129).min(most.max(1) - 1) as u32).collect();
            let (table, _) = sorted(&tokens);
            assert_eq!(table[1].max(1) as usize, scratch_rows(rows), "{rows} rows");
            assert_eq!(table[2] as usize, most, "{rows} rows");
        }
    }
}
