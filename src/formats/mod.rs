//! Files in and out: no GPU, no training.
//!
//! `weights` is the door: a model by path or by name, in whatever layout it is. Behind it `hf` (folders in the layout of
//! Hugging Face's GPT-2; with `hf_config`, config.json, and `hf_tensors`, which tensor is called what, and lies how),
//! `llmc` (llm.c's `.bin`) and `hub` (where Hugging Face's cache keeps a model). `tokenizer_files` writes what
//! `AutoTokenizer` reads, `tokenizer_folder` keeps the files that a model has. Below them `safetensors_file` (a writer that never holds more than one tensor), `element`
//! (element types), `mapped` (files of weights, in memory only while they are read) and `atomic` (files that are either whole or not there).
//! `checkpoint` does for folders what `atomic` does for files, through `disk`, whose calls tests record and let fail.

pub mod checkpoint;
pub mod checkpoint_weights;

mod element;
pub mod hf;
mod hf_config;
mod hf_tensors;

pub mod llmc;
mod mapped;
pub mod safetensors_file;
pub mod tokenizer_files;
pub mod tokenizer_folder;
mod transpose;
pub mod weights;

pub use element::Element;
pub use hf_config::ModelInfo;
