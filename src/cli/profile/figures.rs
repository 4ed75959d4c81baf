//! Figures that need no training: the adapter's rates, and the driver's figures on kernels.

use std::time::Duration;

use serde_json::json;

use wgpt::error::{Error, Result};
use wgpt::gpu::Gpu;
use wgpt::measure::predict::card::Card;
use wgpt::measure::predict::code::Codes;
use wgpt::measure::table::number;
use wgpt::measure::{self, Roofs, predict};
use wgpt::train::Trainer;

use super::super::stdout;
use super::super::terminal::{say, say_lines};
use super::Args;
use super::report::{say_device, write};

/// Measures the adapter's rates and compares them with the card's.
pub(super) fn rates(args: &Args, gpu: &Gpu, card: Option<&Card>) -> Result<()> {
    say_device(gpu, None);
    let time = Duration::from_secs_f64(args.seconds.clamp(0.1, 3600.0) / 20.0);
    let roofs = Roofs::measure(gpu, time)?;
    say!("roofs   {}", roofs.summary());
    roofs.notes.iter().for_each(|note| say!("        {note}"));
    if args.experimental && roofs.matrix_flexible.is_none() {
        let why = if gpu.caps.matrix_edges.is_empty() {
            "try --precision f16"
        } else {
            "the driver has none of f16 with f32 sums"
        };
        say!("        matrices of flexible dimensions not run: {why}");
    }
    let compared = card.map(|card| predict::comparison::rates(card, &roofs));
    if let (Some(card), Some(rows)) = (card, &compared) {
        say_lines!(
            "\ncompared with the prediction for {}\n{}",
            card.name,
            predict::comparison::table("<rate", "", rows)
        );
    }
    match &args.json {
        Some(path) => write(path, &json!({"adapter": gpu.caps.name, "roofs": roofs, "predicted": compared})),
        None => Ok(()),
    }
}

/// Prints the driver's figures on the kernels that the trainer has built, those with the longest predicted time first.
pub(super) fn statistics(args: &Args, trainer: &Trainer, card: Option<&Card>) -> Result<()> {
    let gpu = trainer.gpu();
    say_device(gpu, None);
    let kernels = gpu.statistics().filter(|kernels| kernels.iter().any(|(_, figures)| !figures.is_empty()));
    let Some(mut kernels) = kernels else { return Err(missing(gpu)) };
    if let Some(card) = card.or_else(|| args.heaviest.and_then(|_| predict::card::cards().first())) {
        let (predicted, _) = predict::rows(card, Codes::committed(), &trainer.step_program());
        let row = |kernel: &str| predicted.iter().find(|row| row.kernel == kernel);
        kernels.sort_by(|a, b| {
            let ms = |kernel: &str| row(kernel).map_or(0.0, |row| row.ms);
            ms(&b.0).total_cmp(&ms(&a.0))
        });
        for (kernel, figures) in &mut kernels {
            let Some(row) = row(kernel) else { continue };
            figures.insert(0, ("registers predicted".into(), format!("{:.0}", row.registers)));
            figures.insert(0, ("ms predicted".into(), number(row.ms)));
        }
        say!("predicted: {}, by the machine code of Mesa's {}", card.name, card.code);
    }
    kernels.truncate(args.heaviest.unwrap_or(usize::MAX));
    stdout::text(&measure::statistics::table(&kernels));
    let Some(path) = &args.json else { return Ok(()) };
    let all: Vec<_> = kernels
        .iter()
        .map(|(kernel, figures)| {
            let figures: serde_json::Map<_, _> = figures.iter().map(|(n, v)| (n.clone(), json!(v))).collect();
            json!({"kernel": kernel, "figures": figures})
        })
        .collect();
    write(path, &json!(all))
}

/// Returns the error of a driver without figures.
pub(super) fn missing(gpu: &Gpu) -> Error {
    Error::device(format!(
        "profile: the driver of {} reports no figures on kernels (it lacks VK_KHR_pipeline_executable_properties); try \
         tools/isa, which asks Mesa's compilers and needs no GPU",
        gpu.caps.name
    ))
}
