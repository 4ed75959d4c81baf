//! `--precision`, which several commands take.

use clap::ValueEnum;

use wgpt::error::{Error, Result};
use wgpt::gpu::{self, Caps, Elem};
use wgpt::ops::matmul;

/// What matrix operands are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// 32-bit floats throughout
    F32,
    /// Mixed: 16-bit floats for matrix operands and stored activations, on matrix units where the adapter has them
    F16,
    /// f16 on GPUs with matrix units, else f32
    Auto,
}

impl Precision {
    /// The element type that is meant on the adapter that a run takes.
    pub fn resolve(self, device: Option<&str>) -> Result<Elem> {
        match self {
            Self::F32 => Ok(Elem::F32),
            Self::F16 => Ok(Elem::F16),
            Self::Auto => Ok(self.on(&gpu::adapter::find(device)?)),
        }
    }

    /// The same on a known adapter: `auto` is f16 on a GPU with matrix units that the kernels can use.
    pub fn on(self, caps: &Caps) -> Elem {
        let offered = caps.f16 && !caps.software && matmul::choose::without_matrices(caps).is_none();
        if self == Self::F16 || self == Self::Auto && offered { Elem::F16 } else { Elem::F32 }
    }

    /// True if f32 is asked for, or may come of it: such runs compute with the widest vectors of a software adapter,
    /// which has cooperative matrices, that f16 wants, at its own width only.
    pub fn may_be_f32(self) -> bool {
        self != Self::F16
    }
}

/// That an open adapter stores this element type.
pub fn check(elem: Elem, caps: &Caps) -> Result<()> {
    if elem == Elem::F16 && !caps.f16 {
        return Err(Error::device(format!(
            "--precision: {} has no f16, expected an adapter that has; try --precision f32",
            caps.name
        )));
    }
    Ok(())
}
