//! Attention on matrix units: the choice of kernel for an adapter, and the reasons for the kernels' design.
//!
//! A workgroup keeps a block of rows as f16 matrices in registers and iterates over blocks of columns in workgroup
//! memory. The next block is fetched into registers while the current one is multiplied. Blocks that the diagonal cuts
//! have their own loop, because only they need a mask. A subgroup skips columns that none of its rows sees.
//! `shaders/attention_*.wgsl` contain everything but the operations on matrices.
//!
//! # From scores to weights
//! Where a kernel can compute with the elements of a matrix ([`Caps::matrix_functions`]), scores stay in registers. A
//! matrix of scores is initialised with minus the reference of each row, or of each column where keys are rows. In the
//! forward kernel the reference is a number near the row's largest score, in the backward kernels it is the
//! log-sum-exp. A load with a stride of 0 repeats it over the matrix. So exp2 of each element is a weight, and the
//! gradient of a score is that weight times an element of dout v less delta. Only weights go through workgroup memory,
//! as f16, because Vulkan has no instruction that turns a result into an operand. The table shows bytes of workgroup
//! memory and instructions without register moves for each product of matrices (HMMA), in the main loops for heads of
//! 64 (Mesa 26.1.6 for Hopper, `tools/isa`, 2026-11-29):
//!
//! | | bytes, via workgroup memory | by elements | instructions, via workgroup memory | by elements | registers | subgroups per SM |
//! |---|---|---|---|---|---|---|
//! | forward | 912 | 342 | 15.0 | 9.1 | 232 | 8 |
//! | backward_q | 533 | 352 | 9.3 | 5.8 | 120 | 16 |
//! | backward_kv | 548 | 388 | 9.2 | 6.3 | 160 | 12 |
//!
//! Elsewhere (Metal) matrices are opaque. Products go through workgroup memory as f32, where invocations of the same
//! subgroup turn them into weights.
//!
//! If a subgroup has two matrices of rows, it loads each fragment of the columns once for two products. The forward
//! kernel does this, and backward_q does it with subgroups of 64, whose lanes hold half as much. In the backward
//! kernels on NVIDIA's GPUs it would halve the number of subgroups that fit on an SM, so only tuning tries it.
//!
//! # How the forward's sums follow the largest score
//! A row's sums must be rescaled when its reference changes. A score may exceed the reference by 8 before that happens.
//! Weights are then at most exp(8), which f16 and f32 hold with the same relative precision as 1, and the log-sum-exp
//! is not affected. The first block sets the references; later blocks rarely change them. The search for a row's
//! largest score goes through workgroup memory, but only when a reference changes.
//!
//! The backward kernels do not have this problem because they know the log-sum-exp. In both kernels each sum is
//! computed by one workgroup in the order of the columns, so results are reproducible bit by bit. dscores are stored
//! without the scale; dq and dk are multiplied by it at the end. dscores are then eight times larger, so fewer of them
//! underflow in f16.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

use crate::gpu::kernel::Generator;
use crate::gpu::{Arithmetic, Caps, KernelId, OpPass, Purpose};
use crate::ops::matrix_units::{MatrixUnits, Tile, gathers};

/// Largest number of f32 sums per lane. Above it a subgroup gets fewer rows, or two subgroups share their rows.
const MANY_SUMS: u32 = 64;

/// A kernel of attention's forward or backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttentionKernel {
    /// Computes the output and the log-sum-exp.
    Forward,
    /// Computes the gradient of the queries, and on matrix units `delta`, the row sums of `dout out`.
    BackwardQ,
    /// Computes the gradients of the keys and values.
    BackwardKv,
}

impl AttentionKernel {
    /// All kernels, in the order in which a step runs them.
    pub const ALL: [Self; 3] = [Self::Forward, Self::BackwardQ, Self::BackwardKv];

    /// Returns the second part of the kernel's printed name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::BackwardQ => "backward_q",
            Self::BackwardKv => "backward_kv",
        }
    }

    /// Returns the operator's pass to which the kernel belongs.
    pub(super) fn pass(self) -> OpPass {
        if self == Self::Forward { super::FORWARD } else { super::BACKWARD }
    }

    /// Returns the number of products that read the matrices of rows: scores, and in the backward kernels dout v.
    pub(super) fn products(self) -> u32 {
        if self == Self::Forward { 1 } else { 2 }
    }

    /// Returns the number of results that are as wide as a head.
    pub(super) fn outs(self) -> u32 {
        if self == Self::BackwardKv { 2 } else { 1 }
    }
}

/// Sizes of a kernel on matrix units, as a record of `wgpt tune` stores them.
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

/// Everything that the text of a kernel on matrix units depends on.
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
    /// Subgroups that share rows. Each has its part of the columns, then of the head.
    pub(super) grid_n: u32,
    /// The adapter's matrices, whose edge divides the sizes.
    pub(super) units: MatrixUnits,
    /// Whether workgroup memory also holds transposed copies of q and dout. Only backward_kv uses them, on GPUs that
    /// load a matrix across the lines of its tile element by element. In the other kernels a second copy costs more
    /// than it saves.
    pub(super) transposed: bool,
}

/// Rows, columns and most subgroups along the rows. The table takes the first sizes that fit workgroup memory.
type Sizes = [u32; 3];
const FORWARD: [Sizes; 5] = [[64, 32, 2], [64, 16, 2], [32, 32, 1], [32, 16, 1], [16, 16, 1]];
const BACKWARD: [Sizes; 5] = [[64, 32, 4], [64, 16, 4], [32, 32, 4], [32, 16, 4], [16, 16, 4]];
/// The same where scores go through workgroup memory, for which larger blocks are better.
const FORWARD_BY_SUMS: [Sizes; 7] =
    [[128, 32, 4], [64, 64, 4], [64, 32, 4], [64, 16, 4], [32, 32, 4], [32, 16, 4], [16, 16, 4]];
/// Sizes that tuning tries in addition to the table's. More subgroups have fewer rows each and need fewer registers for
/// their sums. Fewer subgroups use every loaded matrix of the columns for more rows.
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

/// Returns the key in a record of `wgpt tune` for a kernel with f16 heads of `head_size` and sequences of `positions`.
pub(super) fn key(entry: AttentionKernel, head_size: usize, positions: usize) -> String {
    format!("attention {entry:?} F16 {head_size} {positions}")
}

/// Returns the kernel for heads of `head_size` on this adapter: the one that tuning found for these positions if the
/// adapter can still run it, else the table's. Returns `None` where attention does not use matrix units: on software
/// adapters, where the scalar kernels take a third of the time (two layers of 4 heads of 64, 512 positions: 107 ms
/// instead of 386 ms), and for heads whose size is not a multiple of 16.
pub(super) fn choose(caps: &Caps, entry: AttentionKernel, head_size: usize, positions: usize) -> Option<CoopAttention> {
    let tuned = caps.tuned.get(&key(entry, head_size, positions)).and_then(|text| serde_json::from_str(text).ok());
    let found = tuned.and_then(|block| candidates(caps, entry, head_size).into_iter().find(|c| c.choice() == block));
    found.or_else(|| by_table(caps, entry, head_size))
}

/// Returns the kernel that an adapter gets without tuning.
pub(super) fn by_table(caps: &Caps, entry: AttentionKernel, head_size: usize) -> Option<CoopAttention> {
    let units = MatrixUnits::of(caps)?;
    // with subgroups of 64 blocks are small: larger ones need so many registers that a compute unit holds one workgroup
    // at a time
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

/// Returns every kernel that tuning may try, the table's first. All of them run on this adapter.
pub(super) fn candidates(caps: &Caps, entry: AttentionKernel, head_size: usize) -> Vec<CoopAttention> {
    let mut list: Vec<CoopAttention> = by_table(caps, entry, head_size).into_iter().collect();
    for coop in TRIED.iter().filter_map(|&sizes| coop(caps, entry, head_size, sizes)) {
        if !list.contains(&coop) {
            list.push(coop);
        }
    }
    list
}

/// Returns the kernel with these sizes, if the adapter has matrix units and enough workgroup memory.
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
    // Metal reports several subgroup sizes, so these kernels keep the guard there although GPUs with matrix units have
    // one size
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
    // in the forward each row belongs to one subgroup, which finds its largest score
    if two && entry != AttentionKernel::Forward && coop.sums_a_lane() > MANY_SUMS {
        coop.grid_n = 2;
    }
    // a transposed copy only if it fits
    coop.transposed &= coop.workgroup_bytes() <= caps.max_workgroup_bytes;
    let fits = coop.workgroup_bytes() <= caps.max_workgroup_bytes && coop.threads() <= caps.max_invocations.min(1024);
    fits.then_some(coop)
}

/// Returns why attention of f16 heads of `head_size` does not run on the adapter's matrix units, or `None` if it does.
pub(super) fn without(caps: &Caps, head_size: usize) -> Option<&'static str> {
    if by_table(caps, AttentionKernel::Forward, head_size).is_some()
        && by_table(caps, AttentionKernel::BackwardKv, head_size).is_some()
    {
        None
    } else if caps.software && caps.emulated_edge.is_none() {
        Some("a software adapter is faster without")
    } else if !head_size.is_multiple_of(16) || head_size > 128 {
        Some("the head size is not a multiple of 16 from 16 to 128")
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

    /// Returns the tile of the columns' keys or queries, or of their values or gradients.
    pub(super) fn columns_tile(&self, name: &'static str) -> Tile {
        Tile::halves(name, self.columns, self.head_size)
    }

    /// Returns the tile of f32 products of rows and columns.
    pub(super) fn sums_tile(&self, name: &'static str) -> Tile {
        Tile::sums(name, self.rows, self.columns)
    }

    /// Returns the tile of weights or dscores, which are operands of the products with the columns.
    pub(super) fn weights_tile(&self, name: &'static str) -> Tile {
        Tile::halves(name, self.rows, self.columns)
    }

    /// Returns the number of initial values for matrices of scores: one for each row, or for each column.
    pub(super) fn starts(&self) -> u32 {
        if self.entry == AttentionKernel::BackwardKv { self.columns } else { self.rows }
    }

    /// Returns the f32 tile of one spilled matrix for each row of the workgroup.
    pub(super) fn spill_tile(&self, name: &'static str) -> Tile {
        Tile::sums(name, self.rows, self.units.native)
    }

    /// Returns the tile that holds both tiles of the columns.
    pub(super) fn both_tiles(&self) -> Tile {
        Tile { lines: 2 * self.columns, ..self.columns_tile("tiles") }
    }

    /// Returns the transposed tile of the columns, whose lines run along the columns.
    pub(super) fn turned_tile(&self, name: &'static str) -> Tile {
        Tile::halves(name, self.head_size, self.columns)
    }

    /// Returns the tile that holds both transposed tiles.
    pub(super) fn turned(&self, name: &'static str) -> Tile {
        Tile { lines: 2 * self.head_size, ..self.turned_tile(name) }
    }

    /// Returns the tile of masks. A window of EDGE columns in it hides nothing, half or all of a matrix.
    pub(super) fn mask_tile(&self, name: &'static str) -> Tile {
        Tile::sums(name, self.units.native, 3 * self.units.native)
    }

    fn workgroup_bytes(&self) -> u32 {
        let Self { entry, rows, units, .. } = self;
        let tiles = self.both_tiles().bytes() + entry.outs() * self.weights_tile("").bytes();
        let starts = 8 * self.starts();
        // sums of each row's weights, or partial sums of each row's delta
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

    /// Returns kernel, sizes, grid of subgroups and edge: `attention_coop.forward.hs64.128x32.4x1.e16`.
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
