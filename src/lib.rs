//! wgpt: a portable GPT-2 trainer. Every operator is a WGSL compute shader dispatched through wgpu.
//!
//! Floors, each using only those before it: `error`, `gpu`, `ops`, `model`, `cases` (a table of cases per operator, for tests
//! and benches), `train`, `cli`; beside them `data` and `formats` (files, no GPU) and `reference` (the f64 meaning of every
//! operator).

#[cfg(test)]
#[path = "killpoint_tests.rs"]
mod killpoint;

/// A named place at which a test ends the process as `kill -9` does. In the program there is nothing of it.
macro_rules! kill_point {
    ($name:literal) => {
        #[cfg(test)]
        $crate::killpoint::visit($name);
    };
}
pub(crate) use kill_point;

pub mod cases;
pub mod data;
pub mod error;
pub mod formats;
pub mod gpu;
pub mod model;
pub mod ops;
pub mod reference;
pub mod train;
