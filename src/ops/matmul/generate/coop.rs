//! The kernel for adapters with matrix units: cooperative matrices of f16 with f32 sums.
//!
//! A workgroup copies tiles of `a` and `b` into workgroup memory as they lie in memory, `line` by line; whether a matrix
//! is loaded by rows or by columns then makes the transposes. While a tile is multiplied, the next one is on its way in
//! registers. Lines are 8 elements longer than the tile: matrix loads start at multiples of 16 bytes, and consecutive
//! lines fall into different banks.
//!
//! A cooperative matrix is opaque: nothing can be done to its elements but adding and scaling. So sums go through
//! workgroup memory, a matrix of every subgroup at a time, where the workgroup's invocations pick them up, apply the
//! epilogue and store them.
//!
//! naga 30 wants every argument of `coopStore` bound by `let` first; otherwise it writes them in the wrong order.

use crate::gpu::kernel::Width;

use super::{
    Bindings, Coop, Element, Epilogue, Product, Spec, Text, component, entry, place, prologue, store, store_wide,
    workgroup_size,
};

/// Elements that a line in workgroup memory is longer than its tile.
const PAD: u32 = 8;
/// Elements that a line of sums in workgroup memory is longer than a matrix.
const SUM_PAD: u32 = 4;

/// One operand's tile in workgroup memory.
#[derive(Clone, Copy)]
struct Operand {
    /// `a` or `b`.
    name: &'static str,
    /// The parameter that bounds it beside K: `m` or `n`.
    extent: &'static str,
    /// Lines of the tile.
    lines: u32,
    /// Elements of a line.
    length: u32,
    /// Stored (extent, K); otherwise (K, extent).
    along_k: bool,
}

impl Operand {
    fn stride(self) -> u32 {
        self.length + PAD
    }
}

fn operands(product: Product, coop: &Coop) -> [Operand; 2] {
    let operand = |name, extent, tile, along_k| {
        let (lines, length) = if along_k { (tile, coop.tile_k) } else { (coop.tile_k, tile) };
        Operand { name, extent, lines, length, along_k }
    };
    [
        operand("a", "m", coop.tile_m, product != Product::BackwardWeight),
        operand("b", "n", coop.tile_n, product == Product::Forward),
    ]
}

/// Elements of the sums of one matrix of every subgroup.
fn sums(coop: &Coop) -> u32 {
    coop.grid_m * coop.grid_n * coop.edge * (coop.edge + SUM_PAD)
}

/// Bytes of workgroup memory.
pub(super) fn workgroup_bytes(product: Product, coop: &Coop) -> u32 {
    let tiles: u32 = operands(product, coop).iter().map(|o| o.lines * o.stride()).sum();
    2 * tiles + 4 * sums(coop)
}

/// See the module.
pub(super) struct CoopKernel {
    pub(super) spec: Spec,
    pub(super) coop: Coop,
}

impl CoopKernel {
    /// Matrices of a subgroup along M and N.
    fn matrices(&self) -> (u32, u32) {
        let Coop { tile_m, tile_n, grid_m, grid_n, edge, .. } = self.coop;
        (tile_m / grid_m / edge, tile_n / grid_n / edge)
    }

    /// Elements that an invocation moves at once.
    fn piece(&self) -> u32 {
        if self.spec.width == Width::Vec8 { 8 } else { 4 }
    }

    /// Its type.
    fn piece_type(&self) -> &'static str {
        if self.spec.width == Width::Vec8 { "Half8" } else { "vec4<f16>" }
    }

    /// What the names of its vec4 end in.
    fn halves(&self) -> &'static [&'static str] {
        if self.spec.width == Width::Vec8 { &["_low", "_high"] } else { &[""] }
    }

    /// Matrices of the adapter along one side of ours.
    fn blocks(&self) -> u32 {
        self.coop.edge / self.coop.native
    }

    pub(super) fn write(&self) -> String {
        let Self { spec, coop } = self;
        let idea = format!(
            "One workgroup: {} rows, {} columns, by {} x {} subgroups; matrices of {}.",
            coop.tile_m, coop.tile_n, coop.grid_m, coop.grid_n, coop.edge
        );
        let operand = Element::of(spec.operands, spec.width);
        let out = Element::of(spec.out, spec.width);
        let t = &mut prologue(spec, &idea, &Bindings { a: operand, b: operand, out });
        self.declarations(t);
        for o in operands(spec.product, coop) {
            self.fetch_function(t, o, operand);
        }
        self.finish_function(t, out);
        entry(t, spec);
        place(t, coop.tile_m, coop.tile_n, true);
        t.line(format_args!("let subgroup_row = (subgroup / {}u) * {}u;", coop.grid_n, coop.tile_m / coop.grid_m));
        t.line(format_args!("let subgroup_column = (subgroup % {}u) * {}u;", coop.grid_n, coop.tile_n / coop.grid_n));
        let (rows, columns) = self.matrices();
        let blocks = self.blocks();
        for (i, j) in grid(rows * blocks, columns * blocks) {
            t.line(format_args!("var c{i}_{j} = MatrixC();"));
        }
        self.places_of_pieces(t);
        if spec.epilogue == Epilogue::ColumnSums {
            for half in self.halves() {
                t.line(format_args!("var column_sum{half} = vec4<f32>();"));
            }
        }
        t.line("let depth = part * p.part_depth;");
        t.line("let depth_end = min(p.k, depth + p.part_depth);");
        self.fetches(t, "depth");
        t.open(format_args!("for (var k = depth; k < depth_end; k += {}u)", coop.tile_k));
        self.fill_tiles(t);
        if spec.epilogue == Epilogue::ColumnSums {
            // all pieces of an invocation lie in the same columns
            let a = operands(spec.product, coop)[0];
            for (i, _) in self.rounds(a) {
                for half in self.halves() {
                    let part = half.replace('_', ".");
                    t.line(format_args!("column_sum{half} += vec4<f32>(a_next{i}{part});"));
                }
            }
        }
        t.line("// the tiles are complete before anyone reads them");
        t.line("workgroupBarrier();");
        if spec.ragged {
            t.line(format_args!("let next = k + {}u;", coop.tile_k));
        } else {
            t.line("// past the end the last tile is fetched again, for nobody");
            t.line(format_args!("let next = min(k + {0}u, p.k - {0}u);", coop.tile_k));
        }
        self.fetches(t, "next");
        self.in_the_grid(t, |t| self.multiply(t));
        t.line("// everyone has read the tiles before they are overwritten");
        t.line("workgroupBarrier();");
        t.close();
        if spec.epilogue == Epilogue::ColumnSums {
            self.column_sums(t);
        }
        t.line("let out_start = p.out_offset + part * p.m * p.out_stride;");
        for (i, j) in grid(rows, columns) {
            self.in_the_grid(t, |t| self.leave(t, i, j));
            t.line("workgroupBarrier();");
            let (e, at) = (coop.edge, "first_column");
            t.line(format_args!("finish(out_start, first_row + {}u, {at} + {}u, thread);", i * e, j * e));
            if (i, j) != (rows - 1, columns - 1) {
                t.line("workgroupBarrier();");
            }
        }
        t.close();
        let text = std::mem::take(&mut t.text);
        if coop.varying {
            // matrix operations under a condition on the subgroup, which naga takes for one on the invocation
            let directives = text.find("// ").unwrap_or(0);
            let (enables, rest) = text.split_at(directives);
            format!("{enables}diagnostic(off, derivative_uniformity);\n{rest}")
        } else {
            text
        }
    }

    fn declarations(&self, t: &mut Text) {
        let Self { spec, coop } = self;
        for (name, scalar, role) in [("A", "f16", "A"), ("B", "f16", "B"), ("C", "f32", "C")] {
            t.line(format_args!("alias Matrix{name} = coop_mat{0}x{0}<{scalar}, {role}>;", coop.native));
        }
        for o in operands(spec.product, coop) {
            let elements = o.lines * o.stride();
            let (element, length) = if coop.wide_tiles { ("vec4<f16>", elements / 4) } else { ("f16", elements) };
            t.line(format_args!("var<workgroup> {}_tile: array<{element}, {length}>;", o.name));
        }
        let (element, length) = if coop.wide_tiles { ("vec4<f32>", sums(coop) / 4) } else { ("f32", sums(coop)) };
        t.line(format_args!("var<workgroup> sums: array<{element}, {length}>;"));
        t.line("");
    }

    /// What only the subgroups of the grid do.
    fn in_the_grid(&self, t: &mut Text, what: impl FnOnce(&mut Text)) {
        if self.coop.varying {
            t.open(format_args!("if subgroup < {}u", self.coop.grid_m * self.coop.grid_n));
        }
        what(t);
        if self.coop.varying {
            t.close();
        }
    }

    /// `fetch_a(line, at)`: a piece of neighbours in memory, zero outside the matrix.
    fn fetch_function(&self, t: &mut Text, o: Operand, element: Element) {
        let (name, piece) = (o.name, self.piece_type());
        let (line, at) = if o.along_k { (o.extent, "k") } else { ("k", o.extent) };
        let from = format!("p.{name}_offset + line * p.{name}_stride + at");
        t.open(format_args!("fn fetch_{name}(line: u32, at: u32) -> {piece}"));
        if self.spec.width == Width::Scalar {
            t.line("var four = vec4<f16>();");
            t.line(format_args!("if line >= p.{line} {{ return four; }}"));
            t.line(format_args!("let start = {from};"));
            for i in 0..4 {
                let c = component(i);
                t.line(format_args!("if at + {i}u < p.{at} {{ four.{c} = {name}[start + {i}u]; }}"));
            }
            t.line("return four;");
        } else {
            if self.spec.ragged {
                t.line(format_args!("if line >= p.{line} || at >= p.{at} {{ return {piece}(); }}"));
            }
            t.line(format_args!("return {name}[{}];", element.units(from)));
        }
        t.close();
        t.line("");
    }

    /// Pieces of an operand's tile that each invocation moves, as (number, guard if not all take part).
    fn rounds(&self, o: Operand) -> Vec<(u32, Option<String>)> {
        let (pieces, threads) = (o.lines * o.length / self.piece(), workgroup_size(&self.spec));
        (0..pieces.div_ceil(threads))
            .map(|i| (i, ((i + 1) * threads > pieces).then(|| format!("thread + {}u < {pieces}u", i * threads))))
            .collect()
    }

    fn places_of_pieces(&self, t: &mut Text) {
        let threads = workgroup_size(&self.spec);
        for o in operands(self.spec.product, &self.coop) {
            let (name, piece) = (o.name, self.piece());
            let across = o.length / piece;
            for (i, _) in self.rounds(o) {
                t.line(format_args!("let {name}_line{i} = (thread + {}u) / {across}u;", i * threads));
                t.line(format_args!("let {name}_at{i} = ((thread + {}u) % {across}u) * {piece}u;", i * threads));
                t.line(format_args!("var {name}_next{i} = {}();", self.piece_type()));
            }
        }
    }

    /// Fetches this invocation's pieces of the tiles that start at `k`.
    fn fetches(&self, t: &mut Text, k: &str) {
        for o in operands(self.spec.product, &self.coop) {
            let name = o.name;
            let first = if name == "a" { "first_row" } else { "first_column" };
            let (lines_from, at_from) = if o.along_k { (first, k) } else { (k, first) };
            for (i, guard) in self.rounds(o) {
                let value = format!("fetch_{name}({lines_from} + {name}_line{i}, {at_from} + {name}_at{i})");
                match guard {
                    Some(guard) => t.line(format_args!("if {guard} {{ {name}_next{i} = {value}; }}")),
                    None => t.line(format_args!("{name}_next{i} = {value};")),
                }
            }
        }
    }

    /// Puts the fetched pieces into workgroup memory.
    fn fill_tiles(&self, t: &mut Text) {
        for o in operands(self.spec.product, &self.coop) {
            let (name, stride) = (o.name, o.stride());
            for (i, guard) in self.rounds(o) {
                if let Some(guard) = &guard {
                    t.open(format_args!("if {guard}"));
                }
                let at = format!("{name}_line{i} * {stride}u + {name}_at{i}");
                for (h, half) in (0..).zip(self.halves()) {
                    let part = half.replace('_', ".");
                    if self.coop.wide_tiles {
                        t.line(format_args!("{name}_tile[({at}) / 4u + {h}u] = {name}_next{i}{part};"));
                    } else {
                        for j in 0..4 {
                            let to = 4 * h + j;
                            t.line(format_args!("{name}_tile[{at} + {to}u] = {name}_next{i}{part}.{};", component(j)));
                        }
                    }
                }
                if guard.is_some() {
                    t.close();
                }
            }
        }
    }

    /// An index or a stride in workgroup memory, in the units of its array.
    fn units(&self, elements: impl std::fmt::Display) -> String {
        if self.coop.wide_tiles { format!("({elements}) / 4u") } else { format!("{elements}") }
    }

    /// The products of the tiles' matrices, `native` deep at a time.
    fn multiply(&self, t: &mut Text) {
        let n = self.coop.native;
        let (rows, columns) = self.matrices();
        let (rows, columns) = (rows * self.blocks(), columns * self.blocks());
        let [a, b] = operands(self.spec.product, &self.coop);
        let steps = self.coop.tile_k / n;
        if !self.coop.unrolled {
            t.open(format_args!("for (var step = 0u; step < {}u; step += {n}u)", self.coop.tile_k));
        }
        for step in 0..if self.coop.unrolled { steps } else { 1 } {
            let k = if self.coop.unrolled { format!("{}u", step * n) } else { "step".into() };
            for i in 0..rows {
                // by rows where K runs along a line
                let (load, at) = if a.along_k {
                    ("coopLoadT", format!("(subgroup_row + {}u) * {}u + {k}", i * n, a.stride()))
                } else {
                    ("coopLoad", format!("{k} * {}u + subgroup_row + {}u", a.stride(), i * n))
                };
                let (at, stride) = (self.units(at), self.units(format_args!("{}u", a.stride())));
                t.line(format_args!("let a{step}_{i} = {load}<MatrixA>(&a_tile[{at}], {stride});"));
            }
            for j in 0..columns {
                let (load, at) = if b.along_k {
                    ("coopLoad", format!("(subgroup_column + {}u) * {}u + {k}", j * n, b.stride()))
                } else {
                    ("coopLoadT", format!("{k} * {}u + subgroup_column + {}u", b.stride(), j * n))
                };
                let (at, stride) = (self.units(at), self.units(format_args!("{}u", b.stride())));
                t.line(format_args!("let b{step}_{j} = {load}<MatrixB>(&b_tile[{at}], {stride});"));
            }
            for (i, j) in grid(rows, columns) {
                t.line(format_args!("c{i}_{j} = coopMultiplyAdd(a{step}_{i}, b{step}_{j}, c{i}_{j});"));
            }
        }
        if !self.coop.unrolled {
            t.close();
        }
    }

    /// A vec4 of the sums in workgroup memory, from element `at` on.
    fn sum_at(&self, at: &str) -> String {
        if self.coop.wide_tiles {
            format!("sums[({at}) / 4u]")
        } else {
            format!("vec4(sums[{at}], sums[{at} + 1u], sums[{at} + 2u], sums[{at} + 3u])")
        }
    }

    /// Adds what the invocations have of `a`'s columns, one line of them after the other, and stores it: done by the
    /// workgroups with the first columns of the result.
    fn column_sums(&self, t: &mut Text) {
        let (threads, piece) = (workgroup_size(&self.spec), self.piece());
        let across = self.coop.tile_m / piece;
        t.open("if first_column == 0u");
        t.line(format_args!("let own = (thread % {across}u) * {piece}u;"));
        for turn in 0..threads / across {
            t.open(format_args!("if thread / {across}u == {turn}u"));
            for (h, half) in (0..).zip(self.halves()) {
                let at = format!("own + {}u", 4 * h);
                let before = if turn == 0 { String::new() } else { format!("{} + ", self.sum_at(&at)) };
                t.line(format_args!("let sum{half} = {before}column_sum{half};"));
                if self.coop.wide_tiles {
                    t.line(format_args!("sums[({at}) / 4u] = sum{half};"));
                } else {
                    for i in 0..4 {
                        t.line(format_args!("sums[{at} + {i}u] = sum{half}.{};", component(i)));
                    }
                }
            }
            t.close();
            t.line("workgroupBarrier();");
        }
        t.line("let summed = first_row + thread * 4u;");
        t.open(format_args!("if thread < {}u && summed < p.m", self.coop.tile_m / 4));
        t.line(format_args!("let four = {};", self.sum_at("thread * 4u")));
        if self.spec.vec4() {
            t.line("column_sums[(part * p.m + summed) / 4u] = four;");
        } else {
            for i in 0..4 {
                let c = component(i);
                t.line(format_args!(
                    "if summed + {i}u < p.m {{ column_sums[part * p.m + summed + {i}u] = four.{c}; }}"
                ));
            }
        }
        t.close();
        t.line("// `sums` is free again");
        t.line("workgroupBarrier();");
        t.close();
    }

    /// Puts the subgroup's matrix (i, j) into its place among the sums.
    fn leave(&self, t: &mut Text, i: u32, j: u32) {
        let (e, n, blocks) = (self.coop.edge, self.coop.native, self.blocks());
        let stride = e + SUM_PAD;
        for (y, x) in grid(blocks, blocks) {
            let name = format!("c{}_{}", i * blocks + y, j * blocks + x);
            let at = self.units(format_args!("subgroup * {}u + {}u", e * stride, y * n * stride + x * n));
            t.line(format_args!("let left_{name} = {name};"));
            t.line(format_args!("let at_{name} = {at};"));
            t.line(format_args!("let stride_{name} = {};", self.units(format_args!("{stride}u"))));
            t.line(format_args!("coopStoreT(left_{name}, &sums[at_{name}], stride_{name});"));
        }
    }

    /// `finish(start, row, column, thread)`: stores the matrices among the sums, of which that of the first subgroup
    /// belongs at (row, column).
    fn finish_function(&self, t: &mut Text, out: Element) {
        let Self { spec, coop } = self;
        let (e, stride, piece) = (coop.edge, coop.edge + SUM_PAD, self.piece());
        let (pieces, threads) = (coop.grid_m * coop.grid_n * e * e / piece, workgroup_size(spec));
        t.open("fn finish(start: u32, first_row: u32, first_column: u32, thread: u32)");
        // a constant number of turns: of a loop until `piece < pieces` drivers write the body twice and branch
        let turns = pieces.div_ceil(threads);
        let (begin, leave) = match turns {
            1 => ("let piece = thread;".to_owned(), "return"),
            _ => (format!("let piece = thread + turn * {threads}u;"), "continue"),
        };
        if turns > 1 {
            t.open(format_args!("for (var turn = 0u; turn < {turns}u; turn++)"));
        }
        t.line(begin);
        if !pieces.is_multiple_of(threads) {
            t.line(format_args!("if piece >= {pieces}u {{ {leave}; }}"));
        }
        t.line(format_args!("let owner = piece / {}u;", e * e / piece));
        t.line(format_args!("let r = (piece / {}u) % {e}u;", e / piece));
        t.line(format_args!("let c = (piece % {}u) * {piece}u;", e / piece));
        let (m_step, n_step) = (coop.tile_m / coop.grid_m, coop.tile_n / coop.grid_n);
        t.line(format_args!("let row = first_row + (owner / {}u) * {m_step}u + r;", coop.grid_n));
        t.line(format_args!("let column = first_column + (owner % {}u) * {n_step}u + c;", coop.grid_n));
        if spec.ragged {
            t.line(format_args!("if row >= p.m || column >= p.n {{ {leave}; }}"));
        }
        t.line(format_args!("let s = owner * {}u + r * {stride}u + c;", e * stride));
        for (h, half) in (0..).zip(self.halves()) {
            t.line(format_args!("let sum{half} = {};", self.sum_at(&format!("s + {}u", 4 * h))));
        }
        let (to, bias_at) = ("start + row * p.out_stride + column", "p.bias_offset + column");
        match spec.width {
            Width::Vec8 => store_wide(t, spec, out, to, bias_at),
            Width::Vec4 => store(t, spec, out, &out.units(to), &out.units(bias_at), "sum"),
            Width::Scalar => {
                for i in 0..4 {
                    let inside = if spec.ragged { format!("if column + {i}u < p.n") } else { String::new() };
                    t.open(inside);
                    let value = format!("sum.{}", component(i));
                    store(t, spec, out, &format!("{to} + {i}u"), &format!("{bias_at} + {i}u"), &value);
                    t.close();
                }
            }
        }
        if turns > 1 {
            t.close();
        }
        t.close();
        t.line("");
    }
}

/// All (i, j) of a grid, row by row.
fn grid(rows: u32, columns: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..rows).flat_map(move |i| (0..columns).map(move |j| (i, j)))
}
