//! Attention on matrix units: which kernel an adapter gets, and the part of its text that names matrices.
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
//! | sums as matrices, rescaled only when scores outgrow `LAZY` | 256 | 12 scores, 4 weights, 16 tiles: 32 | 32 |
//!
//! The third is taken: with little arithmetic a byte, workgroup memory is what binds. A score may exceed what its row is
//! compared to by 8 before anything moves: weights are then at most exp(8), which f16 and f32 hold with the same relative
//! precision as 1, and the log-sum-exp does not care. When some row outgrows it, the whole workgroup's sums go through workgroup
//! memory once. The first block never needs it, and later ones rarely do. These are counts; on a GPU none of it has been timed.
//!
//! The backward knows the log-sum-exp and has no such trouble. Its two kernels are summed by one workgroup each in the order of
//! the columns, so bits repeat. dscores are stored without the scale, which dq and dk are multiplied by at the end: eight
//! times less of them falls below f16's least number.

use std::fmt::Display;

use crate::gpu::text::Text;
use crate::gpu::{Caps, Kernel};

/// Elements that a line in workgroup memory is longer than its tile: matrix loads start at multiples of 16 bytes, and
/// consecutive lines fall into different banks.
const PAD: u32 = 8;
/// The same of lines of f32.
const SUM_PAD: u32 = 4;
/// Sums in f32 a lane from which two subgroups share the rows.
const MANY_SUMS: u32 = 64;

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Forward,
    BackwardQ,
    BackwardKv,
}

impl Entry {
    pub(super) const ALL: [Self; 3] = [Self::Forward, Self::BackwardQ, Self::BackwardKv];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::BackwardQ => "backward_q",
            Self::BackwardKv => "backward_kv",
        }
    }

    /// Products that the rows' matrices take part in: scores, and dout v.
    fn products(self) -> u32 {
        if self == Self::Forward { 1 } else { 2 }
    }

    /// Results as wide as a head.
    fn outs(self) -> u32 {
        if self == Self::BackwardKv { 2 } else { 1 }
    }
}

/// One kernel: everything its text depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Coop {
    entry: Entry,
    head_size: u32,
    /// Rows of a workgroup.
    pub(super) rows: u32,
    /// Columns of a block.
    columns: u32,
    /// Subgroups along the rows.
    grid_m: u32,
    /// Subgroups that share rows: each has its part of the columns, then of the head.
    grid_n: u32,
    /// Edge of a matrix that the sizes are made for.
    edge: u32,
    /// Edge of the adapter's matrices.
    native: u32,
    /// Invocations of a subgroup, of the largest where there are several sizes.
    lanes: u32,
    /// Subgroups may be smaller than `lanes`: there may then be more of them than the grid has places.
    varying: bool,
    /// Tiles in workgroup memory are vectors, which Metal's matrix loads cannot take.
    wide_tiles: bool,
}

/// (rows, columns) that are tried one after the other until workgroup memory holds them.
const FORWARD: [[u32; 2]; 7] = [[128, 32], [64, 64], [64, 32], [64, 16], [32, 32], [32, 16], [16, 16]];
const BACKWARD: [[u32; 2]; 5] = [[64, 32], [64, 16], [32, 32], [32, 16], [16, 16]];

/// The kernel for heads of `head_size` on this adapter, or `None` if attention must do without matrices there: on software
/// adapters, where the scalar kernels take a third of the time (two layers of 4 heads of 64, 512 positions: 107 ms, these
/// 386 ms), and for heads whose size 16 does not divide.
pub(super) fn choose(caps: &Caps, entry: Entry, head_size: usize) -> Option<Coop> {
    let native = caps.matrix_edges.iter().copied().filter(|edge| [8, 16].contains(edge)).max()?;
    let slow = caps.software && caps.emulated_edge.is_none();
    if slow || !caps.f16 || !caps.subgroups || !head_size.is_multiple_of(16) || !(16..=128).contains(&head_size) {
        return None;
    }
    // wgpu says 4 to 64 of Metal, whose GPUs with matrix units have 32
    let lanes = if caps.backend == "Metal" { 32 } else { caps.subgroup_sizes.1 };
    let sizes: &[[u32; 2]] = match entry {
        Entry::Forward => &FORWARD,
        _ => &BACKWARD,
    };
    let make = |&[rows, columns]: &[u32; 2]| {
        let edge = caps.emulated_edge.unwrap_or(native).max(native);
        let mut coop = Coop {
            entry,
            head_size: head_size as u32,
            rows,
            columns,
            grid_m: (rows / edge).min(4),
            grid_n: 1,
            edge,
            native,
            lanes,
            varying: caps.subgroup_sizes.0 != lanes,
            wide_tiles: caps.backend != "Metal",
        };
        let two = columns.is_multiple_of(2 * edge) && coop.head_size.is_multiple_of(2 * edge);
        if two && coop.sums_a_lane() > MANY_SUMS {
            coop.grid_n = 2;
        }
        coop
    };
    let fits = |coop: &Coop| {
        coop.workgroup_bytes() <= caps.max_workgroup_bytes && coop.threads() <= caps.max_invocations.min(1024)
    };
    sizes.iter().map(make).find(fits)
}

/// Why attention of f16 heads of `head_size` does not run on matrix units though there are some, or `None`.
pub(super) fn without(caps: &Caps, head_size: usize) -> Option<&'static str> {
    if choose(caps, Entry::Forward, head_size).is_some() && choose(caps, Entry::BackwardKv, head_size).is_some() {
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
    fn threads(&self) -> u32 {
        self.grid_m * self.grid_n * self.lanes
    }

    fn sums_a_lane(&self) -> u32 {
        self.rows / self.grid_m * self.head_size * self.entry.outs() / self.lanes
    }

    /// Invocations that share a row of weights.
    fn parts(&self) -> u32 {
        (self.threads() / self.rows).clamp(1, self.columns / 4)
    }

    /// Queries whose log-sum-exp and row sum are kept in workgroup memory.
    fn kept(&self) -> u32 {
        if self.entry == Entry::BackwardKv { self.columns } else { self.rows }
    }

    fn workgroup_bytes(&self) -> u32 {
        let Self { rows, columns, head_size, entry, .. } = self;
        let tiles = 2 * 2 * columns * (head_size + PAD);
        let sums = entry.products() * 4 * rows * (columns + SUM_PAD);
        let weights = entry.outs() * 2 * rows * (columns + PAD);
        let statistics = match entry {
            Entry::Forward => 4 * (2 * rows * self.parts() + rows) + 4,
            _ => 2 * 4 * self.kept(),
        };
        // every variable may start at a multiple of 16 bytes
        tiles + sums + weights + statistics.next_multiple_of(16) + 3 * 16
    }

    /// Matrices of a subgroup along the rows, and along its part of the head.
    fn matrices(&self) -> (u32, u32) {
        (self.rows / self.grid_m / self.native, self.head_size / self.grid_n / self.native)
    }

    /// Entry, sizes and edge: `attention_coop.forward.hs64.128x32.e16`.
    fn name(&self) -> String {
        let Self { entry, head_size, rows, columns, edge, native, .. } = self;
        let of = if edge == native { String::new() } else { format!("of{native}") };
        format!("attention_coop.{}.hs{head_size}.{rows}x{columns}.e{edge}{of}", entry.name())
    }

    pub(super) fn kernel(&self) -> Kernel {
        let mut t = Text::default();
        t.line("enable f16;");
        t.line("enable wgpu_cooperative_matrix;");
        // matrix operations under conditions that all invocations of a subgroup share, which naga does not see
        t.line("diagnostic(off, derivative_uniformity);");
        self.declarations(&mut t);
        for line in include_str!("../../../shaders/attention_coop.wgsl").lines() {
            t.line(line);
        }
        for line in include_str!("../../../shaders/shared/grid.wgsl").lines() {
            t.line(line);
        }
        self.main(&mut t);
        Kernel::generated(self.name(), "main", t.text)
    }

    fn declarations(&self, t: &mut Text) {
        let Self { rows, columns, head_size, grid_n, native, .. } = self;
        for (name, value) in [
            ("HEAD", *head_size),
            ("ROWS", *rows),
            ("COLUMNS", *columns),
            ("THREADS", self.threads()),
            ("GRID_N", *grid_n),
            ("PARTS", self.parts()),
            ("ITEMS", rows * self.parts()),
            ("KEPT", self.kept()),
            ("LINE", head_size + PAD),
            ("SUMS", columns + SUM_PAD),
            ("WEIGHTS", columns + PAD),
        ] {
            t.line(format_args!("const {name} = {value}u;"));
        }
        t.line(format_args!("const LAST_FIRST = {};", self.entry != Entry::BackwardKv));
        for (name, scalar) in [("A", "f16"), ("B", "f16"), ("C", "f32")] {
            t.line(format_args!("alias Matrix{name} = coop_mat{native}x{native}<{scalar}, {name}>;"));
        }
        let (tile, sums, weights) = (columns * (head_size + PAD), rows * (columns + SUM_PAD), rows * (columns + PAD));
        for (name, get, put, scalar, elements) in [
            ("x_tile", None, Some("put_x"), "f16", tile),
            ("y_tile", None, Some("put_y"), "f16", tile),
            ("sums", Some("sum_at"), Some("put_sums"), "f32", sums),
            ("slopes", Some("slope_at"), None, "f32", sums),
            ("weights", None, Some("put_weights"), "f16", weights),
            ("dscores", None, Some("put_dscores"), "f16", weights),
        ] {
            let (element, length) =
                if self.wide_tiles { (format!("vec4<{scalar}>"), elements / 4) } else { (scalar.into(), elements) };
            t.line(format_args!("var<workgroup> {name}: array<{element}, {length}>;"));
            if let Some(get) = get {
                let value = if self.wide_tiles {
                    format!("{name}[i / 4u]")
                } else {
                    format!("vec4({name}[i], {name}[i + 1u], {name}[i + 2u], {name}[i + 3u])")
                };
                t.line(format_args!("fn {get}(i: u32) -> vec4<{scalar}> {{ return {value}; }}"));
            }
            if let Some(put) = put {
                t.open(format_args!("fn {put}(i: u32, four: vec4<{scalar}>)"));
                if self.wide_tiles {
                    t.line(format_args!("{name}[i / 4u] = four;"));
                } else {
                    for (i, c) in ["x", "y", "z", "w"].iter().enumerate() {
                        t.line(format_args!("{name}[i + {i}u] = four.{c};"));
                    }
                }
                t.close();
            }
        }
    }

    /// An index or a stride in workgroup memory, in the units of its array.
    fn units(&self, elements: impl Display) -> String {
        if self.wide_tiles { format!("({elements}) / 4u") } else { format!("{elements}") }
    }

    /// A matrix loaded from a tile: `coopLoadT` by rows, `coopLoad` by columns.
    fn load(&self, by: &str, matrix: &str, tile: &str, at: impl Display, stride: &str) -> String {
        format!("{by}<Matrix{matrix}>(&{tile}[{}], {})", self.units(at), self.units(stride))
    }

    /// What only the subgroups of the grid do.
    fn in_the_grid(&self, t: &mut Text, what: impl FnOnce(&mut Text)) {
        if self.varying {
            t.open(format_args!("if subgroup < {}u", self.grid_m * self.grid_n));
        }
        what(t);
        if self.varying {
            t.close();
        }
    }

    fn main(&self, t: &mut Text) {
        let Self { rows, columns, grid_m, grid_n, head_size, entry, .. } = self;
        t.line(format_args!("@compute @workgroup_size({})", self.threads()));
        t.line("fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,");
        t.line("        @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32)");
        t.open("");
        t.line("let at = place(group_index(group, groups));");
        t.line("if !at.valid { return; }");
        t.line(format_args!("let subgroup_row = (subgroup / {grid_n}u) * {}u;", rows / grid_m));
        t.line(format_args!("let score_column = (subgroup % {grid_n}u) * {}u;", columns / grid_n));
        t.line(format_args!("let head_start = (subgroup % {grid_n}u) * {}u;", head_size / grid_n));
        let (first, second) = match entry {
            Entry::Forward => ("stage_qkv(at, 0u,", None),
            Entry::BackwardQ => ("stage_qkv(at, 0u,", Some("stage_dout(at,")),
            Entry::BackwardKv => ("stage_qkv(at, 1u,", Some("stage_qkv(at, 2u,")),
        };
        self.stage(t, "r", first);
        if let Some(second) = second {
            self.stage(t, "s", second);
        }
        let (tall, wide) = self.matrices();
        for (i, j) in grid(tall, wide) {
            for o in 0..entry.outs() {
                t.line(format_args!("var o{o}_{i}_{j} = MatrixC();"));
            }
        }
        match entry {
            Entry::Forward => t.line("begin(thread);"),
            Entry::BackwardQ => {
                t.line("begin_delta(at, thread);");
                t.line("workgroupBarrier();");
                t.line("keep_delta(at, thread);");
                t.line("// everyone has added before `sums` is overwritten");
                t.line("workgroupBarrier();");
            }
            Entry::BackwardKv => {}
        }
        let (start, end) = match entry {
            Entry::BackwardKv => ("at.first / COLUMNS * COLUMNS", "p.positions"),
            _ => ("0u", "min(at.first + ROWS, p.positions)"),
        };
        t.line(format_args!("let end = {end};"));
        t.open(format_args!("for (var first_column = {start}; first_column < end; first_column += COLUMNS)"));
        self.block(t);
        t.close();
        self.finish(t);
        t.close();
    }

    /// The rows' matrices: put into `weights` as many columns at a time as fit there, and loaded as `name`i_k.
    fn stage(&self, t: &mut Text, name: &str, call: &str) {
        let (tall, n) = (self.matrices().0, self.native);
        for (i, k) in grid(tall, self.head_size / n) {
            t.line(format_args!("var {name}{i}_{k} = MatrixA();"));
        }
        for start in (0..self.head_size).step_by(self.columns as usize) {
            let width = self.columns.min(self.head_size - start);
            t.line(format_args!("{call} {start}u, {width}u, thread);"));
            t.line("workgroupBarrier();");
            self.in_the_grid(t, |t| {
                for (i, k) in grid(tall, width / n) {
                    let at = format!("(subgroup_row + {}u) * WEIGHTS + {}u", i * n, k * n);
                    let load = self.load("coopLoadT", "A", "weights", at, "WEIGHTS");
                    t.line(format_args!("{name}{i}_{} = {load};", start / n + k));
                }
            });
            t.line("// everyone has loaded before `weights` is overwritten");
            t.line("workgroupBarrier();");
        }
    }

    /// One block of columns.
    fn block(&self, t: &mut Text) {
        match self.entry {
            Entry::Forward => {
                t.line("if thread == 0u { atomicStore(&grown, 0u); }");
                t.line("fill_keys(at, first_column, thread);");
            }
            Entry::BackwardQ => t.line("fill_keys(at, first_column, thread);"),
            Entry::BackwardKv => t.line("fill_queries(at, first_column, thread);"),
        }
        t.line("// the tiles are complete before anyone reads them");
        t.line("workgroupBarrier();");
        self.in_the_grid(t, |t| self.scores(t, "r", "x_tile", "sums"));
        if self.entry.products() == 2 {
            self.in_the_grid(t, |t| self.scores(t, "s", "y_tile", "slopes"));
        }
        t.line("workgroupBarrier();");
        match self.entry {
            Entry::Forward => t.line("weigh(at, first_column, thread);"),
            Entry::BackwardQ => t.line("slope_of_queries(at, first_column, thread);"),
            Entry::BackwardKv => t.line("slope_of_keys(at, first_column, thread);"),
        }
        t.line("workgroupBarrier();");
        match self.entry {
            Entry::Forward => {
                self.rescale(t);
                self.in_the_grid(t, |t| self.accumulate(t, &[("weights", "y_tile")]));
            }
            Entry::BackwardQ => self.in_the_grid(t, |t| self.accumulate(t, &[("weights", "x_tile")])),
            Entry::BackwardKv => {
                self.in_the_grid(t, |t| self.accumulate(t, &[("dscores", "x_tile"), ("weights", "y_tile")]));
            }
        }
        t.line("// everyone has read the tiles before they are overwritten");
        t.line("workgroupBarrier();");
    }

    /// The rows' matrices times the transposed columns in `tile`.
    fn scores(&self, t: &mut Text, name: &str, tile: &str, to: &str) {
        let (tall, n) = (self.matrices().0, self.native);
        t.open(format_args!("for (var c = 0u; c < {}u; c += {n}u)", self.columns / self.grid_n));
        for i in 0..tall {
            t.line(format_args!("var p{i} = MatrixC();"));
        }
        for k in 0..self.head_size / n {
            let load = self.load("coopLoad", "B", tile, format_args!("(score_column + c) * LINE + {}u", k * n), "LINE");
            t.line(format_args!("let b{k} = {load};"));
            for i in 0..tall {
                t.line(format_args!("p{i} = coopMultiplyAdd({name}{i}_{k}, b{k}, p{i});"));
            }
        }
        for i in 0..tall {
            let at = format!("(subgroup_row + {}u) * SUMS + score_column + c", i * n);
            self.store(t, &format!("p{i}"), to, &at);
        }
        t.close();
    }

    /// Stores a matrix of f32; every argument is bound first, or naga 30 writes them in the wrong order.
    fn store(&self, t: &mut Text, matrix: &str, to: &str, at: &str) {
        t.line(format_args!("let left_{matrix} = {matrix};"));
        t.line(format_args!("let at_{matrix} = {};", self.units(at)));
        t.line(format_args!("let stride_{matrix} = {};", self.units("SUMS")));
        t.line(format_args!("coopStoreT(left_{matrix}, &{to}[at_{matrix}], stride_{matrix});"));
    }

    /// Adds the products of rows in the first with columns in the second to each of the sums.
    fn accumulate(&self, t: &mut Text, products: &[(&str, &str)]) {
        let ((tall, wide), n) = (self.matrices(), self.native);
        t.open(format_args!("for (var k = 0u; k < COLUMNS; k += {n}u)"));
        for (o, (from, tile)) in products.iter().enumerate() {
            for i in 0..tall {
                let at = format!("(subgroup_row + {}u) * WEIGHTS + k", i * n);
                t.line(format_args!("let a{o}_{i} = {};", self.load("coopLoadT", "A", from, at, "WEIGHTS")));
            }
            for j in 0..wide {
                let at = format!("k * LINE + head_start + {}u", j * n);
                t.line(format_args!("let b{o}_{j} = {};", self.load("coopLoadT", "B", tile, at, "LINE")));
                for i in 0..tall {
                    t.line(format_args!("o{o}_{i}_{j} = coopMultiplyAdd(a{o}_{i}, b{o}_{j}, o{o}_{i}_{j});"));
                }
            }
        }
        t.close();
    }

    /// Matrices of a subgroup along the head that fit into `sums` at a time, as (first, count).
    fn chunks(&self) -> impl Iterator<Item = (u32, u32)> {
        let wide = self.matrices().1;
        let most = self.columns / self.grid_n / self.native;
        (0..wide).step_by(most as usize).map(move |first| (first, most.min(wide - first)))
    }

    /// Puts a chunk of a result into `sums`.
    fn leave(&self, t: &mut Text, out: u32, (first, count): (u32, u32)) {
        let (tall, n) = (self.matrices().0, self.native);
        self.in_the_grid(t, |t| {
            for (i, j) in grid(tall, count) {
                let left = format!("(subgroup % {}u) * {}u + {}u", self.grid_n, count * n, j * n);
                let at = format!("(subgroup_row + {}u) * SUMS + {left}", i * n);
                self.store(t, &format!("o{out}_{i}_{}", first + j), "sums", &at);
            }
        });
    }

    /// Where some row's scores have outgrown what they are compared to, its sums shrink.
    fn rescale(&self, t: &mut Text) {
        let (tall, n) = (self.matrices().0, self.native);
        t.open("if first_column > 0u && atomicLoad(&grown) != 0u");
        for (first, count) in self.chunks() {
            self.leave(t, 0, (first, count));
            t.line("workgroupBarrier();");
            t.line(format_args!("rescale({}u, thread);", count * n));
            t.line("workgroupBarrier();");
            self.in_the_grid(t, |t| {
                for (i, j) in grid(tall, count) {
                    let left = format!("(subgroup % {}u) * {}u + {}u", self.grid_n, count * n, j * n);
                    let at = format!("(subgroup_row + {}u) * SUMS + {left}", i * n);
                    let load = self.load("coopLoadT", "C", "sums", at, "SUMS");
                    t.line(format_args!("o0_{i}_{} = {load};", first + j));
                }
            });
            t.line("workgroupBarrier();");
        }
        t.close();
    }

    /// Stores the results by way of `sums`.
    fn finish(&self, t: &mut Text) {
        let calls: &[&str] = match self.entry {
            Entry::Forward => &["finish_out(at"],
            Entry::BackwardQ => &["finish_dqkv(at, 0u, p.scale"],
            Entry::BackwardKv => &["finish_dqkv(at, 1u, p.scale", "finish_dqkv(at, 2u, 1.0"],
        };
        if self.entry == Entry::Forward {
            t.line("finish_lse(at, thread);");
        }
        for (out, call) in calls.iter().enumerate() {
            for (first, count) in self.chunks() {
                self.leave(t, out as u32, (first, count));
                t.line("workgroupBarrier();");
                t.line(format_args!("{call}, {}u, {}u, thread);", first * self.native, count * self.native));
                t.line("workgroupBarrier();");
            }
        }
    }
}

/// All (i, j) of a grid, row by row.
fn grid(rows: u32, columns: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..rows).flat_map(move |i| (0..columns).map(move |j| (i, j)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(edge: u32, kib: u32) -> Caps {
        Caps {
            f16: true,
            subgroups: true,
            matrix_edges: vec![edge],
            subgroup_sizes: (32, 32),
            max_workgroup_bytes: kib << 10,
            max_invocations: 1024,
            ..Caps::webgpu_defaults()
        }
    }

    #[test]
    fn every_size_of_workgroup_memory_has_a_kernel_that_says_what_it_takes() {
        for (edge, kib, head_size) in [8, 16]
            .iter()
            .flat_map(|&edge| [16, 32, 48].map(|kib| (edge, kib)))
            .flat_map(|(edge, kib)| [64, 80, 96, 128].map(|head_size| (edge, kib, head_size)))
        {
            for entry in Entry::ALL {
                let coop = choose(&gpu(edge, kib), entry, head_size).expect("a kernel");
                let taken = coop.kernel().reflect().expect("reflects").workgroup_bytes;
                let told = coop.workgroup_bytes();
                assert!((taken..=taken + 64).contains(&told) && told <= kib << 10, "{}: {taken}, {told}", coop.name());
                assert!(coop.sums_a_lane() / coop.grid_n <= 2 * MANY_SUMS, "{}: registers", coop.name());
            }
        }
    }

    #[test]
    fn more_workgroup_memory_means_larger_blocks() {
        let rows = |kib| choose(&gpu(16, kib), Entry::Forward, 64).map(|c| [c.rows, c.columns]);
        assert_eq!([16, 32, 48].map(rows), [Some([64, 16]), Some([64, 32]), Some([128, 32])]);
    }

    #[test]
    fn heads_that_16_does_not_divide_and_software_do_without() {
        let software = Caps { software: true, ..gpu(8, 32) };
        assert!(choose(&gpu(16, 48), Entry::Forward, 72).is_none() && without(&gpu(16, 48), 72).is_some());
        assert!(choose(&software, Entry::Forward, 64).is_none() && without(&software, 64).is_some());
        assert!(without(&gpu(16, 16), 128).is_none());
    }
}
