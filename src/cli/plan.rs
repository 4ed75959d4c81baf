//! `wgpt plan`.

use std::path::{Path, PathBuf};

use wgpt::data::fetch::{Files, catalog};
use wgpt::error::{Error, Fault, Result};
use wgpt::gpu::{Caps, Elem, Gpu};
use wgpt::measure;
use wgpt::measure::exchange::{self, BUSES, Bus, LinkSpeed, NETWORKS, Network, SharedStep, Traffic};
use wgpt::measure::plan::{self, LARGEST_BINDING, MAX_TOKENS, Plan, Subject, mib};
use wgpt::measure::predict::card::Card;
use wgpt::measure::predict::three;
use wgpt::measure::table::number;
use wgpt::model::{Config, Recompute};
use wgpt::run::records;
use wgpt::train::settings::file::CONFIG;
use wgpt::train::settings::layers::Layers;
use wgpt::train::settings::{Batch, Bytes, Positive, Precision, Recipe, RunFile, UNKNOWN_STEPS, Wire, recipe};
use wgpt::train::trainer::MAX_COPY_THREADS;
use wgpt::units;

use super::model::summary;
use super::nodes::Scaling;
use super::predicted::{self, Cost, Predicted};
use super::shape::Shape;
use super::terminal::{say, say_lines};
use super::train::resolve::start_without_files;
use super::values::{parse_positive, parse_size, parse_tokens};

/// Batches that are shown by default.
const BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Default tokens, for hours.
pub(super) const TOKENS: f64 = 1e9;

#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  wgpt plan --model d12
  wgpt plan --model d48 --recompute block --memory 80GiB
  wgpt plan --model d12 --gpu h100 --tokens 10B
  wgpt plan tools/recipes/gpt2-124M.toml --gpu h100 --price-per-hour 2.5
  wgpt plan --model d12 --batch 64 --gpu all
  wgpt plan --model d12 --batch 64 --gpu h100 --devices 8 --link pcie5 \\
      --tokens-per-step 524288
  wgpt plan --model d12 --batch 64 --gpu h100 --nodes 8 --devices 8 \\
      --link pcie5,100G
  wgpt plan --model d12 --batch 64 --tokens-per-second 200k --tokens 10B")]
pub struct Args {
    /// Recipe, or the folder of a run, to plan; flags win over it
    #[arg(value_name = "RECIPE|RUN")]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    shape: Shape,
    /// Sequences per micro-step, or auto
    ///
    /// auto takes the most that --memory or the GPU holds [default: a table of several]
    #[arg(long, value_name = "N|auto", help_heading = "Training")]
    batch: Option<Batch>,
    /// Tokens per sequence
    ///
    /// [default: all positions of a named model, at most 1024]
    #[arg(long, value_name = "N", help_heading = "Training")]
    context: Option<usize>,
    /// Tokens per step, as 524288 or 0.5M
    #[arg(long, value_name = "TOKENS", value_parser = parse_tokens, help_heading = "Training")]
    tokens_per_step: Option<f64>,
    /// Tokens to train on, as 10B [default: 1e9]
    #[arg(long, value_name = "TOKENS", value_parser = parse_tokens, help_heading = "Training")]
    tokens: Option<f64>,
    /// Steps, instead of --tokens
    #[arg(long, value_name = "N", value_parser = parse_positive, conflicts_with = "tokens", help_heading = "Training")]
    steps: Option<f64>,
    /// f32, f16 or auto [default: auto]
    ///
    /// Element type of matrix operands; auto is that of GPUs with matrix units, f16
    #[arg(long, value_enum, value_name = "TYPE", hide_possible_values = true, help_heading = "Training")]
    precision: Option<Precision>,
    /// Activations computed again to save memory
    ///
    /// none, gelu, ln or block: the backward pass computes them again instead of keeping them [default: none]
    #[arg(long, value_name = "LEVEL", help_heading = "Training")]
    recompute: Option<Recompute>,
    /// GPU memory available, as 24GiB or 800MB
    ///
    /// A batch that needs more is refused with exit code 5. Nothing is kept back of it: of a GPU's memory the driver,
    /// and a display, take some hundred MiB. An 80 GB card has 79.6 GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Devices")]
    memory: Option<u64>,
    #[command(flatten)]
    predicted: predicted::Args,
    /// Bytes that the adapter binds at once [default: 2GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Devices", hide_short_help = true)]
    binding: Option<u64>,
    /// Devices of a machine that share the run
    ///
    /// Memory is that of each; with --gpu the efficiency is predicted
    #[arg(long, value_name = "N", value_parser = parse_devices, help_heading = "Devices")]
    devices: Option<usize>,
    /// Machines, each with --devices devices
    ///
    /// Also shows the efficiency of fewer machines, over several networks
    #[arg(long, value_name = "M", requires = "devices", value_parser = parse_devices, help_heading = "Devices")]
    nodes: Option<usize>,
    /// Logical ranks of the run [default: one per device]
    ///
    /// A multiple of all devices
    #[arg(long, value_name = "R", value_parser = parse_devices, help_heading = "Devices", hide_short_help = true)]
    emulate_ranks: Option<usize>,
    /// Type of gradients between devices [default: f32]
    ///
    /// f32, bf16 or f16
    #[arg(long, value_enum, value_name = "TYPE", requires = "devices", hide_possible_values = true)]
    #[arg(help_heading = "Devices", hide_short_help = true)]
    wire: Option<Wire>,
    /// Bus and network [default: pcie4,100G]
    ///
    /// pcie4 or pcie5, and 10G, 25G, 100G, 200G or 400G (Gb/s), as pcie5,100G. With a network and no --nodes each
    /// device is on its own machine
    #[arg(long, value_name = "LINK", requires = "devices", value_parser = parse_link, help_heading = "Devices")]
    link: Option<Links>,
    /// Measured speed of one device, for hours
    #[arg(long, value_name = "TOKENS", value_parser = parse_tokens, conflicts_with_all = ["tflops", "like"])]
    #[arg(help_heading = "Hours and dollars")]
    tokens_per_second: Option<f64>,
    /// TFLOP/s of one device by llm.c's formula
    ///
    /// MFU times the GPU's peak
    #[arg(long, value_name = "TFLOPS", value_parser = parse_positive, conflicts_with = "like")]
    #[arg(help_heading = "Hours and dollars")]
    tflops: Option<f64>,
    /// Run whose measured speed is taken
    ///
    /// The median of its steps, per device, scaled by the operations of a token
    #[arg(long, value_name = "RUN", help_heading = "Hours and dollars")]
    like: Option<PathBuf>,
    /// Dollars per hour of all machines
    #[arg(long, value_name = "DOLLARS", value_parser = parse_positive, help_heading = "Hours and dollars")]
    price_per_hour: Option<f64>,
}

/// Tokens of a shard of the sets that `wgpt data fetch` knows.
const SHARD_TOKENS: f64 = 1e8;

impl Args {
    /// Returns these flags, completed by the recipe.
    fn over_recipe(&self) -> Result<Self> {
        let Some(path) = &self.recipe else { return Ok(self.clone()) };
        let mut layers = Layers::default();
        layers.file(&recipe_file(path)).map_err(|error| named_without_flag(path, error))?;
        let whole = |number: Option<f64>| number.map(|number| number as usize);
        let given = Recipe {
            model: self.shape.recipe(),
            training: recipe::Training {
                batch: self.batch,
                context: self.context,
                tokens_per_step: whole(self.tokens_per_step),
                steps: whole(self.steps),
                precision: self.precision,
                recompute: self.recompute,
                wire: self.wire,
                ..recipe::Training::default()
            },
            data: recipe::Data { emulate_ranks: self.emulate_ranks, ..recipe::Data::default() },
            run: recipe::Run { memory: self.memory.map(Bytes), ..recipe::Run::default() },
        };
        layers.flags(&given)?;
        let recipe = layers.merge()?.recipe;
        let settings = recipe.resolve(start_without_files(&recipe)?)?;
        let mut args = self.clone();
        args.shape.set(settings.config());
        args.context = Some(settings.train.context);
        args.batch = recipe.training.batch;
        args.tokens_per_step = recipe.training.tokens_per_step.map(|tokens| tokens as f64);
        args.precision = recipe.training.precision;
        args.recompute = Some(settings.train.recompute);
        args.wire = Some(settings.train.wire);
        args.emulate_ranks = recipe.data.emulate_ranks;
        args.memory = recipe.run.memory.map(|Bytes(bytes)| bytes);
        args.price_per_hour = self.price_per_hour.or(recipe.run.price_per_hour.map(|Positive(price)| price));
        args.tokens = self.tokens.or_else(|| match settings.train.steps {
            UNKNOWN_STEPS => epoch_tokens(&recipe.data.data),
            steps => Some(steps as f64 * settings.train.tokens_per_step as f64),
        });
        Ok(args)
    }

    fn subject(&self) -> Result<Subject> {
        let free = self.context.unwrap_or(1024);
        let config = self.shape.config(free)?;
        let context = self.context.unwrap_or(config.positions.min(1024));
        if !(1..=config.positions).contains(&context) {
            let most = config.positions;
            return Err(Error::usage(format!("--context: {context}, expected 1 to the model's {most}")));
        }
        let each = self.devices.unwrap_or(1);
        let is_networked = self.link.is_some_and(|link| link.network.is_some());
        let (devices, machines) = match self.nodes {
            None if is_networked => (each, each),
            None => (each, 1),
            Some(nodes) => (each * nodes, nodes),
        };
        if devices > MOST_DEVICES {
            let fault = Fault::at("--nodes", format!("{devices} devices in all"));
            return Err(Error::usage(fault.expected(format!("at most {MOST_DEVICES}"))));
        }
        let ranks = self.emulate_ranks.unwrap_or(devices);
        if !ranks.is_multiple_of(devices) {
            let fault = Fault::at("--emulate-ranks", format!("{ranks} ranks on {devices} devices"));
            let fault = fault.expected(format!("a multiple of {devices}"));
            return Err(Error::usage(fault.advice(format!("try {}", ranks.next_multiple_of(devices)))));
        }
        let recompute = self.recompute.unwrap_or(Recompute::None);
        let (elem, wire) = (self.elem(None), self.wire.unwrap_or_default().format());
        Ok(Subject { config, context, elem, recompute, ranks, devices, machines, wire })
    }

    /// Returns the element type on a card, or on a common GPU.
    fn elem(&self, card: Option<&Card>) -> Elem {
        match (self.precision.unwrap_or(Precision::Auto), card) {
            (Precision::F32, _) => Elem::F32,
            (Precision::Auto, Some(card)) => card.auto(),
            _ => Elem::F16,
        }
    }

    /// Returns the tokens to train on, if they are given.
    fn all_tokens(&self) -> Option<f64> {
        self.tokens.or(self.steps.zip(self.tokens_per_step).map(|(steps, tokens)| steps * tokens))
    }

    /// Returns whether micro-steps of `batch` sequences divide the tokens of a step.
    fn divides(&self, subject: &Subject, batch: usize) -> bool {
        self.tokens_per_step.is_none_or(|tokens| exchange::micro_steps(subject, batch, tokens).is_ok())
    }

    /// Returns the tokens/s of one device, if a flag gives or predicts them.
    fn speed(&self, subject: &Subject, predicted: Option<&Predicted>) -> Result<Option<f64>> {
        if let Some(speed) = predicted.and_then(Predicted::tokens_per_s) {
            return Ok(Some(speed));
        }
        if let Some(run) = &self.like {
            // at the same FLOP/s as that run, whose model may be another
            let file = RunFile::read(run)?;
            let settings = &file.settings;
            let there = measure::flops_per_token(&settings.config(), settings.train.context);
            let here = measure::flops_per_token(&subject.config, subject.context);
            let devices = file.record.devices.unwrap_or(1) as f64;
            return Ok(Some(median_speed(run)? / devices * there / here));
        }
        let of_tflops = |tflops: f64| 1e12 * tflops / measure::flops_per_token(&subject.config, subject.context);
        Ok(self.tokens_per_second.or(self.tflops.map(of_tflops)))
    }
}

/// Returns the file of a recipe, or of the run in a folder.
fn recipe_file(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(CONFIG) } else { path.to_owned() }
}

/// Adds the flag that a name belongs to, where it is no file.
fn named_without_flag(path: &Path, error: Error) -> Error {
    let name = path.to_str().unwrap_or_default();
    match Config::from_descriptor(name).is_ok() && !path.exists() {
        true => error.with_advice(format!("for the model: --model {name}")),
        false => error,
    }
}

/// Returns the tokens of an epoch of sets that `wgpt data fetch` knows by name.
fn epoch_tokens(data: &[PathBuf]) -> Option<f64> {
    let shards = |path: &PathBuf| {
        let text = path.to_str()?;
        let (name, count) = text.split_once(':').map_or((text, None), |(name, count)| (name, Some(count)));
        match catalog::find(name)?.files {
            Files::Shards(_, all) => count.map_or(Some(all), |count| count.parse().ok()),
            _ => None,
        }
    };
    let all: Option<usize> = data.iter().map(shards).sum();
    all.filter(|shards| *shards > 0).map(|shards| shards as f64 * SHARD_TOKENS)
}

/// Returns the median of a run's tokens/s.
fn median_speed(run: &Path) -> Result<f64> {
    let speeds = records::open(run)?.filter_map(|metric| metric.tokens_per_s).map(f64::from);
    let mut speeds: Vec<f64> = speeds.filter(|speed| *speed > 0.0).collect();
    speeds.sort_by(f64::total_cmp);
    speeds.get(speeds.len() / 2).copied().ok_or_else(|| {
        let fault = Fault::at(run.join(records::METRICS).display(), "no step with tokens_per_s");
        Error::data(fault.expected("one"))
    })
}

/// Plans.
pub fn run(args: &Args) -> Result<()> {
    let args = &args.over_recipe()?;
    if args.steps.is_some() && args.tokens.is_none() && args.tokens_per_step.is_none() {
        return Err(Error::usage(Fault::at("--steps", "needs --tokens-per-step")));
    }
    let mut subject = args.subject()?;
    let cards = args.predicted.cards()?;
    let card = match cards[..] {
        [card] => Some(card),
        _ => None,
    };
    subject.elem = args.elem(card);
    if let Some(card) = card.filter(|card| subject.elem == Elem::F16 && card.auto() == Elem::F32) {
        return Err(Error::usage(format!("--precision: f16 is not predicted for {}, expected f32", card.name)));
    }
    let no_speed = args.tokens_per_second.is_none() && args.tflops.is_none() && args.like.is_none() && cards.is_empty();
    if args.price_per_hour.is_some() && no_speed {
        return Err(Error::usage(
            "--price-per-hour: expected a speed: --tokens-per-second, --tflops, --like RUN or --gpu CARD",
        ));
    }
    let binding = args.binding.unwrap_or(LARGEST_BINDING).min(LARGEST_BINDING) / 256 * 256;
    if binding == 0 {
        return Err(Error::usage("--binding: expected at least 256 bytes"));
    }
    let caps = match card {
        Some(card) => Caps { max_binding_bytes: binding, ..card.caps() },
        None => plan::assumed(subject.elem, binding),
    };
    if let (Some(Batch::Count(batch @ 1..)), Some(tokens), 2..) = (args.batch, args.tokens_per_step, subject.ranks) {
        exchange::micro_steps(&subject, batch, tokens)?;
    }
    let gpu = Gpu::dry(caps);
    let memory = args.memory.or(card.map(Card::memory_bytes));
    let batches = batches(args, memory, &subject, &gpu)?;
    let planned = batches.iter().map(|&batch| Ok((batch, subject.plan(&gpu, batch)?)));
    let plans: Vec<(usize, Plan)> = planned.collect::<Result<_>>()?;
    say!("model    {}", summary(&subject.config));
    say_lines!(
        "plan     context {}, {}, --recompute {}, bindings of {} MiB; MiB\n",
        subject.context,
        if subject.elem == Elem::F16 { "f16 on matrix units" } else { "f32" },
        subject.recompute.name(),
        mib(binding)
    );
    say_lines!("{}", plan::table(&plans));
    fit(args, (memory, card), &subject, &gpu, &plans)?;
    let fitting: Vec<usize> = plans
        .iter()
        .filter(|(_, plan)| memory.is_none_or(|memory| plan.total() <= memory))
        .map(|(batch, _)| *batch)
        .collect();
    let link = &args.link.unwrap_or_default().link();
    let costs = Cost { tokens: args.all_tokens(), price: args.price_per_hour };
    let elem = |card: &Card| args.elem(Some(card));
    let shared = (subject.devices > 1).then_some(predicted::Shared { link, tokens: args.tokens_per_step });
    let predicted = predicted::print(&args.predicted, &cards, &subject, elem, &fitting, &costs, shared.as_ref())?;
    if subject.devices > 1 {
        say_exchange(args, link, &subject);
    } else if subject.ranks > 1 {
        say!("ranks    {} on one device, one after the other", subject.ranks);
    }
    if cards.len() > 1 {
        return Ok(());
    }
    let one = args.speed(&subject, predicted.as_ref())?;
    let together = together(args, link, &subject, predicted.as_ref(), one.zip(fitting.last().copied()))?;
    cost(args, predicted.is_some(), together.or(one))
}

/// Most devices of a plan.
const MOST_DEVICES: usize = 1024;

fn parse_devices(text: &str) -> std::result::Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MOST_DEVICES).contains(count));
    count.ok_or_else(|| format!("expected a number from 1 to {MOST_DEVICES}"))
}

/// The links that are asked for.
#[derive(Debug, Clone, Copy, Default)]
struct Links {
    bus: Option<Bus>,
    network: Option<Network>,
}

impl Links {
    fn link(self) -> LinkSpeed {
        LinkSpeed { bus: self.bus.unwrap_or(BUSES[0]), network: self.network.unwrap_or(NETWORKS[2]) }
    }
}

fn parse_link(text: &str) -> std::result::Result<Links, String> {
    let mut links = Links::default();
    for word in text.split(',') {
        let bus = BUSES.iter().find(|bus| bus.name.eq_ignore_ascii_case(word.trim()));
        let network = NETWORKS.iter().find(|network| network.name.eq_ignore_ascii_case(word.trim()));
        match (bus, network) {
            (Some(bus), _) if links.bus.is_none() => links.bus = Some(*bus),
            (_, Some(network)) if links.network.is_none() => links.network = Some(*network),
            _ => {
                let buses = BUSES.map(|bus| bus.name).join(", ");
                let networks = NETWORKS.map(|network| network.name).join(", ");
                return Err(format!("expected one of {buses}, one of {networks}, or both with a comma"));
            }
        }
    }
    Ok(links)
}

/// Prints the bytes that several devices exchange.
fn say_exchange(args: &Args, link: &LinkSpeed, subject: &Subject) {
    let Subject { devices, ranks, .. } = *subject;
    let all = Traffic::of(&subject.options(1)).all();
    say!(
        "devices  {devices}{}, {} each; a step moves {} MiB out of a device and {} MiB in, gradients in {}, weights in f32",
        if subject.machines > 1 {
            format!(", {} on each of {} machines", devices / subject.machines, subject.machines)
        } else {
            String::new()
        },
        if ranks == devices { "one rank".into() } else { format!("{} ranks", ranks / devices) },
        mib(all.out),
        mib(all.into),
        args.wire.unwrap_or_default()
    );
    say!(
        "link     {}: {} GB/s out, {} in{}; {MAX_COPY_THREADS} cores of the host copy for each device",
        link.bus.name,
        link.bus.out_gb,
        link.bus.in_gb,
        match subject.machines {
            1 => String::new(),
            _ => format!(
                "; {}: {} GB/s between machines, {} MiB to each device",
                link.network.name,
                link.network.gb,
                mib(all.far)
            ),
        }
    );
}

/// Prints the predicted step of several devices. Returns the tokens/s of all together, where those of one device are
/// predicted, or `given` with a batch.
fn together(
    args: &Args,
    link: &LinkSpeed,
    subject: &Subject,
    predicted: Option<&Predicted>,
    given: Option<(f64, usize)>,
) -> Result<Option<f64>> {
    if subject.devices == 1 {
        return Ok(None);
    }
    let of_speed = |(speed, batch): (f64, usize)| (batch, (batch * subject.context) as f64 / speed * 1e3);
    let best = predicted.and_then(|predicted| predicted.best(|batch| args.divides(subject, batch)));
    let Some((batch, micro)) = best.or(given.map(of_speed)) else {
        let ms = Traffic::of(&subject.options(1)).ms(link, MAX_COPY_THREADS, 0.0);
        say!("exchange at most about {} ms per step; predicted, not measured", three(ms));
        return Ok(None);
    };
    let tokens = args.tokens_per_step;
    if args.nodes.is_some() {
        let divides = |subject: &Subject, batch: usize| match tokens {
            Some(tokens) => exchange::micro_steps(subject, batch, tokens).is_ok(),
            None => true,
        };
        let micro = |subject: &Subject| {
            let best = predicted.and_then(|predicted| predicted.best(|batch| divides(subject, batch)));
            best.or(given.map(of_speed)).filter(|(batch, _)| divides(subject, *batch))
        };
        Scaling { subject, ranks: args.emulate_ranks, micro: &micro, tokens, link: *link }.print();
    }
    let step = SharedStep::predict(subject, link, batch, micro, tokens)?;
    say!(
        "step     {} tokens of batch {batch}: {} ms of kernels, {} ms more by the exchange: {} tokens/s, efficiency {:.0} %; \
         predicted, not measured",
        step.tokens,
        three(step.kernels_ms),
        three(step.exchange_ms),
        three(step.tokens_per_s()),
        100.0 * step.efficiency()
    );
    Ok(Some(step.tokens_per_s()))
}

/// Returns the batches to show.
fn batches(args: &Args, memory: Option<u64>, subject: &Subject, gpu: &Gpu) -> Result<Vec<usize>> {
    let most = MAX_TOKENS / subject.context;
    match (args.batch, memory) {
        (Some(Batch::Count(batch)), _) if (1..=most).contains(&batch) => Ok(vec![batch]),
        (Some(Batch::Count(batch)), _) => Err(Error::usage(format!("--batch: {batch}, expected 1 to {most}"))),
        (Some(Batch::Auto), None) => {
            Err(Error::usage("--batch auto: expected --memory, such as --memory 24GiB, or one --gpu"))
        }
        (Some(Batch::Auto), Some(memory)) => {
            // one that divides the tokens of a step, as `wgpt train` takes it, if there is one
            let found = match subject.largest_batch(gpu, memory, |batch| args.divides(subject, batch))? {
                None => subject.largest_batch(gpu, memory, |_| true)?,
                found => found,
            };
            found.map(|batch| vec![batch]).ok_or_else(|| too_little(subject, gpu, memory, 1))
        }
        (None, _) => Ok(BATCHES.into_iter().filter(|batch| *batch <= most).collect()),
    }
}

fn too_little(subject: &Subject, gpu: &Gpu, memory: u64, batch: usize) -> Error {
    let largest = || subject.largest_batch(gpu, memory, |smaller| smaller < batch);
    match subject.plan(gpu, batch).and_then(|planned| Ok((planned, largest()?))) {
        Ok((planned, largest)) => Error::memory(
            Fault::at("memory", format!("batch {batch} needs {}", units::size(planned.total())))
                .expected(format!("at most {}", units::size(memory)))
                .advice(plan::largest_batch_advice(largest, subject.recompute)),
        ),
        Err(error) => error,
    }
}

/// Prints the largest batch that fits, with --memory or --gpu.
fn fit(
    args: &Args,
    (memory, card): (Option<u64>, Option<&Card>),
    subject: &Subject,
    gpu: &Gpu,
    plans: &[(usize, Plan)],
) -> Result<()> {
    let Some(memory) = memory else { return Ok(()) };
    if let (Some(card), None) = (card, args.memory) {
        say!("{}", card.memory_summary());
    }
    if let Some(Batch::Count(batch)) = args.batch {
        if plans[0].1.total() > memory {
            return Err(too_little(subject, gpu, memory, batch));
        }
        say!("batch {batch} fits into {}", units::size(memory));
        return Ok(());
    }
    let largest = match args.batch {
        Some(_) => plans.first().map(|(batch, _)| *batch),
        None => subject.largest_batch(gpu, memory, |_| true)?,
    };
    let largest = largest.ok_or_else(|| too_little(subject, gpu, memory, 1))?;
    say!("largest batch in {}: {largest}", units::size(memory));
    Ok(())
}

/// Prints hours, with a speed, and dollars, with a price.
fn cost(args: &Args, is_predicted: bool, speed: Option<f64>) -> Result<()> {
    let asked = args.all_tokens();
    let Some(speed) = speed else {
        if let Some(tokens) = asked {
            say!(
                "{}: for hours add --gpu CARD (a prediction), --like RUN or --tokens-per-second N",
                units::counted(tokens.round() as u64, "token")
            );
        }
        return Ok(());
    };
    let tokens = asked.unwrap_or(TOKENS);
    let hours = tokens / speed / 3600.0;
    let tokens = units::counted(tokens.round() as u64, "token");
    if !is_predicted {
        let dollars = args.price_per_hour.map_or(String::new(), |price| format!(", {:.2} dollars", hours * price));
        say!("{tokens} at {} tokens/s: {} hours{dollars}", units::count(speed.round() as u64), number(hours));
    } else if asked.is_some() || args.price_per_hour.is_some() {
        let dollars = args.price_per_hour.map_or(String::new(), |price| format!(", {} dollars", three(hours * price)));
        say!(
            "{tokens} at {} tokens/s: about {} hours{dollars}; a prediction that no GPU has confirmed",
            three(speed),
            three(hours)
        );
    }
    Ok(())
}
