//! Losses of a model in training, in the memory of its steps.

use super::Trainer;
use crate::data::Rows;
use crate::error::{Error, Result};
use crate::gpu::{Program, Tensor};
use crate::ops::{crossentropy, embedding};

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
            let filled = rows.batch(at, &mut self.inputs, &mut self.targets)?.min(count - at);
            // rows past the end are computed and do not count
            let used = filled * self.sizes.context;
            self.inputs[used..].fill(0);
            self.targets[used..].fill(crossentropy::IGNORED);
            let uploads: [(&Tensor, &[u8]); 2] = [
                (&self.acts.tokens, bytemuck::cast_slice(&self.inputs)),
                (&self.acts.targets, bytemuck::cast_slice(&self.targets)),
            ];
            self.uploads.submit(self.gpu, &uploads, &[&self.eval], &mut [&mut self.losses])?;
            at += filled;
        }
        while self.losses.pending() > 0 {
            sum += self.take_losses()?;
        }
        Ok((!given_up).then(|| sum / (count * self.sizes.context).max(1) as f64))
    }

    fn take_losses(&mut self) -> Result<f64> {
        let bytes = self.losses.take(self.gpu, true)?.unwrap_or_default();
        Ok(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes).iter().map(|&loss| f64::from(loss)).sum())
    }

    /// Runs one micro-step's forward and backward on a given batch and waits: gradients accumulate on what is there.
    /// For tests and tools; returns the losses.
    ///
    /// # Errors
    /// [`Error::Shape`] if the batch is not B T long; else as [`Gpu::check`].
    pub fn probe(&mut self, inputs: &[u32], targets: &[u32], clear: bool) -> Result<Vec<f32>> {
        if inputs.len() != self.acts.rows() || targets.len() != inputs.len() {
            return Err(Error::shape(format!("probe: {} tokens, expected {}", inputs.len(), self.acts.rows())));
        }
        let (table, order) = embedding::sort(inputs);
        let uploads: [(&Tensor, &[u8]); 4] = [
            (&self.acts.tokens, bytemuck::cast_slice(inputs)),
            (&self.acts.targets, bytemuck::cast_slice(targets)),
            (&self.buckets.table, bytemuck::cast_slice(&table)),
            (&self.buckets.order, bytemuck::cast_slice(&order)),
        ];
        let programs: &[&Program] = if clear { &[&self.begin, &self.micro] } else { &[&self.micro] };
        self.uploads.submit(self.gpu, &uploads, programs, &mut [])?;
        self.gpu.read_f32(&self.acts.losses)
    }
}
