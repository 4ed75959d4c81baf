//! `wgpt train --dry-run` and `--print-config`: what a run would be, told without its data and without a device.

use std::fmt::Write;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use wgpt::error::{Error, Result};
use wgpt::gpu::{Elem, Gpu};
use wgpt::measure::plan::{LARGEST_BINDING, assumed, plan};
use wgpt::train::settings::Settings;

use super::batch::Batch;
use super::model::summary;
use super::precision::Precision;
use super::recipe::{Expanded, NOT_IN_RECIPES};
use super::terminal::say;
use super::train::{Args, Resolved, UNKNOWN_STEPS};

/// Prints the run and its plan.
pub fn run(args: &Args, aside: &[String]) -> Result<()> {
    let start = args.start_without_files()?;
    let Resolved { mut settings, config, tokenizer } = args.resolve(start.as_ref())?;
    let files = args.files_are_here();
    let summary_of_data = if files {
        args.look(&mut settings, &config, tokenizer)?.summary
    } else if args.uses_stories() {
        args.data_names()
    } else {
        format!("{}: not here", args.data_names())
    };
    settings.check()?;
    let t = &settings.train;
    aside.iter().for_each(|text| say!("recipe   {text}"));
    say!("model    {}", summary(&config));
    say!("data     {summary_of_data}");
    let steps = if t.steps == UNKNOWN_STEPS { "one epoch".into() } else { format!("{} steps", t.steps) };
    say!(
        "step     {} tokens: batch {} x context {} x {} micro-steps; {steps}",
        t.tokens_per_step,
        t.batch,
        t.context,
        settings.sizes().accumulation
    );
    say!("rate     {} to {}, warm-up of {} steps, then {}", t.lr, t.lr * t.final_lr_frac, t.warmup, t.schedule.name());
    let mut refused = None;
    for elem in elements(args.precision) {
        refused = refused.or(print_plan(args, &mut settings, elem)?);
    }
    refused.map_or(Ok(()), Err)
}

/// The precisions that a run may turn out to have.
fn elements(precision: Precision) -> Vec<Elem> {
    match precision {
        Precision::F32 => vec![Elem::F32],
        Precision::F16 => vec![Elem::F16],
        Precision::Auto => vec![Elem::F16, Elem::F32],
    }
}

/// Prints what is allocated; the error if it is more than there may be.
fn print_plan(args: &Args, settings: &mut Settings, elem: Elem) -> Result<Option<Error>> {
    let name = elem.name();
    settings.train.precision = name.into();
    let caps = assumed(elem, LARGEST_BINDING);
    let dry = args.choose_batch(settings, || Ok(Gpu::dry(caps.clone())))?.unwrap_or_else(|| Gpu::dry(caps.clone()));
    let (total, table) = plan(&dry, settings)?;
    let batch =
        if args.batch == Some(Batch::Auto) { format!(", batch {}", settings.train.batch) } else { String::new() };
    say!("memory   in {name}, on a GPU with bindings up to 2 GiB{batch}:");
    say!("{table}");
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(args.memory.filter(|limit| total > *limit).map(|limit| {
        Error::memory(format!(
            "memory: the run needs {:.1} MiB in {name}, expected at most {:.1} MiB; try a smaller --batch, --context or \
             model",
            mib(total),
            mib(limit)
        ))
    }))
}

/// Prints every value and where it comes from, as a recipe.
pub fn print_config(args: &Args, command: &Command, matches: &ArgMatches, expanded: &Expanded) -> Result<()> {
    let Some(train) = command.find_subcommand("train") else { return Ok(()) };
    let start = args.start_without_files()?;
    let Resolved { settings, .. } = args.resolve(start.as_ref())?;
    let known = |arg: &&Arg| arg.get_long().is_some() && !NOT_IN_RECIPES.contains(&arg.get_id().as_str());
    let mut headings: Vec<&str> = train.get_arguments().filter(known).filter_map(Arg::get_help_heading).collect();
    headings.dedup();
    let mut text = String::new();
    for heading in headings {
        let _ = writeln!(text, "[{}]", heading.to_lowercase());
        for arg in train.get_arguments().filter(known).filter(|arg| arg.get_help_heading() == Some(heading)) {
            let (value, origin) = value_of(arg, matches, expanded, &settings);
            let key = arg.get_long().unwrap_or_default();
            // what is not given stays out of the recipe: it would be given then
            let mark = if matches!(arg.get_action(), ArgAction::SetTrue)
                || matches.value_source(arg.get_id().as_str()).is_some()
            {
                ""
            } else {
                "# "
            };
            let line = value.map_or_else(|| format!("# {key}"), |value| format!("{mark}{key} = {value}"));
            let _ = writeln!(text, "{line:<40} # {origin}");
        }
        text.push('\n');
    }
    expanded.aside.iter().for_each(|aside| {
        let _ = writeln!(text, "# {aside}");
    });
    say!("{}", text.trim_end());
    Ok(())
}

/// A value as TOML, if there is one, and where it comes from.
fn value_of(arg: &Arg, matches: &ArgMatches, expanded: &Expanded, settings: &Settings) -> (Option<String>, String) {
    let id = arg.get_id().as_str();
    let source = matches.value_source(id);
    let given = expanded.origins.get(id).cloned();
    let origin = match source {
        Some(ValueSource::CommandLine) => given.unwrap_or_else(|| "flag".into()),
        Some(_) => given.unwrap_or_else(|| "default".into()),
        // what --set empties
        None => given.unwrap_or_else(|| "not given".into()),
    };
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        let place = expanded.origins.get(id).filter(|_| source != Some(ValueSource::CommandLine));
        return (Some(matches.get_flag(id).to_string()), place.cloned().unwrap_or(origin));
    }
    let raw: Vec<String> =
        matches.get_raw(id).into_iter().flatten().map(|value| value.to_string_lossy().into_owned()).collect();
    match raw.as_slice() {
        [] => match derived(id, settings) {
            Some(value) => {
                let fixed = ["batch", "lr", "warmup", "val_every", "sample_every"].contains(&id);
                (Some(toml_of(&value)), if fixed { "default" } else { "derived" }.into())
            }
            None if id == "steps" => (None, "derived: one epoch of the data".into()),
            None => (None, origin),
        },
        [one] if !matches!(arg.get_action(), ArgAction::Append) => (Some(toml_of(one)), origin),
        list => {
            let list: Vec<String> = list.iter().map(|value| toml_of(value)).collect();
            (Some(format!("[{}]", list.join(", "))), origin)
        }
    }
}

/// What follows from the other values, of arguments that were not given.
fn derived(id: &str, settings: &Settings) -> Option<String> {
    let (m, d, t, run) = (&settings.model, &settings.data, &settings.train, &settings.run);
    let number = |number: usize| Some(number.to_string());
    match id {
        "tokenizer" => d.tokenizer.clone(),
        "layers" => number(m.layers),
        "heads" => number(m.heads),
        "channels" => number(m.channels),
        "vocab" => number(m.vocab),
        "context" => number(t.context),
        "batch" => number(t.batch),
        "tokens_per_step" => number(t.tokens_per_step),
        "steps" if t.steps != UNKNOWN_STEPS => number(t.steps),
        "lr" => Some(t.lr.to_string()),
        "warmup" => number(t.warmup),
        "val_every" => number(t.val_every),
        "val_limit" => t.val_rows.and_then(|rows| number(rows * t.context)),
        "hellaswag_every" => run.hellaswag_every.and_then(number),
        "sample_every" => number(run.sample_every),
        _ => None,
    }
}

/// Numbers bare, all else in quotes.
fn toml_of(text: &str) -> String {
    let bare = text.parse::<i64>().is_ok()
        || text.parse::<f64>().is_ok_and(f64::is_finite) && text.starts_with(char::is_numeric);
    // TOML wants a digit on both sides of a point, which a table tells
    let bare = bare && format!("x = {text}").parse::<toml::Table>().is_ok();
    if bare { text.to_owned() } else { toml::Value::String(text.to_owned()).to_string() }
}
