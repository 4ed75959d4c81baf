//! A training run: its folder, records, checkpoints and report page, and how it handles signals and lost devices.

pub mod checkpoint;
mod clock;
pub mod contents;
pub mod data_files;
pub mod folder;
pub mod follow;
pub mod home;
pub mod inspect;
pub mod lock;
pub mod model;
pub mod orders;
mod phase;
mod record;
pub mod records;
pub mod report;
pub mod session;
pub mod steps;
pub mod team;
pub mod tensorboard;
pub mod watchdog;

pub use phase::{CurrentPhase, Phase, PhaseGuard};
pub use session::Session;
pub use steps::{Run, Screen};
