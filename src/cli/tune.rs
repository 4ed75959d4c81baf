//! `wgpt tune`.

use std::time::Duration;

use wgpt::error::{Error, Result};
use wgpt::gpu::{self, Elem, Gpu, Options};
use wgpt::ops::matmul::choose;
use wgpt::train::tune;

use super::precision::{self, Precision};
use super::shape::Shape;
use super::signals;
use super::terminal::say;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  wgpt tune --model d12 --batch 16
  wgpt tune --layers 3 --heads 4 --channels 128 --vocab 257 --batch 8 --context 128 --precision f32

The record lies in the user's cache folder, or in WGPT_CACHE; `wgpt train` takes its kernels for the same shapes.")]
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
    /// Seconds for the kernels of one product
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Adapter by index or part of its name: see `wgpt devices`
    #[arg(long)]
    device: Option<String>,
}

/// Tries kernels and keeps a record.
pub fn run(args: &Args) -> Result<()> {
    let stop = signals::listen()?;
    let listed = gpu::adapter::find(args.device.as_deref())?;
    let elem = args.precision.on(&listed);
    let mixed = elem == Elem::F16;
    let context = args.context.unwrap_or(if listed.software { 64 } else { 1024 });
    let config = args.shape.config(context)?;
    let rows =
        args.batch.checked_mul(context).filter(|rows| (1..=1 << 18).contains(rows)).ok_or_else(|| {
            Error::Usage(format!("--batch: {} x {context} tokens, expected 1 to 262,144", args.batch))
        })?;
    let seconds = Duration::try_from_secs_f64(args.seconds)
        .ok()
        .filter(|seconds| *seconds <= Duration::from_secs(86_400))
        .ok_or_else(|| Error::Usage(format!("--seconds: {:e}, expected 0 to 86400", args.seconds)))?;
    let mut gpu = Gpu::open(&Options { device: args.device.clone(), matrices: mixed, ..Options::default() })?;
    precision::check(elem, &gpu.caps)?;
    say!("device   {}", gpu.caps.summary());
    if let (true, Some(why)) = (mixed, choose::without_matrices(&gpu.caps)) {
        say!("         no matrix units: {why}");
    }
    let chunk = wgpt::model::activations::logits_rows(&gpu.caps, rows, config.padded_vocab(), elem);
    // that the record can be written is known before minutes are spent, and what is found stays found
    let mut path = tune::save(&gpu.caps, &[])?;
    for job in tune::jobs(&config, rows, chunk) {
        let trials = tune::try_all(&mut gpu, &job, elem, seconds, &|| stop().is_some())?;
        if let Some(signal) = stop() {
            let path = path.display();
            return Err(Error::Stopped(format!("tune: {signal}: stopped; what was found before is in {path}")));
        }
        for trial in &trials {
            if let Err(why) = &trial.outcome {
                say!("refused  {:?} of {} {:?}: {}: {why}", job.product, job.layer, job.shape, trial.algorithm);
            }
        }
        let Some((algorithm, ms)) = tune::best(&trials) else {
            return Err(Error::Gpu(format!("tune: no kernel computes {:?} of {} rightly", job.product, job.layer)));
        };
        let rate = |ms: f64| job.flops() / ms * 1e-6;
        let first = trials[0].outcome.as_ref().ok();
        say!(
            "{:>8} {:14} {:?}: {:.3} ms, {:.1} GFLOP/s, {} by the table; {} of {} kernels right; {algorithm}",
            job.layer,
            format!("{:?}", job.product),
            job.shape,
            ms,
            rate(ms),
            first.map_or("wrong".into(), |ms| format!("{:.1}", rate(*ms))),
            trials.iter().filter(|t| t.outcome.is_ok()).count(),
            trials.len()
        );
        path = tune::save(&gpu.caps, &[(job, elem, algorithm)])?;
    }
    say!("saved {}", path.display());
    Ok(())
}
