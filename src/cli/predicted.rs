//! `wgpt plan --gpu`: a step's predicted time.

use std::path::PathBuf;

use wgpt::error::{Error, Result};
use wgpt::files::{bounded, open};
use wgpt::gpu::{Elem, Gpu};
use wgpt::measure::Table;
use wgpt::measure::exchange::{LinkSpeed, SharedStep};
use wgpt::measure::plan::Subject;
use wgpt::measure::predict::card::{Card, cards};
use wgpt::measure::predict::code::Codes;
use wgpt::measure::predict::{self, Prediction, Step, three};
use wgpt::train::Sizes;
use wgpt::units::size;

use super::terminal::{say, say_lines};

/// The flags of a prediction.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "predicted")]
pub struct Args {
    /// GPU to predict the speed of: h100 rtx-4090 ... or all
    ///
    /// h100 h200 a100 rtx-4090 rtx-3090 rx-7900-xtx apple-m1, or all. It need not be here. The plan is for its memory
    #[arg(long, value_name = "CARD", conflicts_with_all = ["tokens_per_second", "tflops", "like"])]
    #[arg(help_heading = "Devices")]
    gpu: Option<String>,
    /// Also print kernels and their limiters
    #[arg(long, requires = "gpu", help_heading = "Hours and dollars")]
    kernels: bool,
    /// Machine code of kernels, from tools/isa --json
    ///
    /// [default: that of the kernels of a d12 step, which is part of the program]
    #[arg(long, value_name = "FILE", requires = "gpu", help_heading = "Hours and dollars", hide_short_help = true)]
    machine_code: Option<PathBuf>,
}

/// Finds the card that a flag names.
pub fn card(flag: &str, name: &str) -> Result<&'static Card> {
    Card::find(name).map_err(|e| Error::usage(format!("{flag}: {e}")))
}

/// Predictions for one card, by batch.
pub struct Predicted(Vec<(usize, Prediction)>);

impl Predicted {
    /// Returns the fastest batch that is good, else the fastest one, and the milliseconds of its micro-step.
    pub fn best(&self, good: impl Fn(usize) -> bool) -> Option<(usize, f64)> {
        let is_good = |all: &&(usize, Prediction)| good(all.0);
        let by_speed =
            |a: &&(usize, Prediction), b: &&(usize, Prediction)| a.1.tokens_per_s().total_cmp(&b.1.tokens_per_s());
        let best = self.0.iter().filter(is_good).max_by(by_speed).or_else(|| self.0.iter().max_by(by_speed));
        best.map(|(batch, prediction)| (*batch, prediction.ms()))
    }

    /// Returns the tokens/s at the fastest batch.
    pub fn tokens_per_s(&self) -> Option<f64> {
        self.0.iter().map(|(_, prediction)| prediction.tokens_per_s()).max_by(f64::total_cmp)
    }
}

impl Args {
    /// Returns the cards that are asked for.
    pub fn cards(&self) -> Result<Vec<&'static Card>> {
        match self.gpu.as_deref() {
            None => Ok(Vec::new()),
            Some("all") => Ok(cards().iter().collect()),
            Some(name) => card("--gpu", name).map(|card| vec![card]),
        }
    }
}

/// Most bytes of a file of machine code's figures: the committed one has some 100 KB.
const MACHINE_CODE_BYTES: u64 = 16 << 20;

/// The tokens and the price that the table of all cards turns into hours and dollars.
pub struct Cost {
    /// Tokens to train on, if that is asked for.
    pub tokens: Option<f64>,
    /// Dollars per hour.
    pub price: Option<f64>,
}

/// Several devices that share each step.
pub struct Shared<'l> {
    /// The bus and the network between them.
    pub link: &'l LinkSpeed,
    /// Tokens of a step, if that is asked for.
    pub tokens: Option<f64>,
}

/// Predicts and prints: for one card every batch that fits, for several cards one batch each.
pub fn print(
    args: &Args,
    cards: &[&'static Card],
    subject: &Subject,
    elem: impl Fn(&Card) -> Elem,
    batches: &[usize],
    cost: &Cost,
    shared: Option<&Shared>,
) -> Result<Option<Predicted>> {
    let read = |path: &PathBuf| {
        let place = path.display().to_string();
        let text = bounded::read_text(path, MACHINE_CODE_BYTES, "a table of machine code")
            .map_err(|e| Error::data(open::fault(&place, &e)))?;
        Codes::read(&place, &text)
    };
    let own = args.machine_code.as_ref().map(read).transpose()?;
    let codes = own.as_ref().unwrap_or_else(|| Codes::committed());
    let predict = |card: &Card, batch: usize| {
        let sizes = Sizes { batch, context: subject.context, accumulation: 1 };
        predict::predict(card, codes, &Step { config: subject.config, sizes, recompute: subject.recompute }, elem(card))
    };
    match cards {
        [] => Ok(None),
        [card] => {
            let predictions: Vec<(usize, Prediction)> =
                batches.iter().map(|&batch| Ok((batch, predict(card, batch)?))).collect::<Result<_>>()?;
            let best = predictions.iter().max_by(|a, b| a.1.tokens_per_s().total_cmp(&b.1.tokens_per_s()));
            let Some((batch, best)) = best else { return Ok(None) };
            if predictions.len() > 1 {
                let mut table = Table::new(&["batch", "ms per micro-step, predicted", "tokens/s"]);
                for (batch, prediction) in &predictions {
                    table.row([batch.to_string(), three(prediction.ms()), three(prediction.tokens_per_s())]);
                }
                say_lines!("\n{table}");
            }
            if args.kernels {
                say_lines!("\nbatch {batch}\n{}", best.report());
            } else {
                say_lines!("\nbatch {batch}: {}", best.summary());
            }
            Ok(Some(Predicted(predictions)))
        }
        many => {
            let Some(&batch) = batches.last() else { return Ok(None) };
            let (mut predictions, mut without) = (Vec::new(), Vec::new());
            for card in many {
                match predict(card, batch) {
                    Ok(prediction) => predictions.push((*card, prediction)),
                    Err(why) => without.push(format!("{}: not predicted: {why}", card.name)),
                }
            }
            say_lines!(
                "\npredicted for batch {batch}, not measured\n{}",
                compare(&predictions, subject, batch, cost, shared)?
            );
            without.iter().for_each(|line| say!("{line}"));
            for (_, prediction) in predictions.iter().filter(|_| args.kernels) {
                say_lines!("\n{}", prediction.report());
            }
            Ok(None)
        }
    }
}

/// Returns a table of cards side by side.
fn compare(
    predictions: &[(&Card, Prediction)],
    subject: &Subject,
    batch: usize,
    cost: &Cost,
    shared: Option<&Shared>,
) -> Result<Table> {
    let costs = cost.tokens.is_some() || cost.price.is_some();
    let mut heading = vec!["<card", "<type", "ms per micro-step", "tokens/s"];
    if shared.is_some() {
        heading.extend(["ms by the exchange", "tokens/s of all", "efficiency %"]);
    }
    heading.extend(["hours", "dollars"].iter().take(usize::from(costs) + usize::from(cost.price.is_some())));
    heading.push("<memory");
    let mut table = Table::new(&heading);
    for (card, prediction) in predictions {
        let elem = if prediction.precision == "f16" { Elem::F16 } else { Elem::F32 };
        let needed = Subject { elem, ..*subject }.plan(&Gpu::dry(card.caps()), batch)?.total();
        let has = card.memory_bytes();
        let memory = if needed <= has {
            "fits".into()
        } else {
            format!("does not fit: needs {} of {}", size(needed), size(has))
        };
        let mut speed = prediction.tokens_per_s();
        let mut row = vec![card.name.clone(), prediction.precision.into(), three(prediction.ms()), three(speed)];
        if let Some(Shared { link, tokens }) = shared {
            let step = SharedStep::predict(&Subject { elem, ..*subject }, link, batch, prediction.ms(), *tokens)?;
            speed = step.tokens_per_s();
            row.extend([three(step.exchange_ms), three(speed), format!("{:.0}", 100.0 * step.efficiency())]);
        }
        let hours = cost.tokens.unwrap_or(super::plan::TOKENS) / speed / 3600.0;
        if costs {
            row.push(three(hours));
        }
        row.extend(cost.price.map(|price| three(hours * price)));
        row.push(memory);
        table.row_of(row);
    }
    Ok(table)
}
