//! The highest plausible rates of kernels.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::gpu::{Arithmetic, Gpu};
use crate::measure::Roofs;

/// Time of the measurement of one rate.
const TIME: Duration = Duration::from_millis(200);

/// Measured roofs. They are measured a second time if a kernel exceeds them, because the machine may have been busy the
/// first time.
#[derive(Debug, Clone)]
pub struct Ceiling {
    pub(super) roofs: Roofs,
    pub(super) measured_again: bool,
    pub(super) exceeded: bool,
}

impl Ceiling {
    /// Measures the roofs.
    ///
    /// # Errors
    /// As [`Roofs::measure`].
    pub fn measure(gpu: &Gpu) -> Result<Self> {
        Ok(Self::new(Roofs::measure(gpu, TIME)?))
    }

    /// Makes a ceiling of these roofs.
    #[must_use]
    pub fn new(roofs: Roofs) -> Self {
        Self { roofs, measured_again: false, exceeded: false }
    }

    /// Returns the roofs: the higher of both measurements.
    #[must_use]
    pub fn roofs(&self) -> &Roofs {
        &self.roofs
    }

    /// Returns whether a kernel exceeded its roof, within the margin, after the roofs were measured again.
    #[must_use]
    pub fn exceeded(&self) -> bool {
        self.exceeded
    }

    /// Returns the roof of a kernel with `rate` operations per second if the kernel exceeds it by more than `margin`.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub(super) fn refuses(&mut self, gpu: &Gpu, arithmetic: Arithmetic, rate: f64, margin: f64) -> Result<Option<f64>> {
        if rate > self.roofs.flops(arithmetic).1 && !self.measured_again {
            self.measured_again = true;
            match Roofs::measure(gpu, TIME) {
                Ok(again) => self.raise(&again),
                Err(error @ Error::Lost(_)) => return Err(error),
                // the operands of the job may leave too little memory: then the first measurement counts
                Err(_) => {}
            }
        }
        let roof = self.roofs.flops(arithmetic).1;
        if rate > roof * margin {
            return Ok(Some(roof));
        }
        self.exceeded |= rate > roof;
        Ok(None)
    }

    /// Raises each rate to the higher of both measurements.
    fn raise(&mut self, again: &Roofs) {
        let higher = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a.max(b)).or(a).or(b);
        let roofs = &mut self.roofs;
        roofs.copy = roofs.copy.max(again.copy);
        roofs.copy_kernel = roofs.copy_kernel.max(again.copy_kernel);
        roofs.fused_f32 = roofs.fused_f32.max(again.fused_f32);
        roofs.fused_f16 = higher(roofs.fused_f16, again.fused_f16);
        roofs.matrix = higher(roofs.matrix, again.matrix);
        roofs.matrix_fed = higher(roofs.matrix_fed, again.matrix_fed);
    }
}
