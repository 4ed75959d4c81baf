//! GPT-2: which tensors exist, how they start, and the order of operators.

pub mod config;
pub mod init;
pub mod params;

pub use config::Config;
pub use params::{PARAMS, Param, Weights};
