//! What the commands that only read a model share.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use wgpt::data::{Tokenizer, TokenizerName};
use wgpt::error::Result;
use wgpt::gpu::Gpu;
use wgpt::model::{Config, Params, Weights};
use wgpt::run::model::{self, Description};

/// Puts weights on the device; those on the host are dropped.
pub fn upload(weights: Weights, gpu: &Gpu) -> Result<(Config, Params)> {
    let config = weights.config;
    let params = Params::new(gpu, "weights", config)?;
    params.upload(gpu, &weights)?;
    Ok((config, params))
}

/// The flags that name a model and its tokenizer.
#[derive(Debug, clap::Args)]
pub struct From {
    /// A run, a Hugging Face folder, a .bin of llm.c, or a name such as gpt2 from the cache
    #[arg(long, value_name = "MODEL")]
    pub from: PathBuf,
    /// Tokenizer of a model that does not tell it: gpt2, bytes, or a folder with tokenizer.json
    #[arg(long, value_name = "NAME|DIR", value_parser = OsStringValueParser::new().try_map(TokenizerName::try_from))]
    pub tokenizer: Option<TokenizerName>,
}

impl From {
    /// Describes the model, and reads the tokenizer that is named, if one is.
    ///
    /// # Errors
    /// [`wgpt::error::Error::Usage`] if the model is known to have another tokenizer.
    pub fn describe(&self) -> Result<(Description, Option<Tokenizer>)> {
        let model = model::describe(&self.from)?;
        let given = self.tokenizer.as_ref().map(TokenizerName::open).transpose()?;
        if let Some(given) = &given {
            model.tokenizer.agree(given, "--tokenizer", &place(&model))?;
        }
        Ok((model, given))
    }
}

/// Where a model was found.
pub fn place(model: &Description) -> String {
    model.place.path().display().to_string()
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
