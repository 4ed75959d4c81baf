//! `wgpt eval`.

use std::path::{Path, PathBuf};

use serde_json::json;

use wgpt::data::tokenizer::same;
use wgpt::data::{Part, Rows, TokenFormat, Tokenizer, hellaswag, token_names, token_paths};
use wgpt::error::{Error, Result};
use wgpt::files::atomic;
use wgpt::gpu::{Gpu, Options};
use wgpt::infer::evaluate::{Answer, Evaluator};
use wgpt::model::Config;
use wgpt::run::{CurrentPhase, Phase};
use wgpt::train::dataset::recorded_tokenizer;
use wgpt::train::settings::values::token_count;
use wgpt::units;

use super::model::{From, place, summary, upload};
use super::progress::Progress;
use super::stdout;
use super::terminal::say;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
HellaSwag is scored as in llm.c: of four endings the model chooses the one
whose tokens have the smallest mean loss after the context. The validation loss
is over rows of --context tokens from the start of the shards.

Examples:
  wgpt eval --from gpt2 --hellaswag hellaswag_val.jsonl
  wgpt eval --from runs/1 --data 'fineweb_val_*.bin'
  wgpt eval --from gpt2_124M.bin --data fineweb10B --hellaswag hellaswag \\
      --limit 1000 --json")]
pub struct Args {
    #[command(flatten)]
    from: From,
    /// Token shards to measure the loss on
    ///
    /// Files, a pattern, a folder that holds NAME_val_*.bin, or a name of `wgpt data fetch`, of which the validation is
    /// taken
    #[arg(long, value_name = "GLOB|NAME", num_args = 1.., required_unless_present = "hellaswag")]
    data: Vec<PathBuf>,
    /// Layout of --data
    ///
    /// shard is llm.c's; u16 and u32 are ids without a header, as in nanoGPT's val.bin; npy is NumPy's
    #[arg(long, value_name = "FORMAT", default_value_t, requires = "data")]
    data_format: TokenFormat,
    /// HellaSwag's validation set
    ///
    /// llm.c's hellaswag_val.bin, the original hellaswag_val.jsonl, the hub's Parquet file, or `hellaswag` once
    /// `wgpt data fetch` has it
    #[arg(long, value_name = "FILE")]
    hellaswag: Option<PathBuf>,
    /// Tokens per row
    ///
    /// [default: all positions of the model, at most 1024]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Rows per batch
    ///
    /// [default: as many as make 8192 tokens, 1024 on a software adapter]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Tokens of the validation, as 1M
    #[arg(long, value_name = "TOKENS", default_value_t = VAL_TOKENS, value_parser = token_count)]
    val_limit: usize,
    /// Examples of HellaSwag, the first ones [default: all]
    #[arg(long, value_name = "EXAMPLES")]
    limit: Option<usize>,
    /// Write each example's choice and losses, as JSON Lines
    #[arg(long, value_name = "FILE", requires = "hellaswag")]
    answers: Option<PathBuf>,
    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
    /// Adapter by index or part of its name
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
}

/// Tokens that llm.c measured GPT-2 on: 20 steps of 524,288.
const VAL_TOKENS: usize = 10_485_760;
/// Figures that others measured in the same way. HellaSwag and FineWeb: llm.c, dev/vislog.ipynb.
const HELLASWAG: &str = "GPT-2 124M 0.2945, 350M 0.3752, 774M 0.4320, 1558M 0.4889; llm.c 124M after 10B tokens 0.299";
const FINEWEB: &str = "GPT-2 124M 3.4250, 350M 3.0831, 774M 3.0006, 1558M 2.8313; llm.c 124M after 10B tokens 3.2722";

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let phase = CurrentPhase::default();
    let progress = Progress::of(&phase, true);
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
    phase.set(Phase::Opening);
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
    phase.set(Phase::Compiling);
    let (config, params) = upload(weights, &gpu)?;
    let tokens = if gpu.caps.software { 1024 } else { 8192 };
    let batch = args.batch.unwrap_or((tokens / context).max(1));
    let mut evaluator = Evaluator::new(&gpu, config, &params, batch, context)?;
    let mut report = json!({ "model": model });
    if let Some(mut rows) = rows {
        let count = (args.val_limit / context).max(1).min(rows.len());
        phase.set(Phase::Validating);
        let loss = evaluator.loss(&mut rows, count, |done| phase.reach(done, count))?;
        let tokens = count * context;
        report["validation"] = json!({ "loss": loss, "tokens": tokens, "context": context });
        if !args.json {
            let over = units::counted(tokens as u64, "token");
            say!("validation {loss:.4} nats per token, over {over} in rows of {context}");
            if comparable(&config, tokenizer) {
                let tokens = units::count(VAL_TOKENS as u64);
                say!("           published for FineWeb's first {tokens} in rows of 1,024: {FINEWEB}");
            }
        }
    }
    if let Some(set) = set {
        if set.replaced > 0 {
            log::warn!("hellaswag: {} not UTF-8, replaced", units::counted(set.replaced as u64, "sequence"));
        }
        phase.set(Phase::ScoringHellaSwag);
        let sequences = set.examples.len() * hellaswag::ENDINGS;
        let (answers, cut) = evaluator.answers(&set.examples, |done| phase.reach(done, sequences))?;
        let correct = answers.iter().filter(|answer| answer.choice == answer.label).count();
        let accuracy = correct as f64 / answers.len() as f64;
        report["hellaswag"] =
            json!({ "accuracy": accuracy, "correct": correct, "examples": answers.len(), "cut": cut });
        if !args.json {
            let examples = units::counted(answers.len() as u64, "example");
            say!("hellaswag  {accuracy:.4}: {} of {examples}", units::count(correct as u64));
            if cut > 0 {
                let examples = units::counted(cut as u64, "example");
                say!("           {examples} longer than the model's {context} positions, cut at the beginning");
            }
            say!("           published for all 10,042: {HELLASWAG}; guessing 0.25");
        }
        if let Some(path) = &args.answers {
            write_answers(path, &answers)?;
        }
    }
    drop(progress);
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
