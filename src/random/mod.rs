//! Random numbers with a state that can be saved: those of llm.c, so that weights, orders and samples are its own.

pub mod mt19937;

pub use mt19937::{Mt19937, Mt19937State};
