//! The program from outside: its output, its files and its exit codes. It is started through tools/run, as users start
//! it.

mod answers;
mod bad_input;
#[cfg(unix)]
mod changed_data;
mod data_files;
#[cfg(unix)]
mod devices;
#[cfg(target_os = "linux")]
mod disk;
#[cfg(unix)]
mod longer;
#[cfg(unix)]
mod messages;
mod mixed;
mod models;
mod named_data;
#[cfg(unix)]
mod names;
#[cfg(target_os = "linux")]
mod no_files;
#[cfg(target_os = "linux")]
mod outputs;
mod plan;
mod recipes;
mod report;
#[cfg(unix)]
mod resume;
mod runs;
mod shader;
mod speed;
mod stories;
#[cfg(unix)]
mod texts;
mod tokenizers;
#[cfg(unix)]
mod tutorial;

use crate::common::program::*;
use crate::data::server;
