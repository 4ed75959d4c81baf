//! Measures and predicts the cost of a step: roofs, profiles, counts, traces, plans and tuning. Nothing here prints;
//! reports are values with a text form.

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
pub use traffic::NonProductTraffic;

use crate::data::{Batches, LoaderConfig, TokenSource};
use crate::error::Result;
use crate::gpu::{Caps, Elem};
use crate::model::Config;
use crate::random::mt19937::Mt19937;
use crate::units;

use self::tune::{Job, LoadedRecord};
use crate::train::Sizes;

/// Returns the floating-point operations per token by llm.c's formula, `6 N + 6 L C T`, for comparison with other
/// programs. The formula counts the padding of the vocabulary and the position table as if they were multiplied, and
/// leaves out the masked half of attention.
#[must_use]
pub fn flops_per_token(config: &Config, context: usize) -> f64 {
    6.0 * config.parameters() as f64 + 6.0 * (config.layers * config.channels * context) as f64
}

/// Returns batches of random tokens, prepared by a thread as in training. They repeat after `batches` batches.
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

/// Returns a line about the adapter's record of `wgpt tune`, if it has one, for callers without a model.
#[must_use]
pub fn record_summary(found: &LoadedRecord) -> Option<String> {
    match found {
        LoadedRecord::Nothing => None,
        LoadedRecord::Missing(file) => Some(format!("no: {} does not exist", file.display())),
        LoadedRecord::Kernels(kernels, file) => {
            let (count, file) = (kernels.len(), file.display());
            Some(format!("{} of the record {file}, for equal shapes", units::counted(count as u64, "kernel")))
        }
        LoadedRecord::Ignored(why) => Some(format!("no: {why}")),
    }
}

/// Returns a line about the number of a run's jobs that are in the record, if there is one. `caps` belongs to the run,
/// because a resumed run keeps the kernels of its checkpoint.
#[must_use]
pub fn tuned_jobs_summary(
    found: &LoadedRecord,
    caps: &Caps,
    config: &Config,
    elem: Elem,
    [batch, context]: [usize; 2],
) -> Option<String> {
    let jobs = tune::jobs(caps, config, elem, [batch, context]);
    let named = |job: &Job| job.recorded(caps, elem).is_some();
    let (count, any) = (count_jobs(&jobs, named), jobs.iter().any(named));
    match found {
        LoadedRecord::Kernels(kernels, file) if *kernels == caps.tuned && any => {
            let useless = jobs.iter().filter(|job| caps.tuned.contains_key(&job.key(elem)) && !named(job)).count();
            let others = match useless {
                0 => String::new(),
                n => format!("; {n} of its kernels do not run here: wgpt tune replaces them"),
            };
            Some(format!("{count}, from {}{others}", file.display()))
        }
        LoadedRecord::Kernels(kernels, file) if *kernels == caps.tuned => {
            let file = file.display();
            let again = format!("wgpt tune --batch {batch} --context {context}");
            Some(format!("{count}: the record {file} is for other shapes; try {again}"))
        }
        _ if any => Some(format!("{count}, from the run's checkpoint")),
        LoadedRecord::Kernels(..) => Some(format!("{count}: a resumed run keeps its kernels")),
        _ => record_summary(found),
    }
}

/// Returns the number of products and attention kernels for which `is` is true, as text: `2 of 15 products`.
#[must_use]
pub fn count_jobs(jobs: &[Job], is: impl Fn(&Job) -> bool) -> String {
    let (products, attention): (Vec<&Job>, Vec<&Job>) = jobs.iter().partition(|job| job.is_product());
    let of = |list: &[&Job]| format!("{} of {}", list.iter().filter(|job| is(job)).count(), list.len());
    let mut text = format!("{} products", of(&products));
    if !attention.is_empty() {
        text += &format!(" and {} attention kernels", of(&attention));
    }
    text
}
