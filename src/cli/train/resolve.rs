//! From the flags of `wgpt train` to what a run is made of.

use wgpt::data::hellaswag::{self, Example};
use wgpt::data::{Batches, Rows};
use wgpt::infer::evaluate;
use wgpt::train::dataset::Baseline;

use super::{Args, Config, Dataset, Error, ModelInfo, PathBuf, Result, Settings, Tokenizer, weights};

/// What is known of the weights that a run starts from.
pub struct Start {
    pub path: PathBuf,
    pub config: Config,
    pub info: ModelInfo,
}

/// What follows from the flags alone.
pub struct Resolved {
    pub settings: Settings,
    pub config: Config,
    pub tokenizer: Option<Tokenizer>,
}

/// The data, cut into batches.
pub struct Look {
    pub loader: Batches,
    pub rows: Option<Rows>,
    pub baseline: Option<Baseline>,
    /// A line for the header.
    pub summary: String,
}

impl Args {
    /// Everything that follows from the flags, checked; the precision where it depends on the adapter, and the steps of
    /// an epoch, are not known yet.
    pub fn resolve(&self, start: Option<&Start>) -> Result<Resolved> {
        let tokenizer = self.tokenizer(start)?;
        let config = self.config(start, tokenizer)?;
        let mut settings = self.settings(config, tokenizer);
        settings.check()?;
        settings.train.val_rows = self.val_rows(&settings.train);
        if let Some(tokenizer) = tokenizer.filter(|t| self.data.is_none() && t.vocab() > config.vocab) {
            return Err(Error::usage(format!(
                "--tokenizer: {} has {} ids, the model's vocabulary {}; try --vocab {} or the tokenizer that the weights were \
                 trained with",
                tokenizer.name(),
                tokenizer.vocab(),
                config.vocab,
                tokenizer.vocab()
            )));
        }
        Ok(Resolved { settings, config, tokenizer })
    }

    /// What a run without its files is told of its first weights.
    pub fn start_without_files(&self) -> Result<Option<Start>> {
        let Some(path) = &self.init else { return Ok(None) };
        let known = path.to_str().filter(|_| !path.exists()).and_then(weights::known_config);
        if let Some(config) = known {
            return Ok(Some(Start { path: path.clone(), config, info: ModelInfo::for_tokenizer("gpt2") }));
        }
        let (weights, info, _) = weights::load(path)?;
        Ok(Some(Start { path: path.clone(), config: weights.config, info }))
    }

    /// What the data are called, for a line.
    pub fn data_names(&self) -> String {
        match &self.data {
            Some(pattern) => pattern.clone(),
            None if self.text.is_empty() => "generated stories".into(),
            None => self.text.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
        }
    }

    /// True if the files that hold the data are here; stories that are yet to be made up are not.
    pub fn files_are_here(&self) -> bool {
        match &self.data {
            Some(pattern) => glob::glob(pattern).is_ok_and(|mut found| found.next().is_some()),
            None => !self.text.is_empty() && self.text.iter().all(|path| path.exists()),
        }
    }

    /// Opens the data and cuts it; the steps of an epoch if none are given.
    pub fn look(&self, settings: &mut Settings, config: &Config, tokenizer: Option<Tokenizer>) -> Result<Look> {
        let dataset = Dataset::open(&settings.data, tokenizer, self.seed)?;
        let (summary, baseline) = (dataset.summary.clone(), dataset.baseline);
        let shuffle = settings.data.shuffle.then_some(self.seed);
        let t = &settings.train;
        let (loader, rows) =
            dataset.cut(t.batch, t.context, config.vocab, shuffle, settings.data.emulate_ranks.unwrap_or(1))?;
        if self.steps.is_none() && !self.uses_stories() {
            settings.train.steps = (loader.batches_per_epoch() / settings.sizes().accumulation).max(1);
        }
        settings.check()?;
        Ok(Look { loader, rows, baseline, summary })
    }

    /// HellaSwag's questions, checked before anything is made.
    pub(super) fn questions(
        &self,
        tokenizer: Option<Tokenizer>,
        config: &Config,
        context: usize,
    ) -> Result<Vec<Example>> {
        let Some(file) = &self.hellaswag else { return Ok(Vec::new()) };
        let tokenizer = tokenizer.ok_or_else(|| {
            Error::usage("--hellaswag: nothing says which tokenizer the model is for; try --tokenizer gpt2")
        })?;
        let found = crate::cli::eval::fetched(file);
        if !found.exists() {
            return Err(Error::data(format!(
                "--hellaswag: {}: no such file, and none of this name in the cache; try `wgpt data fetch hellaswag`, or `--set \
                 hellaswag=` to go without",
                file.display()
            )));
        }
        let set = hellaswag::read(&found, tokenizer, usize::MAX)?;
        evaluate::check(&set.examples, config.vocab, context)?;
        Ok(set.examples)
    }
}
