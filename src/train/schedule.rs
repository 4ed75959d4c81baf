//! The learning rate over the steps of a run.

use serde::{Deserialize, Serialize};

/// Linear warm-up, then a cosine down to a fraction of the peak, as llm.c's `schedulers.h`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Peak learning rate.
    pub lr: f32,
    /// Steps of linear warm-up.
    pub warmup: usize,
    /// Final learning rate over the peak.
    pub final_frac: f32,
    /// Steps of the run.
    pub steps: usize,
}

impl Schedule {
    /// The learning rate of a step, counted from 0: `lr (step + 1) / warmup` while warming up, then
    /// `min + (lr - min) (1 + cos(pi r)) / 2` with `r` running from 0 to 1 over the remaining steps.
    #[must_use]
    pub fn at(&self, step: usize) -> f32 {
        let (lr, min) = (f64::from(self.lr), f64::from(self.lr) * f64::from(self.final_frac));
        if step < self.warmup {
            return (lr * (step + 1) as f64 / self.warmup as f64) as f32;
        }
        let span = self.steps.saturating_sub(self.warmup).max(1);
        let r = ((step - self.warmup) as f64 / span as f64).min(1.0);
        (min + 0.5 * (1.0 + (std::f64::consts::PI * r).cos()) * (lr - min)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    #[test]
    fn warms_up_linearly_then_falls_to_the_fraction() {
        let schedule = Schedule { lr: 1e-3, warmup: 3, final_frac: 0.1, steps: 12 };
        // the learning rates of tests/golden, computed by llm.c's formula in Python
        let want = [
            3.333_333e-4,
            6.666_667e-4,
            1e-3,
            1e-3,
            9.728_617e-4,
            8.947_2e-4,
            7.75e-4,
            6.281_416e-4,
            4.718_583e-4,
            3.25e-4,
            2.052_8e-4,
            1.271_383e-4,
        ];
        for (step, want) in want.into_iter().enumerate() {
            let got = schedule.at(step);
            assert!((got - want).abs() <= 1e-9, "step {step}: {got}, expected {want}");
        }
    }

    #[test]
    fn without_warmup_starts_at_the_peak() {
        let schedule = Schedule { lr: 6e-4, warmup: 0, final_frac: 0.0, steps: 10 };
        assert_eq!(schedule.at(0), 6e-4);
        assert!(schedule.at(10).abs() < 1e-12);
    }
}
