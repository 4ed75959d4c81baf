//! `wgpt train`.

mod fit;
mod header;
mod resolve;
mod values;

use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use wgpt::data::Tokenizer;
use wgpt::error::{Error, Result};
use wgpt::formats::{ModelInfo, weights};
use wgpt::gpu::{self, Elem, Gpu, Options};
use wgpt::measure::plan::check_memory;
use wgpt::measure::tune::{self, Found};
use wgpt::model::{Config, Recompute, init};
use wgpt::run::Session;
use wgpt::run::report::History;
use wgpt::run::session::Beside;
use wgpt::run::steps::known_words;
use wgpt::train::dataset::noted_tokenizer;
use wgpt::train::schedule::Shape;
use wgpt::train::settings::Interval;
use wgpt::train::settings::{DataSettings, ModelSettings, RunSettings, Settings, TrainSettings};
use wgpt::train::{Dataset, Trainer};

use super::batch::Batch;
use super::model::tokenizer_of;
use super::precision::{self, Precision};
use super::signals;
use super::terminal::{Terminal, say};
pub use resolve::Resolved;
use resolve::{Look, Start};
use values::{Peak, WhenFull, schedule_names};
pub use values::{TokenizerName, parse_positive, parse_size};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "With neither --text nor --data the program trains on stories that it makes up, with defaults of their own: 3 layers, \
4 heads, 128 channels, context 128, batch 8, 700 steps, lr 5e-3, warmup 40, byte tokens, validation every 100 steps on 16 \
batches, one sample at the end.

Examples:
  wgpt train
  wgpt train --text book.txt --tokenizer bytes --layers 4 --heads 4 --channels 128 --context 64 --batch 16 --steps 300
  wgpt train tools/recipes/gpt2-124M.toml --set batch=32 --dry-run
  wgpt train --data 'fineweb_train_*.bin' --val 'fineweb_val_*.bin' --model d12 --batch 64 --tokens-per-step 524288"
)]
pub struct Args {
    /// TOML file of flags, written as keys without their dashes; flags and --set are stronger
    recipe: Option<PathBuf>,
    /// A flag as a recipe has it, stronger than the recipe; without a VALUE it is unset (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print every value and where it comes from, as a recipe, and end
    #[arg(long, conflicts_with = "dry_run")]
    pub print_config: bool,
    /// Print the run and what it needs of memory, without its data and without a device, and end
    #[arg(long)]
    pub dry_run: bool,

    /// Text file to train on, one document (repeatable); its last tenth is for validation
    #[arg(long, value_name = "FILE", help_heading = "Data", conflicts_with_all = ["data", "val"])]
    text: Vec<PathBuf>,
    /// Token shards to train on, as a pattern
    #[arg(long, value_name = "GLOB", help_heading = "Data")]
    data: Option<String>,
    /// Token shards for validation, as a pattern
    #[arg(long, value_name = "GLOB", help_heading = "Data", requires = "data")]
    val: Option<String>,
    /// How text becomes tokens [default: what --init or the shards say, else gpt2]
    #[arg(long, help_heading = "Data")]
    tokenizer: Option<TokenizerName>,
    /// Batches in file order, not shuffled
    #[arg(long, help_heading = "Data")]
    no_shuffle: bool,
    /// The batches of the first step in every step, those of --val if it is given: the loss must go to zero
    #[arg(long, help_heading = "Data")]
    overfit_one_batch: bool,
    /// See the batches of llm.c on N devices: micro-steps take the streams of ranks 0 to N-1 in turn (seeds --seed to
    /// --seed + N-1, samples of N times batch times context tokens)
    #[arg(long, value_name = "N", help_heading = "Data")]
    emulate_ranks: Option<usize>,

    /// Model by name: d6 d12 d24 d36 d48 d60 d72 d84, gpt3:cN [default: d12]
    #[arg(long, help_heading = "Model", conflicts_with_all = ["layers", "heads", "channels", "vocab", "init"])]
    model: Option<String>,
    /// Blocks of a model of your own
    #[arg(long, help_heading = "Model", requires = "channels", requires = "heads")]
    layers: Option<usize>,
    /// Attention heads; must divide the channels
    #[arg(long, help_heading = "Model", requires = "layers", requires = "channels")]
    heads: Option<usize>,
    /// Width of the residual stream
    #[arg(long, help_heading = "Model", requires = "layers", requires = "heads")]
    channels: Option<usize>,
    /// Vocabulary [default: the tokenizer's]
    #[arg(long, help_heading = "Model", requires = "layers")]
    vocab: Option<usize>,
    /// Start from weights: a run, a Hugging Face folder, a .bin of llm.c, or a name such as gpt2 from the cache
    #[arg(long, value_name = "MODEL", help_heading = "Model", conflicts_with_all = ["layers", "heads", "channels", "vocab"])]
    init: Option<PathBuf>,

    /// Tokens of a sequence [default: all positions of a named model, at most 1024; 256 for one of your own]
    #[arg(long, help_heading = "Training")]
    context: Option<usize>,
    /// Sequences of a micro-step, or `auto` for the most that memory holds [default: 4]
    #[arg(long, help_heading = "Training")]
    pub batch: Option<Batch>,
    /// Tokens of a step, a multiple of batch times context [default: one micro-step, of each rank]
    #[arg(long, help_heading = "Training")]
    tokens_per_step: Option<usize>,
    /// Steps of the run [default: one epoch]
    #[arg(long, help_heading = "Training")]
    steps: Option<usize>,
    /// Peak learning rate [default: 6e-4]
    #[arg(long, help_heading = "Training", allow_negative_numbers = true)]
    lr: Option<f32>,
    /// How the learning rate goes on after the warm-up; wsd stays at the peak for four fifths of the steps
    #[arg(long, value_parser = schedule_names(), default_value = Shape::Cosine.name(), help_heading = "Training")]
    schedule: Shape,
    /// Steps of linear warm-up; none with --schedule constant [default: 0]
    #[arg(long, help_heading = "Training")]
    warmup: Option<usize>,
    /// Final learning rate over the peak
    #[arg(long, default_value_t = 0.0, help_heading = "Training", allow_negative_numbers = true)]
    final_lr_frac: f32,
    /// Decoupled weight decay of two-dimensional tensors
    #[arg(long, default_value_t = 0.1, help_heading = "Training", allow_negative_numbers = true)]
    weight_decay: f32,
    /// Largest gradient norm; 0 switches clipping off
    #[arg(long, default_value_t = 1.0, help_heading = "Training", allow_negative_numbers = true)]
    clip: f32,
    /// Skip a step whose loss has a z-score above Z among the last 128; 0 for never
    #[arg(long, value_name = "Z", default_value_t = 0.0, help_heading = "Training", allow_negative_numbers = true)]
    skip_loss_z: f32,
    /// Skip a step whose gradient norm has one
    #[arg(long, value_name = "Z", default_value_t = 0.0, help_heading = "Training", allow_negative_numbers = true)]
    skip_norm_z: f32,
    /// Decay of AdamW's first moment
    #[arg(long, default_value_t = 0.9, help_heading = "Training", allow_negative_numbers = true)]
    beta1: f32,
    /// Decay of AdamW's second moment
    #[arg(long, default_value_t = 0.95, help_heading = "Training", allow_negative_numbers = true)]
    beta2: f32,
    /// Added to the root of AdamW's second moment
    #[arg(long, default_value_t = 1e-8, help_heading = "Training", allow_negative_numbers = true)]
    eps: f32,
    /// Element type of matrix operands
    #[arg(long, value_enum, default_value_t = Precision::Auto, help_heading = "Training")]
    pub precision: Precision,
    /// What the backward pass computes again instead of keeping it: none, gelu, ln or block; bits stay the same
    #[arg(long, value_name = "LEVEL", default_value = "none", help_heading = "Training")]
    recompute: Recompute,
    /// Seed of the first weights, the order of batches, and the samples
    #[arg(long, default_value_t = 42, help_heading = "Training")]
    seed: u32,

    /// Steps between validations; 0 for none but the first and the last [default: 250]
    #[arg(long, help_heading = "Run")]
    val_every: Option<usize>,
    /// Batches of a validation [default: all, of shards at most 10,485,760 tokens]
    #[arg(long, help_heading = "Run")]
    val_steps: Option<usize>,
    /// Tokens of a validation; wins over --val-steps
    #[arg(long, value_name = "TOKENS", help_heading = "Run")]
    val_limit: Option<usize>,
    /// Measure the accuracy on HellaSwag: .bin of llm.c, .jsonl or .parquet, or `hellaswag` once `wgpt data fetch` has it
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    hellaswag: Option<PathBuf>,
    /// Steps between its measurements, one more at the end; 0 for that alone [default: as --val-every]
    #[arg(long, value_name = "N", requires = "hellaswag", help_heading = "Run")]
    hellaswag_every: Option<usize>,
    /// Steps between samples, one more at the end; 0 for none [default: 0]
    #[arg(long, help_heading = "Run")]
    sample_every: Option<usize>,
    /// Memory that the run may use, as 24GiB or 800MB [default: what is free, on a software adapter]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Run")]
    pub memory: Option<u64>,
    /// A run's folder, or a main.log of llm.c's form, whose curve stands beside this one's in report.html
    #[arg(long, value_name = "RUN", help_heading = "Run")]
    compare: Option<PathBuf>,
    /// What the adapter can do, which MFU is a part of, or `measure`
    #[arg(long, value_name = "TFLOPS", allow_negative_numbers = true, help_heading = "Run")]
    peak_tflops: Option<Peak>,
    /// Dollars an hour, for the status line and report.html
    #[arg(long, value_name = "DOLLARS", value_parser = parse_positive, allow_negative_numbers = true, help_heading = "Run")]
    price_per_hour: Option<f64>,
    /// Folder of the run [default: runs/N]
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    out: Option<PathBuf>,
    /// Rename a run that lies in --out to DIR.N and begin anew
    #[arg(long, help_heading = "Run")]
    restart: bool,
    /// Steps between checkpoints, or minutes as 10m; 0 for none but on a signal
    #[arg(long, value_name = "STEPS", default_value = "250", help_heading = "Run")]
    checkpoint_every: Interval,
    /// Checkpoints that are kept, the newest
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Run")]
    keep: u32,
    /// Keep checkpoints of steps that are multiples of M too; 0 for none
    #[arg(long, value_name = "M", default_value_t = 0, help_heading = "Run")]
    keep_every: u32,
    /// What a full disk or a write error does to the run: pause until it is gone, or stop
    #[arg(long, value_enum, default_value_t = WhenFull::Pause, help_heading = "Run")]
    on_disk_full: WhenFull,
    /// Adapter by index or part of its name: see `wgpt devices`
    #[arg(long, help_heading = "Run")]
    device: Option<String>,
    /// Keep bounds checks in all kernels and in the driver, and Vulkan's validation layer on if it is installed: slow, for
    /// hunting defects
    #[arg(long, help_heading = "Run")]
    checked: bool,
    /// Hand kernels to Vulkan as naga writes them, to compare: see src/gpu/spirv
    #[arg(long, help_heading = "Run")]
    no_spirv_repair: bool,
}

/// The run that `wgpt train` makes with no data given: small enough for two CPU cores and three minutes.
mod stories {
    pub const BYTES: usize = 2 << 20;
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

/// Positions of a free model when --context does not say.
const FREE_CONTEXT: usize = 256;
/// Steps until the data has been looked at.
pub const UNKNOWN_STEPS: usize = u32::MAX as usize;
/// Validation tokens of shards when nothing is said: llm.c's 20 steps of 524,288.
const VAL_TOKENS: usize = 10_485_760;

impl Args {
    /// True if the data are yet to be made up.
    pub fn uses_stories(&self) -> bool {
        self.text.is_empty() && self.data.is_none()
    }

    /// The tokenizer that is asked for or follows from the data; weights may know better.
    fn tokenizer(&self, start: Option<&Start>) -> Result<Option<Tokenizer>> {
        if let Some(name) = self.tokenizer {
            return Ok(Some(name.tokenizer()));
        }
        if let Some(start) = start {
            return Ok(tokenizer_of(&start.path, &start.info, start.config.vocab).ok());
        }
        if let Some(pattern) = &self.data {
            let noted = noted_tokenizer(pattern)?;
            return Ok(if noted.is_none() && self.vocab.is_some() { None } else { noted.or(Some(Tokenizer::Gpt2)) });
        }
        let small = self.uses_stories() && self.model.is_none();
        Ok(Some(if small { Tokenizer::Bytes } else { Tokenizer::Gpt2 }))
    }

    fn config(&self, start: Option<&Start>, tokenizer: Option<Tokenizer>) -> Result<Config> {
        if let Some(start) = start {
            return Ok(start.config);
        }
        if let (Some(layers), Some(heads), Some(channels)) = (self.layers, self.heads, self.channels) {
            let vocab = match (self.vocab, tokenizer) {
                (Some(vocab), _) => vocab,
                (None, Some(tokenizer)) => tokenizer.vocab(),
                (None, None) => {
                    return Err(Error::usage("--vocab: nothing says how many tokens there are; try --vocab N"));
                }
            };
            let context = if self.uses_stories() { stories::CONTEXT } else { FREE_CONTEXT };
            return Config::new(self.context.unwrap_or(context), vocab, layers, heads, channels);
        }
        match &self.model {
            None if self.uses_stories() => Config::new(
                self.context.unwrap_or(stories::CONTEXT),
                tokenizer.unwrap_or(Tokenizer::Bytes).vocab(),
                stories::LAYERS,
                stories::HEADS,
                stories::CHANNELS,
            ),
            name => Config::from_descriptor(name.as_deref().unwrap_or("d12")),
        }
    }

    /// Everything but the steps of an epoch and the rows of a validation, which depend on the data.
    fn settings(&self, config: Config, tokenizer: Option<Tokenizer>) -> Settings {
        let own = self.uses_stories() && self.init.is_none();
        let context = self.context.unwrap_or(config.positions.min(1024));
        let batch = match self.batch {
            None if own => stories::BATCH,
            None => 4,
            Some(Batch::Count(batch)) => batch,
            // until it is chosen
            Some(Batch::Auto) => 1,
        };
        let val_every = self.val_every.unwrap_or(if own { stories::VAL_EVERY } else { 250 });
        let path = |p: &PathBuf| p.display().to_string();
        Settings {
            model: ModelSettings {
                positions: config.positions,
                vocab: config.vocab,
                layers: config.layers,
                heads: config.heads,
                channels: config.channels,
                init: self.init.as_ref().map(path),
            },
            data: DataSettings {
                text: self.text.iter().map(path).collect(),
                shards: self.data.clone(),
                validation: self.val.clone(),
                stories_bytes: self.uses_stories().then_some(stories::BYTES),
                tokenizer: tokenizer.map(|t| t.name().to_owned()),
                shuffle: !(self.no_shuffle || self.overfit_one_batch),
                overfit_one_batch: self.overfit_one_batch,
                emulate_ranks: self.emulate_ranks.filter(|&ranks| ranks != 1),
            },
            train: TrainSettings {
                batch,
                context,
                tokens_per_step: self
                    .tokens_per_step
                    .unwrap_or(batch.saturating_mul(context).saturating_mul(self.emulate_ranks.unwrap_or(1).max(1))),
                steps: self.steps.unwrap_or(if own { stories::STEPS } else { UNKNOWN_STEPS }),
                schedule: self.schedule,
                lr: self.lr.unwrap_or(if own { stories::LR } else { 6e-4 }),
                warmup: self.warmup.unwrap_or(if own && self.steps.is_none() { stories::WARMUP } else { 0 }),
                final_lr_frac: self.final_lr_frac,
                weight_decay: self.weight_decay,
                clip: self.clip,
                skip_loss_z: self.skip_loss_z,
                skip_norm_z: self.skip_norm_z,
                beta1: self.beta1,
                beta2: self.beta2,
                eps: self.eps,
                precision: if self.precision == Precision::F16 { "f16" } else { "f32" }.into(),
                seed: self.seed,
                val_every,
                val_rows: None,
            },
            run: RunSettings {
                sample_every: self.sample_every.unwrap_or(if own { self.steps.unwrap_or(stories::STEPS) } else { 0 }),
                hellaswag: self.hellaswag.as_ref().map(path),
                hellaswag_every: self.hellaswag.as_ref().map(|_| self.hellaswag_every.unwrap_or(val_every)),
                device: self.device.clone(),
                adapter: None,
                compare: self.compare.as_ref().map(path),
                peak_tflops: self.peak_tflops.and_then(|peak| match peak {
                    Peak::Given(tflops) => Some(tflops),
                    Peak::Measure => None,
                }),
                price_per_hour: self.price_per_hour,
                checkpoint_every: self.checkpoint_every.to_string(),
                keep: self.keep as usize,
                keep_every: self.keep_every as usize,
                recompute: self.recompute.name().into(),
                on_disk_full: if self.on_disk_full == WhenFull::Stop { "stop" } else { "pause" }.into(),
                finished: false,
            },
        }
    }

    /// Rows of a validation: the limit in tokens wins over the number of batches.
    fn val_rows(&self, settings: &TrainSettings) -> Option<usize> {
        let steps = self.val_steps.or(self.uses_stories().then_some(stories::VAL_STEPS));
        match (self.val_limit, steps, &self.data) {
            (Some(tokens), _, _) => Some((tokens / settings.context).max(1)),
            (None, Some(steps), _) => Some(steps.saturating_mul(settings.batch)),
            (None, None, Some(_)) => Some((VAL_TOKENS / settings.context).max(1)),
            (None, None, None) => None,
        }
    }
}

/// Trains.
pub fn run(args: &Args, aside: &[String]) -> Result<()> {
    let stop = signals::listen()?;
    let load = |dir: &PathBuf| weights::load(dir).map(|(weights, info, _)| (dir.clone(), weights, info));
    // a run that has checkpoints does without the weights it began with, which may be gone
    let noted = args.noted_start();
    let loaded = args.init.as_ref().filter(|_| noted.is_none()).map(load).transpose()?;
    let read = loaded.as_ref().map(|(path, weights, info)| Start {
        path: path.clone(),
        config: weights.config,
        info: info.clone(),
    });
    let start = noted.or(read);
    let Resolved { mut settings, config, tokenizer } = args.resolve(start.as_ref())?;
    args.choose_precision(&mut settings)?;
    let planner = args.choose_batch(&mut settings, || gpu::adapter::find(args.device.as_deref()).map(Gpu::dry))?;
    aside.iter().for_each(|text| say!("recipe   {text}"));

    let Look { loader, rows, baseline, summary } = args.look(&mut settings, &config, tokenizer)?;
    let beside = Beside {
        questions: args.questions(tokenizer, &config, settings.train.context)?,
        reference: args.compare.as_deref().map(History::read).transpose()?,
        measures_peak: args.peak_tflops == Some(Peak::Measure),
    };

    let (tuned, folder) = (RefCell::new(Found::Nothing), RefCell::new(PathBuf::new()));
    // what was read for the plan the first device need not read again
    let planner = Cell::new(planner);
    let open = || {
        let mut gpu = Gpu::open(&Options {
            device: args.device.clone(),
            checked: args.checked,
            matrices: settings.elem() == Elem::F16,
            unrepaired: args.no_spirv_repair,
            ..Options::default()
        })?;
        precision::check(settings.elem(), &gpu.caps)?;
        tuned.replace(tune::load(&mut gpu.caps));
        let gpu = match planner.take() {
            Some(planner) => gpu.adopting(planner),
            None => gpu,
        };
        check_memory(&gpu, &settings, args.memory)?;
        Ok(gpu)
    };
    // what was read for its shape, once; after that it is read again
    let loaded = Cell::new(loaded.map(|(_, weights, _)| weights));
    let first = || match (loaded.take(), &args.init) {
        (Some(weights), _) => Ok(weights),
        (None, Some(path)) => weights::load(path).map(|(weights, ..)| weights),
        (None, None) => Ok(init::init(config, args.seed)),
    };
    let header = |trainer: &Trainer, dir: &Path| {
        folder.replace(dir.to_owned());
        header::print(&settings, &summary, trainer, dir, &tuned.replace(Found::Nothing));
    };
    let mut terminal = Terminal::new(settings.train.steps, &header);
    let session = Session {
        settings: &settings,
        loader: Some(loader),
        rows,
        tokenizer,
        baseline,
        beside,
        // without a trailing slash, which would put DIR.N inside DIR
        out: args.out.as_ref().map(|out| out.canonicalize().unwrap_or_else(|_| out.components().collect())),
        restart: args.restart,
        open: &open,
        weights: &first,
        stop: &stop,
        hang: Some(hang),
    };
    let Some(outcome) = session.train(&mut terminal)? else { return Ok(()) };
    drop(terminal);

    let out = folder.take();
    say!("saved {}", out.join("model").display());
    if let (Some(baseline), Some(loss)) = (baseline, outcome.val_loss) {
        say!(
            "validation {loss:.4} nats a byte; order-2 Markov model {:.4}; entropy rate of the text {:.4}",
            baseline.markov,
            baseline.entropy
        );
    }
    if let Some(sample) = outcome.sample {
        say!("sample:\n{sample}");
        if baseline.is_some() {
            let (known, all) = known_words(&sample);
            say!("{known} of the sample's {all} words are words of the grammar");
        }
    }
    say!("go on: wgpt generate --from {} \"...\"", out.display());
    Ok(())
}

/// Ends the process: the thread that waits for the device may never come back.
fn hang(dir: &Path, what: &str) {
    let text = format!("train: {what}; the same command goes on from the last checkpoint in {}", dir.display());
    let (path, note) = (dir.join("hang.txt"), format!("{text}\n"));
    // on a thread of its own: the disk may hang too
    let noted = std::thread::spawn(move || std::fs::write(path, note));
    std::thread::sleep(std::time::Duration::from_secs(1));
    drop(noted);
    // a reader that has gone away must not keep the process
    let _ = writeln!(std::io::stderr(), "error: {text}");
    std::process::exit(4);
}
