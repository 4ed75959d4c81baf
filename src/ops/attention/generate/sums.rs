//! The step from scores to weights where matrices are opaque. Products go through workgroup memory as f32, invocations
//! turn them into weights there, and weights are loaded as f16 matrices of the next product. All of this stays within a
//! subgroup.

use crate::gpu::wgsl_text::Text;
use crate::ops::matrix_units::{LoadBy, grid};

use super::super::coop::{AttentionKernel, CoopAttention};

/// The shader of these kernels, in addition to those that all attention kernels share.
pub(super) const SHADERS: [&str; 1] = [include_str!("../../../../shaders/attention_sums.wgsl")];

impl CoopAttention {
    pub(super) fn declare_for_sums(&self, t: &mut Text) {
        for (name, value) in [
            ("GRID_N", self.grid_n),
            ("SUMS_STRIDE", self.sums_tile("").stride()),
            ("WEIGHTS_STRIDE", self.weights_tile("").stride()),
        ] {
            t.line(format_args!("const {name} = {value}u;"));
        }
        self.declare(t, &self.sums_tile("sums"), "sum");
        self.declare(t, &self.sums_tile("slopes"), "slope");
        for name in ["weights", "dscores"] {
            t.open(format_args!("fn put_{name}(i: u32, four: vec4<f16>)"));
            self.units.write_four(t, name, "i", "four");
            t.close();
        }
    }

    /// Returns the number of invocations over which a subgroup's work is distributed.
    fn lanes(&self) -> String {
        if self.units.varying { "lanes".to_owned() } else { format!("{}u", self.units.lanes) }
    }

    /// Writes the scores of all columns of a subgroup, in the backward kernels also dout v, and then their weights.
    pub(super) fn weights_by_sums(&self, t: &mut Text, is_cut: bool) {
        let ([tall, across, _], n, y_tile) = (self.matrices(), self.units.native, self.columns_tile("").elements());
        let products = [("r", 0, "p", "sums"), ("s", y_tile, "d", "slopes")];
        for (name, tile, to, sums) in &products[..self.entry.products() as usize] {
            for j in 0..across {
                (0..tall).for_each(|i| t.line(format_args!("var {to}{i}_{j} = MatrixC();")));
                self.multiply_columns(t, (*name, *tile), to, j);
                for i in 0..tall {
                    let at = format!("(subgroup_row + {}u) * SUMS_STRIDE + score_column + {}u", i * n, j * n);
                    self.units.spill_accumulator(t, &format!("{to}{i}_{j}"), sums, at, "SUMS_STRIDE");
                }
            }
        }
        t.line("subgroupBarrier();");
        match self.entry {
            AttentionKernel::Forward => self.forward_sums(t, is_cut),
            _ => {
                let name =
                    if self.entry == AttentionKernel::BackwardQ { "slopes_of_queries" } else { "slopes_of_keys" };
                let lanes = self.lanes();
                t.line(format_args!("{name}(at, subgroup_row, score_column, first_column, {is_cut}, lane, {lanes});"));
            }
        }
    }

    fn forward_sums(&self, t: &mut Text, is_cut: bool) {
        t.line("var grew = false;");
        self.on_rows(t, |row| format!("grew |= weigh(at, {row}, first_column, {is_cut});"));
        t.open("if first_column > 0u && subgroupAny(grew)");
        let ([tall, ..], n) = (self.matrices(), self.units.native);
        for (first, count) in self.chunks() {
            t.line("subgroupBarrier();");
            self.spill_chunk(t, 0, (first, count));
            t.line("subgroupBarrier();");
            t.line(format_args!("rescale(subgroup_row, {}u, lane, {});", count * n, self.lanes()));
            t.line("subgroupBarrier();");
            for (i, j) in grid(tall, count) {
                let at = format!("(subgroup_row + {}u) * SUMS_STRIDE + {}u", i * n, j * n);
                let load = self.units.load(LoadBy::Rows, "C", "sums", at, "SUMS_STRIDE");
                t.line(format_args!("o0_{i}_{} = {load};", first + j));
            }
        }
        t.close();
    }

    /// Returns the chunks of a subgroup's matrices along the head that fit `sums` at a time, as (first, count).
    fn chunks(&self) -> impl Iterator<Item = (u32, u32)> + use<> {
        let [_, most, wide] = self.matrices();
        (0..wide).step_by(most as usize).map(move |first| (first, most.min(wide - first)))
    }

    /// Stores a chunk of a result in the subgroup's part of `sums`.
    fn spill_chunk(&self, t: &mut Text, out: u32, (first, count): (u32, u32)) {
        let ([tall, ..], n) = (self.matrices(), self.units.native);
        for (i, j) in grid(tall, count) {
            let at = format!("(subgroup_row + {}u) * SUMS_STRIDE + score_column + {}u", i * n, j * n);
            self.units.spill_accumulator(t, &format!("o{out}_{i}_{}", first + j), "sums", at, "SUMS_STRIDE");
        }
    }

    /// Stores the results through `sums`.
    pub(super) fn finish_sums(&self, t: &mut Text) {
        let calls: &[&str] = match self.entry {
            AttentionKernel::Forward => &["finish_out(at"],
            AttentionKernel::BackwardQ => &["finish_dqkv(at, 0u, SCALE"],
            AttentionKernel::BackwardKv => &["finish_dqkv(at, 1u, SCALE", "finish_dqkv(at, 2u, 1.0"],
        };
        let (n, head, lanes) = (self.units.native, self.head_size / self.grid_n, self.lanes());
        if self.entry == AttentionKernel::Forward {
            self.on_grid(t, |t| self.on_rows(t, |row| format!("finish_row(at, {row});")));
        }
        for (out, call) in (0..).zip(calls) {
            for (first, count) in self.chunks() {
                t.line("subgroupBarrier();");
                self.on_grid(t, |t| self.spill_chunk(t, out, (first, count)));
                t.line("subgroupBarrier();");
                let to = format!("(subgroup % {}u) * {head}u + {}u", self.grid_n, first * n);
                self.on_grid(t, |t| {
                    t.line(format_args!("{call}, subgroup_row, score_column, {to}, {}u, lane, {lanes});", count * n));
                });
            }
        }
    }
}
