//! What the commands that only read a model share.

use std::path::{Path, PathBuf};

use wgpt::data::Tokenizer;
use wgpt::error::{Error, Result};
use wgpt::formats::{ModelInfo, weights};
use wgpt::gpu::Gpu;
use wgpt::model::{Config, Params, Weights};
use wgpt::run::model;

/// A model as read from its files.
pub struct Loaded {
    /// Its weights.
    pub weights: Weights,
    /// What else its files say.
    pub info: ModelInfo,
    /// Where it was found.
    pub place: weights::Place,
}

impl Loaded {
    /// Finds and reads a model, by path or by name.
    pub fn open(from: &Path) -> Result<Self> {
        let (weights, info, place) = model::load(from)?;
        Ok(Self { weights, info, place })
    }

    /// The tokenizer that the model was trained with.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        tokenizer_of(self.place.path(), &self.info, self.weights.config.vocab)
    }

    /// The weights on the device; those on the host are dropped.
    pub fn upload(self, gpu: &Gpu) -> Result<(Config, Params)> {
        let config = self.weights.config;
        let params = Params::new(gpu, "weights", config)?;
        params.upload(gpu, &self.weights)?;
        Ok((config, params))
    }
}

/// The flag that names a model.
#[derive(Debug, clap::Args)]
pub struct From {
    /// A run, a Hugging Face folder, a .bin of llm.c, or a name such as gpt2 from the cache
    #[arg(long, value_name = "MODEL")]
    pub from: PathBuf,
}

/// The tokenizer that a model was trained with: as its configuration says, else GPT-2's for GPT-2's vocabulary.
pub fn tokenizer_of(path: &Path, info: &ModelInfo, vocab: usize) -> Result<Tokenizer> {
    let unknown = |what: String| {
        Error::data(format!("{}: {what}, expected `wgpt_tokenizer` in config.json to be gpt2 or bytes", path.display()))
    };
    match info.tokenizer.as_deref() {
        Some(name) => name.parse().map_err(|_| unknown(format!("unknown tokenizer `{name}`"))),
        None if vocab == Tokenizer::Gpt2.vocab() => Ok(Tokenizer::Gpt2),
        None => Err(unknown(format!("no tokenizer is known for a vocabulary of {vocab}"))),
    }
}

/// Shape and size in one line.
pub fn summary(config: &Config) -> String {
    format!(
        "{} layers, {} heads, {} channels, {} positions, vocabulary {}: {:.1} M parameters",
        config.layers,
        config.heads,
        config.channels,
        config.positions,
        config.vocab,
        config.parameters() as f64 / 1e6
    )
}
