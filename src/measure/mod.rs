//! What a step costs and where its time goes: roofs, profiles, counts, traces. Prints nothing; reports are values and
//! their texts.

pub mod count;
pub mod exchange;
pub mod plan;
pub mod predict;
pub mod profile;
mod rates;
pub mod roofs;
pub mod statistics;
pub mod steps;
pub mod table;
pub mod trace;
pub mod traffic;
pub mod tune;

pub use count::Count;
pub use profile::Profile;
pub use roofs::Roofs;
pub use steps::Steps;
pub use table::Table;
pub use traffic::Beside;

use crate::data::{Batches, LoaderConfig, TokenSource};
use crate::error::Result;
use crate::gpu::{Caps, Elem};
use crate::model::Config;
use crate::random::mt19937::Mt19937;

use self::tune::{Found, Job};
use crate::train::Sizes;

/// Floating-point operations a token by llm.c's formula, `6 N + 6 L C T`: for comparing with others' figures. It counts
/// the padding of the vocabulary and the position table as if they were multiplied, and the half of attention that is
/// masked not at all.
#[must_use]
pub fn flops_per_token(config: &Config, context: usize) -> f64 {
    6.0 * config.parameters() as f64 + 6.0 * (config.layers * config.channels * context) as f64
}

/// Returns batches of random tokens, made ready by a thread as in training: `batches` different ones, then again.
///
/// # Errors
/// [`crate::error::Error::Usage`] if a size is 0.
pub fn random_batches(config: &Config, sizes: &Sizes, batches: usize) -> Result<Batches> {
    let mut random = Mt19937::new(42);
    let count = sizes.batch * sizes.context * batches + 1;
    let tokens = (0..count).map(|_| (random.next_u32() as usize % config.vocab.min(65_536)) as u16).collect();
    let source = TokenSource::from_tokens("random tokens", tokens);
    Batches::new(vec![source], LoaderConfig::new(sizes.batch, sizes.context, config.vocab, Some(42)))
}

/// Returns a line on the adapter's record of `wgpt tune`, if there is one, for a caller that has no model.
#[must_use]
pub fn tuned(found: &Found) -> Option<String> {
    match found {
        Found::Nothing => None,
        Found::Missing(file) => Some(format!("no: {} does not exist", file.display())),
        Found::Kernels(kernels, file) => {
            let (count, file) = (kernels.len(), file.display());
            Some(format!("{count} kernels of the record {file}, where shapes are the same"))
        }
        Found::Ignored(why) => Some(format!("no: {why}")),
    }
}

/// Returns a line on how many jobs of a run the record names, if there is one. `caps` is that of the run: one that is
/// resumed keeps the kernels of its checkpoint.
#[must_use]
pub fn tuned_jobs(
    found: &Found,
    caps: &Caps,
    config: &Config,
    elem: Elem,
    [batch, context]: [usize; 2],
) -> Option<String> {
    let jobs = tune::jobs(caps, config, elem, [batch, context]);
    let named = |job: &Job| job.recorded(caps, elem).is_some();
    let (count, any) = (count(&jobs, named), jobs.iter().any(named));
    match found {
        Found::Kernels(kernels, file) if *kernels == caps.tuned && any => {
            let useless = jobs.iter().filter(|job| caps.tuned.contains_key(&job.key(elem)) && !named(job)).count();
            let others = match useless {
                0 => String::new(),
                n => format!("; {n} of its kernels do not run here: wgpt tune makes them anew"),
            };
            Some(format!("{count}, from {}{others}", file.display()))
        }
        Found::Kernels(kernels, file) if *kernels == caps.tuned => {
            let file = file.display();
            let again = format!("wgpt tune --batch {batch} --context {context}");
            Some(format!("{count}: the record {file} is of other shapes; {again}"))
        }
        _ if any => Some(format!("{count}, from the run's checkpoint")),
        Found::Kernels(..) => Some(format!("{count}: the run keeps the kernels that it began with")),
        _ => tuned(found),
    }
}

/// Returns how many products and attention kernels of these jobs are of a kind: `2 of 15 products`.
#[must_use]
pub fn count(jobs: &[Job], is: impl Fn(&Job) -> bool) -> String {
    let (products, attention): (Vec<&Job>, Vec<&Job>) = jobs.iter().partition(|job| job.is_product());
    let of = |list: &[&Job]| format!("{} of {}", list.iter().filter(|job| is(job)).count(), list.len());
    let mut text = format!("{} products", of(&products));
    if !attention.is_empty() {
        text += &format!(" and {} attention kernels", of(&attention));
    }
    text
}
