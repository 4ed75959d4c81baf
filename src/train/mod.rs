//! Steps, schedules, evaluation, sampling and reporting.

pub mod dataset;
pub mod folder;
pub mod generator;
pub mod measure;
pub mod run;
pub mod schedule;
pub mod settings;
pub mod trainer;
pub mod tune;

pub use dataset::Dataset;
pub use generator::{Generator, Sampling};
pub use run::{Run, Screen};
pub use schedule::Schedule;
pub use settings::Settings;
pub use trainer::{Optimizer, Sizes, Trainer};
