//! The operands of kernels with tiles in workgroup memory.

use super::{Product, Text, component};

/// An operand of a kernel with tiles in workgroup memory.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    /// `a` or `b`.
    pub(super) name: &'static str,
    /// The immediate that bounds the operand in addition to K: `m` or `n`.
    extent: &'static str,
    /// Length of the tile along that extent.
    pub(super) tile: u32,
    /// Whether the operand is stored as (extent, K); otherwise it is (K, extent).
    pub(super) along_k: bool,
}

impl Operand {
    /// Returns `a` and `b` of a product, whose tiles have lengths `tile_m` and `tile_n`.
    pub(super) fn both(product: Product, tile_m: u32, tile_n: u32) -> [Self; 2] {
        [
            Self { name: "a", extent: "m", tile: tile_m, along_k: product != Product::BackwardWeight },
            Self { name: "b", extent: "n", tile: tile_n, along_k: product == Product::Forward },
        ]
    }

    /// Returns the immediates that bound the lines in memory, and the elements of a line.
    pub(super) fn bounds(self) -> [&'static str; 2] {
        if self.along_k { [self.extent, "k"] } else { ["k", self.extent] }
    }

    /// Returns the index of the element at (`line`, `at`) in memory.
    pub(super) fn element(self) -> String {
        format!("params.{0}_offset + line * params.{0}_stride + at", self.name)
    }

    /// Returns the name of the tile's first position along the extent.
    pub(super) fn first(self) -> &'static str {
        if self.name == "a" { "first_row" } else { "first_column" }
    }

    /// Reads four neighbours into `four` one by one, if they are inside the matrix.
    pub(super) fn read_scalars(self, t: &mut Text, read: impl Fn(String) -> String) {
        t.line(format_args!("let start = {};", self.element()));
        for i in 0..4 {
            let value = read(format!("start + {i}u"));
            t.line(format_args!("if at + {i}u < params.{} {{ four.{} = {value}; }}", self.bounds()[1], component(i)));
        }
    }
}
