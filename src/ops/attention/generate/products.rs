//! The products of matrices.

use crate::gpu::wgsl_text::Text;
use crate::ops::matrix_units::LoadBy;

use super::super::coop::{AttentionKernel, CoopAttention};

impl CoopAttention {
    /// Multiplies the rows by column matrix j of a tile and adds to the sums `{to}{i}_{j}`, which are initialised
    /// already.
    pub(super) fn multiply_columns(&self, t: &mut Text, (name, tile): (&str, u32), to: &str, j: u32) {
        let ([tall, ..], n, stride) = (self.matrices(), self.units.native, self.columns_tile("").stride());
        for k in 0..self.head_size / n {
            let at = format!("columns_base + {}u", self.units.units_of(tile + j * n * stride + k * n));
            let load = self.units.load_from_unit(LoadBy::Columns, "B", "tiles", at, self.units.index("TILE_STRIDE"));
            t.line(format_args!("let {to}{j}_by{k} = {load};"));
            for i in 0..tall {
                t.line(format_args!("{to}{i}_{j} = coopMultiplyAdd({name}{i}_{k}, {to}{j}_by{k}, {to}{i}_{j});"));
            }
        }
    }

    /// Returns the stride from one row of weights to the next, in units of the tile.
    pub(super) fn weight_stride(&self) -> String {
        format!("{}u", self.units.units_of(self.weights_tile("").stride()))
    }

    /// Adds the products of weights and columns to the results.
    pub(super) fn add_products(&self, t: &mut Text) {
        let ([tall, _, wide], n, units) = (self.matrices(), self.units.native, self.units);
        let (x_tile, y_tile) = (0, self.columns_tile("").elements());
        let products: &[(&str, u32)] = match self.entry {
            AttentionKernel::Forward => &[("weights", y_tile)],
            AttentionKernel::BackwardQ => &[("dscores", x_tile)],
            AttentionKernel::BackwardKv => &[("dscores", x_tile), ("weights", y_tile)],
        };
        let turned = self.turned_tile("");
        let [stride, tile_stride] = [self.weights_tile(""), self.columns_tile("")].map(|tile| tile.stride());
        let all = (0..self.columns / n).flat_map(|k| products.iter().enumerate().map(move |product| (k, product)));
        for (k, (o, (from, tile))) in all {
            for i in 0..tall {
                let at = format!("weights_base + {}u", units.units_of(i * n * stride + k * n));
                let load = units.load_from_unit(LoadBy::Rows, "A", from, at, self.weight_stride());
                t.line(format_args!("let a{o}_{i}_{k} = {load};"));
            }
            for j in 0..wide {
                let load = if self.transposed {
                    let at = format!(
                        "turned_base + {}u",
                        units.units_of(o as u32 * turned.elements() + j * n * turned.stride() + k * n)
                    );
                    units.load_from_unit(
                        LoadBy::Columns,
                        "B",
                        "turned",
                        at,
                        format_args!("{}u", units.units_of(turned.stride())),
                    )
                } else {
                    let at = format!("head_base + {}u", units.units_of(tile + k * n * tile_stride + j * n));
                    units.load_from_unit(LoadBy::Rows, "B", "tiles", at, units.index("TILE_STRIDE"))
                };
                t.line(format_args!("let b{o}_{j}_{k} = {load};"));
                for i in 0..tall {
                    t.line(format_args!("o{o}_{i}_{j} = coopMultiplyAdd(a{o}_{i}_{k}, b{o}_{j}_{k}, o{o}_{i}_{j});"));
                }
            }
        }
    }
}
