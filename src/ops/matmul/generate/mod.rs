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
mod rows;
mod tiled;

use std::fmt::{self, Display, Write as _};

use serde::{Deserialize, Serialize};

use crate::gpu::Elem;

use coop::CoopKernel;
use rows::Rows;
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
        /// With [`Spec::vec4`]: read `a` and `b` as `u64`, two f32 at a time. Needs the device feature `SHADER_INT64`.
        pairs: bool,
    },
    /// For adapters with matrix units: f16 operands, f32 sums.
    Coop(Coop),
}

/// The shape of a kernel with cooperative matrices. Tiles are multiples of the subgroups' grid times the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Coop {
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
    /// Edge of a matrix: 8 or 16.
    pub edge: u32,
    /// Edge of the adapter's matrices. If it is smaller than `edge`, one of ours is put together from several: a dialect
    /// for tests of 16×16 where there are only 8×8.
    pub native: u32,
    /// Invocations of a subgroup, of the largest where there are several sizes.
    pub lanes: u32,
    /// Subgroups may be smaller than `lanes`: there may then be more of them than the grid has places.
    pub varying: bool,
    /// The steps of k within a tile are written out, not a loop: loops are slow on Metal, and long texts take software
    /// adapters minutes to compile.
    pub unrolled: bool,
    /// Tiles in workgroup memory are `vec4<f16>`, which Metal's matrix loads cannot take.
    pub wide_tiles: bool,
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
    /// [`Algorithm::Coop`] only: some extent is no multiple of its tile, or the depth of a part's.
    pub ragged: bool,
    /// Memory is read and written in vec4: the caller guarantees [`vec4_fits`].
    pub vec4: bool,
}

/// The largest count of workgroups WebGPU allows in one dimension.
const MAX_WORKGROUPS: u32 = 65535;

/// The depth up to which one dispatch of [`Algorithm::Rows`] keeps a panel of a (K,N) `b` in a core's cache. Deeper
/// products are faster as several dispatches that accumulate: the classifier's `BackwardInp` (K = 25152, 256 rows) ran
/// at 88 GFLOP/s in pieces of 1024, at 63 whole.
pub const SOFTWARE_DEPTH: u32 = 1024;

/// Row tiles that [`Algorithm::Tiled`] walks before the next column tile: both operands' tiles stay in a GPU's L2.
const BAND: u32 = 8;

/// Whether a kernel with [`Spec::vec4`] may compute this product: all strides and offsets, and those extents that lie
/// along rows in memory, are multiples of 4.
#[must_use]
pub fn vec4_fits(product: Product, m: u32, n: u32, k: u32, strides_and_offsets: &[u32]) -> bool {
    let extents = match product {
        Product::Forward | Product::BackwardInp => [n, k],
        Product::BackwardWeight => [n, m],
    };
    extents.iter().chain(strides_and_offsets).all(|x| x % 4 == 0)
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

/// The kernel's name with all that sets it apart: `matmul_coop.forward.128x128.e16.bias_gelu`.
#[must_use]
pub fn full_name(spec: &Spec) -> String {
    let mut name = name(spec);
    match spec.algorithm {
        Algorithm::Tiled { tile_m, tile_n, .. } => _ = write!(name, ".{tile_m}x{tile_n}"),
        Algorithm::Rows { width, .. } => _ = write!(name, ".{width}"),
        Algorithm::Coop(coop) => {
            _ = write!(name, ".{}x{}.e{}", coop.tile_m, coop.tile_n, coop.edge);
            if coop.edge != coop.native {
                _ = write!(name, "of{}", coop.native);
            }
        }
    }
    name.push_str(spec.epilogue.suffix());
    let coop = matches!(spec.algorithm, Algorithm::Coop(_));
    let pairs = matches!(spec.algorithm, Algorithm::Rows { pairs: true, .. });
    let apart = spec.product == Product::BackwardWeight && !spec.accumulate;
    let widened = spec.operands != spec.out && spec.product == Product::Forward && spec.epilogue == Epilogue::None;
    for (set, suffix) in [
        (widened, ".to_f32"),
        (spec.accumulate, ".add"),
        (apart, ".parts"),
        (!spec.vec4, ".scalar"),
        (coop && spec.vec4 && spec.ragged, ".ragged"),
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
    match algorithm {
        Algorithm::Coop(c) => [(m, c.tile_m), (n, c.tile_n), (k, c.tile_k), (part_depth, c.tile_k)]
            .iter()
            .any(|(extent, tile)| extent % tile != 0),
        _ => false,
    }
}

/// Bytes of workgroup memory of a kernel with cooperative matrices.
#[must_use]
pub fn coop_bytes(product: Product, coop: &Coop) -> u32 {
    coop::workgroup_bytes(product, coop)
}

/// Invocations of a workgroup.
#[must_use]
pub fn workgroup_size(spec: &Spec) -> u32 {
    match spec.algorithm {
        Algorithm::Tiled { tile_m, tile_n, thread_m, thread_n, .. } => (tile_m / thread_m) * (tile_n / thread_n),
        Algorithm::Rows { width, .. } => width,
        Algorithm::Coop(coop) => coop.grid_m * coop.grid_n * coop.lanes,
    }
}

/// Bytes of workgroup memory.
#[must_use]
pub fn workgroup_bytes(spec: &Spec) -> u32 {
    match spec.algorithm {
        Algorithm::Tiled { tile_m, tile_n, tile_k, .. } => tile_k * (padded(tile_m) + padded(tile_n)) * 16,
        Algorithm::Rows { .. } => 0,
        Algorithm::Coop(coop) => coop::workgroup_bytes(spec.product, &coop),
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
            Self::Tiled { tile_m, tile_n, tile_k, thread_m, thread_n } => {
                write!(f, "tiled {tile_m}x{tile_n}x{tile_k}, {thread_m}x{thread_n} an invocation")
            }
            Self::Rows { width, rows, columns, unroll, pairs } => {
                let pairs = if *pairs { " in pairs" } else { "" };
                write!(f, "rows {rows}x{columns}, {width} lanes, {unroll} steps{pairs}")
            }
            Self::Coop(c) => write!(
                f,
                "coop {}x{}x{} by {}x{} subgroups, matrices of {}",
                c.tile_m, c.tile_n, c.tile_k, c.grid_m, c.grid_n, c.edge
            ),
        }
    }
}

impl Algorithm {
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
        Algorithm::Tiled { tile_m, tile_n, tile_k, thread_m, thread_n } => {
            Tiled { spec: *spec, tile_m, tile_n, tile_k, thread_m, thread_n }.write()
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

/// Indented lines.
struct Text {
    text: String,
    depth: usize,
}

impl Text {
    fn line(&mut self, line: impl Display) {
        let _ = writeln!(self.text, "{:1$}{line}", "", 4 * self.depth);
    }

    fn open(&mut self, line: impl Display) {
        self.line(format_args!("{line} {{"));
        self.depth += 1;
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.line("}");
    }
}

/// The element type of a binding.
#[derive(Clone, Copy, PartialEq)]
enum Element {
    F32,
    Vec4,
    /// Two f32 in a u64; read as vec4 by a function of the kernel.
    Pair,
    /// f16, computed with as f32.
    Half,
    /// Four of them.
    Half4,
}

impl Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Element::F32 => "f32",
            Element::Vec4 => "vec4<f32>",
            Element::Pair => "u64",
            Element::Half => "f16",
            Element::Half4 => "vec4<f16>",
        })
    }
}

impl Element {
    /// `expr`, a count of f32, in the units that one read moves.
    fn units(self, expr: impl Display) -> String {
        match self {
            Element::F32 | Element::Half => format!("{expr}"),
            Element::Vec4 | Element::Pair | Element::Half4 => format!("({expr}) / 4u"),
        }
    }

    /// The element of a tensor, four at a time or one.
    fn of(elem: Elem, vec4: bool) -> Self {
        match (elem, vec4) {
            (Elem::F16, true) => Element::Half4,
            (Elem::F16, false) => Element::Half,
            (_, true) => Element::Vec4,
            (_, false) => Element::F32,
        }
    }

    /// What one read brings to compute with: `f32` or `vec4<f32>`.
    fn value(self) -> Self {
        if self.width() == 4 { Element::Vec4 } else { Element::F32 }
    }

    /// The element of another tensor of the same type that is read and written without functions.
    fn plain(self) -> Self {
        if self == Element::Pair { Element::Vec4 } else { self }
    }

    /// How many f32 one read moves.
    fn width(self) -> u32 {
        if matches!(self, Element::F32 | Element::Half) { 1 } else { 4 }
    }

    /// The statement that sets element `index` of binding `name`.
    fn write(self, name: &str, index: impl Display, value: impl Display) -> String {
        match self {
            Element::F32 | Element::Vec4 => format!("{name}[{index}] = {value};"),
            Element::Pair => format!("write_{name}({index}, {value});"),
            Element::Half | Element::Half4 => format!("{name}[{index}] = {self}({value});"),
        }
    }

    /// Element `index` of binding `name`.
    fn read(self, name: &str, index: impl Display) -> String {
        match self {
            Element::F32 | Element::Vec4 => format!("{name}[{index}]"),
            Element::Pair => format!("read_{name}({index})"),
            Element::Half => format!("f32({name}[{index}])"),
            Element::Half4 => format!("vec4<f32>({name}[{index}])"),
        }
    }
}

/// Component `i` of a vec4.
fn component(i: u32) -> &'static str {
    ["x", "y", "z", "w"][i as usize % 4]
}

/// How a kernel sees its bindings.
struct Bindings {
    a: Element,
    b: Element,
    out: Element,
}

/// Header comment, parameters and bindings.
fn prologue(spec: &Spec, idea: &str, bindings: &Bindings) -> Text {
    let Bindings { a, b, out } = bindings;
    let mut t = Text { text: String::new(), depth: 0 };
    if [a, b, out].iter().any(|e| matches!(e, Element::Half | Element::Half4)) {
        t.line("enable f16;");
    }
    if matches!(spec.algorithm, Algorithm::Coop(_)) {
        t.line("enable wgpu_cooperative_matrix;");
    }
    let formula = match spec.product {
        Product::Forward => "a(M,K)·b(N,K)ᵀ",
        Product::BackwardInp => "a(M,K)·b(K,N)",
        Product::BackwardWeight => "a(K,M)ᵀ·b(K,N)",
    };
    let equals = if spec.accumulate { "+=" } else { "=" };
    let then = if spec.epilogue == Epilogue::None { String::new() } else { format!(", then {:?}", spec.epilogue) };
    t.line(format_args!("// {}: out(M,N) {equals} {formula}{then}", name(spec)));
    t.line(format_args!("// {idea}"));
    t.line("// Generated by src/ops/matmul/generate.rs.");
    t.line("");
    t.open("struct P");
    for field in [
        "m",
        "n",
        "k",
        "a_stride",
        "b_stride",
        "out_stride",
        "a_offset",
        "b_offset",
        "out_offset",
        "bias_offset",
        "part_depth",
    ] {
        t.line(format_args!("{field}: u32,"));
    }
    t.close();
    t.line("var<immediate> p: P;");
    t.line("");
    t.line(format_args!("@group(0) @binding(0) var<storage, read> a: array<{a}>;"));
    t.line(format_args!("@group(0) @binding(1) var<storage, read> b: array<{b}>;"));
    t.line(format_args!("@group(0) @binding(2) var<storage, read_write> out: array<{out}>;"));
    let (value, kept) = (out.value(), out.plain());
    let third = match spec.epilogue {
        Epilogue::None => None,
        Epilogue::GeluBackward => Some(format!("<storage, read> pre: array<{kept}>")),
        _ => Some(format!("<storage, read> bias: array<{value}>")),
    };
    let fourth = match spec.epilogue {
        Epilogue::BiasGelu => Some(format!("<storage, read_write> gelu_out: array<{kept}>")),
        Epilogue::BiasResidual => Some(format!("<storage, read> residual: array<{value}>")),
        _ => None,
    };
    for (binding, what) in [(3, third), (4, fourth)] {
        if let Some(what) = what {
            t.line(format_args!("@group(0) @binding({binding}) var{what};"));
        }
    }
    t.line("");
    if spec.epilogue.gelu() {
        t.line(format_args!("alias V = {value};"));
        include_str!("../../../../shaders/shared/gelu.wgsl").lines().for_each(|line| t.line(line));
        t.line("");
    }
    if [a, b, out].contains(&&Element::Pair) {
        t.line("fn low(pair: u64) -> f32 { return bitcast<f32>(u32(pair)); }");
        t.line("fn high(pair: u64) -> f32 { return bitcast<f32>(u32(pair >> 32u)); }");
        t.line("");
    }
    for (name, element) in [("a", a), ("b", b), ("out", out)] {
        if *element == Element::Pair && (name != "out" || spec.accumulate) {
            t.open(format_args!("fn read_{name}(index: u32) -> vec4<f32>"));
            t.line(format_args!("let first = {name}[index * 2u];"));
            t.line(format_args!("let second = {name}[index * 2u + 1u];"));
            t.line("return vec4(low(first), high(first), low(second), high(second));");
            t.close();
            t.line("");
        }
    }
    if *out == Element::Pair {
        t.line(
            "fn pair(low: f32, high: f32) -> u64 { return u64(bitcast<u32>(low)) | (u64(bitcast<u32>(high)) << 32u); }",
        );
        t.line("");
        t.open("fn write_out(index: u32, four: vec4<f32>)");
        t.line("out[index * 2u] = pair(four.x, four.y);");
        t.line("out[index * 2u + 1u] = pair(four.z, four.w);");
        t.close();
        t.line("");
    }
    t
}

/// Attributes and parameters of the entry point.
fn entry(t: &mut Text, spec: &Spec) {
    t.line(format_args!("@compute @workgroup_size({})", workgroup_size(spec)));
    t.line("fn main(");
    t.depth += 1;
    t.line("@builtin(workgroup_id) group: vec3<u32>,");
    t.line("@builtin(num_workgroups) groups: vec3<u32>,");
    t.line("@builtin(local_invocation_index) thread: u32,");
    if matches!(spec.algorithm, Algorithm::Coop(_)) {
        t.line("@builtin(subgroup_id) subgroup: u32,");
    }
    t.depth -= 1;
    t.open(")");
}

/// Stores the sum `value` at `index` of what has the shape of `out`.
fn store(t: &mut Text, spec: &Spec, out: Element, index: &str, bias_index: &str, value: &str) {
    let bias = if spec.epilogue.bias() { format!(" + bias[{bias_index}]") } else { String::new() };
    let before = if spec.accumulate { format!("{} + ", out.read("out", index)) } else { String::new() };
    let sum = format!("{before}{value}{bias}");
    match spec.epilogue {
        Epilogue::None | Epilogue::Bias => t.line(out.write("out", index, sum)),
        Epilogue::BiasResidual => t.line(out.write("out", index, format_args!("residual[{index}] + ({sum})"))),
        Epilogue::BiasGelu => {
            // of what is kept, not of what is rounded away: so it can be computed again from it
            let kept = match out {
                Element::Half | Element::Half4 => format!("{}({out}({sum}))", out.value()),
                _ => sum,
            };
            t.line(format_args!("let kept = {kept};"));
            t.line(out.write("out", index, "kept"));
            t.line(out.plain().write("gelu_out", index, "gelu(kept)"));
        }
        Epilogue::GeluBackward => {
            let slope = format!("gelu_slope({})", out.plain().read("pre", index));
            t.line(out.write("out", index, format_args!("({sum}) * {slope}")));
        }
    }
}

/// Which tile a workgroup computes: `first_row`, `first_column`, and for a product in parts which `part`.
fn place(t: &mut Text, tile_m: u32, tile_n: u32, parts: bool) {
    t.line("let group_number = group.y * groups.x + group.x;");
    t.line(format_args!("let row_tiles = (p.m + {}u) / {tile_m}u;", tile_m - 1));
    t.line(format_args!("let column_tiles = (p.n + {}u) / {tile_n}u;", tile_n - 1));
    if parts {
        t.line("let part = group_number / (row_tiles * column_tiles);");
        t.line("let tile = group_number - part * row_tiles * column_tiles;");
    } else {
        t.line("let tile = group_number;");
    }
    t.line(format_args!("// bands of {BAND} row tiles: neighbouring workgroups share operands in cache"));
    t.line(format_args!("let band = tile / ({BAND}u * column_tiles);"));
    t.line(format_args!("let band_rows = min({BAND}u, max(row_tiles, band * {BAND}u + 1u) - band * {BAND}u);"));
    t.line(format_args!("let in_band = tile - band * {BAND}u * column_tiles;"));
    t.line(format_args!("let first_row = (band * {BAND}u + in_band % band_rows) * {tile_m}u;"));
    t.line(format_args!("let first_column = (in_band / band_rows) * {tile_n}u;"));
}
