//! Text and tokens: from files to the batches that training and validation upload. Nothing here uses a device.
//!
//! | module | contents |
//! |---|---|
//! | [`tokenizer`] | text to token ids and back |
//! | [`tokens`] | tokens in memory or in a file |
//! | [`token_format`] | layouts of token files: shards, ids without a header, NumPy arrays |
//! | [`token_paths`] | from paths, patterns, folders and names given by the user to token files |
//! | [`token_names`] | token files in Hugging Face's cache by the names of `wgpt data fetch` |
//! | [`recognize`] | file types, recognised by their first bytes |
//! | [`unpack`] | decompression of gzip, Zstandard, xz and bzip2 |
//! | [`contents`] | identities of data files, with which a later run recognises them |
//! | [`text_files`] | tokens of text files |
//! | [`separators`] | separators between documents |
//! | [`batch`] | a batch as one block of memory, ready for upload |
//! | [`loader`] | training batches in llm.c's order |
//! | [`batches`] | the same batches read ahead of the GPU, for one rank or several |
//! | [`repeat`] | the same few batches repeated, to overfit them |
//! | [`recorded_tokenizer`] | the tokenizer that `dataset.json` records for shards |
//! | [`prepare`] | shards made from text, JSON Lines and Parquet |
//! | [`inspect`] | summaries and checks of shards |
//! | [`fetch`] | downloads of data sets and weights from the Hugging Face hub into its cache |
//! | [`validation_rows`] | validation rows in file order |
//! | [`hellaswag`] | questions with four endings |
//! | [`stories`] | endless text from a seeded grammar whose entropy is known |
//! | [`markov`] | the order-2 model that a trained network has to beat |

pub mod batch;
pub mod batches;
pub mod contents;
pub mod fetch;
pub mod hellaswag;
pub mod inspect;
mod json_line;
pub mod loader;
pub mod markov;
mod npy;
pub mod prepare;
pub mod recognize;
pub mod recorded_tokenizer;
pub mod repeat;
pub mod separators;
pub mod stories;
pub mod text_files;
pub mod token_format;
mod token_kind;
pub mod token_names;
pub mod token_paths;
pub mod tokenizer;
pub mod tokens;
pub mod unpack;
pub mod validation_rows;

pub use batch::Batch;
pub use batches::{BatchPosition, BatchSource, Batches, BatchesState};
// part of a loader's state
pub use crate::random::{Mt19937, Mt19937State};
pub use contents::FileContents;
pub use fetch::catalog::Part;
pub use loader::{Loader, LoaderConfig, LoaderState};
pub use repeat::Repeat;
pub use stories::Stories;
pub use text_files::tokens_of_text_files;
pub use token_format::TokenFormat;
pub use tokenizer::{ModelTokenizer, Tokenizer, TokenizerName};
pub use tokens::{TokenSource, split_validation, write_shard};
pub use validation_rows::Rows;
