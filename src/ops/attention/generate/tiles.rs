//! The loading of rows and columns into the tiles.

use crate::gpu::wgsl_text::Text;
use crate::ops::matrix_units::{LoadBy, Rounds, grid, guarded};

use super::super::coop::{AttentionKernel, CoopAttention};

/// Lines of a transposed piece: it becomes a vec4 for each of its columns.
const ACROSS: u32 = 4;

impl CoopAttention {
    /// Loads the matrices of rows as `r{i}_{k}`, through the tiles.
    pub(super) fn stage_rows(&self, t: &mut Text) {
        let ([tall, ..], n, portion) = (self.matrices(), self.units.native, self.portion());
        let deep = self.head_size / n;
        let (x, y) = match self.entry {
            AttentionKernel::Forward => ("qkv_piece(at, t, 0u, c)", None),
            AttentionKernel::BackwardQ => ("qkv_piece(at, t, 0u, c)", Some("dout_piece(at, t, c)")),
            AttentionKernel::BackwardKv => ("qkv_piece(at, t, 1u, c)", Some("qkv_piece(at, t, 2u, c)")),
        };
        let y_tile = self.units.units_of(self.columns_tile("").elements());
        let operands = [("r", 0), ("s", y_tile)];
        let operands = &operands[..self.entry.products() as usize];
        for (name, _) in operands {
            for (i, k) in grid(tall, deep) {
                t.line(format_args!("var {name}{i}_{k} = MatrixA();"));
            }
        }
        for start in (0..self.rows).step_by(portion as usize) {
            t.open("for (var turn = 0u; turn < turns(PORTION * (HEAD_SIZE / 8u)); turn++)");
            t.line("let piece = thread + turn * THREADS;");
            t.line("if uneven(PORTION * (HEAD_SIZE / 8u)) && piece >= PORTION * (HEAD_SIZE / 8u) { break; }");
            t.line("let c = place_in_line(piece);");
            t.line(format_args!("let t = at.first + {start}u + line_of(piece);"));
            t.line(format_args!("put_piece(line_of(piece), c, {x});"));
            if let Some(y) = y {
                t.line(format_args!("put_piece(COLUMNS + line_of(piece), c, {y});"));
            }
            t.close();
            t.line("workgroupBarrier();");
            self.on_portion(t, start, |t, i, row| {
                for ((name, tile), k) in operands.iter().flat_map(|o| (0..deep).map(move |k| (o, k))) {
                    let at = format!("{} + {tile}u", self.units.index(format!("{row} * TILE_STRIDE + {}u", k * n)));
                    let load =
                        self.units.load_from_unit(LoadBy::Rows, "A", "tiles", at, self.units.index("TILE_STRIDE"));
                    t.line(format_args!("{name}{i}_{k} = {load};"));
                }
            });
            t.line("// everyone has loaded before the tiles are overwritten");
            t.line("workgroupBarrier();");
        }
    }

    /// Writes `body` for each matrix i of rows in the portion that starts at row `start`. `body` gets the first line of
    /// the matrix in the tiles.
    pub(super) fn on_portion(&self, t: &mut Text, start: u32, body: impl Fn(&mut Text, u32, &str)) {
        let ([tall, ..], n, portion) = (self.matrices(), self.units.native, self.portion());
        self.on_grid(t, |t| {
            for i in 0..tall {
                let row = format!("(subgroup_row + {}u)", i * n);
                if portion == self.rows {
                    body(t, i, &row);
                    continue;
                }
                let inside = format!("{row} / {portion}u == {}u", start / portion);
                guarded(t, Some(&inside), |t| body(t, i, &format!("({row} % {portion}u)")));
            }
        });
    }

    /// Returns the distribution of a block's pieces. A piece is a Half8 of each tile or, with transposed copies, ACROSS
    /// lines of a Half8 in one tile.
    fn rounds(&self) -> Rounds {
        let pieces = self.columns * self.head_size / 8;
        let pieces = if self.transposed { 2 * pieces / ACROSS } else { pieces };
        Rounds { pieces, threads: self.threads() }
    }

    /// Returns the distribution of the columns whose initial values are loaded: a block's columns in backward_kv, none
    /// in the other kernels, where rows have the initial values.
    fn start_rounds(&self) -> Rounds {
        let pieces = if self.entry == AttentionKernel::BackwardKv { self.columns } else { 0 };
        Rounds { pieces, threads: self.threads() }
    }

    /// Writes the positions of an invocation's pieces of a block.
    pub(super) fn declare_fetched(&self, t: &mut Text) {
        for i in 0..self.rounds().count() {
            if self.transposed {
                self.declare_turned(t, i);
            } else {
                self.declare_piece(t, i);
            }
        }
        for i in 0..self.start_rounds().count() {
            t.line(format_args!("var starts_next{i} = vec2(0.0);"));
        }
    }

    /// Writes the position of a piece in each tile. If a workgroup covers whole lines, all pieces are below the first.
    fn declare_piece(&self, t: &mut Text, i: u32) {
        let (across, stride) = (self.head_size / 8, self.units.units_of(self.columns_tile("").stride()));
        let lines_apart = self.threads().is_multiple_of(across).then(|| self.threads() / across);
        match lines_apart.filter(|_| i > 0) {
            Some(lines) => {
                t.line(format_args!("let line{i} = line0 + {}u;", i * lines));
                t.line(format_args!("let place{i} = place0;"));
                t.line(format_args!("let to{i} = to0 + {}u;", i * lines * stride));
            }
            None => {
                t.line(format_args!("let line{i} = line_of({});", self.rounds().piece(i)));
                t.line(format_args!("let place{i} = place_in_line({});", self.rounds().piece(i)));
                t.line(format_args!("let to{i} = line{i} * {stride}u + place{i} * {}u;", self.units.units_of(8)));
            }
        }
        t.line(format_args!("var x_next{i} = Half8();"));
        t.line(format_args!("var y_next{i} = Half8();"));
    }

    /// Writes the position of a transposed piece: neighbours in ACROSS lines of x, or of y for the second half of the
    /// pieces.
    fn declare_turned(&self, t: &mut Text, i: u32) {
        let (half, deep) = (self.rounds().pieces / 2, self.columns / ACROSS);
        let units = |elements: u32| self.units.units_of(elements);
        let [tile, turned] = [self.columns_tile(""), self.turned_tile("")];
        t.line(format_args!("let is_y{i} = {} >= {half}u;", self.rounds().piece(i)));
        t.line(format_args!("let piece{i} = {} - select(0u, {half}u, is_y{i});", self.rounds().piece(i)));
        t.line(format_args!("let line{i} = piece{i} % {deep}u * {ACROSS}u;"));
        t.line(format_args!("let place{i} = piece{i} / {deep}u;"));
        let [to_y, turned_y] = [tile, turned].map(|tile| units(tile.elements()));
        t.line(format_args!(
            "let to{i} = line{i} * {}u + place{i} * {}u + select(0u, {to_y}u, is_y{i});",
            units(tile.stride()),
            units(8)
        ));
        t.line(format_args!(
            "let turned_to{i} = place{i} * {}u + line{i} / 4u * {}u + select(0u, {turned_y}u, is_y{i});",
            units(8 * turned.stride()),
            units(4)
        ));
        (0..ACROSS).for_each(|line| t.line(format_args!("var next{i}_{line} = Half8();")));
    }

    /// Writes the loads of an invocation's pieces of the block that starts at column `from`.
    pub(super) fn fetch(&self, t: &mut Text, from: &str) {
        let index = |t: &str, place: &str| format!("{t} * qkv_line + (x_base + {place})");
        let x = |t: &str, place: &str| format!("qkv[{}]", index(t, place));
        let y = |t: &str, place: &str| match self.entry {
            AttentionKernel::BackwardKv => format!("dout[{t} * out_line + (y_base + {place})]"),
            _ => format!("qkv[{} + part_line]", index(t, place)),
        };
        for i in 0..self.rounds().count() {
            guarded(t, self.rounds().guard(i).as_deref(), |t| {
                let place = format!("place{i}");
                if self.transposed {
                    for (condition, piece) in [("!", &x as &dyn Fn(&str, &str) -> String), ("", &y)] {
                        t.open(format_args!("if {condition}is_y{i}"));
                        for line in 0..ACROSS {
                            let position = format!("min({from} + line{i} + {line}u, params.positions - 1u)");
                            t.line(format_args!("next{i}_{line} = {};", piece(&position, &place)));
                        }
                        t.close();
                    }
                } else {
                    t.line(format_args!("let t{i} = min({from} + line{i}, params.positions - 1u);"));
                    t.line(format_args!("x_next{i} = {};", x(&format!("t{i}"), &place)));
                    t.line(format_args!("y_next{i} = {};", y(&format!("t{i}"), &place)));
                }
            });
        }
        for i in 0..self.start_rounds().count() {
            guarded(t, self.start_rounds().guard(i).as_deref(), |t| {
                let column = self.start_rounds().piece(i);
                t.line(format_args!("starts_next{i} = column_starts(at, {from} + {column});"));
            });
        }
    }

    /// Writes the stores of the loaded pieces to the tiles.
    pub(super) fn fill(&self, t: &mut Text) {
        for i in 0..self.rounds().count() {
            guarded(t, self.rounds().guard(i).as_deref(), |t| {
                if self.transposed { self.fill_turned(t, i) } else { self.fill_piece(t, i) }
            });
        }
        for i in 0..self.start_rounds().count() {
            guarded(t, self.start_rounds().guard(i).as_deref(), |t| {
                let column = self.start_rounds().piece(i);
                t.line(format_args!("score_starts[{column}] = starts_next{i}.x;"));
                t.line(format_args!("slope_starts[{column}] = starts_next{i}.y;"));
            });
        }
    }

    fn fill_piece(&self, t: &mut Text, i: u32) {
        let y_tile = self.units.units_of(self.columns_tile("").elements());
        for (tile, to) in [("x", format!("to{i}")), ("y", format!("to{i} + {y_tile}u"))] {
            t.line(format_args!("let {tile}{i} = {tile}_next{i};"));
            self.units.write_fours(t, "tiles", &to, &["low", "high"].map(|half| format!("{tile}{i}.{half}")));
        }
    }

    fn fill_turned(&self, t: &mut Text, i: u32) {
        let units = |elements: u32| self.units.units_of(elements);
        for line in 0..ACROSS {
            t.line(format_args!("let piece{i}_{line} = next{i}_{line};"));
        }
        for line in 0..ACROSS {
            let to = format!("to{i} + {}u", units(line * self.columns_tile("").stride()));
            self.units.write_fours(t, "tiles", &to, &["low", "high"].map(|half| format!("piece{i}_{line}.{half}")));
        }
        for e in 0..8 {
            let (half, component) = (["low", "high"][e as usize / 4], ["x", "y", "z", "w"][e as usize % 4]);
            let four: Vec<String> = (0..ACROSS).map(|line| format!("piece{i}_{line}.{half}.{component}")).collect();
            t.line(format_args!("let turned{i}_{e} = vec4<f16>({});", four.join(", ")));
            let to = format!("turned_to{i} + {}u", units(e * self.turned_tile("").stride()));
            self.units.write_fours(t, "turned", &to, &[format!("turned{i}_{e}")]);
        }
    }
}
