//! Epilogues through workgroup memory, for one matrix of every subgroup at a time: invocations read the sums, apply the
//! epilogue and store the elements that are inside the result.

use super::{
    BindingElement, CoopKernel, CoopMatmul, Text, Tile, Width, component, grid, store, store_wide, workgroup_size,
};

/// Returns the tile for the sums of one matrix of every subgroup.
pub(super) fn sums(coop: &CoopMatmul) -> Tile {
    Tile::sums("sums", coop.grid_m * coop.grid_n * coop.units.edge, coop.units.edge)
}

impl CoopKernel {
    /// Writes the epilogue of all sums.
    pub(super) fn finish_sums(&self, t: &mut Text) {
        let ((rows, columns), e) = (self.matrices(), self.coop.units.edge);
        for (i, j) in grid(rows, columns) {
            self.on_grid(t, |t| self.spill(t, i, j));
            t.line("workgroupBarrier();");
            let at = "first_column";
            t.line(format_args!("finish(out_start, first_row + {}u, {at} + {}u, thread);", i * e, j * e));
            if (i, j) != (rows - 1, columns - 1) {
                t.line("workgroupBarrier();");
            }
        }
    }

    /// Spills the subgroup's matrix (i, j) to its position in the tile of sums.
    fn spill(&self, t: &mut Text, i: u32, j: u32) {
        let (units, e, n, stride) = (self.units(), self.units().edge, self.units().native, sums(&self.coop).stride());
        let blocks = units.blocks();
        for (y, x) in grid(blocks, blocks) {
            let name = format!("c{}_{}", i * blocks + y, j * blocks + x);
            let at = format!("subgroup * {}u + {}u", e * stride, y * n * stride + x * n);
            units.spill_accumulator(t, &name, "sums", at, format_args!("{stride}u"));
        }
    }

    /// Writes `finish(start, row, column, thread)`, which stores the matrices in the tile of sums. The matrix of the
    /// first subgroup belongs at (row, column) of the result.
    pub(super) fn finish_function(&self, t: &mut Text, out: BindingElement) {
        let Self { spec, coop } = self;
        let (units, e, stride, piece) = (coop.units, coop.units.edge, sums(coop).stride(), self.piece());
        let (pieces, threads) = (coop.grid_m * coop.grid_n * e * e / piece, workgroup_size(spec));
        t.open("fn finish(start: u32, first_row: u32, first_column: u32, thread: u32)");
        // a constant number of iterations, because drivers emit the body of a loop until `piece < pieces` twice, with
        // branches
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
