//! `wgpt train --dry-run` and `--print-config`: a run, described without its data and without a device.

use std::fmt::Write;

use wgpt::error::{Error, Fault, Result};
use wgpt::files::visible;
use wgpt::gpu::{Elem, Gpu};
use wgpt::measure::plan::{LARGEST_BINDING, assumed, plan, smaller_batch};
use wgpt::train::Settings;
use wgpt::train::settings::layers::{KEYS, values_of};
use wgpt::train::settings::{Batch, Precision, Source};

use super::model::summary;
use super::terminal::{say, say_lines};
use super::train::{Asked, header, resolve};

/// Prints the run and its plan.
pub fn run(asked: &mut Asked) -> Result<()> {
    let devices = asked.count_devices()?;
    let mut settings = settings_of(asked)?;
    settings.run.device_count = devices;
    settings.check()?;
    let summary_of_data = if resolve::files_are_here(&settings) {
        resolve::look(&mut settings)?.summary
    } else if settings.data.source == Source::Stories {
        resolve::data_names(&settings)
    } else {
        match resolve::why_not_here(&settings) {
            Some(error) if !error.fault().advice.is_empty() => {
                format!("{}: not here; {}", error.fault().place, error.fault().advice)
            }
            _ => format!("{}: not here", resolve::data_names(&settings)),
        }
    };
    let t = &settings.train;
    asked.merged.notices.iter().for_each(|text| say!("recipe   {text}"));
    say!("model    {}", summary(&settings.config()));
    say!("data     {summary_of_data}");
    if !is_auto(asked) {
        say!("step     {}", header::step(&settings));
    }
    if let Some(devices) = &settings.run.devices {
        let which = if devices.trim() == "all" { "all of this machine" } else { "not looked for" };
        say!("devices  {}, {which}", settings.run.device_count);
    }
    if let Some(line) = header::ranks(&settings, settings.run.device_count) {
        say!("ranks    {line}");
    }
    let [peak, last] = settings.schedule().rate_texts();
    say!("rate     {peak} to {last}, warm-up of {} steps, then {}", t.warmup, t.schedule.name());
    let mut refused = None;
    for elem in elements(asked.precision()) {
        refused = refused.or(print_plan(asked, &mut settings, elem)?);
    }
    refused.map_or(Ok(()), Err)
}

/// Resolves the settings without the files of the first weights where their shape is known otherwise.
fn settings_of(asked: &Asked) -> Result<Settings> {
    let start = match asked.known_start() {
        Some(start) => start,
        None => resolve::start_without_files(asked.recipe())?,
    };
    asked.recipe().resolve(start)
}

/// The precisions that a run may turn out to have.
fn elements(precision: Precision) -> Vec<Elem> {
    match precision {
        Precision::F32 => vec![Elem::F32],
        Precision::F16 => vec![Elem::F16],
        Precision::Auto => vec![Elem::F16, Elem::F32],
    }
}

/// True if the batch is yet to be chosen, by memory.
fn is_auto(asked: &Asked) -> bool {
    asked.recipe().training.batch == Some(Batch::Auto)
}

/// Prints what is allocated; returns the error if it is more than there may be.
fn print_plan(asked: &Asked, settings: &mut Settings, elem: Elem) -> Result<Option<Error>> {
    let name = elem.name();
    settings.train.precision = elem;
    let caps = assumed(elem, LARGEST_BINDING);
    let dry = asked.choose_batch(settings, || Ok(Gpu::dry(caps.clone())))?.unwrap_or_else(|| Gpu::dry(caps.clone()));
    let (total, table) = plan(&dry, settings)?;
    if is_auto(asked) {
        say!("step     in {name}: {}", header::step(settings));
    }
    let each = if settings.run.device_count > 1 { ", each of several devices" } else { "" };
    say!("memory   in {name}, on a GPU with bindings up to 2 GiB{each}:");
    say_lines!("{table}");
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let Some(limit) = settings.run.memory.filter(|limit| total > *limit) else { return Ok(None) };
    let fault = Fault::at("memory", format!("the run needs {} in {name}", mib(total)));
    let advice = smaller_batch(&dry, settings, limit, asked.recipe().training.tokens_per_step)?;
    Ok(Some(Error::memory(fault.expected(format!("at most {}", mib(limit))).advice(advice))))
}

/// Prints every value and where it comes from, as a recipe.
pub fn print_config(asked: &mut Asked) -> Result<()> {
    asked.count_devices()?;
    let asked = &*asked;
    let settings = settings_of(asked)?;
    let (given, all) = (values_of(asked.recipe())?, values_of(&every_value(asked, &settings))?);
    let value =
        |list: &[(&str, toml::Value)], key: &str| list.iter().find(|(k, _)| *k == key).map(|(_, v)| visible::toml(v));
    let (mut text, mut table) = (String::new(), "");
    for key in KEYS.iter() {
        if table != key.table {
            let _ = writeln!(text, "{}[{}]", if table.is_empty() { "" } else { "\n" }, key.table);
            table = &key.table;
        }
        let name = key.name.as_str();
        let origin = asked.merged.origins.get(name);
        let (line, from) = match (value(&given, name), value(&all, name)) {
            (Some(value), _) => {
                // of ranks alone: as many as devices, or as the run has
                let derived = || "derived: of the devices, or of the run that is there".to_owned();
                (format!("{name} = {value}"), origin.map_or_else(derived, ToString::to_string))
            }
            (None, _) if name == "tokens-per-step" && is_auto(asked) => {
                (format!("# {name}"), "derived: of the batch that is chosen".to_owned())
            }
            // not given, and to be given by no recipe: a value that follows from others would contradict them
            (None, Some(value)) => {
                let from = origin.map_or_else(|| kind(name, &settings).to_owned(), ToString::to_string);
                (format!("# {name} = {value}"), from)
            }
            (None, None) if name == "steps" => (format!("# {name}"), "derived: one epoch of the data".to_owned()),
            (None, None) => (format!("# {name}"), origin.map_or_else(|| "not given".to_owned(), ToString::to_string)),
        };
        // a file may have any name, also one with a line in it
        let _ = writeln!(text, "{line:<40} # {}", visible::line(&from));
    }
    for notice in &asked.merged.notices {
        let _ = writeln!(text, "\n# {}", visible::line(notice));
    }
    say_lines!("{}", text.trim_end());
    Ok(())
}

/// All values that the settings have, with the shape of a model that is named and what is still to be chosen.
fn every_value(asked: &Asked, settings: &Settings) -> wgpt::train::settings::Recipe {
    let (mut all, shape) = (settings.recipe(), settings.config());
    let sizes = [shape.layers, shape.heads, shape.channels, shape.vocab].map(Some);
    [all.model.layers, all.model.heads, all.model.channels, all.model.vocab] = sizes;
    all.training.precision = Some(asked.precision());
    all.training.batch = asked.recipe().training.batch.or(all.training.batch);
    all
}

/// Says of a value that was not given if it is fixed or follows from others.
fn kind(name: &str, settings: &Settings) -> &'static str {
    let follows = ["tokenizer", "layers", "heads", "channels", "vocab", "context", "tokens-per-step", "val-limit"];
    let epoch = name == "steps" && settings.data.source != Source::Stories;
    if follows.contains(&name) || name == "hellaswag-every" || epoch { "derived" } else { "default" }
}
