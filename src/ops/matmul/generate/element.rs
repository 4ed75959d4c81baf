//! The element types of bindings: what one access moves, and how it is read and written.

use std::fmt::{self, Display};

use crate::gpu::Elem;
use crate::gpu::kernel::Width;

/// The element type of a binding.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Element {
    F32,
    Vec4,
    /// Two f32 in a u64; read as vec4 by a function of the kernel.
    Pair,
    /// f16, computed with as f32.
    Half,
    /// Four of them.
    Half4,
    /// Eight of them, 16 bytes: a struct of two vec4.
    Half8,
}

impl Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Element::F32 => "f32",
            Element::Vec4 => "vec4<f32>",
            Element::Pair => "u64",
            Element::Half => "f16",
            Element::Half4 => "vec4<f16>",
            Element::Half8 => "Half8",
        })
    }
}

impl Element {
    /// `expr`, a count of f32, in the units that one read moves.
    pub(super) fn units(self, expr: impl Display) -> String {
        match self {
            Element::F32 | Element::Half => format!("{expr}"),
            Element::Vec4 | Element::Pair | Element::Half4 => format!("({expr}) / 4u"),
            Element::Half8 => format!("({expr}) / 8u"),
        }
    }

    /// The element of a tensor: what a kernel of this width reads and writes at once, at most 16 bytes.
    pub(super) fn of(elem: Elem, width: Width) -> Self {
        match (elem, width) {
            (Elem::F16, Width::Vec8) => Element::Half8,
            (Elem::F16, Width::Vec4) => Element::Half4,
            (Elem::F16, Width::Scalar) => Element::Half,
            (_, Width::Vec4 | Width::Vec8) => Element::Vec4,
            (_, Width::Scalar) => Element::F32,
        }
    }

    /// True if it holds f16.
    pub(super) fn half(self) -> bool {
        matches!(self, Element::Half | Element::Half4 | Element::Half8)
    }

    /// What one read brings to compute with: `f32`, or `vec4<f32>`, of which [`Element::Half8`] brings two.
    pub(super) fn value(self) -> Self {
        if self.width() == 1 { Element::F32 } else { Element::Vec4 }
    }

    /// The element of another tensor of the same type that is read and written without functions.
    pub(super) fn plain(self) -> Self {
        if self == Element::Pair { Element::Vec4 } else { self }
    }

    /// How many f32 one read moves.
    pub(super) fn width(self) -> u32 {
        match self {
            Element::F32 | Element::Half => 1,
            Element::Vec4 | Element::Pair | Element::Half4 => 4,
            Element::Half8 => 8,
        }
    }

    /// The statement that sets element `index` of binding `name`.
    pub(super) fn write(self, name: &str, index: impl Display, value: impl Display) -> String {
        match self {
            Element::F32 | Element::Vec4 => format!("{name}[{index}] = {value};"),
            Element::Pair => format!("write_{name}({index}, {value});"),
            Element::Half | Element::Half4 => format!("{name}[{index}] = {self}({value});"),
            Element::Half8 => unreachable!("written by store_wide"),
        }
    }

    /// Element `index` of binding `name`.
    pub(super) fn read(self, name: &str, index: impl Display) -> String {
        match self {
            Element::F32 | Element::Vec4 => format!("{name}[{index}]"),
            Element::Pair => format!("read_{name}({index})"),
            Element::Half => format!("f32({name}[{index}])"),
            Element::Half4 => format!("vec4<f32>({name}[{index}])"),
            Element::Half8 => unreachable!("read by store_wide"),
        }
    }
}
