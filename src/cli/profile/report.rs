//! The report of a measured step: printed, and written as JSON and as a trace.

use std::path::Path;

use serde_json::json;

use wgpt::error::Result;
use wgpt::files::atomic;
use wgpt::gpu::Gpu;
use wgpt::measure::exchange::{MeasuredExchange, Traffic};
use wgpt::measure::predict::Comparison;
use wgpt::measure::predict::card::Card;
use wgpt::measure::steps::StepFigures;
use wgpt::measure::table::number;
use wgpt::measure::{Profile, Roofs, Steps, trace};
use wgpt::model::Config;
use wgpt::train::collective::mpi::World;
use wgpt::train::{Sizes, TrainerOptions};

use super::super::stdout;
use super::super::terminal::{say, say_lines};
use super::Args;

/// Figures of one device.
pub(super) struct Measured {
    pub steps: Steps,
    pub facts: StepFigures,
    pub kernels: Vec<String>,
    pub profile: Option<(Profile, Roofs)>,
}

/// A measured step of this process.
pub(super) struct Report<'m> {
    pub args: &'m Args,
    pub world: Option<&'m World>,
    pub gpus: &'m [Gpu],
    /// Devices of all processes.
    pub devices: usize,
    pub machines: usize,
    pub options: TrainerOptions,
    pub card: Option<&'static Card>,
    pub tuned: Option<String>,
    /// Figures of this process' devices. The first one's kernels are timed.
    pub measured: &'m [Measured],
}

impl Report<'_> {
    /// Prints the figures and writes the files that the arguments name.
    pub fn publish(&self) -> Result<()> {
        let [first, others @ ..] = self.measured else { return Ok(()) };
        self.print_subject();
        stdout::text(&first.facts.report());
        let exchange =
            (self.devices > 1).then(|| MeasuredExchange::new(&Traffic::of_device(&self.options, 0), &first.steps));
        if let Some(exchange) = &exchange {
            say_lines!("{}", exchange.report(&self.args.wire.to_string()));
        }
        let comparison = self.print_kernels(first);
        let caps = &self.gpus[0].caps;
        let about = json!({"adapter": caps.name, "driver": caps.driver, "version": env!("CARGO_PKG_VERSION")});
        if let Some(path) = &self.args.json {
            let profile = profile_json(first, comparison.as_ref());
            let step = self.step_json(first);
            write(path, &json!({"about": about, "step": step, "profile": profile, "exchange": exchange}))?;
        }
        let timed = first.profile.as_ref().map(|(profile, _)| profile);
        if let Some(path) = &self.args.trace {
            let others: Vec<&Steps> = others.iter().map(|other| &other.steps).collect();
            write(path, &trace::trace(&first.steps, &others, timed, &about))?;
        }
        if let Some(profile) = timed {
            let (kernels, step) = (number(profile.commands_ms()), number(first.steps.median_ms()));
            say!("sum of kernels {kernels} ms of a step's {step} ms");
        }
        Ok(())
    }

    /// Prints devices, processes and the step's sizes.
    fn print_subject(&self) {
        for (number, gpu) in self.gpus.iter().enumerate() {
            say_device(gpu, (self.devices > 1).then_some(number));
        }
        if let Some(world) = self.world {
            say!("mpi     {}", world.summary());
        }
        let several = match (self.devices, self.machines) {
            (1, _) => String::new(),
            (devices, 1) => format!(" on {devices} devices"),
            (devices, machines) => format!(" on {devices} devices of {machines} machines"),
        };
        let TrainerOptions { config, sizes, elem, .. } = &self.options;
        say!("step    {}{several}; {}", sizes_text(config, sizes), elem.name());
        if let Some(line) = &self.tuned {
            say!("tuned   {line}");
        }
    }

    /// Prints the kernels of the timed step. Returns their comparison with the prediction, if there is one.
    fn print_kernels(&self, first: &Measured) -> Option<Comparison> {
        let Some((profile, roofs)) = &first.profile else {
            if !self.args.wall {
                say!("kernels not timed: the adapter has no timestamps");
            }
            return None;
        };
        let heading = if self.devices > 1 { "\nof device 0:" } else { "" };
        say_lines!("roofs   {}\n{heading}", roofs.summary());
        stdout::text(&profile.report(roofs));
        let card = self.card?;
        let comparison = Comparison::new(card, profile, roofs);
        say_lines!("\n{}", comparison.report());
        let adapter = &self.gpus[0].caps.name;
        if Card::of_adapter(adapter).is_none_or(|own| own.key != card.key) {
            say_lines!("{adapter} is not {}: the ratios compare two machines\n", card.name);
        }
        Some(comparison)
    }

    fn step_json(&self, first: &Measured) -> serde_json::Value {
        let TrainerOptions { sizes, elem, .. } = &self.options;
        let mut step = json!(first.facts);
        step["precision"] = elem.name().into();
        step["batch"] = sizes.batch.into();
        step["context"] = sizes.context.into();
        step["accumulation"] = self.args.accumulation.into();
        step["devices"] = self.devices.into();
        step["machines"] = self.machines.into();
        step["wire"] = self.args.wire.to_string().into();
        step["tuned"] = self.tuned.clone().into();
        step["kernels"] = first.kernels.clone().into();
        step
    }
}

fn profile_json(first: &Measured, comparison: Option<&Comparison>) -> Option<serde_json::Value> {
    let (profile, roofs) = first.profile.as_ref()?;
    Some(json!({
        "roofs": roofs, "kernels": profile.kernels(roofs), "gaps": profile.gaps(), "places": profile.places(),
        "commands_ms": profile.commands_ms(), "gaps_ms": profile.gaps_ms(), "span_ms": profile.timings.span_ms,
        "plain_ms": profile.plain_ms, "predicted": comparison,
    }))
}

/// Returns the sizes of a model and of its step.
pub(super) fn sizes_text(config: &Config, sizes: &Sizes) -> String {
    format!(
        "{} layers, {} channels, vocabulary {}; batch {} x context {} x {}",
        config.layers, config.channels, config.vocab, sizes.batch, sizes.context, sizes.accumulation
    )
}

/// Writes a file of JSON.
pub(super) fn write(path: &Path, value: &serde_json::Value) -> Result<()> {
    // whole or not at all: tools/gpu-check ends a profile that takes too long
    atomic::write_named(path, &format!("{value:#}\n"))?;
    say!("wrote {}", path.display());
    Ok(())
}

/// Prints a device, with its number if there are several.
pub(super) fn say_device(gpu: &Gpu, number: Option<usize>) {
    say!("device  {}{}", number.map_or(String::new(), |number| format!("{number}: ")), gpu.caps.summary());
    if !gpu.device_kind().is_empty() {
        say!("        {}", gpu.device_kind());
    }
}
