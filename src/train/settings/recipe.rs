//! The settings that a user gives. Each is defined once: its doc comment is its help text, its name is its flag and its
//! key in recipes.
//!
//! A setting that is not given is `None`; [`super::Settings`] has a value for each.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use serde::{Deserialize, Serialize};

use crate::data::{TokenFormat, TokenizerName};
use crate::files::path_text::{list, maybe, several};
use crate::model::Recompute;
use crate::train::schedule::Shape;

use super::values::{Batch, Bytes, Interval, Peak, Positive, Precision, Value, WhenFull, Wire, spelled};

/// Settings as given by a recipe or by flags. The fields are the tables of a recipe and the headings of `--help`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Data.
    #[command(flatten)]
    pub data: Data,
    /// Model.
    #[command(flatten)]
    pub model: Model,
    /// Training.
    #[command(flatten)]
    pub training: Training,
    /// Run.
    #[command(flatten)]
    pub run: Run,
}

/// The source of the tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(next_help_heading = "Data")]
pub struct Data {
    /// Text file to train on, one document (repeatable); plain, gzip, zstd, xz or bzip2
    ///
    /// The last tenth of the tokens is for validation.
    #[arg(long, value_name = "FILE")]
    #[serde(with = "list", skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<PathBuf>,
    /// Text that separates the documents of a text file, such as '<|endoftext|>'
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_on: Option<String>,
    /// Token shards to train on: files, a pattern, a folder, or a name of `wgpt data fetch`
    ///
    /// In a folder these are the files NAME_train_*.bin.
    #[arg(long, value_name = "GLOB|NAME", num_args = 1..)]
    #[serde(with = "several", skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Token shards for validation, given as for --data
    ///
    /// In a folder these are the files NAME_val_*.bin.
    #[arg(long, value_name = "GLOB|NAME", num_args = 1..)]
    #[serde(with = "several", skip_serializing_if = "Vec::is_empty")]
    pub val: Vec<PathBuf>,
    /// Layout of --data and --val: shard, u16, u32 or npy [default: shard]
    ///
    /// shard is llm.c's format, u16 and u32 are ids without a header such as nanoGPT's train.bin, npy is NumPy's
    /// format.
    #[arg(long, value_name = "FORMAT", value_parser = TokenFormat::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub data_format: Option<TokenFormat>,
    /// Tokenizer: gpt2, bytes, or a folder with tokenizer.json [default: that of --init or the shards, else gpt2]
    #[arg(long, value_name = "NAME|DIR", value_parser = OsStringValueParser::new().try_map(TokenizerName::try_from))]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerName>,
    /// Take batches in file order instead of shuffling them
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = bool::parse)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_shuffle: Option<bool>,
    /// Repeat the batches of the first step in every step: the loss must go to zero
    ///
    /// With --val these are the first batches of the validation data, as in llm.c.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = bool::parse)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overfit_one_batch: Option<bool>,
    /// Number of logical ranks: train as llm.c does on N devices [default: one per device]
    ///
    /// Each rank computes the same number of micro-steps per step, from its own stream of batches (seeds --seed to
    /// --seed + N-1, samples of N times batch times context tokens). A binary tree sums the gradients of the ranks.
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub emulate_ranks: Option<usize>,
}

/// The model's shape and initial weights.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(next_help_heading = "Model")]
pub struct Model {
    /// Model by name: d6 d12 d24 d36 d48 d60 d72 d84, gpt3:cN [default: d12]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Number of blocks of a custom model; needs --heads and --channels
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// Number of attention heads; must divide --channels
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Width of the residual stream
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub channels: Option<usize>,
    /// Vocabulary size of a custom model [default: the tokenizer's]
    ///
    /// A named model has 50257 ids.
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub vocab: Option<usize>,
    /// Start from weights: a run, a Hugging Face folder, a .bin of llm.c, or a name such as gpt2 from the cache
    #[arg(long, value_name = "MODEL")]
    #[serde(with = "maybe", skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
}

/// Step sizes, schedule and optimizer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(next_help_heading = "Training")]
pub struct Training {
    /// Tokens per sequence [default: all positions of a named model, at most 1024; 256 for a custom model]
    #[arg(long, value_name = "TOKENS", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Sequences per micro-step, or `auto` for the most that memory holds [default: 4]
    #[arg(long, value_name = "N|auto")]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
    /// Tokens per step, a multiple of batch times context [default: one micro-step per rank]
    #[arg(long, value_name = "TOKENS", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub tokens_per_step: Option<usize>,
    /// Steps of the run; a run can be resumed with more [default: one epoch]
    #[arg(long, value_name = "STEPS", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Peak learning rate [default: 6e-4]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub lr: Option<f32>,
    /// Learning rate after the warm-up: cosine, linear, constant or wsd [default: cosine]
    ///
    /// wsd (warm-up, stable, decay) stays at the peak for four fifths of the steps.
    #[arg(long, value_name = "SHAPE", value_parser = Shape::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Shape>,
    /// Steps of linear warm-up; --schedule constant has none [default: 0]
    #[arg(long, value_name = "STEPS", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub warmup: Option<usize>,
    /// Final learning rate as a fraction of the peak [default: 0]
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub final_lr_frac: Option<f32>,
    /// Decoupled weight decay of two-dimensional tensors [default: 0.1]
    #[arg(long, value_name = "DECAY", allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f32>,
    /// Largest gradient norm; 0 disables clipping [default: 1]
    #[arg(long, value_name = "NORM", allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub clip: Option<f32>,
    /// Skip a step whose loss has a z-score above Z among the last 128; 0 disables this [default: 0]
    #[arg(long, value_name = "Z", allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub skip_loss_z: Option<f32>,
    /// Skip a step whose gradient norm has a z-score above Z; 0 disables this [default: 0]
    #[arg(long, value_name = "Z", allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub skip_norm_z: Option<f32>,
    /// Decay of AdamW's first moment [default: 0.9]
    #[arg(long, value_name = "DECAY", allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub beta1: Option<f32>,
    /// Decay of AdamW's second moment [default: 0.95]
    #[arg(long, value_name = "DECAY", allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub beta2: Option<f32>,
    /// Term added to the root of AdamW's second moment [default: 1e-8]
    #[arg(long, value_name = "EPS", allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub eps: Option<f32>,
    /// Element type of matrix operands [default: auto]
    #[arg(long, value_name = "TYPE", value_enum)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Element type of gradients sent between devices; 16 bits halve the bytes [default: f32]
    ///
    /// With 16 bits a run repeats bit by bit only on the same number of devices.
    #[arg(long, value_name = "TYPE", value_enum)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub wire: Option<Wire>,
    /// Activations to recompute in the backward pass: none, gelu, ln or block [default: none]
    ///
    /// Each level stores fewer activations than the one before it. All levels give the same bits.
    #[arg(long, value_name = "LEVEL", value_parser = Recompute::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub recompute: Option<Recompute>,
    /// Seed of the initial weights, the order of batches and the samples [default: 42]
    #[arg(long, value_name = "N", value_parser = u32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
}

/// Settings that do not affect the loss.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(next_help_heading = "Run")]
pub struct Run {
    /// Steps between validations; 0 for only the first and the last [default: 250]
    #[arg(long, value_name = "STEPS", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub val_every: Option<usize>,
    /// Batches per validation [default: all; of shards at most 10,485,760 tokens]
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub val_steps: Option<usize>,
    /// Tokens per validation; overrides --val-steps
    #[arg(long, value_name = "TOKENS", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub val_limit: Option<usize>,
    /// Measure the accuracy on HellaSwag: .bin of llm.c, .jsonl, .parquet, or `hellaswag`
    ///
    /// `wgpt data fetch hellaswag` makes the name `hellaswag` available.
    #[arg(long, value_name = "FILE")]
    #[serde(with = "maybe", skip_serializing_if = "Option::is_none")]
    pub hellaswag: Option<PathBuf>,
    /// Steps between HellaSwag measurements; 0 for only the one at the end [default: as --val-every]
    #[arg(long, value_name = "STEPS", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub hellaswag_every: Option<usize>,
    /// Steps between samples, with another at the end; 0 for none [default: 0]
    #[arg(long, value_name = "STEPS", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub sample_every: Option<usize>,
    /// Memory that the run may use per device, such as 24GiB or 800MB
    ///
    /// Software devices share it. Without it a run is checked against the free memory, on software adapters only.
    #[arg(long, value_name = "SIZE")]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Folder of a run, or a main.log in llm.c's format, whose curve report.html draws too
    #[arg(long, value_name = "RUN")]
    #[serde(with = "maybe", skip_serializing_if = "Option::is_none")]
    pub compare: Option<PathBuf>,
    /// Peak TFLOP/s of the adapter, the denominator of MFU; `measure` benchmarks it
    #[arg(long, value_name = "TFLOPS", allow_negative_numbers = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub peak_tflops: Option<Peak>,
    /// Dollars per hour, for the status line and report.html
    #[arg(long, value_name = "DOLLARS", allow_negative_numbers = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub price_per_hour: Option<Positive>,
    /// Folder of the run; if it holds this run already, the run is resumed [default: runs/N]
    #[arg(long, value_name = "DIR")]
    #[serde(with = "maybe", skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// Steps between checkpoints, or minutes such as 10m; 0 for only the end and signals [default: 250]
    #[arg(long, value_name = "STEPS")]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<Interval>,
    /// Number of newest checkpoints to keep [default: 2]
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub keep: Option<usize>,
    /// Also keep the checkpoints of steps that are multiples of M; 0 for none [default: 0]
    #[arg(long, value_name = "M", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<usize>,
    /// Reaction to a full disk or a write error [default: pause]
    #[arg(long, value_name = "ACTION", value_enum)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub on_disk_full: Option<WhenFull>,
    /// Adapter by index or part of its name: see `wgpt devices`
    #[arg(long, value_name = "ADAPTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Devices that share the run: all, or numbers and PCI bus ids of `wgpt devices`
    ///
    /// A list has commas: 0,1 or 0000:41:00.0. Under MPI the flag names the devices of each process; without it each
    /// process uses one GPU.
    #[arg(long, value_name = "all|LIST")]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub devices: Option<String>,
    /// Let several entries of --devices, or several MPI processes, use the same GPU, for trials on one GPU
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = bool::parse)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_device: Option<bool>,
    /// Keep bounds checks in all kernels and in the driver: slow, for debugging
    ///
    /// Also enables Vulkan's validation layer, if it is installed.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = bool::parse)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked: Option<bool>,
    /// Pass kernels to Vulkan as naga writes them, for comparison: see src/gpu/spirv
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = bool::parse)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_spirv_repair: Option<bool>,
}
