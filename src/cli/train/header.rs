//! The lines that a run begins with.

use std::path::Path;

use wgpt::gpu::{self, Caps, Elem};
use wgpt::measure;
use wgpt::measure::tune::LoadedRecord;
use wgpt::ops::{attention, matmul};
use wgpt::train::Trainer;
use wgpt::train::settings::{Settings, UNKNOWN_STEPS};

use crate::cli::terminal::say;

/// Describes a step and the number of steps.
pub fn step(settings: &Settings) -> String {
    let t = &settings.train;
    let steps = if t.steps == UNKNOWN_STEPS { "one epoch".into() } else { format!("{} steps", t.steps) };
    format!(
        "{} tokens: batch {} x context {} x {} micro-steps; {steps}",
        t.tokens_per_step,
        t.batch,
        t.context,
        settings.sizes().accumulation
    )
}

/// Describes the ranks and how devices share them; none for one rank.
pub fn ranks(settings: &Settings, devices: usize) -> Option<String> {
    let (ranks, wire) = (settings.data.ranks, settings.train.wire);
    let alone = if wire.format().is_some() { format!(", which rounds no gradient to {wire}") } else { String::new() };
    match (ranks, devices) {
        (..=1, _) if alone.is_empty() => None,
        (..=1, _) => Some(format!("1 on one device{alone}")),
        (_, 1) => Some(format!("{ranks} on one device, one after the other{alone}")),
        _ => {
            let machines = settings.run.machines;
            let on = if machines > 1 { format!(" of {machines} machines") } else { String::new() };
            let repeats = match wire.format() {
                None => "sums of gradients and weights go through host memory".into(),
                Some(_) => {
                    format!("gradients go through host memory in {wire}: bits repeat only on {devices} devices{on}")
                }
            };
            Some(format!("{ranks} on {devices} devices{on}, {} each: {repeats}", ranks / devices))
        }
    }
}

/// Prints device, model, data, step, kernels, memory and folder.
pub fn print(
    settings: &Settings,
    summary: &str,
    trainer: &Trainer,
    devices: &[Caps],
    out: &Path,
    (tuned, processes): (&LoadedRecord, Option<&str>),
) {
    let gpu = trainer.gpu();
    let (m, t, config) = (settings.config(), &settings.train, trainer.config());
    gpu::adapter::environment_notes().iter().for_each(|note| say!("devices  {note}"));
    for (number, caps) in devices.iter().enumerate() {
        let number = if devices.len() > 1 { format!("{number}: ") } else { String::new() };
        say!("device   {number}{}{}", caps.summary(), caps.at_bus());
    }
    if !gpu.device_kind().is_empty() {
        say!("         {}", gpu.device_kind());
    }
    say!(
        "model    {} layers, {} heads, {} channels, {} positions, vocabulary {}: {:.1} M parameters, {}",
        m.layers,
        m.heads,
        m.channels,
        m.positions,
        m.vocab,
        config.parameters() as f64 / 1e6,
        t.precision.name()
    );
    say!("data     {summary}");
    say!("step     {}", step(settings));
    if let Some(processes) = processes {
        say!("mpi      {processes}");
    }
    if let Some(line) = ranks(settings, settings.run.device_count) {
        say!("ranks    {line}");
    }
    say!("kernels  {}", trainer.kernel_summary().join(", "));
    if trainer.elem() == Elem::F16 {
        if let Some(why) = matmul::choose::without_matrices(&gpu.caps) {
            say!("         no matrix units: {why}");
        } else if matmul::choose::is_faster_without_matrices(&gpu.caps) {
            say!(
                "         products without matrix units: by others' figures they are slower on Intel's Alchemist; wgpt tune tries both"
            );
        } else if let Some(why) = attention::without_matrices(&gpu.caps, config.head_size()) {
            say!("         attention without matrix units: {why}");
        }
    }
    let step = trainer.step_program();
    for (kernel, figures) in measure::statistics::spilling(gpu, &step) {
        say!("         {} is slow, its registers do not suffice ({figures}): try wgpt tune", kernel.name());
    }
    let all = settings.run.device_count;
    let first = if all > 1 { format!(" on the first of {all} devices") } else { String::new() };
    say!("memory   {:.1} MiB{first}", gpu.allocated_bytes() as f64 / f64::from(1 << 20));
    say!("folder   {}", out.display());
    let sizes = [t.batch, t.context];
    if let Some(line) = measure::tuned_jobs_summary(tuned, &gpu.caps, config, trainer.elem(), sizes) {
        say!("tuned    {line}");
    }
}
