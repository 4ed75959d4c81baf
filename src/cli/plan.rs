//! `wgpt plan`.

use std::path::{Path, PathBuf};

use wgpt::error::{Error, Fault, Result};
use wgpt::gpu::{Caps, Elem, Gpu};
use wgpt::measure;
use wgpt::measure::exchange::{self, BUSES, Bus, LinkSpeed, NETWORKS, Network, SharedStep, Traffic};
use wgpt::measure::plan::{self, LARGEST_BINDING, MAX_TOKENS, Plan, Subject, mib};
use wgpt::measure::predict::card::Card;
use wgpt::measure::predict::three;
use wgpt::measure::table::number;
use wgpt::model::Recompute;
use wgpt::run::records;
use wgpt::train::settings::{Batch, Precision, RunFile, Wire};
use wgpt::train::trainer::MAX_COPY_THREADS;

use super::nodes::Scaling;
use super::predicted::{self, Cost, Predicted};
use super::shape::Shape;
use super::terminal::{say, say_lines};
use super::values::{parse_positive, parse_size};

/// Batches that are shown when none is asked for.
const BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Tokens whose hours are shown when nothing is said.
pub(super) const TOKENS: f64 = 1e9;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  wgpt plan --model d12
  wgpt plan --model d48 --recompute block --memory 80GiB
  wgpt plan --model d12 --gpu h100
  wgpt plan --model d12 --batch 64 --gpu all
  wgpt plan --model d12 --batch 64 --gpu h100 --devices 8 --link pcie5 --tokens-per-step 524288
  wgpt plan --model d12 --batch 64 --gpu h100 --nodes 8 --devices 8 --link pcie5,100G
  wgpt plan --model d12 --batch 64 --tokens-per-second 200000 --tokens 1e10 --price-per-hour 2.5")]
pub struct Args {
    #[command(flatten)]
    shape: Shape,
    /// Sequences of a micro-step, or `auto` for the most that --memory holds [default: a table of several]
    #[arg(long)]
    batch: Option<Batch>,
    /// Tokens of a sequence [default: all positions of a named model, at most 1024]
    #[arg(long)]
    context: Option<usize>,
    /// Element type of matrix operands; auto is that of GPUs with matrix units, f16
    #[arg(long, value_enum, default_value_t = Precision::Auto)]
    precision: Precision,
    /// What the backward pass computes again instead of keeping it: none, gelu, ln or block
    #[arg(long, value_name = "LEVEL", default_value = "none")]
    recompute: Recompute,
    /// Memory that there is, as 24GiB or 800MB: fails with 5 if it is too little
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Bytes that the adapter binds at once [default: 2GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    binding: Option<u64>,
    /// Number of devices of a machine that share the run: memory of each, and with --gpu the predicted efficiency
    #[arg(long, value_name = "N", value_parser = parse_devices)]
    devices: Option<usize>,
    /// Number of machines, each with --devices devices: also shows the efficiency of fewer, over several networks
    #[arg(long, value_name = "M", requires = "devices", value_parser = parse_devices)]
    nodes: Option<usize>,
    /// Logical ranks of the run, a multiple of all devices [default: one a device]
    #[arg(long, value_name = "R", value_parser = parse_devices)]
    emulate_ranks: Option<usize>,
    /// Element type of gradients on their way between devices
    #[arg(long, value_enum, default_value_t = Wire::F32, requires = "devices")]
    wire: Wire,
    /// Bus and network: pcie4 or pcie5, and 10G, 25G, 100G, 200G or 400G (Gb/s), as pcie5,100G. With a network and no --nodes each
    /// device is on a machine of its own [default: pcie4,100G]
    #[arg(long, value_name = "LINK", requires = "devices", value_parser = parse_link)]
    link: Option<Links>,
    #[command(flatten)]
    predicted: predicted::Args,
    /// Speed of one device, for hours
    #[arg(long, value_name = "TOKENS", value_parser = parse_positive, conflicts_with_all = ["tflops", "like"])]
    tokens_per_second: Option<f64>,
    /// Speed of one device as TFLOP/s by llm.c's formula, for hours
    #[arg(long, value_parser = parse_positive, conflicts_with = "like")]
    tflops: Option<f64>,
    /// Folder of a run whose measured speed is taken: the median of its steps, over its devices
    #[arg(long, value_name = "RUN")]
    like: Option<PathBuf>,
    /// Tokens to train on [default: 1e9]
    #[arg(long, value_parser = parse_positive)]
    tokens: Option<f64>,
    /// Steps of --tokens-per-step tokens, instead of --tokens
    #[arg(long, value_parser = parse_positive, conflicts_with = "tokens", requires = "tokens_per_step")]
    steps: Option<f64>,
    /// Tokens of a step
    #[arg(long, value_parser = parse_positive)]
    tokens_per_step: Option<f64>,
    /// Dollars an hour of all machines together, for what hours cost
    #[arg(long, value_name = "DOLLARS", value_parser = parse_positive)]
    price_per_hour: Option<f64>,
}

impl Args {
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
        let (elem, recompute, wire) = (self.elem(None), self.recompute, self.wire.format());
        Ok(Subject { config, context, elem, recompute, ranks, devices, machines, wire })
    }

    /// The element type on a card, or on GPUs as they come.
    fn elem(&self, card: Option<&Card>) -> Elem {
        match (self.precision, card) {
            (Precision::F32, _) => Elem::F32,
            (Precision::Auto, Some(card)) => card.auto(),
            _ => Elem::F16,
        }
    }

    /// Tokens to train on, if anything says so.
    fn all_tokens(&self) -> Option<f64> {
        self.tokens.or(self.steps.zip(self.tokens_per_step).map(|(steps, tokens)| steps * tokens))
    }

    /// True if steps of the tokens that are asked for can be made of micro-steps of `batch` sequences.
    fn divides(&self, subject: &Subject, batch: usize) -> bool {
        self.tokens_per_step.is_none_or(|tokens| exchange::micro_steps(subject, batch, tokens).is_ok())
    }

    /// Returns the tokens a second of one device, if a flag gives or predicts them.
    fn speed(&self, subject: &Subject, predicted: Option<&Predicted>) -> Result<Option<f64>> {
        if let Some(speed) = predicted.and_then(Predicted::tokens_per_s) {
            return Ok(Some(speed));
        }
        if let Some(run) = &self.like {
            // as many FLOP a second as that run, whose model may be another
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

/// The median of a run's tokens a second.
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
    let c = &subject.config;
    say!(
        "model    {} layers, {} heads, {} channels, vocabulary {}: {:.1} M parameters",
        c.layers,
        c.heads,
        c.channels,
        c.vocab,
        c.parameters() as f64 / 1e6
    );
    say_lines!(
        "plan     context {}, {}, --recompute {}, bindings of {} MiB; MiB\n",
        subject.context,
        if subject.elem == Elem::F16 { "f16 on matrix units" } else { "f32" },
        subject.recompute.name(),
        mib(binding)
    );
    say_lines!("{}", plan::table(&plans));
    fit(args, card, memory, &subject, &gpu, &plans)?;
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

/// Devices of a plan at most.
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

/// With several devices: the bytes that they exchange.
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
        args.wire
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

/// With several devices: the predicted step. Returns the tokens a second of all together, where one device's are predicted, or
/// `given` with a batch.
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
        say!("exchange at most about {} ms a step; predicted, not measured", three(ms));
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

/// The batches to show.
fn batches(args: &Args, memory: Option<u64>, subject: &Subject, gpu: &Gpu) -> Result<Vec<usize>> {
    let most = MAX_TOKENS / subject.context;
    match (args.batch, memory) {
        (Some(Batch::Count(batch)), _) if (1..=most).contains(&batch) => Ok(vec![batch]),
        (Some(Batch::Count(batch)), _) => Err(Error::usage(format!("--batch: {batch}, expected 1 to {most}"))),
        (Some(Batch::Auto), None) => {
            Err(Error::usage("--batch auto: expected --memory, such as --memory 24GiB, or one --gpu"))
        }
        (Some(Batch::Auto), Some(memory)) => {
            // one that steps can be made of, as `wgpt train` takes it, if there is one
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
            Fault::at("memory", format!("batch {batch} needs {} MiB", mib(planned.total())))
                .expected(format!("at most {} MiB", mib(memory)))
                .advice(plan::largest_batch_advice(largest, subject.recompute)),
        ),
        Err(error) => error,
    }
}

/// With --memory or --gpu: what fits.
fn fit(
    args: &Args,
    card: Option<&Card>,
    memory: Option<u64>,
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
        say!("batch {batch} fits into {} MiB", mib(memory));
        return Ok(());
    }
    let largest = match args.batch {
        Some(_) => plans.first().map(|(batch, _)| *batch),
        None => subject.largest_batch(gpu, memory, |_| true)?,
    };
    let largest = largest.ok_or_else(|| too_little(subject, gpu, memory, 1))?;
    say!("largest batch in {} MiB: {largest}", mib(memory));
    Ok(())
}

/// With a speed: hours, and with a price dollars.
fn cost(args: &Args, is_predicted: bool, speed: Option<f64>) -> Result<()> {
    let Some(speed) = speed else { return Ok(()) };
    let asked = args.all_tokens();
    let tokens = asked.unwrap_or(TOKENS);
    let hours = tokens / speed / 3600.0;
    if !is_predicted {
        let dollars = args.price_per_hour.map_or(String::new(), |price| format!(", {:.2} dollars", hours * price));
        say!("{tokens:e} tokens at {} tokens/s: {} hours{dollars}", number(speed), number(hours));
    } else if asked.is_some() || args.price_per_hour.is_some() {
        let dollars = args.price_per_hour.map_or(String::new(), |price| format!(", {} dollars", three(hours * price)));
        say!(
            "{tokens:e} tokens at {} tokens/s: about {} hours{dollars}; a prediction that no GPU has confirmed",
            three(speed),
            three(hours)
        );
    }
    Ok(())
}
