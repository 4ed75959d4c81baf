//! The training loop of a run: steps, validation, samples, records and the status line.

mod measure;
mod samples;
mod screen;
mod status;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::data::hellaswag::Example;
use crate::data::{BatchPosition, Batches, Repeat, Rows, Tokenizer};
use crate::error::{Error, Fault, Result};
use crate::infer::generator::Generator;
use crate::ops::stepcontrol::Report;
use crate::run::checkpoint::{MadeBy, Pending, Saved, Saver, StateFile};
use crate::run::clock::Clock;
use crate::run::data_files::FileHasher;
use crate::run::folder::Folder;
use crate::run::phase::{CurrentPhase, Phase, PhaseGuard};
use crate::run::records::Metric;
use crate::run::report::Reporter;
use crate::run::team::Team;
use crate::train::dataset::Baseline;
use crate::train::settings::{Settings, WhenFull, compare};
use measure::Measured;
pub use samples::known_words;
pub use screen::{Screen, StepLine};

/// Time between attempts to write.
const RETRY: Duration = Duration::from_secs(1);
/// Time between two messages about the same pause.
const REPEAT_MESSAGE: Duration = Duration::from_secs(60);

/// A run, without its devices.
pub struct Run<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// Training batches.
    pub loader: Batches,
    /// The batches of one step, if every step uses the same ones.
    pub repeat: Option<Repeat>,
    /// Validation rows, if there are any.
    pub rows: Option<Rows>,
    /// HellaSwag's questions, if the run is scored on them.
    pub questions: Arc<[Example]>,
    /// Tokenizer for samples and the saved model.
    pub tokenizer: Option<Tokenizer>,
    /// Reference losses of generated stories.
    pub baseline: Option<Baseline>,
    /// Hashes the data files. Dropped before the folder's lock is released.
    pub data_files: Option<FileHasher>,
    /// The run's folder with its records.
    pub folder: Folder,
    /// Figures of the status line, and `report.html`.
    pub reporter: Reporter,
    /// Writes checkpoints.
    pub saver: Saver,
    /// Steps that were computed before, with the work that remains after the last of them; none for a run that begins.
    pub done: Option<Done>,
    /// Program, adapter and kernels, on which the bits of the steps depend in addition to settings and data.
    pub made_by: MadeBy,
    /// Returns the name of a signal that asks the run to end, once one has arrived.
    pub stop: &'a dyn Fn() -> Option<&'static str>,
    /// Returns the command that continues the run in a folder.
    pub continues: &'a dyn Fn(&Path) -> String,
    /// The current phase of the run, for the answer to a signal.
    pub phase: CurrentPhase,
    /// Positions in the data at which the batches of the last steps begin.
    pub places: VecDeque<(usize, BatchPosition)>,
    /// The time of the last printed line of a step.
    pub printed: Option<Instant>,
    /// Whether a device was lost and reopened.
    pub rebuilt: bool,
}

/// Steps that a process does not compute, because a checkpoint covers them.
#[derive(Debug, Clone)]
pub struct Done {
    /// Their number.
    pub step: usize,
    /// The work that remains after the last of them.
    pub pending: Option<Pending>,
    /// Whether the last of them was the last step of a run that is now longer.
    pub was_last: bool,
}

/// The results of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Last validation loss, if there is validation.
    pub val_loss: Option<f64>,
    /// Last sample, if samples were asked for.
    pub sample: Option<String>,
}

/// Work that is due after a step, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct After {
    validates: bool,
    scores_hellaswag: bool,
    last: bool,
    samples: bool,
    saves: bool,
}

impl After {
    fn any(self) -> bool {
        self.validates || self.scores_hellaswag || self.last || self.samples || self.saves
    }
}

impl Run<'_> {
    /// Trains to the end and saves the model.
    ///
    /// # Errors
    /// [`Error::Diverged`] after eight skipped steps in a row; [`Error::Stopped`] after a signal; otherwise an error of the
    /// data, the GPU or the disk.
    pub fn train(&mut self, team: &mut Team, screen: &mut dyn Screen) -> Result<Outcome> {
        let first = self.done.as_ref().map_or(0, |done| done.step) + 1;
        let mut clock = Clock::new(first, Instant::now());
        let result = self.steps(team, first, &mut clock, screen);
        if result.is_err() {
            // the records end with the last step that was computed
            while let Ok(Some((report, lap))) = team.timed_report(true) {
                clock.arrive(report, lap, Instant::now());
            }
            clock.share();
            while let Some((report, ms)) = clock.oldest() {
                let _ = self.write(&report, Measured::default(), ms, &mut clock, screen);
            }
            self.reporter.write(true);
        }
        result
    }

    fn steps(&mut self, team: &mut Team, first: usize, clock: &mut Clock, screen: &mut dyn Screen) -> Result<Outcome> {
        self.phase.set(Phase::Training);
        let steps = self.settings.train.steps;
        let schedule = self.settings.schedule();
        let mut generator = match self.settings.run.sample_every {
            0 => None,
            _ => Some(self.generator(team.lead())?),
        };
        let mut outcome = Outcome::default();
        let done = self.done.take();
        let was_last = done.as_ref().is_some_and(|done| done.was_last);
        if let Some(pending) = done.map_or(Some(Pending::BEFORE_TRAINING), |done| done.pending) {
            let after = if first == 1 {
                After {
                    validates: self.rows.is_some(),
                    scores_hellaswag: false,
                    last: false,
                    samples: false,
                    saves: false,
                }
            } else {
                // the checkpoint from which this process resumed is the one that was due
                let after = self.after(first - 1, generator.is_some());
                After {
                    saves: false,
                    validates: after.validates || was_last && self.rows.is_some(),
                    scores_hellaswag: after.scores_hellaswag || was_last && !self.questions.is_empty(),
                    samples: after.samples || was_last && generator.is_some(),
                    ..after
                }
            };
            self.finish(team, &mut generator, first - 1, after, pending, &mut outcome, clock, screen)?;
        }
        crate::kill_point!("run: first step");
        *clock = Clock::new(first, Instant::now());
        for step in first..=steps {
            let (mark, stop) = (self.loader.position(), self.stop);
            let source = Repeat::choose(&mut self.repeat, &mut self.loader);
            if !team.step_unless(source, step, schedule.at(step - 1), &|| stop().is_some())? {
                return Err(self.save_and_stop(team, step - 1, None, &mark, clock, screen)?);
            }
            clock.submitted(step);
            self.remember_batches(step, &mark);
            self.retry_while_disk_full(clock, screen, |run| run.saver.check())?;
            let after = self.after(step, generator.is_some());
            self.record(team, false, clock, screen)?;
            if !after.any() {
                if self.reporter.is_due() {
                    self.report(false, clock)?;
                }
                continue;
            }
            // all steps before this one, then this one with what is measured after it
            while team.outstanding() > 1 {
                self.record(team, true, clock, screen)?;
            }
            if let Some((report, lap)) = team.timed_report(true)? {
                clock.arrive(report, lap, Instant::now());
            }
            clock.share();
            let own = clock.newest();
            if let Err(error) = self.write_timed(clock, screen) {
                // an earlier step ends the run, but this one was computed too
                return Err(self.write_unmeasured(own, error, clock, screen));
            }
            let pending = Pending::new(own.map(|(report, _)| report), own.map_or(0.0, |(_, ms)| ms));
            self.finish(team, &mut generator, step, after, pending, &mut outcome, clock, screen)?;
        }
        self.retry_while_disk_full(clock, screen, |run| run.saver.wait())?;
        self.retry_while_disk_full(clock, screen, |run| run.folder.finish())?;
        self.reporter.set_file(self.folder.file());
        self.report(true, clock)?;
        Ok(outcome)
    }

    /// Returns the work that is due after `step`.
    fn after(&self, step: usize, samples: bool) -> After {
        let every = |n: usize| is_every(step, n);
        let last = step == self.settings.train.steps;
        After {
            validates: self.rows.is_some() && (every(self.settings.run.val_every) || last),
            scores_hellaswag: !self.questions.is_empty() && (every(self.settings.run.hellaswag_every) || last),
            last,
            samples: samples && (every(self.settings.run.sample_every) || last),
            // after the last step too, so that a finished run can be resumed with more steps
            saves: last || self.saver.is_due(step),
        }
    }

    /// Does the work that is due after a step whose report has arrived. If a signal interrupts it, saves the rest as pending.
    #[allow(clippy::too_many_arguments)]
    fn finish(
        &mut self,
        team: &mut Team,
        generator: &mut Option<Generator>,
        step: usize,
        after: After,
        mut pending: Pending,
        outcome: &mut Outcome,
        clock: &mut Clock,
        screen: &mut dyn Screen,
    ) -> Result<()> {
        let was_written = pending.written;
        if !was_written {
            let measured = match self.measure(team, after, clock) {
                Ok(measured) => measured,
                Err(error) => {
                    let own = pending.report().map(|report| (report, pending.ms));
                    return Err(self.write_unmeasured(own, error, clock, screen));
                }
            };
            let Some(Measured { val_loss, hellaswag }) = measured else {
                return self.give_up(team, step, pending, clock, screen);
            };
            outcome.val_loss = val_loss.or(outcome.val_loss);
            crate::kill_point!("run: validated");
            match (pending.report(), val_loss) {
                (Some(report), _) => {
                    self.write(&report, Measured { val_loss, hellaswag }, pending.ms, clock, screen)?;
                }
                (None, Some(loss)) => {
                    let metric = Metric { val_loss: Some(loss as f32), ..Metric::of_step(step) };
                    self.retry_while_disk_full(clock, screen, |run| run.folder.step(&metric))?;
                    self.reporter.push(&metric);
                    let steps = self.settings.train.steps;
                    let whole = format!("step {step}/{steps} | val {loss:.4}");
                    screen.step(&StepLine { whole, more: self.baseline_texts() });
                }
                (None, None) => {}
            }
            pending.written = true;
        }
        if after.last && was_written && !self.measure_last(team, step, after, outcome, clock, screen)? {
            return self.give_up(team, step, pending, clock, screen);
        }
        if after.last {
            let _phase = self.phase.enter(Phase::SavingModel);
            // before the last sample, so that a failure to show something cannot cost the result
            self.retry_while_disk_full(clock, screen, |run| run.saver.wait())?;
            self.retry_while_disk_full(clock, screen, |run| run.folder.sync())?;
            let weights = team.lead().weights()?;
            crate::kill_point!("run: before the model");
            self.retry_while_disk_full(clock, screen, |run| run.save(&weights))?;
            crate::kill_point!("run: after the model");
        }
        if let (true, Some(generator)) = (after.samples, generator) {
            let Some(text) = clock.pause(|| self.sample(generator))? else {
                return self.give_up(team, step, pending, clock, screen);
            };
            self.retry_while_disk_full(clock, screen, |run| run.folder.sample(step, &text))?;
            outcome.sample = Some(text);
            crate::kill_point!("run: sampled");
        }
        if after.saves {
            let mark = self.loader.position();
            let _phase = self.phase.enter(Phase::Saving);
            self.retry_while_disk_full(clock, screen, |run| run.saver.wait())?;
            clock.pause(|| self.checkpoint(team, step, None, after.last, &mark))?;
        }
        self.report(after.last, clock)
    }

    /// Writes the line of a step whose measurements failed with `error`, and returns that error.
    fn write_unmeasured(
        &mut self,
        own: Option<(Report, f64)>,
        error: Error,
        clock: &mut Clock,
        screen: &mut dyn Screen,
    ) -> Error {
        if let Some((report, ms)) = own {
            // the first error is the one to report
            let _ = self.write(&report, Measured::default(), ms, clock, screen);
        }
        error
    }

    /// Saves and stops the run in the middle of the work after `step`.
    fn give_up(
        &mut self,
        team: &mut Team,
        step: usize,
        pending: Pending,
        clock: &mut Clock,
        screen: &mut dyn Screen,
    ) -> Result<()> {
        let mark = self.loader.position();
        Err(self.save_and_stop(team, step, Some(pending), &mark, clock, screen)?)
    }

    /// Runs `work`, which writes, and retries it every second while the disk is full or unmounted, so that this costs time but
    /// not the run. Fails with the first error if the settings ask for that, and on a signal.
    fn retry_while_disk_full<T>(
        &mut self,
        clock: &mut Clock,
        screen: &mut dyn Screen,
        mut work: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let (begin, mut reported) = (Instant::now(), None::<Instant>);
        let mut waits = None::<PhaseGuard>;
        loop {
            let why = match work(self) {
                Err(Error::Output(why)) if self.settings.run.on_disk_full == WhenFull::Pause => why,
                done => {
                    if reported.is_some() {
                        clock.paused(begin.elapsed());
                        screen.line("resumed: the disk accepts writes again");
                    }
                    return done;
                }
            };
            waits.get_or_insert_with(|| self.phase.enter(Phase::Waiting));
            if reported.is_none_or(|at| at.elapsed() >= REPEAT_MESSAGE) {
                screen.line(&format!("paused: {why}; retrying every second, Ctrl-C ends the run"));
                reported = Some(Instant::now());
            }
            for _ in 0..10 {
                if let Some(signal) = (self.stop)() {
                    return Err(Error::output(format!(
                        "{why}; {signal} ended the run while it waited for the disk; to continue from the last checkpoint: {}",
                        (self.continues)(self.folder.dir())
                    )));
                }
                std::thread::sleep(RETRY / 10);
            }
        }
    }

    /// Saves the run after a signal, in its state after `step` with the next batch at `mark`. Returns the error that reports it.
    fn save_and_stop(
        &mut self,
        team: &mut Team,
        step: usize,
        pending: Option<Pending>,
        mark: &BatchPosition,
        clock: &mut Clock,
        screen: &mut dyn Screen,
    ) -> Result<Error> {
        while let Some((report, lap)) = team.timed_report(true)? {
            clock.arrive(report, lap, Instant::now());
        }
        clock.share();
        self.write_timed(clock, screen)?;
        let _phase = self.phase.enter(Phase::Saving);
        // an existing checkpoint of this step is as good: the work that remains after it gives the same results
        if self.saver.last() != Some(step) {
            self.checkpoint(team, step, pending, false, mark)?;
        }
        // after a signal, do not wait for a disk that is full
        self.saver.wait()?;
        let (signal, dir) = ((self.stop)().unwrap_or("a signal to another rank"), self.folder.dir());
        let fault = Fault::at(signal, format!("stopped after step {step}, saved in {}", dir.display()));
        Ok(Error::stopped(fault.advice(format!("to continue: {}", (self.continues)(dir)))))
    }

    /// Starts to save a checkpoint. Training waits only for the copy from the GPU.
    fn checkpoint(
        &mut self,
        team: &mut Team,
        step: usize,
        pending: Option<Pending>,
        ended: bool,
        mark: &BatchPosition,
    ) -> Result<()> {
        crate::kill_point!("run: before a snapshot");
        let none = || Error::gpu(Fault::at("snapshot", "the first device returned none"));
        let snapshot = team.snapshot()?.ok_or_else(none)?;
        let control = snapshot.control;
        let (records, metric_lines) = self.folder.written();
        let state = StateFile {
            step,
            control: bytemuck::cast_slice(std::slice::from_ref(&control)).to_vec(),
            windows: bytemuck::cast_slice(&snapshot.windows).to_vec(),
            updates: control.updates,
            skipped: control.skipped,
            loss_scale: control.loss_scale,
            batches: mark.state(),
            records,
            metric_lines,
            data: self.loader.fingerprint().to_owned(),
            schedule: self.settings.schedule(),
            seed: self.settings.train.seed,
            run: Some(self.folder.home().run().to_owned()),
            settings: compare::recorded(self.settings),
            made_by: self.made_by.clone(),
            tuned: team.lead().gpu().caps.tuned.as_ref().clone(),
            ended,
            pending,
        };
        self.saver.save(Saved { snapshot, state })
    }

    /// Writes `report.html`. Training waits for it.
    fn report(&mut self, last: bool, clock: &mut Clock) -> Result<()> {
        clock.pause(|| {
            self.reporter.write(last);
            Ok(())
        })
    }
}

/// Returns whether something that happens every `n` steps happens after `step`; 0 is never.
fn is_every(step: usize, n: usize) -> bool {
    n > 0 && step.is_multiple_of(n)
}
