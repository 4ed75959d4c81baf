//! What a step costs and where its time goes: roofs, profiles, counts, traces. Prints nothing; reports are values and
//! their texts.

pub mod beside;
pub mod count;
pub mod predict;
pub mod profile;
mod rates;
pub mod roofs;
pub mod statistics;
pub mod steps;
pub mod table;
pub mod trace;

pub use beside::Beside;
pub use count::Count;
pub use profile::Profile;
pub use roofs::Roofs;
pub use steps::Steps;
pub use table::Table;

use crate::data::mt19937::Mt19937;
use crate::data::{Loader, LoaderConfig, TokenSource};
use crate::error::Result;
use crate::model::Config;

use super::Sizes;
use super::tune::Found;

/// Floating-point operations a token by llm.c's formula, `6 N + 6 L C T`: for comparing with others' figures. It counts
/// the padding of the vocabulary and the position table as if they were multiplied, and the half of attention that is
/// masked not at all.
#[must_use]
pub fn flops_per_token(config: &Config, context: usize) -> f64 {
    6.0 * config.parameters() as f64 + 6.0 * (config.layers * config.channels * context) as f64
}

/// Batches of random tokens: `batches` different ones, then again.
///
/// # Errors
/// [`crate::error::Error::Usage`] if a size is 0.
pub fn random_batches(config: &Config, sizes: &Sizes, batches: usize) -> Result<Loader> {
    let mut random = Mt19937::new(42);
    let count = sizes.batch * sizes.context * batches + 1;
    let tokens = (0..count).map(|_| (random.next_u32() as usize % config.vocab.min(65_536)) as u16).collect();
    let source = TokenSource::from_tokens("random tokens", tokens);
    Loader::new(vec![source], LoaderConfig::new(sizes.batch, sizes.context, config.vocab, Some(42)))
}

/// One line on what an adapter's record of `wgpt tune` came to, if there is one.
#[must_use]
pub fn tuned(found: &Found) -> Option<String> {
    match found {
        Found::Nothing => None,
        Found::Kernels(count) => Some(format!("{count} kernels of this adapter's record, where shapes are the same")),
        Found::Ignored(why) => Some(format!("no: {why}")),
    }
}
