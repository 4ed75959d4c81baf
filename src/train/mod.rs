//! Steps, schedules, evaluation, sampling and reporting.

pub mod checkpoint;
mod clock;
pub mod dataset;
pub mod evaluate;
pub mod folder;
pub mod generator;
pub mod lock;
pub mod measure;
pub mod plan;
pub mod report;
pub mod run;
pub mod sampler;
pub mod schedule;
pub mod session;
pub mod settings;
pub mod snapshot;
pub mod tensorboard;
pub mod trainer;
pub mod tune;
pub mod watchdog;

pub use dataset::Dataset;
pub use evaluate::Evaluator;
pub use generator::Generator;
pub use run::{Run, Screen};
pub use sampler::Sampling;
pub use schedule::Schedule;
pub use session::Session;
pub use settings::Settings;
pub use snapshot::Snapshot;
pub use trainer::{Optimizer, Sizes, Trainer};
