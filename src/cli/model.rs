//! The parts that commands which only read a model share.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use wgpt::data::{Tokenizer, TokenizerName};
use wgpt::error::Result;
use wgpt::gpu::Gpu;
use wgpt::model::{Config, Params, Weights};
use wgpt::run::model::{self, Description};
use wgpt::units::{count, counted};

/// Copies weights to the device and drops those on the host.
pub fn upload(weights: Weights, gpu: &Gpu) -> Result<(Config, Params)> {
    let config = weights.config;
    let params = Params::new(gpu, "weights", config)?;
    params.upload(gpu, &weights)?;
    Ok((config, params))
}

/// The flags that name a model and its tokenizer.
#[derive(Debug, clap::Args)]
pub struct From {
    /// Model: a run, a folder, a .bin of llm.c, or a name
    ///
    /// The folder of a run or one in Hugging Face's layout, a .bin of llm.c, or a name such as gpt2 from Hugging Face's
    /// cache
    #[arg(long, value_name = "MODEL")]
    pub from: PathBuf,
    /// Tokenizer of a model that does not name its own
    ///
    /// gpt2, bytes, or a folder with tokenizer.json
    #[arg(long, value_name = "NAME|DIR", value_parser = OsStringValueParser::new().try_map(TokenizerName::try_from))]
    pub tokenizer: Option<TokenizerName>,
}

impl From {
    /// Describes the model, and reads the tokenizer if one is named.
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

/// Returns the place where a model was found.
pub fn place(model: &Description) -> String {
    model.place.path().display().to_string()
}

/// Describes shape and size in one line.
pub fn summary(config: &Config) -> String {
    format!("{}: {}", shape(config), parameters(config))
}

/// Describes the shape in words.
pub fn shape(config: &Config) -> String {
    let counts = [(config.layers, "layer"), (config.heads, "head"), (config.channels, "channel")];
    let counts = counts.map(|(count, what)| counted(count as u64, what)).join(", ");
    let positions = counted(config.positions as u64, "position");
    format!("{counts}, {positions}, vocabulary {}", count(config.vocab as u64))
}

/// Returns the number of parameters, of a small model exactly: `124.5 M parameters`, `21,344 parameters`.
pub fn parameters(config: &Config) -> String {
    match config.parameters() {
        small @ ..100_000 => counted(small as u64, "parameter"),
        large => format!("{:.1} M parameters", large as f64 / 1e6),
    }
}
