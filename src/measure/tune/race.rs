//! Compares the candidates of one job: checks each of them, then times all of them in turn.

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

/// Number of timed runs; the fastest one counts.
const RUNS: usize = 5;
/// A kernel whose first run takes longer than this multiple of the fastest is not run again.
const HOPELESS: f64 = 3.0;

/// A job's operands on the device, and the checks of its results.
pub(super) trait Bench {
    /// Records the job with the kernels of the adapter's record.
    fn record(&self, gpu: &Gpu) -> Result<Program>;
    /// Returns whether a kernel of the program is part of the job.
    fn is_timed(&self, kernel: &KernelId) -> bool;
    /// Returns a result of the job.
    fn output(&self) -> &Tensor;
    /// Runs the program and checks all of its results.
    fn check(&self, gpu: &Gpu, program: &Program) -> Result<Verdict>;

    /// Returns the kernel that does the job.
    fn kernel<'p>(&self, program: &'p Program) -> Option<&'p KernelId> {
        program.commands.iter().filter_map(Command::kernel).find(|kernel| self.is_timed(kernel))
    }

    /// Returns the arithmetic that bounds the job's kernel.
    fn arithmetic(&self, program: &Program) -> Arithmetic {
        self.kernel(program).map_or(Arithmetic::F32, KernelId::arithmetic)
    }

    /// Returns the name of the job's kernel.
    fn name(&self, program: &Program) -> String {
        self.kernel(program).map(KernelId::name).unwrap_or_default()
    }
}

/// The result of trying one kernel.
#[derive(Debug, Clone)]
pub struct Trial {
    /// Its entry in a record.
    pub choice: Choice,
    /// The kernel's name; empty if it could not be built.
    pub kernel: String,
    /// Kind of arithmetic that bounds it.
    pub arithmetic: Arithmetic,
    /// Predicted milliseconds on the card, if the caller names one.
    pub predicted_ms: Option<f64>,
    /// Milliseconds of its fastest run, or the reason for its refusal.
    pub outcome: std::result::Result<f64, String>,
}

/// The results of trying the kernels of one job.
#[derive(Debug, Clone)]
pub struct RaceResult {
    /// The tried kernels, the default one first.
    pub trials: Vec<Trial>,
    /// Number of candidates that were not tried because time ran out.
    pub left: usize,
}

impl RaceResult {
    /// Returns whether the best kernel may be recorded. It may not if time ran out after the default one, because the
    /// record of an earlier tuning is then more reliable.
    #[must_use]
    pub fn may_be_recorded(&self) -> bool {
        self.left == 0 || self.trials.len() > 1
    }
}

/// Faults that tests plant into candidates, by kernel name: changes of the program, given its output, and of the time.
pub(super) struct Planted<'a> {
    pub(super) program: &'a dyn Fn(&Gpu, &str, Program, &Tensor) -> Program,
    pub(super) ms: &'a dyn Fn(&str, f64) -> f64,
}

/// No faults.
pub(super) const NO_FAULTS: Planted = Planted { program: &|_, _, program, _| program, ms: &|_, ms| ms };

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
    /// Checks candidates until `time` is over or `stop` returns true, but always the first one, and times them.
    ///
    /// # Errors
    /// [`Error::Device`] if the plain kernel is wrong; [`Error::Lost`], [`Error::Memory`].
    pub(super) fn run(&self, gpu: &mut Gpu, time: Duration, stop: &dyn Fn() -> bool) -> Result<RaceResult> {
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
            // several candidates may result in the same kernel if windows or few rows decide
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
        // the device was idle while kernels were built
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
        Ok(RaceResult { trials, left })
    }

    /// Records a candidate's program, with the kernel chosen as in a run.
    fn program(&self, gpu: &mut Gpu, choice: Choice) -> Result<Program> {
        let record = BTreeMap::from([(self.job.key(self.elem), choice.text()?)]);
        let before = std::mem::replace(&mut gpu.caps.tuned, Arc::new(record));
        let program = self.bench.record(gpu);
        gpu.caps.tuned = before;
        program
    }

    /// Returns the predicted milliseconds of the job's kernels, if all of them have machine code.
    fn predicted(&self, card: &Card, program: &Program) -> Option<f64> {
        let (rows, missing) = predict::rows(card, Codes::committed(), program);
        let timed = rows.iter().filter(|row| row.id.as_ref().is_some_and(|kernel| self.bench.is_timed(kernel)));
        missing.is_empty().then(|| timed.map(|row| row.ms).sum())
    }

    /// Checks a candidate and times it once.
    fn first(&self, gpu: &Gpu, kernel: &str, program: &Program) -> Result<std::result::Result<f64, String>> {
        match self.bench.check(gpu, program)? {
            Verdict::Right => match self.spilled(gpu, program) {
                Some(figures) => Ok(Err(format!("spills registers: {figures}"))),
                None => self.timed(gpu, kernel, program),
            },
            Verdict::Wrong(fault) => Ok(Err(fault)),
            Verdict::PlainWrong(fault) => Err(plain_error(gpu, "of f32", &fault)),
        }
    }

    /// Returns the driver's statistics of register spills in the job's kernels, if there are any.
    fn spilled(&self, gpu: &Gpu, program: &Program) -> Option<String> {
        let found = spilling(gpu, program);
        found.into_iter().find(|(kernel, _)| self.bench.is_timed(kernel)).map(|(_, figures)| figures)
    }

    /// Returns the milliseconds of one run, or the reason why the time is impossible.
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

/// Warms up a GPU to raise its clocks. Software adapters need no warm-up.
fn warm(gpu: &Gpu) -> Result<()> {
    if gpu.caps.software { Ok(()) } else { warm_up(gpu, WARM_UP) }
}

/// Returns the factor by which a kernel may exceed its roof. A GPU's clocks may change by a quarter between the two
/// measurements; the cores of a software adapter may have other work during one of them.
fn margin(software: bool) -> f64 {
    if software { 4.0 } else { 1.25 }
}

/// Returns the reason for refusing a candidate, or the error if it ends tuning.
fn refusal(error: Error) -> Result<String> {
    match error {
        Error::Device(_) | Error::Lost(_) => Err(error),
        error => Ok(error.to_string()),
    }
}
