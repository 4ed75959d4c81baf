//! `wgpt profile`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use wgpt::data::{Batches, LoaderConfig, Part, TokenFormat, token_paths};
use wgpt::error::{Error, Result};
use wgpt::files::atomic;
use wgpt::gpu::{Elem, Gpu, Options, devices};
use wgpt::measure::exchange::{MeasuredExchange, Traffic};
use wgpt::measure::plan::{self, LARGEST_BINDING, MAX_TOKENS, Subject};
use wgpt::measure::predict::card::Card;
use wgpt::measure::predict::code::Codes;
use wgpt::measure::predict::{self, Comparison};
use wgpt::measure::steps::StepFigures;
use wgpt::measure::table::number;
use wgpt::measure::tune;
use wgpt::measure::{self, Count, Profile, Roofs, Steps, trace};
use wgpt::model::{Config, Recompute, init};
use wgpt::run::orders::Crew;
use wgpt::train::collective::mpi::World;
use wgpt::train::settings::Wire;
use wgpt::train::{Sizes, Trainer, TrainerOptions};
use wgpt::units;

use super::precision::{self, Precision};
use super::predicted;
use super::ranks;
use super::shape::Shape;
use super::stdout;
use super::terminal::{say, say_lines};

/// Most micro-steps.
const MOST_MICRO_STEPS: usize = 1024;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wgpt profile --model d12 --batch 4 --context 64
  wgpt profile --layers 3 --heads 4 --channels 128 --vocab 257 --batch 8 \\
      --context 128 --trace trace.json
  wgpt profile --count --model d12 --batch 64 --context 1024
  wgpt profile --statistics --model d12 --batch 16
  wgpt profile --devices all --model d12 --batch 64 --wire bf16
  mpirun --map-by ppr:1:node wgpt profile --devices all --model d12 --batch 64")]
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
    /// Micro-steps per step, of each device
    #[arg(long, value_name = "N", default_value_t = 1)]
    accumulation: usize,
    /// f32, f16 (mixed) or auto
    #[arg(long, value_enum, value_name = "TYPE", hide_possible_values = true, default_value_t = Precision::Auto)]
    pub precision: Precision,
    /// Activations computed again: none, gelu, ln or block
    #[arg(long, value_name = "LEVEL", default_value = "none", hide_short_help = true)]
    recompute: Recompute,
    /// Token shards to read batches from [default: random tokens]
    ///
    /// Files, a pattern, a folder, or a name of `wgpt data fetch`, as for `wgpt train`
    #[arg(long, value_name = "GLOB|NAME", num_args = 1.., hide_short_help = true)]
    data: Vec<PathBuf>,
    /// Layout of --data: shard, u16, u32 or npy
    #[arg(long, value_name = "FORMAT", default_value_t, requires = "data", hide_short_help = true)]
    data_format: TokenFormat,
    /// Most steps on the wall clock
    #[arg(long, value_name = "N", default_value_t = 20)]
    steps: usize,
    /// Seconds for these steps
    ///
    /// Three more steps, with every kernel timed, take at most as long each
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,
    /// Write a Chrome trace, for ui.perfetto.dev
    #[arg(long, value_name = "FILE", conflicts_with = "count")]
    trace: Option<PathBuf>,
    /// Write all figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only time whole steps, on the wall clock
    #[arg(long, conflicts_with = "count")]
    wall: bool,
    /// Only count dispatches, bytes and operations: needs no GPU
    #[arg(long)]
    count: bool,
    /// Print the driver's figures on each kernel
    ///
    /// Registers, spills and workgroup memory, under the driver's names
    #[arg(long, conflicts_with = "count")]
    statistics: bool,
    /// Only the N kernels with the longest predicted time
    #[arg(long, value_name = "N", requires = "statistics")]
    heaviest: Option<usize>,
    /// Only measure the adapter's rates: copies, multiply-adds, matrices
    #[arg(long, conflicts_with_all = ["count", "statistics", "wall", "trace"])]
    roofs: bool,
    /// With --roofs: also try matrices of a whole workgroup
    ///
    /// Needs VK_NV_cooperative_matrix2 and --precision f16
    #[arg(long, requires = "roofs", hide_short_help = true)]
    experimental: bool,
    /// Keep the driver's bounds checks, which wgpt switches off on Vulkan
    #[arg(long, conflicts_with = "count", hide_short_help = true)]
    driver_checks: bool,
    /// Keep bounds checks in all kernels and in the driver
    #[arg(long, conflicts_with_all = ["count", "statistics", "driver_checks"], hide_short_help = true)]
    checked: bool,
    /// Compare the kernels with the prediction for this GPU
    ///
    /// [default: the adapter's own, where `wgpt plan --gpu` knows it]
    #[arg(long, value_name = "CARD", conflicts_with_all = ["count", "wall"], hide_short_help = true)]
    against: Option<String>,
    /// Adapter by index or part of its name
    #[arg(long, value_name = "DEVICE", help_heading = "Devices")]
    device: Option<String>,
    /// Several GPUs that share each step: all, or as 0,1
    ///
    /// One rank each, as with `wgpt train`; the exchange is measured too. Processes that an MPI launcher starts also
    /// share it
    #[arg(long, value_name = "all|LIST", conflicts_with_all = ["device", "count", "statistics", "roofs"])]
    #[arg(help_heading = "Devices")]
    devices: Option<String>,
    /// Allow a GPU twice in --devices
    #[arg(long, help_heading = "Devices", hide_short_help = true)]
    share_device: bool,
    /// Type of gradients between devices: f32, bf16 or f16
    #[arg(long, value_enum, value_name = "TYPE", hide_possible_values = true, default_value_t = Wire::F32)]
    #[arg(help_heading = "Devices", hide_short_help = true)]
    wire: Wire,
    #[command(flatten)]
    processes: ranks::Args,
}

impl Args {
    /// Returns the adapters to open, each by its number, or the one that is asked for. Each of several processes takes
    /// its own adapter if none is asked for.
    fn devices(&self, world: Option<&World>) -> Result<Vec<Option<String>>> {
        let chosen = match (&self.devices, world) {
            (Some(asked), _) => devices::choose(asked, self.share_device)?,
            (None, Some(world)) if self.device.is_none() => vec![ranks::own_device(world.local(), self.share_device)?],
            _ => return Ok(vec![self.device.clone()]),
        };
        Ok(chosen.into_iter().map(|number| Some(number.to_string())).collect())
    }

    fn sizes(&self, context: usize, devices: usize) -> Result<(Config, Sizes)> {
        let sizes = Sizes { batch: self.batch, context, accumulation: self.accumulation.saturating_mul(devices) };
        for (flag, value) in [("--batch", self.batch), ("--context", context), ("--accumulation", self.accumulation)] {
            if value == 0 {
                return Err(Error::usage(format!("{flag}: 0, expected at least 1")));
            }
        }
        // a count records every command: sizes that no machine trains would take forever
        let tokens = self.batch.checked_mul(context).filter(|tokens| *tokens <= MAX_TOKENS);
        if tokens.is_none() || self.accumulation > MOST_MICRO_STEPS {
            return Err(Error::usage(format!(
                "profile: batch {} x context {context} x {} micro-steps, expected at most {} per micro-step and {} micro-steps",
                self.batch,
                self.accumulation,
                units::counted(MAX_TOKENS as u64, "token"),
                units::count(MOST_MICRO_STEPS as u64)
            )));
        }
        let config = self.shape.config(context)?;
        if context > config.positions {
            return Err(Error::usage(format!(
                "--context: {context}, expected at most the model's {}",
                config.positions
            )));
        }
        Ok((config, sizes))
    }
}

fn write(path: &Path, value: &serde_json::Value) -> Result<()> {
    // whole or not at all: tools/gpu-check ends a profile that takes too long
    atomic::write_named(path, &format!("{value:#}\n"))?;
    say!("wrote {}", path.display());
    Ok(())
}

/// Counts or measures.
pub fn run(args: &Args) -> Result<()> {
    if args.count {
        return count(args);
    }
    if args.statistics || args.roofs {
        return profile(args, None);
    }
    match ranks::join(&args.processes)? {
        None => profile(args, None),
        Some(world) => ranks::part(world, profile(args, Some(world))),
    }
}

fn profile(args: &Args, world: Option<&World>) -> Result<()> {
    if !args.seconds.is_finite() || args.seconds < 0.0 {
        return Err(Error::usage(format!("--seconds: {}, expected a number of at least 0", args.seconds)));
    }
    let card = args.against.as_deref().map(|name| predicted::card("--against", name)).transpose()?;
    let names = args.devices(world)?;
    let layout = world.map(|world| ranks::lay_out(world, &names, args.share_device)).transpose()?;
    let elem = precision::resolve(args.precision, names[0].as_deref())?;
    let matrices = elem == Elem::F16;
    if args.experimental && args.precision == precision::Precision::F32 {
        return Err(Error::usage("--experimental: its matrices are of f16, expected --precision f16 or auto with it"));
    }
    let options = |device: &Option<String>| Options {
        device: device.clone(),
        matrices,
        checked: args.checked,
        driver_checks: args.driver_checks,
        statistics: args.statistics,
        experimental: args.experimental,
        ..Options::default()
    };
    let mut gpus = devices::open(&names.iter().map(options).collect::<Vec<_>>())?;
    gpus.iter().try_for_each(|gpu| precision::check(elem, &gpu.caps))?;
    if args.statistics && gpus[0].statistics().is_none() {
        return Err(no_statistics(&gpus[0]));
    }
    let card = card.or_else(|| Card::of_adapter(&gpus[0].caps.name));
    if args.roofs {
        return rates(args, &gpus[0], card);
    }
    let found = tune::load_all(&mut gpus);
    let crew = world.zip(layout.as_ref()).map(|(world, layout)| Crew::new(world, layout));
    crew.map_or(Ok(()), |crew| crew.restrict(&mut gpus))?;
    let (gpus, gpu) = (&gpus[..], &gpus[0]);
    let context = args.context.unwrap_or(if gpu.caps.software { 64 } else { 1024 });
    let (devices, machines) =
        layout.as_ref().map_or((gpus.len(), 1), |layout| (layout.processes.len(), layout.machines));
    let (config, sizes) = args.sizes(context, devices)?;
    let subject = Subject {
        config,
        context,
        elem,
        recompute: args.recompute,
        ranks: devices,
        devices,
        machines,
        wire: args.wire.format(),
    };
    // before anything is allocated: sizes that no memory holds end here
    let planned_bytes = subject.plan(gpu, sizes.batch)?.total();
    let sources = match args.data.is_empty() {
        true => None,
        false => Some(token_paths::open(&args.data, Part::Train, args.data_format)?),
    };
    let options = TrainerOptions { sizes, ..subject.options(sizes.batch) };
    if args.statistics {
        return statistics(args, &Trainer::new(gpu, options)?, card);
    }
    let time = Duration::from_secs_f64(args.seconds.clamp(0.1, 3600.0));
    let links = crew.map(|crew| crew.links()).transpose()?;
    let measured = measure::steps::on_devices(gpus, links, options, |trainer| {
        let mut loader = match &sources {
            None => measure::random_batches(&config, &sizes, 8)?,
            Some(sources) => {
                Batches::new(sources.clone(), LoaderConfig::new(sizes.batch, context, config.vocab, Some(42)))?
            }
        };
        trainer.load(&init::init(config, 42))?;
        let is_first = trainer.part().device == 0;
        // before the steps, so that the timed step follows them in the trace
        let timed = is_first && trainer.gpu().caps.timestamps && !args.wall;
        let roofs = timed.then(|| Roofs::measure(trainer.gpu(), Duration::from_millis(300))).transpose()?;
        let steps = Steps::run(trainer, &mut loader, 1, args.steps, time)?;
        let runs = if steps.median_ms() * 3.0 < 1e3 * args.seconds { 3 } else { 1 };
        let profile = roofs.map(|roofs| Ok::<_, Error>((Profile::run(trainer, runs)?, roofs))).transpose()?;
        let facts = measure::steps::StepFigures::new(&steps, trainer, planned_bytes);
        Ok(Measured { steps, facts, kernels: trainer.kernel_summary(), profile })
    })?;
    let [first, others @ ..] = &measured[..] else { return Ok(()) };
    if !ranks::is_first(world) {
        return Ok(());
    }
    let Measured { steps, facts, kernels, profile } = first;
    for (number, gpu) in gpus.iter().enumerate() {
        say_device(gpu, (devices > 1).then_some(number));
    }
    if let Some(world) = world {
        say!("mpi     {}", world.summary());
    }
    let several = match (devices, machines) {
        (1, _) => String::new(),
        (_, 1) => format!(" on {devices} devices"),
        _ => format!(" on {devices} devices of {machines} machines"),
    };
    say!(
        "step    {} layers, {} channels, vocabulary {}; batch {} x context {context} x {}{several}; {}",
        config.layers,
        config.channels,
        config.vocab,
        sizes.batch,
        sizes.accumulation,
        elem.name()
    );
    let tuned = measure::tuned_jobs_summary(&found, &gpu.caps, &config, elem, [sizes.batch, context]);
    if let Some(line) = &tuned {
        say!("tuned   {line}");
    }
    stdout::text(&facts.report());
    let exchanged = (devices > 1).then(|| MeasuredExchange::new(&Traffic::of_device(&options, 0), steps));
    if let Some(exchanged) = &exchanged {
        say_lines!("{}", exchanged.report(&args.wire.to_string()));
    }
    let about = json!({"adapter": gpu.caps.name, "driver": gpu.caps.driver, "version": env!("CARGO_PKG_VERSION")});
    let mut beside = None;
    if let Some((profile, roofs)) = profile {
        let first = if devices > 1 { "\nof device 0:" } else { "" };
        say_lines!("roofs   {}\n{first}", roofs.summary());
        stdout::text(&profile.report(roofs));
        beside = card.map(|card| Comparison::new(card, profile, roofs));
        if let (Some(beside), Some(card)) = (&beside, card) {
            say_lines!("\n{}", beside.report());
            if Card::of_adapter(&gpu.caps.name).is_none_or(|own| own.key != card.key) {
                say_lines!("{} is not {}: the ratios compare two machines\n", gpu.caps.name, card.name);
            }
        }
    } else if !args.wall {
        say!("kernels not timed: the adapter has no timestamps");
    }
    if let Some(path) = &args.json {
        let timed = profile.as_ref().map(|(profile, roofs)| {
            json!({
                "roofs": roofs, "kernels": profile.kernels(roofs), "gaps": profile.gaps(), "places": profile.places(),
                "commands_ms": profile.commands_ms(), "gaps_ms": profile.gaps_ms(), "span_ms": profile.timings.span_ms,
                "plain_ms": profile.plain_ms, "predicted": beside,
            })
        });
        let mut step = json!(facts);
        step["precision"] = elem.name().into();
        step["batch"] = sizes.batch.into();
        step["context"] = context.into();
        step["accumulation"] = args.accumulation.into();
        step["devices"] = devices.into();
        step["machines"] = machines.into();
        step["wire"] = args.wire.to_string().into();
        step["tuned"] = tuned.into();
        step["kernels"] = kernels.clone().into();
        write(path, &json!({"about": about, "step": step, "profile": timed, "exchange": exchanged}))?;
    }
    if let Some(path) = &args.trace {
        let others: Vec<&Steps> = others.iter().map(|other| &other.steps).collect();
        write(path, &trace::trace(steps, &others, profile.as_ref().map(|(profile, _)| profile), &about))?;
    }
    if let Some((profile, _)) = &profile {
        say!("sum of kernels {} ms of a step's {} ms", number(profile.commands_ms()), number(steps.median_ms()));
    }
    Ok(())
}

/// Figures of one device.
struct Measured {
    steps: Steps,
    facts: StepFigures,
    kernels: Vec<String>,
    profile: Option<(Profile, Roofs)>,
}

/// Measures the adapter's rates and compares them with the card's.
fn rates(args: &Args, gpu: &Gpu, card: Option<&Card>) -> Result<()> {
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
    let beside = card.map(|card| predict::comparison::rates(card, &roofs));
    if let (Some(card), Some(rows)) = (card, &beside) {
        say_lines!("\nbeside the prediction for {}\n{}", card.name, predict::comparison::table("<rate", "", rows));
    }
    match &args.json {
        Some(path) => write(path, &json!({"adapter": gpu.caps.name, "roofs": roofs, "predicted": beside})),
        None => Ok(()),
    }
}

/// Prints the driver's figures on the kernels that the trainer has built, those with the longest predicted time first.
fn statistics(args: &Args, trainer: &Trainer, card: Option<&Card>) -> Result<()> {
    let gpu = trainer.gpu();
    say_device(gpu, None);
    let kernels = gpu.statistics().filter(|kernels| kernels.iter().any(|(_, figures)| !figures.is_empty()));
    let Some(mut kernels) = kernels else { return Err(no_statistics(gpu)) };
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

fn no_statistics(gpu: &Gpu) -> Error {
    Error::device(format!(
        "profile: the driver of {} reports no figures on kernels (it lacks VK_KHR_pipeline_executable_properties); try \
         tools/isa, which asks Mesa's compilers and needs no GPU",
        gpu.caps.name
    ))
}

fn say_device(gpu: &Gpu, number: Option<usize>) {
    say!("device  {}{}", number.map_or(String::new(), |number| format!("{number}: ")), gpu.caps.summary());
    if !gpu.device_kind().is_empty() {
        say!("        {}", gpu.device_kind());
    }
}

fn count(args: &Args) -> Result<()> {
    let (config, sizes) = args.sizes(args.context.unwrap_or(1024), 1)?;
    // no device: `auto` means a GPU with matrix units, as in `wgpt plan`
    let elem = if args.precision == Precision::F32 { Elem::F32 } else { Elem::F16 };
    let count = Count::new(plan::assumed(elem, LARGEST_BINDING), config, sizes, elem, args.recompute)?;
    say_lines!(
        "count   {} layers, {} channels, vocabulary {}; batch {} x context {} x {}; kernels for a GPU, {}, bindings to 2 GiB\n",
        config.layers,
        config.channels,
        config.vocab,
        sizes.batch,
        sizes.context,
        sizes.accumulation,
        if elem == Elem::F16 { "f16 on matrix units" } else { "f32" }
    );
    stdout::text(&count.report());
    match &args.json {
        Some(path) => write(path, &json!(count)),
        None => Ok(()),
    }
}
