//! The element types of bindings, each of which is moved by one access, and the text that reads and writes them.

use std::fmt::{self, Display};

use crate::gpu::Elem;
use crate::gpu::kernel::Width;

/// The element type of a binding.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum BindingElement {
    F32,
    Vec4,
    /// Two f32 in a u64; two of these are read as a vec4 by a function of the kernel.
    Pair,
    /// f16, converted to f32 for computation.
    Half,
    /// Four f16.
    Half4,
    /// Eight f16, 16 bytes: a struct of two vec4.
    Half8,
}

impl Display for BindingElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BindingElement::F32 => "f32",
            BindingElement::Vec4 => "vec4<f32>",
            BindingElement::Pair => "u64",
            BindingElement::Half => "f16",
            BindingElement::Half4 => "vec4<f16>",
            BindingElement::Half8 => "Half8",
        })
    }
}

impl BindingElement {
    /// Returns `expr`, an index or a number of scalars, in units of this element.
    pub(super) fn units(self, expr: impl Display) -> String {
        match self {
            BindingElement::F32 | BindingElement::Half => format!("{expr}"),
            BindingElement::Vec4 | BindingElement::Pair | BindingElement::Half4 => format!("({expr}) / 4u"),
            BindingElement::Half8 => format!("({expr}) / 8u"),
        }
    }

    /// Returns the element that a kernel of this width reads and writes at once in a tensor of `elem`, at most 16
    /// bytes.
    pub(super) fn of(elem: Elem, width: Width) -> Self {
        match (elem, width) {
            (Elem::F16, Width::Vec8) => BindingElement::Half8,
            (Elem::F16, Width::Vec4) => BindingElement::Half4,
            (Elem::F16, Width::Scalar) => BindingElement::Half,
            (_, Width::Vec4 | Width::Vec8) => BindingElement::Vec4,
            (_, Width::Scalar) => BindingElement::F32,
        }
    }

    /// Returns whether the element holds f16.
    pub(super) fn half(self) -> bool {
        matches!(self, BindingElement::Half | BindingElement::Half4 | BindingElement::Half8)
    }

    /// Returns the type in which a read value is used: `f32`, or `vec4<f32>`, of which [`BindingElement::Half8`] yields
    /// two.
    pub(super) fn value(self) -> Self {
        if self.width() == 1 { BindingElement::F32 } else { BindingElement::Vec4 }
    }

    /// Returns the corresponding element that is read and written without functions, for other tensors of the same
    /// type.
    pub(super) fn plain(self) -> Self {
        if self == BindingElement::Pair { BindingElement::Vec4 } else { self }
    }

    /// Returns the number of scalars that one read moves.
    pub(super) fn width(self) -> u32 {
        match self {
            BindingElement::F32 | BindingElement::Half => 1,
            BindingElement::Vec4 | BindingElement::Pair | BindingElement::Half4 => 4,
            BindingElement::Half8 => 8,
        }
    }

    /// Returns the statement that sets element `index` of binding `name`.
    pub(super) fn write(self, name: &str, index: impl Display, value: impl Display) -> String {
        match self {
            BindingElement::F32 | BindingElement::Vec4 => format!("{name}[{index}] = {value};"),
            BindingElement::Pair => format!("write_{name}({index}, {value});"),
            BindingElement::Half | BindingElement::Half4 => format!("{name}[{index}] = {self}({value});"),
            BindingElement::Half8 => unreachable!("written by store_wide"),
        }
    }

    /// Returns the expression that reads element `index` of binding `name`.
    pub(super) fn read(self, name: &str, index: impl Display) -> String {
        match self {
            BindingElement::F32 | BindingElement::Vec4 => format!("{name}[{index}]"),
            BindingElement::Pair => format!("read_{name}({index})"),
            BindingElement::Half => format!("f32({name}[{index}])"),
            BindingElement::Half4 => format!("vec4<f32>({name}[{index}])"),
            BindingElement::Half8 => unreachable!("read by store_wide"),
        }
    }
}
