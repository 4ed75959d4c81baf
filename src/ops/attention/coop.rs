//! Attention on matrix units: which kernel an adapter gets, and why it is made as it is.
//!
//! A workgroup keeps a block of rows as f16 matrices in registers and walks over blocks of columns, which lie in workgroup
//! memory. A cooperative matrix is opaque: products go through workgroup memory as f32, invocations turn them into weights
//! there, and those are loaded as f16 matrices of the next product. `shaders/attention_coop.wgsl` has all but the matrices.
//!
//! # How the forward's sums follow the largest score
//! A row's sums must shrink when a larger score comes, and nothing can be done to a cooperative matrix row by row. For each
//! score of a head of 64, with 64 rows a workgroup and 16 a subgroup:
//!
//! | | FLOP | bytes of workgroup memory | f32 a lane for sums |
//! |---|---|---|---|
//! | sums owned by invocations, products added through workgroup memory | 256 | 12 scores, 4 weights, 16 tiles, 8 products: 40 | 32 + 8 |
//! | a first pass for the log-sum-exp, then weights that are final | 384 | 20 scores, 4 weights, 24 tiles: 48 | 32 |
//! | sums as matrices, rescaled only when scores outgrow `LAZY_GROWTH` | 256 | 12 scores, 4 weights, 16 tiles: 32 | 32 |
//!
//! The third is taken: with little arithmetic a byte, workgroup memory is what binds. A score may exceed what its row is
//! compared to by 8 before anything moves: weights are then at most exp(8), which f16 and f32 hold with the same relative
//! precision as 1, and the log-sum-exp does not care. When some row outgrows it, the whole workgroup's sums go through workgroup
//! memory once. The first block never needs it, and later ones rarely do. These are counts; on a GPU none of it has been timed.
//!
//! The backward knows the log-sum-exp and has no such trouble. Its two kernels are summed by one workgroup each in the order of
//! the columns, so bits repeat. dscores are stored without the scale, which dq and dk are multiplied by at the end: eight
//! times less of them falls below f16's least number.
//!
//! # Why loops over pieces have a constant number of turns
//! Mesa's compiler for NVIDIA then writes the turns out: 28 to 37 % fewer instructions a kernel, at the price of registers in
//! the backward, which bounds the subgroups that fit on an SM (heads of 64, Mesa 26.1.6, `tools/isa`, static figures):
//!
//! | | registers | subgroups by registers | by workgroup memory: 100 KiB an SM, 227 KiB | instructions of the loop |
//! |---|---|---|---|---|
//! | forward | 208 to 200 | 8 | 8, 20 | 1936 to 1151 |
//! | backward_q | 96 to 120 | 20 to 16 | 12, 24 | 744 to 608 |
//! | backward_kv | 128 to 168 | 16 to 12 | 8, 20 | 1011 to 861 |
//!
//! Where an SM has 100 KiB (Ampere and Ada but A100), workgroup memory binds before registers, so nothing is lost. On
//! Hopper 16 and 12 subgroups remain of 20 and 16, each with a fifth less to issue: taken, since what the loop issues is what
//! its matrix units wait for, and unmeasured.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

use crate::gpu::kernel::Generator;
use crate::gpu::{Arithmetic, Caps, KernelId, OpPass, Purpose};
use crate::ops::matrix_units::{Tile, Units};

/// Sums in f32 a lane from which two subgroups share the rows.
const MANY_SUMS: u32 = 64;

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// The output and the log-sum-exp.
    Forward,
    /// The gradient of the queries, and on matrix units the row sums of `dout out`.
    BackwardQ,
    /// The gradients of the keys and values.
    BackwardKv,
}

impl Entry {
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
pub struct Block {
    /// Rows of a workgroup.
    pub rows: u32,
    /// Columns of a block.
    pub columns: u32,
    /// Subgroups along the rows.
    pub grid_m: u32,
}

impl Display for Block {
    /// `128x32 by 4 subgroups`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, columns, grid_m } = self;
        write!(f, "{rows}x{columns} by {grid_m} subgroups")
    }
}

/// One kernel: everything its text depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Coop {
    pub(super) entry: Entry,
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
    pub(super) units: Units,
}

/// (rows, columns) of which the table takes the first that workgroup memory holds.
const FORWARD: [[u32; 2]; 7] = [[128, 32], [64, 64], [64, 32], [64, 16], [32, 32], [32, 16], [16, 16]];
const BACKWARD: [[u32; 2]; 5] = [[64, 32], [64, 16], [32, 32], [32, 16], [16, 16]];
/// (rows, columns, most subgroups along the rows) that tuning tries beside the table's. Eight subgroups with 16 rows each
/// have half the sums of four with 32, and so half the registers.
const TRIED: [[u32; 3]; 13] = [
    [128, 32, 4],
    [128, 32, 8],
    [64, 64, 4],
    [64, 32, 4],
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
/// Subgroups along the rows of the table's kernels, at most.
const SUBGROUPS: u32 = 4;

/// How a record of `wgpt tune` names a kernel of f16 heads of `head_size` and sequences of `positions`.
pub(super) fn key(entry: Entry, head_size: usize, positions: usize) -> String {
    format!("attention {entry:?} F16 {head_size} {positions}")
}

/// The kernel for heads of `head_size` on this adapter: the one that tuning found for these positions if the adapter can
/// still run it, else the table's. `None` if attention must do without matrices there: on software adapters, where the
/// scalar kernels take a third of the time (two layers of 4 heads of 64, 512 positions: 107 ms, these 386 ms), and for heads
/// whose size 16 does not divide.
pub(super) fn choose(caps: &Caps, entry: Entry, head_size: usize, positions: usize) -> Option<Coop> {
    let tuned = caps.tuned.get(&key(entry, head_size, positions)).and_then(|text| serde_json::from_str(text).ok());
    let found = tuned.and_then(|block| candidates(caps, entry, head_size).into_iter().find(|c| c.choice() == block));
    found.or_else(|| by_table(caps, entry, head_size))
}

/// The kernel that an adapter gets untuned.
pub(super) fn by_table(caps: &Caps, entry: Entry, head_size: usize) -> Option<Coop> {
    let sizes: &[[u32; 2]] = match entry {
        Entry::Forward => &FORWARD,
        _ => &BACKWARD,
    };
    sizes.iter().find_map(|&[rows, columns]| coop(caps, entry, head_size, [rows, columns, SUBGROUPS]))
}

/// Every kernel that may be tried, the table's first. All of them run on this adapter.
pub(super) fn candidates(caps: &Caps, entry: Entry, head_size: usize) -> Vec<Coop> {
    let mut list: Vec<Coop> = by_table(caps, entry, head_size).into_iter().collect();
    for coop in TRIED.iter().filter_map(|&sizes| coop(caps, entry, head_size, sizes)) {
        if !list.contains(&coop) {
            list.push(coop);
        }
    }
    list
}

/// The kernel of a size, if this adapter has matrices and room for it.
fn coop(caps: &Caps, entry: Entry, head_size: usize, [rows, columns, subgroups]: [u32; 3]) -> Option<Coop> {
    let mut units = Units::of(caps)?;
    let slow = caps.software && caps.emulated_edge.is_none();
    if slow || !caps.f16 || !caps.subgroups || !head_size.is_multiple_of(16) || !(16..=128).contains(&head_size) {
        return None;
    }
    // Metal reports several sizes: these kernels keep the guard there, though its GPUs with matrix units have one
    units.varying |= caps.subgroup_sizes.0 != units.lanes && !caps.can_require_subgroups_of(units.lanes);
    let edge = units.edge;
    let mut coop = Coop {
        entry,
        head_size: head_size as u32,
        rows,
        columns,
        grid_m: (rows / edge).min(subgroups),
        grid_n: 1,
        units,
    };
    let two = columns.is_multiple_of(2 * edge) && coop.head_size.is_multiple_of(2 * edge);
    if two && coop.sums_a_lane() > MANY_SUMS {
        coop.grid_n = 2;
    }
    let fits = coop.workgroup_bytes() <= caps.max_workgroup_bytes && coop.threads() <= caps.max_invocations.min(1024);
    fits.then_some(coop)
}

/// Why attention of f16 heads of `head_size` does not run on matrix units though there are some, or `None`.
pub(super) fn without(caps: &Caps, head_size: usize) -> Option<&'static str> {
    if by_table(caps, Entry::Forward, head_size).is_some() && by_table(caps, Entry::BackwardKv, head_size).is_some() {
        None
    } else if caps.software && caps.emulated_edge.is_none() {
        Some("a software adapter is faster without")
    } else if !head_size.is_multiple_of(16) || head_size > 128 {
        Some("the heads' size is no multiple of 16 up to 128")
    } else {
        Some("the adapter's workgroups are too small")
    }
}

impl Coop {
    pub(super) fn threads(&self) -> u32 {
        self.grid_m * self.grid_n * self.units.lanes
    }

    fn sums_a_lane(&self) -> u32 {
        self.rows / self.grid_m * self.head_size * self.entry.outs() / self.units.lanes
    }

    /// Invocations that share a row of weights.
    pub(super) fn parts(&self) -> u32 {
        (self.threads() / self.rows).clamp(1, self.columns / 4)
    }

    /// Queries whose log-sum-exp and row sum are kept in workgroup memory.
    pub(super) fn kept(&self) -> u32 {
        if self.entry == Entry::BackwardKv { self.columns } else { self.rows }
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

    fn workgroup_bytes(&self) -> u32 {
        let Self { rows, entry, .. } = self;
        let tiles = 2 * self.columns_tile("").bytes();
        let sums = entry.products() * self.sums_tile("").bytes();
        let weights = entry.outs() * self.weights_tile("").bytes();
        let statistics = match entry {
            Entry::Forward => 4 * (2 * rows * self.parts() + rows) + 4,
            _ => 2 * 4 * self.kept(),
        };
        // every variable may start at a multiple of 16 bytes
        tiles + sums + weights + statistics.next_multiple_of(16) + 3 * 16
    }

    pub(super) fn choice(&self) -> Block {
        let Self { rows, columns, grid_m, .. } = *self;
        Block { rows, columns, grid_m }
    }

    pub(super) fn kernel(&self) -> KernelId {
        KernelId::generated(self.entry.pass(), self.entry.name(), Purpose::FusedProducts, *self)
    }
}

impl Generator for Coop {
    fn family(&self) -> String {
        format!("attention_coop.{}", self.entry.name())
    }

    /// Entry, sizes, grid of subgroups and edge: `attention_coop.forward.hs64.128x32.4x1.e16`.
    fn name(&self) -> String {
        let Self { head_size, rows, columns, grid_m, grid_n, units, .. } = self;
        let Units { edge, native, .. } = units;
        let of = if edge == native { String::new() } else { format!("of{native}") };
        format!("{}.hs{head_size}.{rows}x{columns}.{grid_m}x{grid_n}.e{edge}{of}", self.family())
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
