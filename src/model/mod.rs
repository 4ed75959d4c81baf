//! GPT-2: its tensors, their initial values, and the order of operators.

pub mod activations;
pub mod backward;
pub mod config;
pub mod flat;
pub mod forward;
pub mod init;
pub mod params;
pub mod place;
pub mod tensors;

pub use activations::{Activations, BackwardBuffers, Recompute};
pub use config::Config;
pub use params::{PARAMS, Param, Weights};
pub use tensors::Params;
