//! The measurements of a run: validation and HellaSwag.

use std::cell::Cell;

use crate::error::Result;
use crate::run::clock::Clock;
use crate::run::phase::Phase;
use crate::run::steps::{After, Outcome, Run, Screen, StepLine};
use crate::run::team::{QUESTIONS, Team};

/// Measurements after a step; none if they are not due.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Measured {
    pub(super) val_loss: Option<f64>,
    pub(super) hellaswag: Option<f64>,
}

impl Run<'_> {
    /// Makes the measurements that are due after a step. Returns `None` if a signal interrupts them.
    pub(super) fn measure(&mut self, team: &mut Team, after: After, clock: &mut Clock) -> Result<Option<Measured>> {
        let mut measured = Measured::default();
        if after.validates {
            measured.val_loss = clock.pause(|| self.validate(team))?;
            if measured.val_loss.is_none() {
                return Ok(None);
            }
        }
        if after.scores_hellaswag {
            measured.hellaswag = clock.pause(|| self.score_hellaswag(team))?;
            if measured.hellaswag.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(measured))
    }

    /// Makes the measurements that the line of the last step lacks, because the run was longer when the line was written. Returns
    /// false if a signal interrupts them.
    pub(super) fn measure_last(
        &mut self,
        team: &mut Team,
        step: usize,
        after: After,
        outcome: &mut Outcome,
        clock: &mut Clock,
        screen: &mut dyn Screen,
    ) -> Result<bool> {
        let line = self.retry_while_disk_full(clock, screen, |run| run.folder.last_line())?;
        let Some(mut line) = line.filter(|line| line.step == step) else { return Ok(true) };
        let validates = after.validates && line.val_loss.is_none();
        let scores_hellaswag = after.scores_hellaswag && line.hellaswag.is_none();
        outcome.val_loss = outcome.val_loss.or(line.val_loss.map(f64::from));
        if validates {
            let Some(loss) = clock.pause(|| self.validate(team))? else { return Ok(false) };
            line.val_loss = Some(loss as f32);
            outcome.val_loss = Some(loss);
        }
        if scores_hellaswag {
            let Some(accuracy) = clock.pause(|| self.score_hellaswag(team))? else { return Ok(false) };
            line.hellaswag = Some(accuracy as f32);
        }
        if validates || scores_hellaswag {
            self.retry_while_disk_full(clock, screen, |run| run.folder.amend(&line, validates, scores_hellaswag))?;
            self.reporter.rewind()?;
            let loss = line.val_loss.map_or_else(String::new, |loss| format!(" | val {loss:.4}"));
            let accuracy = line.hellaswag.map_or_else(String::new, |accuracy| format!(" | hellaswag {accuracy:.4}"));
            let whole = format!("step {step}/{step}{loss}{accuracy}");
            screen.step(&StepLine { whole, more: self.baseline_texts() });
        }
        Ok(true)
    }

    /// Returns the validation loss, or `None` if a signal interrupts it.
    fn validate(&mut self, team: &mut Team) -> Result<Option<f64>> {
        let _phase = self.phase.enter(Phase::Validating);
        let Some(rows) = &mut self.rows else { return Ok(None) };
        let count = self.settings.run.val_rows.unwrap_or(usize::MAX).min(rows.len());
        let (stop, phase) = (self.stop, &self.phase);
        let batches = count.div_ceil(team.lead().sizes().batch).div_ceil(team.lead().part().devices);
        let asked = Cell::new(0);
        team.evaluate_unless(rows, count, &|| {
            phase.reach(asked.replace(asked.get() + 1), batches);
            stop().is_some()
        })
    }

    /// Returns the accuracy on HellaSwag, or `None` if a signal interrupts it.
    fn score_hellaswag(&self, team: &mut Team) -> Result<Option<f64>> {
        let _phase = self.phase.enter(Phase::ScoringHellaSwag);
        let (stop, phase, all) = (self.stop, &self.phase, self.questions.len());
        let devices = team.lead().part().devices;
        let asked = Cell::new(0);
        let correct = team.answer(&self.questions, &|| {
            phase.reach(asked.replace(asked.get() + QUESTIONS * devices), all);
            stop().is_some()
        })?;
        Ok(correct.map(|correct| correct as f64 / self.questions.len() as f64))
    }
}
