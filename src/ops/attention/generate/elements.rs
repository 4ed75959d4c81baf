//! The step from scores to weights where a kernel can compute with the elements of matrices.
//!
//! A matrix of scores never leaves registers as f32. It is initialised with minus the references of its rows or
//! columns, a mask is added in blocks on the diagonal, and functions of elements turn it into weights. Weights go
//! through workgroup memory as f16, to be loaded as operands. The largest score of a row is needed only in the first
//! block of the forward kernel and in blocks with a score that exceeds its row's reference by too much. `spilled`, a
//! tile in workgroup memory, then holds the scores for the search.
//!
//! A row or column has one reference. A load with a stride of 0 makes a matrix of references, in which all columns, or
//! all rows, are equal.

use crate::gpu::wgsl_text::Text;
use crate::ops::matrix_units::{LoadBy, grid, store};

use super::super::coop::{AttentionKernel, CoopAttention};

/// The shaders of these kernels, in addition to those that all attention kernels share.
pub(super) const SHADERS: [&str; 2] = [
    include_str!("../../../../shaders/shared/matrices.wgsl"),
    include_str!("../../../../shaders/attention_elements.wgsl"),
];

impl CoopAttention {
    pub(super) fn declare_for_elements(&self, t: &mut Text) {
        for tile in [self.spill_tile("spilled"), self.mask_tile("mask")] {
            t.line(format_args!("const {}_STRIDE = {}u;", tile.name.to_uppercase(), tile.stride()));
            self.declare(t, &tile, tile.name);
        }
        if self.transposed {
            self.units.declare(t, &self.turned("turned"));
        }
        t.line(format_args!("alias MatrixH = coop_mat{0}x{0}<f16, C>;", self.units.native));
    }

    /// Returns the load of the initial matrix of scores or slopes for rows i and columns j.
    fn load_starts(&self, array: &str, i: u32, j: u32) -> String {
        let n = self.units.native;
        match self.entry {
            // equal rows
            AttentionKernel::BackwardKv => format!("coopLoadT<MatrixC>(&{array}[score_column + {}u], 0u)", j * n),
            // equal columns
            _ => format!("coopLoad<MatrixC>(&{array}[subgroup_row + {}u], 0u)", i * n),
        }
    }

    /// Adds the mask for column matrix j, which hides columns that a row does not see.
    fn hide(&self, t: &mut Text, j: u32) {
        let ([tall, ..], n) = (self.matrices(), self.units.native);
        for i in 0..tall {
            let at = self.units.index(format!("mask_column(beyond + {})", (j * n) as i32 - (i * n) as i32));
            let load = self.units.load_from_unit(LoadBy::Rows, "C", "mask", at, self.units.index("MASK_STRIDE"));
            t.line(format_args!("p{i}_{j} = p{i}_{j} + {load};"));
        }
    }

    /// Stores a matrix that is an operand of the next product.
    fn store_half(&self, t: &mut Text, from: &str, to: &str, (i, j): (u32, u32)) {
        let n = self.units.native;
        t.line(format_args!("let half_{from} = to_half({from});"));
        let at = format!("weights_to + {}u", self.units.units_of(i * n * self.weights_tile("").stride() + j * n));
        store(t, &format!("half_{from}"), to, &at, &self.weight_stride());
    }

    /// Computes the weights and dscores of the backward kernels, one matrix of columns after the other.
    pub(super) fn backward_elements(&self, t: &mut Text, is_cut: bool) {
        (0..self.matrices()[1]).for_each(|j| self.backward_matrix(t, j, is_cut));
    }

    fn backward_matrix(&self, t: &mut Text, j: u32, is_cut: bool) {
        let ([tall, ..], y_tile) = (self.matrices(), self.columns_tile("").elements());
        for i in 0..tall {
            t.line(format_args!("var p{i}_{j} = {};", self.load_starts("score_starts", i, j)));
        }
        self.multiply_columns(t, ("r", 0), "p", j);
        if is_cut {
            self.hide(t, j);
        }
        for i in 0..tall {
            t.line(format_args!("var d{i}_{j} = {};", self.load_starts("slope_starts", i, j)));
        }
        self.multiply_columns(t, ("s", y_tile), "d", j);
        for i in 0..tall {
            t.line(format_args!("let w{i}_{j} = known_weights_of(p{i}_{j});"));
            if self.entry == AttentionKernel::BackwardKv {
                self.store_half(t, &format!("w{i}_{j}"), "weights", (i, j));
            }
            t.line(format_args!("let slopes{i}_{j} = times(w{i}_{j}, d{i}_{j});"));
            self.store_half(t, &format!("slopes{i}_{j}"), "dscores", (i, j));
        }
    }

    /// Returns the index at which the matrix of rows i is spilled, and its stride.
    fn spill_at(&self, i: u32) -> (String, String) {
        let stride = self.units.units_of(self.spill_tile("").stride());
        (format!("subgroup_row * {stride}u + {}u", i * self.units.native * stride), format!("{stride}u"))
    }

    pub(super) fn forward_elements(&self, t: &mut Text, is_cut: bool) {
        let [tall, across, wide] = self.matrices();
        for (i, j) in grid(tall, across) {
            t.line(format_args!("var p{i}_{j} = {};", self.load_starts("score_starts", i, j)));
        }
        for j in 0..across {
            self.multiply_columns(t, ("r", 0), "p", j);
        }
        if is_cut {
            (0..across).for_each(|j| self.hide(t, j));
        }
        for i in 0..tall {
            let most = (1..across).fold(format!("p{i}_0"), |most, j| format!("larger_of({most}, p{i}_{j})"));
            t.line(format_args!("let most{i} = {most};"));
        }
        let above = (1..tall).fold("largest(most0)".to_owned(), |above, i| format!("max({above}, largest(most{i}))"));
        t.line(format_args!("let above = {above};"));
        t.open("if first_column == 0u || subgroupAny(above > LAZY_GROWTH * INVERSE_SCALE)");
        for i in 0..tall {
            let (at, stride) = self.spill_at(i);
            store(t, &format!("most{i}"), "spilled", &at, &stride);
        }
        t.line("subgroupBarrier();");
        self.on_rows(t, |row| format!("grow({row}, first_column == 0u);"));
        t.line("subgroupBarrier();");
        for i in 0..tall {
            t.line(format_args!("let growth{i} = {};", self.load_starts("growths", i, 0)));
            for j in 0..across {
                t.line(format_args!("p{i}_{j} = p{i}_{j} - growth{i};"));
            }
        }
        t.open("if first_column > 0u");
        for i in 0..tall {
            t.line(format_args!("let factor{i} = factors_of(growth{i});"));
            for j in 0..wide {
                t.line(format_args!("o0_{i}_{j} = times(o0_{i}_{j}, factor{i});"));
            }
            t.line(format_args!("total{i} = times(total{i}, factor{i});"));
        }
        t.close();
        t.close();
        for (i, j) in grid(tall, across) {
            t.line(format_args!("let w{i}_{j} = weights_of(p{i}_{j});"));
            t.line(format_args!("total{i} = total{i} + w{i}_{j};"));
            self.store_half(t, &format!("w{i}_{j}"), "weights", (i, j));
        }
    }

    /// Stores the results through the tiles.
    pub(super) fn finish_elements(&self, t: &mut Text) {
        let ([tall, _, wide], n, portion) = (self.matrices(), self.units.native, self.portion());
        if self.entry == AttentionKernel::Forward {
            self.on_grid(t, |t| {
                for i in 0..tall {
                    let (at, stride) = self.spill_at(i);
                    store(t, &format!("total{i}"), "spilled", &at, &stride);
                }
            });
            t.line("subgroupBarrier();");
            self.on_grid(t, |t| self.on_rows(t, |row| format!("finish_row(at, {row});")));
            t.line("subgroupBarrier();");
            self.on_grid(t, |t| {
                for i in 0..tall {
                    t.line(format_args!("let inverse{i} = {};", self.load_starts("growths", i, 0)));
                    for j in 0..wide {
                        t.line(format_args!("o0_{i}_{j} = times(o0_{i}_{j}, inverse{i});"));
                    }
                }
            });
        }
        for start in (0..self.rows).step_by(portion as usize) {
            self.on_portion(t, start, |t, i, row| {
                for (o, j) in grid(self.entry.outs(), wide) {
                    // dq and dk have not been scaled yet
                    let scale = if self.entry == AttentionKernel::Forward || o == 1 { "" } else { " * SCALE" };
                    let name = format!("result{o}_{i}_{j}_{start}");
                    t.line(format_args!("let {name} = to_half(o{o}_{i}_{j}{scale});"));
                    let at = self.units.index(format!("{row} * TILE_STRIDE + {}u", j * n));
                    let tile = self.units.units_of(o * self.columns_tile("").elements());
                    let at = format!("head_base + {at} + {tile}u");
                    store(t, &name, "tiles", &at, &self.units.index("TILE_STRIDE"));
                }
            });
            t.line("workgroupBarrier();");
            match self.entry {
                AttentionKernel::Forward => t.line(format_args!("finish_out(at, {start}u, thread);")),
                AttentionKernel::BackwardQ => t.line(format_args!("finish_dqkv(at, {start}u, 0u, 0u, thread);")),
                AttentionKernel::BackwardKv => {
                    t.line(format_args!("finish_dqkv(at, {start}u, 1u, 0u, thread);"));
                    t.line(format_args!("finish_dqkv(at, {start}u, 2u, COLUMNS, thread);"));
                }
            }
            if start + portion < self.rows {
                t.line("workgroupBarrier();");
            }
        }
    }
}
