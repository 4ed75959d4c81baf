//! `wgpt plan --gpu`: a step's predicted time.

use std::path::PathBuf;

use wgpt::error::{Error, Result};
use wgpt::gpu::Elem;
use wgpt::train::Sizes;
use wgpt::train::measure::predict::card::{self, Card};
use wgpt::train::measure::predict::code::Codes;
use wgpt::train::measure::predict::{self, Prediction, Step};
use wgpt::train::measure::{Table, table::number};
use wgpt::train::plan::Subject;

use super::terminal::say;

/// The flags of a prediction.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Predict the time of a step on a GPU that need not be here, and plan for its memory: h100 h200 a100 rtx-4090 rtx-3090
    /// rx-7900-xtx apple-m1, or all
    #[arg(long, value_name = "CARD", conflicts_with_all = ["tokens_per_second", "tflops", "like"])]
    gpu: Option<String>,
    /// Also print each kernel's predicted time and what limits it
    #[arg(long, requires = "gpu")]
    kernels: bool,
    /// Machine code of kernels, as tools/isa --json writes it [default: that of the kernels of a d12 step, part of the program]
    #[arg(long, value_name = "FILE", requires = "gpu")]
    machine_code: Option<PathBuf>,
}

/// What was predicted on one card.
pub struct Predicted(Vec<(usize, Prediction)>);

impl Predicted {
    /// Tokens a second at the fastest batch.
    pub fn tokens_per_s(&self) -> Option<f64> {
        self.0.iter().map(|(_, prediction)| prediction.tokens_per_s()).max_by(f64::total_cmp)
    }
}

impl Args {
    /// The cards that are asked for.
    pub fn cards(&self) -> Result<Vec<&'static Card>> {
        match self.gpu.as_deref() {
            None => Ok(Vec::new()),
            Some("all") => Ok(card::cards().iter().collect()),
            Some(name) => Card::find(name).map(|card| vec![card]).map_err(|e| Error::Usage(format!("--gpu: {e}"))),
        }
    }
}

/// Predicts and prints: on one card every batch that fits, on several the largest batch on each.
pub fn print(
    args: &Args,
    cards: &[&'static Card],
    subject: &Subject,
    elem: impl Fn(&Card) -> Elem,
    batches: &[usize],
) -> Result<Option<Predicted>> {
    let read = |path: &PathBuf| {
        let place = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| Error::Data(format!("{place}: {e}")))?;
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
            if let ([(_, prediction)], true) = (predictions.as_slice(), args.kernels) {
                say!("\n{}", prediction.report());
            } else if let Some((batch, best)) =
                predictions.iter().max_by(|a, b| a.1.tokens_per_s().total_cmp(&b.1.tokens_per_s()))
            {
                let mut table = Table::new(&["batch", "predicted ms", "tokens/s"]);
                for (batch, prediction) in &predictions {
                    table.row([
                        batch.to_string(),
                        number(prediction.ms()),
                        format!("{:.0}", prediction.tokens_per_s()),
                    ]);
                }
                say!("\n{table}\nbatch {batch}: {}", best.summary());
                if args.kernels {
                    say!("\n{}", best.report());
                }
            }
            Ok(Some(Predicted(predictions)))
        }
        many => {
            let Some(batch) = batches.last() else { return Ok(None) };
            say!("\npredictions for batch {batch}, unmeasured");
            for card in many {
                let prediction = predict(card, *batch)?;
                say!("{}", prediction.summary());
                if args.kernels {
                    say!("\n{}", prediction.report());
                }
            }
            Ok(None)
        }
    }
}
