//! Memory plans. A plan is a dry run of the trainer, before anything is allocated, so it cannot differ from the real
//! allocations.

use std::path::Path;

use crate::error::{Error, Fault, Result};
use crate::gpu::{Caps, Elem, Gpu};
use crate::model::activations::LOGITS_LABEL;
use crate::model::{Config, Recompute};
use crate::ops::wire::Format;
use crate::units;

use crate::measure::Table;
use crate::train::settings::Settings;
use crate::train::trainer::DeviceSlot;
use crate::train::{Sizes, Trainer, TrainerOptions};

/// Largest number of tokens per micro-step in a plan, because a plan records every command of one.
pub const MAX_TOKENS: usize = 1 << 20;

/// Names of the parts of a plan.
pub const PARTS: [&str; 6] = ["weights", "gradients", "moments", "activations", "logits chunk", "staging"];

/// The allocations of a trainer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Bytes by label, in the order of the first allocation.
    pub rows: Vec<(String, u64)>,
    /// The first buffer that exceeds the adapter's limit.
    pub oversized: Option<(String, u64)>,
}

/// Everything that memory depends on except the batch.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    /// The model's shape.
    pub config: Config,
    /// T, tokens per sequence.
    pub context: usize,
    /// Element type of matrix operands.
    pub elem: Elem,
    /// Activations that the backward pass recomputes.
    pub recompute: Recompute,
    /// Number of logical ranks; with several, several sums of gradients are held at once.
    pub ranks: usize,
    /// Number of devices on all machines that share the ranks. The plan is for the device that needs the most memory.
    pub devices: usize,
    /// Number of machines, each with the same number of devices.
    pub machines: usize,
    /// The 16-bit format in which devices send gradients; `None` for f32.
    pub wire: Option<Format>,
}

impl Subject {
    /// Returns the options of a trainer with B sequences per micro-step and one micro-step per rank.
    #[must_use]
    pub fn options(&self, batch: usize) -> TrainerOptions {
        let Self { config, context, elem, recompute, ranks, devices, machines, wire } = *self;
        let sizes = Sizes { batch, context, accumulation: ranks };
        let part = DeviceSlot { device: 0, devices, machines };
        TrainerOptions { elem, recompute, ranks, part, wire, ..TrainerOptions::new(config, sizes) }
    }

    /// Returns the plan for B sequences per micro-step on a dry copy of `gpu`. Memory does not depend on the number of
    /// micro-steps.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn plan(&self, gpu: &Gpu, batch: usize) -> Result<Plan> {
        let gpu = gpu.dry_copy();
        let options = self.options(batch);
        let _trainer = Trainer::new(&gpu, TrainerOptions { part: options.largest_part(), ..options })?;
        Ok(Plan { rows: gpu.ledger(), oversized: gpu.oversized() })
    }

    /// Returns the largest batch that `accept` allows and whose plan needs at most `limit` bytes; `None` if the
    /// smallest one does not fit. Larger batches need more memory.
    ///
    /// # Errors
    /// As [`Subject::plan`].
    pub fn largest_batch(&self, gpu: &Gpu, limit: u64, accept: impl Fn(usize) -> bool) -> Result<Option<usize>> {
        let candidates: Vec<usize> = (1..=MAX_TOKENS / self.context.max(1)).filter(|&batch| accept(batch)).collect();
        let fits = |at: usize| {
            let plan = self.plan(gpu, candidates[at])?;
            Ok(plan.oversized.is_none() && plan.total() <= limit)
        };
        // doubles the batch, because plans of far too large batches take longest; then bisects
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
    /// Returns all bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.rows.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Returns the bytes of each of [`PARTS`]: weights with their f16 copy, gradients, moments, activations with all
    /// scratch of the backward pass, the chunk of logits, and transfers from and to the host.
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

/// Every allocation label of a trainer, and the position of its part.
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

/// Returns the position in [`PARTS`] of a label's part; `None` for labels that no trainer uses.
fn part_of(label: &str) -> Option<usize> {
    LABELS.iter().find(|(known, _)| *known == label).map(|(_, part)| *part)
}

/// Largest binding of common GPUs: 2 GiB, less the alignment of windows.
pub const LARGEST_BINDING: u64 = (1 << 31) - 256;

/// Returns the capabilities of a typical GPU, for plans without a device: WebGPU's limits, except for the size of
/// buffers, which would refuse large models; subgroups of 32; with f16, matrix units like NVIDIA's.
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

/// Returns bytes in MiB, for a table.
#[must_use]
pub fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// Returns the plans of several batches as a table, in MiB.
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

/// Returns the bytes that a run needs, and their table. They include the plan and, on a software adapter, the weights
/// on the host while the run starts, which are in the same memory. Rows that would print as 0.0 MiB are left out of the
/// table.
///
/// # Errors
/// [`Error::Memory`] if a buffer exceeds the adapter's limit; otherwise as [`Trainer::new`].
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
        return Err(Error::memory(
            Fault::at(
                "memory",
                format!("`{label}` needs {}, and the run {} in total", units::size(*bytes), units::size(total)),
            )
            .expected(format!(
                "buffers of at most {}, the limit of {}",
                units::size(caps.max_buffer_bytes),
                caps.name
            )),
        ));
    }
    let shown = rows.iter().filter(|(_, bytes)| mib(*bytes) != mib(0));
    let mut table: String = shown.map(|(label, bytes)| format!("  {:>10} MiB {label}\n", mib(*bytes))).collect();
    let on = if sharing > 1 { format!(" on {sharing} devices") } else { String::new() };
    table += &format!("  {:>10} MiB in all{on}", mib(total));
    Ok((total, table))
}

/// Returns the number of devices that share a memory: software devices share the machine's.
fn sharing(caps: &Caps, settings: &Settings) -> u64 {
    let here = settings.run.device_count / settings.run.machines.max(1);
    if caps.software { here.max(1) as u64 } else { 1 }
}

/// Advice for a run that does not fit.
pub const SMALLER: &str = "try a smaller --batch or --context";

/// Checks that a run fits into `limit` bytes or, without a limit, into the free memory if the adapter is in software.
/// `tokens_per_step` is what the user asked for, if anything: the batch that the error suggests divides it.
///
/// # Errors
/// [`Error::Memory`] with the table and the largest batch that fits.
pub fn check_memory(gpu: &Gpu, settings: &Settings, limit: Option<u64>, tokens_per_step: Option<usize>) -> Result<()> {
    let limit = limit.or_else(|| free_memory(&gpu.caps));
    let advice = || smaller_batch(gpu, settings, limit.unwrap_or(u64::MAX), tokens_per_step);
    let (total, table) = match plan(gpu, settings) {
        Err(error @ Error::Memory(_)) => return Err(error.with_advice(advice()?)),
        planned => planned?,
    };
    match limit {
        Some(limit) if total > limit => {
            let [needs, most] = units::sizes([total, limit]);
            let fault = Fault::at("memory", format!("the run needs {needs}")).expected(format!("at most {most}"));
            Err(Error::memory(fault.advice(format!("{}\n{table}", advice()?))))
        }
        _ => Ok(()),
    }
}

/// Returns the advice for a run that does not fit into `limit` bytes, which names the largest batch that does.
///
/// # Errors
/// As [`Subject::plan`].
pub fn smaller_batch(gpu: &Gpu, settings: &Settings, limit: u64, tokens_per_step: Option<usize>) -> Result<String> {
    let is_smaller = |batch: usize| batch < settings.train.batch && divides(settings, tokens_per_step, batch);
    let largest = fitting_batch(gpu, settings, limit, is_smaller)?;
    Ok(largest_batch_advice(largest, settings.train.recompute))
}

/// Returns the advice for a run that does not fit, if `largest` is the largest batch that does.
#[must_use]
pub fn largest_batch_advice(largest: Option<usize>, recompute: Recompute) -> String {
    let recompute = if recompute == Recompute::Block { "" } else { ", or --recompute block" };
    match largest {
        Some(largest) => format!("the largest batch that fits is {largest}: try --batch {largest}{recompute}"),
        None => format!("no batch fits: try a smaller --context or model{recompute}"),
    }
}

/// Returns the largest batch of a run that `accept` allows and that fits into `limit` bytes; `None` if there is none.
fn fitting_batch(gpu: &Gpu, settings: &Settings, limit: u64, accept: impl Fn(usize) -> bool) -> Result<Option<usize>> {
    let (caps, subject) = (&gpu.caps, subject(settings));
    let each = limit / sharing(caps, settings);
    subject.largest_batch(gpu, each.saturating_sub(host_bytes(caps, &subject.config)), accept)
}

/// Returns whether a step of `tokens_per_step` tokens consists of whole micro-steps of `batch` sequences on every rank.
fn divides(settings: &Settings, tokens_per_step: Option<usize>, batch: usize) -> bool {
    let micro_steps = batch * settings.train.context * settings.data.ranks.max(1);
    tokens_per_step.is_none_or(|tokens| tokens.is_multiple_of(micro_steps.max(1)))
}

/// Returns the largest batch of a run that fits and that divides `tokens_per_step`.
///
/// # Errors
/// [`Error::Memory`] if none does; [`Error::Usage`] if the amount of memory is unknown.
pub fn auto_batch(gpu: &Gpu, settings: &Settings, limit: Option<u64>, tokens_per_step: Option<usize>) -> Result<usize> {
    let caps = &gpu.caps;
    // a little less may be free when the run begins
    let Some(limit) = limit.or_else(|| free_memory(caps).map(|free| free / 10 * 9)) else {
        let fault = Fault::at("--batch auto", "the amount of memory is unknown");
        return Err(Error::usage(fault.advice("try --memory 24GiB")));
    };
    fitting_batch(gpu, settings, limit, |batch| divides(settings, tokens_per_step, batch))?.ok_or_else(|| {
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

/// Returns the bytes of the weights on the host while a run starts, if they are in the adapter's memory; otherwise 0.
fn host_bytes(caps: &Caps, config: &Config) -> u64 {
    if caps.software { 4 * config.parameters() as u64 } else { 0 }
}

/// Returns the free memory of a software adapter, if the system reports it.
fn free_memory(caps: &Caps) -> Option<u64> {
    if caps.software { available_memory() } else { None }
}

/// Returns the available bytes of memory, if the system reports them.
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
