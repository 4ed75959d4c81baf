//! `wgpt plan`.

mod devices;
mod nodes;
mod recipe;

use std::path::{Path, PathBuf};

use wgpt::error::{Error, Fault, Result};
use wgpt::gpu::{Caps, Elem, Gpu};
use wgpt::measure;
use wgpt::measure::exchange;
use wgpt::measure::plan::{self, LARGEST_BINDING, MAX_TOKENS, Plan, Subject, mib};
use wgpt::measure::predict::card::Card;
use wgpt::measure::predict::three;
use wgpt::measure::table::number;
use wgpt::model::Recompute;
use wgpt::run::records;
use wgpt::train::settings::{Batch, Precision, RunFile, Wire};
use wgpt::units;

use super::model::summary;
use super::predicted::{self, Cost, Predicted};
use super::shape::Shape;
use super::terminal::{say, say_lines};
use super::values::{parse_positive, parse_size, parse_tokens};
use devices::{Links, MOST_DEVICES, parse_devices, parse_link, say_exchange, together};

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

    /// Returns the tokens to train on, if they are given. Without --tokens-per-step a step has one micro-step of
    /// `batch` sequences per rank, as in `wgpt train`.
    fn all_tokens(&self, subject: &Subject, batch: Option<usize>) -> Option<f64> {
        let of_batch = || batch.map(|batch| (batch * subject.context * subject.ranks) as f64);
        self.tokens.or_else(|| Some(self.steps? * self.tokens_per_step.or_else(of_batch)?))
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
pub fn run(given: &Args) -> Result<()> {
    let args = &given.over_recipe()?;
    if args.steps.is_some() && args.tokens.is_none() && args.tokens_per_step.is_none() && args.batch.is_none() {
        return Err(Error::usage(Fault::at("--steps", "needs --tokens-per-step or --batch")));
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
    // the price of a recipe waits for a speed
    if given.price_per_hour.is_some() && no_speed {
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
    let tokens = args.all_tokens(&subject, args.batch.and(plans.first()).map(|(batch, _)| *batch));
    let costs = Cost { tokens, price: args.price_per_hour };
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
    cost(&costs, predicted.is_some(), together.or(one))
}

/// Returns the batches to show.
fn batches(args: &Args, memory: Option<u64>, subject: &Subject, gpu: &Gpu) -> Result<Vec<usize>> {
    let most = MAX_TOKENS / subject.context;
    if most == 0 {
        let fault = Fault::at("--context", "too long to plan").expected(format!("at most {MAX_TOKENS}"));
        return Err(Error::usage(fault.found(subject.context)));
    }
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
        Ok((planned, largest)) => {
            let [needs, memory] = units::sizes([planned.total(), memory]);
            let fault =
                Fault::at("memory", format!("batch {batch} needs {needs}")).expected(format!("at most {memory}"));
            Error::memory(fault.advice(plan::largest_batch_advice(largest, subject.recompute)))
        }
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
fn cost(costs: &Cost, is_predicted: bool, speed: Option<f64>) -> Result<()> {
    let text = |tokens: f64| match tokens < 9e15 {
        true => units::counted(tokens.round() as u64, "token"),
        false => format!("{tokens:.2e} tokens"),
    };
    let asked = costs.tokens;
    let Some(speed) = speed else {
        if let Some(tokens) = asked {
            let tokens = text(tokens);
            say!("{tokens}: for hours add --gpu CARD (a prediction), --like RUN or --tokens-per-second N");
        }
        return Ok(());
    };
    let tokens = asked.unwrap_or(TOKENS);
    let hours = tokens / speed / 3600.0;
    let tokens = text(tokens);
    if !is_predicted {
        let dollars = costs.price.map_or(String::new(), |price| format!(", {:.2} dollars", hours * price));
        say!("{tokens} at {} tokens/s: {} hours{dollars}", units::count(speed.round() as u64), number(hours));
    } else if asked.is_some() || costs.price.is_some() {
        let dollars = costs.price.map_or(String::new(), |price| format!(", {} dollars", three(hours * price)));
        say!(
            "{tokens} at {} tokens/s: about {} hours{dollars}; a prediction that no GPU has confirmed",
            three(speed),
            three(hours)
        );
    }
    Ok(())
}
