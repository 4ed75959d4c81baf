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

use super::values::{
    Batch, Bytes, Interval, Peak, Positive, Precision, Value, WhenFull, Wire, spelled, token_count, tokens,
};

/// Settings as given: a recipe, or flags. Its parts are the tables of a recipe.
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
    /// Text file to train on (repeatable)
    ///
    /// Each file is one document, plain or packed by gzip, zstd, xz or bzip2. The last tenth of the tokens is for
    /// validation
    #[arg(long, value_name = "FILE")]
    #[serde(with = "list", skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<PathBuf>,
    /// Separator of documents in text files
    ///
    /// For example '<|endoftext|>'. Without it each file is one document
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_on: Option<String>,
    /// Token shards to train on
    ///
    /// Files, a pattern, a folder that holds NAME_train_*.bin, or a name of `wgpt data fetch`
    #[arg(long, value_name = "GLOB|NAME", num_args = 1..)]
    #[serde(with = "several", skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Token shards for validation
    ///
    /// Given like --data. Of a folder the files named NAME_val_*.bin are taken
    #[arg(long, value_name = "GLOB|NAME", num_args = 1..)]
    #[serde(with = "several", skip_serializing_if = "Vec::is_empty")]
    pub val: Vec<PathBuf>,
    /// Layout of --data and --val [default: shard]
    ///
    /// shard is llm.c's; u16 and u32 are ids without a header, as in nanoGPT's train.bin; npy is NumPy's
    #[arg(long, value_name = "FORMAT", value_parser = TokenFormat::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub data_format: Option<TokenFormat>,
    /// gpt2, bytes, or a folder
    ///
    /// A folder with tokenizer.json [default: that of --init or of the shards, else gpt2]
    #[arg(long, value_name = "NAME|DIR", value_parser = OsStringValueParser::new().try_map(TokenizerName::try_from))]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerName>,
    /// Take batches in file order, not shuffled
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    #[arg(value_parser = bool::parse, hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_shuffle: Option<bool>,
    /// Repeat the first step's batches in every step
    ///
    /// The loss must go to zero. With --val the batches are those of the validation, as in llm.c
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    #[arg(value_parser = bool::parse, hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overfit_one_batch: Option<bool>,
    /// Logical ranks of the run [default: one per device]
    ///
    /// Trains as llm.c does on N devices: each of N logical ranks takes as many micro-steps of a step, from a stream of
    /// its own (seeds --seed to --seed + N-1, samples of N times batch times context tokens), and a tree sums their
    /// gradients
    #[arg(long, value_name = "N", value_parser = usize::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub emulate_ranks: Option<usize>,
}

/// The model's shape and initial weights.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(next_help_heading = "Model")]
pub struct Model {
    /// Model by name: d12 (124M), d24, gpt3:c768 ...
    ///
    /// d6 d12 d24 d36 d48 d60 d72 d84, or gpt3:cN [default: d12, or with stories a small model]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Blocks of a model of your own
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// Attention heads; must divide the channels
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Width of the residual stream
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub channels: Option<usize>,
    /// Vocabulary of a model of your own
    ///
    /// [default: the tokenizer's]. A named model has 50,257 ids
    #[arg(long, value_name = "N", value_parser = usize::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub vocab: Option<usize>,
    /// Weights to start from, such as gpt2
    ///
    /// A run, a Hugging Face folder, a .bin of llm.c, or a name such as gpt2 from the Hugging Face cache
    #[arg(long, value_name = "MODEL")]
    #[serde(with = "maybe", skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
}

/// Step sizes, schedule and optimizer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(next_help_heading = "Training")]
pub struct Training {
    /// Tokens per sequence
    ///
    /// [default: all positions of a named model, at most 1024; 256 for a model of your own]
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Sequences per micro-step, or auto [default: 4]
    ///
    /// auto takes the largest batch that fits into memory
    #[arg(long, value_name = "N|auto")]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
    /// Tokens per step, as 524288 or 0.5M
    ///
    /// A multiple of batch x context x ranks, reached by gradient accumulation [default: one micro-step of each rank]
    #[arg(long, value_name = "TOKENS", value_parser = token_count)]
    #[serde(with = "tokens", skip_serializing_if = "Option::is_none")]
    pub tokens_per_step: Option<usize>,
    /// Steps of the run [default: one epoch]
    ///
    /// A run can be resumed with more
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Peak learning rate [default: 6e-4]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub lr: Option<f32>,
    /// Learning rate after the warm-up [default: cosine]
    ///
    /// cosine, linear, constant, or wsd, which stays at the peak for four fifths of the steps
    #[arg(long, value_name = "NAME", value_parser = Shape::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Shape>,
    /// Steps of linear warm-up [default: 0]
    ///
    /// There is none with --schedule constant
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub warmup: Option<usize>,
    /// Final learning rate over the peak [default: 0]
    #[arg(long, value_name = "F", allow_negative_numbers = true, value_parser = f32::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub final_lr_frac: Option<f32>,
    /// Decoupled weight decay [default: 0.1]
    ///
    /// Of two-dimensional tensors only
    #[arg(long, value_name = "F", allow_negative_numbers = true, value_parser = f32::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f32>,
    /// Largest gradient norm [default: 1]
    ///
    /// 0 switches clipping off
    #[arg(long, value_name = "NORM", allow_negative_numbers = true, value_parser = f32::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub clip: Option<f32>,
    /// Skip steps with an outlying loss [default: 0]
    ///
    /// Skips the update of a step whose loss has a z-score above Z among the last 128 steps; 0 for never
    #[arg(long, value_name = "Z", allow_negative_numbers = true, value_parser = f32::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub skip_loss_z: Option<f32>,
    /// Skip steps with an outlying gradient norm [default: 0]
    ///
    /// As --skip-loss-z, by the gradient norm
    #[arg(long, value_name = "Z", allow_negative_numbers = true, value_parser = f32::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub skip_norm_z: Option<f32>,
    /// Decay of AdamW's first moment [default: 0.9]
    #[arg(long, value_name = "F", allow_negative_numbers = true, value_parser = f32::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub beta1: Option<f32>,
    /// Decay of AdamW's second moment [default: 0.95]
    #[arg(long, value_name = "F", allow_negative_numbers = true, value_parser = f32::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub beta2: Option<f32>,
    /// Added to the root of AdamW's second moment [default: 1e-8]
    #[arg(long, value_name = "F", allow_negative_numbers = true, value_parser = f32::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub eps: Option<f32>,
    /// f32, f16 (mixed) or auto [default: auto]
    ///
    /// Element type of matrix operands and stored activations. auto is f16 on GPUs with matrix units, else f32
    #[arg(long, value_enum, value_name = "TYPE", hide_possible_values = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Type of gradients between devices [default: f32]
    ///
    /// f32, bf16 or f16. 16 bits halve the bytes; the run's bits then repeat only on the same number of devices
    #[arg(long, value_enum, value_name = "TYPE", hide_possible_values = true, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub wire: Option<Wire>,
    /// Activations computed again to save memory
    ///
    /// none, gelu, ln or block: the backward pass computes them again instead of keeping them. The bits stay the same
    /// [default: none]
    #[arg(long, value_name = "LEVEL", value_parser = Recompute::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub recompute: Option<Recompute>,
    /// Seed of weights, batches and samples [default: 42]
    #[arg(long, value_name = "N", value_parser = u32::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
}

/// Settings that do not affect the loss.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(next_help_heading = "Run")]
pub struct Run {
    /// Folder of the run [default: runs/N]
    ///
    /// A folder that holds this run, unfinished, resumes it
    #[arg(long, value_name = "DIR")]
    #[serde(with = "maybe", skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// Steps between validations [default: 250]
    ///
    /// 0 for none but the first and the last
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub val_every: Option<usize>,
    /// Batches per validation
    ///
    /// [default: all, of shards at most 10,485,760 tokens]
    #[arg(long, value_name = "N", value_parser = usize::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub val_steps: Option<usize>,
    /// Tokens per validation, as 1M; wins over --val-steps
    #[arg(long, value_name = "TOKENS", value_parser = token_count, hide_short_help = true)]
    #[serde(with = "tokens", skip_serializing_if = "Option::is_none")]
    pub val_limit: Option<usize>,
    /// HellaSwag's questions, to measure the accuracy
    ///
    /// A .bin of llm.c, .jsonl or .parquet, or `hellaswag` once `wgpt data fetch` has it
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    #[serde(with = "maybe", skip_serializing_if = "Option::is_none")]
    pub hellaswag: Option<PathBuf>,
    /// Steps between accuracies [default: as --val-every]
    ///
    /// One more is measured at the end; 0 for that one alone
    #[arg(long, value_name = "N", value_parser = usize::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub hellaswag_every: Option<usize>,
    /// Steps between samples [default: 0, none]
    ///
    /// One more is drawn at the end
    #[arg(long, value_name = "N", value_parser = usize::parse)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub sample_every: Option<usize>,
    /// Steps or minutes (10m) between checkpoints
    ///
    /// 0 for none but at the end and on a signal [default: 250]
    #[arg(long, value_name = "N|Nm")]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<Interval>,
    /// Number of newest checkpoints to keep [default: 2]
    #[arg(long, value_name = "N", value_parser = usize::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub keep: Option<usize>,
    /// Also keep every M-th step's checkpoint [default: 0]
    ///
    /// 0 for none
    #[arg(long, value_name = "M", value_parser = usize::parse, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<usize>,
    /// Reaction to a full disk [default: pause]
    ///
    /// pause tries again until there is room; stop ends the run with exit code 6. Other write errors count as well
    #[arg(long, value_enum, value_name = "REACTION", hide_possible_values = true, hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub on_disk_full: Option<WhenFull>,
    /// Steps between printed lines
    ///
    /// metrics.jsonl has every step. Lines with a validation, a sample or a skipped step are always printed; 0 prints
    /// those alone [default: at most four lines per second]
    #[arg(long, value_name = "N", value_parser = usize::parse, help_heading = "Records")]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub log_every: Option<usize>,
    /// Run or main.log to draw beside this one
    ///
    /// A run's folder, or a main.log of llm.c's form, for report.html
    #[arg(long, value_name = "RUN", help_heading = "Records", hide_short_help = true)]
    #[serde(with = "maybe", skip_serializing_if = "Option::is_none")]
    pub compare: Option<PathBuf>,
    /// Peak TFLOP/s of the GPU, for MFU; or `measure`
    #[arg(
        long,
        value_name = "TFLOPS",
        allow_negative_numbers = true,
        help_heading = "Records",
        hide_short_help = true
    )]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub peak_tflops: Option<Peak>,
    /// Dollars per hour, for the cost of the run
    #[arg(
        long,
        value_name = "DOLLARS",
        allow_negative_numbers = true,
        help_heading = "Records",
        hide_short_help = true
    )]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub price_per_hour: Option<Positive>,
    /// Adapter by index or part of its name
    ///
    /// `wgpt devices` lists them
    #[arg(long, value_name = "DEVICE", help_heading = "Devices")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Several GPUs: all, or a list such as 0,1
    ///
    /// Numbers and PCI bus ids of `wgpt devices`, such as 0000:41:00.0. Under MPI each process takes these; without the
    /// flag one GPU
    #[arg(long, value_name = "all|LIST", help_heading = "Devices")]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub devices: Option<String>,
    /// Let several devices or processes use one GPU
    ///
    /// To try --devices or MPI where there is only one
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    #[arg(value_parser = bool::parse, hide_short_help = true, help_heading = "Devices")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_device: Option<bool>,
    /// Memory of a device that the run may use, as 24GiB
    ///
    /// A unit is required: KiB, MiB, GiB, kB, MB or GB. Software devices share it [default: what is free, on a
    /// software adapter]
    #[arg(long, value_name = "SIZE", help_heading = "Devices", hide_short_help = true)]
    #[serde(with = "spelled", skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Keep bounds checks in kernels and driver: slow
    ///
    /// Vulkan's validation layer is on too, if it is installed. For debugging
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    #[arg(value_parser = bool::parse, hide_short_help = true, help_heading = "Devices")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked: Option<bool>,
    /// Hand kernels to Vulkan as naga writes them
    ///
    /// To compare: see src/gpu/spirv
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    #[arg(value_parser = bool::parse, hide_short_help = true, help_heading = "Devices")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_spirv_repair: Option<bool>,
}
