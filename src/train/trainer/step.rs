//! Uploads and submissions of a step, and reports that arrive later.

use super::exchange::COMPARED;
use super::{Finish, Trainer, TrainerOptions};
use crate::data::{Batch, BatchSource};
use crate::error::{Error, Fault, Result};
use crate::gpu::{Lap, Timed, Upload};
use crate::ops::stepcontrol::Report;

impl Trainer<'_> {
    /// Submits step `step` (from 1) on the loader's next batches, without waiting for it. [`Trainer::report`] returns
    /// its report later. The ring of reports has one slot more than there are submissions in flight, so callers take
    /// arrived reports between steps; a step waits if the ring is full.
    ///
    /// # Errors
    /// [`Error::Data`] from the loader; [`Error::Shape`] if its batches do not have B·T tokens;
    /// otherwise as [`crate::gpu::Gpu::check`].
    pub fn step(&mut self, loader: &mut dyn BatchSource, step: usize, lr: f32) -> Result<()> {
        self.step_unless(loader, step, lr, &|| false).map(|_| ())
    }

    /// Like [`Trainer::step`], but calls `stop` before every micro-step. If it returns true, this gives the step up and
    /// returns false: weights, moments and Adam's counters are those after the step before, but the loader has
    /// advanced.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step_unless(
        &mut self,
        loader: &mut dyn BatchSource,
        step: usize,
        lr: f32,
        stop: &dyn Fn() -> bool,
    ) -> Result<bool> {
        let TrainerOptions { sizes, optimizer, elem, .. } = self.options;
        let (per_rank, count) = (self.options.micro_steps_of_a_rank(), self.options.micro_steps());
        let hyper = optimizer.hyper(step, lr, sizes.tokens(), elem);
        for number in 0..count {
            let (first, last) = (number == 0, number + 1 == count);
            let gives_up = stop() || self.is_asked_to_stop();
            let batch = match gives_up {
                true => None,
                false => Some(self.gpu.span("read a batch", || loader.next_batch())?),
            };
            // all devices decide before the last micro-step, because the exchange includes it
            if gives_up || last {
                if self.any_gives_up(gives_up)? {
                    return Ok(false);
                }
                if step.is_multiple_of(COMPARED) {
                    // before owners overwrite the weights on other devices
                    self.compare_weights(step)?;
                }
            }
            let Some(batch) = batch else { return Ok(false) };
            check_batch("trainer.step", batch, self.micro.acts.rows())?;
            if last && self.reports.is_full() {
                self.collect(true)?;
            }
            // only the end of a step reads these numbers
            let uploads: [Upload; 2] =
                [(&self.micro.inputs(), batch.bytes()), (&[&self.model.control.hyper], bytemuck::bytes_of(&hyper))];
            let (rank, micro) = (number / per_rank, number % per_rank);
            let program = match &self.finish {
                Finish::Shared(exchange) if last => exchange.opening(),
                _ => self.micro.program(self.turns[rank].level, micro),
            };
            // a step that devices share ends with the exchange
            let ends = last && matches!(self.finish, Finish::Alone { .. });
            let timed = self.watch.as_mut().map(|watch| Timed { watch, starts: first, stops: ends });
            self.uploads.submit_timed(
                self.gpu,
                &uploads[..1 + usize::from(last)],
                &[program, &self.after[rank]][..1 + usize::from(micro + 1 == per_rank)],
                &mut [&mut self.reports][..usize::from(ends)],
                timed,
            )?;
        }
        if let Finish::Shared(exchange) = &mut self.finish {
            let timed = self.watch.as_mut().map(|watch| Timed { watch, starts: false, stops: true });
            exchange.finish(self.gpu, &mut self.reports, timed)?;
        }
        Ok(true)
    }

    /// Compares the weights, by a hash of 64 bits, and the state of step control of all devices before step `step`.
    ///
    /// # Errors
    /// [`Error::Disagree`] naming the devices that differ from the majority.
    pub fn compare_weights(&mut self, step: usize) -> Result<()> {
        match &mut self.finish {
            Finish::Alone { .. } => Ok(()),
            Finish::Shared(exchange) => exchange.compare(self.gpu, &self.model.control, step),
        }
    }

    fn collect(&mut self, wait: bool) -> Result<bool> {
        let Some(bytes) = self.reports.take(self.gpu, wait)? else { return Ok(false) };
        let lap = self.watch.as_mut().map_or(Ok(None), |watch| watch.take(self.gpu))?;
        self.done.push_back((bytemuck::pod_read_unaligned(&bytes), lap));
        Ok(true)
    }

    /// Returns the number of submitted steps whose reports were not yet returned.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.done.len() + self.reports.pending()
    }

    /// Returns the oldest report that was not yet returned. If it has not arrived, waits for it if `wait`, and returns
    /// `None` otherwise.
    ///
    /// # Errors
    /// As [`crate::gpu::Gpu::check`].
    pub fn report(&mut self, wait: bool) -> Result<Option<Report>> {
        Ok(self.timed_report(wait)?.map(|(report, _)| report))
    }

    /// Like [`Trainer::report`], with the step's begin and end by the device's clock, if the adapter has timestamps.
    ///
    /// # Errors
    /// As [`crate::gpu::Gpu::check`], such as [`Error::Lost`].
    pub fn timed_report(&mut self, wait: bool) -> Result<Option<(Report, Option<Lap>)>> {
        if self.done.is_empty() {
            self.collect(wait)?;
        }
        Ok(self.done.pop_front())
    }
}

/// Checks that a batch has the number of tokens of a micro-step.
pub(super) fn check_batch(place: &str, batch: &Batch, tokens: usize) -> Result<()> {
    if batch.len() == tokens {
        return Ok(());
    }
    let fault = Fault::at(place, "a batch of the wrong size");
    Err(Error::shape(fault.expected(format!("{tokens} tokens")).found(batch.len())))
}
