//! wgpt: a portable GPT-2 trainer. Every operator is a WGSL compute shader dispatched through wgpu.
//!
//! Floors, from the lowest: `error` and `units`; `files` and `random`; `gpu`; `ops`; `model`; `cases` (a table of cases per operator, for
//! tests and benches); `formats`; `data`; `train`; `infer` and `measure`; `run`; and in the program `cli`. Each uses only
//! floors below it. `reference` is the f64 meaning of every operator.

#![warn(clippy::expect_used, clippy::unwrap_used)]

#[cfg(test)]
#[path = "../tests/common/driver.rs"]
mod driver;

#[cfg(test)]
#[path = "../tests/common/not_run.rs"]
#[allow(dead_code, reason = "the integration tests use the rest of it")]
mod not_run;

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
pub mod files;
pub mod formats;
pub mod gpu;
pub mod infer;
pub mod measure;
pub mod model;
pub mod ops;
pub mod random;
pub mod reference;
pub mod run;
pub mod train;
pub mod units;
