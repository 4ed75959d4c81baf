//! Whole training steps of GPT-2 124M, on a software adapter of a small model too: tokens a second, where the time goes,
//! memory. Criterion times them on the wall clock, so that baselines can be saved and compared.
//!
//! Environment: `WGPT_PRECISION` (`auto`: f16 on GPUs with matrix units, else f32; `f16`; `f32`; `both`, the default on a
//! GPU: `auto` first), `WGPT_BATCH` (a number, or `best`: doubles it until tokens a second fall or memory ends),
//! `WGPT_CONTEXT`, `WGPT_DEVICE`, `WGPT_AGAINST` (a card of `wgpt plan --gpu`, whose prediction steps are set beside),
//! `WGPT_TUNING` (a record of `wgpt tune`), `WGPT_SMALL` (on a software adapter the small model alone),
//! `WGPT_BENCH_SECONDS` (for all; without criterion, which always takes ten samples), `WGPT_BENCH_JSON` (a file for all
//! figures, or a folder for step.json).

#[path = "common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode};
use serde_json::{Value, json};

use wgpt::data::Batches;
use wgpt::error::{Error, Result};
use wgpt::gpu::{Arithmetic, Caps, Elem, Gpu};
use wgpt::measure::predict::code::Codes;
use wgpt::measure::predict::{self, Comparison};
use wgpt::measure::steps::StepFigures;
use wgpt::measure::table::number;
use wgpt::measure::{Count, Profile, Roofs, Steps, random_batches};
use wgpt::model::{Config, Recompute, init};
use wgpt::ops::matmul;
use wgpt::train::{Sizes, Trainer, TrainerOptions};

use common::Batch;

/// Samples of a row.
const SAMPLES: usize = 10;

/// Returns the element types to measure steps in, the one of `auto` on this adapter first.
fn precisions(caps: &Caps) -> Result<Vec<Elem>> {
    let asked = common::text("WGPT_PRECISION");
    let on_matrices = caps.f16 && matmul::choose::without_matrices(caps).is_none();
    let runs_f16 = caps.f16 && (!caps.software || on_matrices);
    let auto = if on_matrices && !caps.software { Elem::F16 } else { Elem::F32 };
    let mut list = match asked.as_deref().unwrap_or(if caps.software { "auto" } else { "both" }) {
        "auto" => vec![auto],
        "f16" => vec![Elem::F16],
        "f32" => vec![Elem::F32],
        "both" if auto == Elem::F16 => vec![Elem::F16, Elem::F32],
        "both" => vec![Elem::F32, Elem::F16],
        other => return Err(common::wrong("WGPT_PRECISION", other, "auto, both, f16 or f32")),
    };
    if !runs_f16 && list.contains(&Elem::F16) {
        println!("f16     not run: {}", if caps.f16 { NO_MATRICES } else { "the adapter has none" });
        list.retain(|elem| *elem != Elem::F16);
    }
    Ok(list)
}

/// Why software Vulkan runs no f16 by itself.
const NO_MATRICES: &str = "cooperative matrices need LP_NATIVE_VECTOR_WIDTH=256, f32 is faster with more";

struct Job {
    name: String,
    config: Config,
    sizes: Sizes,
    elem: Elem,
}

/// Tokens a second of two steps after one to warm up.
fn try_out(gpu: &Gpu, config: Config, sizes: Sizes, elem: Elem) -> Result<f64> {
    let mut trainer = Trainer::new(gpu, TrainerOptions { elem, ..TrainerOptions::new(config, sizes) })?;
    let mut loader = random_batches(&config, &sizes, 2)?;
    let steps = Steps::run(&mut trainer, &mut loader, 1, 4, Duration::from_secs(5))?;
    Ok(sizes.tokens() as f64 / steps.median_ms() * 1e3)
}

/// The batch with the most tokens a second, by doubling.
fn best_batch(gpu: &Gpu, config: Config, context: usize, elem: Elem) -> Result<usize> {
    let (mut best, mut rate, mut batch) = (4, 0.0, 4);
    while batch <= 128 {
        match try_out(gpu, config, Sizes { batch, context, accumulation: 1 }, elem) {
            Ok(found) => {
                println!("  {} batch {batch}: {} tokens/s", elem.name(), number(found));
                if found < 1.02 * rate {
                    break;
                }
                (best, rate) = (batch, found);
            }
            Err(Error::Memory(why)) => {
                println!("  batch {batch}: {why}");
                break;
            }
            Err(error) => return Err(error),
        }
        batch *= 2;
    }
    Ok(best)
}

fn jobs(gpu: &Gpu, elem: Elem) -> Result<Vec<Job>> {
    let software = gpu.caps.software;
    let d12 = Config::from_descriptor("d12")?;
    let context = common::context(d12.positions)?.unwrap_or(if software { 64 } else { 1024 });
    let batch = match common::batch()? {
        Batch::Best => best_batch(gpu, d12, context, elem)?,
        Batch::Fixed(batch) => batch,
        Batch::Unset => {
            if software {
                1
            } else {
                8
            }
        }
    };
    let mut jobs = Vec::new();
    if software {
        let sizes = Sizes { batch: 8, context: 128, accumulation: 1 };
        jobs.push(Job {
            name: "d3 128 channels, bytes".into(),
            config: Config::new(128, 257, 3, 4, 128)?,
            sizes,
            elem,
        });
    }
    let sizes = Sizes { batch, context, accumulation: 1 };
    // in f16 software Vulkan would take minutes for a step
    let small = software && common::text("WGPT_SMALL").is_some();
    if !small && (!software || elem == Elem::F32) {
        jobs.push(Job { name: "d12".into(), config: d12, sizes, elem });
    }
    Ok(jobs)
}

/// A trainer after its first step, and its batches.
fn ready<'g>(gpu: &'g Gpu, job: &Job) -> Result<(Trainer<'g>, Batches)> {
    let options = TrainerOptions { elem: job.elem, ..TrainerOptions::new(job.config, job.sizes) };
    let mut trainer = Trainer::new(gpu, options)?;
    trainer.load(&init::init(job.config, 42))?;
    let mut loader = random_batches(&job.config, &job.sizes, 8)?;
    trainer.step(&mut loader, 1, 0.0)?;
    trainer.report(true)?;
    Ok((trainer, loader))
}

/// Ten samples by criterion, so that a baseline can be saved and compared with. `None` if its filter leaves the job out.
fn sample<'g>(gpu: &'g Gpu, job: &Job, id: &str, criterion: &mut Criterion) -> Result<Option<(Trainer<'g>, Batches)>> {
    let mut state = None;
    let mut fault = None;
    let mut group = criterion.benchmark_group("step");
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function(id, |b| {
        b.iter_custom(|iterations| {
            let ready = state.get_or_insert_with(|| ready(gpu, job));
            let begin = Instant::now();
            let outcome = match ready {
                Ok((trainer, loader)) => (0..iterations).try_for_each(|_| {
                    trainer.step(loader, 1, 0.0)?;
                    trainer.report(true).map(|_| ())
                }),
                Err(error) => Err(error.clone()),
            };
            fault = outcome.err().or(fault.take());
            begin.elapsed()
        });
    });
    group.finish();
    match fault {
        Some(fault) => Err(fault),
        None => state.transpose(),
    }
}

fn measure(
    gpu: &Gpu,
    roofs: &Roofs,
    job: &Job,
    criterion: &mut Criterion,
    time: Option<Duration>,
) -> Result<Option<Value>> {
    let begin = Instant::now();
    let Job { name, config, sizes, elem } = job;
    let precision = elem.name();
    let id = format!("{name} {precision}/{}x{}", sizes.batch, sizes.context);
    let state = if time.is_some() { Some(ready(gpu, job)?) } else { sample(gpu, job, &id, criterion)? };
    let Some((mut trainer, mut loader)) = state else { return Ok(None) };
    // a third for the profile's runs
    let limit = time;
    let time = time.map_or(Duration::from_secs(5), |time| time.mul_f64(0.6));
    let planned = Count::new(gpu.caps.clone(), *config, *sizes, *elem, Recompute::None)?;
    let steps = Steps::run(&mut trainer, &mut loader, 0, 50, time)?;
    let facts = StepFigures::new(&steps, &trainer, planned.memory_bytes);
    let on_matrices = *elem == Elem::F16 && matmul::choose::without_matrices(&gpu.caps).is_none();
    let (roof, rate) = roofs.flops(if on_matrices { Arithmetic::Matrix } else { Arithmetic::of(*elem) });
    println!("\n{id}");
    print!("{}", facts.report());
    println!("rate    {:.1} % of the roof {roof}", 100.0 * facts.flops / rate);
    // a profile runs the step four times, some of them slowly
    let no_time = limit.is_some_and(|limit| begin.elapsed() + Duration::from_secs_f64(facts.ms * 5e-3) > limit);
    let card = common::card(&gpu.caps)?;
    let predicted = card.and_then(|card| {
        let (rows, missing) = predict::rows(card, Codes::committed(), &trainer.step_program());
        if !missing.is_empty() {
            println!("beside  not predicted for {}: no machine code of {}", card.name, missing.join(", "));
            return None;
        }
        let foreign = rows.iter().filter(|row| row.nearest.is_some()).count();
        if foreign > 0 {
            println!("beside  {foreign} of {} kernels are predicted by the machine code of others", rows.len());
        }
        let ms: f64 = rows.iter().map(|row| row.ms).sum();
        let tokens_per_s = sizes.tokens() as f64 / ms * 1e3;
        println!(
            "beside  predicted for {}: {} ms, {} tokens/s; measured {:.3} of that speed",
            card.name,
            number(ms),
            number(tokens_per_s),
            facts.tokens_per_s / tokens_per_s
        );
        let ratio = facts.tokens_per_s / tokens_per_s;
        Some(json!({"card": card.name, "ms": ms, "tokens_per_s": tokens_per_s, "measured_over_predicted": ratio}))
    });
    let tokens_per_s = |p: &Value| p["tokens_per_s"].as_f64().unwrap_or_default();
    let quoted = card.and_then(|card| card.pytorch_tokens_per_s).unwrap_or_default();
    // for tools/gpu-check: measured, predicted, and PyTorch's by the figures of others
    println!(
        "summary\t{name}\t{precision}\t{}\t{}\t{:.0}\t{:.0}\t{quoted:.0}",
        sizes.batch,
        sizes.context,
        facts.tokens_per_s,
        predicted.as_ref().map_or(0.0, tokens_per_s)
    );
    let kernels_ms = if no_time {
        println!("device  not timed: no time is left");
        None
    } else if gpu.caps.timestamps {
        let profile = Profile::run(&trainer, 1)?;
        println!(
            "device  kernels {} ms, gaps {} ms, of {} ms a step",
            number(profile.commands_ms()),
            number(profile.gaps_ms()),
            number(facts.ms)
        );
        if let Some(card) = card {
            println!("\n{}", Comparison::new(card, &profile, roofs).report());
        }
        Some((profile.commands_ms(), profile.gaps_ms(), profile.plain_ms))
    } else {
        println!("device  not timed: the adapter has no timestamps");
        None
    };
    println!();
    Ok(Some(json!({
        "name": name, "precision": precision, "batch": sizes.batch, "context": sizes.context, "facts": facts,
        "of_roof": facts.flops / rate, "kernels_ms": kernels_ms.map(|k| k.0), "gaps_ms": kernels_ms.map(|k| k.1),
        "predicted": predicted, "device_ms": kernels_ms.and_then(|k| k.2),
    })))
}

fn run() -> Result<()> {
    let begin = Instant::now();
    wgpt::gpu::use_wide_vectors();
    let mut criterion =
        Criterion::default().sample_size(SAMPLES).nresamples(2000).warm_up_time(Duration::from_millis(100));
    criterion = criterion.measurement_time(Duration::from_secs(1)).without_plots().configure_from_args();
    if std::env::args().any(|a| a == "--list") {
        println!("step: benchmark");
        return Ok(());
    }
    let (gpu, tuned) = common::open()?;
    println!("adapter {}", gpu.caps.summary());
    if let Some(line) = &tuned {
        println!("tuned   {line}");
    }
    let precisions = precisions(&gpu.caps)?;
    let roofs = Roofs::measure(&gpu, Duration::from_millis(300))?;
    println!("roofs   {}", roofs.summary());
    let end = common::seconds()?.map(|time| begin + time);
    let mut figures = Vec::new();
    for (i, elem) in precisions.iter().enumerate() {
        let jobs = jobs(&gpu, *elem)?;
        for (k, job) in jobs.iter().enumerate() {
            let left = jobs.len() * (precisions.len() - i) - k;
            let time = end.map(|end| end.saturating_duration_since(Instant::now()) / left as u32);
            match measure(&gpu, &roofs, job, &mut criterion, time) {
                Ok(figure) => figures.extend(figure),
                // what does not fit must not lose what does
                Err(Error::Memory(why)) => println!("{} {} not run: {why}", job.name, elem.name()),
                Err(error) => return Err(error),
            }
            // after each: who is ended by others keeps what there is
            common::write(
                "step",
                &json!({"adapter": gpu.caps.name, "driver": gpu.caps.driver, "tuned": tuned, "roofs": roofs, "steps": figures}),
            )?;
        }
    }
    criterion.final_summary();
    Ok(())
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::from(error.exit_code())
        }
    }
}
