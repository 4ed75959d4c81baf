//! Text and tokens: from files to the batches that training and validation upload. No device in here.
//!
//! | module | what it holds |
//! |---|---|
//! | [`tokenizer`] | text to token ids and back |
//! | [`tokens`] | tokens in memory or in a file |
//! | [`token_format`] | layouts of token files: shards, ids without a header, NumPy arrays |
//! | [`token_paths`] | files of tokens as people name them: files, patterns, folders, names |
//! | [`token_names`] | the same by the names of `wgpt data fetch` |
//! | [`recognize`] | kinds of files, told by their first bytes |
//! | [`unpack`] | gzip, Zstandard, xz and bzip2 |
//! | [`contents`] | files that tokens come from, as they are recognised later |
//! | [`text_files`] | tokens of text files |
//! | [`separators`] | texts between documents |
//! | [`batch`] | a batch as one block, ready to be uploaded |
//! | [`loader`] | training batches, in llm.c's order |
//! | [`batches`] | the same, read ahead of the GPU, of one rank or of several in turn |
//! | [`repeat`] | the same few batches again and again |
//! | [`noted`] | the tokenizer noted beside shards |
//! | [`prepare`] | shards from text, JSON Lines and Parquet |
//! | [`inspect`] | what lies in shards, and whether it is sound |
//! | [`fetch`] | data sets and weights from the Hugging Face hub, into its cache |
//! | [`rows`] | validation rows, in file order |
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
