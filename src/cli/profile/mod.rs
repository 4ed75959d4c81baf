//! `wgpt profile`.

mod figures;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use wgpt::data::{Batches, LoaderConfig, Part, TokenFormat, token_paths};
use wgpt::error::{Error, Result};
use wgpt::gpu::{Elem, Gpu, Options, devices};
use wgpt::measure::plan::{self, LARGEST_BINDING, MAX_TOKENS, Subject};
use wgpt::measure::predict::card::Card;
use wgpt::measure::steps::StepFigures;
use wgpt::measure::{self, Count, Profile, Roofs, Steps, tune};
use wgpt::model::{Config, Recompute, init};
use wgpt::run::orders::Crew;
use wgpt::train::collective::mpi::World;
use wgpt::train::settings::Wire;
use wgpt::train::{Sizes, Trainer, TrainerOptions};
use wgpt::units;

use self::report::{Measured, Report};
use super::precision::{self, Precision};
use super::predicted;
use super::ranks;
use super::shape::Shape;
use super::stdout;
use super::terminal::say_lines;

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

    fn check(&self) -> Result<()> {
        if !self.seconds.is_finite() || self.seconds < 0.0 {
            return Err(Error::usage(format!("--seconds: {}, expected a number of at least 0", self.seconds)));
        }
        if self.experimental && self.precision == Precision::F32 {
            return Err(Error::usage(
                "--experimental: its matrices are of f16, expected --precision f16 or auto with it",
            ));
        }
        Ok(())
    }

    fn open(&self, names: &[Option<String>], elem: Elem) -> Result<Vec<Gpu>> {
        let options = |device: &Option<String>| Options {
            device: device.clone(),
            matrices: elem == Elem::F16,
            checked: self.checked,
            driver_checks: self.driver_checks,
            statistics: self.statistics,
            experimental: self.experimental,
            ..Options::default()
        };
        let gpus = devices::open(&names.iter().map(options).collect::<Vec<_>>())?;
        gpus.iter().try_for_each(|gpu| precision::check(elem, &gpu.caps))?;
        if self.statistics && gpus[0].statistics().is_none() {
            return Err(figures::missing(&gpus[0]));
        }
        Ok(gpus)
    }

    /// Measures steps on the wall clock and, on the first device, each kernel by the device's clock.
    fn measure(&self, trainer: &mut Trainer, loader: &mut Batches, planned_bytes: u64) -> Result<Measured> {
        trainer.load(&init::init(*trainer.config(), 42))?;
        let is_first = trainer.part().device == 0;
        // before the steps, so that the timed step follows them in the trace
        let timed = is_first && trainer.gpu().caps.timestamps && !self.wall;
        let roofs = timed.then(|| Roofs::measure(trainer.gpu(), Duration::from_millis(300))).transpose()?;
        let time = Duration::from_secs_f64(self.seconds.clamp(0.1, 3600.0));
        let steps = Steps::run(trainer, loader, 1, self.steps, time)?;
        let runs = if steps.median_ms() * 3.0 < 1e3 * self.seconds { 3 } else { 1 };
        let profile = roofs.map(|roofs| Ok::<_, Error>((Profile::run(trainer, runs)?, roofs))).transpose()?;
        let facts = StepFigures::new(&steps, trainer, planned_bytes);
        Ok(Measured { steps, facts, kernels: trainer.kernel_summary(), profile })
    }
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

/// Measures a step, or the adapter's rates, or prints the driver's figures.
fn profile(args: &Args, world: Option<&World>) -> Result<()> {
    args.check()?;
    let card = args.against.as_deref().map(|name| predicted::card("--against", name)).transpose()?;
    let names = args.devices(world)?;
    let layout = world.map(|world| ranks::lay_out(world, &names, args.share_device)).transpose()?;
    let elem = precision::resolve(args.precision, names[0].as_deref())?;
    let mut gpus = args.open(&names, elem)?;
    let card = card.or_else(|| Card::of_adapter(&gpus[0].caps.name));
    if args.roofs {
        return figures::rates(args, &gpus[0], card);
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
        return figures::statistics(args, &Trainer::new(gpu, options)?, card);
    }
    let links = crew.map(|crew| crew.links()).transpose()?;
    let measured = measure::steps::on_devices(gpus, links, options, |trainer| {
        let mut loader = match &sources {
            None => measure::random_batches(&config, &sizes, 8)?,
            Some(sources) => {
                Batches::new(sources.clone(), LoaderConfig::new(sizes.batch, context, config.vocab, Some(42)))?
            }
        };
        args.measure(trainer, &mut loader, planned_bytes)
    })?;
    if !ranks::is_first(world) {
        return Ok(());
    }
    let tuned = measure::tuned_jobs_summary(&found, &gpu.caps, &config, elem, [sizes.batch, context]);
    Report { args, world, gpus, devices, machines, options, card, tuned, measured: &measured }.publish()
}

fn count(args: &Args) -> Result<()> {
    let (config, sizes) = args.sizes(args.context.unwrap_or(1024), 1)?;
    // no device: `auto` means a GPU with matrix units, as in `wgpt plan`
    let elem = if args.precision == Precision::F32 { Elem::F32 } else { Elem::F16 };
    let count = Count::new(plan::assumed(elem, LARGEST_BINDING), config, sizes, elem, args.recompute)?;
    say_lines!(
        "count   {}; kernels for a GPU, {}, bindings to 2 GiB\n",
        report::sizes_text(&config, &sizes),
        if elem == Elem::F16 { "f16 on matrix units" } else { "f32" }
    );
    stdout::text(&count.report());
    match &args.json {
        Some(path) => report::write(path, &json!(count)),
        None => Ok(()),
    }
}
