//! Losses of a model in training, in the memory of its steps.

use super::Trainer;
use super::step::check_batch;
use crate::data::{Batch, Rows};
use crate::error::{Error, Fault, Result};
use crate::gpu::Upload;

impl Trainer<'_> {
    /// Mean loss in nats a token over the first `count` rows of T tokens. Waits for all steps before it.
    ///
    /// # Errors
    /// [`Error::Data`] from the rows; else as [`Gpu::check`].
    pub fn evaluate(&mut self, rows: &mut Rows, count: usize) -> Result<f64> {
        Ok(self.evaluate_unless(rows, count, &|| false)?.unwrap_or(f64::NAN))
    }

    /// [`Trainer::evaluate`], but before every batch `stop` is asked. If it says yes, there is no loss.
    ///
    /// # Errors
    /// As [`Trainer::evaluate`].
    pub fn evaluate_unless(&mut self, rows: &mut Rows, count: usize, stop: &dyn Fn() -> bool) -> Result<Option<f64>> {
        let count = count.min(rows.len());
        let (mut sum, mut at, mut given_up) = (0.0, 0, false);
        while at < count {
            given_up = stop();
            if given_up {
                break;
            }
            if self.losses.is_full() {
                sum += self.take_losses()?;
            }
            let filled = rows.batch(at, &mut self.rows)?.min(count - at);
            // rows past the end are computed and do not count
            self.rows.ignore_from(filled * self.options.sizes.context);
            let acts = &self.micro.acts;
            let uploads: [Upload; 1] = [(&[&acts.tokens, &acts.targets], self.rows.forward_bytes())];
            self.uploads.submit(self.gpu, &uploads, &[&self.eval], &mut [&mut self.losses])?;
            at += filled;
        }
        while self.losses.pending() > 0 {
            sum += self.take_losses()?;
        }
        Ok((!given_up).then(|| sum / (count * self.options.sizes.context).max(1) as f64))
    }

    fn take_losses(&mut self) -> Result<f64> {
        let bytes = self.losses.take(self.gpu, true)?.unwrap_or_default();
        Ok(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes).iter().map(|&loss| f64::from(loss)).sum())
    }

    /// Runs one micro-step's forward and backward on a given batch and waits: gradients begin there.
    /// For tests and tools; returns the losses.
    ///
    /// # Errors
    /// [`Error::Shape`] if the batch is not B T long; else as [`Gpu::check`].
    pub fn probe(&mut self, inputs: &[u32], targets: &[u32]) -> Result<Vec<f32>> {
        if targets.len() != inputs.len() {
            let fault = Fault::at("trainer.probe", "a target for every input").expected(inputs.len());
            return Err(Error::shape(fault.found(targets.len())));
        }
        let batch = Batch::of(inputs, targets);
        check_batch("trainer.probe", &batch, self.micro.acts.rows())?;
        let uploads: [Upload; 1] = [(&self.micro.inputs(), batch.bytes())];
        self.uploads.submit(self.gpu, &uploads, &[self.micro.program(0, 0)], &mut [])?;
        self.gpu.read_f32(&self.micro.acts.losses)
    }
}
