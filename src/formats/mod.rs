//! File layouts of models, tokenizers and checkpoints. Nothing here uses a GPU or trains.
//!
//! | module | contents |
//! |---|---|
//! | [`weights`] | the entry point: finds a model by path or name, in any supported layout |
//! | [`hf`] | folders in the layout of Hugging Face's GPT-2 |
//! | `hf_config` | their config.json |
//! | `hf_files`, `hf_found` | the files and tensors found in such a folder |
//! | `hf_tensors` | Hugging Face's tensor names and layouts |
//! | [`llmc`] | llm.c's `.bin` |
//! | [`foreign`] | files that are something else, with advice |
//! | [`gguf`] | writes llama.cpp's files; `gguf_file` is the container, `q8_0` its quantized blocks |
//! | [`tokenizer_files`] | writes the files that `AutoTokenizer` reads |
//! | [`vocabulary`] | a tokenizer's tokens as data |
//! | [`tokenizer_folder`] | a model's own tokenizer files, kept unchanged |
//! | [`safetensors_file`] | writes safetensors with at most one tensor in memory |
//! | `element` | element types of stored weights |
//! | `mapped` | memory-mapped files of weights, whose memory is released as they are read |
//! | [`checkpoint`] | folders that are written atomically and whose every byte is verified |
//! | [`checkpoint_weights`] | the weights in a checkpoint |

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
