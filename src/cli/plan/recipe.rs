//! A plan of a recipe, or of the run in a folder.

use std::path::{Path, PathBuf};

use wgpt::data::token_names;
use wgpt::error::{Error, Result};
use wgpt::model::Config;
use wgpt::train::settings::file::CONFIG;
use wgpt::train::settings::layers::Layers;
use wgpt::train::settings::{Batch, Bytes, Positive, Recipe, RunFile, UNKNOWN_STEPS, recipe};

use super::Args;
use crate::cli::train::asked::first_weights;
use crate::cli::train::resolve::start_without_files;

/// Tokens of a shard of the sets that `wgpt data fetch` knows.
const SHARD_TOKENS: f64 = 1e8;

impl Args {
    /// Returns these flags, completed by the recipe.
    pub(super) fn over_recipe(&self) -> Result<Self> {
        let Some(path) = &self.recipe else { return Ok(self.clone()) };
        let mut layers = Layers::default();
        layers.file(&recipe_file(path)).map_err(|error| named_without_flag(path, error))?;
        let whole = |number: Option<f64>| number.map(|number| number as usize);
        let given = Recipe {
            model: self.shape.recipe(),
            training: recipe::Training {
                batch: self.batch,
                context: self.context,
                tokens_per_step: whole(self.tokens_per_step),
                steps: whole(self.steps),
                precision: self.precision,
                recompute: self.recompute,
                wire: self.wire,
                ..recipe::Training::default()
            },
            data: recipe::Data { emulate_ranks: self.emulate_ranks, ..recipe::Data::default() },
            run: recipe::Run { memory: self.memory.map(Bytes), ..recipe::Run::default() },
        };
        layers.flags(&given)?;
        let recipe = layers.merge()?.recipe;
        // the weights that a run began with may be gone
        let run = path.is_dir().then(|| RunFile::read(path)).transpose()?.filter(|_| recipe.model.init.is_some());
        let start = run.map(|run| Ok(first_weights(&run.settings, path)));
        let settings = recipe.resolve(start.unwrap_or_else(|| start_without_files(&recipe))?)?;
        let mut args = self.clone();
        args.shape.set(settings.config());
        args.context = Some(settings.train.context);
        args.batch = recipe.training.batch;
        args.tokens_per_step = recipe.training.tokens_per_step.map(|tokens| tokens as f64);
        args.precision = recipe.training.precision;
        args.recompute = Some(settings.train.recompute);
        args.wire = Some(settings.train.wire);
        args.emulate_ranks = recipe.data.emulate_ranks;
        args.memory = recipe.run.memory.map(|Bytes(bytes)| bytes);
        args.price_per_hour = self.price_per_hour.or(recipe.run.price_per_hour.map(|Positive(price)| price));
        match settings.train.steps {
            UNKNOWN_STEPS => args.tokens = self.tokens.or_else(|| epoch_tokens(&recipe.data.data)),
            // a step of the batch that is chosen later
            steps if args.batch == Some(Batch::Auto) => args.steps = Some(steps as f64),
            steps => args.tokens = self.tokens.or(Some(steps as f64 * settings.train.tokens_per_step as f64)),
        }
        Ok(args)
    }
}

/// Returns the file of a recipe, or of the run in a folder.
fn recipe_file(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(CONFIG) } else { path.to_owned() }
}

/// Adds the flag that a name belongs to, where it is no file.
fn named_without_flag(path: &Path, error: Error) -> Error {
    let name = path.to_str().unwrap_or_default();
    match Config::from_descriptor(name).is_ok() && !path.exists() {
        true => error.with_advice(format!("for the model: --model {name}")),
        false => error,
    }
}

/// Returns the tokens of an epoch of sets that `wgpt data fetch` knows by name.
fn epoch_tokens(data: &[PathBuf]) -> Option<f64> {
    // a file or folder of that name takes precedence
    let shards = |path: &PathBuf| (!path.exists()).then(|| token_names::named_set(path)?.training_shards())?;
    let all: Option<usize> = data.iter().map(shards).sum();
    all.filter(|shards| *shards > 0).map(|shards| shards as f64 * SHARD_TOKENS)
}
