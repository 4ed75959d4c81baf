//! The text of [`CoopAttention`]: constants, tiles, the shared shaders, and the entry point. The entry point is
//! generated because each matrix must have a name.
//!
//! First a workgroup loads its rows as matrices (`tiles`). Then it iterates over blocks of columns and fetches the next
//! block while it multiplies the current one (`products`). The step from scores to weights, between the products, is in
//! `elements` where a kernel can compute with the elements of a matrix, else in `sums`.

mod elements;
mod products;
mod sums;
mod tiles;

use crate::gpu::wgsl_text::{Text, without_directive};
use crate::ops::matrix_units::{DIRECTIVES, HALF8, Tile, UNIFORM_SUBGROUPS, divided, grid, guarded};

use super::coop::{AttentionKernel, CoopAttention};

impl CoopAttention {
    pub(super) fn write(&self) -> String {
        let mut t = Text::default();
        DIRECTIVES.iter().for_each(|line| t.line(line));
        t.line(UNIFORM_SUBGROUPS);
        self.declarations(&mut t);
        let own: &[&str] = if self.units.functions { &elements::SHADERS } else { &sums::SHADERS };
        let shared = [
            include_str!("../../../../shaders/shared/attention.wgsl"),
            HALF8,
            include_str!("../../../../shaders/attention_coop.wgsl"),
            include_str!("../../../../shaders/shared/grid.wgsl"),
        ];
        for part in shared.iter().chain(own) {
            without_directive(part).lines().for_each(|line| t.line(line));
        }
        self.main(&mut t);
        t.text
    }

    /// Returns a subgroup's matrices along its rows, along its part of a block's columns, and along its part of the
    /// head.
    fn matrices(&self) -> [u32; 3] {
        let n = self.units.native;
        [self.rows / self.grid_m / n, self.columns / self.grid_n / n, self.head_size / self.grid_n / n]
    }

    /// Returns the number of rows that pass through the tiles at once when rows are loaded or stored.
    fn portion(&self) -> u32 {
        self.rows.min(self.columns)
    }

    fn declarations(&self, t: &mut Text) {
        let Self { rows, columns, head_size, units, entry, .. } = self;
        for (name, value) in [
            ("EDGE", units.native),
            ("HEAD_SIZE", *head_size),
            ("ROWS", *rows),
            ("SUBGROUP_ROWS", rows / self.grid_m),
            ("COLUMNS", *columns),
            ("PORTION", self.portion()),
            ("THREADS", self.threads()),
            ("DELTA_PARTS", units.native / 4),
            ("STARTS", self.starts()),
            ("TILE_STRIDE", self.columns_tile("").stride()),
        ] {
            t.line(format_args!("const {name} = {value}u;"));
        }
        t.line(format_args!("const SCALE = {:?}; // 1 / sqrt(HEAD_SIZE)", 1.0 / (*head_size as f32).sqrt()));
        t.line(format_args!("const ROWS_ARE_KEYS = {};", *entry == AttentionKernel::BackwardKv));
        t.line(format_args!("const LAST_FIRST = {};", *entry != AttentionKernel::BackwardKv));
        units.aliases(t);
        self.declare_pieces(t);
        self.declare(t, &self.both_tiles(), "tile");
        for name in ["weights", "dscores"] {
            units.declare(t, &self.weights_tile(name));
        }
        if units.functions { self.declare_for_elements(t) } else { self.declare_for_sums(t) }
    }

    /// Declares a tile and the functions `{name}_at` and `put_{name}` that read and write four of its elements.
    fn declare(&self, t: &mut Text, tile: &Tile, name: &str) {
        let four = format!("vec4<{}>", tile.scalar);
        self.units.declare(t, tile);
        t.line(format_args!("fn {name}_at(i: u32) -> {four} {{ return {}; }}", self.units.read_four(tile.name, "i")));
        t.open(format_args!("fn put_{name}(i: u32, four: {four})"));
        self.units.write_four(t, tile.name, "i", "four");
        t.close();
    }

    /// Declares the functions that map a piece, a Half8 of the columns' tiles, to its line and its position in the
    /// line.
    fn declare_pieces(&self, t: &mut Text) {
        let most = (self.columns * self.head_size / 8).next_multiple_of(self.threads());
        let (line, place) = divided("piece", self.head_size / 8, most);
        t.line(format_args!("fn line_of(piece: u32) -> u32 {{ return {line}; }}"));
        t.line(format_args!("fn place_in_line(piece: u32) -> u32 {{ return {place}; }}"));
    }

    /// Writes text that only the subgroups of the grid run.
    fn on_grid(&self, t: &mut Text, body: impl FnOnce(&mut Text)) {
        self.units.on_grid(t, self.grid_m * self.grid_n, body);
    }

    fn main(&self, t: &mut Text) {
        let Self { rows, grid_m, grid_n, entry, .. } = self;
        let [tall, _, wide] = self.matrices();
        t.line(format_args!("@compute @workgroup_size({})", self.threads()));
        t.line("fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,");
        t.line("        @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32,");
        t.line("        @builtin(subgroup_invocation_id) lane: u32)");
        t.open("");
        t.line("let at = place(group_index(group, groups), ROWS, LAST_FIRST);");
        t.line("if !at.valid { return; }");
        t.line(format_args!("let subgroup_row = (subgroup / {grid_n}u) * {}u;", rows / grid_m));
        t.line("let subgroup_first = at.first + subgroup_row;");
        if self.units.varying {
            t.line("let lanes = subgroupAdd(1u);");
        }
        self.bases(t);
        if self.units.functions {
            t.line("begin_mask(thread);");
        }
        match entry {
            AttentionKernel::Forward => t.line("begin_starts(thread);"),
            AttentionKernel::BackwardQ => t.line("begin_delta(at, thread);"),
            AttentionKernel::BackwardKv => {}
        }
        self.stage_rows(t);
        if *entry == AttentionKernel::BackwardQ {
            t.line("keep_delta(at, thread);");
        }
        for (i, j) in grid(tall, wide) {
            (0..entry.outs()).for_each(|o| t.line(format_args!("var o{o}_{i}_{j} = MatrixC();")));
        }
        if *entry == AttentionKernel::Forward && self.units.functions {
            (0..tall).for_each(|i| t.line(format_args!("var total{i} = MatrixC();")));
        }
        // blocks that the diagonal cuts, and blocks that all rows see; the latter come after the diagonal if rows are
        // keys, else before
        let (start, middle, end) = match entry {
            AttentionKernel::BackwardKv => (
                "at.first / COLUMNS * COLUMNS",
                "min((at.first + ROWS + COLUMNS - 1u) / COLUMNS * COLUMNS, params.positions)",
                "params.positions",
            ),
            _ => ("0u", "at.first / COLUMNS * COLUMNS", "min(at.first + ROWS, params.positions)"),
        };
        t.line(format_args!("var first_column = {start};"));
        t.line(format_args!("let middle = {middle};"));
        t.line(format_args!("let end = {end};"));
        self.declare_fetched(t);
        self.fetch(t, "first_column");
        for (is_first, bound) in [(true, "middle"), (false, "end")] {
            t.open("loop");
            t.line(format_args!("if first_column >= {bound} {{ break; }}"));
            self.fill(t);
            t.line("// the tiles are complete before anyone reads them");
            t.line("workgroupBarrier();");
            self.block(t, is_first == (*entry == AttentionKernel::BackwardKv));
            t.line("first_column += COLUMNS;");
            t.line("// everyone has read the tiles before they are overwritten");
            t.line("workgroupBarrier();");
            t.close();
        }
        if self.units.functions {
            self.finish_elements(t);
        } else {
            self.finish_sums(t);
        }
        t.close();
    }

    /// Writes the base indices of a subgroup's matrices, in units of the tiles. Constants are added last so that
    /// compilers fold them into the accesses.
    fn bases(&self, t: &mut Text) {
        let [tile, weights] =
            [self.columns_tile(""), self.weights_tile("")].map(|tile| self.units.units_of(tile.stride()));
        // if several subgroups share rows, each has its part of the columns, then of the head
        let part = |whole: u32| format!("(subgroup % {}u) * {}u", self.grid_n, whole / self.grid_n);
        t.line(format_args!("let score_column = {};", part(self.columns)));
        t.line(format_args!("let columns_base = score_column * {tile}u;"));
        t.line(format_args!("let head_base = {};", self.units.index(part(self.head_size))));
        if self.transposed {
            let turned = self.units.units_of(self.turned_tile("").stride());
            t.line(format_args!("let turned_base = {} * {turned}u;", part(self.head_size)));
        }
        t.line(format_args!("let weights_base = subgroup_row * {weights}u;"));
        t.line(format_args!("let weights_to = weights_base + {};", self.units.index("score_column")));
        let part = match self.entry {
            AttentionKernel::BackwardKv => 0,
            _ => 1,
        };
        t.line(format_args!("let x_base = qkv_at(at, 0u, {part}u);"));
        t.line("let qkv_line = 3u * params.heads * (HEAD_SIZE / 8u);");
        match self.entry {
            AttentionKernel::BackwardKv => {
                t.line("let y_base = out_at(at, 0u);");
                t.line("let out_line = params.heads * (HEAD_SIZE / 8u);");
            }
            _ => t.line("let part_line = params.heads * (HEAD_SIZE / 8u);"),
        }
    }

    /// Writes the work on one block of columns, which the diagonal cuts if `is_cut`. The next block is fetched ahead.
    fn block(&self, t: &mut Text, is_cut: bool) {
        if is_cut {
            let sees = match self.entry {
                AttentionKernel::BackwardKv => "first_column + COLUMNS > subgroup_first",
                _ => "first_column < subgroup_first + SUBGROUP_ROWS",
            };
            t.line("// a subgroup that sees nothing of the block has nothing to do");
            t.line(format_args!("let sees = {sees};"));
            if self.units.functions {
                t.line("// distance of the first column from the first row");
                t.line("let beyond = i32(first_column + score_column) - i32(subgroup_first);");
            }
        }
        let condition = is_cut.then_some("sees");
        let busy = |t: &mut Text, body: &dyn Fn(&mut Text)| guarded(t, condition, |t| self.on_grid(t, body));
        busy(t, &|t| match (self.entry, self.units.functions) {
            (AttentionKernel::Forward, true) => self.forward_elements(t, is_cut),
            (_, true) => self.backward_elements(t, is_cut),
            (_, false) => self.weights_by_sums(t, is_cut),
        });
        // only the subgroup that computed weights reads them, if it computed whole rows
        t.line(if self.grid_n == 1 { "subgroupBarrier();" } else { "workgroupBarrier();" });
        self.fetch(t, "first_column + COLUMNS");
        busy(t, &|t| self.add_products(t));
    }

    /// Writes `body` for each row of a subgroup, distributed over its invocations.
    pub(super) fn on_rows(&self, t: &mut Text, body: impl Fn(&str) -> String) {
        let (rows, lanes) = (self.rows / self.grid_m, self.units.lanes);
        if self.units.varying {
            t.open(format_args!("for (var row = subgroup_row + lane; row < subgroup_row + {rows}u; row += lanes)"));
            t.line(body("row"));
            t.close();
            return;
        }
        for first in (0..rows).step_by(lanes as usize) {
            let guard = (first + lanes > rows).then(|| format!("lane < {}u", rows - first));
            guarded(t, guard.as_deref(), |t| t.line(body(&format!("(subgroup_row + lane + {first}u)"))));
        }
    }
}
