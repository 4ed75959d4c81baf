//! The records and the status line of a step.

use std::time::{Duration, Instant};

use crate::data::BatchPosition;
use crate::error::{Error, Result};
use crate::gpu::Elem;
use crate::ops::stepcontrol::Report;
use crate::run::clock::Clock;
use crate::run::records::Metric;
use crate::run::steps::{Measured, Run, Screen, StepLine, is_every};
use crate::run::team::Team;
use crate::units;

/// Number of skipped steps in a row that ends a run.
const MOST_SKIPPED: u32 = 8;
/// Time between two printed lines at least, unless `--log-every` says otherwise: steps of small models take less.
const LINE_EVERY: Duration = Duration::from_millis(250);
/// Number of steps whose position in the data is remembered. More than are in flight.
const REMEMBERED_STEPS: usize = 16;

impl Run<'_> {
    /// Returns the figures to compare a validation loss of generated stories with.
    pub(super) fn baseline_texts(&self) -> Vec<String> {
        self.baseline.map_or_else(Vec::new, |b| {
            vec![format!("order-2 Markov {:.4}", b.markov), format!("entropy rate {:.4}", b.entropy)]
        })
    }

    /// Returns whether the line of a step is printed although nothing was measured after it. The first step of this
    /// process and the last of the run always are.
    fn is_line_due(&self, step: usize) -> bool {
        let run = &self.settings.run;
        let Some(printed) = self.printed else { return true };
        if step == self.settings.train.steps || is_every(step, run.sample_every) {
            return true;
        }
        run.log_every.map_or_else(|| printed.elapsed() >= LINE_EVERY, |n| is_every(step, n))
    }

    /// Takes the reports that have arrived, waits for one if `wait`, and writes the steps that can be timed. Leaves out the newest
    /// step, which may still be due for validation.
    pub(super) fn record(
        &mut self,
        team: &mut Team,
        mut wait: bool,
        clock: &mut Clock,
        screen: &mut dyn Screen,
    ) -> Result<()> {
        while team.outstanding() > 1
            && let Some((report, lap)) = team.timed_report(wait)?
        {
            clock.arrive(report, lap, Instant::now());
            wait = false;
        }
        self.write_timed(clock, screen)
    }

    /// Writes the timed steps.
    pub(super) fn write_timed(&mut self, clock: &mut Clock, screen: &mut dyn Screen) -> Result<()> {
        while let Some((report, ms)) = clock.oldest() {
            self.write(&report, Measured::default(), ms, clock, screen)?;
        }
        Ok(())
    }

    /// Writes a step to the records and prints its status line. `ms` is its time.
    pub(super) fn write(
        &mut self,
        report: &Report,
        measured: Measured,
        ms: f64,
        clock: &mut Clock,
        screen: &mut dyn Screen,
    ) -> Result<()> {
        let Measured { val_loss, hellaswag } = measured;
        let train = &self.settings.train;
        // rounded to f32 first, so that the screen, the report and the records show the same value
        let tokens_per_s = (train.tokens_per_step as f64 * 1e3 / ms.max(1e-6)) as f32;
        let ms = ms as f32;
        let skipped = report.skipped_now != 0;
        let looks_at_z = train.skip_loss_z > 0.0 || train.skip_norm_z > 0.0;
        let z = |z: f32| looks_at_z.then_some(z);
        let metric = Metric {
            loss: Some(report.loss),
            grad_norm: Some(report.grad_norm),
            lr: Some(report.lr),
            ms: Some(ms),
            pause_ms: clock.take_pause_ms(report.step as usize),
            tokens_per_s: Some(tokens_per_s),
            val_loss: val_loss.map(|l| l as f32),
            hellaswag: hellaswag.map(|a| a as f32),
            loss_scale: (self.settings.elem() == Elem::F16).then_some(report.loss_scale),
            loss_z: z(report.loss_z),
            norm_z: z(report.norm_z),
            skipped,
            ..Metric::of_step(report.step as usize)
        };
        let (step, steps) = (report.step as usize, train.steps);
        self.retry_while_disk_full(clock, screen, |run| run.folder.step(&metric))?;
        self.reporter.push(&metric);
        let eta = clock.mean_ms().map(|ms| Duration::from_secs_f64(ms * (steps - step) as f64 / 1e3));
        let why = self.why_skipped(report);
        if val_loss.is_some() || hellaswag.is_some() || why.is_some() || self.is_line_due(step) {
            self.printed = Some(Instant::now());
            let mut line = StepLine::new(format!("step {step}/{steps} | loss {:.4}", report.loss));
            if let Some(loss) = val_loss {
                line.whole += &format!(" | val {loss:.4}");
                line.more.extend(self.baseline_texts());
            }
            if let Some(accuracy) = hellaswag {
                line.whole += &format!(" | hellaswag {accuracy:.4}");
            }
            if let Some(why) = &why {
                line.whole += &format!(" | skipped: {why}; {}", self.batches_of(step));
            }
            line.more.extend([
                format!("norm {:.3}", report.grad_norm),
                format!("lr {:.2e}", report.lr),
                format!("{ms:.0} ms"),
                format!("{} tok/s", units::count(tokens_per_s.round() as u64)),
            ]);
            line.more.extend(self.reporter.status(f64::from(tokens_per_s), eta));
            screen.step(&line);
        }
        screen.progress(step, steps, eta);
        if report.skipped_in_a_row >= MOST_SKIPPED {
            return Err(Error::diverged(format!(
                "train: step {}: {} steps in a row were skipped, the last because {}; try a lower --lr or a longer \
                 --warmup; the checkpoints before them are kept",
                report.step,
                report.skipped_in_a_row,
                why.unwrap_or_default()
            )));
        }
        Ok(())
    }

    /// Returns why a step's update was skipped, if it was.
    pub(super) fn why_skipped(&self, report: &Report) -> Option<String> {
        let train = &self.settings.train;
        Some(match report.skipped_now {
            0 => return None,
            Report::LOSS_OUTLIER => format!("the loss's z-score {:.2} is above {}", report.loss_z, train.skip_loss_z),
            Report::NORM_OUTLIER => {
                format!("the gradient norm's z-score {:.2} is above {}", report.norm_z, train.skip_norm_z)
            }
            _ if self.settings.elem() == Elem::F16 && report.loss_scale > 1.0 => {
                format!("overflow at loss scale {}, which is halved", report.loss_scale)
            }
            _ => format!("loss or gradient norm is not finite ({} in a row)", report.skipped_in_a_row),
        })
    }

    /// Remembers the position of a step's batches until its report has arrived.
    pub(super) fn remember_batches(&mut self, step: usize, mark: &BatchPosition) {
        self.places.push_back((step, mark.clone()));
        while self.places.len() > REMEMBERED_STEPS {
            self.places.pop_front();
        }
    }

    /// Returns the position of a step's batches, in words.
    pub(super) fn batches_of(&self, step: usize) -> String {
        let mark = self.places.iter().find(|(s, _)| *s == step).map(|(_, mark)| mark);
        mark.map_or_else(|| "its batches are those of the step before".into(), |mark| self.loader.describe(mark))
    }
}
