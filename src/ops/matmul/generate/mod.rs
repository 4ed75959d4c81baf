//! Writes the WGSL text of the matrix kernels.
//!
//! | product | formula | `a` | `b` | used by |
//! |---|---|---|---|---|
//! | [`Product::Forward`] | `out = a·bᵀ (+ bias)` | (M,K) | (N,K) | `out = inp·weightᵀ + bias` |
//! | [`Product::BackwardInp`] | `out = a·b` | (M,K) | (K,N) | `dinp = dout·weight` |
//! | [`Product::BackwardWeight`] | `out += aᵀ·b` | (K,M) | (K,N) | `dweight += doutᵀ·inp` |
//!
//! `out` is always (M,N). Matrices are row-major. A row stride and an offset let a kernel address a window of a larger
//! matrix.
//!
//! # Interface of every kernel
//! Entry point `main`. Bindings of group 0: 0 `a`, 1 `b` (storage, read), 2 `out` (storage, `read_write`), then those
//! of the [`Epilogue`]. The generator decides whether a binding is an array of scalars, of `vec4` or of `u64`. The
//! caller binds plain buffers of [`Spec::operands`] and [`Spec::out`]; a bias and a residual are always f32. Tensors
//! with the shape of `out` share its stride and offset. Immediates are eleven `u32` in this order, strides and offsets
//! in elements: `m n k a_stride b_stride out_stride a_offset b_offset out_offset bias_offset part_depth`.
//!
//! Reads and writes stay inside the windows for any M, N, K, so kernels may be built without bounds checks. There are
//! no atomics, and each output is summed in one fixed order (ascending k), so results do not depend on scheduling.
//!
//! # Algorithms
//! [`Algorithm::Tiled`] is the usual GPU kernel: a workgroup copies tiles of `a` and `b` into workgroup memory,
//! transposed where the inner loop needs it, and every invocation keeps a register tile.
//!
//! [`Algorithm::Coop`] does the same with cooperative matrices instead of register tiles; see [`coop`].
//!
//! [`Algorithm::Rows`] is for software adapters, where workgroup memory and barriers are slow. A workgroup is one CPU
//! vector wide. Row and k indices are uniform, so `a` is read as scalars; a vector of `b` is read once for all rows.
//!
//! # What is fast on software Vulkan
//! Measured on Mesa 26.1.6 (lavapipe), two cores of an EPYC with AVX-512, GPT-2 124M's layers at 256 rows; GFLOP/s of
//! both cores by CPU time, best of 5 or 6, the four shapes of a block together (4 lanes: (256,768,768) alone). The
//! machine was shared, so only ratios are meaningful.
//!
//! | lanes | product | rows, columns, unroll | with pairs | without | 32, 4, 4, all rows in one block |
//! |---|---|---|---|---|---|
//! | 16 | `Forward` | 64, 8, 8 | 100 | 82 | 64 |
//! | 16 | `BackwardInp` | 64, 8, 8 | 89 | 66 | 55 |
//! | 16 | `BackwardWeight` | 48, 8, 8 | 86 | 76 | 37 |
//! | 8 | `Forward` | 32, 8, 4 | 82 | 71 | 57 |
//! | 8 | `BackwardInp` | 32, 8, 8 | 62 | 50 | 47 |
//! | 8 | `BackwardWeight` | 16, 12, 4 | 63 | 50 | 36 |
//! | 4 | all | 32, 8, 4 | 42 to 52 | 31 to 46 | not run |
//!
//! - A read of `b` is a masked gather, with one load per lane. So many rows must share it, and a gather of u64 loads
//!   two vectors at once. A scalar of `a` costs two branches (the driver's range check, which cannot be disabled). So
//!   many columns must share it, and again a u64 loads two.
//! - The sums do not fit the registers. A block of code for every four rows makes the driver's compiler load, use and
//!   store them once per iteration, and unrolling many steps of k makes iterations rare.
//! - Lanes of `Forward` own neighbouring columns, not groups of four columns, because rows of `b` that are four apart
//!   map to the same cache sets (0.75 of the speed).
//! - One dispatch should not be deeper than [`SOFTWARE_DEPTH`] where `b` is (K,N).

mod coop;
mod element;
mod operand;
mod rows;
mod text;
mod tiled;

use std::fmt::{self, Display, Write as _};

use serde::{Deserialize, Serialize};

use crate::gpu::Elem;
use crate::gpu::kernel::Width;
use crate::ops::matrix_units::MatrixUnits;

use coop::CoopKernel;
use element::BindingElement;
use operand::Operand;
use rows::Rows;
use text::{Bindings, Text, component, entry, place, prologue, store, store_wide};
use tiled::Tiled;

/// One of the three products of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// `out(M,N) = a(M,K) · b(N,K)ᵀ [+ bias(N)]`
    Forward,
    /// `out(M,N) = a(M,K) · b(K,N)`
    BackwardInp,
    /// `out(M,N) += a(K,M)ᵀ · b(K,N)` (with [`Spec::accumulate`])
    BackwardWeight,
}

/// All products, in the order in which a step first runs them.
pub const PRODUCTS: [Product; 3] = [Product::Forward, Product::BackwardInp, Product::BackwardWeight];

/// The method by which a product is computed, with its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Algorithm {
    /// For GPUs: tiles in workgroup memory, register tiles. All sizes are multiples of 4.
    Tiled {
        /// Rows of `out` that a workgroup computes; a multiple of `thread_m`.
        tile_m: u32,
        /// Columns of `out` that a workgroup computes; a multiple of `thread_n`.
        tile_n: u32,
        /// Depth of the tiles in workgroup memory.
        tile_k: u32,
        /// Rows of `out` that an invocation computes.
        thread_m: u32,
        /// Columns of `out` that an invocation computes.
        thread_n: u32,
        /// Whether the first tiles are multiplied before the loop; see [`CoopMatmul::peeled`].
        #[serde(default)]
        peeled: bool,
    },
    /// For software adapters: no workgroup memory, and uniform row indices.
    Rows {
        /// Invocations of a workgroup, along N: the lanes of a CPU vector.
        width: u32,
        /// Rows of `out` that an invocation computes; a multiple of 4.
        rows: u32,
        /// Columns of `out` that an invocation computes: 1, 2 or a multiple of 4.
        columns: u32,
        /// Steps of k per iteration of the loop; a multiple of 4.
        unroll: u32,
        /// Whether kernels of width vec4 read `a` and `b` as `u64`, two f32 at a time. Needs the device feature
        /// `SHADER_INT64`.
        pairs: bool,
    },
    /// For adapters with matrix units: f16 operands, f32 sums.
    Coop(CoopMatmul),
}

/// The sizes of a kernel with cooperative matrices. Tiles are multiples of the grid of subgroups times the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CoopMatmul {
    /// Rows of `out` that a workgroup computes.
    pub tile_m: u32,
    /// Columns of `out` that a workgroup computes.
    pub tile_n: u32,
    /// Depth of the tiles in workgroup memory; a multiple of the edge.
    pub tile_k: u32,
    /// Subgroups along M.
    pub grid_m: u32,
    /// Subgroups along N.
    pub grid_n: u32,
    /// The adapter's matrices.
    #[serde(flatten)]
    pub units: MatrixUnits,
    /// Tiles of each operand in workgroup memory. With two, one is filled while the other is multiplied, and a tile
    /// takes one barrier instead of two.
    #[serde(default = "one")]
    pub buffers: u32,
    /// Whether tiles are transposed when they are filled, if their matrices would otherwise be loaded across lines.
    /// Matrix units of RDNA3 load such matrices element by element.
    #[serde(default)]
    pub transposed: bool,
    /// Whether the steps of k within a tile are unrolled. Loops are slow on Metal, but software adapters take minutes
    /// to compile unrolled texts.
    pub unrolled: bool,
    /// Whether the first tiles are multiplied before the loop. Mesa's compiler for NVIDIA keeps sums in separate
    /// registers if they come from different products. Sums that all begin as one constant, or as one matrix of the
    /// bias, it copies in every iteration. Compilers for AMD do not copy them, and on Apple's GPUs registers would
    /// overflow.
    #[serde(default)]
    pub peeled: bool,
}

fn one() -> u32 {
    1
}

/// The operation on a sum before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// `out = sum`.
    None,
    /// `out = sum + bias`. Binding 3 is the bias (N).
    Bias,
    /// `out = sum + bias`, `gelu = GELU(out)`. Binding 3 is the bias, 4 is `gelu`, with the element type of `out`.
    BiasGelu,
    /// `out = residual + (sum + bias)`. Binding 3 is the bias, 4 the residual (M,N), f32.
    BiasResidual,
    /// `out = sum GELU'(pre)`. Binding 3 is `pre` (M,N), with the element type of `out`.
    GeluBackward,
    /// `out = sum`, and the sums over the depth of every column of `a`, which are a bias's gradient. Only for
    /// [`Product::BackwardWeight`] by [`Algorithm::Coop`] in parts. Binding 3 is (parts, M), f32, overwritten.
    ColumnSums,
}

impl Epilogue {
    fn bias(self) -> bool {
        matches!(self, Self::Bias | Self::BiasGelu | Self::BiasResidual)
    }

    fn gelu(self) -> bool {
        matches!(self, Self::BiasGelu | Self::GeluBackward)
    }

    /// Returns the suffix of a kernel's name.
    fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Bias => ".bias",
            Self::BiasGelu => ".bias_gelu",
            Self::BiasResidual => ".bias_residual",
            Self::GeluBackward => ".gelu_backward",
            Self::ColumnSums => ".column_sums",
        }
    }
}

/// Everything that the text of a matrix kernel depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// The product.
    pub product: Product,
    /// The algorithm and its sizes.
    pub algorithm: Algorithm,
    /// Element type of `a` and `b`: f32 or f16. Sums are always f32.
    pub operands: Elem,
    /// Element type of `out`: f32 or f16.
    pub out: Elem,
    /// Operation on a sum before it is stored.
    pub epilogue: Epilogue,
    /// Whether the sum begins with the previous contents of `out`.
    pub accumulate: bool,
    /// Number of parts of the depth that are summed separately, 1 for a whole product. All numbers above 1 have the
    /// same text, but the bits of the result depend on the number.
    pub parts: u32,
    /// Whether an extent, or the depth of a part, is not a multiple of its tile. [`Algorithm::Rows`] ignores this.
    pub ragged: bool,
    /// Width of accesses to memory, for which the caller guarantees [`fits`]. [`Width::Vec8`] is for
    /// [`Algorithm::Coop`] only.
    pub width: Width,
}

impl Spec {
    /// Returns whether memory is accessed in vec4 or wider.
    fn vec4(&self) -> bool {
        self.width != Width::Scalar
    }
}

/// The largest number of workgroups that WebGPU allows in one dimension.
const MAX_WORKGROUPS: u32 = 65535;

/// The depth up to which one dispatch of [`Algorithm::Rows`] keeps a panel of a (K,N) `b` in a core's cache. Deeper
/// products are faster as several accumulating dispatches: `BackwardInp` of the head (K = 25152, 256 rows) ran at 88
/// GFLOP/s in pieces of 1024 and at 63 GFLOP/s in one.
pub const SOFTWARE_DEPTH: u32 = 1024;

/// Returns whether a kernel of this width can compute this product: all strides and offsets, and the extents along rows
/// in memory, must be multiples of its elements.
#[must_use]
pub fn fits(width: Width, product: Product, [m, n, k]: [u32; 3], strides_and_offsets: &[u32]) -> bool {
    let extents = match product {
        Product::Forward | Product::BackwardInp => [n, k],
        Product::BackwardWeight => [n, m],
    };
    extents.iter().chain(strides_and_offsets).all(|x| x.is_multiple_of(width.elements() as u32))
}

/// Returns the kernel's family, the algorithm's file and the product: `matmul_rows.forward`.
#[must_use]
pub fn name(spec: &Spec) -> String {
    let algorithm = match spec.algorithm {
        Algorithm::Tiled { .. } if spec.operands == Elem::F16 => "matmul_f16",
        Algorithm::Tiled { .. } => "matmul_tiled",
        Algorithm::Rows { .. } => "matmul_rows",
        Algorithm::Coop(_) => "matmul_coop",
    };
    let product = match spec.product {
        Product::Forward => "forward",
        Product::BackwardInp => "backward_inp",
        Product::BackwardWeight => "backward_weight",
    };
    format!("{algorithm}.{product}")
}

/// Returns the kernel's name with everything that distinguishes it from the adapter's other kernels. The sizes in it
/// are
/// - for cooperative matrices the tile, the grid of subgroups and the edge: `matmul_coop.forward.128x128x32.2x4.e16`;
/// - for tiles the tile and an invocation's part of it: `matmul_tiled.forward.128x128x8.8x8`;
/// - for rows the rows, columns and unrolled steps of an invocation, and the lanes: `matmul_rows.forward.64x8x8.16`.
#[must_use]
pub fn full_name(spec: &Spec) -> String {
    let mut name = name(spec);
    match spec.algorithm {
        Algorithm::Tiled { tile_m, tile_n, tile_k, thread_m, thread_n, .. } => {
            _ = write!(name, ".{tile_m}x{tile_n}x{tile_k}.{thread_m}x{thread_n}");
        }
        Algorithm::Rows { width, rows, columns, unroll, .. } => {
            _ = write!(name, ".{rows}x{columns}x{unroll}.{width}");
        }
        Algorithm::Coop(coop) => {
            let CoopMatmul { tile_m, tile_n, tile_k, grid_m, grid_n, units: MatrixUnits { edge, native, .. }, .. } =
                coop;
            _ = write!(name, ".{tile_m}x{tile_n}x{tile_k}.{grid_m}x{grid_n}.e{edge}");
            if edge != native {
                _ = write!(name, "of{native}");
            }
            for (set, suffix) in [(coop.buffers > 1, ".double"), (coop.transposed, ".transposed")] {
                name.push_str(if set { suffix } else { "" });
            }
        }
    }
    name.push_str(spec.epilogue.suffix());
    let in_tiles = !matches!(spec.algorithm, Algorithm::Rows { .. });
    let pairs = matches!(spec.algorithm, Algorithm::Rows { pairs: true, .. });
    let apart = if spec.parts > 1 { format!(".parts{}", spec.parts) } else { String::new() };
    let widened = spec.operands != spec.out && spec.product == Product::Forward && spec.epilogue == Epilogue::None;
    for (set, suffix) in [
        (widened, ".to_f32"),
        (spec.accumulate, ".add"),
        (spec.parts > 1, apart.as_str()),
        (!spec.vec4(), ".scalar"),
        (spec.width == Width::Vec8, ".wide"),
        (in_tiles && spec.vec4() && spec.ragged, ".ragged"),
        (pairs, ".pairs"),
    ] {
        if set {
            name.push_str(suffix);
        }
    }
    name
}

/// Returns whether tiles extend past the result, or past a part of the depth.
#[must_use]
pub fn is_ragged(algorithm: &Algorithm, m: u32, n: u32, k: u32, part_depth: u32) -> bool {
    let [tile_m, tile_n, tile_k] = match *algorithm {
        Algorithm::Coop(CoopMatmul { tile_m, tile_n, tile_k, .. })
        | Algorithm::Tiled { tile_m, tile_n, tile_k, .. } => [tile_m, tile_n, tile_k],
        Algorithm::Rows { .. } => return false,
    };
    [(m, tile_m), (n, tile_n), (k, tile_k), (part_depth, tile_k)].iter().any(|(extent, tile)| extent % tile != 0)
}

/// Returns the bytes of workgroup memory of a kernel with cooperative matrices.
#[must_use]
pub fn coop_bytes(product: Product, coop: &CoopMatmul) -> u32 {
    coop::workgroup_bytes(product, coop)
}

/// Returns the invocations of a workgroup.
#[must_use]
pub fn workgroup_size(spec: &Spec) -> u32 {
    match spec.algorithm {
        Algorithm::Tiled { tile_m, tile_n, thread_m, thread_n, .. } => (tile_m / thread_m) * (tile_n / thread_n),
        Algorithm::Rows { width, .. } => width,
        Algorithm::Coop(coop) => coop.grid_m * coop.grid_n * coop.units.lanes,
    }
}

/// Returns the grid that covers an (m, n) output: the number of tiles, folded into two dimensions where it exceeds the
/// limit of one.
#[must_use]
pub fn workgroups(spec: &Spec, m: u32, n: u32) -> (u32, u32) {
    let (tile_m, tile_n) = tile(spec);
    let tiles = m.div_ceil(tile_m) * n.div_ceil(tile_n);
    let y = tiles.div_ceil(MAX_WORKGROUPS).max(1);
    (tiles.div_ceil(y), y)
}

/// Returns the fastest algorithm on software Vulkan whose vectors have `native_lanes` f32 lanes (4, 8 or 16).
///
/// It does not read pairs, so every adapter can run it; see [`Algorithm::with_pairs`].
#[must_use]
pub fn software_default(product: Product, native_lanes: u32) -> Algorithm {
    let (rows, columns, unroll) = match (native_lanes, product) {
        (16.., Product::Forward | Product::BackwardInp) => (64, 8, 8),
        (16.., Product::BackwardWeight) => (48, 8, 8),
        (8..16, Product::BackwardInp) => (32, 8, 8),
        (8..16, Product::BackwardWeight) => (16, 12, 4),
        _ => (32, 8, 4),
    };
    Algorithm::Rows { width: native_lanes.clamp(4, 16), rows, columns, unroll, pairs: false }
}

impl Display for Algorithm {
    /// Writes kind and sizes: `coop 128x128x32 by 2x4 subgroups, matrices of 16`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tiled { tile_m, tile_n, tile_k, thread_m, thread_n, .. } => {
                write!(f, "tiled {tile_m}x{tile_n}x{tile_k}, {thread_m}x{thread_n} an invocation")
            }
            Self::Rows { width, rows, columns, unroll, pairs } => {
                let pairs = if *pairs { " in pairs" } else { "" };
                write!(f, "rows {rows}x{columns}, {width} lanes, {unroll} steps{pairs}")
            }
            Self::Coop(c) => {
                let CoopMatmul { tile_m, tile_n, tile_k, grid_m, grid_n, .. } = c;
                let edge = c.units.edge;
                write!(f, "coop {tile_m}x{tile_n}x{tile_k} by {grid_m}x{grid_n} subgroups, matrices of {edge}")?;
                f.write_str(if c.buffers > 1 { ", two buffers" } else { "" })?;
                f.write_str(if c.transposed { ", transposed" } else { "" })
            }
        }
    }
}

impl Algorithm {
    /// Returns whether both have the same sizes. They may differ in fields that the adapter determines.
    #[must_use]
    pub fn has_sizes_of(&self, other: &Self) -> bool {
        match (*self, *other) {
            (Self::Coop(a), Self::Coop(b)) => {
                let rest = CoopMatmul { units: a.units, transposed: a.transposed, peeled: a.peeled, ..b };
                a == rest && a.units.edge == b.units.edge && a.units.lanes == b.units.lanes
            }
            (Self::Tiled { peeled, .. }, Self::Tiled { tile_m, tile_n, tile_k, thread_m, thread_n, .. }) => {
                *self == Self::Tiled { tile_m, tile_n, tile_k, thread_m, thread_n, peeled }
            }
            _ => self == other,
        }
    }

    /// Returns the algorithm with reads of two f32 at a time, if it supports them. Needs the device feature
    /// `SHADER_INT64`.
    #[must_use]
    pub fn with_pairs(self) -> Self {
        match self {
            Self::Tiled { .. } | Self::Coop(_) => self,
            Self::Rows { width, rows, columns, unroll, .. } => Self::Rows { width, rows, columns, unroll, pairs: true },
        }
    }
}

/// Returns the kernel's WGSL text.
#[must_use]
pub fn wgsl(spec: &Spec) -> String {
    match spec.algorithm {
        Algorithm::Tiled { tile_m, tile_n, tile_k, thread_m, thread_n, peeled } => {
            Tiled { spec: *spec, tile_m, tile_n, tile_k, thread_m, thread_n, peeled }.write()
        }
        Algorithm::Rows { .. } => Rows::new(*spec).write(),
        Algorithm::Coop(coop) => CoopKernel { spec: *spec, coop }.write(),
    }
}

/// Returns the rows and columns of `out` that a workgroup computes.
fn tile(spec: &Spec) -> (u32, u32) {
    match spec.algorithm {
        Algorithm::Tiled { tile_m, tile_n, .. } => (tile_m, tile_n),
        Algorithm::Rows { width, rows, columns, .. } => (rows, width * columns),
        Algorithm::Coop(coop) => (coop.tile_m, coop.tile_n),
    }
}

/// Returns the length in vec4 of one row of a tile in workgroup memory. It is one more than needed, so that the
/// transposing writes of a tile fall into different banks.
fn padded(tile: u32) -> u32 {
    tile / 4 + 1
}
