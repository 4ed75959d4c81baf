//! The rates that no kernel can exceed, and the doubt in them.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::gpu::{Arithmetic, Gpu};
use crate::measure::Roofs;

/// How long one rate is measured.
const TIME: Duration = Duration::from_millis(200);

/// Roofs that are measured a second time when a kernel is above them: the machine may have been busy the first time.
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

    /// Returns a ceiling of these roofs.
    #[must_use]
    pub fn new(roofs: Roofs) -> Self {
        Self { roofs, measured_again: false, exceeded: false }
    }

    /// Returns the roofs, the higher of both measurements.
    #[must_use]
    pub fn roofs(&self) -> &Roofs {
        &self.roofs
    }

    /// Whether a kernel was above its roof, though within the margin, after the roofs were measured again.
    #[must_use]
    pub fn exceeded(&self) -> bool {
        self.exceeded
    }

    /// Returns the roof of a kernel of so many operations a second if the kernel is above it by more than `margin`.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub(super) fn refuses(&mut self, gpu: &Gpu, arithmetic: Arithmetic, rate: f64, margin: f64) -> Result<Option<f64>> {
        if rate > self.roofs.flops(arithmetic).1 && !self.measured_again {
            self.measured_again = true;
            match Roofs::measure(gpu, TIME) {
                Ok(again) => self.raise(&again),
                Err(error @ Error::Lost(_)) => return Err(error),
                // the operands of the job may leave no memory for it: then the first measurement holds
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

    /// Takes the higher of both measurements of each rate.
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
