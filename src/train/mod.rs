//! Training steps, the optimizer, schedules and the settings of a run.

pub mod collective;
pub mod dataset;
pub mod optimizer;
pub mod ranks;
pub mod schedule;
pub mod settings;
pub mod snapshot;
pub mod trainer;

pub use dataset::Dataset;
pub use optimizer::Optimizer;
pub use schedule::Schedule;
pub use settings::Settings;
pub use snapshot::Snapshot;
pub use trainer::{Sizes, Trainer, TrainerOptions};
