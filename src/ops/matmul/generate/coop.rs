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

use crate::gpu::kernel::Width;
use crate::ops::matrix_units::{By, Rounds, Tile, Units, grid, guarded};

use super::{
    Bindings, Coop, Element, Epilogue, Operand, Product, Spec, Text, component, entry, place, prologue, store,
    store_wide, workgroup_size,
};

/// An operand's tile in workgroup memory: lines as in memory.
fn tile(o: Operand, coop: &Coop) -> Tile {
    let (lines, length) = if o.along_k { (o.tile, coop.tile_k) } else { (coop.tile_k, o.tile) };
    Tile::halves(if o.name == "a" { "a_tile" } else { "b_tile" }, lines, length)
}

/// The sums of one matrix of every subgroup.
fn sums(coop: &Coop) -> Tile {
    Tile::sums("sums", coop.grid_m * coop.grid_n * coop.units.edge, coop.units.edge)
}

/// Bytes of workgroup memory.
pub(super) fn workgroup_bytes(product: Product, coop: &Coop) -> u32 {
    let operands = Operand::both(product, coop.tile_m, coop.tile_n);
    operands.iter().map(|o| tile(*o, coop).bytes()).sum::<u32>() + sums(coop).bytes()
}

/// See the module.
pub(super) struct CoopKernel {
    pub(super) spec: Spec,
    pub(super) coop: Coop,
}

impl CoopKernel {
    fn units(&self) -> Units {
        self.coop.units
    }

    fn operands(&self) -> [Operand; 2] {
        Operand::both(self.spec.product, self.coop.tile_m, self.coop.tile_n)
    }

    /// Matrices of a subgroup along M and N.
    fn matrices(&self) -> (u32, u32) {
        let Coop { tile_m, tile_n, grid_m, grid_n, units, .. } = self.coop;
        (tile_m / grid_m / units.edge, tile_n / grid_n / units.edge)
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

    pub(super) fn write(&self) -> String {
        let Self { spec, coop } = self;
        let idea = format!(
            "One workgroup: {} rows, {} columns, by {} x {} subgroups; matrices of {}.",
            coop.tile_m, coop.tile_n, coop.grid_m, coop.grid_n, coop.units.edge
        );
        let operand = Element::of(spec.operands, spec.width);
        let out = Element::of(spec.out, spec.width);
        let t = &mut prologue(spec, &idea, &Bindings { a: operand, b: operand, out });
        self.declarations(t);
        for o in self.operands() {
            self.fetch_function(t, o, operand);
        }
        self.finish_function(t, out);
        entry(t, spec);
        place(t, coop.tile_m, coop.tile_n, true);
        t.line(format_args!("let subgroup_row = (subgroup / {}u) * {}u;", coop.grid_n, coop.tile_m / coop.grid_m));
        t.line(format_args!("let subgroup_column = (subgroup % {}u) * {}u;", coop.grid_n, coop.tile_n / coop.grid_n));
        let (rows, columns) = self.matrices();
        let blocks = self.units().blocks();
        for (i, j) in grid(rows * blocks, columns * blocks) {
            t.line(format_args!("var c{i}_{j} = MatrixC();"));
        }
        self.places_of_pieces(t);
        if spec.epilogue == Epilogue::ColumnSums {
            for half in self.halves() {
                t.line(format_args!("var column_sum{half} = vec4<f32>();"));
            }
        }
        t.line("let depth = part * params.part_depth;");
        t.line("let depth_end = min(params.k, depth + params.part_depth);");
        self.fetches(t, "depth");
        t.open(format_args!("for (var k = depth; k < depth_end; k += {}u)", coop.tile_k));
        self.fill_tiles(t);
        if spec.epilogue == Epilogue::ColumnSums {
            // all pieces of an invocation lie in the same columns
            let [a, _] = self.operands();
            for i in 0..self.rounds(a).count() {
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
            t.line(format_args!("let next = min(k + {0}u, params.k - {0}u);", coop.tile_k));
        }
        self.fetches(t, "next");
        self.on_grid(t, |t| self.multiply(t));
        t.line("// everyone has read the tiles before they are overwritten");
        t.line("workgroupBarrier();");
        t.close();
        if spec.epilogue == Epilogue::ColumnSums {
            self.column_sums(t);
        }
        t.line("let out_start = params.out_offset + part * params.m * params.out_stride;");
        for (i, j) in grid(rows, columns) {
            self.on_grid(t, |t| self.spill(t, i, j));
            t.line("workgroupBarrier();");
            let (e, at) = (coop.units.edge, "first_column");
            t.line(format_args!("finish(out_start, first_row + {}u, {at} + {}u, thread);", i * e, j * e));
            if (i, j) != (rows - 1, columns - 1) {
                t.line("workgroupBarrier();");
            }
        }
        t.close();
        std::mem::take(&mut t.text)
    }

    fn declarations(&self, t: &mut Text) {
        self.units().aliases(t);
        for o in self.operands() {
            self.units().declare(t, &tile(o, &self.coop));
        }
        self.units().declare(t, &sums(&self.coop));
        t.line("");
    }

    /// Text that only the subgroups of the grid run.
    fn on_grid(&self, t: &mut Text, body: impl FnOnce(&mut Text)) {
        self.units().on_grid(t, self.coop.grid_m * self.coop.grid_n, body);
    }

    /// `fetch_a(line, at)`: a piece of neighbours in memory, zero outside the matrix.
    fn fetch_function(&self, t: &mut Text, o: Operand, element: Element) {
        let (name, piece, [line, at]) = (o.name, self.piece_type(), o.bounds());
        t.open(format_args!("fn fetch_{name}(line: u32, at: u32) -> {piece}"));
        if self.spec.width == Width::Scalar {
            t.line("var four = vec4<f16>();");
            t.line(format_args!("if line >= params.{line} {{ return four; }}"));
            o.read_scalars(t, |index| format!("{name}[{index}]"));
            t.line("return four;");
        } else {
            if self.spec.ragged {
                t.line(format_args!("if line >= params.{line} || at >= params.{at} {{ return {piece}(); }}"));
            }
            t.line(format_args!("return {name}[{}];", element.units(o.element())));
        }
        t.close();
        t.line("");
    }

    /// The pieces of an operand's tile, dealt out to the workgroup.
    fn rounds(&self, o: Operand) -> Rounds {
        let tile = tile(o, &self.coop);
        Rounds { pieces: tile.lines * tile.length / self.piece(), threads: workgroup_size(&self.spec) }
    }

    fn places_of_pieces(&self, t: &mut Text) {
        for o in self.operands() {
            let (name, piece, rounds) = (o.name, self.piece(), self.rounds(o));
            let across = tile(o, &self.coop).length / piece;
            for i in 0..rounds.count() {
                t.line(format_args!("let {name}_line{i} = ({}) / {across}u;", rounds.piece(i)));
                t.line(format_args!("let {name}_at{i} = (({}) % {across}u) * {piece}u;", rounds.piece(i)));
                t.line(format_args!("var {name}_next{i} = {}();", self.piece_type()));
            }
        }
    }

    /// Fetches this invocation's pieces of the tiles that start at `k`.
    fn fetches(&self, t: &mut Text, k: &str) {
        for o in self.operands() {
            let (name, rounds) = (o.name, self.rounds(o));
            let (lines_from, at_from) = if o.along_k { (o.first(), k) } else { (k, o.first()) };
            for i in 0..rounds.count() {
                let value = format!("fetch_{name}({lines_from} + {name}_line{i}, {at_from} + {name}_at{i})");
                guarded(t, rounds.guard(i).as_deref(), |t| t.line(format_args!("{name}_next{i} = {value};")));
            }
        }
    }

    /// Puts the fetched pieces into workgroup memory.
    fn fill_tiles(&self, t: &mut Text) {
        for o in self.operands() {
            let (tile, name, rounds) = (tile(o, &self.coop), o.name, self.rounds(o));
            for i in 0..rounds.count() {
                let at = format!("{name}_line{i} * {}u + {name}_at{i}", tile.stride());
                let fours = self.halves().iter().map(|half| format!("{name}_next{i}{}", half.replace('_', ".")));
                let fours: Vec<String> = fours.collect();
                guarded(t, rounds.guard(i).as_deref(), |t| self.units().write_fours(t, tile.name, &at, &fours));
            }
        }
    }

    /// The products of the tiles' matrices, `native` deep at a time.
    fn multiply(&self, t: &mut Text) {
        let (units, n, blocks) = (self.units(), self.units().native, self.units().blocks());
        let (rows, columns) = self.matrices();
        let (rows, columns) = (rows * blocks, columns * blocks);
        let [a, b] = self.operands();
        let [a_stride, b_stride] = [a, b].map(|o| tile(o, &self.coop).stride());
        let steps = self.coop.tile_k / n;
        if !self.coop.unrolled {
            t.open(format_args!("for (var step = 0u; step < {}u; step += {n}u)", self.coop.tile_k));
        }
        for step in 0..if self.coop.unrolled { steps } else { 1 } {
            let k = if self.coop.unrolled { format!("{}u", step * n) } else { "step".into() };
            // `start`, the matrix's place along the operand's extent
            let at = |o: Operand, start: String, stride: u32| {
                if o.along_k { format!("({start}) * {stride}u + {k}") } else { format!("{k} * {stride}u + {start}") }
            };
            for i in 0..rows {
                let by = if a.along_k { By::Rows } else { By::Columns };
                let at = at(a, format!("subgroup_row + {}u", i * n), a_stride);
                t.line(format_args!(
                    "let a{step}_{i} = {};",
                    units.load(by, "A", "a_tile", at, format_args!("{a_stride}u"))
                ));
            }
            for j in 0..columns {
                let by = if b.along_k { By::Columns } else { By::Rows };
                let at = at(b, format!("subgroup_column + {}u", j * n), b_stride);
                t.line(format_args!(
                    "let b{step}_{j} = {};",
                    units.load(by, "B", "b_tile", at, format_args!("{b_stride}u"))
                ));
            }
            for (i, j) in grid(rows, columns) {
                t.line(format_args!("c{i}_{j} = coopMultiplyAdd(a{step}_{i}, b{step}_{j}, c{i}_{j});"));
            }
        }
        if !self.coop.unrolled {
            t.close();
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
                let before =
                    if turn == 0 { String::new() } else { format!("{} + ", self.units().read_four("sums", &at)) };
                t.line(format_args!("let sum{half} = {before}column_sum{half};"));
                self.units().write_four(t, "sums", &at, &format!("sum{half}"));
            }
            t.close();
            t.line("workgroupBarrier();");
        }
        t.line("let summed = first_row + thread * 4u;");
        t.open(format_args!("if thread < {}u && summed < params.m", self.coop.tile_m / 4));
        t.line(format_args!("let four = {};", self.units().read_four("sums", "thread * 4u")));
        if self.spec.vec4() {
            t.line("column_sums[(part * params.m + summed) / 4u] = four;");
        } else {
            for i in 0..4 {
                let c = component(i);
                t.line(format_args!(
                    "if summed + {i}u < params.m {{ column_sums[part * params.m + summed + {i}u] = four.{c}; }}"
                ));
            }
        }
        t.close();
        t.line("// `sums` is free again");
        t.line("workgroupBarrier();");
        t.close();
    }

    /// Spills the subgroup's matrix (i, j) to its place among the sums.
    fn spill(&self, t: &mut Text, i: u32, j: u32) {
        let (units, e, n, stride) = (self.units(), self.units().edge, self.units().native, sums(&self.coop).stride());
        let blocks = units.blocks();
        for (y, x) in grid(blocks, blocks) {
            let name = format!("c{}_{}", i * blocks + y, j * blocks + x);
            let at = format!("subgroup * {}u + {}u", e * stride, y * n * stride + x * n);
            units.spill_accumulator(t, &name, "sums", at, format_args!("{stride}u"));
        }
    }

    /// `finish(start, row, column, thread)`: stores the matrices among the sums, of which that of the first subgroup
    /// belongs at (row, column).
    fn finish_function(&self, t: &mut Text, out: Element) {
        let Self { spec, coop } = self;
        let (units, e, stride, piece) = (coop.units, coop.units.edge, sums(coop).stride(), self.piece());
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
            t.line(format_args!("if row >= params.m || column >= params.n {{ {leave}; }}"));
        }
        t.line(format_args!("let s = owner * {}u + r * {stride}u + c;", e * stride));
        for (h, half) in (0..).zip(self.halves()) {
            t.line(format_args!("let sum{half} = {};", units.read_four("sums", &format!("s + {}u", 4 * h))));
        }
        let (to, bias_at) = ("start + row * params.out_stride + column", "params.bias_offset + column");
        match spec.width {
            Width::Vec8 => store_wide(t, spec, out, to, bias_at),
            Width::Vec4 => store(t, spec, out, &out.units(to), &out.units(bias_at), "sum"),
            Width::Scalar => {
                for i in 0..4 {
                    let inside = if spec.ragged { format!("if column + {i}u < params.n") } else { String::new() };
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
