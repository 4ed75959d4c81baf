//! Writes the WGSL text of the f32 matrix kernels.
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
//! Entry point `main`. Bindings of group 0: 0 `a`, 1 `b` (storage, read), 2 `out` (storage, `read_write`), and with
//! [`Spec::bias`] 3 `bias` (storage, read). Whether a binding is an array of `f32`, `vec4<f32>` or `u64` is the
//! generator's own affair: the caller binds plain buffers of f32. Parameters are immediates, ten `u32` in this order,
//! strides and offsets in elements: `m n k a_stride b_stride out_stride a_offset b_offset out_offset bias_offset`.
//!
//! Reads and writes stay inside the windows for any M, N, K, so kernels may be built without bounds checks. There are
//! no atomics, and one output is summed in one fixed order (ascending k): results do not depend on the schedule.
//!
//! # Algorithms
//! [`Algorithm::Tiled`] is the usual GPU kernel: a workgroup copies tiles of `a` and `b` into workgroup memory,
//! transposed where the inner loop wants it, and every invocation keeps a register tile.
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

use std::fmt::{self, Display, Write as _};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
}

/// One kernel: everything its text depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// The product.
    pub product: Product,
    /// How it is computed.
    pub algorithm: Algorithm,
    /// Add `bias(N)` to every row.
    pub bias: bool,
    /// `out +=` instead of `out =`.
    pub accumulate: bool,
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
        Algorithm::Tiled { .. } => "matmul_tiled",
        Algorithm::Rows { .. } => "matmul_rows",
    };
    let product = match spec.product {
        Product::Forward => "forward",
        Product::BackwardInp => "backward_inp",
        Product::BackwardWeight => "backward_weight",
    };
    format!("{algorithm}.{product}")
}

/// Invocations of a workgroup.
#[must_use]
pub fn workgroup_size(spec: &Spec) -> u32 {
    match spec.algorithm {
        Algorithm::Tiled { tile_m, tile_n, thread_m, thread_n, .. } => (tile_m / thread_m) * (tile_n / thread_n),
        Algorithm::Rows { width, .. } => width,
    }
}

/// Bytes of workgroup memory.
#[must_use]
pub fn workgroup_bytes(spec: &Spec) -> u32 {
    match spec.algorithm {
        Algorithm::Tiled { tile_m, tile_n, tile_k, .. } => tile_k * (padded(tile_m) + padded(tile_n)) * 16,
        Algorithm::Rows { .. } => 0,
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

impl Algorithm {
    /// The same, reading two f32 at a time where the algorithm can: for devices with `SHADER_INT64`.
    #[must_use]
    pub fn with_pairs(self) -> Self {
        match self {
            Self::Tiled { .. } => self,
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
    }
}

/// Rows and columns of `out` a workgroup computes.
fn tile(spec: &Spec) -> (u32, u32) {
    match spec.algorithm {
        Algorithm::Tiled { tile_m, tile_n, .. } => (tile_m, tile_n),
        Algorithm::Rows { width, rows, columns, .. } => (rows, width * columns),
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
}

impl Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Element::F32 => "f32",
            Element::Vec4 => "vec4<f32>",
            Element::Pair => "u64",
        })
    }
}

impl Element {
    /// `expr`, a count of f32, in the units that one read moves.
    fn units(self, expr: impl Display) -> String {
        match self {
            Element::F32 => format!("{expr}"),
            Element::Vec4 | Element::Pair => format!("({expr}) / 4u"),
        }
    }

    /// How many f32 one read moves.
    fn width(self) -> u32 {
        if self == Element::F32 { 1 } else { 4 }
    }

    /// The statement that sets element `index` of binding `name`.
    fn write(self, name: &str, index: impl Display, value: impl Display) -> String {
        match self {
            Element::F32 | Element::Vec4 => format!("{name}[{index}] = {value};"),
            Element::Pair => format!("write_{name}({index}, {value});"),
        }
    }

    /// Element `index` of binding `name`.
    fn read(self, name: &str, index: impl Display) -> String {
        match self {
            Element::F32 | Element::Vec4 => format!("{name}[{index}]"),
            Element::Pair => format!("read_{name}({index})"),
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
    bias: Element,
}

/// Header comment, parameters and bindings.
fn prologue(spec: &Spec, idea: &str, bindings: &Bindings) -> Text {
    let Bindings { a, b, out, bias } = bindings;
    let mut t = Text { text: String::new(), depth: 0 };
    let formula = match spec.product {
        Product::Forward => "a(M,K)·b(N,K)ᵀ",
        Product::BackwardInp => "a(M,K)·b(K,N)",
        Product::BackwardWeight => "a(K,M)ᵀ·b(K,N)",
    };
    let equals = if spec.accumulate { "+=" } else { "=" };
    let plus_bias = if spec.bias { " + bias(N)" } else { "" };
    t.line(format_args!("// {}: out(M,N) {equals} {formula}{plus_bias}", name(spec)));
    t.line(format_args!("// {idea}"));
    t.line("// Generated by src/ops/matmul/generate.rs.");
    t.line("");
    t.open("struct P");
    for field in
        ["m", "n", "k", "a_stride", "b_stride", "out_stride", "a_offset", "b_offset", "out_offset", "bias_offset"]
    {
        t.line(format_args!("{field}: u32,"));
    }
    t.close();
    t.line("var<immediate> p: P;");
    t.line("");
    t.line(format_args!("@group(0) @binding(0) var<storage, read> a: array<{a}>;"));
    t.line(format_args!("@group(0) @binding(1) var<storage, read> b: array<{b}>;"));
    t.line(format_args!("@group(0) @binding(2) var<storage, read_write> out: array<{out}>;"));
    if spec.bias {
        t.line(format_args!("@group(0) @binding(3) var<storage, read> bias: array<{bias}>;"));
    }
    t.line("");
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
    t.depth -= 1;
    t.open(")");
}

/// `out[index] = value` with bias and accumulation.
fn store(t: &mut Text, spec: &Spec, out: Element, index: &str, bias_index: &str, value: &str) {
    let bias = if spec.bias { format!(" + bias[{bias_index}]") } else { String::new() };
    let before = if spec.accumulate { format!("{} + ", out.read("out", index)) } else { String::new() };
    t.line(out.write("out", index, format_args!("{before}{value}{bias}")));
}

/// The kernel for software adapters.
///
/// A *slot* is what an invocation owns of a row at once: four neighbouring columns with vec4, else one column. For
/// `Forward` it is always one, since a read of `b` brings neighbours in k; its slots lie `width` columns apart, so that
/// the lanes' rows of `b` fall into different sets of the CPU's cache.
struct Rows {
    spec: Spec,
    width: u32,
    rows: u32,
    columns: u32,
    unroll: u32,
    /// Type of one slot.
    slot: Element,
    /// `a` is read along M for `BackwardWeight`, otherwise along K; `b` along K for `Forward`, otherwise along N.
    bindings: Bindings,
}

/// Rows of [`Rows`] that stand in one block of code.
///
/// The block's condition holds but for rows beyond the matrix. It is there for the compiler below: within a block of
/// four rows it keeps accumulators in registers, while with all rows in one block it mixes them up and spills.
const BLOCK_ROWS: u32 = 4;

impl Rows {
    fn new(spec: Spec) -> Self {
        let Algorithm::Rows { width, rows, columns, unroll, pairs } = spec.algorithm else {
            unreachable!("the caller matched Algorithm::Rows")
        };
        let element = if spec.vec4 { Element::Vec4 } else { Element::F32 };
        let operand = if spec.vec4 && pairs { Element::Pair } else { element };
        let (slot, b, out) = match spec.product {
            Product::Forward => (Element::F32, operand, Element::F32),
            _ if columns.is_multiple_of(4) => (element, operand, operand),
            _ => (Element::F32, Element::F32, Element::F32),
        };
        Self { spec, width, rows, columns, unroll, slot, bindings: Bindings { a: operand, b, out, bias: slot } }
    }

    fn slots(&self) -> u32 {
        self.columns / self.slot.width()
    }

    /// Steps of k that the reads of one operand bring at once.
    fn step(&self) -> u32 {
        if self.spec.product == Product::BackwardWeight { 1 } else { self.bindings.a.width() }
    }

    fn write(&self) -> String {
        let Self { spec, width, rows, columns, unroll, .. } = self;
        let idea =
            format!("{rows} rows, {columns} columns an invocation; rows and k are uniform over the {width} lanes.");
        let t = &mut prologue(spec, &idea, &self.bindings);
        entry(t, spec);
        t.line("// row tiles are innermost: a panel of b stays in cache while all rows pass over it");
        t.line("let tile = group.y * groups.x + group.x;");
        t.line(format_args!("let row_tiles = (p.m + {}u) / {rows}u;", rows - 1));
        t.line(format_args!("let row = (tile % row_tiles) * {rows}u;"));
        t.line(format_args!("let first_column = (tile / row_tiles) * {}u;", width * columns));
        self.columns_of_invocation(t);
        self.starts(t);
        for r in 0..*rows {
            for s in 0..self.slots() {
                t.line(format_args!("var acc{r}_{s} = {}();", self.slot));
            }
        }
        t.line("var k = 0u;");
        t.open(format_args!("for (; k + {unroll}u <= p.k; k += {unroll}u)"));
        self.steps(t, *unroll);
        t.close();
        let step = self.step();
        if *unroll > step {
            t.open(format_args!("for (; k < p.k; k += {step}u)"));
            self.steps(t, step);
            t.close();
        }
        self.stores(t);
        t.close();
        std::mem::take(&mut t.text)
    }

    /// The column of each slot, and the nearest one inside the matrix, for reads.
    fn columns_of_invocation(&self, t: &mut Text) {
        let width = self.slot.width();
        for s in 0..self.slots() {
            t.line(format_args!("let column{s} = first_column + {}u + thread * {width}u;", s * width * self.width));
            t.line(format_args!("let inside{s} = min(column{s}, p.n - {width}u);"));
        }
    }

    /// Where the reads of each slot and row start.
    fn starts(&self, t: &mut Text) {
        for s in 0..self.slots() {
            let start = match self.spec.product {
                Product::Forward => format!("p.b_offset + inside{s} * p.b_stride"),
                _ => format!("p.b_offset + inside{s}"),
            };
            t.line(format_args!("let b_start{s} = {};", self.bindings.b.units(start)));
        }
        if self.spec.product == Product::BackwardWeight {
            let width = self.bindings.a.width();
            for r in (0..self.rows).step_by(width as usize) {
                let start = format!("p.a_offset + min(row + {r}u, p.m - {width}u)");
                t.line(format_args!("let a_start{r} = {};", self.bindings.a.units(start)));
            }
            t.line(format_args!("let a_stride = {};", self.bindings.a.units("p.a_stride")));
        } else {
            for r in 0..self.rows {
                let start = format!("p.a_offset + min(row + {r}u, p.m - 1u) * p.a_stride");
                t.line(format_args!("let a_start{r} = {};", self.bindings.a.units(start)));
            }
        }
        if self.spec.product != Product::Forward {
            t.line(format_args!("let b_stride = {};", self.bindings.b.units("p.b_stride")));
        }
    }

    /// `count` steps of k, a multiple of [`Self::step`].
    fn steps(&self, t: &mut Text, count: u32) {
        for s in 0..self.slots() {
            self.reads_of_b(t, s, count);
        }
        for first in (0..self.rows).step_by(BLOCK_ROWS as usize) {
            t.open(format_args!("if row + {first}u < p.m"));
            for r in first..(first + BLOCK_ROWS).min(self.rows) {
                self.reads_of_a(t, r, count);
                for j in 0..count {
                    self.multiply(t, r, j);
                }
            }
            t.close();
        }
    }

    /// Names `b{s}_{j}`: slot `s` of step k + j of `b`, or of four steps from there.
    fn reads_of_b(&self, t: &mut Text, s: u32, count: u32) {
        let forward = self.spec.product == Product::Forward;
        let width = if forward { self.bindings.b.width() } else { 1 };
        for j in (0..count).step_by(width as usize) {
            let index = if forward {
                format!("b_start{s} + {}", self.bindings.b.units(format_args!("k + {j}u")))
            } else {
                format!("b_start{s} + (k + {j}u) * b_stride")
            };
            t.line(format_args!("let b{s}_{j} = {};", self.bindings.b.read("b", index)));
        }
    }

    /// Names `a{r}_{j}`: row `r` of step k + j of `a`. A vec4 brings four steps or four rows from there; the rows after
    /// the first have nothing left to read.
    fn reads_of_a(&self, t: &mut Text, r: u32, count: u32) {
        let a = self.bindings.a;
        let along_rows = self.spec.product == Product::BackwardWeight;
        if along_rows && !r.is_multiple_of(a.width()) {
            return;
        }
        for j in (0..count).step_by(if along_rows { 1 } else { a.width() as usize }) {
            let index = if along_rows {
                format!("a_start{r} + (k + {j}u) * a_stride")
            } else {
                format!("a_start{r} + {}", a.units(format_args!("k + {j}u")))
            };
            t.line(format_args!("let a{r}_{j} = {};", a.read("a", index)));
        }
    }

    /// One multiplication and addition for every slot of row `r`.
    fn multiply(&self, t: &mut Text, r: u32, j: u32) {
        let a = match (self.spec.product, self.bindings.a.width()) {
            (_, 1) => format!("a{r}_{j}"),
            (Product::BackwardWeight, _) => format!("a{}_{j}.{}", r / 4 * 4, component(r)),
            _ => format!("a{r}_{}.{}", j / 4 * 4, component(j)),
        };
        let a = if self.slot == Element::Vec4 { format!("vec4({a})") } else { a };
        for s in 0..self.slots() {
            let b = match (self.spec.product, self.bindings.b.width()) {
                (Product::Forward, 4) => format!("b{s}_{}.{}", j / 4 * 4, component(j)),
                _ => format!("b{s}_{j}"),
            };
            t.line(format_args!("acc{r}_{s} = fma({a}, {b}, acc{r}_{s});"));
        }
    }

    fn stores(&self, t: &mut Text) {
        let Bindings { out, bias, .. } = self.bindings;
        for s in 0..self.slots() {
            let bias_at = bias.units(format_args!("p.bias_offset + column{s}"));
            t.open(format_args!("if column{s} < p.n"));
            for r in 0..self.rows {
                let at = out.units(format_args!("p.out_offset + (row + {r}u) * p.out_stride + column{s}"));
                t.open(format_args!("if row + {r}u < p.m"));
                store(t, &self.spec, out, &at, &bias_at, &format!("acc{r}_{s}"));
                t.close();
            }
            t.close();
        }
    }
}

/// The kernel for GPUs.
///
/// Both tiles lie in workgroup memory k-major, `[tile_k][tile]`, as vec4 along the tile, whatever the operand's own
/// order: the inner loop reads nothing but vec4. The next tile is fetched into registers while the current one is
/// multiplied.
struct Tiled {
    spec: Spec,
    tile_m: u32,
    tile_n: u32,
    tile_k: u32,
    thread_m: u32,
    thread_n: u32,
}

/// One operand of [`Tiled`].
#[derive(Clone, Copy)]
struct Operand {
    /// `a` or `b`.
    name: &'static str,
    /// The parameter that bounds its rows or columns: `m` or `n`.
    extent: &'static str,
    /// Length of its tile along that extent.
    tile: u32,
    /// Stored (extent, K), so that a tile must be transposed; otherwise (K, extent).
    along_k: bool,
    /// The first thread that fetches it.
    first_thread: u32,
}

impl Tiled {
    fn threads(&self) -> u32 {
        workgroup_size(&self.spec)
    }

    /// Blocks of four vec4 (transposed tiles) or single vec4 in one tile of the operand.
    fn pieces(&self, o: Operand) -> u32 {
        if o.along_k { o.tile / 4 * (self.tile_k / 4) } else { o.tile / 4 * self.tile_k }
    }

    fn operands(&self) -> [Operand; 2] {
        let a_along_k = self.spec.product != Product::BackwardWeight;
        let b_along_k = self.spec.product == Product::Forward;
        let a = Operand { name: "a", extent: "m", tile: self.tile_m, along_k: a_along_k, first_thread: 0 };
        let mut b = Operand { name: "b", extent: "n", tile: self.tile_n, along_k: b_along_k, first_thread: 0 };
        // two small fetches are done by different threads
        if self.pieces(a) + self.pieces(b) <= self.threads() {
            b.first_thread = self.pieces(a);
        }
        [a, b]
    }

    fn write(&self) -> String {
        let Self { spec, tile_m, tile_n, tile_k, thread_m, thread_n } = self;
        let idea = format!(
            "One workgroup: {tile_m} rows, {tile_n} columns; one invocation: {thread_m} by {thread_n} of them."
        );
        let element = if spec.vec4 { Element::Vec4 } else { Element::F32 };
        let t = &mut prologue(spec, &idea, &Bindings { a: element, b: element, out: element, bias: element });
        for o in self.operands() {
            let length = tile_k * padded(o.tile);
            t.line(format_args!("var<workgroup> {}_tile: array<vec4<f32>, {length}>;", o.name));
        }
        t.line("");
        for o in self.operands() {
            self.fetch_function(t, o);
        }
        entry(t, spec);
        self.place(t);
        for r in 0..*thread_m {
            for c in 0..thread_n / 4 {
                t.line(format_args!("var acc{r}_{c} = vec4<f32>();"));
            }
        }
        self.places_of_pieces(t);
        self.fetches(t, "0u");
        t.open(format_args!("for (var k = 0u; k < p.k; k += {tile_k}u)"));
        self.fill_tiles(t);
        t.line("// the tiles are complete before anyone reads them");
        t.line("workgroupBarrier();");
        self.fetches(t, &format!("k + {tile_k}u"));
        self.multiply(t);
        t.line("// everyone has read the tiles before they are overwritten");
        t.line("workgroupBarrier();");
        t.close();
        self.stores(t);
        t.close();
        std::mem::take(&mut t.text)
    }

    /// `fetch_a(line, at)`: four neighbours in memory, zero outside the matrix.
    fn fetch_function(&self, t: &mut Text, o: Operand) {
        let name = o.name;
        let (line, at) = if o.along_k { (o.extent, "k") } else { ("k", o.extent) };
        t.open(format_args!("fn fetch_{name}(line: u32, at: u32) -> vec4<f32>"));
        t.line("var four = vec4<f32>();");
        t.open(format_args!("if line < p.{line}"));
        let from = format!("p.{name}_offset + line * p.{name}_stride + at");
        if self.spec.vec4 {
            t.open(format_args!("if at < p.{at}"));
            t.line(format_args!("four = {name}[({from}) / 4u];"));
            t.close();
        } else {
            t.line(format_args!("let start = {from};"));
            for i in 0..4 {
                let c = component(i);
                t.line(format_args!("if at + {i}u < p.{at} {{ four.{c} = {name}[start + {i}u]; }}"));
            }
        }
        t.close();
        t.line("return four;");
        t.close();
        t.line("");
    }

    /// The workgroup's tile and the invocation's place in it.
    fn place(&self, t: &mut Text) {
        let Self { tile_m, tile_n, thread_n, .. } = self;
        t.line(format_args!("// bands of {BAND} row tiles: neighbouring workgroups share operands in cache"));
        t.line("let tile = group.y * groups.x + group.x;");
        t.line(format_args!("let row_tiles = (p.m + {}u) / {tile_m}u;", tile_m - 1));
        t.line(format_args!("let column_tiles = (p.n + {}u) / {tile_n}u;", tile_n - 1));
        t.line(format_args!("let band = tile / ({BAND}u * column_tiles);"));
        t.line(format_args!("let band_rows = min({BAND}u, max(row_tiles, band * {BAND}u + 1u) - band * {BAND}u);"));
        t.line(format_args!("let in_band = tile - band * {BAND}u * column_tiles;"));
        t.line(format_args!("let first_row = (band * {BAND}u + in_band % band_rows) * {tile_m}u;"));
        t.line(format_args!("let first_column = (in_band / band_rows) * {tile_n}u;"));
        t.line(format_args!("let thread_row = thread / {}u;", tile_n / thread_n));
        t.line(format_args!("let thread_column = thread % {}u;", tile_n / thread_n));
    }

    /// Pieces of the operand's tile that each thread moves, as (index, guard if not all threads take part).
    fn rounds(&self, o: Operand) -> Vec<(u32, Option<String>)> {
        let (pieces, threads) = (self.pieces(o), self.threads());
        let whole = o.first_thread == 0 && pieces.is_multiple_of(threads);
        (0..pieces.div_ceil(threads))
            .map(|i| (i, (!whole).then(|| format!("{}_piece{i} < {pieces}u", o.name))))
            .collect()
    }

    /// Where a thread's pieces lie: `line` counts vec4 along the tile, `depth` is k.
    fn places_of_pieces(&self, t: &mut Text) {
        for o in self.operands() {
            let (name, threads) = (o.name, self.threads());
            for (i, _) in self.rounds(o) {
                let from = match (i, o.first_thread) {
                    (0, 0) => "thread".to_owned(),
                    (0, first) => format!("thread - {first}u"),
                    (i, _) => format!("thread + {}u", i * threads),
                };
                t.line(format_args!("let {name}_piece{i} = {from};"));
                if o.along_k {
                    let across = self.tile_k / 4;
                    t.line(format_args!("let {name}_line{i} = {name}_piece{i} / {across}u;"));
                    t.line(format_args!("let {name}_depth{i} = ({name}_piece{i} % {across}u) * 4u;"));
                } else {
                    let across = o.tile / 4;
                    t.line(format_args!("let {name}_line{i} = {name}_piece{i} % {across}u;"));
                    t.line(format_args!("let {name}_depth{i} = {name}_piece{i} / {across}u;"));
                }
                for j in 0..if o.along_k { 4 } else { 1 } {
                    t.line(format_args!("var {name}_next{i}_{j} = vec4<f32>();"));
                }
            }
        }
    }

    /// Fetches this thread's pieces of the tiles that start at `k`.
    fn fetches(&self, t: &mut Text, k: &str) {
        for o in self.operands() {
            let name = o.name;
            let first = if o.name == "a" { "first_row" } else { "first_column" };
            for (i, guard) in self.rounds(o) {
                if let Some(guard) = &guard {
                    t.open(format_args!("if {guard}"));
                }
                let extent = format!("{first} + {name}_line{i} * 4u");
                let depth = format!("{k} + {name}_depth{i}");
                if o.along_k {
                    for j in 0..4 {
                        t.line(format_args!("{name}_next{i}_{j} = fetch_{name}({extent} + {j}u, {depth});"));
                    }
                } else {
                    t.line(format_args!("{name}_next{i}_0 = fetch_{name}({depth}, {extent});"));
                }
                if guard.is_some() {
                    t.close();
                }
            }
        }
    }

    /// Puts the fetched pieces into workgroup memory.
    fn fill_tiles(&self, t: &mut Text) {
        for o in self.operands() {
            let (name, stride) = (o.name, padded(o.tile));
            for (i, guard) in self.rounds(o) {
                if let Some(guard) = &guard {
                    t.open(format_args!("if {guard}"));
                }
                for j in 0..if o.along_k { 4 } else { 1 } {
                    let value = if o.along_k {
                        let column: Vec<_> = (0..4).map(|r| format!("{name}_next{i}_{r}.{}", component(j))).collect();
                        format!("vec4({})", column.join(", "))
                    } else {
                        format!("{name}_next{i}_0")
                    };
                    let at = format!("({name}_depth{i} + {j}u) * {stride}u + {name}_line{i}");
                    t.line(format_args!("{name}_tile[{at}] = {value};"));
                }
                if guard.is_some() {
                    t.close();
                }
            }
        }
    }

    /// The product of the two tiles. A thread's rows and columns come in fours that lie apart, so that neighbouring
    /// threads read neighbouring vec4.
    fn multiply(&self, t: &mut Text) {
        let (m_step, n_step) = (self.tile_m / self.thread_m, self.tile_n / self.thread_n);
        for j in 0..self.tile_k {
            for g in 0..self.thread_m / 4 {
                let at = j * padded(self.tile_m) + g * m_step;
                t.line(format_args!("let a{j}_{g} = a_tile[{at}u + thread_row];"));
            }
            for c in 0..self.thread_n / 4 {
                let at = j * padded(self.tile_n) + c * n_step;
                t.line(format_args!("let b{j}_{c} = b_tile[{at}u + thread_column];"));
            }
            for r in 0..self.thread_m {
                for c in 0..self.thread_n / 4 {
                    let a = format!("vec4(a{j}_{}.{})", r / 4, component(r));
                    t.line(format_args!("acc{r}_{c} = fma({a}, b{j}_{c}, acc{r}_{c});"));
                }
            }
        }
    }

    fn stores(&self, t: &mut Text) {
        let (m_step, n_step) = (self.tile_m / self.thread_m, self.tile_n / self.thread_n);
        for c in 0..self.thread_n / 4 {
            t.line(format_args!("let column{c} = first_column + ({}u + thread_column) * 4u;", c * n_step));
        }
        for r in 0..self.thread_m {
            t.line(format_args!("let row{r} = first_row + ({}u + thread_row) * 4u + {}u;", r / 4 * m_step, r % 4));
            t.open(format_args!("if row{r} < p.m"));
            for c in 0..self.thread_n / 4 {
                let at = format!("p.out_offset + row{r} * p.out_stride + column{c}");
                let bias_at = format!("p.bias_offset + column{c}");
                if self.spec.vec4 {
                    t.open(format_args!("if column{c} < p.n"));
                    store(
                        t,
                        &self.spec,
                        Element::Vec4,
                        &Element::Vec4.units(at),
                        &Element::Vec4.units(bias_at),
                        &format!("acc{r}_{c}"),
                    );
                    t.close();
                } else {
                    for i in 0..4 {
                        t.open(format_args!("if column{c} + {i}u < p.n"));
                        let value = format!("acc{r}_{c}.{}", component(i));
                        store(
                            t,
                            &self.spec,
                            Element::F32,
                            &format!("{at} + {i}u"),
                            &format!("{bias_at} + {i}u"),
                            &value,
                        );
                        t.close();
                    }
                }
            }
            t.close();
        }
    }
}
