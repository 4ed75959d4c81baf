//! Everything that decides a run, resolved: written into the run's folder, compared when a folder is used again.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::formats::checkpoint::Keep;
use crate::gpu::Elem;
use crate::model::{Config, Recompute};

mod values;

pub use values::Interval;

use super::schedule::{Schedule, Shape};
use super::trainer::{Optimizer, Sizes};

/// A run's settings. What lies under `run` moves no loss and may differ when a folder is used again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// The model's shape and where its weights start from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSettings {
    /// Longest sequence.
    pub positions: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Width.
    pub channels: usize,
    /// Folder of the first weights; without it they are drawn from the seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
}

/// Where tokens come from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DataSettings {
    /// Text files, or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<String>,
    /// Pattern of training shards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<String>,
    /// Pattern of validation shards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<String>,
    /// Bytes of generated stories, if nothing else is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stories_bytes: Option<usize>,
    /// `gpt2` or `bytes`, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Batches in llm.c's random order, else in file order.
    pub shuffle: bool,
    /// The batches of the first step in every step.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overfit_one_batch: bool,
    /// Ranks whose batches are taken in turn, if more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emulate_ranks: Option<usize>,
}

/// The optimizer, the schedule, the sizes of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    /// Sequences of a micro-step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub context: usize,
    /// Tokens of a step.
    pub tokens_per_step: usize,
    /// Steps of the run.
    pub steps: usize,
    /// How the learning rate goes.
    #[serde(default)]
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
    /// AdamW.
    pub beta1: f32,
    /// AdamW.
    pub beta2: f32,
    /// AdamW.
    pub eps: f32,
    /// Steps whose loss has a z-score above this are skipped; 0 for none.
    #[serde(default)]
    pub skip_loss_z: f32,
    /// The same of the gradient norm.
    #[serde(default)]
    pub skip_norm_z: f32,
    /// Element type of matrix operands: `f32` or `f16`.
    pub precision: String,
    /// Seed of the first weights, the order of batches and the samples.
    pub seed: u32,
    /// Steps between validations; 0 for none in between.
    pub val_every: usize,
    /// Rows of the context's length in a validation; absent for all there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_rows: Option<usize>,
}

/// Settings that move no loss.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RunSettings {
    /// Steps between samples; 0 for none.
    pub sample_every: usize,
    /// HellaSwag's file, if the run is measured on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hellaswag: Option<String>,
    /// Steps between its measurements, one more at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hellaswag_every: Option<usize>,
    /// Steps between checkpoints, or minutes as `10m`.
    #[serde(default)]
    pub checkpoint_every: String,
    /// How many of the newest checkpoints are kept.
    #[serde(default)]
    pub keep: usize,
    /// Checkpoints of multiples of so many steps are kept too; 0 for none.
    #[serde(default)]
    pub keep_every: usize,
    /// What the backward pass computes again: `none`, `gelu`, `ln` or `block`. Moves no bit.
    #[serde(default)]
    pub recompute: String,
    /// What a full disk or a write error does: `pause` until it is gone, or `stop`.
    #[serde(default)]
    pub on_disk_full: String,
    /// True once the run has come to its end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub finished: bool,
    /// The device asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The adapter that the run was last made on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// The run or llm.c's main.log whose curve stands beside this run's in its report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compare: Option<String>,
    /// TFLOP/s of the adapter, which MFU is a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_tflops: Option<f64>,
    /// Dollars an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_per_hour: Option<f64>,
}

impl Settings {
    /// The element type of matrix operands.
    #[must_use]
    pub fn elem(&self) -> Elem {
        if self.train.precision == "f16" { Elem::F16 } else { Elem::F32 }
    }

    /// What the backward pass computes again: nothing if nothing is said.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is no level.
    pub fn recompute(&self) -> Result<Recompute> {
        match self.run.recompute.as_str() {
            "" => Ok(Recompute::None),
            text => text.parse(),
        }
    }

    /// The model's shape.
    ///
    /// # Errors
    /// [`Error::Usage`] if the shape is impossible.
    pub fn config(&self) -> Result<Config> {
        let m = &self.model;
        Config::new(m.positions, m.vocab, m.layers, m.heads, m.channels)
    }

    /// When checkpoints are made: every 250 steps if nothing is said.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is neither steps nor minutes.
    pub fn interval(&self) -> Result<Interval> {
        match self.run.checkpoint_every.as_str() {
            "" => Ok(Interval::Steps(250)),
            text => text.parse().map_err(|e| Error::usage(format!("--checkpoint-every: {e}"))),
        }
    }

    /// Which checkpoints stay.
    #[must_use]
    pub fn keep(&self) -> Keep {
        Keep { newest: self.run.keep.max(1), every: self.run.keep_every }
    }

    /// The sizes of a step.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let t = &self.train;
        Sizes { batch: t.batch, context: t.context, accumulation: t.tokens_per_step / (t.batch * t.context) }
    }

    /// The learning rates.
    #[must_use]
    pub fn schedule(&self) -> Schedule {
        let t = &self.train;
        Schedule { shape: t.schedule, lr: t.lr, warmup: t.warmup, final_frac: t.final_lr_frac, steps: t.steps }
    }

    /// AdamW and clipping.
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

    /// Checks what does not depend on the data.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the flag.
    pub fn check(&self) -> Result<()> {
        let (config, t) = (self.config()?, &self.train);
        self.interval()?;
        self.recompute()?;
        let usage = |message: String| Err(Error::usage(message));
        if t.batch == 0 || t.context == 0 {
            return usage(format!("--batch {} and --context {}: expected both to be at least 1", t.batch, t.context));
        }
        if t.context > config.positions {
            return usage(format!(
                "--context: {} tokens, the model has {} positions; try --context {}",
                t.context, config.positions, config.positions
            ));
        }
        let micro = t.batch.saturating_mul(t.context);
        if u32::try_from(micro).is_err() || micro as u64 * 3 >= 1 << 32 {
            return usage(format!(
                "--batch {} times --context {}: {micro} tokens in one batch, expected under 2^30",
                t.batch, t.context
            ));
        }
        if t.tokens_per_step == 0 || !t.tokens_per_step.is_multiple_of(micro) {
            return usage(format!(
                "--tokens-per-step: {} is not a multiple of --batch {} times --context {} = {micro}; try {}",
                t.tokens_per_step,
                t.batch,
                t.context,
                t.tokens_per_step.next_multiple_of(micro).max(micro)
            ));
        }
        if let Some(ranks) = self.data.emulate_ranks {
            let sample = micro.saturating_mul(ranks);
            if ranks == 0 || !t.tokens_per_step.is_multiple_of(sample) {
                return usage(format!(
                    "--emulate-ranks: {ranks} ranks of --batch {} times --context {} tokens do not make a step of {}; try \
                     --tokens-per-step {}",
                    t.batch,
                    t.context,
                    t.tokens_per_step,
                    t.tokens_per_step.next_multiple_of(sample.max(1)).max(sample.max(1))
                ));
            }
        }
        if t.steps == 0 || u32::try_from(t.steps).is_err() {
            return usage(format!("--steps: {}, expected 1 to 2^32 - 1", t.steps));
        }
        for (name, value) in [
            ("--warmup", t.warmup),
            ("--val-every", t.val_every),
            ("--sample-every", self.run.sample_every),
            ("--tokens-per-step", t.tokens_per_step),
            ("--val-steps", t.val_rows.unwrap_or(1)),
        ] {
            if value >= 1 << 50 || (name == "--val-steps" && value == 0) {
                let least = usize::from(name == "--val-steps");
                return usage(format!("{name}: {value}, expected {least} to 2^50"));
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
                return usage(format!("{name}: {value}, expected {least} to {most}"));
            }
        }
        Ok(())
    }

    /// The settings as TOML.
    ///
    /// # Errors
    /// [`Error::Output`] if they cannot be written as such.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::output(format!("config.toml: cannot be written: {e}")))
    }

    /// What differs from another run's settings in anything that moves a loss, as `train.lr: 0.001 there, 0.002 here`.
    ///
    /// # Errors
    /// [`Error::Output`] if the settings cannot be written as TOML.
    pub fn differences(&self, there: &toml::Table) -> Result<Vec<String>> {
        let here: toml::Table =
            self.to_toml()?.parse().map_err(|e| Error::output(format!("config.toml: cannot be read back: {e}")))?;
        let (here, there) = (flatten(&here), flatten(there));
        let mut keys: Vec<&String> = here.iter().chain(&there).map(|(key, _)| key).collect();
        keys.sort();
        keys.dedup();
        let find = |list: &[(String, String)], key: &str| {
            list.iter().find(|(k, _)| k == key).map_or("nothing".to_owned(), |(_, value)| value.clone())
        };
        let differs = |key: &&&String| find(&here, key) != find(&there, key);
        Ok(keys
            .iter()
            .filter(differs)
            .map(|key| format!("{key}: {} there, {} here", find(&there, key), find(&here, key)))
            .collect())
    }
}

/// `section.key` and value of everything outside `run`.
fn flatten(table: &toml::Table) -> Vec<(String, String)> {
    let mut list = Vec::new();
    for (section, values) in table.iter().filter(|(section, _)| *section != "run") {
        match values {
            toml::Value::Table(values) => {
                list.extend(values.iter().map(|(key, value)| (format!("{section}.{key}"), value.to_string())));
            }
            value => list.push((section.clone(), value.to_string())),
        }
    }
    list
}
