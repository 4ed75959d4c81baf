//! `wgpt train --dry-run` and `--print-config`: a run, described without its data and without a device.

use std::fmt::Write;
use std::path::PathBuf;

use wgpt::error::{Error, Fault, Result};
use wgpt::files::visible;
use wgpt::gpu::{Elem, Gpu};
use wgpt::measure::plan::{LARGEST_BINDING, assumed, plan, smaller_batch};
use wgpt::train::Settings;
use wgpt::train::settings::layers::{KEYS, values_of};
use wgpt::train::settings::{Batch, Precision, Source};
use wgpt::units;

use super::model::summary;
use super::terminal::{say, say_lines};
use super::train::{Asked, header, resolve};

/// Prints the run and its plan.
pub fn run(asked: &mut Asked) -> Result<()> {
    let devices = asked.count_devices()?;
    let mut settings = settings_of(asked)?;
    settings.run.device_count = devices;
    settings.check()?;
    let unread = settings.clone();
    let summary_of_data = if resolve::files_are_here(&settings) {
        resolve::look(&mut settings)?.summary
    } else if settings.data.source == Source::Stories {
        resolve::data_names(&settings)
    } else if let Source::Text(files) = &settings.data.source {
        missing_texts(files)?
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
        let which = if devices.trim() == "all" { "all of this machine" } else { "not looked up" };
        say!("devices  {}, {which}", settings.run.device_count);
    }
    if let Some(line) = header::ranks(&settings, settings.run.device_count) {
        say!("ranks    {line}");
    }
    let [peak, last] = settings.schedule().rate_texts();
    let warmup = units::counted(t.warmup as u64, "step");
    say!("rate     {peak} to {last}, warm-up of {warmup}, then {}", t.schedule.name());
    if let Some(line) = header::rate(&settings).filter(|_| !is_auto(asked)) {
        say!("         {line}");
    }
    let (prices, planned) = (settings.run.price_per_hour.is_some(), if is_auto(asked) { unread } else { settings });
    let mut refused = None;
    for elem in elements(asked.precision()) {
        refused = refused.or(print_plan(asked, planned.clone(), elem)?);
    }
    if prices {
        say!("hours    `wgpt plan RECIPE --gpu CARD` predicts hours and dollars");
    }
    refused.map_or(Ok(()), Err)
}

/// Names the texts that are not here.
///
/// # Errors
/// [`Error::Data`] if only some are missing: that is a mistake, while none are here of a run for another machine.
fn missing_texts(files: &[PathBuf]) -> Result<String> {
    let missing: Vec<&PathBuf> = files.iter().filter(|file| !file.exists()).collect();
    if let [first, ..] = missing[..]
        && missing.len() < files.len()
    {
        return Err(Error::data(Fault::at(first.display(), "no such file").expected("a text")));
    }
    let names: Vec<String> = missing.iter().map(|file| file.display().to_string()).collect();
    Ok(format!("{}: not here", names.join(", ")))
}

/// Resolves the settings without the files of the first weights where their shape is known otherwise.
fn settings_of(asked: &Asked) -> Result<Settings> {
    let start = match asked.known_start() {
        Some(start) => start,
        None => resolve::start_without_files(asked.recipe())?,
    };
    asked.recipe().resolve(start)
}

/// Returns the precisions that a run may have.
fn elements(precision: Precision) -> Vec<Elem> {
    match precision {
        Precision::F32 => vec![Elem::F32],
        Precision::F16 => vec![Elem::F16],
        Precision::Auto => vec![Elem::F16, Elem::F32],
    }
}

/// Returns whether the batch will be chosen by memory.
fn is_auto(asked: &Asked) -> bool {
    asked.recipe().training.batch == Some(Batch::Auto)
}

/// Prints the memory that is allocated. Returns the error if it exceeds the limit.
fn print_plan(asked: &Asked, mut settings: Settings, elem: Elem) -> Result<Option<Error>> {
    let name = elem.name();
    settings.train.precision = elem;
    let caps = assumed(elem, LARGEST_BINDING);
    let dry =
        asked.choose_batch(&mut settings, || Ok(Gpu::dry(caps.clone())))?.unwrap_or_else(|| Gpu::dry(caps.clone()));
    let (total, table) = plan(&dry, &settings)?;
    if is_auto(asked) {
        // an epoch has fewer steps of a larger batch
        if resolve::files_are_here(&settings) {
            resolve::look(&mut settings)?;
        }
        say!("step     in {name}: {}", header::step(&settings));
        header::rate(&settings).iter().for_each(|line| say!("         {line}"));
    }
    let each = if settings.run.device_count > 1 { ", each of several devices" } else { "" };
    say!("memory   in {name}, on a GPU with bindings up to 2 GiB{each}:");
    say_lines!("{table}");
    let Some(limit) = settings.run.memory.filter(|limit| total > *limit) else { return Ok(None) };
    let [needs, most] = units::sizes([total, limit]);
    let fault = Fault::at("memory", format!("the run needs {needs} in {name}")).expected(format!("at most {most}"));
    let advice = smaller_batch(&dry, &settings, limit, asked.recipe().training.tokens_per_step)?;
    Ok(Some(Error::memory(fault.advice(advice))))
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
                // only the ranks: one per device, or those of the run in the folder
                let derived = || "derived: from the devices, or the run in the folder".to_owned();
                (format!("{name} = {value}"), origin.map_or_else(derived, ToString::to_string))
            }
            (None, _) if name == "tokens-per-step" && is_auto(asked) => {
                (format!("# {name}"), "derived: from the chosen batch".to_owned())
            }
            // commented out: a value that follows from others would contradict them in a recipe
            (None, Some(value)) => {
                let from = origin.map_or_else(|| kind(name, &settings).to_owned(), ToString::to_string);
                (format!("# {name} = {value}"), from)
            }
            (None, None) if name == "steps" => (format!("# {name}"), "derived: one epoch of the data".to_owned()),
            (None, None) => (format!("# {name}"), origin.map_or_else(|| "not given".to_owned(), ToString::to_string)),
        };
        // a file's name may contain line ends
        let _ = writeln!(text, "{line:<40} # {}", visible::line(&from));
    }
    for notice in &asked.merged.notices {
        let _ = writeln!(text, "\n# {}", visible::line(notice));
    }
    say_lines!("{}", text.trim_end());
    Ok(())
}

/// Returns all values of the settings, with the shape of a named model, and `auto` where the value is chosen later.
fn every_value(asked: &Asked, settings: &Settings) -> wgpt::train::settings::Recipe {
    let (mut all, shape) = (settings.recipe(), settings.config());
    let sizes = [shape.layers, shape.heads, shape.channels, shape.vocab].map(Some);
    [all.model.layers, all.model.heads, all.model.channels, all.model.vocab] = sizes;
    all.training.precision = Some(asked.precision());
    all.training.batch = asked.recipe().training.batch.or(all.training.batch);
    all
}

/// Returns whether a value that was not given is a fixed default or follows from others.
fn kind(name: &str, settings: &Settings) -> &'static str {
    let follows = ["tokenizer", "layers", "heads", "channels", "vocab", "context", "tokens-per-step", "val-limit"];
    let epoch = name == "steps" && settings.data.source != Source::Stories;
    if follows.contains(&name) || name == "hellaswag-every" || epoch { "derived" } else { "default" }
}
