//! Conversion of gradients to and from 16 bits, in which devices send them to each other.

use crate::error::{Error, Fault, Result};
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Elem, Immediates, KernelId, OpPass, Pass, Tensor};

use super::{ELEMENTWISE_WORKGROUP, Operator, workgroups};

/// The pass that [`narrow`] records.
pub const NARROW: OpPass = OpPass::new("wire", "narrow");
/// The pass that [`widen`] records.
pub const WIDEN: OpPass = OpPass::new("wire", "widen");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator = Operator { name: "wire", passes: &[NARROW, WIDEN], kernels, tried: super::none_tried };

/// Values that an invocation converts.
const EACH: usize = 4;

/// Factor by which the gradients of a mean loss are multiplied for f16, which then holds values up to 32, with full
/// precision from 3e-8 on and in steps of 3e-11 below.
pub const SCALE: f32 = 2048.0;

crate::shared_struct! {
    struct WireImmediates {
        count: u32,
        scale: f32,
    }
}

/// A type of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// The upper half of an f32: the range of f32, 8 bits of precision.
    Bf16,
    /// IEEE's half: 11 bits of precision, to 65504.
    F16,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 2] = [Self::Bf16, Self::F16];

    /// Returns the format's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        &self.variant()[1..]
    }

    /// Returns the suffix of its kernels' names.
    fn variant(self) -> &'static str {
        match self {
            Self::Bf16 => ".bf16",
            Self::F16 => ".f16",
        }
    }

    fn constants(self) -> &'static str {
        match self {
            Self::Bf16 => "const MANTISSA = 7u;\nconst BIAS = 127u;\nconst TINY_STEPS = 0.0;\nconst TINY_STEP = 0.0;\n",
            Self::F16 => {
                "const MANTISSA = 10u;\nconst BIAS = 15u;\nconst TINY_STEPS = 16777216.0;\nconst TINY_STEP = 1.0 / TINY_STEPS;\n"
            }
        }
    }
}

fn kernel(of: OpPass, format: Format) -> KernelId {
    let body = [include_str!("../../shaders/shared/step.wgsl"), include_str!("../../shaders/wire.wgsl")];
    KernelId::shader(of, of.pass, Width::Vec4, &body)
        .with_text(format.constants())
        .variant(format.variant())
        .set("WORKGROUP", ELEMENTWISE_WORKGROUP)
}

/// Returns the kernels that an adapter may be given.
#[must_use]
pub fn kernels(_caps: &Caps) -> Vec<KernelId> {
    Format::ALL.iter().flat_map(|&format| [NARROW, WIDEN].map(|of| kernel(of, format))).collect()
}

/// Tensors of [`narrow`] and [`widen`].
#[derive(Debug)]
pub struct Wire<'a> {
    /// Type of the packed values.
    pub format: Format,
    /// (1, N) f32, N a multiple of 4.
    pub wide: &'a Tensor,
    /// (1, N / 2) u32, two values in each, the first in the lower half.
    pub packed: &'a Tensor,
    /// Factor by which values are multiplied: a power of two.
    pub scale: f32,
    /// The [`crate::ops::stepcontrol::State`], whose loss scale is removed from packed values.
    pub state: &'a Tensor,
}

impl Wire<'_> {
    fn record(&self, pass: &mut Pass, of: OpPass) -> Result<()> {
        let place = of.to_string();
        let n = self.wide.len();
        self.wide.check_shape(&place, "wide", 1, n)?;
        self.wide.check_elem(&place, "wide", Elem::F32)?;
        self.packed.check_shape(&place, "packed", 1, n / 2)?;
        self.packed.check_elem(&place, "packed", Elem::U32)?;
        if !n.is_multiple_of(EACH) {
            let fault = Fault::at(place, format!("`wide` has {n} elements"));
            return Err(Error::shape(fault.expected(format!("a multiple of {EACH}"))));
        }
        let count = n / EACH;
        let tensors =
            if of == NARROW { [self.wide, self.state, self.packed] } else { [self.packed, self.state, self.wide] };
        pass.dispatch(&Dispatch {
            kernel: &kernel(of, self.format),
            tensors: &tensors,
            immediates: Immediates::of(&WireImmediates { count: count as u32, scale: self.scale }),
            groups: workgroups(count, ELEMENTWISE_WORKGROUP),
            flops: 0,
            bytes: self.wide.bytes() + self.packed.bytes(),
        })
    }
}

/// `packed = wide · scale / loss scale`, rounded to the nearest, ties to even. Overwrites `packed`. Values beyond the
/// type's range become infinite. Values below bf16's smallest normal number become zero.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn narrow(pass: &mut Pass, io: &Wire) -> Result<()> {
    io.record(pass, NARROW)
}

/// `wide = packed · loss scale / scale`, which is exact where it is a normal f32. Overwrites `wide`.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn widen(pass: &mut Pass, io: &Wire) -> Result<()> {
    io.record(pass, WIDEN)
}
