//! `wgpt tune`.

mod budget;

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use wgpt::error::{Error, Result};
use wgpt::files::atomic;
use wgpt::gpu::{self, Elem, Gpu, Options};
use wgpt::measure::predict::card::Card;
use wgpt::measure::table::number;
use wgpt::measure::tune::{self, Ceiling, Job, LoadedRecord, RaceResult, Trial};
use wgpt::measure::{self, Roofs};
use wgpt::ops::matmul::choose;
use wgpt::units::counted;

use super::precision::{self, Precision};
use super::predicted;
use super::shape::Shape;
use super::signals;
use super::terminal::say;
use budget::Budget;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The record is a file in ~/.cache/wgpt/tune (the user's cache folder), or in
$WGPT_CACHE/tune, or the file that WGPT_TUNING names, whose folder must exist.
`wgpt train` takes its kernels for the same shapes. The table's kernel is tried
first, the record's second; an entry is replaced once two kernels were tried.
--seconds 0 checks the table's kernels and writes nothing.

Examples:
  wgpt tune --model d12 --batch 16
  wgpt tune --model d12 --batch 64 --total 120 --json tune.json
  wgpt tune --layers 3 --heads 4 --channels 128 --vocab 257 --batch 8 \\
      --context 128 --precision f32")]
pub struct Args {
    #[command(flatten)]
    shape: Shape,
    /// Sequences per micro-step
    #[arg(long, value_name = "N", default_value_t = 4)]
    batch: usize,
    /// Tokens per sequence
    ///
    /// [default: 1024, on a software adapter 64]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// f32, f16 (mixed) or auto
    #[arg(long, value_enum, value_name = "TYPE", hide_possible_values = true, default_value_t = Precision::Auto)]
    pub precision: Precision,
    /// Seconds for the kernels of one product
    ///
    /// [default: 10; with --total a share of what is left]
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Seconds for all products together
    #[arg(long, value_name = "SECONDS")]
    total: Option<f64>,
    /// Write all kernels that were tried as JSON
    ///
    /// With their times, or why they were refused
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare times with the prediction for this GPU
    ///
    /// [default: the adapter's own, where `wgpt plan --gpu` knows it]
    #[arg(long, value_name = "CARD")]
    against: Option<String>,
    /// Adapter by index or part of its name
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
}

/// Tries kernels and keeps a record.
pub fn run(args: &Args) -> Result<()> {
    let stop = signals::listen(|| signals::Answer::Stops("stopping after this kernel, then saving what was found"))?;
    let listed = gpu::adapter::find(args.device.as_deref())?;
    let elem = precision::on(args.precision, &listed);
    let mixed = elem == Elem::F16;
    let context = args.context.unwrap_or(if listed.software { 64 } else { 1024 });
    let config = args.shape.config(context)?;
    if args.batch.checked_mul(context).is_none_or(|rows| !(1..=1 << 18).contains(&rows)) {
        return Err(Error::usage(format!("--batch: {} x {context} tokens, expected 1 to 262,144", args.batch)));
    }
    let mut budget = Budget::new(args.seconds, args.total)?;
    let card = args.against.as_deref().map(|name| predicted::card("--against", name)).transpose()?;
    let mut gpu =
        Gpu::open(&Options { device: args.device.clone(), matrices: mixed, statistics: true, ..Options::default() })?;
    precision::check(elem, &gpu.caps)?;
    let card = card.or_else(|| Card::of_adapter(&gpu.caps.name));
    let jobs = tune::jobs(&gpu.caps, &config, elem, [args.batch, context]);
    let products = jobs.iter().filter(|job| job.is_product()).count();
    let attention = match jobs.len() - products {
        0 => String::new(),
        kernels => format!(" and {}", counted(kernels as u64, "attention kernel")),
    };
    let products = counted(products as u64, "product");
    say!("tune     {products}{attention}, at most {}", budget.at_most(jobs.len()));
    say!("device   {}", gpu.caps.summary());
    if let (true, Some(why)) = (mixed, choose::without_matrices(&gpu.caps)) {
        say!("         no matrix units: {why}");
    }
    // before a record is touched and before roofs, which would be infinite: a stand-in for a GPU computes nothing
    tune::check_device(&mut gpu)?;
    // fail before minutes are spent if the record cannot be written
    let path = tune::prepare(&gpu.caps)?;
    if let LoadedRecord::Ignored(why) = tune::load(&mut gpu.caps) {
        say!("record   {why}");
    }
    let ceiling = RefCell::new(Ceiling::measure(&gpu)?);
    say!("roofs    {}", ceiling.borrow().roofs().summary());
    say!("shapes   product: [rows, columns, depth]; attention: [sequences, tokens, heads, channels of a head]");
    if attention.is_empty() {
        say!("attention: one kernel here, nothing to choose");
    }
    let all: f64 = jobs.iter().map(Job::step_flops).sum();
    let (mut tried, mut raced, mut written) = (Vec::new(), Vec::new(), Vec::new());
    budget.begin();
    for (i, job) in jobs.iter().enumerate() {
        let time = budget.next(&jobs[i..]);
        let race = tune::try_all(&mut gpu, job, elem, (&ceiling, card), time, &|| stop().is_some())?;
        tried.push(record(job, elem, job.step_flops() / all, &race));
        let roofs = ceiling.borrow().roofs().clone();
        if let Some(file) = &args.json {
            write(file, &gpu, &roofs, &tried)?;
        }
        if let Some(signal) = stop() {
            let found = match written.len() {
                0 => "nothing was found".into(),
                _ => format!("what was found is in {}", path.display()),
            };
            return Err(Error::stopped(format!("tune: {signal}: stopped; {found}; the next tuning begins again")));
        }
        if let Some((key, text)) = judge(&gpu, (job, elem), &roofs, &race)? {
            tune::save(&gpu.caps, &[(key.clone(), text)])?;
            written.push(key);
        }
        raced.push(race);
    }
    let is_written = |job: &Job| written.contains(&job.key(elem));
    let count = measure::count_jobs(&jobs, is_written);
    // one key is that of several jobs, if their shapes are the same
    match jobs.iter().filter(|job| !is_written(job)).count() {
        0 => say!("tuned    {count}"),
        left => say!("tuned    {count}; {left} had no time: {} would do", budget.would_do(&raced)),
    }
    if ceiling.borrow().exceeded() {
        say!("         some kernels are above the measured roof: was the machine busy when it was measured?");
    }
    if !written.is_empty() {
        say!("saved    {}", path.display());
    }
    if let Some(file) = &args.json {
        say!("wrote    {}", file.display());
    }
    Ok(())
}

/// Prints the outcome of a job. Returns the key and the kernel of its record, if there was a race.
fn judge(gpu: &Gpu, (job, elem): (&Job, Elem), roofs: &Roofs, race: &RaceResult) -> Result<Option<(String, String)>> {
    for trial in &race.trials {
        if let Err(why) = &trial.outcome {
            let kernel = if trial.kernel.is_empty() { trial.choice.to_string() } else { trial.kernel.clone() };
            say!("refused  {job}: {kernel}: {why}");
        }
    }
    let recorded = job.recorded(&gpu.caps, elem).is_some();
    let best = tune::best(&race.trials);
    if best.is_none() && !(recorded && race.left > 0) {
        let more = if race.left > 0 { "; try more --seconds, for others had no time" } else { "" };
        return Err(Error::gpu(format!("tune: no kernel computes {job} correctly{more}")));
    }
    match best {
        Some((best, ms)) if race.may_be_recorded() => {
            say!("{}", line(job, roofs, race, best, ms));
            Ok(Some((job.key(elem), best.choice.text()?)))
        }
        best => {
            let kept = if recorded { "the record's entry is kept" } else { "the table's kernel is taken" };
            let right = best.map_or(String::new(), |(best, ms)| {
                format!("; the table's {}, is correct", measured(job, roofs, best, ms))
            });
            say!("not tuned {job}: out of time; {kept}{right}");
            Ok(None)
        }
    }
}

/// Describes a kernel with its time and rate.
fn measured(job: &Job, roofs: &Roofs, trial: &Trial, ms: f64) -> String {
    let rate = job.flops() / ms * 1e-9;
    format!(
        "{}: {} ms, {} TFLOP/s, {:.0} % of the roof",
        trial.kernel,
        number(ms),
        number(rate),
        1e14 * rate / roofs.flops(trial.arithmetic).1
    )
}

/// Describes one job's result.
fn line(job: &Job, roofs: &Roofs, race: &RaceResult, best: &Trial, ms: f64) -> String {
    let table = &race.trials[0];
    let beside = match &table.outcome {
        Ok(_) if table.kernel == best.kernel => "the table's choice".into(),
        Ok(slower) => {
            let rate = number(job.flops() / slower * 1e-9);
            format!("the table's {}: {rate} TFLOP/s ({:.2} x)", table.kernel, slower / ms)
        }
        Err(_) => format!("the table's {} is refused", table.kernel),
    };
    let predicted = best.predicted_ms.map_or(String::new(), |predicted| {
        format!("predicted {} ms, {} of that; ", number(predicted), number(ms / predicted))
    });
    let tried = race.trials.len();
    let refused = match race.trials.iter().filter(|trial| trial.outcome.is_err()).count() {
        0 => "all correct".into(),
        refused => format!("{refused} refused"),
    };
    let left = if race.left > 0 { format!("; {} had no time", race.left) } else { String::new() };
    let measured = measured(job, roofs, best, ms);
    format!("{job}: {measured}; {predicted}{beside}; {} tried, {refused}{left}", counted(tried as u64, "kernel"))
}

/// Returns one job's trials as JSON, the table's choice first.
fn record(job: &Job, elem: Elem, share: f64, race: &RaceResult) -> Value {
    let trials = &race.trials;
    let list: Vec<Value> = trials
        .iter()
        .map(|trial| {
            let text = trial.choice.text().unwrap_or_default();
            let choice: Value = serde_json::from_str(&text).unwrap_or_default();
            match &trial.outcome {
                Ok(ms) => json!({"kernel": trial.kernel, "choice": choice, "ms": ms,
                    "predicted_ms": trial.predicted_ms, "tflops": job.flops() / ms * 1e-9}),
                Err(why) => json!({"kernel": trial.kernel, "choice": choice, "refused": why}),
            }
        })
        .collect();
    let best = tune::best(trials).map(|(trial, _)| trial.kernel.clone());
    let table = trials.first().map(|trial| trial.kernel.clone());
    json!({"job": job.to_string(), "key": job.key(elem), "flops": job.flops(), "share": share, "best": best, "table": table,
        "trials": list, "not_tried": race.left, "kept": race.may_be_recorded()})
}

fn write(file: &Path, gpu: &Gpu, roofs: &Roofs, jobs: &[Value]) -> Result<()> {
    let value = json!({"adapter": gpu.caps.name, "driver": gpu.caps.driver, "version": env!("CARGO_PKG_VERSION"),
        "roofs": roofs, "jobs": jobs});
    atomic::write_named(file, &format!("{value:#}\n"))
}
