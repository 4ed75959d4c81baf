//! Makes complete settings of the given ones: defaults, and values that follow from other settings.

use std::path::PathBuf;

use super::recipe::Recipe;
use super::values::{Batch, Bytes, Interval, Positive, Precision, keep};
use super::{DataSettings, ModelSettings, RunSettings, Settings, Source, TrainSettings, UNKNOWN_STEPS};
use crate::data::tokenizer::same;
use crate::data::{ModelTokenizer, Part, Tokenizer, TokenizerName};
use crate::error::{Error, Fault, Result};
use crate::gpu::Elem;
use crate::model::{Config, Recompute};
use crate::train::dataset::recorded_tokenizer;
use crate::train::schedule::Shape;

/// Defaults of `wgpt train` without data: a run that takes two CPU cores about three minutes.
mod stories {
    pub const LAYERS: usize = 3;
    pub const HEADS: usize = 4;
    pub const CHANNELS: usize = 128;
    pub const CONTEXT: usize = 128;
    pub const BATCH: usize = 8;
    pub const STEPS: usize = 700;
    pub const LR: f32 = 5e-3;
    pub const WARMUP: usize = 40;
    pub const VAL_EVERY: usize = 100;
    pub const VAL_STEPS: usize = 16;
}

/// Default number of positions of a custom model.
const FREE_CONTEXT: usize = 256;
/// Default number of validation tokens of shards: llm.c's 20 steps of 524,288.
const VAL_TOKENS: usize = 10_485_760;

/// The model that a run starts from. The recipe contains only its name.
#[derive(Debug, Clone)]
pub struct KnownWeights {
    /// Its path or name, for messages.
    pub place: String,
    /// The model's shape.
    pub shape: Config,
    /// The model's tokenizer.
    pub tokenizer: ModelTokenizer,
}

/// The initial weights of a run.
#[derive(Debug, Clone)]
pub enum InitWeights {
    /// Weights drawn at random.
    Random,
    /// Existing weights.
    Weights(KnownWeights),
    /// The recorded shape of a run whose settings were resolved when it began; nothing is looked up again.
    AsGiven(Config),
}

impl Recipe {
    /// Returns whether the data are generated stories.
    #[must_use]
    pub fn uses_stories(&self) -> bool {
        self.data.text.is_empty() && self.data.data.is_empty()
    }

    /// Returns all settings, checked. Three values are placeholders: the steps of an epoch ([`UNKNOWN_STEPS`]), a batch
    /// of `auto` (1) and a precision of `auto` (f32).
    ///
    /// # Errors
    /// [`Error::Usage`] naming the flag.
    pub fn resolve(&self, start: InitWeights) -> Result<Settings> {
        let tokenizer = self.tokenizer(&start)?;
        let shape = self.shape(&start, tokenizer.as_ref())?;
        if self.run.keep == Some(0) {
            return Err(Error::usage(Fault::at("--keep", "0").expected("at least 1")));
        }
        if self.data.split_on.as_deref() == Some("") {
            return Err(Error::usage(Fault::at("--split-on", "an empty text").expected("the text between documents")));
        }
        let settings = self.settings(shape, tokenizer);
        settings.check()?;
        // a model may have fewer ids than its own tokenizer; then each id of a text is checked
        let is_free = |tokenizer: &&Tokenizer| match &start {
            InitWeights::Random => true,
            InitWeights::Weights(known) => known.tokenizer != ModelTokenizer::Known((*tokenizer).clone()),
            InitWeights::AsGiven(_) => false,
        };
        let of_text = settings.data.tokenizer.as_ref().filter(|_| self.data.data.is_empty()).filter(is_free);
        if let Some(tokenizer) = of_text.filter(|t| t.vocab() > shape.vocab) {
            let fault = Fault::at(
                "--tokenizer",
                format!("{tokenizer} has {} ids, but the model's vocabulary has {}", tokenizer.vocab(), shape.vocab),
            );
            return Err(Error::usage(match start {
                InitWeights::Random => fault.advice(format!("try --vocab {}", tokenizer.vocab())),
                _ => fault.advice("try the tokenizer that the weights were trained with"),
            }));
        }
        Ok(settings)
    }

    /// Returns the tokenizer that is given, or that follows from the model or the data. All of these must agree.
    fn tokenizer(&self, start: &InitWeights) -> Result<Option<Tokenizer>> {
        let given = self.data.tokenizer.as_ref().map(TokenizerName::open).transpose()?;
        if let InitWeights::AsGiven(_) = start {
            return Ok(given);
        }
        if let Some(given) = given.as_ref().filter(|_| self.data.data.is_empty()) {
            given.check()?;
        }
        let shards: [(&[PathBuf], Part); 2] = [(&self.data.data, Part::Train), (&self.data.val, Part::Validation)];
        let recorded = recorded_tokenizer(&shards, self.data.data_format.unwrap_or_default())?;
        if let (Some(given), Some((place, recorded))) = (&given, &recorded) {
            same(recorded, place, given, "--tokenizer")?;
        }
        let chosen = given.or(recorded.as_ref().map(|(_, recorded)| recorded.clone()));
        if let InitWeights::Weights(known) = start {
            return self.tokenizer_of_weights(known, chosen, recorded);
        }
        if chosen.is_some() {
            return Ok(chosen);
        }
        if !self.data.data.is_empty() {
            return Ok(self.model.vocab.is_none().then_some(Tokenizer::Gpt2));
        }
        let small = self.uses_stories() && self.model.model.is_none();
        Ok(Some(if small { Tokenizer::Bytes } else { Tokenizer::Gpt2 }))
    }

    /// Returns the tokenizer of the weights, which must agree with `chosen`.
    fn tokenizer_of_weights(
        &self,
        known: &KnownWeights,
        chosen: Option<Tokenizer>,
        recorded: Option<(String, Tokenizer)>,
    ) -> Result<Option<Tokenizer>> {
        let Some(chosen) = chosen else {
            let own = known.tokenizer.get();
            if let Some(own) = own.as_ref().filter(|_| self.data.data.is_empty()) {
                own.check()?;
            }
            return Ok(own);
        };
        match recorded.filter(|_| self.data.tokenizer.is_none()) {
            Some((recorded_at, _)) => known.tokenizer.agree_with_data(&chosen, &recorded_at, &known.place)?,
            None => known.tokenizer.agree(&chosen, "--tokenizer", &known.place)?,
        }
        Ok(Some(chosen))
    }

    fn shape(&self, start: &InitWeights, tokenizer: Option<&Tokenizer>) -> Result<Config> {
        match start {
            InitWeights::Weights(KnownWeights { shape, .. }) | InitWeights::AsGiven(shape) => return Ok(*shape),
            InitWeights::Random => {}
        }
        let (model, context) = (&self.model, self.training.context);
        if let (Some(layers), Some(heads), Some(channels)) = (model.layers, model.heads, model.channels) {
            let vocab = model.vocab.or(tokenizer.map(Tokenizer::vocab)).ok_or_else(|| {
                let fault = Fault::at("--vocab", "the vocabulary size is unknown");
                Error::usage(fault.advice("try --vocab N"))
            })?;
            let default = if self.uses_stories() { stories::CONTEXT } else { FREE_CONTEXT };
            return Config::new(context.unwrap_or(default), vocab, layers, heads, channels);
        }
        match &model.model {
            None if self.uses_stories() => Config::new(
                context.unwrap_or(stories::CONTEXT),
                tokenizer.map_or_else(|| Tokenizer::Bytes.vocab(), Tokenizer::vocab),
                stories::LAYERS,
                stories::HEADS,
                stories::CHANNELS,
            ),
            name => Config::from_descriptor(name.as_deref().unwrap_or("d12")),
        }
    }

    fn settings(&self, shape: Config, tokenizer: Option<Tokenizer>) -> Settings {
        let (data, run) = (&self.data, &self.run);
        let own = self.uses_stories() && self.model.init.is_none();
        let train = self.train(&shape, own);
        let val_every = run.val_every.unwrap_or(if own { stories::VAL_EVERY } else { 250 });
        let overfit_one_batch = data.overfit_one_batch.unwrap_or(false);
        // stories are sampled after the last step, whose number is known here
        let sample_every = if own { self.training.steps.unwrap_or(stories::STEPS) } else { 0 };
        Settings {
            model: ModelSettings { shape, name: self.model.model.clone(), init: self.model.init.clone() },
            data: DataSettings {
                source: match data.data.as_slice() {
                    [] if data.text.is_empty() => Source::Stories,
                    [] => Source::Text(data.text.clone()),
                    train => Source::Shards {
                        train: train.to_vec(),
                        validation: data.val.clone(),
                        format: data.data_format.unwrap_or_default(),
                    },
                },
                split_on: data.split_on.clone(),
                tokenizer,
                shuffle: !(data.no_shuffle.unwrap_or(false) || overfit_one_batch),
                overfit_one_batch,
                ranks: data.emulate_ranks.unwrap_or(1),
            },
            run: RunSettings {
                val_every,
                val_rows: self.val_rows(train.context, train.batch),
                sample_every: run.sample_every.unwrap_or(sample_every),
                log_every: run.log_every,
                hellaswag: run.hellaswag.clone(),
                hellaswag_every: run.hellaswag_every.unwrap_or(val_every),
                memory: run.memory.map(|Bytes(bytes)| bytes),
                compare: run.compare.clone(),
                peak_tflops: run.peak_tflops,
                price_per_hour: run.price_per_hour.map(|Positive(price)| price),
                checkpoint_every: run.checkpoint_every.unwrap_or(Interval::Steps(250)),
                keep: keep(run.keep.unwrap_or(2), run.keep_every.unwrap_or(0)),
                on_disk_full: run.on_disk_full.unwrap_or_default(),
                device: run.device.clone(),
                devices: run.devices.clone(),
                share_device: run.share_device.unwrap_or(false),
                device_count: 1,
                machines: 1,
                checked: run.checked.unwrap_or(false),
                no_spirv_repair: run.no_spirv_repair.unwrap_or(false),
            },
            train,
        }
    }

    fn train(&self, shape: &Config, own: bool) -> TrainSettings {
        let t = &self.training;
        let context = t.context.unwrap_or(shape.positions.min(1024));
        let batch = match t.batch {
            None if own => stories::BATCH,
            None => 4,
            Some(Batch::Count(batch)) => batch,
            Some(Batch::Auto) => 1,
        };
        let micro_step = batch.saturating_mul(context).saturating_mul(self.data.emulate_ranks.unwrap_or(1).max(1));
        TrainSettings {
            batch,
            context,
            tokens_per_step: t.tokens_per_step.unwrap_or(micro_step),
            steps: t.steps.unwrap_or(if own { stories::STEPS } else { UNKNOWN_STEPS }),
            schedule: t.schedule.unwrap_or(Shape::Cosine),
            lr: t.lr.unwrap_or(if own { stories::LR } else { 6e-4 }),
            warmup: t.warmup.unwrap_or(if own && t.steps.is_none() { stories::WARMUP } else { 0 }),
            final_lr_frac: t.final_lr_frac.unwrap_or(0.0),
            weight_decay: t.weight_decay.unwrap_or(0.1),
            clip: t.clip.unwrap_or(1.0),
            skip_loss_z: t.skip_loss_z.unwrap_or(0.0),
            skip_norm_z: t.skip_norm_z.unwrap_or(0.0),
            beta1: t.beta1.unwrap_or(0.9),
            beta2: t.beta2.unwrap_or(0.95),
            eps: t.eps.unwrap_or(1e-8),
            precision: if t.precision == Some(Precision::F16) { Elem::F16 } else { Elem::F32 },
            wire: t.wire.unwrap_or_default(),
            recompute: t.recompute.unwrap_or(Recompute::None),
            seed: t.seed.unwrap_or(42),
        }
    }

    /// Returns the number of rows per validation, each of `context` tokens; `None` for all rows.
    #[must_use]
    pub fn val_rows(&self, context: usize, batch: usize) -> Option<usize> {
        let steps = self.run.val_steps.or(self.uses_stories().then_some(stories::VAL_STEPS));
        let of_tokens = |tokens: usize| (tokens / context.max(1)).max(1);
        match (self.run.val_limit, steps) {
            (Some(tokens), _) => Some(of_tokens(tokens)),
            (None, Some(steps)) => Some(steps.saturating_mul(batch)),
            (None, None) => (!self.data.data.is_empty()).then(|| of_tokens(VAL_TOKENS)),
        }
    }
}
