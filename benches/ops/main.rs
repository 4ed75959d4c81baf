//! `cargo bench`: one row per kernel that the adapter uses at the shapes of GPT-2 124M. Each kernel is checked against
//! its f64 reference before it is timed, and its rate is compared with roofs measured in the same run.
//!
//! `cargo bench -- matmul` filters. `cargo bench -- --save-baseline before`, then `cargo bench -- --baseline before`,
//! compares. `cargo bench --bench ops -- --races 1000` runs every kernel a thousand times on the same data and counts
//! on the GPU the words that differ from the first run. This includes every kernel of the adapter's record of
//! `wgpt tune`, whatever shape it was found for.
//!
//! Environment: `WGPT_BATCH`, `WGPT_CONTEXT` (default 8 x 1024, on a software adapter 1 x 64); `WGPT_DEVICE` (as
//! `--device`); `WGPT_AGAINST` (a card of `wgpt plan --gpu`, whose prediction rows are compared with); `WGPT_TUNING` (a
//! record of `wgpt tune`); `WGPT_BENCH_SECONDS` (rows past this time are listed as not run); `WGPT_BENCH_JSON` (a file
//! for all figures, or a folder for ops.json).

#[path = "../common/mod.rs"]
mod common;
mod independent;
mod races;
mod record;
mod set;

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode};
use serde::Serialize;
use serde_json::{Value, json};

use wgpt::cases::{self, BenchShape, Case};
use wgpt::error::{Error, Result};
use wgpt::gpu::{Arithmetic, Caps, Gpu, Program};
use wgpt::measure::predict;
use wgpt::measure::predict::code::Codes;
use wgpt::measure::roofs::run_ms;
use wgpt::measure::steps::{median, spread};
use wgpt::measure::table::number;
use wgpt::measure::{Roofs, Table};
use wgpt::model::Config;
use wgpt::units::counted;

use common::Batch;
use set::Set;

/// Number of samples of a row.
const SAMPLES: usize = 10;
/// Largest number of copies of a row's tensors: copies of small tensors would never fill the caches.
const MOST_SETS: u64 = 16;

/// Returns the sizes at which rows are measured.
fn shape(caps: &Caps) -> Result<BenchShape> {
    let config = Config::from_descriptor("d12")?;
    let small = caps.software;
    let batch = match common::batch()? {
        Batch::Fixed(batch) => batch,
        Batch::Unset | Batch::Best => {
            if small {
                1
            } else {
                8
            }
        }
    };
    let context = common::context(config.positions)?.unwrap_or(if small { 64 } else { 1024 });
    let flat = ((256 << 20).min(caps.max_binding_bytes) / 4) as usize;
    let flat = flat.min(if small { 4 << 20 } else { 64 << 20 }) / 64 * 64;
    Ok(BenchShape { config, batch, context, flat })
}

/// Returns the bytes that all copies of a row's tensors should fill, and a text that compares them with the size of the
/// adapter's caches.
fn rotation(caps: &Caps) -> (u64, String) {
    if !caps.software {
        return (256 << 20, "256 MiB, more than the caches of any known GPU".into());
    }
    let size = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").ok();
    let Some(kib) = size.and_then(|text| text.trim().trim_end_matches('K').parse::<u64>().ok()) else {
        return (64 << 20, "64 MiB; the size of the last-level cache is unknown".into());
    };
    // limited, because software Vulkan would take minutes to fill a large server's cache
    let bytes = (2 * kib * 1024).min(128 << 20);
    let than = if bytes > kib * 1024 { "more" } else { "not more" };
    (bytes, format!("{} MiB, {than} than the last-level cache of {} MiB", bytes >> 20, kib >> 10))
}

/// Returns the capabilities under which an operator may choose different kernels, the adapter's own first. A kernel
/// that is the fallback for a missing feature gets its row by being chosen under one of these.
fn variants(caps: &Caps) -> Vec<Caps> {
    let change = |change: fn(&mut Caps)| {
        let mut caps = caps.clone();
        change(&mut caps);
        caps
    };
    let mut list = vec![
        caps.clone(),
        change(|caps| caps.matrix_edges.clear()),
        change(|caps| {
            caps.matrix_edges.clear();
            caps.f16 = false;
        }),
    ];
    if caps.software {
        // the kernels for GPUs, which also run on software adapters
        list.push(change(|caps| (caps.software, caps.lanes) = (false, 0)));
    }
    list
}

/// A kernel of a case.
pub struct Row {
    kernel: String,
    arithmetic: Arithmetic,
    /// Position of the case.
    case: usize,
    /// Position in [`variants`].
    variant: usize,
    flops: u64,
    bytes: u64,
    /// True if the adapter's tuning record names this kernel, for this shape or another.
    from_record: bool,
    /// Milliseconds predicted for the card that figures are compared with.
    predicted_ms: Option<f64>,
}

/// Returns a row for every kernel at every shape, each once.
fn rows(gpu: &Gpu, cases: &[Case], variants: &[Caps]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut seen = HashSet::new();
    for (case, definition) in cases.iter().enumerate() {
        for (variant, caps) in variants.iter().enumerate() {
            // for the other variants one layer's products are enough
            if variant > 0 && definition.pass.operator == "matmul" && !definition.what.starts_with("qkv") {
                continue;
            }
            // kernels in f16 need f16; on software adapters those for GPUs take minutes to compile
            if definition.has_half() && (!caps.f16 || caps.software != variants[0].software) {
                continue;
            }
            let new = of_case(gpu, definition, (case, variant), caps)?;
            rows.extend(new.into_iter().filter(|row| seen.insert((row.kernel.clone(), case))));
        }
    }
    Ok(rows)
}

/// Returns the rows of a case under one variant.
fn of_case(gpu: &Gpu, definition: &Case, (case, variant): (usize, usize), caps: &Caps) -> Result<Vec<Row>> {
    let program = definition.dry(gpu, caps)?;
    let predicted = common::card(caps)?.map(|card| predict::rows(card, Codes::committed(), &program).0);
    let predicted_ms = |kernel: &str| Some(predicted.as_ref()?.iter().find(|row| row.kernel == kernel)?.ms);
    let mut rows: Vec<Row> = Vec::new();
    for command in &program.commands {
        if rows.iter().all(|row| row.kernel != command.name()) {
            let of = |f: fn(&wgpt::gpu::Command) -> u64| {
                program.commands.iter().filter(|c| c.name() == command.name()).map(f).sum()
            };
            let (flops, bytes) = (of(|c| c.flops), of(|c| c.bytes));
            let (kernel, predicted_ms) = (command.name().to_owned(), predicted_ms(command.name()));
            rows.push(Row {
                kernel,
                arithmetic: command.arithmetic(),
                case,
                variant,
                flops,
                bytes,
                from_record: false,
                predicted_ms,
            });
        }
    }
    Ok(rows)
}

/// The figures of a row.
#[derive(Debug, Serialize)]
struct Figure {
    operator: String,
    shape: String,
    kernel: String,
    element: &'static str,
    /// True if the adapter uses this kernel by default.
    chosen: bool,
    median_ms: f64,
    spread: f64,
    predicted_ms: Option<f64>,
    bytes: u64,
    flops: u64,
    reached: f64,
    roof: &'static str,
    /// Number of sets that the runs alternated between.
    sets: usize,
}

/// A case and its checked sets in memory, under one variant.
struct Prepared {
    key: (usize, usize),
    sets: Vec<Set>,
}

fn prepare(gpu: &Gpu, case: &Case) -> Result<Vec<Set>> {
    let contents = case.contents();
    let first = Set::new(gpu, case, &contents)?;
    first.verify(gpu, case, &contents)?;
    let count = rotation(&gpu.caps).0.div_ceil(set::bytes(case)).clamp(1, MOST_SETS);
    let mut sets = vec![first];
    for _ in 1..count {
        let set = Set::new(gpu, case, &contents)?;
        // run each set once, because a later kernel of the case reads results of an earlier one
        set.program.run(gpu)?;
        sets.push(set);
    }
    Ok(sets)
}

/// Returns the time of `iterations` runs of one kernel, which use the sets in turn.
fn sample(gpu: &Gpu, sets: &[Set], kernel: &str, iterations: u64) -> Result<Duration> {
    for set in sets {
        set.restore.run(gpu)?;
    }
    let only = |set: &Set| {
        let mut program = set.program.clone();
        program.commands.retain(|command| command.name() == kernel);
        program
    };
    let programs: Vec<Program> = sets.iter().map(only).collect();
    let joined = Program::join((0..iterations as usize).map(|i| &programs[i % programs.len()]));
    gpu.wait()?;
    Ok(Duration::from_secs_f64(run_ms(gpu, &joined)? / 1e3))
}

struct Bench {
    gpu: Gpu,
    roofs: Roofs,
    /// Adapter, sizes and roofs, for the file of figures.
    about: Value,
    cases: Vec<Case>,
    variants: Vec<Caps>,
    prepared: Option<Prepared>,
    figures: Vec<Figure>,
    faults: Vec<String>,
    end: Option<Instant>,
}

impl Bench {
    /// Prepares and verifies the row's case unless the previous row was of the same case, and times one sample.
    fn sample(&mut self, row: &Row, iterations: u64) -> Result<Duration> {
        let key = (row.case, row.variant);
        if self.prepared.as_ref().is_none_or(|p| p.key != key) {
            // dropped first, so that two cases are never in memory at the same time
            self.prepared = None;
            self.gpu.caps = self.variants[row.variant].clone();
            let sets = prepare(&self.gpu, &self.cases[row.case]);
            self.gpu.caps = self.variants[0].clone();
            self.prepared = Some(Prepared { key, sets: sets? });
        }
        let sets = self.prepared.as_ref().map_or(&[][..], |p| &p.sets);
        sample(&self.gpu, sets, &row.kernel, iterations)
    }

    fn figure(&mut self, row: &Row, samples: &[f64]) {
        let case = &self.cases[row.case];
        let median_ms = median(samples);
        let (reached, roof) = self.roofs.reached(row.arithmetic, row.flops, row.bytes, median_ms);
        self.figures.push(Figure {
            operator: case.pass.to_string(),
            shape: case.what.clone(),
            kernel: row.kernel.clone(),
            element: row.arithmetic.elem().name(),
            chosen: row.variant == 0,
            median_ms,
            spread: spread(samples),
            predicted_ms: row.predicted_ms,
            bytes: row.bytes,
            flops: row.flops,
            reached,
            roof,
            sets: self.prepared.as_ref().map_or(0, |p| p.sets.len()),
        });
    }

    /// Writes all figures so far.
    fn write(&self) -> Result<()> {
        let mut value = self.about.clone();
        value["rows"] = json!(self.figures);
        value["faults"] = json!(self.faults);
        common::write("ops", &value)
    }

    fn report(&self) -> Table {
        let heading = ["<name", "<shape", "<variant", "<type", "ms", "+-%", "GB/s", "TFLOP/s", "% of roof", "<roof"];
        let mut table = Table::new(&[&heading[..], &["predicted ms", "ms/predicted", "<"]].concat());
        for f in &self.figures {
            let seconds = f.median_ms / 1e3;
            table.row([
                f.operator.clone(),
                f.shape.clone(),
                f.kernel.clone(),
                f.element.into(),
                number(f.median_ms),
                format!("{:.0}", 100.0 * f.spread),
                number(f.bytes as f64 / 1e9 / seconds),
                number(f.flops as f64 / 1e12 / seconds),
                format!("{:.0}", 100.0 * f.reached),
                f.roof.into(),
                f.predicted_ms.map_or("-".into(), number),
                f.predicted_ms.map_or("-".into(), |predicted| number(f.median_ms / predicted)),
                if f.chosen { String::new() } else { "not chosen here".into() },
            ]);
        }
        table
    }
}

/// Returns the name of a row for criterion. It has only one slash, between kernel and shape.
fn id(row: &Row, case: &Case) -> String {
    format!("{}/{}", row.kernel, case.what)
}

fn run() -> Result<()> {
    let begin = Instant::now();
    wgpt::gpu::use_wide_vectors();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut criterion =
        Criterion::default().sample_size(SAMPLES).nresamples(2000).warm_up_time(Duration::from_millis(150));
    criterion = criterion.measurement_time(Duration::from_secs(1)).without_plots();
    let (gpu, tuned) = common::open()?;
    let shape = shape(&gpu.caps)?;
    let mut cases: Vec<Case> = cases::ALL.iter().flat_map(|cases| (cases.benches)(&shape, &gpu.caps)).collect();
    let mut variants = variants(&gpu.caps);
    let mut rows = rows(&gpu, &cases, &variants)?;
    if let Some(at) = arguments.iter().position(|a| a == "--races") {
        let repeats = arguments.get(at + 1).and_then(|n| n.parse().ok()).unwrap_or(1000);
        let left_out = record::add(&gpu, &shape, &mut cases, &mut variants, &mut rows)?;
        left_out.iter().for_each(|line| println!("not run: {line}"));
        return races::run(gpu, tuned.as_deref(), (&cases, &variants, &rows), repeats, common::seconds()?);
    }
    let criterion = criterion.configure_from_args();
    if arguments.iter().any(|a| a == "--list") {
        rows.iter().for_each(|row| println!("{}: benchmark", id(row, &cases[row.case])));
        return Ok(());
    }
    println!("adapter {}", gpu.caps.summary());
    if let Some(line) = &tuned {
        println!("tuned   {line}");
    }
    println!("shapes  GPT-2 124M, batch {} x context {}", shape.batch, shape.context);
    println!(
        "memory  each row alternates between up to {MOST_SETS} copies of its tensors, at most {}",
        rotation(&gpu.caps).1
    );
    // on a shared CPU the best run takes many tries, but most of the time is for the rows
    let patience = Duration::from_millis(if gpu.caps.software { 1000 } else { 400 });
    let time = common::seconds()?.map_or(patience, |all| patience.min(all / 60));
    let roofs = Roofs::measure(&gpu, time)?;
    let pairs = independent::pairs(&gpu.caps, &roofs, time);
    print!("{}", independent::report(&pairs));
    roofs.notes.iter().for_each(|note| println!("{note}"));
    println!();
    let end = common::seconds()?.map(|time| begin + time);
    let about = json!({
        "adapter": gpu.caps.name, "driver": gpu.caps.driver, "backend": gpu.caps.backend,
        "version": env!("CARGO_PKG_VERSION"), "batch": shape.batch, "context": shape.context,
        "tuned": tuned, "roofs": roofs, "independent": pairs,
    });
    let bench = Bench { gpu, roofs, about, cases, variants, prepared: None, figures: vec![], faults: vec![], end };
    let bench = Rc::new(RefCell::new(bench));
    all(criterion, &bench, &rows);
    let bench = bench.borrow();
    println!("\n{}", bench.report());
    bench.faults.iter().for_each(|fault| println!("{fault}"));
    println!("{} in {:.0} s", counted(bench.figures.len() as u64, "row"), begin.elapsed().as_secs_f64());
    bench.write()?;
    if bench.faults.iter().any(|fault| !fault.starts_with("not run")) {
        let failed = bench.faults.iter().filter(|fault| !fault.starts_with("not run")).count();
        return Err(Error::gpu(format!("{} failed", counted(failed as u64, "row"))));
    }
    Ok(())
}

/// Passes every row to criterion, which takes samples of the rows that pass its filter.
fn all(mut criterion: Criterion, bench: &Rc<RefCell<Bench>>, rows: &[Row]) {
    let mut group = criterion.benchmark_group("ops");
    group.sampling_mode(SamplingMode::Flat);
    for row in rows {
        let name = id(row, &bench.borrow().cases[row.case]);
        if bench.borrow().end.is_some_and(|end| Instant::now() > end) {
            bench.borrow_mut().faults.push(format!("not run: {name}: out of time"));
            continue;
        }
        let mut samples: Vec<f64> = Vec::new();
        let mut fault = None;
        group.bench_function(&name, |b| {
            b.iter_custom(|iterations| {
                if fault.is_some() {
                    return Duration::from_millis(iterations);
                }
                match bench.borrow_mut().sample(row, iterations) {
                    Ok(time) => {
                        samples.push(time.as_secs_f64() * 1e3 / iterations as f64);
                        time.max(Duration::from_nanos(1))
                    }
                    Err(error) => {
                        fault = Some(error.to_string());
                        Duration::from_millis(iterations)
                    }
                }
            });
        });
        let mut bench = bench.borrow_mut();
        if let Some(fault) = fault {
            bench.faults.push(format!("failed: {name}: {fault}"));
        } else if !samples.is_empty() {
            // the samples of the warm-up come first
            let own = &samples[samples.len().saturating_sub(SAMPLES)..];
            bench.figure(row, own);
            // after each row, so that its figures are kept if the bench is killed
            if let Err(error) = bench.write() {
                bench.faults.push(format!("failed: {error}"));
            }
        }
    }
    group.finish();
    criterion.final_summary();
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
