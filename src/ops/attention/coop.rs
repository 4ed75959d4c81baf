//! Attention on matrix units: which kernel an adapter gets, and why it is made as it is.
//!
//! A workgroup keeps a block of rows as f16 matrices in registers and walks over blocks of columns, which lie in workgroup
//! memory; the next block is fetched into registers while this one is multiplied. Blocks that the diagonal cuts have a loop of
//! their own: others need no mask, and a subgroup skips what none of its rows sees. `shaders/attention_*.wgsl` have all but the
//! matrices.
//!
//! # From scores to weights
//! Where a kernel can compute with the elements of a matrix ([`Caps::matrix_functions`]), scores stay in registers. A matrix of
//! scores begins as what its rows, or for keys as rows its columns, are compared to: one number for each, which a load with a
//! stride of 0 repeats. So exp2 of each element is a weight, and the gradient of a score is that times an element of dout v
//! less delta. Weights alone go through workgroup memory, as f16, since no instruction of Vulkan makes an operand of a result.
//! Bytes of workgroup memory for each product of matrices (HMMA) in the main loops for heads of 64, and instructions without
//! register moves (Mesa 26.1.6 for Hopper, `tools/isa`, 2026-11-29):
//!
//! | | bytes, by way of sums | by elements | instructions, by way of sums | by elements | registers | subgroups an SM |
//! |---|---|---|---|---|---|---|
//! | forward | 912 | 342 | 15.0 | 9.1 | 232 | 8 |
//! | backward_q | 533 | 352 | 9.3 | 5.8 | 120 | 16 |
//! | backward_kv | 548 | 388 | 9.2 | 6.3 | 160 | 12 |
//!
//! Elsewhere (Metal) matrices are opaque: products go through workgroup memory as f32, and invocations of the subgroup that
//! made them turn them into weights there.
//!
//! Two matrices of rows a subgroup load each fragment of the columns for two products: in the forward, and with subgroups of 64,
//! whose lanes hold half as much, in backward_q. In the backward on NVIDIA's GPUs they would halve the subgroups that fit on an SM;
//! tuning tries them.
//!
//! # How the forward's sums follow the largest score
//! A row's sums must shrink when a larger score comes. A score may exceed what its row is compared to by 8 before anything
//! moves: weights are then at most exp(8), which f16 and f32 hold with the same relative precision as 1, and the log-sum-exp
//! does not care. The first block sets what rows are compared to; later ones rarely change it. Only then are a row's largest
//! scores looked for in workgroup memory.
//!
//! The backward knows the log-sum-exp and has no such trouble. Its two kernels are summed by one workgroup each in the order of
//! the columns, so bits repeat. dscores are stored without the scale, which dq and dk are multiplied by at the end: eight
//! times less of them falls below f16's least number.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

use crate::gpu::kernel::Generator;
use crate::gpu::{Arithmetic, Caps, KernelId, OpPass, Purpose};
use crate::ops::matrix_units::{MatrixUnits, Tile, gathers};

/// Sums in f32 a lane from which a subgroup has fewer rows, or two subgroups share them.
const MANY_SUMS: u32 = 64;

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttentionKernel {
    /// The output and the log-sum-exp.
    Forward,
    /// The gradient of the queries, and on matrix units the row sums of `dout out`.
    BackwardQ,
    /// The gradients of the keys and values.
    BackwardKv,
}

impl AttentionKernel {
    /// All of them, in the order in which a step runs them.
    pub const ALL: [Self; 3] = [Self::Forward, Self::BackwardQ, Self::BackwardKv];

    /// The second part of the names of its kernels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::BackwardQ => "backward_q",
            Self::BackwardKv => "backward_kv",
        }
    }

    /// The operator's pass that it serves.
    pub(super) fn pass(self) -> OpPass {
        if self == Self::Forward { super::FORWARD } else { super::BACKWARD }
    }

    /// Products that the rows' matrices take part in: scores, and dout v.
    pub(super) fn products(self) -> u32 {
        if self == Self::Forward { 1 } else { 2 }
    }

    /// Results as wide as a head.
    pub(super) fn outs(self) -> u32 {
        if self == Self::BackwardKv { 2 } else { 1 }
    }
}

/// Sizes of a kernel on matrix units: its entry in a record of `wgpt tune`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockSizes {
    /// Rows of a workgroup.
    pub rows: u32,
    /// Columns of a block.
    pub columns: u32,
    /// Subgroups along the rows.
    pub grid_m: u32,
}

impl Display for BlockSizes {
    /// `128x32 by 4 subgroups`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, columns, grid_m } = self;
        write!(f, "{rows}x{columns} by {grid_m} subgroups")
    }
}

/// One kernel: everything its text depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct CoopAttention {
    pub(super) entry: AttentionKernel,
    pub(super) head_size: u32,
    /// Rows of a workgroup.
    pub(super) rows: u32,
    /// Columns of a block.
    pub(super) columns: u32,
    /// Subgroups along the rows.
    pub(super) grid_m: u32,
    /// Subgroups that share rows: each has its part of the columns, then of the head.
    pub(super) grid_n: u32,
    /// The adapter's matrices, for whose edge the sizes are made.
    pub(super) units: MatrixUnits,
    /// True if workgroup memory also holds q and dout transposed. Only backward_kv does, on GPUs that load a matrix across the
    /// lines of its tile element by element. In the other kernels a second copy costs more than it saves.
    pub(super) transposed: bool,
}

/// (rows, columns, most subgroups along the rows) of which the table takes the first that workgroup memory holds.
type Sizes = [u32; 3];
const FORWARD: [Sizes; 5] = [[64, 32, 2], [64, 16, 2], [32, 32, 1], [32, 16, 1], [16, 16, 1]];
const BACKWARD: [Sizes; 5] = [[64, 32, 4], [64, 16, 4], [32, 32, 4], [32, 16, 4], [16, 16, 4]];
/// The same where scores go through workgroup memory, which larger blocks use better.
const FORWARD_BY_SUMS: [Sizes; 7] =
    [[128, 32, 4], [64, 64, 4], [64, 32, 4], [64, 16, 4], [32, 32, 4], [32, 16, 4], [16, 16, 4]];
/// Those that tuning tries beside the table's. More subgroups have fewer rows each, and so fewer registers for their sums; fewer
/// load every matrix of the columns for more rows.
const TRIED: [Sizes; 16] = [
    [128, 32, 4],
    [128, 32, 8],
    [64, 64, 4],
    [64, 32, 4],
    [64, 32, 2],
    [64, 64, 2],
    [32, 32, 1],
    [128, 16, 8],
    [128, 64, 8],
    [128, 16, 4],
    [128, 64, 4],
    [64, 16, 4],
    [32, 64, 4],
    [32, 32, 4],
    [32, 16, 4],
    [16, 16, 4],
];

/// How a record of `wgpt tune` names a kernel of f16 heads of `head_size` and sequences of `positions`.
pub(super) fn key(entry: AttentionKernel, head_size: usize, positions: usize) -> String {
    format!("attention {entry:?} F16 {head_size} {positions}")
}

/// The kernel for heads of `head_size` on this adapter: the one that tuning found for these positions if the adapter can
/// still run it, else the table's. `None` if attention must do without matrices there: on software adapters, where the
/// scalar kernels take a third of the time (two layers of 4 heads of 64, 512 positions: 107 ms, these 386 ms), and for heads
/// whose size 16 does not divide.
pub(super) fn choose(caps: &Caps, entry: AttentionKernel, head_size: usize, positions: usize) -> Option<CoopAttention> {
    let tuned = caps.tuned.get(&key(entry, head_size, positions)).and_then(|text| serde_json::from_str(text).ok());
    let found = tuned.and_then(|block| candidates(caps, entry, head_size).into_iter().find(|c| c.choice() == block));
    found.or_else(|| by_table(caps, entry, head_size))
}

/// The kernel that an adapter gets untuned.
pub(super) fn by_table(caps: &Caps, entry: AttentionKernel, head_size: usize) -> Option<CoopAttention> {
    let units = MatrixUnits::of(caps)?;
    // subgroups of 64 take small blocks: of few workgroups with many registers a GPU would hold one at a time
    let narrow = units.functions && units.lanes > 32;
    let sizes: &[Sizes] = match entry {
        AttentionKernel::Forward if !units.functions => &FORWARD_BY_SUMS,
        AttentionKernel::Forward => &FORWARD,
        AttentionKernel::BackwardQ if narrow => &FORWARD,
        _ => &BACKWARD,
    };
    let mut sizes = sizes.iter().filter(|[rows, ..]| !narrow || *rows <= 32);
    sizes.find_map(|&sizes| coop(caps, entry, head_size, sizes))
}

/// Every kernel that may be tried, the table's first. All of them run on this adapter.
pub(super) fn candidates(caps: &Caps, entry: AttentionKernel, head_size: usize) -> Vec<CoopAttention> {
    let mut list: Vec<CoopAttention> = by_table(caps, entry, head_size).into_iter().collect();
    for coop in TRIED.iter().filter_map(|&sizes| coop(caps, entry, head_size, sizes)) {
        if !list.contains(&coop) {
            list.push(coop);
        }
    }
    list
}

/// The kernel of a size, if this adapter has matrices and room for it.
fn coop(
    caps: &Caps,
    entry: AttentionKernel,
    head_size: usize,
    [rows, columns, subgroups]: [u32; 3],
) -> Option<CoopAttention> {
    let mut units = MatrixUnits::of(caps)?;
    let slow = caps.software && caps.emulated_edge.is_none();
    if slow || !caps.f16 || !caps.subgroups || !head_size.is_multiple_of(16) || !(16..=128).contains(&head_size) {
        return None;
    }
    // Metal reports several sizes: these kernels keep the guard there, though its GPUs with matrix units have one
    units.varying |= caps.subgroup_sizes.0 != units.lanes && !caps.can_require_subgroups_of(units.lanes);
    let edge = units.edge;
    let mut coop = CoopAttention {
        entry,
        head_size: head_size as u32,
        rows,
        columns,
        grid_m: (rows / edge).min(subgroups),
        grid_n: 1,
        units,
        transposed: units.functions && entry == AttentionKernel::BackwardKv && gathers(caps),
    };
    if coop.units.functions || entry == AttentionKernel::Forward {
        while coop.sums_a_lane() > MANY_SUMS && coop.grid_m < rows / edge {
            coop.grid_m *= 2;
        }
    }
    let two = columns.is_multiple_of(2 * edge) && coop.head_size.is_multiple_of(2 * edge);
    // the forward's rows belong to one subgroup, which finds what is largest in them
    if two && entry != AttentionKernel::Forward && coop.sums_a_lane() > MANY_SUMS {
        coop.grid_n = 2;
    }
    // a second copy only where there is room for it
    coop.transposed &= coop.workgroup_bytes() <= caps.max_workgroup_bytes;
    let fits = coop.workgroup_bytes() <= caps.max_workgroup_bytes && coop.threads() <= caps.max_invocations.min(1024);
    fits.then_some(coop)
}

/// Why attention of f16 heads of `head_size` does not run on matrix units though there are some, or `None`.
pub(super) fn without(caps: &Caps, head_size: usize) -> Option<&'static str> {
    if by_table(caps, AttentionKernel::Forward, head_size).is_some()
        && by_table(caps, AttentionKernel::BackwardKv, head_size).is_some()
    {
        None
    } else if caps.software && caps.emulated_edge.is_none() {
        Some("a software adapter is faster without")
    } else if !head_size.is_multiple_of(16) || head_size > 128 {
        Some("the heads' size is no multiple of 16 up to 128")
    } else {
        Some("the adapter's workgroups are too small")
    }
}

impl CoopAttention {
    pub(super) fn threads(&self) -> u32 {
        self.grid_m * self.grid_n * self.units.lanes
    }

    fn sums_a_lane(&self) -> u32 {
        self.rows / self.grid_m * self.head_size * self.entry.outs() / self.units.lanes
    }

    /// Keys or queries of the columns, and values or gradients.
    pub(super) fn columns_tile(&self, name: &'static str) -> Tile {
        Tile::halves(name, self.columns, self.head_size)
    }

    /// Products in f32 of the rows with the columns.
    pub(super) fn sums_tile(&self, name: &'static str) -> Tile {
        Tile::sums(name, self.rows, self.columns)
    }

    /// The rows' operands of the products with the columns.
    pub(super) fn weights_tile(&self, name: &'static str) -> Tile {
        Tile::halves(name, self.rows, self.columns)
    }

    /// Numbers that matrices of scores begin as: one for each row, or for each column.
    pub(super) fn starts(&self) -> u32 {
        if self.entry == AttentionKernel::BackwardKv { self.columns } else { self.rows }
    }

    /// One matrix in f32 of each row of the workgroup.
    pub(super) fn spill_tile(&self, name: &'static str) -> Tile {
        Tile::sums(name, self.rows, self.units.native)
    }

    /// Both tiles of the columns.
    pub(super) fn both_tiles(&self) -> Tile {
        Tile { lines: 2 * self.columns, ..self.columns_tile("tiles") }
    }

    /// A tile of the columns whose lines lie along the columns.
    pub(super) fn turned_tile(&self, name: &'static str) -> Tile {
        Tile::halves(name, self.head_size, self.columns)
    }

    /// Both of them.
    pub(super) fn turned(&self, name: &'static str) -> Tile {
        Tile { lines: 2 * self.head_size, ..self.turned_tile(name) }
    }

    /// Masks of a matrix: a window of as many columns hides nothing, half or all.
    pub(super) fn mask_tile(&self, name: &'static str) -> Tile {
        Tile::sums(name, self.units.native, 3 * self.units.native)
    }

    fn workgroup_bytes(&self) -> u32 {
        let Self { entry, rows, units, .. } = self;
        let tiles = self.both_tiles().bytes() + entry.outs() * self.weights_tile("").bytes();
        let starts = 8 * self.starts();
        // sums of a row's weights, or of parts of a row's delta
        let of_rows = match entry {
            AttentionKernel::Forward if units.functions => 0,
            AttentionKernel::Forward => 4 * rows,
            AttentionKernel::BackwardQ => rows * units.native,
            AttentionKernel::BackwardKv => 0,
        };
        let products = if units.functions {
            let spilled = if *entry == AttentionKernel::Forward { self.spill_tile("").bytes() } else { 0 };
            spilled + self.mask_tile("").bytes() + if self.transposed { self.turned("").bytes() } else { 0 }
        } else {
            entry.products() * self.sums_tile("").bytes()
        };
        tiles + starts + of_rows + products
    }

    pub(super) fn choice(&self) -> BlockSizes {
        let Self { rows, columns, grid_m, .. } = *self;
        BlockSizes { rows, columns, grid_m }
    }

    pub(super) fn kernel(&self) -> KernelId {
        KernelId::generated(self.entry.pass(), self.entry.name(), Purpose::FusedProducts, *self)
    }
}

impl Generator for CoopAttention {
    fn family(&self) -> String {
        format!("attention_coop.{}", self.entry.name())
    }

    /// Entry, sizes, grid of subgroups and edge: `attention_coop.forward.hs64.128x32.4x1.e16`.
    fn name(&self) -> String {
        let Self { head_size, rows, columns, grid_m, grid_n, units, .. } = self;
        let MatrixUnits { edge, native, .. } = units;
        let of = if edge == native { String::new() } else { format!("of{native}") };
        let turned = if self.transposed { ".transposed" } else { "" };
        format!("{}.hs{head_size}.{rows}x{columns}.{grid_m}x{grid_n}.e{edge}{of}{turned}", self.family())
    }

    fn text(&self) -> String {
        self.write()
    }

    fn subgroup_size(&self) -> Option<u32> {
        Some(self.units.lanes)
    }

    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Matrix
    }
}

#[cfg(test)]
#[path = "coop_tests.rs"]
mod tests;
