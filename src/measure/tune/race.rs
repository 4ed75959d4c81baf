//! Candidates of one job against each other: each is checked, then all are timed in turn.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::gpu::{Arithmetic, Command, Elem, Gpu, KernelId, Program, Tensor, Timing};
use crate::measure::predict;
use crate::measure::predict::card::Card;
use crate::measure::predict::code::Codes;
use crate::measure::roofs::{WARM_UP, warm_up};
use crate::measure::statistics::spilling;
use crate::measure::table::number;

use crate::measure::tune::check::{Verdict, plain_error};
use crate::measure::tune::{Ceiling, Choice, Job};

/// Runs that are timed, of which the fastest counts.
const RUNS: usize = 5;
/// A kernel that takes so many times as long as the fastest in its first run is not run again.
const HOPELESS: f64 = 3.0;

/// A job's operands on the device, and the check of its results.
pub(super) trait Bench {
    /// Records the job with the kernels that the adapter's record names.
    fn record(&self, gpu: &Gpu) -> Result<Program>;
    /// Whether a kernel of the program is a part of the job.
    fn is_timed(&self, kernel: &KernelId) -> bool;
    /// A result of the job.
    fn output(&self) -> &Tensor;
    /// Runs the program and compares all that it makes.
    fn check(&self, gpu: &Gpu, program: &Program) -> Result<Verdict>;

    /// The kernel that does the job.
    fn kernel<'p>(&self, program: &'p Program) -> Option<&'p KernelId> {
        program.commands.iter().filter_map(Command::kernel).find(|kernel| self.is_timed(kernel))
    }

    /// The arithmetic that bounds that kernel.
    fn arithmetic(&self, program: &Program) -> Arithmetic {
        self.kernel(program).map_or(Arithmetic::F32, KernelId::arithmetic)
    }

    /// The name of that kernel.
    fn name(&self, program: &Program) -> String {
        self.kernel(program).map(KernelId::name).unwrap_or_default()
    }
}

/// The outcome of one kernel.
#[derive(Debug, Clone)]
pub struct Trial {
    /// Its entry in a record.
    pub choice: Choice,
    /// The kernel's name; empty if it could not be built.
    pub kernel: String,
    /// The arithmetic that bounds it.
    pub arithmetic: Arithmetic,
    /// Milliseconds that are predicted for the card that the caller names.
    pub predicted_ms: Option<f64>,
    /// Milliseconds of its fastest run, or why it is refused.
    pub outcome: std::result::Result<f64, String>,
}

/// The kernels of one job that were tried, the table's first, and how many were not.
#[derive(Debug, Clone)]
pub struct Raced {
    /// Those that were tried.
    pub trials: Vec<Trial>,
    /// Candidates for which there was no time.
    pub left: usize,
}

impl Raced {
    /// Whether the best of them may go into a record. Not if time ran out behind the first, the table's: what an earlier
    /// tuning found is better founded.
    #[must_use]
    pub fn is_a_race(&self) -> bool {
        self.left == 0 || self.trials.len() > 1
    }
}

/// What tests change of a candidate, by its kernel's name: its program, which has such an output, and the time it took.
pub(super) struct Planted<'a> {
    pub(super) program: &'a dyn Fn(&Gpu, &str, Program, &Tensor) -> Program,
    pub(super) ms: &'a dyn Fn(&str, f64) -> f64,
}

/// Nothing.
pub(super) const NOTHING: Planted = Planted { program: &|_, _, program, _| program, ms: &|_, ms| ms };

/// One job's candidates on an adapter.
pub(super) struct Race<'a> {
    pub(super) bench: &'a dyn Bench,
    pub(super) job: &'a Job,
    pub(super) elem: Elem,
    pub(super) candidates: Vec<Choice>,
    pub(super) ceiling: &'a RefCell<Ceiling>,
    pub(super) card: Option<&'a Card>,
    pub(super) planted: Planted<'a>,
}

impl Race<'_> {
    /// Checks the candidates until `time` is over or `stop` says so, the first in any case, and times them.
    ///
    /// # Errors
    /// [`Error::Device`] if the plain kernel is wrong; [`Error::Lost`], [`Error::Memory`].
    pub(super) fn run(&self, gpu: &mut Gpu, time: Duration, stop: &dyn Fn() -> bool) -> Result<Raced> {
        let (begin, mut trials, mut programs) = (Instant::now(), Vec::<Trial>::new(), Vec::new());
        let mut left = 0;
        warm(gpu)?;
        for (at, &choice) in self.candidates.iter().enumerate() {
            if !trials.is_empty() && (begin.elapsed() > time || stop()) {
                left = self.candidates.len() - at;
                break;
            }
            let program = match self.program(gpu, choice) {
                Ok(program) => program,
                Err(e) => {
                    let outcome = Err(refusal(e)?);
                    let (kernel, arithmetic) = (String::new(), Arithmetic::F32);
                    trials.push(Trial { choice, kernel, arithmetic, predicted_ms: None, outcome });
                    continue;
                }
            };
            let kernel = self.bench.name(&program);
            // where windows or few rows decide, several candidates come to one kernel
            if trials.iter().any(|trial| trial.kernel == kernel) {
                continue;
            }
            let predicted_ms = self.card.and_then(|card| self.predicted(card, &program));
            let program = (self.planted.program)(gpu, &kernel, program, self.bench.output());
            let outcome = match self.first(gpu, &kernel, &program) {
                Ok(outcome) => outcome,
                Err(e) => Err(refusal(e)?),
            };
            let arithmetic = self.bench.arithmetic(&program);
            trials.push(Trial { choice, kernel, arithmetic, predicted_ms, outcome });
            programs.push((trials.len() - 1, program));
        }
        // while kernels were built the device had nothing to do
        warm(gpu)?;
        for _ in 1..RUNS {
            for (at, program) in &programs {
                let fastest =
                    trials.iter().filter_map(|t| t.outcome.as_ref().ok()).fold(f64::INFINITY, |a, b| a.min(*b));
                let trial = &mut trials[*at];
                let Ok(before) = trial.outcome else { continue };
                if before > HOPELESS * fastest || stop() {
                    continue;
                }
                trial.outcome = self.timed(gpu, &trial.kernel, program)?.map(|ms| ms.min(before));
            }
        }
        Ok(Raced { trials, left })
    }

    /// The program of a candidate, chosen the very way that a run chooses it.
    fn program(&self, gpu: &mut Gpu, choice: Choice) -> Result<Program> {
        let record = BTreeMap::from([(self.job.key(self.elem), choice.text()?)]);
        let before = std::mem::replace(&mut gpu.caps.tuned, Arc::new(record));
        let program = self.bench.record(gpu);
        gpu.caps.tuned = before;
        program
    }

    /// Milliseconds that the job's kernels are predicted to take, if there is machine code of all of them.
    fn predicted(&self, card: &Card, program: &Program) -> Option<f64> {
        let (rows, missing) = predict::rows(card, Codes::committed(), program);
        let timed = rows.iter().filter(|row| row.id.as_ref().is_some_and(|kernel| self.bench.is_timed(kernel)));
        missing.is_empty().then(|| timed.map(|row| row.ms).sum())
    }

    /// Checks a candidate and times it once.
    fn first(&self, gpu: &Gpu, kernel: &str, program: &Program) -> Result<std::result::Result<f64, String>> {
        match self.bench.check(gpu, program)? {
            Verdict::Right => match self.spilled(gpu, program) {
                Some(figures) => Ok(Err(format!("its registers do not suffice: {figures}"))),
                None => self.timed(gpu, kernel, program),
            },
            Verdict::Wrong(fault) => Ok(Err(fault)),
            Verdict::PlainWrong(fault) => Err(plain_error(gpu, "of f32", &fault)),
        }
    }

    /// The driver's figures on spills of the job's kernels, if it shows any.
    fn spilled(&self, gpu: &Gpu, program: &Program) -> Option<String> {
        let found = spilling(gpu, program);
        found.into_iter().find(|(kernel, _)| self.bench.is_timed(kernel)).map(|(_, figures)| figures)
    }

    /// Milliseconds of one run, or why no device can have been that fast.
    fn timed(&self, gpu: &Gpu, kernel: &str, program: &Program) -> Result<std::result::Result<f64, String>> {
        let ms = if gpu.caps.timestamps {
            let timings = program.time(gpu)?;
            let is_timed = |timing: &&Timing| {
                program.commands[timing.command].kernel().is_some_and(|kernel| self.bench.is_timed(kernel))
            };
            timings.iter().filter(is_timed).map(crate::gpu::timing::Timing::ms).sum()
        } else {
            gpu.wait()?;
            let begin = Instant::now();
            program.run(gpu)?;
            gpu.wait()?;
            begin.elapsed().as_secs_f64() * 1e3
        };
        let ms = (self.planted.ms)(kernel, ms);
        if ms <= 0.0 {
            return Ok(Err(format!("{ms} ms by the device's clock")));
        }
        let rate = self.job.flops() / ms * 1e3;
        let arithmetic = self.bench.arithmetic(program);
        let refused = self.ceiling.borrow_mut().refuses(gpu, arithmetic, rate, margin(gpu.caps.software))?;
        if let Some(roof) = refused {
            let [rate, roof] = [rate, roof].map(|rate| number(rate * 1e-12));
            return Ok(Err(format!("{rate} TFLOP/s, the measured roof is {roof}")));
        }
        Ok(Ok(ms))
    }
}

/// Raises the clocks of a GPU; a software adapter has none of its own.
fn warm(gpu: &Gpu) -> Result<()> {
    if gpu.caps.software { Ok(()) } else { warm_up(gpu, WARM_UP) }
}

/// How far a kernel may be above its roof: a GPU's clocks move by a quarter while the one and the other are measured; the
/// cores of a software adapter have other work to do meanwhile.
fn margin(software: bool) -> f64 {
    if software { 4.0 } else { 1.25 }
}

/// Why a candidate is refused, or the error that ends tuning.
fn refusal(error: Error) -> Result<String> {
    match error {
        Error::Device(_) | Error::Lost(_) => Err(error),
        error => Ok(error.to_string()),
    }
}
