//! Steps, schedules, evaluation, sampling and reporting.

pub mod checkpoint;
mod clock;
pub mod dataset;
pub mod folder;
pub mod generator;
pub mod lock;
pub mod measure;
pub mod run;
pub mod schedule;
pub mod settings;
pub mod snapshot;
pub mod trainer;
pub mod tune;

pub use dataset::Dataset;
pub use generator::{Generator, Sampling};
pub use run::{Run, Screen};
pub use schedule::Schedule;
pub use settings::Settings;
pub use snapshot::Snapshot;
pub use trainer::{Optimizer, Sizes, Trainer};
