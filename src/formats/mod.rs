//! Files in and out: no GPU, no training.
//!
//! `weights` is the door: a model by path or by name, in whatever layout it is. Behind it `hf` (folders in the layout of
//! Hugging Face's GPT-2; with `hf_config`, config.json, `hf_files` and `hf_found`, the files and tensors that are there, and
//! `hf_tensors`, which tensor is called what, and lies how), `llmc` (llm.c's `.bin`) and `hub` (where Hugging Face's cache
//! keeps a model); `foreign` names what is none of these. `gguf` writes llama.cpp's files (`gguf_file` the container, `q8_0` its
//! blocks). `tokenizer_files` writes what `AutoTokenizer` reads, and makes a `vocabulary` of it;
//! `tokenizer_folder` keeps the files that a model has. Below them `safetensors_file` (a writer that never holds more than one tensor), `element`
//! (element types), `mapped` (files of weights, in memory only while they are read) and `atomic` (files that are either whole or not there).
//! `checkpoint` does for folders what `atomic` does for files, through `disk`, whose calls tests record and let fail.

pub mod checkpoint;
pub mod checkpoint_weights;

mod element;
pub mod foreign;
pub mod gguf;
mod gguf_file;
pub mod hf;
mod hf_config;
mod hf_files;
mod hf_found;
mod hf_tensors;

pub mod llmc;
mod mapped;
mod q8_0;
pub mod safetensors_file;
pub mod tokenizer_files;
pub mod tokenizer_folder;
mod transpose;
pub mod vocabulary;
pub mod weights;

pub use element::Element;
pub use hf_config::ModelInfo;
