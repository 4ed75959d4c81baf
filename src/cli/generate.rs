//! `wgpt generate`.

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal as _, Read as _, Write};

use wgpt::data::Tokenizer;
use wgpt::error::{Error, Result};
use wgpt::gpu::{Gpu, Options};
use wgpt::infer::{Generator, Sampling};
use wgpt::model::Activations;
use wgpt::run::{CurrentPhase, Phase};

use super::model::{From, place, upload};
use super::progress::Progress;
use super::stdout;
use super::terminal::remark;
use super::text::Characters;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The same model, prompt, seed and settings give the same text on the same
adapter. Sample N of several is drawn with the seed S + N - 1. On a terminal
control characters in the text are shown and do not act.

Examples:
  wgpt generate --from runs/1 'Once upon a time'
  wgpt generate --from gpt2 --top-k 50 --top-p 0.95 --samples 3 'The meaning'
  wgpt generate --from gpt2_124M.bin --temperature 0 - < prompt.txt")]
pub struct Args {
    /// Text to continue; `-` reads it from standard input [default: none, a new text]
    #[arg(default_value = "", hide_default_value = true)]
    prompt: OsString,
    #[command(flatten)]
    from: From,
    /// Tokens to add at most; an end of text stops earlier
    #[arg(long, value_name = "N", default_value_t = 200)]
    max_tokens: usize,
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 1.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Draw from the K likeliest tokens only; 0 allows all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Draw from the likeliest tokens of total probability P
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f32,
    /// Number of continuations
    #[arg(long, value_name = "N", default_value_t = 1)]
    samples: u32,
    /// Seed of the draws
    #[arg(long, value_name = "S", default_value_t = 42)]
    seed: u64,
    /// Adapter by index or part of its name
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
}

/// Most bytes of a prompt: far beyond any context.
const PROMPT_BYTES: u64 = 64 << 20;

/// Continues the prompt on standard output.
pub fn run(args: &Args) -> Result<()> {
    match print(args, &mut std::io::stdout().lock(), std::io::stdout().is_terminal()) {
        // the reader of the output has seen enough
        Err(Failure::Closed) => Ok(()),
        Err(Failure::Other(error)) => Err(error),
        Ok(()) => Ok(()),
    }
}

enum Failure {
    Closed,
    Other(Error),
}

impl std::convert::From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

fn print(args: &Args, out: &mut dyn Write, terminal: bool) -> std::result::Result<(), Failure> {
    check(args)?;
    let text = prompt(args)?;
    let phase = CurrentPhase::default();
    let progress = Progress::of(&phase, false);
    let (model, given) = args.from.describe()?;
    let vocab = model.shape.vocab;
    let tokenizer = model.tokenizer.for_text(&place(&model), given.as_ref(), vocab)?;
    let tokens = tokens(&text, &tokenizer, vocab)?;
    if given.is_none()
        && let Some(assumption) = model.tokenizer.assumption()
    {
        remark!("tokenizer {assumption}");
    }
    let weights = model.weights()?;
    phase.set(Phase::Opening);
    let gpu = Gpu::open(&Options { device: args.device.clone(), ..Options::default() })?;
    phase.set(Phase::Compiling);
    let (config, params) = upload(weights, &gpu)?;
    let acts = Activations::inference(&gpu, &config, [1, config.positions], true, 1)?;
    let mut generator = Generator::new(&gpu, config, &params, &acts, config.positions)?;
    generator.prompt(&tokens)?;
    drop(progress);

    let stop = Some(u32::from(tokenizer.end_of_text()));
    let mut closed = false;
    for sample in 0..args.samples {
        let seed = args.seed.wrapping_add(u64::from(sample));
        let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed };
        let mut characters = Characters::new(terminal);
        // a reader that closes the pipe ends the generation, without an error
        let mut write = |text: &str| {
            out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| {
                closed |= e.kind() == ErrorKind::BrokenPipe;
                stdout::fault(&e)
            })
        };
        let mut result = Ok(());
        if args.samples > 1 {
            let gap = if sample > 0 { "\n" } else { "" };
            result = write(&format!("{gap}--- sample {}, seed {seed} ---\n", sample + 1));
        }
        let mut drawn = 0;
        let result = result
            .and_then(|()| write(&characters.push(&text)))
            .and_then(|()| {
                let emit = |token| {
                    drawn += 1;
                    write(&characters.push(&tokenizer.decode(&[token])))
                };
                generator.sample(args.max_tokens, stop, &sampling, emit)
            })
            .and_then(|()| write(&format!("{}\n", characters.end())));
        if closed {
            return Err(Failure::Closed);
        }
        result?;
        if terminal && drawn == args.max_tokens {
            let tokens = wgpt::units::counted(drawn as u64, "token");
            remark!("[ended after {tokens}; --max-tokens N allows more]");
        }
    }
    Ok(())
}

fn check(args: &Args) -> Result<()> {
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        return Err(Error::usage(format!("--temperature: {}, expected a number of at least 0", args.temperature)));
    }
    if !(0.0..=1.0).contains(&args.top_p) {
        return Err(Error::usage(format!("--top-p: {}, expected 0 to 1", args.top_p)));
    }
    if args.samples == 0 {
        return Err(Error::usage("--samples: 0, expected at least 1"));
    }
    Ok(())
}

/// Returns the prompt's bytes: the argument, or all of standard input without the line feed at its end.
fn prompt(args: &Args) -> Result<Vec<u8>> {
    if args.prompt != "-" {
        return Ok(args.prompt.as_encoded_bytes().to_vec());
    }
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(PROMPT_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::data(format!("standard input: cannot be read ({e})")))?;
    if bytes.len() as u64 > PROMPT_BYTES {
        return Err(Error::data(format!("standard input: more than {} MiB, expected a prompt", PROMPT_BYTES >> 20)));
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    Ok(bytes)
}

fn tokens(text: &[u8], tokenizer: &Tokenizer, vocab: usize) -> Result<Vec<u32>> {
    let (tokens, replaced) = tokenizer.encode_counted(text)?;
    if replaced > 0 {
        log::warn!(
            "prompt: {} not UTF-8, or unknown to the tokenizer, replaced",
            wgpt::units::counted(replaced as u64, "place")
        );
    }
    let mut tokens: Vec<u32> = tokens.into_iter().map(u32::from).collect();
    if tokens.is_empty() {
        tokens.push(u32::from(tokenizer.end_of_text()));
    }
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
        return Err(Error::data(format!(
            "prompt: token {id} is outside the model's vocabulary, expected below {vocab}"
        )));
    }
    Ok(tokens)
}
