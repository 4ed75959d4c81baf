//! The integration tests, in one program: kernels are compiled once for all of them, and both cores are busy to the
//! end. Tests that assert a duration, or that neighbours would disturb, are in `tests/timing`.
//!
//! ```text
//! cargo test --release --test it ops::                    one module
//! cargo test --release --test it ops::cases::layernorm    one test
//! ```

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/driver.rs"]
mod driver;

mod cli;
mod data;
mod devices;
mod eval;
mod formats;
mod generate;
mod house;
mod isa;
mod measure;
mod memory;
mod model;
#[cfg(target_os = "linux")]
mod mpi;
#[cfg(unix)]
mod never_loses;
mod ops;
mod ranks;
mod reference;
mod translate;
#[cfg(target_os = "linux")]
mod validation;
