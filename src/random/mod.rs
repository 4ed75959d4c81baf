//! Random numbers with a state that can be saved. The generator is llm.c's, so that initial weights, orders and samples
//! are the same as llm.c's.

pub mod mt19937;

pub use mt19937::{Mt19937, Mt19937State};
