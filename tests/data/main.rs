//! Everything between files and shards: preparation, inspection, broken input, fetching. No GPU, no network but
//! loopback.

mod broken;
mod encoder;
mod fetch;
mod made;
mod prepare;
mod server;
