//! `wgpt generate`.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use wgpt::data::Tokenizer;
use wgpt::error::{Error, Result};
use wgpt::formats::hf;
use wgpt::gpu::{Elem, Gpu, Options};
use wgpt::model::{Activations, Params};
use wgpt::train::{Generator, Sampling};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Text to continue; empty begins a new one
    #[arg(default_value = "")]
    prompt: String,
    /// Folder of a run, or of a Hugging Face model
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Tokens to add at most
    #[arg(long, default_value_t = 200)]
    max_tokens: usize,
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Draw from the k likeliest tokens only; 0 allows all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Seed of the draws
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Adapter by index or part of its name
    #[arg(long)]
    device: Option<String>,
}

/// The tokenizer that a model was trained with: as its configuration says, else GPT-2's for GPT-2's vocabulary.
pub fn tokenizer_of(dir: &Path, info: &hf::ModelInfo, vocab: usize) -> Result<Tokenizer> {
    let unknown = |what: String| {
        Error::Data(format!("{}: {what}, expected `wgpt_tokenizer` in config.json to be gpt2 or bytes", dir.display()))
    };
    match info.tokenizer.as_deref() {
        Some(name) => name.parse().map_err(|_| unknown(format!("unknown tokenizer `{name}`"))),
        None if vocab == Tokenizer::Gpt2.vocab() => Ok(Tokenizer::Gpt2),
        None => Err(unknown(format!("no tokenizer is known for a vocabulary of {vocab}"))),
    }
}

/// Continues the prompt on standard output.
pub fn run(args: &Args) -> Result<()> {
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        return Err(Error::Usage(format!("--temperature: {}, expected a number from 0 on", args.temperature)));
    }
    let inner = args.from.join("model");
    let dir = if inner.join("config.json").exists() { inner } else { args.from.clone() };
    let (weights, info) = hf::load(&dir)?;
    let config = weights.config;
    let tokenizer = tokenizer_of(&dir, &info, config.vocab)?;
    let mut prompt: Vec<u32> = tokenizer.encode(&args.prompt).into_iter().map(u32::from).collect();
    if prompt.is_empty() {
        prompt.push(u32::from(tokenizer.end_of_text()));
    }
    if let Some(id) = prompt.iter().find(|&&id| id as usize >= config.vocab) {
        return Err(Error::Data(format!(
            "{}: token {id} of the prompt, expected below {}",
            dir.display(),
            config.vocab
        )));
    }
    let gpu = Gpu::open(&Options { device: args.device.clone(), ..Options::default() })?;
    let params = Params::new(&gpu, "weights", config)?;
    params.upload(&gpu, &weights)?;
    drop(weights);
    let acts = Activations::new(&gpu, &config, 1, config.positions, Elem::F32)?;
    let mut generator = Generator::new(&gpu, config, &params, &acts, config.positions)?;
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, seed: args.seed };
    let mut out = std::io::stdout().lock();
    let failed = |e: std::io::Error| Error::Output(format!("standard output: {e}"));
    out.write_all(args.prompt.as_bytes()).map_err(failed)?;
    let mut bytes = Vec::new();
    generator.generate(&prompt, args.max_tokens, Some(u32::from(tokenizer.end_of_text())), &sampling, |token| {
        bytes.extend(tokenizer.decode(&[token]));
        // a character may be cut between tokens: what is whole goes out
        let whole = match std::str::from_utf8(&bytes) {
            Ok(text) => text.len(),
            Err(e) if e.error_len().is_none() => e.valid_up_to(),
            Err(_) => bytes.len(),
        };
        let text = String::from_utf8_lossy(&bytes[..whole]).into_owned();
        bytes.drain(..whole);
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(failed)
    })?;
    out.write_all(String::from_utf8_lossy(&bytes).as_bytes()).and_then(|()| writeln!(out)).map_err(failed)
}
