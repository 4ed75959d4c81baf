//! What the test programs share.
#![allow(dead_code, reason = "no test program uses all of it")]

pub mod fetched;
pub mod generator;
pub mod gpu_check;
pub mod not_run;
pub mod program;
pub mod training;
pub mod tuned;
