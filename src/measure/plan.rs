//! What a run needs of memory, before anything is allocated: a dry run of the trainer, so that the plan cannot drift
//! from what is made.

use std::path::Path;

use crate::error::{Error, Fault, Result};
use crate::gpu::{Caps, Elem, Gpu};
use crate::model::activations::LOGITS_LABEL;
use crate::model::{Config, Recompute};
use crate::ops::wire::Format;

use crate::measure::Table;
use crate::train::settings::Settings;
use crate::train::trainer::Part;
use crate::train::{Sizes, Trainer, TrainerOptions};
use crate::units;

/// Tokens of a micro-step at most: a plan records every command of one.
pub const MOST_TOKENS: usize = 1 << 20;

/// What the parts of a plan are called.
pub const PARTS: [&str; 6] = ["weights", "gradients", "moments", "activations", "logits chunk", "staging"];

/// What a trainer allocates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Bytes under each label, in the order of the first allocation.
    pub rows: Vec<(String, u64)>,
    /// The first buffer that is larger than any the adapter makes.
    pub oversized: Option<(String, u64)>,
}

/// What is trained: all that memory depends on but the batch.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    /// The model.
    pub config: Config,
    /// T.
    pub context: usize,
    /// What matrix operands are stored as.
    pub elem: Elem,
    /// What is computed again.
    pub recompute: Recompute,
    /// Logical ranks: with several, partial sums of gradients are there at once.
    pub ranks: usize,
    /// Devices that share the ranks, on all machines; the plan is that of the one that needs most.
    pub devices: usize,
    /// Machines, each with as many devices.
    pub machines: usize,
    /// The 16-bit format in which devices send gradients; `None` for f32.
    pub wire: Option<Format>,
}

impl Subject {
    /// Returns the options of a trainer of it, for B sequences a micro-step and one of those a rank.
    #[must_use]
    pub fn options(&self, batch: usize) -> TrainerOptions {
        let Self { config, context, elem, recompute, ranks, devices, machines, wire } = *self;
        let sizes = Sizes { batch, context, accumulation: ranks };
        let part = Part { device: 0, devices, machines };
        TrainerOptions { elem, recompute, ranks, part, wire, ..TrainerOptions::new(config, sizes) }
    }

    /// Returns the plan for B sequences a micro-step on `gpu`, of which a dry copy is made. Micro-steps need nothing for
    /// themselves.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn plan(&self, gpu: &Gpu, batch: usize) -> Result<Plan> {
        let gpu = gpu.dry_copy();
        let options = self.options(batch);
        let _trainer = Trainer::new(&gpu, TrainerOptions { part: options.largest_part(), ..options })?;
        Ok(Plan { rows: gpu.ledger(), oversized: gpu.oversized() })
    }

    /// The largest batch among those that `fits` holds good, whose plan takes at most `limit` bytes; `None` if not even the
    /// least does. Plans grow with the batch.
    ///
    /// # Errors
    /// As [`Subject::plan`].
    pub fn largest_batch(&self, gpu: &Gpu, limit: u64, good: impl Fn(usize) -> bool) -> Result<Option<usize>> {
        let candidates: Vec<usize> = (1..=MOST_TOKENS / self.context.max(1)).filter(|&batch| good(batch)).collect();
        let fits = |at: usize| {
            let plan = self.plan(gpu, candidates[at])?;
            Ok(plan.oversized.is_none() && plan.total() <= limit)
        };
        // doubling, for the plan of a far too large batch takes longest; then halves
        let (mut below, mut above) = (0, 1);
        while above <= candidates.len() && fits(above - 1)? {
            (below, above) = (above, 2 * above);
        }
        above = above.min(candidates.len() + 1);
        while above - below > 1 {
            let middle = usize::midpoint(below, above);
            *(if fits(middle - 1)? { &mut below } else { &mut above }) = middle;
        }
        Ok(below.checked_sub(1).map(|at| candidates[at]))
    }
}

impl Plan {
    /// All bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.rows.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Bytes of each of [`PARTS`]: weights with their f16 copy, gradients, moments, activations with all scratch of the
    /// backward pass, the logits' chunk, and what comes from and goes to the host.
    #[must_use]
    pub fn parts(&self) -> [u64; 6] {
        let mut parts = [0; 6];
        for (label, bytes) in &self.rows {
            parts[part_of(label).unwrap_or(STAGING)] += bytes;
        }
        parts
    }
}

/// Position of the last of [`PARTS`].
const STAGING: usize = PARTS.len() - 1;

/// Every label that a trainer allocates under, and the position of its part.
const LABELS: [(&str, usize); 34] = [
    ("weights", 0),
    ("weights as f16", 0),
    ("gradients", 1),
    ("loss", 1),
    ("received sums", 1),
    ("packed sums", STAGING),
    ("weights' hash", STAGING),
    ("AdamW m", 2),
    ("AdamW v", 2),
    ("activations: residual", 3),
    ("activations: statistics", 3),
    ("activations: ln1", 3),
    ("activations: qkv", 3),
    ("activations: atty", 3),
    ("activations: ln2", 3),
    ("activations: fch", 3),
    ("activations: fch_gelu", 3),
    ("activations: lnf", 3),
    ("gradients of activations", 3),
    ("partial sums", 3),
    ("norm partials", 3),
    (LOGITS_LABEL, 4),
    ("tokens", STAGING),
    ("losses", STAGING),
    ("buckets", STAGING),
    ("bucket order", STAGING),
    ("step hyperparameters", STAGING),
    ("step report", STAGING),
    ("step state", STAGING),
    ("step windows", STAGING),
    ("read ring", STAGING),
    ("upload ring", STAGING),
    ("exchange out", STAGING),
    ("exchange in", STAGING),
];

/// Returns the position in [`PARTS`] of what is allocated under a label; `None` for labels that no trainer has.
fn part_of(label: &str) -> Option<usize> {
    LABELS.iter().find(|(known, _)| *known == label).map(|(_, part)| *part)
}

/// The largest binding of GPUs as they come: 2 GiB, less what keeps windows aligned.
pub const LARGEST_BINDING: u64 = (1 << 31) - 256;

/// A GPU as they come, for plans without one: WebGPU's limits but for the size of buffers, which would refuse large
/// models, subgroups of 32, and with f16 matrix units as NVIDIA's.
#[must_use]
pub fn assumed(elem: Elem, max_binding_bytes: u64) -> Caps {
    let plain = Caps {
        name: "no device".into(),
        max_binding_bytes,
        max_buffer_bytes: 1 << 40,
        subgroups: true,
        subgroup_sizes: (32, 32),
        max_invocations: 1024,
        ..Caps::webgpu_defaults()
    };
    match elem {
        Elem::F16 => {
            Caps { f16: true, matrix_edges: vec![16], matrix_functions: true, max_workgroup_bytes: 48 << 10, ..plain }
        }
        _ => plain,
    }
}

/// Bytes in a table.
#[must_use]
pub fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// Plans of several batches side by side, in MiB.
#[must_use]
pub fn table(plans: &[(usize, Plan)]) -> Table {
    let [weights, gradients, moments, activations, logits, staging] = PARTS;
    let mut table = Table::new(&["batch", weights, gradients, moments, activations, logits, staging, "total MiB"]);
    for (batch, plan) in plans {
        let [weights, gradients, moments, activations, logits, staging] = plan.parts().map(mib);
        let total = mib(plan.total());
        table.row([batch.to_string(), weights, gradients, moments, activations, logits, staging, total]);
    }
    table
}

/// What a run needs, in all and as a table: its plan, and the weights on the host while it starts, which on a software
/// adapter are in the same memory.
///
/// # Errors
/// [`Error::Memory`] if a buffer is larger than any the adapter makes; else as [`Trainer::new`].
pub fn plan(gpu: &Gpu, settings: &Settings) -> Result<(u64, String)> {
    let plan = subject(settings).plan(gpu, settings.train.batch)?;
    let caps = &gpu.caps;
    let mut rows = plan.rows;
    if caps.software {
        rows.push(("weights on the host while starting".into(), host_bytes(caps, &settings.config())));
    }
    let sharing = sharing(caps, settings);
    let total: u64 = sharing * rows.iter().map(|(_, bytes)| bytes).sum::<u64>();
    if let Some((label, bytes)) = &plan.oversized {
        let largest = units::size(caps.max_buffer_bytes);
        return Err(Error::memory(
            Fault::at(
                "memory",
                format!("`{label}` needs {}, {} has buffers of at most {largest}", units::size(*bytes), caps.name),
            )
            .advice(format!("try a smaller --batch, --context or model (the run needs {} in all)", units::size(total))),
        ));
    }
    // a small model has buffers of a few KiB
    let mut table: String =
        rows.iter().map(|(label, bytes)| format!("  {:>12} {label}\n", units::size(*bytes))).collect();
    let on = if sharing > 1 { format!(" on {sharing} devices") } else { String::new() };
    table += &format!("  {:>12} in all{on}", units::size(total));
    Ok((total, table))
}

/// Devices that share a memory: those of software share the machine's.
fn sharing(caps: &Caps, settings: &Settings) -> u64 {
    let here = settings.run.device_count / settings.run.machines.max(1);
    if caps.software { here.max(1) as u64 } else { 1 }
}

/// The advice for a run that does not fit.
pub const SMALLER: &str = "try a smaller --batch or --context";

/// Fails if a run does not fit: into `limit` bytes if given, else on a software adapter into what is free.
///
/// # Errors
/// [`Error::Memory`] with the table.
pub fn check_memory(gpu: &Gpu, settings: &Settings, limit: Option<u64>) -> Result<()> {
    let (total, table) = plan(gpu, settings)?;
    let caps = &gpu.caps;
    let Some(limit) = limit.or_else(|| free_memory(caps)) else { return Ok(()) };
    if total <= limit {
        return Ok(());
    }
    let fault = Fault::at("memory", format!("the run needs {}", units::size(total)));
    let fault = fault.expected(format!("at most {}", units::size(limit)));
    Err(Error::memory(fault.advice(format!("{}\n{table}", largest_that_fits(gpu, settings, limit)))))
}

/// The advice for a run of which not even one sequence fits.
pub const NOT_EVEN_ONE: &str = "not even --batch 1 fits: try a smaller --context or model, or --recompute block";

/// Says which batch of a run fits into `limit` bytes.
#[must_use]
pub fn largest_that_fits(gpu: &Gpu, settings: &Settings, limit: u64) -> String {
    let train = &settings.train;
    let micro_step = train.batch * train.context * settings.data.ranks.max(1);
    // a step of several micro-steps has its tokens by a flag, which the batch must divide
    let tokens = (train.tokens_per_step > micro_step).then_some(train.tokens_per_step);
    match auto_batch(gpu, settings, Some(limit), tokens) {
        Ok(batch) => format!("the largest that fits is --batch {batch}"),
        Err(_) => NOT_EVEN_ONE.to_owned(),
    }
}

/// The largest batch of a run that fits, of which steps of its tokens are made of.
///
/// # Errors
/// [`Error::Memory`] if none does; [`Error::Usage`] if nothing says how much memory there is.
pub fn auto_batch(gpu: &Gpu, settings: &Settings, limit: Option<u64>, tokens_per_step: Option<usize>) -> Result<usize> {
    let caps = &gpu.caps;
    // what is free now may be a little less when the run begins
    let Some(limit) = limit.or_else(|| free_memory(caps).map(|free| free / 10 * 9)) else {
        let fault = Fault::at("--batch auto", "nothing says how much memory there is");
        return Err(Error::usage(fault.advice("try --memory 24GiB")));
    };
    let subject = subject(settings);
    let host = host_bytes(caps, &subject.config);
    let rank = settings.train.context * settings.data.ranks.max(1);
    let divides = |batch: usize| tokens_per_step.is_none_or(|tokens| tokens.is_multiple_of((batch * rank).max(1)));
    let each = limit / sharing(caps, settings);
    let found = subject.largest_batch(gpu, each.saturating_sub(host), divides)?;
    found.ok_or_else(|| {
        Error::memory(
            Fault::at(
                "memory",
                format!(
                    "--batch auto: not even one sequence of {} fits into {}",
                    units::counted(settings.train.context as u64, "token"),
                    units::size(limit)
                ),
            )
            .advice("try a smaller --context or model, or --recompute block"),
        )
    })
}

fn subject(settings: &Settings) -> Subject {
    let (config, train) = (settings.config(), &settings.train);
    let (context, recompute, ranks) = (train.context, train.recompute, settings.data.ranks.max(1));
    let (devices, machines, wire) = (settings.run.device_count, settings.run.machines, train.wire.format());
    Subject { config, context, elem: settings.elem(), recompute, ranks, devices, machines, wire }
}

/// Bytes of the weights on the host while a run starts, where they are in the adapter's memory.
fn host_bytes(caps: &Caps, config: &Config) -> u64 {
    if caps.software { 4 * config.parameters() as u64 } else { 0 }
}

fn free_memory(caps: &Caps) -> Option<u64> {
    if caps.software { available_memory() } else { None }
}

/// Bytes of memory that the system can still give, where it says so.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string(Path::new("/proc/meminfo")).ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_of_a_trainer_belongs_to_a_part() {
        let config = Config::new(64, 257, 2, 2, 32).expect("a model");
        let mut labels = std::collections::BTreeSet::new();
        for elem in [Elem::F32, Elem::F16] {
            for recompute in [Recompute::None, Recompute::Gelu, Recompute::Ln, Recompute::Block] {
                for (devices, wire) in [(1, None), (2, None), (2, Some(Format::Bf16))] {
                    let subject =
                        Subject { config, context: 64, elem, recompute, ranks: 2, devices, machines: 1, wire };
                    let plan = subject.plan(&Gpu::dry(assumed(elem, LARGEST_BINDING)), 4).expect("planned");
                    labels.extend(plan.rows.into_iter().map(|(label, _)| label));
                }
            }
        }
        let unknown: Vec<&String> = labels.iter().filter(|label| part_of(label).is_none()).collect();
        assert!(unknown.is_empty(), "no part of memory for {unknown:?}");
        let unused: Vec<&str> = LABELS.iter().map(|l| l.0).filter(|label| !labels.contains(*label)).collect();
        assert!(unused.is_empty(), "nothing is allocated under {unused:?}");
    }
}
