//! Copies a trainer's state to the host and back.

use crate::error::{Error, Result};
use crate::model::{Config, Weights};
use crate::ops::stepcontrol;

use super::trainer::Trainer;

/// A trainer's state on the host: enough to resume with the same bits.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The parameters.
    pub weights: Weights,
    /// AdamW's first and second moments.
    pub moments: [Weights; 2],
    /// Adam's counters, the skipped steps, the loss scale.
    pub control: stepcontrol::State,
    /// The most recent losses and gradient norms.
    pub windows: [stepcontrol::Window; 2],
}

impl Snapshot {
    /// Returns a snapshot of zeros, to be overwritten.
    #[must_use]
    pub fn zeros(config: Config) -> Self {
        let zeros = || Weights::zeros(config);
        Self {
            weights: zeros(),
            moments: [zeros(), zeros()],
            control: bytemuck::Zeroable::zeroed(),
            windows: bytemuck::Zeroable::zeroed(),
        }
    }
}

impl Trainer<'_> {
    /// Returns everything that the next step depends on except its batches, after all complete steps that were
    /// submitted. A step that [`Trainer::step_unless`] gave up leaves no trace in it. All devices that share a run call
    /// this; only the first gets the snapshot.
    ///
    /// # Errors
    /// As [`Gpu::read`].
    pub fn snapshot(&mut self) -> Result<Option<Snapshot>> {
        let Some(moments) = self.read_moments()? else { return Ok(None) };
        let state = self.gpu().read(&self.control().state)?;
        let state: stepcontrol::State = bytemuck::pod_read_unaligned(&state);
        Ok(Some(Snapshot {
            weights: self.weights()?,
            moments,
            control: state,
            windows: bytemuck::pod_read_unaligned(&self.gpu().read(&self.control().windows)?),
        }))
    }

    /// Restores the state of `snapshot`, so that the next step has the same bits. The f16 copy of mixed precision is
    /// computed from the weights, as in every update.
    ///
    /// # Errors
    /// [`Error::Shape`] if the snapshot belongs to another model; otherwise as [`Gpu::write`].
    pub fn restore(&self, snapshot: &Snapshot) -> Result<()> {
        for part in [&snapshot.weights, &snapshot.moments[0], &snapshot.moments[1]] {
            if part.config != *self.config() {
                let (found, expected) = (&part.config, self.config());
                return Err(Error::shape(format!("trainer.restore: snapshot of {found:?}, expected {expected:?}")));
            }
        }
        self.load(&snapshot.weights)?;
        self.write_moments(&snapshot.moments)?;
        self.gpu().write(&self.control().windows, bytemuck::bytes_of(&snapshot.windows))?;
        self.gpu().write(&self.control().state, bytemuck::bytes_of(&snapshot.control))
    }
}
