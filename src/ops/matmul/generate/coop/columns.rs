//! Sums of the columns of `a`, which are a bias's gradient. The workgroups with the first columns of the result compute
//! them along with the product.

use super::{ACROSS, CoopKernel, CoopMatmul, Text, Tile, component, divided, grid, guarded, workgroup_size};

/// Returns the tile for the column sums of all invocations. Its lines run along the result's rows; an invocation has a
/// piece of `piece` elements.
pub(super) fn column_sums(coop: &CoopMatmul, piece: u32, transposed: bool) -> Tile {
    let threads = coop.grid_m * coop.grid_n * coop.units.lanes;
    let lines = if transposed { coop.tile_k / ACROSS } else { threads / (coop.tile_m / piece) };
    Tile::sums("sums", lines, coop.tile_m)
}

impl CoopKernel {
    pub(super) fn column_sums_tile(&self) -> Tile {
        let [a, _] = self.operands();
        column_sums(&self.coop, self.piece(), self.is_transposed(a))
    }

    /// Writes the addition of this invocation's pieces of `a` to its column sums. All its pieces have the same columns.
    /// Only the workgroups with the first columns of the result do this.
    pub(super) fn add_columns(&self, t: &mut Text) {
        let [a, _] = self.operands();
        t.open("if first_column == 0u");
        for (i, j) in grid(self.rounds(a).count(), self.lines_of_piece(a)) {
            for half in self.halves() {
                let part = half.replace('_', ".");
                t.line(format_args!("column_sum{half} += vec4<f32>(a_next{i}{}{part});", self.nth(a, j)));
            }
        }
        t.close();
    }

    /// Writes the addition of all invocations' column sums, line after line, and stores the totals.
    pub(super) fn column_sums(&self, t: &mut Text) {
        let (units, piece, [a, _]) = (self.units(), self.piece(), self.operands());
        let (tile, across) = (self.column_sums_tile(), self.coop.tile_m / piece);
        t.open("if first_column == 0u");
        let (line, at, some) = if self.is_transposed(a) {
            (format!("a_line0 / {ACROSS}u"), "a_at0".to_owned(), self.piece_of_round(a, 0).1)
        } else {
            let (line, in_line) = divided("thread", across, workgroup_size(&self.spec));
            (line, format!("({in_line}) * {piece}u"), None)
        };
        guarded(t, some.as_deref(), |t| {
            t.line(format_args!("let own = ({line}) * {}u + {at};", tile.stride()));
            for (h, half) in (0..).zip(self.halves()) {
                units.write_four(t, "sums", &format!("own + {}u", 4 * h), &format!("column_sum{half}"));
            }
        });
        t.line("workgroupBarrier();");
        t.line("let summed = first_row + thread * 4u;");
        t.open(format_args!("if thread < {}u && summed < params.m", self.coop.tile_m / 4));
        t.line("var four = vec4<f32>();");
        for line in 0..tile.lines {
            let at = format!("thread * 4u + {}u", line * tile.stride());
            t.line(format_args!("four += {};", units.read_four("sums", &at)));
        }
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
        if !self.is_direct() {
            t.line("// `sums` is free again");
            t.line("workgroupBarrier();");
        }
        t.close();
    }
}
