//! The first lines of a run.

use std::io::IsTerminal as _;
use std::path::Path;

use wgpt::gpu::{self, Caps, Elem};
use wgpt::measure;
use wgpt::measure::tune::LoadedRecord;
use wgpt::ops::{attention, matmul};
use wgpt::train::Trainer;
use wgpt::train::settings::{Settings, UNKNOWN_STEPS};
use wgpt::units::{count, counted, size};

use crate::cli::model::{parameters, shape};
use crate::cli::terminal::say;

/// Describes a step and the number of steps.
pub fn step(settings: &Settings) -> String {
    let t = &settings.train;
    let steps = if t.steps == UNKNOWN_STEPS { "one epoch".into() } else { counted(t.steps as u64, "step") };
    format!(
        "{}: batch {} x context {} x {}; {steps}",
        counted(t.tokens_per_step as u64, "token"),
        t.batch,
        t.context,
        counted(settings.sizes().accumulation as u64, "micro-step")
    )
}

/// Describes a learning rate that is hardly meant: zero, or a warm-up that is longer than the run.
pub fn rate(settings: &Settings) -> Option<String> {
    let t = &settings.train;
    if t.lr == 0.0 {
        return Some("--lr 0 changes no weight".into());
    }
    let schedule = settings.schedule();
    let is_long = t.steps != UNKNOWN_STEPS && t.warmup > t.steps && schedule.at(t.steps - 1) < t.lr;
    is_long.then(|| {
        let (warmup, steps) = (counted(t.warmup as u64, "step"), count(t.steps as u64));
        format!(
            "the warm-up of {warmup} is longer than the run of {steps}: the rate ends at {:.2e}",
            schedule.at(t.steps - 1)
        )
    })
}

/// Returns whether an adapter is a software one of Mesa before version 26, which tools/run replaces.
pub fn is_old_mesa(caps: &Caps) -> bool {
    let version = caps.driver.split("Mesa ").nth(1).and_then(|text| text.split('.').next()?.parse::<u32>().ok());
    caps.software && version.is_some_and(|version| version < 26)
}

/// The remark about such an adapter.
pub const OLD_MESA: &str = "older than Mesa 26: on Linux start wgpt through tools/run, which fetches a newer one";

/// Describes the ranks and how devices share them; `None` for one rank.
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
    if is_old_mesa(&gpu.caps) {
        say!("         {OLD_MESA}");
    }
    // the shape as given: the trainer's is padded
    say!("model    {}: {}, {}", shape(&m), parameters(config), t.precision.name());
    say!("data     {summary}");
    say!("step     {}", step(settings));
    if let Some(line) = rate(settings) {
        say!("rate     {line}");
    }
    if let Some(processes) = processes {
        say!("mpi      {processes}");
    }
    if let Some(line) = ranks(settings, settings.run.device_count) {
        say!("ranks    {line}");
    }
    // hundreds of characters, for logs and `-v`; config.toml has them too
    if log::log_enabled!(log::Level::Info) || !std::io::stdout().is_terminal() {
        say!("kernels  {}", trainer.kernel_summary().join(", "));
    }
    if trainer.elem() == Elem::F16 {
        if let Some(why) = matmul::choose::without_matrices(&gpu.caps) {
            say!("         no matrix units: {why}");
        } else if matmul::choose::is_faster_without_matrices(&gpu.caps) {
            say!("         products without matrix units: they are slower on Intel's Alchemist by others' figures;");
            say!("         wgpt tune tries both");
        } else if let Some(why) = attention::without_matrices(&gpu.caps, config.head_size()) {
            say!("         attention without matrix units: {why}");
        }
    }
    let step = trainer.step_program();
    for (kernel, figures) in measure::statistics::spilling(gpu, &step) {
        say!("         {} is slow: it spills registers ({figures}); try wgpt tune", kernel.name());
    }
    let all = settings.run.device_count;
    let first = if all > 1 { format!(" on the first of {all} devices") } else { String::new() };
    say!("memory   {}{first}", size(gpu.allocated_bytes()));
    say!("folder   {}", out.display());
    let sizes = [t.batch, t.context];
    if let Some(line) = measure::tuned_jobs_summary(tuned, &gpu.caps, config, trainer.elem(), sizes) {
        say!("tuned    {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpt::train::settings::Recipe;
    use wgpt::train::settings::resolve::InitWeights;

    #[test]
    fn a_rate_that_is_hardly_meant_is_named() {
        let mut settings = Recipe::default().resolve(InitWeights::Random).expect("settings");
        let mut line = |lr: f32, warmup: usize| {
            (settings.train.lr, settings.train.warmup, settings.train.steps) = (lr, warmup, 100);
            rate(&settings)
        };
        assert_eq!(line(6e-4, 100), None);
        assert_eq!(line(0.0, 0).as_deref(), Some("--lr 0 changes no weight"));
        let long = line(6e-4, 500).expect("a line");
        assert_eq!(long, "the warm-up of 500 steps is longer than the run of 100: the rate ends at 1.20e-4");
    }

    #[test]
    fn only_an_old_software_driver_is_named() {
        let caps = |driver: &str, software| Caps { driver: driver.into(), software, ..Caps::webgpu_defaults() };
        assert!(is_old_mesa(&caps("llvmpipe Mesa 22.3.6 (LLVM 15.0.6)", true)));
        assert!(!is_old_mesa(&caps("llvmpipe Mesa 26.1.6-1 (LLVM 21.1.8)", true)));
        assert!(!is_old_mesa(&caps("radv Mesa 22.3.6", false)));
        assert!(!is_old_mesa(&caps("SwiftShader driver", true)));
    }
}
