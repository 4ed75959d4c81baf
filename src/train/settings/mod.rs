//! Settings of a run, as one typed value that comes from recipes, `--set` and flags.
//!
//! | module | contents |
//! |---|---|
//! | [`recipe`] | the definition of each setting that a user gives: flag, key, help |
//! | [`values`] | types of settings and their spellings |
//! | [`layers`] | precedence of sources, and the source of each value |
//! | [`resolve`] | defaults, and values that follow from other settings |
//! | [`file`](mod@file) | `config.toml` of a run, which is also a recipe |
//! | [`compare`] | the settings that a run may be resumed with |

pub mod compare;
pub mod file;
pub mod layers;
mod old;
pub mod recipe;
pub mod resolve;
pub mod values;

use std::path::{Path, PathBuf};

pub use compare::{Difference, differences};
pub use file::{Record, RunFile};
pub use recipe::Recipe;
pub use values::{Batch, Bytes, Interval, Peak, Positive, Precision, WhenFull, Wire};

use crate::data::{TokenFormat, Tokenizer, TokenizerName, token_paths};
use crate::error::{Error, Fault, Result};
use crate::formats::checkpoint::Keep;
use crate::gpu::Elem;
use crate::model::{Config, Recompute};
use crate::units;

use super::schedule::{Schedule, Shape};
use super::trainer::{Optimizer, Sizes};

/// Number of steps before the data has been read.
pub const UNKNOWN_STEPS: usize = u32::MAX as usize;

/// A run's settings; each has a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The model.
    pub model: ModelSettings,
    /// The data.
    pub data: DataSettings,
    /// The step sizes, the schedule and the optimizer.
    pub train: TrainSettings,
    /// Settings that do not affect the loss.
    pub run: RunSettings,
}

/// The model's shape and initial weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSettings {
    /// The model's shape.
    pub shape: Config,
    /// The name of the shape, if it was given by name.
    pub name: Option<String>,
    /// Initial weights; without them they are drawn from the seed.
    pub init: Option<PathBuf>,
}

/// Kinds of data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Generated stories.
    Stories,
    /// Text files; each is one document unless it is split.
    Text(Vec<PathBuf>),
    /// Token files: paths, patterns, folders or names of `wgpt data fetch`.
    Shards {
        /// Training files.
        train: Vec<PathBuf>,
        /// Validation files; empty for none.
        validation: Vec<PathBuf>,
        /// Layout of all files.
        format: TokenFormat,
    },
}

/// The source of the tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSettings {
    /// The data.
    pub source: Source,
    /// The tokenizer, if it is known.
    pub tokenizer: Option<Tokenizer>,
    /// Text that separates the documents of a text file; without it a file is one document.
    pub split_on: Option<String>,
    /// Whether batches come in llm.c's random order; otherwise in file order.
    pub shuffle: bool,
    /// Whether every step repeats the batches of the first step.
    pub overfit_one_batch: bool,
    /// Number of logical ranks, whose batches are taken in turn.
    pub ranks: usize,
}

/// Step sizes, schedule and optimizer.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSettings {
    /// Sequences per micro-step.
    pub batch: usize,
    /// Tokens per sequence.
    pub context: usize,
    /// Tokens per step.
    pub tokens_per_step: usize,
    /// Steps of the run.
    pub steps: usize,
    /// Shape of the learning-rate curve.
    pub schedule: Shape,
    /// Peak learning rate.
    pub lr: f32,
    /// Steps of linear warm-up.
    pub warmup: usize,
    /// Final learning rate as a fraction of the peak.
    pub final_lr_frac: f32,
    /// Decoupled weight decay of two-dimensional tensors.
    pub weight_decay: f32,
    /// Largest gradient norm; 0 disables clipping.
    pub clip: f32,
    /// Decay of AdamW's first moment.
    pub beta1: f32,
    /// Decay of AdamW's second moment.
    pub beta2: f32,
    /// Term added to the root of AdamW's second moment.
    pub eps: f32,
    /// Largest z-score of a step's loss; a step above it is skipped. 0 disables this.
    pub skip_loss_z: f32,
    /// Largest z-score of a step's gradient norm; a step above it is skipped. 0 disables this.
    pub skip_norm_z: f32,
    /// Element type of matrix operands.
    pub precision: Elem,
    /// Element type of gradients sent between devices.
    pub wire: Wire,
    /// Activations that the backward pass recomputes. All levels give the same bits.
    pub recompute: Recompute,
    /// Seed of the initial weights, the order of batches and the samples.
    pub seed: u32,
}

/// Settings that do not affect the loss.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSettings {
    /// Steps between validations; 0 for only the first and the last.
    pub val_every: usize,
    /// Number of rows per validation, each of `context` tokens; `None` for all rows.
    pub val_rows: Option<usize>,
    /// Steps between samples; 0 for none.
    pub sample_every: usize,
    /// Steps between printed lines; without it at most four lines per second.
    pub log_every: Option<usize>,
    /// HellaSwag's file, if the run is measured on it.
    pub hellaswag: Option<PathBuf>,
    /// Steps between HellaSwag measurements; another one follows the last step.
    pub hellaswag_every: usize,
    /// Bytes that the run may use per device.
    pub memory: Option<u64>,
    /// Run, or main.log of llm.c, whose curve the report also draws.
    pub compare: Option<PathBuf>,
    /// Peak TFLOP/s of the adapter, the denominator of MFU.
    pub peak_tflops: Option<Peak>,
    /// Dollars per hour.
    pub price_per_hour: Option<f64>,
    /// Interval between checkpoints.
    pub checkpoint_every: Interval,
    /// The checkpoints to keep.
    pub keep: Keep,
    /// Reaction to a full disk or a write error.
    pub on_disk_full: WhenFull,
    /// The adapter that the user asked for.
    pub device: Option<String>,
    /// The devices that the user asked for: `all`, or numbers and PCI bus ids.
    pub devices: Option<String>,
    /// Whether several devices may use the same GPU.
    pub share_device: bool,
    /// Number of devices on all machines.
    pub device_count: usize,
    /// Number of machines, each with the same number of devices.
    pub machines: usize,
    /// Whether all kernels and the driver check bounds.
    pub checked: bool,
    /// Whether kernels are passed to Vulkan as naga writes them.
    pub no_spirv_repair: bool,
}

impl Settings {
    /// Returns the element type of matrix operands.
    #[must_use]
    pub fn elem(&self) -> Elem {
        self.train.precision
    }

    /// Returns the model's shape.
    #[must_use]
    pub fn config(&self) -> Config {
        self.model.shape
    }

    /// Returns the sizes of a step.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let t = &self.train;
        Sizes { batch: t.batch, context: t.context, accumulation: t.tokens_per_step / (t.batch * t.context) }
    }

    /// Returns the learning rates.
    #[must_use]
    pub fn schedule(&self) -> Schedule {
        let t = &self.train;
        Schedule { shape: t.schedule, lr: t.lr, warmup: t.warmup, final_frac: t.final_lr_frac, steps: t.steps }
    }

    /// Returns AdamW's settings and the limits of a step.
    #[must_use]
    pub fn optimizer(&self) -> Optimizer {
        let t = &self.train;
        Optimizer {
            beta1: t.beta1,
            beta2: t.beta2,
            eps: t.eps,
            weight_decay: t.weight_decay,
            clip: t.clip,
            skip_loss_z: t.skip_loss_z,
            skip_norm_z: t.skip_norm_z,
        }
    }

    /// Returns a recipe with every value. Resolving it gives these settings.
    #[must_use]
    pub fn recipe(&self) -> Recipe {
        let (m, t, run) = (&self.model, &self.train, &self.run);
        let free = m.name.is_none() && m.init.is_none();
        let own = |size: usize| free.then_some(size);
        Recipe {
            data: self.data.recipe(),
            model: recipe::Model {
                model: m.name.clone(),
                layers: own(m.shape.layers),
                heads: own(m.shape.heads),
                channels: own(m.shape.channels),
                vocab: own(m.shape.vocab),
                init: m.init.clone(),
            },
            training: t.recipe(),
            run: recipe::Run {
                val_every: Some(run.val_every),
                val_steps: None,
                val_limit: run.val_rows.map(|rows| rows.saturating_mul(t.context)),
                hellaswag: run.hellaswag.clone(),
                hellaswag_every: run.hellaswag.is_some().then_some(run.hellaswag_every),
                sample_every: Some(run.sample_every),
                log_every: run.log_every,
                memory: run.memory.map(Bytes),
                compare: run.compare.clone(),
                peak_tflops: run.peak_tflops,
                price_per_hour: run.price_per_hour.map(Positive),
                out: None,
                checkpoint_every: Some(run.checkpoint_every),
                keep: Some(run.keep.newest),
                keep_every: Some(run.keep.every),
                on_disk_full: Some(run.on_disk_full),
                device: run.device.clone(),
                devices: run.devices.clone(),
                share_device: run.share_device.then_some(true),
                checked: Some(run.checked),
                no_spirv_repair: Some(run.no_spirv_repair),
            },
        }
    }

    /// Returns the settings with absolute paths. Names that are not existing paths, such as names in the cache, are
    /// kept.
    #[must_use]
    pub fn with_absolute_paths(&self) -> Self {
        let mut settings = self.clone();
        match &mut settings.data.source {
            Source::Stories => {}
            Source::Text(files) => files.iter_mut().for_each(|file| *file = absolute(file)),
            Source::Shards { train, validation, .. } => {
                train.iter_mut().chain(validation).for_each(|path| *path = token_paths::absolute(path));
            }
        }
        let (model, run) = (&mut settings.model, &mut settings.run);
        for path in [&mut model.init, &mut run.hellaswag, &mut run.compare].into_iter().flatten() {
            if path.exists() {
                *path = absolute(path);
            }
        }
        settings
    }

    /// Checks the settings that do not depend on the data.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the flag.
    pub fn check(&self) -> Result<()> {
        self.check_sizes()?;
        self.check_ranges()
    }

    fn check_sizes(&self) -> Result<()> {
        let (positions, t) = (self.model.shape.positions, &self.train);
        let (batch, context) = (t.batch, t.context);
        if batch == 0 || context == 0 {
            let fault = Fault::at(format!("--batch {batch} and --context {context}"), "");
            return Err(Error::usage(fault.expected("both to be at least 1")));
        }
        if context > positions {
            let fault = Fault::at("--context", format!("{context} tokens, but the model has {positions} positions"));
            return Err(Error::usage(fault.advice(format!("try --context {positions}"))));
        }
        let micro = batch.saturating_mul(context);
        if u32::try_from(micro).is_err() || micro as u64 * 3 >= 1 << 32 {
            let place = format!("--batch {batch} times --context {context}");
            let fault = Fault::at(place, format!("{} tokens in one batch", units::count(micro as u64)));
            return Err(Error::usage(fault.expected("less than 2^30")));
        }
        let ranks = self.data.ranks;
        if ranks == 0 {
            return Err(Error::usage(Fault::at("--emulate-ranks", "0").expected("at least 1")));
        }
        let unit = micro.saturating_mul(ranks);
        if t.tokens_per_step == 0 || !t.tokens_per_step.is_multiple_of(unit) {
            let of_ranks = if ranks > 1 { format!(" times {ranks} ranks") } else { String::new() };
            let of = format!("--batch {batch} times --context {context}{of_ranks} = {unit}");
            let fault = Fault::at("--tokens-per-step", format!("{} is not a multiple of {of}", t.tokens_per_step));
            let next = t.tokens_per_step.max(1).div_ceil(unit).saturating_mul(unit);
            return Err(Error::usage(fault.advice(format!("try {next}"))));
        }
        let devices = self.run.device_count;
        if !ranks.is_multiple_of(devices.max(1)) {
            let ranks_of = units::counted(ranks as u64, "rank");
            let fault = Fault::at("--devices", format!("{devices} devices cannot share {ranks_of} evenly"));
            let numbers: Vec<String> =
                (1..=ranks).filter(|n| ranks.is_multiple_of(*n)).map(|n| n.to_string()).collect();
            let fault = fault.expected(format!("one of {} devices", numbers.join(", ")));
            let advice = "a run keeps its number of ranks; a new run may have more with --emulate-ranks";
            return Err(Error::usage(fault.advice(advice)));
        }
        Ok(())
    }

    fn check_ranges(&self) -> Result<()> {
        let t = &self.train;
        if t.steps == 0 || u32::try_from(t.steps).is_err() {
            return Err(Error::usage(Fault::at("--steps", t.steps.to_string()).expected("1 to 2^32 - 1")));
        }
        for (name, value, least) in [
            ("--warmup", t.warmup, 0),
            ("--val-every", self.run.val_every, 0),
            ("--sample-every", self.run.sample_every, 0),
            ("--tokens-per-step", t.tokens_per_step, 0),
            ("--val-steps", self.run.val_rows.unwrap_or(1), 1),
        ] {
            if value >= 1 << 50 || value < least {
                return Err(Error::usage(Fault::at(name, value.to_string()).expected(format!("{least} to 2^50"))));
            }
        }
        // eps must be above zero: the padding of the vocabulary has moments of zero, and its update would be 0 / 0
        for (name, value, least, most) in [
            ("--lr", t.lr, 0.0, f32::MAX),
            ("--final-lr-frac", t.final_lr_frac, 0.0, 1.0),
            ("--weight-decay", t.weight_decay, 0.0, f32::MAX),
            ("--clip", t.clip, 0.0, f32::MAX),
            ("--skip-loss-z", t.skip_loss_z, 0.0, f32::MAX),
            ("--skip-norm-z", t.skip_norm_z, 0.0, f32::MAX),
            ("--beta1", t.beta1, 0.0, 1.0 - f32::EPSILON),
            ("--beta2", t.beta2, 0.0, 1.0 - f32::EPSILON),
            ("--eps", t.eps, 1e-37, f32::MAX),
        ] {
            if !(value.is_finite() && (least..=most).contains(&value)) {
                let most = if most > 1.0 { String::from("any finite number") } else { format!("{most}") };
                return Err(Error::usage(Fault::at(name, value.to_string()).expected(format!("{least} to {most}"))));
            }
        }
        Ok(())
    }
}

/// Returns the absolute path.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Returns whether two paths or names are the same, relative to the current directory.
#[must_use]
pub fn same_path(a: &Path, b: &Path) -> bool {
    a == b || absolute(a) == absolute(b)
}

impl DataSettings {
    fn recipe(&self) -> recipe::Data {
        let [mut text, mut data, mut val] = [const { Vec::new() }; 3];
        let mut data_format = None;
        match &self.source {
            Source::Stories => {}
            Source::Text(files) => text = files.clone(),
            Source::Shards { train, validation, format } => {
                (data, val, data_format) = (train.clone(), validation.clone(), Some(*format));
            }
        }
        recipe::Data {
            text,
            data,
            val,
            data_format,
            split_on: self.split_on.clone(),
            tokenizer: self.tokenizer.as_ref().map(TokenizerName::of),
            no_shuffle: Some(!self.shuffle),
            overfit_one_batch: Some(self.overfit_one_batch),
            emulate_ranks: (self.ranks != 1).then_some(self.ranks),
        }
    }
}

impl TrainSettings {
    fn recipe(&self) -> recipe::Training {
        recipe::Training {
            context: Some(self.context),
            batch: Some(Batch::Count(self.batch)),
            tokens_per_step: Some(self.tokens_per_step),
            steps: (self.steps != UNKNOWN_STEPS).then_some(self.steps),
            lr: Some(self.lr),
            schedule: Some(self.schedule),
            warmup: Some(self.warmup),
            final_lr_frac: Some(self.final_lr_frac),
            weight_decay: Some(self.weight_decay),
            clip: Some(self.clip),
            skip_loss_z: Some(self.skip_loss_z),
            skip_norm_z: Some(self.skip_norm_z),
            beta1: Some(self.beta1),
            beta2: Some(self.beta2),
            eps: Some(self.eps),
            precision: Some(if self.precision == Elem::F16 { Precision::F16 } else { Precision::F32 }),
            wire: Some(self.wire),
            recompute: Some(self.recompute),
            seed: Some(self.seed),
        }
    }
}

#[cfg(test)]
mod tests;
