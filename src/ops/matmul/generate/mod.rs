//! Writes the WGSL text of the matrix kernels.
//!
//! | product | formula | `a` | `b` | used by |
//! |---|---|---|---|---|
//! | [`Product::Forward`] | `out = a·bᵀ (+ bias)` | (M,K) | (N,K) | `out = inp·weightᵀ + bias` |
//! | [`Product::BackwardInp`] | `out = a·b` | (M,K) | (K,N) | `dinp = dout·weight` |
//! | [`Product::BackwardWeight`] | `out += aᵀ·b` | (K,M) | (K,N) | `dweight += doutᵀ·inp` |
//!
//! `out` is (M,N) always. Matrices are row-major; a row stride and an offset let a kernel address a window of a bigger
//! matrix.
//!
//! # Interface of every kernel
//! Entry point `main`. Bindings of group 0: 0 `a`, 1 `b` (storage, read), 2 `out` (storage, `read_write`), then what the
//! [`Epilogue`] wants. Whether a binding is an array of scalars, of `vec4` or of `u64` is the generator's own affair:
//! the caller binds plain buffers of [`Spec::operands`] and [`Spec::out`]; a bias and a residual are always f32. What
//! has the shape of `out` shares its stride and offset. Parameters are immediates, eleven `u32` in this order, strides
//! and offsets in elements: `m n k a_stride b_stride out_stride a_offset b_offset out_offset bias_offset part_depth`.
//!
//! Reads and writes stay inside the windows for any M, N, K, so kernels may be built without bounds checks. There are
//! no atomics, and one output is summed in one fixed order (ascending k): results do not depend on the schedule.
//!
//! # Algorithms
//! [`Algorithm::Tiled`] is the usual GPU kernel: a workgroup copies tiles of `a` and `b` into workgroup memory,
//! transposed where the inner loop wants it, and every invocation keeps a register tile.
//!
//! [`Algorithm::Coop`] does the same with cooperative matrices in place of register tiles; see [`coop`].
//!
//! [`Algorithm::Rows`] is for software adapters, where workgroup memory and barriers are slow. A workgroup is one CPU
//! vector wide. Row and k indices are uniform, so `a` is read as scalars; a vector of `b` is read once for all rows.
//!
//! # What is fast on software Vulkan
//! Measured on Mesa 26.1.6 (lavapipe), two cores of an EPYC with AVX-512, GPT-2 124M's layers at 256 rows; GFLOP/s of
//! both cores by CPU time, best of 5 or 6, the four shapes of a block together (4 lanes: (256,768,768) alone). The
//! machine was shared: ratios count.
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
//! - A read of `b` is a masked gather, a load for every lane: many rows must share it, and a gather of u64 brings two
//!   vectors at once. A scalar of `a` costs two branches (the driver's range check, there whatever the module asks
//!   for), so many columns must share it, and again a u64 brings two.
//! - The sums do not fit the registers. A block of code for every four rows makes the driver's compiler load, use and
//!   store them once a turn of the loop, and many steps of k make turns rare.
//! - Lanes of `Forward` own neighbouring columns, not fours of columns: rows of `b` four apart fall into the same sets
//!   of the cache (0.75 of the speed).
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

/// Which of the three products of a linear layer.
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

/// How the product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Algorithm {
    /// For GPUs: tiles in workgroup memory, register tiles. All sizes are multiples of 4.
    Tiled {
        /// Rows of `out` a workgroup computes; a multiple of `thread_m`.
        tile_m: u32,
        /// Columns of `out` a workgroup computes; a multiple of `thread_n`.
        tile_n: u32,
        /// Depth of the tiles in workgroup memory.
        tile_k: u32,
        /// Rows of `out` an invocation computes.
        thread_m: u32,
        /// Columns of `out` an invocation computes.
        thread_n: u32,
        /// As [`CoopMatmul::peeled`].
        #[serde(default)]
        peeled: bool,
    },
    /// For software adapters: no workgroup memory, every row index uniform.
    Rows {
        /// Invocations of a workgroup, along N: the lanes of the CPU's vector.
        width: u32,
        /// Rows of `out` an invocation computes; a multiple of 4.
        rows: u32,
        /// Columns of `out` an invocation computes: 1, 2 or a multiple of 4.
        columns: u32,
        /// Steps of k per turn of the loop; a multiple of 4.
        unroll: u32,
        /// In vec4: read `a` and `b` as `u64`, two f32 at a time. Needs the device feature `SHADER_INT64`.
        pairs: bool,
    },
    /// For adapters with matrix units: f16 operands, f32 sums.
    Coop(CoopMatmul),
}

/// The shape of a kernel with cooperative matrices. Tiles are multiples of the subgroups' grid times the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CoopMatmul {
    /// Rows of `out` a workgroup computes.
    pub tile_m: u32,
    /// Columns of `out` a workgroup computes.
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
    /// Tiles of each operand in workgroup memory: with two, one is filled while the other is multiplied, and a tile takes one
    /// barrier instead of two.
    #[serde(default = "one")]
    pub buffers: u32,
    /// Tiles whose matrices would be loaded against their lines are transposed when they are filled: matrix units of RDNA3
    /// gather such matrices by single elements.
    #[serde(default)]
    pub transposed: bool,
    /// The steps of k within a tile are written out, not a loop: loops are slow on Metal, and long texts take software
    /// adapters minutes to compile.
    pub unrolled: bool,
    /// The first tiles are multiplied before the loop. Mesa's compiler for NVIDIA keeps sums that come from different products
    /// each in registers of their own; those that begin as one constant, or as one matrix of the bias, it copies in every
    /// turn of the loop. Compilers for AMD do not, and Apple's registers overflow.
    #[serde(default)]
    pub peeled: bool,
}

fn one() -> u32 {
    1
}

/// What happens to a sum before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// `out = sum`.
    None,
    /// `out = sum + bias`. Binding 3 is the bias (N).
    Bias,
    /// `out = sum + bias`, `gelu = GELU(out)`. Binding 3 is the bias, 4 is `gelu`, with elements as `out`.
    BiasGelu,
    /// `out = residual + (sum + bias)`. Binding 3 is the bias, 4 the residual (M,N), f32.
    BiasResidual,
    /// `out = sum GELU'(pre)`. Binding 3 is `pre` (M,N), with elements as `out`.
    GeluBackward,
    /// [`Product::BackwardWeight`] of [`Algorithm::Coop`] in parts: also the sums over the depth of every column of `a`,
    /// which are a bias's gradient. Binding 3 is (parts, M), f32, overwritten.
    ColumnSums,
}

impl Epilogue {
    fn bias(self) -> bool {
        matches!(self, Self::Bias | Self::BiasGelu | Self::BiasResidual)
    }

    fn gelu(self) -> bool {
        matches!(self, Self::BiasGelu | Self::GeluBackward)
    }

    /// The tail of a kernel's name.
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

/// One kernel: everything its text depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// The product.
    pub product: Product,
    /// How it is computed.
    pub algorithm: Algorithm,
    /// Elements of `a` and `b`: f32 or f16. Sums are f32 always.
    pub operands: Elem,
    /// Elements of `out`: f32 or f16.
    pub out: Elem,
    /// What happens to a sum.
    pub epilogue: Epilogue,
    /// The sum begins with what `out` holds.
    pub accumulate: bool,
    /// Parts of the depth that are summed apart, 1 for a whole product. The text of several is one, whatever their number, and
    /// the bits of the result depend on it.
    pub parts: u32,
    /// Not of [`Algorithm::Rows`]: some extent is no multiple of its tile, or the depth of a part's.
    pub ragged: bool,
    /// What memory is read and written in: the caller guarantees [`fits`]. [`Width::Vec8`] for [`Algorithm::Coop`] only.
    pub width: Width,
}

impl Spec {
    /// Memory is read and written in vec4 or more.
    fn vec4(&self) -> bool {
        self.width != Width::Scalar
    }
}

/// The largest count of workgroups WebGPU allows in one dimension.
const MAX_WORKGROUPS: u32 = 65535;

/// The depth up to which one dispatch of [`Algorithm::Rows`] keeps a panel of a (K,N) `b` in a core's cache. Deeper
/// products are faster as several dispatches that accumulate: the classifier's `BackwardInp` (K = 25152, 256 rows) ran
/// at 88 GFLOP/s in pieces of 1024, at 63 whole.
pub const SOFTWARE_DEPTH: u32 = 1024;

/// Whether a kernel of this width may compute this product: all strides and offsets, and those extents that lie along rows
/// in memory, are multiples of its elements.
#[must_use]
pub fn fits(width: Width, product: Product, [m, n, k]: [u32; 3], strides_and_offsets: &[u32]) -> bool {
    let extents = match product {
        Product::Forward | Product::BackwardInp => [n, k],
        Product::BackwardWeight => [n, m],
    };
    extents.iter().chain(strides_and_offsets).all(|x| x.is_multiple_of(width.elements() as u32))
}

/// The kernel's name, as `matmul_rows.forward`: the algorithm's file and the product.
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

/// The kernel's name with everything that sets it apart from the adapter's other kernels. Sizes are
/// - of cooperative matrices the tile, the grid of subgroups and the edge: `matmul_coop.forward.128x128x32.2x4.e16`;
/// - of tiles the tile and an invocation's part of it: `matmul_tiled.forward.128x128x8.8x8`;
/// - of rows the rows, columns and unrolled steps of an invocation and the lanes: `matmul_rows.forward.64x8x8.16`.
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

/// Whether tiles stick out of the matrices: of the result, or of a part of the depth.
#[must_use]
pub fn is_ragged(algorithm: &Algorithm, m: u32, n: u32, k: u32, part_depth: u32) -> bool {
    let [tile_m, tile_n, tile_k] = match *algorithm {
        Algorithm::Coop(CoopMatmul { tile_m, tile_n, tile_k, .. })
        | Algorithm::Tiled { tile_m, tile_n, tile_k, .. } => [tile_m, tile_n, tile_k],
        Algorithm::Rows { .. } => return false,
    };
    [(m, tile_m), (n, tile_n), (k, tile_k), (part_depth, tile_k)].iter().any(|(extent, tile)| extent % tile != 0)
}

/// Bytes of workgroup memory of a kernel with cooperative matrices.
#[must_use]
pub fn coop_bytes(product: Product, coop: &CoopMatmul) -> u32 {
    coop::workgroup_bytes(product, coop)
}

/// Invocations of a workgroup.
#[must_use]
pub fn workgroup_size(spec: &Spec) -> u32 {
    match spec.algorithm {
        Algorithm::Tiled { tile_m, tile_n, thread_m, thread_n, .. } => (tile_m / thread_m) * (tile_n / thread_n),
        Algorithm::Rows { width, .. } => width,
        Algorithm::Coop(coop) => coop.grid_m * coop.grid_n * coop.units.lanes,
    }
}

/// The grid that covers an (m, n) output: a count of tiles, folded where it exceeds what one dimension may hold.
#[must_use]
pub fn workgroups(spec: &Spec, m: u32, n: u32) -> (u32, u32) {
    let (tile_m, tile_n) = tile(spec);
    let tiles = m.div_ceil(tile_m) * n.div_ceil(tile_n);
    let y = tiles.div_ceil(MAX_WORKGROUPS).max(1);
    (tiles.div_ceil(y), y)
}

/// The fastest algorithm on software Vulkan whose vectors have `native_lanes` f32 lanes (4, 8 or 16).
///
/// Without pairs, which every adapter can do; see [`Algorithm::with_pairs`].
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
    /// Kind and sizes: `coop 128x128x32 by 2x4 subgroups, matrices of 16`.
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
    /// True for kernels of the same sizes: they may differ in what follows from the adapter.
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

    /// The same, reading two f32 at a time where the algorithm can: for devices with `SHADER_INT64`.
    #[must_use]
    pub fn with_pairs(self) -> Self {
        match self {
            Self::Tiled { .. } | Self::Coop(_) => self,
            Self::Rows { width, rows, columns, unroll, .. } => Self::Rows { width, rows, columns, unroll, pairs: true },
        }
    }
}

/// The kernel's WGSL text.
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

/// Rows and columns of `out` a workgroup computes.
fn tile(spec: &Spec) -> (u32, u32) {
    match spec.algorithm {
        Algorithm::Tiled { tile_m, tile_n, .. } => (tile_m, tile_n),
        Algorithm::Rows { width, rows, columns, .. } => (rows, width * columns),
        Algorithm::Coop(coop) => (coop.tile_m, coop.tile_n),
    }
}

/// Length in vec4 of one row of a tile in workgroup memory: one more than needed, so that the transposing writes of a
/// tile spread over the memory's banks.
fn padded(tile: u32) -> u32 {
    tile / 4 + 1
}
