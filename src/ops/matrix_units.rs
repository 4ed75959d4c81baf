//! Text of kernels on matrix units: what every generator of such kernels shares.
//!
//! A cooperative matrix belongs to a whole subgroup and is opaque: kernels can load it, store it, multiply and add, but
//! not touch one element. So operands come from tiles in workgroup memory, and accumulators go back there ("spill") where
//! single invocations finish them.
//!
//! # Starting a new kernel
//! 1. [`MatrixUnits::of`] gives the adapter's matrices, or `None` without matrix units.
//! 2. [`DIRECTIVES`] open the text; [`MatrixUnits::aliases`] declares `MatrixA`, `MatrixB` (f16 operands), `MatrixC` (f32 sums).
//! 3. A [`Tile`] for each array in workgroup memory: [`MatrixUnits::declare`] writes it, [`Tile::bytes`] sizes it. Its lines are
//!    padded, its elements vectors or scalars as the adapter wants. Every other function takes indices and strides in
//!    elements and converts them.
//! 4. Invocations fill the tiles by [`MatrixUnits::write_fours`], each its share of [`Rounds`]; then a barrier.
//! 5. Inside [`MatrixUnits::on_grid`]: [`MatrixUnits::load`], `coopMultiplyAdd`, [`MatrixUnits::spill_accumulator`]; then a barrier.
//! 6. Invocations read sums by [`MatrixUnits::read_four`] and store them.
//!
//! `Generator::subgroup_size` returns `units.lanes`: full subgroups are required where the device can.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::gpu::text::Text;
use crate::gpu::{Caps, Vendor};

/// First lines of a kernel with matrices of f16.
pub(super) const DIRECTIVES: [&str; 2] = ["enable f16;", "enable wgpu_cooperative_matrix;"];
/// Line that allows matrix operations under a condition on the subgroup, which naga takes for one on the invocation.
pub(super) const UNIFORM_SUBGROUPS: &str = "diagnostic(off, derivative_uniformity);";
/// Eight f16, 16 bytes, which an invocation loads and stores at once.
pub(super) const HALF8: &str = include_str!("../../shaders/shared/widths/half8.wgsl");
/// Padding of a line of f16: matrix loads start at multiples of 16 bytes, and consecutive lines fall into different banks.
pub(super) const PAD: u32 = 8;
/// Padding of a line of f32.
pub(super) const SUM_PAD: u32 = 4;

/// The matrices of an adapter, as a kernel uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MatrixUnits {
    /// Edge of a matrix: 8 or 16.
    pub edge: u32,
    /// Edge of the adapter's matrices. If it is smaller than `edge`, several of them form one of ours: a dialect for tests
    /// of 16×16 where there are only 8×8.
    pub native: u32,
    /// Invocations of a subgroup, of the largest where there are several sizes.
    pub lanes: u32,
    /// Subgroups may be smaller than `lanes`, which the device cannot forbid: there may then be more of them than the grid
    /// has places.
    pub varying: bool,
    /// Kernels may convert matrices and compute with their elements: see [`Caps::matrix_functions`].
    #[serde(default)]
    pub functions: bool,
    /// Tiles in workgroup memory are `vec4<f16>`, which Metal's matrix loads cannot take.
    pub wide_tiles: bool,
}

/// How a matrix is loaded from a tile.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum LoadBy {
    /// A line of the tile is a row of the matrix.
    Rows,
    /// A line of the tile is a column of the matrix: the transpose.
    Columns,
}

/// An array in workgroup memory: lines of f16 operands or f32 sums, each with padding behind it.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) name: &'static str,
    pub(super) lines: u32,
    /// Elements of a line, without padding.
    pub(super) length: u32,
    /// `f16` or `f32`.
    pub(super) scalar: &'static str,
}

impl Tile {
    /// Operands of products.
    pub(super) fn halves(name: &'static str, lines: u32, length: u32) -> Self {
        Self { name, lines, length, scalar: "f16" }
    }

    /// Sums of products.
    pub(super) fn sums(name: &'static str, lines: u32, length: u32) -> Self {
        Self { name, lines, length, scalar: "f32" }
    }

    /// Elements from one line to the next.
    pub(super) fn stride(&self) -> u32 {
        self.length + if self.scalar == "f16" { PAD } else { SUM_PAD }
    }

    pub(super) fn elements(&self) -> u32 {
        self.lines * self.stride()
    }

    pub(super) fn bytes(&self) -> u32 {
        self.elements() * if self.scalar == "f16" { 2 } else { 4 }
    }
}

/// The smallest and the largest count of invocations of a subgroup.
pub(super) fn subgroup_sizes(caps: &Caps) -> (u32, u32) {
    // wgpu reports 4 to 64 on Metal, whose GPUs with matrix units have 32
    if caps.backend == "Metal" { (32, 32) } else { caps.subgroup_sizes }
}

/// True for GPUs whose matrix units load a transposed matrix element by element: AMD's before RDNA4.
pub(super) fn gathers(caps: &Caps) -> bool {
    caps.vendor == Vendor::Amd && !["GFX12", "NAVI4", "RX 9", "R9700"].iter().any(|word| caps.name.contains(word))
}

impl MatrixUnits {
    /// Returns the largest square matrices of f16 that the adapter has, or `None`.
    pub(super) fn of(caps: &Caps) -> Option<Self> {
        let native = caps.matrix_edges.iter().copied().filter(|edge| [8, 16].contains(edge)).max()?;
        let edge = caps.emulated_edge.unwrap_or(native).max(native);
        Some(Self { edge, ..Self::of_edge(caps, native) })
    }

    /// Matrices of one of the adapter's edges.
    pub(super) fn of_edge(caps: &Caps, edge: u32) -> Self {
        let (least, lanes) = subgroup_sizes(caps);
        let varying = least != lanes && !caps.can_require_subgroups_of(lanes);
        let wide_tiles = caps.backend != "Metal";
        let functions = caps.matrix_functions && wide_tiles;
        Self { edge, native: edge, lanes, varying, functions, wide_tiles }
    }

    /// Matrices of the adapter along one side of ours.
    pub(super) fn blocks(&self) -> u32 {
        self.edge / self.native
    }

    /// Declares the types `MatrixA`, `MatrixB` and `MatrixC`.
    pub(super) fn aliases(&self, t: &mut Text) {
        let edge = self.native;
        for (role, scalar) in [("A", "f16"), ("B", "f16"), ("C", "f32")] {
            t.line(format_args!("alias Matrix{role} = coop_mat{edge}x{edge}<{scalar}, {role}>;"));
        }
    }

    /// Declares a tile.
    pub(super) fn declare(&self, t: &mut Text, tile: &Tile) {
        let Tile { name, scalar, .. } = tile;
        let elements = tile.elements();
        if self.wide_tiles {
            t.line(format_args!("var<workgroup> {name}: array<vec4<{scalar}>, {}>;", elements / 4));
        } else {
            t.line(format_args!("var<workgroup> {name}: array<{scalar}, {elements}>;"));
        }
    }

    /// Converts an index or a stride in elements, a multiple of 4, to units of a tile.
    pub(super) fn index(&self, elements: impl Display) -> String {
        let elements = elements.to_string();
        match self.wide_tiles {
            true if elements.contains(' ') => format!("({elements}) / 4u"),
            true => format!("{elements} / 4u"),
            false => elements,
        }
    }

    /// Elements, a multiple of 4, in units of a tile.
    pub(super) fn units_of(&self, elements: u32) -> u32 {
        if self.wide_tiles { elements / 4 } else { elements }
    }

    /// Loads `Matrix{role}` from element `at` of a tile on.
    pub(super) fn load(&self, by: LoadBy, role: &str, tile: &str, at: impl Display, stride: impl Display) -> String {
        self.load_from_unit(by, role, tile, self.index(at), self.index(stride))
    }

    /// Loads `Matrix{role}` from unit `at` of a tile on, whose lines are `stride` units apart.
    pub(super) fn load_from_unit(
        &self,
        by: LoadBy,
        role: &str,
        tile: &str,
        at: impl Display,
        stride: impl Display,
    ) -> String {
        let function = if by == LoadBy::Rows { "coopLoadT" } else { "coopLoad" };
        format!("{function}<Matrix{role}>(&{tile}[{at}], {stride})")
    }

    /// Stores the accumulator `matrix` at element `at` of a tile on.
    pub(super) fn spill_accumulator(
        &self,
        t: &mut Text,
        matrix: &str,
        tile: &str,
        at: impl Display,
        stride: impl Display,
    ) {
        store(t, matrix, tile, &self.index(at), &self.index(stride));
    }

    /// Runs what `body` writes on the subgroups of the grid only. Barriers must be outside.
    pub(super) fn on_grid(&self, t: &mut Text, subgroups: u32, body: impl FnOnce(&mut Text)) {
        guarded(t, self.varying.then(|| format!("subgroup < {subgroups}u")).as_deref(), body);
    }

    /// Reads a vec4 from element `at` of a tile on.
    pub(super) fn read_four(&self, tile: &str, at: &str) -> String {
        if self.wide_tiles {
            format!("{tile}[{}]", self.index(at))
        } else {
            format!("vec4({tile}[{at}], {tile}[{at} + 1u], {tile}[{at} + 2u], {tile}[{at} + 3u])")
        }
    }

    /// Writes the vec4 `value`, a name where tiles are scalars, from element `at` of a tile on.
    pub(super) fn write_four(&self, t: &mut Text, tile: &str, at: &str, value: &str) {
        if self.wide_tiles {
            t.line(format_args!("{tile}[{}] = {value};", self.index(at)));
        } else {
            write_scalars(t, tile, at, 0, value);
        }
    }

    /// Writes the vec4 `values`, names, one after the other from unit `at` of a tile on.
    pub(super) fn write_fours(&self, t: &mut Text, tile: &str, at: &str, values: &[String]) {
        for (i, value) in (0..).zip(values) {
            if self.wide_tiles {
                t.line(format_args!("{tile}[{at} + {i}u] = {value};"));
            } else {
                write_scalars(t, tile, at, 4 * i, value);
            }
        }
    }
}

fn write_scalars(t: &mut Text, tile: &str, at: &str, first: u32, value: &str) {
    for (i, component) in (first..).zip(["x", "y", "z", "w"]) {
        t.line(format_args!("{tile}[{at} + {i}u] = {value}.{component};"));
    }
}

/// Stores the accumulator `matrix` by rows at index `at` of `array`; `at` and `stride` count the array's elements.
pub(super) fn store(t: &mut Text, matrix: &str, array: &str, at: &str, stride: &str) {
    // naga 30 writes a store's arguments in the wrong order unless each has a name
    t.line(format_args!("let spilled_{matrix} = {matrix};"));
    t.line(format_args!("let at_{matrix} = {at};"));
    t.line(format_args!("let stride_{matrix} = {stride};"));
    t.line(format_args!("coopStoreT(spilled_{matrix}, &{array}[at_{matrix}], stride_{matrix});"));
}

/// Quotient and remainder of `n`, a name of at most `most`, by `d`. NVIDIA's compiler has stored to wrong places of workgroup
/// memory where an index came from a division by a number that is no power of two: there a product and a shift take its
/// place.
pub(super) fn divided(n: &str, d: u32, most: u32) -> (String, String) {
    if d.is_power_of_two() {
        return (format!("{n} / {d}u"), format!("{n} % {d}u"));
    }
    let factor = 65536_u32.div_ceil(d);
    // n factor / 2^16 exceeds n / d by less than 1 / d
    assert!(u64::from(most) * u64::from(factor * d - (1 << 16)) < 1 << 16, "{n} of at most {most} by {d}");
    let quotient = format!("(({n} * {factor}u) >> 16u)");
    let remainder = format!("{n} - {quotient} * {d}u");
    (quotient, remainder)
}

/// Writes `body` under a condition, if there is one.
pub(super) fn guarded(t: &mut Text, condition: Option<&str>, body: impl FnOnce(&mut Text)) {
    if let Some(condition) = condition {
        t.open(format_args!("if {condition}"));
    }
    body(t);
    if condition.is_some() {
        t.close();
    }
}

/// Pieces of a tile, dealt out to the invocations of a workgroup: in round i an invocation has piece
/// `thread + i threads`. The text writes the rounds out, so their number is constant.
#[derive(Clone, Copy)]
pub(super) struct Rounds {
    pub(super) pieces: u32,
    pub(super) threads: u32,
}

impl Rounds {
    pub(super) fn count(self) -> u32 {
        self.pieces.div_ceil(self.threads)
    }

    /// The piece of a round.
    pub(super) fn piece(self, round: u32) -> String {
        format!("thread + {}u", round * self.threads)
    }

    /// The condition for taking part in a round, if not all do.
    pub(super) fn guard(self, round: u32) -> Option<String> {
        ((round + 1) * self.threads > self.pieces).then(|| format!("{} < {}u", self.piece(round), self.pieces))
    }
}

/// All (i, j) of a grid, row by row.
pub(super) fn grid(rows: u32, columns: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..rows).flat_map(move |i| (0..columns).map(move |j| (i, j)))
}

#[cfg(test)]
#[path = "matrix_units_tests.rs"]
mod tests;
