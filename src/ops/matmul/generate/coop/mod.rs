//! The kernel for adapters with matrix units: cooperative matrices of f16 with f32 sums.
//!
//! A workgroup copies tiles of `a` and `b` into workgroup memory, line by line, in the order of memory. Matrices are
//! then loaded by rows or by columns to transpose them where necessary; with [`CoopMatmul::transposed`] the copy
//! transposes instead. While a tile is multiplied, the next one is fetched into registers. Lines are 8 elements longer
//! than the tile, so that matrix loads start at multiples of 16 bytes and consecutive lines fall into different banks.
//!
//! There are two ways to finish the sums: `direct` where the adapter can convert matrices and no tile extends past the
//! result, else `staged`.

mod columns;
mod direct;
mod staged;

use crate::gpu::kernel::Width;
use crate::ops::matrix_units::{LoadBy, MatrixUnits, Rounds, Tile, divided, grid, guarded};

use columns::column_sums;

use super::{
    BindingElement, Bindings, CoopMatmul, Epilogue, Operand, Product, Spec, Text, component, entry, place, prologue,
    store, store_wide, workgroup_size,
};

/// Returns an operand's tile in workgroup memory, whose lines run along K or along the operand's extent.
fn tile(o: Operand, along_k: bool, coop: &CoopMatmul) -> Tile {
    let (lines, length) = if along_k { (o.tile, coop.tile_k) } else { (coop.tile_k, o.tile) };
    Tile::halves(if o.name == "a" { "a_tile" } else { "b_tile" }, lines, length)
}

/// Returns the largest number of bytes of workgroup memory that a kernel of these sizes takes.
pub(super) fn workgroup_bytes(product: Product, coop: &CoopMatmul) -> u32 {
    let operands = Operand::both(product, coop.tile_m, coop.tile_n);
    let ends = staged::sums(coop).bytes().max(match product {
        Product::Forward => direct::bias_lines(coop).bytes(),
        Product::BackwardInp => 0,
        // pieces are smallest in kernels of width scalar
        Product::BackwardWeight => {
            column_sums(coop, 4, false).bytes().max(column_sums(coop, 8, coop.transposed).bytes())
        }
    });
    coop.buffers
        * operands
            .iter()
            .map(|o| [false, true].map(|along_k| tile(*o, along_k, coop).bytes()))
            .map(|[a, b]| a.max(b))
            .sum::<u32>()
        + ends
}

/// Lines that an invocation fetches together for a transposed tile, which is the number of elements in its vectors.
const ACROSS: u32 = 4;

/// The kernel; see the module's documentation.
pub(super) struct CoopKernel {
    pub(super) spec: Spec,
    pub(super) coop: CoopMatmul,
}

impl CoopKernel {
    fn units(&self) -> MatrixUnits {
        self.coop.units
    }

    fn operands(&self) -> [Operand; 2] {
        Operand::both(self.spec.product, self.coop.tile_m, self.coop.tile_n)
    }

    /// Returns a subgroup's matrices along M and N.
    fn matrices(&self) -> (u32, u32) {
        let CoopMatmul { tile_m, tile_n, grid_m, grid_n, units, .. } = self.coop;
        (tile_m / grid_m / units.edge, tile_n / grid_n / units.edge)
    }

    /// Returns the elements that an invocation moves at once, a piece.
    fn piece(&self) -> u32 {
        if self.spec.width == Width::Vec8 { 8 } else { 4 }
    }

    /// Returns the type of a piece.
    fn piece_type(&self) -> &'static str {
        if self.spec.width == Width::Vec8 { "Half8" } else { "vec4<f16>" }
    }

    /// Returns the suffixes of the names of a piece's vec4.
    fn halves(&self) -> &'static [&'static str] {
        if self.spec.width == Width::Vec8 { &["_low", "_high"] } else { &[""] }
    }

    /// Returns whether an operand's tile is transposed while it is filled.
    fn is_transposed(&self, o: Operand) -> bool {
        self.coop.transposed && self.spec.width == Width::Vec8 && !o.along_k
    }

    /// Returns whether the lines of an operand's tile run along K.
    fn lies_along_k(&self, o: Operand) -> bool {
        o.along_k || self.is_transposed(o)
    }

    /// Returns an operand's tile. Its lines are those in memory, unless it is transposed.
    fn tile(&self, o: Operand) -> Tile {
        tile(o, self.lies_along_k(o), &self.coop)
    }

    /// Returns whether sums are stored directly from registers to memory.
    fn is_direct(&self) -> bool {
        self.spec.width == Width::Vec8 && !self.spec.ragged && self.units().functions
    }

    pub(super) fn write(&self) -> String {
        let Self { spec, coop } = self;
        let idea = format!(
            "One workgroup: {} rows, {} columns, by {} x {} subgroups; matrices of {}.",
            coop.tile_m, coop.tile_n, coop.grid_m, coop.grid_n, coop.units.edge
        );
        let direct = self.is_direct();
        let operand = BindingElement::of(spec.operands, spec.width);
        // matrices are stored to an array of vec4
        let out = BindingElement::of(spec.out, if direct { Width::Vec4 } else { spec.width });
        let t = &mut prologue(spec, &idea, &Bindings { a: operand, b: operand, out, by_element: direct });
        self.declarations(t);
        for o in self.operands() {
            self.fetch_function(t, o, operand);
        }
        if direct {
            self.matrix_functions(t);
        } else {
            self.finish_function(t, out);
        }
        entry(t, spec);
        place(t, spec, coop.tile_m, coop.tile_n);
        t.line(format_args!("let subgroup_row = (subgroup / {}u) * {}u;", coop.grid_n, coop.tile_m / coop.grid_m));
        t.line(format_args!("let subgroup_column = (subgroup % {}u) * {}u;", coop.grid_n, coop.tile_n / coop.grid_n));
        for (i, j) in self.all_matrices() {
            t.line(format_args!("var c{i}_{j} = MatrixC();"));
        }
        self.places(t);
        if spec.epilogue == Epilogue::ColumnSums {
            for half in self.halves() {
                t.line(format_args!("var column_sum{half} = vec4<f32>();"));
            }
        }
        self.fetches(t, "depth");
        if direct {
            self.begin_sums(t);
        }
        t.line("var k = depth;");
        t.line("var next = k;");
        if coop.buffers > 1 {
            self.operands().iter().for_each(|o| t.line(format_args!("var {}_stage = 0u;", o.name)));
        }
        let (peeled, filled) = (self.is_peeled(), self.is_filled_before_loop());
        if filled {
            self.fill_tiles(t);
        }
        if peeled {
            self.fetch_and_multiply(t, true);
        }
        t.open("loop");
        if peeled {
            self.advance(t);
        }
        if !filled {
            self.fill_tiles(t);
        }
        self.fetch_and_multiply(t, false);
        if !peeled {
            self.advance(t);
        }
        t.close();
        if spec.epilogue == Epilogue::ColumnSums {
            self.column_sums(t);
        }
        if direct {
            self.store_sums(t);
        } else {
            self.finish_sums(t);
        }
        t.close();
        std::mem::take(&mut t.text)
    }

    /// Returns whether the first tile is multiplied before the loop, which is not the case where sums begin with values
    /// from memory.
    fn is_peeled(&self) -> bool {
        self.coop.peeled && !(self.is_direct() && self.spec.accumulate)
    }

    /// Returns whether the first tile is stored to workgroup memory before the loop, so that each iteration begins with
    /// a full tile.
    fn is_filled_before_loop(&self) -> bool {
        self.is_peeled() || self.coop.buffers > 1
    }

    /// Writes the fetch of the next tile and the multiplication of this one.
    fn fetch_and_multiply(&self, t: &mut Text, first: bool) {
        t.line(format_args!("next = k + {}u;", self.coop.tile_k));
        t.open("if next < depth_end");
        self.fetches(t, "next");
        t.close();
        self.on_grid(t, |t| {
            if first && self.begins_with_bias() {
                self.load_bias(t);
            }
            self.multiply(t, first);
        });
    }

    /// Writes the end of the loop after the last tile, or the step to the next tile.
    fn advance(&self, t: &mut Text) {
        t.line("if next >= depth_end { break; }");
        if self.coop.buffers > 1 {
            for o in self.operands() {
                let size = self.units().units_of(self.tile(o).elements());
                t.line(format_args!("{0}_stage = {size}u - {0}_stage;", o.name));
            }
        } else {
            t.line("// everyone has read the tiles before they are overwritten");
            t.line("workgroupBarrier();");
        }
        if self.is_filled_before_loop() {
            self.fill_tiles(t);
        }
        t.line("k = next;");
    }

    fn declarations(&self, t: &mut Text) {
        self.units().aliases(t);
        for o in self.operands() {
            let tile = self.tile(o);
            self.units().declare(t, &Tile { lines: self.coop.buffers * tile.lines, ..tile });
        }
        let staged = (!self.is_direct()).then(|| staged::sums(&self.coop));
        let columns = (self.spec.epilogue == Epilogue::ColumnSums).then(|| self.column_sums_tile());
        if let Some(larger) = staged.into_iter().chain(columns).max_by_key(Tile::bytes) {
            self.units().declare(t, &larger);
        }
        if self.is_direct() && self.spec.epilogue.bias() {
            self.units().declare(t, &direct::bias_lines(&self.coop));
        }
        t.line("");
    }

    /// Returns a subgroup's matrices along M and N, counted in the adapter's own matrices.
    fn native_matrices(&self) -> (u32, u32) {
        let ((rows, columns), blocks) = (self.matrices(), self.units().blocks());
        (rows * blocks, columns * blocks)
    }

    /// Returns the positions (i, j) of all of a subgroup's native matrices.
    fn all_matrices(&self) -> impl Iterator<Item = (u32, u32)> {
        let (rows, columns) = self.native_matrices();
        grid(rows, columns)
    }

    /// Writes text that only the subgroups of the grid run.
    fn on_grid(&self, t: &mut Text, body: impl FnOnce(&mut Text)) {
        self.units().on_grid(t, self.coop.grid_m * self.coop.grid_n, body);
    }

    /// Writes `fetch_a(line, at)`, which returns a piece of neighbours in memory, zero outside the matrix.
    fn fetch_function(&self, t: &mut Text, o: Operand, element: BindingElement) {
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

    /// Returns the distribution of the pieces of an operand's tile over the workgroup.
    fn rounds(&self, o: Operand) -> Rounds {
        let (tile, piece) = (self.tile(o), self.piece());
        let piece = if self.is_transposed(o) { ACROSS * piece } else { piece };
        Rounds { pieces: tile.lines * tile.length / piece, threads: workgroup_size(&self.spec) }
    }

    /// Returns the first invocation that fetches an operand. Two small fetches are done by different invocations.
    fn first_thread(&self, o: Operand) -> u32 {
        let [a, b] = self.operands().map(|o| self.rounds(o).pieces);
        let apart = self.is_transposed(o) && o.name == "b" && a + b <= workgroup_size(&self.spec);
        if apart { a } else { 0 }
    }

    /// Returns an invocation's piece in a round, and the condition under which it has one.
    fn piece_of_round(&self, o: Operand, i: u32) -> (String, Option<String>) {
        let (rounds, first) = (self.rounds(o), self.first_thread(o));
        match first {
            0 => (rounds.piece(i), rounds.guard(i)),
            // for invocations before the first the difference wraps to a number far beyond the last piece
            _ => (format!("thread - {first}u"), Some(format!("thread - {first}u < {}u", rounds.pieces))),
        }
    }

    /// Writes the positions of an invocation's pieces in memory and in the tiles, and of a subgroup's matrices in the
    /// tiles. These do not change in the loop, so they are computed before it. Indices are sums in the units of the
    /// arrays, because a division after a sum keeps compilers from folding constants into the accesses.
    fn places(&self, t: &mut Text) {
        for o in self.operands() {
            let (name, rounds, tile) = (o.name, self.rounds(o), self.tile(o));
            for i in 0..self.anchors(o) {
                t.line(format_args!("let {name}_piece{i} = {};", self.piece_of_round(o, i).0));
                if self.is_transposed(o) {
                    let deep = tile.length / ACROSS;
                    t.line(format_args!("let {name}_line{i} = ({name}_piece{i} % {deep}u) * {ACROSS}u;"));
                    t.line(format_args!("let {name}_at{i} = ({name}_piece{i} / {deep}u) * {}u;", self.piece()));
                } else {
                    self.place_of_piece(t, o, i);
                }
                let [line, at] = if self.is_transposed(o) { ["at", "line"] } else { ["line", "at"] };
                let to = format!("{name}_{line}{i} * {}u + {name}_{at}{i}", tile.stride());
                t.line(format_args!("let {name}_to{i} = {};", self.units().index(to)));
            }
            for (i, j) in grid(rounds.count(), self.lines_of_piece(o)) {
                t.line(format_args!("var {name}_next{i}{} = {}();", self.nth(o, j), self.piece_type()));
            }
            let first = if name == "a" { "subgroup_row" } else { "subgroup_column" };
            let first = if self.lies_along_k(o) { format!("{first} * {}u", tile.stride()) } else { first.to_owned() };
            t.line(format_args!("let {name}_matrix = {};", self.units().index(first)));
        }
    }

    /// Returns the number of lines in memory from which an invocation fetches a piece in a round.
    fn lines_of_piece(&self, o: Operand) -> u32 {
        if self.is_transposed(o) { ACROSS } else { 1 }
    }

    /// Returns the suffix of the name of such a line.
    fn nth(&self, o: Operand, j: u32) -> String {
        if self.is_transposed(o) { format!("_{j}") } else { String::new() }
    }

    fn place_of_piece(&self, t: &mut Text, o: Operand, i: u32) {
        let (name, piece, rounds) = (o.name, self.piece(), self.rounds(o));
        let across = self.tile(o).length / piece;
        let most = rounds.pieces.next_multiple_of(rounds.threads);
        let (line, in_line) = divided(&format!("{name}_piece{i}"), across, most);
        if self.block(o) == 1 {
            t.line(format_args!("let {name}_line{i} = {line};"));
        } else {
            // lines are an odd number of 16-byte units long, so lines that are `across` apart together cover all 128
            // bytes of banks
            let (dealt, apart) = (format!("{name}_dealt{i}"), 8 / across);
            t.line(format_args!("let {dealt} = {line};"));
            t.line(format_args!(
                "let {name}_line{i} = ({dealt} & ~7u) + ({dealt} % {apart}u) * {across}u + ({dealt} % 8u) / {apart}u;"
            ));
        }
        t.line(format_args!("let {name}_at{i} = ({in_line}) * {piece}u;"));
    }

    /// Returns the number of rounds whose positions have their own names: one if all others are whole lines after it,
    /// else all.
    fn anchors(&self, o: Operand) -> u32 {
        let (rounds, across) = (self.rounds(o), self.tile(o).length / self.piece());
        let alike = !self.is_transposed(o) && rounds.threads.is_multiple_of(self.block(o) * across);
        if alike { 1 } else { rounds.count() }
    }

    /// Returns the round whose position round `i` uses, and the number of lines between them.
    fn anchor(&self, o: Operand, i: u32) -> (u32, u32) {
        let across = self.tile(o).length / self.piece();
        if self.anchors(o) == 1 { (0, i * (self.rounds(o).threads / across)) } else { (i, 0) }
    }

    /// Returns the number of lines that are distributed together, so that the invocations that write 128 bytes at once
    /// use different banks: 8 where a line is shorter than 128 bytes, else 1.
    fn block(&self, o: Operand) -> u32 {
        let tile = self.tile(o);
        let short = self.spec.width == Width::Vec8 && [16, 32].contains(&tile.length);
        if short && tile.lines.is_multiple_of(8) { 8 } else { 1 }
    }

    /// Writes the fetches of this invocation's pieces of the tiles that start at `k`.
    fn fetches(&self, t: &mut Text, k: &str) {
        for o in self.operands() {
            let name = o.name;
            let (lines_from, at_from) = if o.along_k { (o.first(), k) } else { (k, o.first()) };
            for i in 0..self.rounds(o).count() {
                let (anchor, lines) = self.anchor(o, i);
                guarded(t, self.piece_of_round(o, i).1.as_deref(), |t| {
                    for j in 0..self.lines_of_piece(o) {
                        let line = format!("{lines_from} + {name}_line{anchor} + {}u", lines + j);
                        let value = format!("fetch_{name}({line}, {at_from} + {name}_at{anchor})");
                        t.line(format_args!("{name}_next{i}{} = {value};", self.nth(o, j)));
                    }
                });
            }
        }
    }

    /// Writes the stores of the fetched pieces to workgroup memory, and the addition of their columns if wanted.
    fn fill_tiles(&self, t: &mut Text) {
        for o in self.operands() {
            for i in 0..self.rounds(o).count() {
                guarded(t, self.piece_of_round(o, i).1.as_deref(), |t| self.fill_piece(t, o, i));
            }
        }
        if self.spec.epilogue == Epilogue::ColumnSums {
            self.add_columns(t);
        }
        t.line("// the tiles are complete before anyone reads them");
        t.line("workgroupBarrier();");
    }

    fn fill_piece(&self, t: &mut Text, o: Operand, i: u32) {
        let (tile, name, (anchor, lines)) = (self.tile(o), o.name, self.anchor(o, i));
        let place = |line: u32| {
            format!("{name}_to{anchor}{} + {}u", self.stage(o), self.units().units_of(line * tile.stride()))
        };
        let parts = self.halves().iter().map(|half| half.replace('_', "."));
        if !self.is_transposed(o) {
            let fours: Vec<String> = parts.map(|part| format!("{name}_next{i}{part}")).collect();
            return self.units().write_fours(t, tile.name, &place(lines), &fours);
        }
        for (h, part) in (0..).zip(parts) {
            for c in 0..4 {
                let elements = (0..ACROSS).map(|j| format!("{name}_next{i}_{j}{part}.{}", component(c)));
                let four = format!("{name}_across{i}_{}", 4 * h + c);
                t.line(format_args!("let {four} = vec4({});", elements.collect::<Vec<_>>().join(", ")));
                self.units().write_fours(t, tile.name, &place(4 * h + c), &[four]);
            }
        }
    }

    /// Returns the offset that is added to indices in an operand's tiles, to select the buffer that is filled or
    /// multiplied.
    fn stage(&self, o: Operand) -> String {
        if self.coop.buffers > 1 { format!(" + {}_stage", o.name) } else { String::new() }
    }

    /// Writes the products of the tiles' matrices, `native` deep at a time. To use the fewest registers, all matrices
    /// of the operand with fewer matrices are held, and those of the other operand one at a time.
    fn multiply(&self, t: &mut Text, first: bool) {
        let (units, n, (rows, columns)) = (self.units(), self.units().native, self.native_matrices());
        let steps = self.coop.tile_k / n;
        if !self.coop.unrolled {
            t.open(format_args!("for (var step = 0u; step < {}u; step += {n}u)", self.coop.tile_k));
        }
        for step in 0..if self.coop.unrolled { steps } else { 1 } {
            let load = |t: &mut Text, o: Operand, i: u32| {
                let (name, tile, role) = (o.name, self.tile(o), if o.name == "a" { "A" } else { "B" });
                let stride = tile.stride();
                // elements from one matrix of the operand to the next, and from one step of k to the next
                let along_k = self.lies_along_k(o);
                let (apart, deep) = if along_k { (stride, 1) } else { (1, stride) };
                let at = units.units_of(i * n * apart + step * n * deep);
                let first = format!("{name}_matrix{}", self.stage(o));
                let at = match self.coop.unrolled {
                    true => format!("{first} + {at}u"),
                    false => format!("{first} + {} + {at}u", units.index(format!("step * {deep}u"))),
                };
                let by = if along_k == (name == "a") { LoadBy::Rows } else { LoadBy::Columns };
                let value = units.load_from_unit(by, role, tile.name, at, format_args!("{}u", units.units_of(stride)));
                t.line(format_args!("let {name}{step}_{i} = {value};"));
            };
            let [a, b] = self.operands();
            let (held, passing) = if rows < columns { (a, b) } else { (b, a) };
            let count = |o: Operand| if o.name == "a" { rows } else { columns };
            (0..count(held)).for_each(|i| load(t, held, i));
            for i in 0..count(passing) {
                load(t, passing, i);
                for j in 0..count(held) {
                    let (i, j) = if passing.name == "a" { (i, j) } else { (j, i) };
                    let sum = match first && step == 0 {
                        true if self.begins_with_bias() => format!("bias{j}"),
                        true if !self.begins_in_memory() => "MatrixC()".to_owned(),
                        _ => format!("c{i}_{j}"),
                    };
                    t.line(format_args!("c{i}_{j} = coopMultiplyAdd(a{step}_{i}, b{step}_{j}, {sum});"));
                }
            }
        }
        if !self.coop.unrolled {
            t.close();
        }
    }
}
