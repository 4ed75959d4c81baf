//! Everything between files and shards: preparation, inspection, broken input, fetching. No GPU, no network but
//! loopback.

mod broken;
mod encoder;
mod fetch;
mod kinds;
mod made;
#[cfg(target_os = "linux")]
mod memory;
mod prepare;
pub mod server;
mod together;
