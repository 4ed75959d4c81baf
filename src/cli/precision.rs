//! `--precision`, which several commands take.

use clap::ValueEnum;

use wgpt::error::Result;
use wgpt::gpu::{self, Elem};
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
    /// The element type that is meant on an adapter: `auto` is f16 on a GPU with matrix units that the kernels can use.
    pub fn resolve(self, device: Option<&str>) -> Result<Elem> {
        match self {
            Self::F32 => Ok(Elem::F32),
            Self::F16 => Ok(Elem::F16),
            Self::Auto => {
                let caps = gpu::adapter::find(device)?;
                let offered = caps.f16 && !caps.software && matmul::choose::without_matrices(&caps).is_none();
                Ok(if offered { Elem::F16 } else { Elem::F32 })
            }
        }
    }
}
