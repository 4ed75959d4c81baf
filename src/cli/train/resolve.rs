//! From settings to the parts of a run: weights, data, questions.

use std::path::PathBuf;

use wgpt::data::hellaswag::{self, Example};
use wgpt::data::{Batches, ModelTokenizer, Part, Rows, Tokenizer, token_names, token_paths};
use wgpt::error::{Error, Fault, Result};
use wgpt::formats::weights;
use wgpt::gpu::{self, Gpu};
use wgpt::infer::evaluate;
use wgpt::run::model::{self, Description};
use wgpt::train::collective::mpi::{Layout, World};
use wgpt::train::dataset::{Baseline, recorded_tokenizer};
use wgpt::train::settings::resolve::{InitWeights, KnownWeights};
use wgpt::train::settings::{Recipe, Source};
use wgpt::train::{Dataset, Settings};

use super::super::terminal::say;
use super::Asked;

/// The data, cut into batches.
pub struct DataSummary {
    pub loader: Batches,
    pub rows: Option<Rows>,
    pub baseline: Option<Baseline>,
    /// A line for the header.
    pub summary: String,
}

/// The settings of a run, with what was read to resolve them.
pub struct Resolved {
    pub settings: Settings,
    /// The weights of `--init`.
    pub init: Option<Description>,
    /// A dry device with the kernels that planning generated.
    pub planner: Option<Gpu>,
}

impl Resolved {
    /// Resolves the settings of a run on this process' `devices`.
    pub fn of(asked: &Asked, devices: &[Option<String>], world: Option<(&World, &Layout)>) -> Result<Self> {
        let recipe = asked.recipe();
        // a run with checkpoints does not need its first weights, which may be gone
        let known = asked.known_start();
        let init = if known.is_some() { None } else { init(recipe)? };
        let mut settings = recipe.resolve(known.unwrap_or_else(|| start(init.as_ref())))?;
        asked.keep_horizon(&mut settings);
        settings.run.device_count = devices.len();
        if let Some((_, layout)) = world {
            (settings.run.device_count, settings.run.machines) = (layout.processes.len(), layout.machines);
        }
        settings.check().map_err(|error| match (world, error.fault().place.as_str()) {
            (Some((world, _)), "--devices") => error.with_place(world.summary()),
            _ => error,
        })?;
        let device = devices[0].as_deref();
        asked.choose_precision(&mut settings, device)?;
        let planner = asked.choose_batch(&mut settings, || gpu::adapter::find(device).map(Gpu::dry))?;
        Ok(Self { settings, init, planner })
    }
}

/// Prints a line about a tokenizer that no flag has named.
pub fn say_tokenizer(recipe: &Recipe, settings: &Settings, init: Option<&Description>) -> Result<()> {
    let assumption = init.filter(|_| recipe.data.tokenizer.is_none()).and_then(|model| model.tokenizer.assumption());
    match (assumption, &settings.data.tokenizer) {
        (Some(assumption), _) => say!("tokens   {assumption}"),
        (None, Some(own @ Tokenizer::Own(_))) => say!("tokens   {own}"),
        _ if assumes_gpt2(recipe, settings)? => {
            say!(
                "tokens   gpt2, assumed: no file next to the data names a tokenizer; --vocab N for a model of other ids"
            );
        }
        _ => {}
    }
    Ok(())
}

/// Describes the weights of `--init`, if they are asked for.
pub fn init(recipe: &Recipe) -> Result<Option<Description>> {
    recipe.model.init.as_deref().map(model::describe).transpose()
}

/// Returns what is known of the first weights of a run.
pub fn start(init: Option<&Description>) -> InitWeights {
    init.map_or(InitWeights::Random, |model| {
        let (place, shape) = (model.place.path().display().to_string(), model.shape);
        InitWeights::Weights(KnownWeights { place, shape, tokenizer: model.tokenizer.clone() })
    })
}

/// Returns what is known of the weights of `--init`, for a run without its files.
pub fn start_without_files(recipe: &Recipe) -> Result<InitWeights> {
    let Some(path) = &recipe.model.init else { return Ok(InitWeights::Random) };
    match path.to_str().filter(|_| !path.exists()).and_then(weights::known_config) {
        Some(shape) => {
            let tokenizer = ModelTokenizer::Known(Tokenizer::Gpt2);
            Ok(InitWeights::Weights(KnownWeights { place: path.display().to_string(), shape, tokenizer }))
        }
        None => init(recipe).map(|model| start(model.as_ref())),
    }
}

/// Returns whether the tokenizer of the data is GPT-2's by default.
pub fn assumes_gpt2(recipe: &Recipe, settings: &Settings) -> Result<bool> {
    let Source::Shards { .. } = &settings.data.source else { return Ok(false) };
    let told = recipe.data.tokenizer.is_some() || recipe.model.init.is_some();
    if told || settings.data.tokenizer != Some(Tokenizer::Gpt2) {
        return Ok(false);
    }
    let format = recipe.data.data_format.unwrap_or_default();
    let is_named = recipe.data.data.iter().all(|path| !path.exists() && token_names::named_set(path).is_some());
    Ok(!is_named && recorded_tokenizer(&[(&recipe.data.data, Part::Train)], format)?.is_none())
}

/// Returns the names of the data, for a line.
pub fn data_names(settings: &Settings) -> String {
    match &settings.data.source {
        Source::Stories => "generated stories".into(),
        Source::Text(paths) | Source::Shards { train: paths, .. } => {
            paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        }
    }
}

/// Returns whether the files of the data are here. Stories are made up later, so they are not.
pub fn files_are_here(settings: &Settings) -> bool {
    match &settings.data.source {
        Source::Shards { .. } => why_not_here(settings).is_none(),
        Source::Stories => false,
        Source::Text(files) => files.iter().all(|path| path.exists()),
    }
}

/// Returns the error of token files that are not here.
pub fn why_not_here(settings: &Settings) -> Option<Error> {
    let Source::Shards { train, validation, format } = &settings.data.source else { return None };
    let find = |given: &[PathBuf], part| token_paths::find(given, part, *format);
    find(train, Part::Train).and_then(|_| find(validation, Part::Validation)).err()
}

/// Opens the data and cuts it into batches. Sets the steps of an epoch if none are given.
pub fn look(settings: &mut Settings) -> Result<DataSummary> {
    let seed = settings.train.seed;
    let dataset = Dataset::open(&settings.data, seed).map_err(|error| match settings.data.source {
        Source::Text(_) if !files_are_here(settings) => error.with_advice("if it has moved, name it: --text FILE"),
        Source::Shards { .. } if !files_are_here(settings) => error.with_advice("if they have moved: --data GLOB"),
        _ => error,
    })?;
    let (summary, baseline) = (dataset.summary.clone(), dataset.baseline);
    let (t, data) = (&settings.train, &settings.data);
    let shuffle = data.shuffle.then_some(seed);
    let of_ranks = (data.ranks, settings.sizes().accumulation);
    let (loader, rows) = dataset.cut(t.batch, t.context, settings.config().vocab, shuffle, of_ranks)?;
    if settings.train.steps == wgpt::train::settings::UNKNOWN_STEPS {
        settings.train.steps = (loader.batches_per_epoch() / settings.sizes().accumulation).max(1);
    }
    settings.check()?;
    Ok(DataSummary { loader, rows, baseline, summary })
}

/// Returns HellaSwag's questions, checked before anything is created.
pub fn questions(settings: &Settings) -> Result<Vec<Example>> {
    let Some(file) = &settings.run.hellaswag else { return Ok(Vec::new()) };
    let tokenizer = settings.data.tokenizer.as_ref().ok_or_else(|| {
        let fault = Fault::at("--hellaswag", "the model's tokenizer is unknown");
        Error::usage(fault.advice("try --tokenizer gpt2"))
    })?;
    tokenizer.check()?;
    let found = token_names::questions(file)?;
    let set = hellaswag::read(&found, tokenizer, usize::MAX)?;
    evaluate::check(&set.examples, settings.config().vocab, settings.train.context)?;
    Ok(set.examples)
}
