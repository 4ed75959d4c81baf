//! The settings that a person gives, each once: its doc comment is its help, its name its flag and its key in recipes.
//!
//! A value that is not given is `None`; [`super::Settings`] has a value for each.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use serde::{Deserialize, Serialize};

use crate::data::{TokenFormat, TokenizerName};
use crate::files::path_text::{list, maybe, several};
use crate::model::Recompute;
use crate::train::schedule::Shape;

use super::values::{Batch, Bytes, Interval, Peak, Positive, Precision, Value, WhenFull, Wire, spelled};

/// Settings as given: a recipe, or flags. Its parts are the tables of a recipe and the headings of `--help`.
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

/// Where tokens come from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(next_help_heading = "Data")]
pub struct Data {
    /// Text file to train on, one document (repeatable), plain or packed by gzip, zstd, xz or bzip2; its last tenth is for
    /// validation
    #[arg(long, value_name = "FILE")]
    #[serde(with = "list", skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<PathBuf>,
    /// Cut text files into documents wherever this text is, such as '<|endoftext|>'
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_on: Option<String>,
    /// Token shards to train on: files, a pattern, a folder that holds NAME_train_*.bin, or a name of `wgpt data fetch`
    #[arg(long, value_name = "GLOB|NAME", num_args = 1..)]
    #[serde(with = "several", skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Token shards for validation, given likewise; of a folder those named NAME_val_*.bin
    #[arg(long, value_name = "GLOB|NAME", num_args = 1..)]
    #[serde(with = "several", skip_serializing_if = "Vec::is_empty")]
    pub val: Vec<PathBuf>,
    /// Layout of --data and --val: shard (llm.c's), u16 or u32 (ids without a header, as nanoGPT's train.bin), npy (NumPy)
    /// [default: shard]
    #[arg(long, value_name = "FORMAT", value_parser = TokenFormat::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub data_format: Option<TokenFormat>,
    /// Tokenizer of text: gpt2, bytes, or a folder with tokenizer.json [default: that of --init or of the shards, else
    /// gpt2]
    #[arg(long, value_name = "NAME|DIR", value_parser = OsStringValueParser::new().try_map(TokenizerName::try_from))]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerName>,
    /// Take batches in file order, not shuffled
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = bool::parse)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_shuffle: Option<bool>,
    /// Take the batches of the first step in every step, those of --val if it is given: the loss must go to zero
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = bool::parse)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overfit_one_batch: Option<bool>,
    /// Train as llm.c does on N devices: each of N logical ranks takes as many micro-steps of a step, from a stream of its own
    /// (seeds --seed to --seed + N-1, samples of N times batch times context tokens), and their gradients are summed by a tree
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub emulate_ranks: Option<usize>,
}

/// The model's shape, and the weights that it starts from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(next_help_heading = "Model")]
pub struct Model {
    /// Model by name: d6 d12 d24 d36 d48 d60 d72 d84, gpt3:cN [default: d12]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Blocks of a model of your own
    #[arg(long, value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// Attention heads; must divide the channels
    #[arg(long, value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Width of the residual stream
    #[arg(long, value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub channels: Option<usize>,
    /// Vocabulary of a model of your own [default: the tokenizer's]; a named model has 50257 ids
    #[arg(long, value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub vocab: Option<usize>,
    /// Start from weights: a run, a Hugging Face folder, a .bin of llm.c, or a name such as gpt2 from the cache
    #[arg(long, value_name = "MODEL")]
    #[serde(with = "maybe", skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
}

/// Sizes of a step, the schedule, the optimizer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(next_help_heading = "Training")]
pub struct Training {
    /// Tokens of a sequence [default: all positions of a named model, at most 1024; 256 for one of your own]
    #[arg(long, value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Sequences of a micro-step, or `auto` for the most that memory holds [default: 4]
    #[arg(long)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
    /// Tokens of a step, a multiple of batch times context [default: one micro-step, of each rank]
    #[arg(long, value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub tokens_per_step: Option<usize>,
    /// Steps of the run; a run can be resumed with more [default: one epoch]
    #[arg(long, value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Peak learning rate [default: 6e-4]
    #[arg(long, allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub lr: Option<f32>,
    /// Learning rate after the warm-up: cosine, linear, constant or wsd, which stays at the peak for four fifths of the
    /// steps [default: cosine]
    #[arg(long, value_parser = Shape::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Shape>,
    /// Steps of linear warm-up; none with --schedule constant [default: 0]
    #[arg(long, value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub warmup: Option<usize>,
    /// Final learning rate over the peak [default: 0]
    #[arg(long, allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub final_lr_frac: Option<f32>,
    /// Decoupled weight decay of two-dimensional tensors [default: 0.1]
    #[arg(long, allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f32>,
    /// Largest gradient norm; 0 switches clipping off [default: 1]
    #[arg(long, allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub clip: Option<f32>,
    /// Skip a step whose loss has a z-score above Z among the last 128; 0 for never [default: 0]
    #[arg(long, value_name = "Z", allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub skip_loss_z: Option<f32>,
    /// Skip a step whose gradient norm has one [default: 0]
    #[arg(long, value_name = "Z", allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub skip_norm_z: Option<f32>,
    /// Decay of AdamW's first moment [default: 0.9]
    #[arg(long, allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub beta1: Option<f32>,
    /// Decay of AdamW's second moment [default: 0.95]
    #[arg(long, allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub beta2: Option<f32>,
    /// Added to the root of AdamW's second moment [default: 1e-8]
    #[arg(long, allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub eps: Option<f32>,
    /// Element type of matrix operands [default: auto]
    #[arg(long, value_enum)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Element type of gradients on their way between devices; one of 16 bits halves the bytes, and bits then repeat only on as many
    /// devices [default: f32]
    #[arg(long, value_enum)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub wire: Option<Wire>,
    /// Activations that the backward pass computes again instead of keeping them: none, gelu, ln or block; bits stay the
    /// same [default: none]
    #[arg(long, value_name = "LEVEL", value_parser = Recompute::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub recompute: Option<Recompute>,
    /// Seed of the first weights, the order of batches, and the samples [default: 42]
    #[arg(long, value_parser = u32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
}

/// Everything that moves no loss.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(next_help_heading = "Run")]
pub struct Run {
    /// Steps between validations; 0 for none but the first and the last [default: 250]
    #[arg(long, value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub val_every: Option<usize>,
    /// Batches of a validation [default: all, of shards at most 10,485,760 tokens]
    #[arg(long, value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub val_steps: Option<usize>,
    /// Tokens of a validation; wins over --val-steps
    #[arg(long, value_name = "TOKENS", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub val_limit: Option<usize>,
    /// Measure the accuracy on HellaSwag: .bin of llm.c, .jsonl or .parquet, or `hellaswag` once `wgpt data fetch` has it
    #[arg(long, value_name = "FILE")]
    #[serde(with = "maybe", skip_serializing_if = "Option::is_none")]
    pub hellaswag: Option<PathBuf>,
    /// Steps between its measurements, one more at the end; 0 for that alone [default: as --val-every]
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub hellaswag_every: Option<usize>,
    /// Steps between samples, one more at the end; 0 for none [default: 0]
    #[arg(long, value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub sample_every: Option<usize>,
    /// Memory that the run may use on each device, as 24GiB or 800MB; devices of software share it [default: what is free, on a
    /// software adapter]
    #[arg(long, value_name = "SIZE")]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// A run's folder, or a main.log of llm.c's form, whose curve is drawn beside this one's in report.html
    #[arg(long, value_name = "RUN")]
    #[serde(with = "maybe", skip_serializing_if = "Option::is_none")]
    pub compare: Option<PathBuf>,
    /// Peak TFLOP/s of the adapter, the denominator of MFU, or `measure`
    #[arg(long, value_name = "TFLOPS", allow_negative_numbers = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub peak_tflops: Option<Peak>,
    /// Dollars per hour, for the status line and report.html
    #[arg(long, value_name = "DOLLARS", allow_negative_numbers = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub price_per_hour: Option<Positive>,
    /// Folder of the run; one that holds this run is resumed [default: runs/N]
    #[arg(long, value_name = "DIR")]
    #[serde(with = "maybe", skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// Steps between checkpoints, or minutes as 10m; 0 for none but at the end and on a signal [default: 250]
    #[arg(long, value_name = "STEPS")]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<Interval>,
    /// Number of newest checkpoints to keep [default: 2]
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub keep: Option<usize>,
    /// Also keep every checkpoint of a step that is a multiple of M; 0 for none [default: 0]
    #[arg(long, value_name = "M", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<usize>,
    /// Reaction to a full disk or a write error [default: pause]
    #[arg(long, value_enum)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub on_disk_full: Option<WhenFull>,
    /// Adapter by index or part of its name: see `wgpt devices`
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Devices that share the run: all, or numbers and PCI bus ids of `wgpt devices`, as 0,1 or 0000:41:00.0; under MPI those of
    /// each process, which takes one GPU without this
    #[arg(long, value_name = "all|LIST")]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub devices: Option<String>,
    /// Let several entries of --devices, or several processes of an MPI run, use the same GPU: to try them where there is one
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = bool::parse)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_device: Option<bool>,
    /// Keep bounds checks in all kernels and in the driver, and Vulkan's validation layer on if it is installed: slow, for
    /// debugging
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = bool::parse)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked: Option<bool>,
    /// Hand kernels to Vulkan as naga writes them, to compare: see src/gpu/spirv
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = bool::parse)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_spirv_repair: Option<bool>,
}
