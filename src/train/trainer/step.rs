//! A step: uploads and submissions, and reports that come back later.

use super::exchange::COMPARED;
use super::{Finish, Trainer, TrainerOptions};
use crate::data::{Batch, BatchSource};
use crate::error::{Error, Fault, Result};
use crate::gpu::{Lap, Timed, Upload};
use crate::ops::stepcontrol::Report;

impl Trainer<'_> {
    /// Submits step `step` (from 1) on the loader's next batches, without waiting for it. Its report comes out of
    /// [`Trainer::report`] later. The ring of reports holds one more than may be in flight, so take those that are
    /// there in between: a full one is waited for.
    ///
    /// # Errors
    /// [`Error::Data`] from the loader; [`Error::Shape`] if its batches are not B·T long; else as [`crate::gpu::Gpu::check`].
    pub fn step(&mut self, loader: &mut dyn BatchSource, step: usize, lr: f32) -> Result<()> {
        self.step_unless(loader, step, lr, &|| false).map(|_| ())
    }

    /// [`Trainer::step`], but before every micro-step `stop` is asked. If it says yes the step is given up and false
    /// returned: weights, moments and Adam's counters are those after the step before, and the loader has moved.
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
            // all that share the step decide before its last micro-step, which the exchange is a part of
            if gives_up || last {
                if self.any_gives_up(gives_up)? {
                    return Ok(false);
                }
                if step.is_multiple_of(COMPARED) {
                    // before owners overwrite what others have of their weights
                    self.compare_weights(step)?;
                }
            }
            let Some(batch) = batch else { return Ok(false) };
            check_batch("trainer.step", batch, self.micro.acts.rows())?;
            if last && self.reports.is_full() {
                self.collect(true)?;
            }
            // the numbers are read by the end of a step alone
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

    /// Compares what all devices compute step `step` with: their weights by a hash of 64 bits, and the state of step control.
    ///
    /// # Errors
    /// [`Error::Disagree`] naming the devices that are not like most.
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

    /// Steps submitted whose reports were not yet returned.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.done.len() + self.reports.pending()
    }

    /// The oldest step's report that was not yet returned: waits for it if `wait`, else `None` while it is not there.
    ///
    /// # Errors
    /// As [`crate::gpu::Gpu::check`].
    pub fn report(&mut self, wait: bool) -> Result<Option<Report>> {
        Ok(self.timed_report(wait)?.map(|(report, _)| report))
    }

    /// [`Trainer::report`] with the step's begin and end by the device's clock, where the adapter has one.
    ///
    /// # Errors
    /// [`Error::Lost`] and the others of [`crate::gpu::Gpu::check`].
    pub fn timed_report(&mut self, wait: bool) -> Result<Option<(Report, Option<Lap>)>> {
        if self.done.is_empty() {
            self.collect(wait)?;
        }
        Ok(self.done.pop_front())
    }
}

/// Checks that a batch has as many tokens as a micro-step.
pub(super) fn check_batch(place: &str, batch: &Batch, tokens: usize) -> Result<()> {
    if batch.len() == tokens {
        return Ok(());
    }
    let fault = Fault::at(place, "a batch of the wrong size");
    Err(Error::shape(fault.expected(format!("{tokens} tokens")).found(batch.len())))
}
