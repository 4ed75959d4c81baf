//! Files in and out: no GPU, no training.
//!
//! `hf` is the door: folders in the layout of Hugging Face's GPT-2. Below it `hf_config` (config.json), `hf_tensors`
//! (which tensor is called what, and lies how), `safetensors_file` (a writer that never holds more than one tensor) and
//! `atomic` (files that are either whole or not there). `checkpoint` does for folders what `atomic` does for files, through
//! `disk`, whose calls tests record and let fail.

pub mod atomic;
pub mod checkpoint;
pub mod disk;
pub mod hf;
mod hf_config;
mod hf_tensors;
pub mod safetensors_file;
mod transpose;

pub use hf_config::ModelInfo;
