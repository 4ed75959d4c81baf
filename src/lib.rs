//! wgpt: a portable GPT-2 trainer. Every operator is a WGSL compute shader dispatched through wgpu.
//!
//! Floors, each using only those before it: `error`, `gpu`, `ops`, `model`, `train`, `cli`; beside them `data` and
//! `formats` (files, no GPU) and `reference` (the f64 meaning of every operator, for tests and benches).

pub mod data;
pub mod error;
pub mod formats;
pub mod gpu;
pub mod model;
pub mod ops;
pub mod reference;
pub mod train;
