//! WGSL text that all generators of kernels on matrix units share.
//!
//! A cooperative matrix belongs to a whole subgroup and is opaque: kernels can load, store, multiply and add matrices,
//! but cannot access a single element. So operands come from tiles in workgroup memory. Accumulators go back there
//! ("spill"), and single invocations finish them.
//!
//! # Starting a new kernel
//! 1. [`MatrixUnits::of`] returns the adapter's matrices, or `None` without matrix units.
//! 2. [`DIRECTIVES`] begin the text; [`MatrixUnits::aliases`] declares `MatrixA`, `MatrixB` (f16 operands) and
//!    `MatrixC` (f32 sums).
//! 3. Each array in workgroup memory is a [`Tile`]. [`MatrixUnits::declare`] writes its declaration, [`Tile::bytes`]
//!    returns its size. Its lines are padded, and its elements are vectors or scalars, as the adapter requires. Every
//!    other function takes indices and strides in elements and converts them.
//! 4. Invocations fill the tiles by [`MatrixUnits::write_fours`], each its share of [`Rounds`]. A barrier follows.
//! 5. Inside [`MatrixUnits::on_grid`] come [`MatrixUnits::load`], `coopMultiplyAdd` and
//!    [`MatrixUnits::spill_accumulator`]. A barrier follows.
//! 6. Invocations read sums by [`MatrixUnits::read_four`] and store them.
//!
//! `Generator::subgroup_size` returns `units.lanes`, so that full subgroups are required where the device supports
//! that.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::gpu::wgsl_text::Text;
use crate::gpu::{Caps, Vendor};

/// First lines of a kernel with matrices of f16.
pub(super) const DIRECTIVES: [&str; 2] = ["enable f16;", "enable wgpu_cooperative_matrix;"];
/// Line that allows matrix operations under a condition on the subgroup, which naga mistakes for a condition on the
/// invocation.
pub(super) const UNIFORM_SUBGROUPS: &str = "diagnostic(off, derivative_uniformity);";
/// Eight f16, 16 bytes, which an invocation loads or stores at once.
pub(super) const HALF8: &str = include_str!("../../shaders/shared/widths/half8.wgsl");
/// Padding of a line of f16 in elements, so that matrix loads start at multiples of 16 bytes and consecutive lines fall
/// into different banks.
pub(super) const PAD: u32 = 8;
/// Padding of a line of f32 in elements.
pub(super) const SUM_PAD: u32 = 4;

/// The matrices of an adapter, as a kernel uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MatrixUnits {
    /// Edge of a matrix: 8 or 16.
    pub edge: u32,
    /// Edge of the adapter's matrices. If it is smaller than `edge`, several of them form one matrix of a kernel. Tests
    /// use this to run kernels for 16×16 on adapters that have only 8×8.
    pub native: u32,
    /// Invocations of a subgroup, or of the largest where subgroups have several sizes.
    pub lanes: u32,
    /// Whether subgroups may be smaller than `lanes` because the device cannot require that size. A workgroup may then
    /// have more subgroups than the grid has positions.
    pub varying: bool,
    /// Whether kernels may convert matrices and compute with their elements: see [`Caps::matrix_functions`].
    #[serde(default)]
    pub functions: bool,
    /// Whether tiles in workgroup memory are `vec4<f16>`, which Metal's matrix loads do not accept.
    pub wide_tiles: bool,
}

/// The direction in which a matrix is loaded from a tile.
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
    /// Makes a tile for operands of products.
    pub(super) fn halves(name: &'static str, lines: u32, length: u32) -> Self {
        Self { name, lines, length, scalar: "f16" }
    }

    /// Makes a tile for sums of products.
    pub(super) fn sums(name: &'static str, lines: u32, length: u32) -> Self {
        Self { name, lines, length, scalar: "f32" }
    }

    /// Returns the elements from one line to the next.
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

/// Returns the smallest and the largest number of invocations of a subgroup.
pub(super) fn subgroup_sizes(caps: &Caps) -> (u32, u32) {
    // wgpu reports 4 to 64 on Metal, whose GPUs with matrix units have 32
    if caps.backend == "Metal" { (32, 32) } else { caps.subgroup_sizes }
}

/// Returns whether the GPU's matrix units load a transposed matrix element by element, as AMD's do before RDNA4.
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

    /// Returns the adapter's matrices of this edge.
    pub(super) fn of_edge(caps: &Caps, edge: u32) -> Self {
        let (least, lanes) = subgroup_sizes(caps);
        let varying = least != lanes && !caps.can_require_subgroups_of(lanes);
        let wide_tiles = caps.backend != "Metal";
        let functions = caps.matrix_functions && wide_tiles;
        Self { edge, native: edge, lanes, varying, functions, wide_tiles }
    }

    /// Returns the number of the adapter's matrices along one side of a kernel's matrix.
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

    /// Converts a number of elements, a multiple of 4, to units of a tile.
    pub(super) fn units_of(&self, elements: u32) -> u32 {
        if self.wide_tiles { elements / 4 } else { elements }
    }

    /// Loads `Matrix{role}` starting at element `at` of a tile.
    pub(super) fn load(&self, by: LoadBy, role: &str, tile: &str, at: impl Display, stride: impl Display) -> String {
        self.load_from_unit(by, role, tile, self.index(at), self.index(stride))
    }

    /// Loads `Matrix{role}` starting at unit `at` of a tile whose lines are `stride` units apart.
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

    /// Stores the accumulator `matrix` starting at element `at` of a tile.
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

    /// Writes text that only the subgroups of the grid run. Barriers must stay outside.
    pub(super) fn on_grid(&self, t: &mut Text, subgroups: u32, body: impl FnOnce(&mut Text)) {
        guarded(t, self.varying.then(|| format!("subgroup < {subgroups}u")).as_deref(), body);
    }

    /// Returns the expression that reads a vec4 starting at element `at` of a tile.
    pub(super) fn read_four(&self, tile: &str, at: &str) -> String {
        if self.wide_tiles {
            format!("{tile}[{}]", self.index(at))
        } else {
            format!("vec4({tile}[{at}], {tile}[{at} + 1u], {tile}[{at} + 2u], {tile}[{at} + 3u])")
        }
    }

    /// Writes the vec4 `value` starting at element `at` of a tile. Where tiles are scalars, `value` must be a name.
    pub(super) fn write_four(&self, t: &mut Text, tile: &str, at: &str, value: &str) {
        if self.wide_tiles {
            t.line(format_args!("{tile}[{}] = {value};", self.index(at)));
        } else {
            write_scalars(t, tile, at, 0, value);
        }
    }

    /// Writes the vec4 `values`, which are names, one after the other starting at unit `at` of a tile.
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
    // naga 30 emits the arguments of a store in the wrong order unless each has a name
    t.line(format_args!("let spilled_{matrix} = {matrix};"));
    t.line(format_args!("let at_{matrix} = {at};"));
    t.line(format_args!("let stride_{matrix} = {stride};"));
    t.line(format_args!("coopStoreT(spilled_{matrix}, &{array}[at_{matrix}], stride_{matrix});"));
}

/// Returns expressions for the quotient and the remainder of `n` by `d`. `n` is a name whose value is at most `most`. A
/// product and a shift replace a division by anything but a power of two, because NVIDIA's compiler has stored to wrong
/// addresses in workgroup memory where an index came from such a division.
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

/// Writes `body`, inside an `if` where there is a condition.
pub(super) fn guarded(t: &mut Text, condition: Option<&str>, body: impl FnOnce(&mut Text)) {
    if let Some(condition) = condition {
        t.open(format_args!("if {condition}"));
    }
    body(t);
    if condition.is_some() {
        t.close();
    }
}

/// The distribution of a tile's pieces over the invocations of a workgroup. In round i an invocation has piece
/// `thread + i threads`. The text is unrolled over the rounds, so their number is constant.
#[derive(Clone, Copy)]
pub(super) struct Rounds {
    pub(super) pieces: u32,
    pub(super) threads: u32,
}

impl Rounds {
    pub(super) fn count(self) -> u32 {
        self.pieces.div_ceil(self.threads)
    }

    /// Returns the expression for an invocation's piece in a round.
    pub(super) fn piece(self, round: u32) -> String {
        format!("thread + {}u", round * self.threads)
    }

    /// Returns the condition under which an invocation takes part in a round, or `None` if all do.
    pub(super) fn guard(self, round: u32) -> Option<String> {
        ((round + 1) * self.threads > self.pieces).then(|| format!("{} < {}u", self.piece(round), self.pieces))
    }
}

/// Returns all (i, j) of a grid, row by row.
pub(super) fn grid(rows: u32, columns: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..rows).flat_map(move |i| (0..columns).map(move |j| (i, j)))
}

#[cfg(test)]
#[path = "matrix_units_tests.rs"]
mod tests;
