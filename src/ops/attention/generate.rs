//! The text of [`Coop`]: constants and tiles, what `shaders/attention_coop.wgsl` has, and the entry point, whose matrices
//! must have names.

use crate::gpu::text::{Text, without_directive};
use crate::ops::matrix_units::{By, DIRECTIVES, HALF8, UNIFORM_SUBGROUPS, divided, grid};

use super::coop::{Coop, Entry};

impl Coop {
    /// Matrices of a subgroup along the rows, and along its part of the head.
    fn matrices(&self) -> (u32, u32) {
        (self.rows / self.grid_m / self.units.native, self.head_size / self.grid_n / self.units.native)
    }

    pub(super) fn write(&self) -> String {
        let mut t = Text::default();
        DIRECTIVES.iter().for_each(|line| t.line(line));
        t.line(UNIFORM_SUBGROUPS);
        self.declarations(&mut t);
        for part in [
            include_str!("../../../shaders/shared/attention.wgsl"),
            HALF8,
            include_str!("../../../shaders/attention_coop.wgsl"),
            include_str!("../../../shaders/shared/grid.wgsl"),
        ] {
            without_directive(part).lines().for_each(|line| t.line(line));
        }
        self.main(&mut t);
        t.text
    }

    fn declarations(&self, t: &mut Text) {
        let Self { rows, columns, head_size, grid_n, units, .. } = self;
        for (name, value) in [
            ("HEAD_SIZE", *head_size),
            ("ROWS", *rows),
            ("COLUMNS", *columns),
            ("THREADS", self.threads()),
            ("GRID_N", *grid_n),
            ("PARTS_PER_ROW", self.parts()),
            ("ROW_PARTS", rows * self.parts()),
            ("QUERIES_KEPT", self.kept()),
            ("TILE_STRIDE", self.columns_tile("x_tile").stride()),
            ("SUMS_STRIDE", self.sums_tile("sums").stride()),
            ("WEIGHTS_STRIDE", self.weights_tile("weights").stride()),
        ] {
            t.line(format_args!("const {name} = {value}u;"));
        }
        t.line(format_args!("const LAST_FIRST = {};", self.entry != Entry::BackwardKv));
        units.aliases(t);
        let most = (columns * head_size / 8).next_multiple_of(self.threads());
        let (line, place) = divided("piece", head_size / 8, most);
        t.line(format_args!("fn line_of(piece: u32) -> u32 {{ return {line}; }}"));
        t.line(format_args!("fn place_in_line(piece: u32) -> u32 {{ return {place}; }}"));
        for (tile, get, put) in [
            (self.columns_tile("x_tile"), None, Some("put_x")),
            (self.columns_tile("y_tile"), None, Some("put_y")),
            (self.sums_tile("sums"), Some("sum_at"), Some("put_sums")),
            (self.sums_tile("slopes"), Some("slope_at"), None),
            (self.weights_tile("weights"), None, Some("put_weights")),
            (self.weights_tile("dscores"), None, Some("put_dscores")),
        ] {
            units.declare(t, &tile);
            let four = format!("vec4<{}>", tile.scalar);
            if let Some(get) = get {
                let value = units.read_four(tile.name, "i");
                t.line(format_args!("fn {get}(i: u32) -> {four} {{ return {value}; }}"));
            }
            if let Some(put) = put {
                t.open(format_args!("fn {put}(i: u32, four: {four})"));
                units.write_four(t, tile.name, "i", "four");
                t.close();
            }
        }
    }

    /// Text that only the subgroups of the grid run.
    fn on_grid(&self, t: &mut Text, body: impl FnOnce(&mut Text)) {
        self.units.on_grid(t, self.grid_m * self.grid_n, body);
    }

    fn main(&self, t: &mut Text) {
        let Self { rows, columns, grid_m, grid_n, head_size, entry, .. } = self;
        t.line(format_args!("@compute @workgroup_size({})", self.threads()));
        t.line("fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,");
        t.line("        @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32)");
        t.open("");
        t.line("let at = place(group_index(group, groups), ROWS, LAST_FIRST);");
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
            Entry::BackwardKv => ("at.first / COLUMNS * COLUMNS", "params.positions"),
            _ => ("0u", "min(at.first + ROWS, params.positions)"),
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
        let (tall, n) = (self.matrices().0, self.units.native);
        for (i, k) in grid(tall, self.head_size / n) {
            t.line(format_args!("var {name}{i}_{k} = MatrixA();"));
        }
        for start in (0..self.head_size).step_by(self.columns as usize) {
            let width = self.columns.min(self.head_size - start);
            t.line(format_args!("{call} {start}u, {width}u, thread);"));
            t.line("workgroupBarrier();");
            self.on_grid(t, |t| {
                for (i, k) in grid(tall, width / n) {
                    let at = format!("(subgroup_row + {}u) * WEIGHTS_STRIDE + {}u", i * n, k * n);
                    let load = self.units.load(By::Rows, "A", "weights", at, "WEIGHTS_STRIDE");
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
        self.on_grid(t, |t| self.scores(t, "r", "x_tile", "sums"));
        if self.entry.products() == 2 {
            self.on_grid(t, |t| self.scores(t, "s", "y_tile", "slopes"));
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
                self.on_grid(t, |t| self.accumulate(t, &[("weights", "y_tile")]));
            }
            Entry::BackwardQ => self.on_grid(t, |t| self.accumulate(t, &[("weights", "x_tile")])),
            Entry::BackwardKv => {
                self.on_grid(t, |t| self.accumulate(t, &[("dscores", "x_tile"), ("weights", "y_tile")]));
            }
        }
        t.line("// everyone has read the tiles before they are overwritten");
        t.line("workgroupBarrier();");
    }

    /// The rows' matrices times the transposed columns in `tile`.
    fn scores(&self, t: &mut Text, name: &str, tile: &str, to: &str) {
        let (tall, n) = (self.matrices().0, self.units.native);
        t.open(format_args!("for (var c = 0u; c < {}u; c += {n}u)", self.columns / self.grid_n));
        for i in 0..tall {
            t.line(format_args!("var p{i} = MatrixC();"));
        }
        for k in 0..self.head_size / n {
            let load = self.units.load(
                By::Columns,
                "B",
                tile,
                format_args!("(score_column + c) * TILE_STRIDE + {}u", k * n),
                "TILE_STRIDE",
            );
            t.line(format_args!("let b{k} = {load};"));
            for i in 0..tall {
                t.line(format_args!("p{i} = coopMultiplyAdd({name}{i}_{k}, b{k}, p{i});"));
            }
        }
        for i in 0..tall {
            let at = format!("(subgroup_row + {}u) * SUMS_STRIDE + score_column + c", i * n);
            self.spill(t, &format!("p{i}"), to, &at);
        }
        t.close();
    }

    /// Spills an accumulator to `sums` or `slopes`.
    fn spill(&self, t: &mut Text, matrix: &str, to: &str, at: &str) {
        self.units.spill_accumulator(t, matrix, to, at, "SUMS_STRIDE");
    }

    /// Adds the products of rows in the first with columns in the second to each of the sums.
    fn accumulate(&self, t: &mut Text, products: &[(&str, &str)]) {
        let ((tall, wide), n) = (self.matrices(), self.units.native);
        t.open(format_args!("for (var k = 0u; k < COLUMNS; k += {n}u)"));
        for (o, (from, tile)) in products.iter().enumerate() {
            for i in 0..tall {
                let at = format!("(subgroup_row + {}u) * WEIGHTS_STRIDE + k", i * n);
                t.line(format_args!("let a{o}_{i} = {};", self.units.load(By::Rows, "A", from, at, "WEIGHTS_STRIDE")));
            }
            for j in 0..wide {
                let at = format!("k * TILE_STRIDE + head_start + {}u", j * n);
                t.line(format_args!("let b{o}_{j} = {};", self.units.load(By::Rows, "B", tile, at, "TILE_STRIDE")));
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
        let most = self.columns / self.grid_n / self.units.native;
        (0..wide).step_by(most as usize).map(move |first| (first, most.min(wide - first)))
    }

    /// Puts a chunk of a result into `sums`.
    fn spill_chunk(&self, t: &mut Text, out: u32, (first, count): (u32, u32)) {
        let (tall, n) = (self.matrices().0, self.units.native);
        self.on_grid(t, |t| {
            for (i, j) in grid(tall, count) {
                let left = format!("(subgroup % {}u) * {}u + {}u", self.grid_n, count * n, j * n);
                let at = format!("(subgroup_row + {}u) * SUMS_STRIDE + {left}", i * n);
                self.spill(t, &format!("o{out}_{i}_{}", first + j), "sums", &at);
            }
        });
    }

    /// Where some row's scores have outgrown what they are compared to, its sums shrink.
    fn rescale(&self, t: &mut Text) {
        let (tall, n) = (self.matrices().0, self.units.native);
        t.open("if first_column > 0u && atomicLoad(&grown) != 0u");
        for (first, count) in self.chunks() {
            self.spill_chunk(t, 0, (first, count));
            t.line("workgroupBarrier();");
            t.line(format_args!("rescale({}u, thread);", count * n));
            t.line("workgroupBarrier();");
            self.on_grid(t, |t| {
                for (i, j) in grid(tall, count) {
                    let left = format!("(subgroup % {}u) * {}u + {}u", self.grid_n, count * n, j * n);
                    let at = format!("(subgroup_row + {}u) * SUMS_STRIDE + {left}", i * n);
                    let load = self.units.load(By::Rows, "C", "sums", at, "SUMS_STRIDE");
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
            Entry::BackwardQ => &["finish_dqkv(at, 0u, params.scale"],
            Entry::BackwardKv => &["finish_dqkv(at, 1u, params.scale", "finish_dqkv(at, 2u, 1.0"],
        };
        if self.entry == Entry::Forward {
            t.line("finish_lse(at, thread);");
        }
        for (out, call) in calls.iter().enumerate() {
            for (first, count) in self.chunks() {
                self.spill_chunk(t, out as u32, (first, count));
                t.line("workgroupBarrier();");
                t.line(format_args!(
                    "{call}, {}u, {}u, thread);",
                    first * self.units.native,
                    count * self.units.native
                ));
                t.line("workgroupBarrier();");
            }
        }
    }
}
