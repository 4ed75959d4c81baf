//! Settings of a run: one typed value, from recipes, `--set` and flags.
//!
//! | module | what it holds |
//! |---|---|
//! | [`recipe`] | each setting that a person gives, once: flag, key, help |
//! | [`values`] | their types and spellings |
//! | [`layers`] | several sources over one another, and the source of each value |
//! | [`resolve`] | defaults, and what follows from other settings |
//! | [`file`](mod@file) | `config.toml` of a run, which is a recipe too |
//! | [`compare`] | which settings a run may be resumed with |

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

use super::schedule::{Schedule, Shape};
use super::trainer::{Optimizer, Sizes};

/// Steps until the data has been looked at.
pub const UNKNOWN_STEPS: usize = u32::MAX as usize;

/// A run's settings, each with a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The model.
    pub model: ModelSettings,
    /// The data.
    pub data: DataSettings,
    /// The training.
    pub train: TrainSettings,
    /// Everything that moves no loss.
    pub run: RunSettings,
}

/// The model's shape and the weights that it starts from.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSettings {
    /// Its shape.
    pub shape: Config,
    /// The name of its shape, if it was given by one.
    pub name: Option<String>,
    /// First weights; without them they are drawn from the seed.
    pub init: Option<PathBuf>,
}

/// Kinds of data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Stories that the program makes up.
    Stories,
    /// Text files, each one document.
    Text(Vec<PathBuf>),
    /// Files of tokens: paths, patterns, folders, names of `wgpt data fetch`.
    Shards {
        /// For training.
        train: Vec<PathBuf>,
        /// For validation; empty for none.
        validation: Vec<PathBuf>,
        /// Their layout.
        format: TokenFormat,
    },
}

/// Where tokens come from.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSettings {
    /// The data.
    pub source: Source,
    /// The tokenizer, where it is known.
    pub tokenizer: Option<Tokenizer>,
    /// The text between two documents of a text file, which is one document otherwise.
    pub split_on: Option<String>,
    /// Batches in llm.c's random order, else in file order.
    pub shuffle: bool,
    /// The batches of the first step in every step.
    pub overfit_one_batch: bool,
    /// Ranks whose batches are taken in turn.
    pub ranks: usize,
}

/// The optimizer, the schedule, the sizes of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSettings {
    /// Sequences of a micro-step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub context: usize,
    /// Tokens of a step.
    pub tokens_per_step: usize,
    /// Steps of the run.
    pub steps: usize,
    /// Shape of the learning rate's curve.
    pub schedule: Shape,
    /// Peak learning rate.
    pub lr: f32,
    /// Steps of linear warm-up.
    pub warmup: usize,
    /// Final learning rate over the peak.
    pub final_lr_frac: f32,
    /// Decoupled weight decay of two-dimensional tensors.
    pub weight_decay: f32,
    /// Largest gradient norm; 0 switches clipping off.
    pub clip: f32,
    /// Decay of AdamW's first moment.
    pub beta1: f32,
    /// Decay of AdamW's second moment.
    pub beta2: f32,
    /// Added to the root of AdamW's second moment.
    pub eps: f32,
    /// Steps whose loss has a z-score above this are skipped; 0 for none.
    pub skip_loss_z: f32,
    /// The same of the gradient norm.
    pub skip_norm_z: f32,
    /// Element type of matrix operands.
    pub precision: Elem,
    /// Element type of gradients on their way between devices.
    pub wire: Wire,
    /// Activations that the backward pass computes again. Moves no bit.
    pub recompute: Recompute,
    /// Seed of the first weights, the order of batches and the samples.
    pub seed: u32,
}

/// Settings that move no loss.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSettings {
    /// Steps between validations; 0 for none in between.
    pub val_every: usize,
    /// Rows of the context's length in a validation; `None` for all there are.
    pub val_rows: Option<usize>,
    /// Steps between samples; 0 for none.
    pub sample_every: usize,
    /// Steps between printed lines; without it at most four lines per second.
    pub log_every: Option<usize>,
    /// HellaSwag's file, if the run is measured on it.
    pub hellaswag: Option<PathBuf>,
    /// Steps between its measurements, one more at the end.
    pub hellaswag_every: usize,
    /// Bytes that the run may use.
    pub memory: Option<u64>,
    /// The run or llm.c's main.log whose curve is drawn beside this run's in its report.
    pub compare: Option<PathBuf>,
    /// TFLOP/s of the adapter, the denominator of MFU.
    pub peak_tflops: Option<Peak>,
    /// Dollars per hour.
    pub price_per_hour: Option<f64>,
    /// When checkpoints are made.
    pub checkpoint_every: Interval,
    /// The checkpoints to keep.
    pub keep: Keep,
    /// Reaction to a full disk or a write error.
    pub on_disk_full: WhenFull,
    /// The device asked for.
    pub device: Option<String>,
    /// Several devices asked for: `all`, or numbers and PCI bus ids.
    pub devices: Option<String>,
    /// True if devices may share a GPU.
    pub share_device: bool,
    /// Number of devices, on all machines.
    pub device_count: usize,
    /// Number of machines, each with as many devices.
    pub machines: usize,
    /// Bounds checks in all kernels and in the driver.
    pub checked: bool,
    /// Kernels go to Vulkan as naga writes them.
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

    /// Returns a recipe that gives every value: resolved, it is these settings again.
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

    /// Returns the settings with paths that hold in every folder. What is no path here, as a name in the cache, stays.
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

    /// Checks settings that do not depend on the data.
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
            let fault = Fault::at("--context", format!("{context} tokens, the model has {positions} positions"));
            return Err(Error::usage(fault.advice(format!("try --context {positions}"))));
        }
        let micro = batch.saturating_mul(context);
        if u32::try_from(micro).is_err() || micro as u64 * 3 >= 1 << 32 {
            let place = format!("--batch {batch} times --context {context}");
            return Err(Error::usage(Fault::at(place, format!("{micro} tokens in one batch")).expected("under 2^30")));
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
            let ranks_of = if ranks == 1 { "1 rank".into() } else { format!("{ranks} ranks") };
            let fault = Fault::at("--devices", format!("{devices} devices do not share {ranks_of} evenly"));
            let numbers: Vec<String> =
                (1..=ranks).filter(|n| ranks.is_multiple_of(*n)).map(|n| n.to_string()).collect();
            let fault = fault.expected(format!("a number of devices among {}", numbers.join(", ")));
            let advice =
                "a run keeps the ranks that it began with; one that begins anew may have more: --emulate-ranks";
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
        // eps above zero: the padding of the vocabulary, which never moves, would become 0 / 0
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

/// Returns a path that holds in every folder.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// True if two paths, or names, are the same from here.
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
