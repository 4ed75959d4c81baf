//! Steps, schedules, evaluation, sampling and reporting.

pub mod generator;
pub mod schedule;
pub mod trainer;

pub use generator::{Generator, Sampling};
pub use schedule::Schedule;
pub use trainer::{Optimizer, Sizes, Trainer};
