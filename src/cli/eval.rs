//! `wgpt eval`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use wgpt::data::tokenizer::same;
use wgpt::data::{Part, Rows, TokenFormat, Tokenizer, hellaswag, token_names, token_paths};
use wgpt::error::{Error, Result};
use wgpt::files::atomic;
use wgpt::gpu::{Gpu, Options};
use wgpt::infer::evaluate::{Answer, Evaluator};
use wgpt::model::Config;
use wgpt::train::dataset::recorded_tokenizer;

use super::model::{From, place, summary, upload};
use super::stdout;
use super::terminal::say;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "HellaSwag is scored as llm.c does: of four endings the model chooses the one whose tokens have the smallest mean
loss after the context. Its file is llm.c's hellaswag_val.bin, the original hellaswag_val.jsonl, or the Parquet file of
Hugging Face's hub. The validation loss is over rows of --context tokens from the start of the shards.

Examples:
  wgpt eval --from gpt2 --hellaswag hellaswag_val.jsonl
  wgpt eval --from runs/1 --data 'fineweb_val_*.bin'
  wgpt eval --from gpt2_124M.bin --data 'fineweb_val_*.bin' --hellaswag hellaswag_val.bin --limit 1000 --json"
)]
pub struct Args {
    #[command(flatten)]
    from: From,
    /// Token shards to measure the loss on: files, a pattern, a folder that holds NAME_val_*.bin, or a name of `wgpt data
    /// fetch`, of which the validation is taken
    #[arg(long, value_name = "GLOB|NAME", num_args = 1.., required_unless_present = "hellaswag")]
    data: Vec<PathBuf>,
    /// Layout of --data: shard (llm.c's), u16 or u32 (ids without a header, as nanoGPT's val.bin), npy (NumPy)
    #[arg(long, value_name = "FORMAT", default_value_t, requires = "data")]
    data_format: TokenFormat,
    /// HellaSwag's validation set: .bin of llm.c, .jsonl or .parquet, or `hellaswag` once `wgpt data fetch` has it
    #[arg(long, value_name = "FILE")]
    hellaswag: Option<PathBuf>,
    /// Tokens of a row [default: all positions of the model, at most 1024]
    #[arg(long)]
    context: Option<usize>,
    /// Rows of a batch [default: as many as make 8192 tokens, 1024 on a software adapter]
    #[arg(long)]
    batch: Option<usize>,
    /// Tokens of the validation
    #[arg(long, value_name = "TOKENS", default_value_t = VAL_TOKENS)]
    val_limit: usize,
    /// Examples of HellaSwag, from the first [default: all]
    #[arg(long, value_name = "EXAMPLES")]
    limit: Option<usize>,
    /// Write the choice and the four losses of every example, one JSON object a line
    #[arg(long, value_name = "FILE", requires = "hellaswag")]
    answers: Option<PathBuf>,
    /// One JSON object in place of lines
    #[arg(long)]
    json: bool,
    /// Adapter by index or part of its name
    #[arg(long)]
    device: Option<String>,
}

/// What llm.c measured GPT-2 on: 20 steps of 524,288.
const VAL_TOKENS: usize = 10_485_760;
/// Figures that others measured in the same way. HellaSwag and FineWeb: llm.c, dev/vislog.ipynb.
const HELLASWAG: &str = "GPT-2 124M 0.2945, 350M 0.3752, 774M 0.4320, 1558M 0.4889; llm.c 124M after 10B tokens 0.299";
const FINEWEB: &str = "GPT-2 124M 3.4250, 350M 3.0831, 774M 3.0006, 1558M 2.8313; llm.c 124M after 10B tokens 3.2722";

/// A bar on a terminal.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(what: &'static str, length: usize) -> Self {
        Self(std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(length as u64).with_message(what);
            if let Ok(style) = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} {eta} left") {
                bar.set_style(style);
            }
            bar
        }))
    }

    fn set(&self, done: usize) {
        if let Some(bar) = &self.0 {
            bar.set_position(done as u64);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let (description, given) = args.from.describe()?;
    let (config, model) = (description.shape, place(&description));
    if let Some((noted_at, noted)) = recorded_tokenizer(&[(&args.data, Part::Validation)], args.data_format)? {
        match &given {
            Some(given) => same(&noted, &noted_at, given, "--tokenizer")?,
            None => description.tokenizer.agree_with_data(&noted, &noted_at, &model)?,
        }
    }
    let context = args.context.unwrap_or(config.positions.min(1024));
    if context == 0 || context > config.positions {
        return Err(Error::usage(format!(
            "--context: {context}, expected 1 to the model's {} positions",
            config.positions
        )));
    }
    for (flag, value) in [("--batch", args.batch), ("--limit", args.limit)] {
        if value == Some(0) {
            return Err(Error::usage(format!("{flag}: 0, expected at least 1")));
        }
    }
    let set = args.hellaswag.as_ref().map(|path| {
        let tokenizer = description.tokenizer.for_text(&model, given.as_ref(), config.vocab)?;
        hellaswag::read(&token_names::questions(path)?, &tokenizer, args.limit.unwrap_or(usize::MAX))
    });
    let set = set.transpose()?;
    let data = Some(&args.data).filter(|given| !given.is_empty());
    let open = |data| Rows::new(token_paths::open(data, Part::Validation, args.data_format)?, context, config.vocab);
    let rows = data.map(|data| open(data)).transpose()?;
    let weights = description.weights()?;
    let tokenizer = given.clone().or_else(|| description.tokenizer.get());
    let gpu = Gpu::open(&Options { device: args.device.clone(), ..Options::default() })?;
    if !args.json {
        say!("device     {}", gpu.caps.summary());
        say!("model      {}", summary(&config));
        match (given.is_none().then(|| description.tokenizer.assumption()).flatten(), &tokenizer) {
            (Some(assumption), _) => say!("tokenizer  {assumption}"),
            (None, Some(tokenizer)) => say!("tokenizer  {tokenizer}"),
            (None, None) => {}
        }
    }
    let (config, params) = upload(weights, &gpu)?;
    let tokens = if gpu.caps.software { 1024 } else { 8192 };
    let batch = args.batch.unwrap_or((tokens / context).max(1));
    let mut evaluator = Evaluator::new(&gpu, config, &params, batch, context)?;
    let mut report = json!({ "model": model });
    if let Some(mut rows) = rows {
        let count = (args.val_limit / context).max(1).min(rows.len());
        let bar = Bar::new("validation", count);
        let loss = evaluator.loss(&mut rows, count, |done| bar.set(done))?;
        drop(bar);
        let tokens = count * context;
        report["validation"] = json!({ "loss": loss, "tokens": tokens, "context": context });
        if !args.json {
            say!("validation {loss:.4} nats a token, over {tokens} tokens in rows of {context}");
            if comparable(&config, tokenizer) {
                say!("           published for FineWeb's first {VAL_TOKENS} in rows of 1024: {FINEWEB}");
            }
        }
    }
    if let Some(set) = set {
        if set.replaced > 0 {
            log::warn!("hellaswag: {} sequences are not UTF-8 and were replaced", set.replaced);
        }
        let bar = Bar::new("hellaswag", set.examples.len() * hellaswag::ENDINGS);
        let (answers, cut) = evaluator.answers(&set.examples, |done| bar.set(done))?;
        drop(bar);
        let correct = answers.iter().filter(|answer| answer.choice == answer.label).count();
        let accuracy = correct as f64 / answers.len() as f64;
        report["hellaswag"] =
            json!({ "accuracy": accuracy, "correct": correct, "examples": answers.len(), "cut": cut });
        if !args.json {
            say!("hellaswag  {accuracy:.4}: {correct} of {} examples", answers.len());
            if cut > 0 {
                say!(
                    "           {cut} examples are longer than the model's {context} positions and lost their beginning"
                );
            }
            say!("           published for all 10042: {HELLASWAG}; guessing 0.25");
        }
        if let Some(path) = &args.answers {
            write_answers(path, &answers)?;
        }
    }
    if args.json {
        stdout::json(&report);
    }
    Ok(())
}

fn comparable(config: &Config, tokenizer: Option<Tokenizer>) -> bool {
    tokenizer == Some(Tokenizer::Gpt2) && config.positions >= 1024
}

fn write_answers(path: &Path, answers: &[Answer]) -> Result<()> {
    atomic::write(path, |out| {
        for (i, answer) in answers.iter().enumerate() {
            let line = json!({ "example": i, "label": answer.label, "choice": answer.choice, "losses": answer.losses });
            writeln!(out, "{line}")?;
        }
        Ok(())
    })
}
