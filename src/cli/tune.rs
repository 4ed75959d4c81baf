//! `wgpt tune`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use wgpt::error::{Error, Result};
use wgpt::formats::atomic;
use wgpt::gpu::{self, Elem, Gpu, Options};
use wgpt::ops::matmul::choose;
use wgpt::train::measure::Roofs;
use wgpt::train::measure::predict::card::Card;
use wgpt::train::measure::table::number;
use wgpt::train::tune::{self, Job, Trial};

use super::precision::{self, Precision};
use super::shape::Shape;
use super::signals;
use super::terminal::say;

/// Seconds for a job where neither flag says otherwise.
const SECONDS: f64 = 10.0;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  wgpt tune --model d12 --batch 16
  wgpt tune --model d12 --batch 64 --total 120 --json tune.json
  wgpt tune --layers 3 --heads 4 --channels 128 --vocab 257 --batch 8 --context 128 --precision f32

The record is a file in the user's cache folder, or in WGPT_CACHE, or the file that WGPT_TUNING names; `wgpt train` takes
its kernels for the same shapes.")]
pub struct Args {
    #[command(flatten)]
    shape: Shape,
    /// Sequences of a micro-step
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Tokens of a sequence [default: 1024, on a software adapter 64]
    #[arg(long)]
    context: Option<usize>,
    /// Element type of matrix operands
    #[arg(long, value_enum, default_value_t = Precision::Auto)]
    pub precision: Precision,
    /// Seconds for the kernels of one product [default: 10, or what --total leaves]
    #[arg(long)]
    seconds: Option<f64>,
    /// Seconds in all: what is left is shared by the products that are left
    #[arg(long)]
    total: Option<f64>,
    /// Write all kernels that were tried, with their times or why they were refused, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Set times beside the prediction for this GPU [default: the adapter's own, where `wgpt plan --gpu` knows it]
    #[arg(long, value_name = "CARD")]
    against: Option<String>,
    /// Adapter by index or part of its name: see `wgpt devices`
    #[arg(long)]
    device: Option<String>,
}

/// How long the kernels of a job may take.
struct Budget {
    begin: Instant,
    each: Option<Duration>,
    total: Option<Duration>,
}

impl Budget {
    fn new(args: &Args) -> Result<Self> {
        let read = |flag: &str, seconds: Option<f64>| {
            let Some(seconds) = seconds else { return Ok(None) };
            let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= Duration::from_secs(86_400));
            time.map(Some).ok_or_else(|| Error::Usage(format!("{flag}: {seconds:e}, expected 0 to 86400")))
        };
        let total = read("--total", args.total)?;
        let default = if total.is_some() { None } else { Some(SECONDS) };
        let each = read("--seconds", args.seconds.or(default))?;
        Ok(Self { begin: Instant::now(), each, total })
    }

    /// The time of the next of `left` jobs.
    fn next(&self, left: usize) -> Duration {
        let share = self.total.map(|total| total.saturating_sub(self.begin.elapsed()) / left.max(1) as u32);
        [self.each, share].into_iter().flatten().min().unwrap_or_default()
    }
}

/// Tries kernels and keeps a record.
pub fn run(args: &Args) -> Result<()> {
    let stop = signals::listen()?;
    let listed = gpu::adapter::find(args.device.as_deref())?;
    let elem = args.precision.on(&listed);
    let mixed = elem == Elem::F16;
    let context = args.context.unwrap_or(if listed.software { 64 } else { 1024 });
    let config = args.shape.config(context)?;
    if args.batch.checked_mul(context).is_none_or(|rows| !(1..=1 << 18).contains(&rows)) {
        return Err(Error::Usage(format!("--batch: {} x {context} tokens, expected 1 to 262,144", args.batch)));
    }
    let budget = Budget::new(args)?;
    let card = args.against.as_deref().map(Card::find).transpose();
    let card = card.map_err(|e| Error::Usage(format!("--against: {e}")))?;
    let mut gpu = Gpu::open(&Options { device: args.device.clone(), matrices: mixed, ..Options::default() })?;
    precision::check(elem, &gpu.caps)?;
    let card = card.or_else(|| Card::of_adapter(&gpu.caps.name));
    say!("device   {}", gpu.caps.summary());
    if let (true, Some(why)) = (mixed, choose::without_matrices(&gpu.caps)) {
        say!("         no matrix units: {why}");
    }
    // before a record is touched and before roofs, which would be infinite: a stand-in for a GPU computes nothing
    tune::check_device(&mut gpu)?;
    // that the record can be written is known before minutes are spent
    let mut path = tune::save(&gpu.caps, &[])?;
    let roofs = Roofs::measure(&gpu, Duration::from_millis(200))?;
    say!("roofs    {}", roofs.summary());
    let jobs = tune::jobs(&gpu.caps, &config, elem, [args.batch, context]);
    let all: f64 = jobs.iter().map(Job::step_flops).sum();
    let mut tried = Vec::new();
    for (i, job) in jobs.iter().enumerate() {
        let time = budget.next(jobs.len() - i);
        let trials = tune::try_all(&mut gpu, job, elem, (&roofs, card), time, &|| stop().is_some())?;
        tried.push(record(job, elem, job.step_flops() / all, &trials));
        if let Some(file) = &args.json {
            write(file, &gpu, &roofs, &tried)?;
        }
        if let Some(signal) = stop() {
            let path = path.display();
            return Err(Error::Stopped(format!("tune: {signal}: stopped; what was found before is in {path}")));
        }
        let refused = trials.iter().filter_map(|trial| trial.outcome.as_ref().err().map(|why| (trial, why)));
        for (trial, why) in refused {
            let kernel = if trial.kernel.is_empty() { trial.choice.to_string() } else { trial.kernel.clone() };
            say!("refused  {job}: {kernel}: {why}");
        }
        let Some((best, ms)) = tune::best(&trials) else {
            return Err(Error::Gpu(format!("tune: no kernel computes {job} rightly")));
        };
        say!("{}", line(job, &roofs, &trials, best, ms));
        path = tune::save(&gpu.caps, &[(job.key(elem), best.choice.text()?)])?;
    }
    say!("saved    {}", path.display());
    if let Some(file) = &args.json {
        say!("wrote    {}", file.display());
    }
    Ok(())
}

/// One job's result.
fn line(job: &Job, roofs: &Roofs, trials: &[Trial], best: &Trial, ms: f64) -> String {
    let rate = |ms: f64| job.flops() / ms * 1e-9;
    let table = match &trials[0].outcome {
        Ok(_) if trials[0].kernel == best.kernel => "the table's choice".into(),
        Ok(ms) => format!("by the table {} with {}", number(rate(*ms)), trials[0].kernel),
        Err(_) => format!("by the table {}, which is wrong", trials[0].kernel),
    };
    let predicted = best.predicted_ms.map_or(String::new(), |predicted| {
        format!("predicted {} ms, {} of that; ", number(predicted), number(ms / predicted))
    });
    format!(
        "{job}: {} {} ms, {} TFLOP/s, {:.0} % of the roof; {predicted}{table}; {} of {} right",
        best.kernel,
        number(ms),
        number(rate(ms)),
        1e14 * rate(ms) / roofs.flops(&best.kernel).1,
        trials.iter().filter(|t| t.outcome.is_ok()).count(),
        trials.len()
    )
}

/// One job's trials, the table's choice first.
fn record(job: &Job, elem: Elem, share: f64, trials: &[Trial]) -> Value {
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
        "trials": list})
}

fn write(file: &Path, gpu: &Gpu, roofs: &Roofs, jobs: &[Value]) -> Result<()> {
    let value = json!({"adapter": gpu.caps.name, "driver": gpu.caps.driver, "version": env!("CARGO_PKG_VERSION"),
        "roofs": roofs, "jobs": jobs});
    atomic::write(file, |out| writeln!(out, "{value:#}"))
}
