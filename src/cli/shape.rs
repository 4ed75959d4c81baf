//! The flags that name a model's shape, for commands that need no data.

use wgpt::error::Result;
use wgpt::model::Config;
use wgpt::train::settings::recipe;

/// Vocabulary of a model of one's own: GPT-2's.
const VOCAB: usize = 50_257;

/// A model by name, or by its sizes.
#[derive(Debug, Clone, clap::Args)]
pub struct Shape {
    /// Model by name: d12 (124M), d24, gpt3:c768 ...
    ///
    /// d6 d12 d24 d36 d48 d60 d72 d84, or gpt3:cN [default: d12]
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    #[arg(conflicts_with_all = ["layers", "heads", "channels", "vocab"])]
    model: Option<String>,
    /// Blocks of a model of your own
    #[arg(long, value_name = "N", help_heading = "Model", requires = "channels", requires = "heads")]
    layers: Option<usize>,
    /// Attention heads; must divide the channels
    #[arg(long, value_name = "N", help_heading = "Model", requires = "layers", requires = "channels")]
    heads: Option<usize>,
    /// Width of the residual stream
    #[arg(long, value_name = "N", help_heading = "Model", requires = "layers", requires = "heads")]
    channels: Option<usize>,
    /// Vocabulary of a model of your own [default: 50257]
    #[arg(long, value_name = "N", help_heading = "Model", requires = "layers")]
    vocab: Option<usize>,
    /// The shape that a recipe gives.
    #[arg(skip)]
    of_recipe: Option<Config>,
}

impl Shape {
    /// Returns the shape, with `context` positions if it is one of sizes.
    pub fn config(&self, context: usize) -> Result<Config> {
        match (self.of_recipe, self.layers, self.heads, self.channels) {
            (Some(config), ..) => Ok(config),
            (None, Some(layers), Some(heads), Some(channels)) => {
                Config::new(context, self.vocab.unwrap_or(VOCAB), layers, heads, channels)
            }
            _ => Config::from_descriptor(self.model.as_deref().unwrap_or("d12")),
        }
    }

    /// Returns the flags as a part of a recipe.
    pub fn recipe(&self) -> recipe::Model {
        let Self { layers, heads, channels, vocab, .. } = *self;
        recipe::Model { model: self.model.clone(), layers, heads, channels, vocab, init: None }
    }

    /// Takes the shape of a recipe, of which these flags were a part.
    pub fn set(&mut self, config: Config) {
        self.of_recipe = Some(config);
    }
}
