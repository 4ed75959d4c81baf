//! Validation losses, computed in the memory of training steps.

use super::step::check_batch;
use super::{Part, Trainer};
use crate::data::{Batch, Rows};
use crate::error::{Error, Fault, Result};
use crate::gpu::Upload;

impl Trainer<'_> {
    /// Returns the mean loss in nats per token over the first `count` rows of T tokens. Waits for all submitted steps.
    ///
    /// # Errors
    /// [`Error::Data`] from the rows; otherwise as [`Gpu::check`].
    pub fn evaluate(&mut self, rows: &mut Rows, count: usize) -> Result<f64> {
        Ok(self.evaluate_unless(rows, count, &|| false)?.unwrap_or(f64::NAN))
    }

    /// Like [`Trainer::evaluate`], but calls `stop` before every batch. Returns `None` if it returns true.
    ///
    /// # Errors
    /// As [`Trainer::evaluate`].
    pub fn evaluate_unless(&mut self, rows: &mut Rows, count: usize, stop: &dyn Fn() -> bool) -> Result<Option<f64>> {
        let (count, context) = (count.min(rows.len()), self.options.sizes.context);
        let (each, Part { device, devices, .. }) = (self.options.sizes.batch, self.options.part);
        let batches = count.div_ceil(each);
        // one sum per batch of this device
        let (mut sums, mut gives_up) = (Vec::new(), false);
        for number in (device..batches).step_by(devices) {
            gives_up = stop() || self.is_asked_to_stop();
            if gives_up {
                break;
            }
            if self.losses.is_full() {
                sums.push(self.take_losses()?);
            }
            let at = number * each;
            let filled = rows.batch(at, &mut self.rows)?.min(count - at);
            // rows past the end are computed but ignored
            self.rows.ignore_from(filled * context);
            let acts = &self.micro.acts;
            let uploads: [Upload; 1] = [(&[&acts.tokens, &acts.targets], self.rows.forward_bytes())];
            self.uploads.submit(self.gpu, &uploads, &[&self.eval], &mut [&mut self.losses])?;
        }
        while self.losses.pending() > 0 {
            sums.push(self.take_losses()?);
        }
        if self.any_gives_up(gives_up)? {
            return Ok(None);
        }
        let all = self.share(bytemuck::cast_slice(&sums))?;
        let all: Vec<Vec<f64>> = all.iter().map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect();
        // in the order of the batches, so that the bits do not depend on the number of devices
        let sum: f64 = (0..batches).map(|number| all[number % devices][number / devices]).sum();
        Ok(Some(sum / (count * context).max(1) as f64))
    }

    fn take_losses(&mut self) -> Result<f64> {
        let bytes = self.losses.take(self.gpu, true)?.unwrap_or_default();
        Ok(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes).iter().map(|&loss| f64::from(loss)).sum())
    }

    /// Runs one micro-step, forward and backward, on a given batch and waits for it. Overwrites the gradients and
    /// returns the losses. For tests and tools.
    ///
    /// # Errors
    /// [`Error::Shape`] if the batch does not have B·T tokens; otherwise as [`Gpu::check`].
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
