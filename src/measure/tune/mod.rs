//! Tries matrix and attention kernels on an adapter at a model's shapes, and records the fastest ones.
//!
//! A record contains, for every job of a model at a batch size, the fastest kernel with correct results. It is a file
//! in the user's cache, one per adapter and driver, which is read when a run starts; see [`crate::ops::matmul::choose`]
//! and [`crate::ops::attention::choose`]. Kernels are tried only by `wgpt tune`.
//!
//! # Conditions of a correct result
//! 1. It is not all zeros. If the plain f32 kernel's result is, the device computes nothing, and tuning ends.
//! 2. All of its elements are within a stated tolerance of the plain f32 kernel's. They are compared on the device, so
//!    a kernel
//!    that is wrong in one row of a thousand is found. Where they disagree, f64 decides which one is wrong there.
//! 3. Sampled rows of products, and two whole heads of attention, are within the tolerance of f64, computed on the
//!    host. The
//!    plain kernel is checked in the same way before any candidate runs.
//!
//! Products have the same fused ends as in training ([`ends`]), whose second results are compared too.
//!
//! A time of 0 ms, or a time that implies a rate above the measured roof, is also a fault ([`race`]).

mod attention;
mod ceiling;
mod check;
mod ends;
mod operands;
mod product;
mod race;
mod record;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fmt::{self, Display};
use std::time::{Duration, Instant};

use crate::cases::{self, BenchShape, Stored};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Elem, Gpu};
use crate::model::Config;
use crate::ops::attention::{Block, Entry};
use crate::ops::matmul::{Algorithm, PRODUCTS, Product, choose};

use crate::measure::predict::card::Card;
use attention::AttentionBench;
use product::ProductBench;
use race::{Bench, NO_FAULTS, Planted, Race};

pub use attention::AttentionShape;
pub use ceiling::Ceiling;
pub use race::{RaceResult, Trial};
pub use record::{LoadedRecord, Record, load, load_all, path, prepare, save};

/// An entry of a record: the kernel for a job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// A matrix kernel.
    Product(Algorithm),
    /// An attention kernel on matrix units.
    Attention(Block),
}

impl Choice {
    /// Returns the JSON of a record.
    ///
    /// # Errors
    /// [`Error::Gpu`] if it cannot be written.
    pub fn text(&self) -> Result<String> {
        let text = match self {
            Self::Product(algorithm) => serde_json::to_string(algorithm),
            Self::Attention(block) => serde_json::to_string(block),
        };
        text.map_err(|e| Error::gpu(e.to_string()))
    }
}

impl Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Product(algorithm) => algorithm.fmt(f),
            Self::Attention(block) => write!(f, "attention {block}"),
        }
    }
}

/// The operation of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A product, and its rows, columns and depth.
    Product(Product, [usize; 3]),
    /// A kernel of f16 attention.
    Attention(Entry, AttentionShape),
}

/// One operation of a step for which several kernels exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The layer: `qkv`, `attproj`, `fc`, `fcproj`, `head` or `attention`.
    pub layer: &'static str,
    /// The operation.
    pub work: Work,
    /// Number of times per step.
    pub times: usize,
}

impl Job {
    /// Returns whether it is a product and not attention.
    #[must_use]
    pub fn is_product(&self) -> bool {
        matches!(self.work, Work::Product(..))
    }

    /// Returns the floating-point operations of one run.
    #[must_use]
    pub fn flops(&self) -> f64 {
        match self.work {
            Work::Product(_, shape) => 2.0 * shape.iter().map(|&x| x as f64).product::<f64>(),
            Work::Attention(entry, s) => {
                let products = [2.0, 3.0, 4.0][entry as usize];
                products * (s.batch * s.heads * s.head_size * s.positions) as f64 * (s.positions + 1) as f64
            }
        }
    }

    /// Returns the floating-point operations per step.
    #[must_use]
    pub fn step_flops(&self) -> f64 {
        self.flops() * self.times as f64
    }

    /// Returns its key in a record.
    #[must_use]
    pub fn key(&self, elem: Elem) -> String {
        match self.work {
            Work::Product(product, shape) => choose::key(product, elem, shape),
            Work::Attention(entry, s) => crate::ops::attention::key(entry, s.head_size, s.positions),
        }
    }

    /// Returns the kernel that the adapter's record names, if the adapter can run it.
    #[must_use]
    pub fn recorded(&self, caps: &Caps, elem: Elem) -> Option<Choice> {
        let text = caps.tuned.get(&self.key(elem))?;
        let choice = match self.work {
            Work::Product(..) => serde_json::from_str(text).map(Choice::Product),
            Work::Attention(..) => serde_json::from_str(text).map(Choice::Attention),
        };
        let recorded = choice.ok()?;
        let is_it = |candidate: &Choice| match (candidate, &recorded) {
            // fields that follow from the adapter may differ between versions
            (Choice::Product(candidate), Choice::Product(recorded)) => candidate.has_sizes_of(recorded),
            (candidate, recorded) => candidate == recorded,
        };
        self.candidates(caps, elem).into_iter().find(is_it)
    }

    /// Returns the candidate kernels of an adapter without a record: the default one first, then the most promising
    /// ones.
    #[must_use]
    pub fn candidates(&self, caps: &Caps, elem: Elem) -> Vec<Choice> {
        match self.work {
            Work::Product(product, shape) => {
                let chosen = choose::choose(caps, product, elem, shape);
                let mut list = choose::candidates(caps, elem);
                list.retain(|algorithm| *algorithm != chosen);
                list.insert(0, chosen);
                list.into_iter().map(Choice::Product).collect()
            }
            Work::Attention(entry, s) => {
                let blocks = crate::ops::attention::candidates(caps, entry, s.head_size);
                blocks.into_iter().map(Choice::Attention).collect()
            }
        }
    }
}

/// Writes layer, operation and shape: `qkv forward 4096x2304x768`.
impl Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.work {
            Work::Product(product, [rows, columns, depth]) => {
                let product = match product {
                    Product::Forward => "forward",
                    Product::BackwardInp => "backward_inp",
                    Product::BackwardWeight => "backward_weight",
                };
                write!(f, "{} {product} {rows}x{columns}x{depth}", self.layer)
            }
            Work::Attention(entry, AttentionShape { batch, positions, heads, head_size }) => {
                write!(f, "{} {} {batch}x{positions}x{heads}x{head_size}", self.layer, entry.name())
            }
        }
    }
}

/// Returns the jobs of a step of `batch` sequences of `positions` tokens, those with the most operations first: fifteen
/// products, and the three attention kernels if f16 attention runs on matrix units.
#[must_use]
pub fn jobs(caps: &Caps, config: &Config, elem: Elem, [batch, positions]: [usize; 2]) -> Vec<Job> {
    let shape = BenchShape { config: *config, batch, context: positions, flat: 0 };
    let of = |layer: cases::matmul::Layer| {
        let chunks = shape.rows().div_ceil(layer.shape[0].max(1));
        let times = if layer.name == "head" { chunks } else { config.layers };
        PRODUCTS.map(|product| {
            let work = Work::Product(product, layer.shape_of(product));
            Job { layer: layer.name, work, times }
        })
    };
    let mut jobs: Vec<Job> = cases::matmul::layers(&shape, caps, Stored(elem)).into_iter().flat_map(of).collect();
    let sizes = AttentionShape { batch, positions, heads: config.heads, head_size: config.head_size() };
    let attention = Entry::ALL
        .map(|entry| Job { layer: "attention", work: Work::Attention(entry, sizes), times: config.layers })
        .into_iter()
        .filter(|job| elem == Elem::F16 && !job.candidates(caps, elem).is_empty());
    jobs.extend(attention);
    jobs.sort_by(|a, b| b.step_flops().total_cmp(&a.step_flops()));
    jobs
}

/// Runs a small product by the plain f32 kernel and compares it with f64.
///
/// # Errors
/// [`Error::Device`] if the device computes nothing, or wrong results.
pub fn check_device(gpu: &mut Gpu) -> Result<()> {
    let before = std::mem::take(&mut gpu.caps.tuned);
    let checked = ProductBench::new(gpu, "head", Product::Forward, [64, 64, 64], Elem::F32).map(|_| ());
    gpu.caps.tuned = before;
    checked
}

/// Tries the adapter's candidate kernels on a job: the default one first, then the recorded one, then the others, until
/// `time` is over or `stop` returns true. The time includes making the operands. Kernels that cannot be built, with
/// wrong results or impossible times are refused. Trials include the times that are predicted for `card`.
///
/// # Errors
/// [`Error::Memory`] if the operands do not fit; [`Error::Device`] if the plain kernel is wrong; [`Error::Lost`].
pub fn try_all(
    gpu: &mut Gpu,
    job: &Job,
    elem: Elem,
    (ceiling, card): (&RefCell<Ceiling>, Option<&Card>),
    time: Duration,
    stop: &dyn Fn() -> bool,
) -> Result<RaceResult> {
    Attempt { job, elem, ceiling, card, time, stop, planted: NO_FAULTS }.run(gpu, None)
}

/// The arguments of [`try_all`], and the faults that tests plant.
struct Attempt<'a> {
    job: &'a Job,
    elem: Elem,
    ceiling: &'a RefCell<Ceiling>,
    card: Option<&'a Card>,
    time: Duration,
    stop: &'a dyn Fn() -> bool,
    planted: Planted<'a>,
}

impl Attempt<'_> {
    /// Tries these candidates, or all of the job's.
    fn run(self, gpu: &mut Gpu, candidates: Option<Vec<Choice>>) -> Result<RaceResult> {
        let begin = Instant::now();
        let recorded = self.job.recorded(&gpu.caps, self.elem);
        // without its record the adapter uses the plain kernels
        let before = std::mem::take(&mut gpu.caps.tuned);
        let bench = match self.job.work {
            Work::Product(product, shape) => ProductBench::new(gpu, self.job.layer, product, shape, self.elem)
                .map(|bench| Box::new(bench) as Box<dyn Bench>),
            Work::Attention(entry, sizes) => {
                AttentionBench::new(gpu, entry, sizes).map(|bench| Box::new(bench) as Box<dyn Bench>)
            }
        };
        // cached bind groups would keep the operands of the plain kernel, and of every job, in the device's memory
        gpu.forget_bindings();
        let Self { job, elem, ceiling, card, time, stop, planted } = self;
        let mut candidates = candidates.unwrap_or_else(|| job.candidates(&gpu.caps, elem));
        if let Some(at) = candidates.iter().position(|choice| Some(*choice) == recorded).filter(|at| *at > 1) {
            // right after the default, so that the recorded kernel is tried even if there is little time
            candidates[1..=at].rotate_right(1);
        }
        let time = time.saturating_sub(begin.elapsed());
        let raced = bench.and_then(|bench| {
            Race { bench: bench.as_ref(), job, elem, candidates, ceiling, card, planted }.run(gpu, time, stop)
        });
        gpu.caps.tuned = before;
        gpu.forget_bindings();
        raced
    }
}

/// Smallest gain, as a ratio of times, for which another kernel replaces the default.
///
/// The clocks of NVIDIA's GPUs change in steps of 15 MHz, about 1 %. Two kernels that are timed one after the other may
/// be a step apart in either direction. A smaller difference may be noise, and the default kernel is the one that most
/// machines run.
pub const MIN_GAIN: f64 = 1.02;

/// Returns the fastest correct trial and its milliseconds, or the default one, which is the first, if it is less than
/// [`MIN_GAIN`] times slower.
#[must_use]
pub fn best(trials: &[Trial]) -> Option<(&Trial, f64)> {
    let right = || trials.iter().filter_map(|trial| trial.outcome.as_ref().ok().map(|ms| (trial, *ms)));
    let fastest = right().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let table = trials.first().and_then(|trial| trial.outcome.as_ref().ok().map(|ms| (trial, *ms)));
    table.filter(|table| table.1 < MIN_GAIN * fastest.1).or(Some(fastest))
}
