//! The flags that name a model's shape, for commands that need no data.

use wgpt::error::Result;
use wgpt::model::Config;

/// A model by name, or by its sizes.
#[derive(Debug, clap::Args)]
pub struct Shape {
    /// Model by name: d6 d12 d24 d36 d48 d60 d72 d84, gpt3:cN [default: d12]
    #[arg(long, help_heading = "Model", conflicts_with_all = ["layers", "heads", "channels", "vocab"])]
    model: Option<String>,
    /// Blocks of a model of your own
    #[arg(long, help_heading = "Model", requires = "channels", requires = "heads")]
    layers: Option<usize>,
    /// Attention heads; must divide the channels
    #[arg(long, help_heading = "Model", requires = "layers", requires = "channels")]
    heads: Option<usize>,
    /// Width of the residual stream
    #[arg(long, help_heading = "Model", requires = "layers", requires = "heads")]
    channels: Option<usize>,
    /// Vocabulary
    #[arg(long, help_heading = "Model", requires = "layers", default_value_t = 50_257)]
    vocab: usize,
}

impl Shape {
    /// The shape, of `context` positions if it is one of sizes.
    pub fn config(&self, context: usize) -> Result<Config> {
        match (self.layers, self.heads, self.channels) {
            (Some(layers), Some(heads), Some(channels)) => Config::new(context, self.vocab, layers, heads, channels),
            _ => Config::from_descriptor(self.model.as_deref().unwrap_or("d12")),
        }
    }
}
