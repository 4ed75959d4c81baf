//! The learning rate as a function of the step.

use serde::{Deserialize, Serialize};

/// Shape of the learning-rate curve, as in llm.c's `schedulers.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Linear warm-up, then a cosine decay to the final rate.
    #[default]
    Cosine,
    /// Linear warm-up, then a linear decay to the final rate.
    Linear,
    /// The peak rate in every step, without warm-up.
    Constant,
    /// Linear warm-up, the peak rate up to four fifths of the steps, then a decay by `1 - sqrt(r)`, where `r` runs from
    /// 0 to 1 over the remaining steps (warm-up, stable, decay; Hägele et al. 2024).
    Wsd,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Shape {
    /// All shapes.
    pub const ALL: [Self; 4] = [Self::Cosine, Self::Linear, Self::Constant, Self::Wsd];

    /// Returns the name in flags and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Linear => "linear",
            Self::Constant => "constant",
            Self::Wsd => "wsd",
        }
    }
}

/// The learning rate as a function of the step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Shape of the curve.
    #[serde(default)]
    pub shape: Shape,
    /// Peak learning rate.
    pub lr: f32,
    /// Steps of linear warm-up.
    pub warmup: usize,
    /// Final learning rate as a fraction of the peak.
    pub final_frac: f32,
    /// Steps of the run.
    pub steps: usize,
}

impl Schedule {
    /// Returns the learning rate of a step, counted from 0. With `min = final_frac lr`, and `r` running from 0 to 1
    /// over the steps after the warm-up (wsd: over the last fifth of all steps):
    /// - warm-up, except for constant: `lr (step + 1) / warmup`
    /// - cosine: `min + (lr - min) (1 + cos(pi r)) / 2`
    /// - linear: `lr - r (lr - min)`
    /// - wsd: `lr`, then `min + (lr - min) (1 - sqrt(r))`
    #[must_use]
    pub fn at(&self, step: usize) -> f32 {
        let (lr, min) = (f64::from(self.lr), f64::from(self.lr) * f64::from(self.final_frac));
        if self.shape != Shape::Constant && step < self.warmup {
            return (lr * (step + 1) as f64 / self.warmup as f64) as f32;
        }
        let part = |from: usize| {
            let span = self.steps.saturating_sub(from).max(1);
            ((step - from) as f64 / span as f64).min(1.0)
        };
        // llm.c's (int)(0.8f * steps), its rounding included
        let decay = (0.8_f32 * self.steps as f32) as usize;
        let rate = match self.shape {
            Shape::Cosine => min + 0.5 * (1.0 + (std::f64::consts::PI * part(self.warmup)).cos()) * (lr - min),
            Shape::Linear => lr - part(self.warmup) * (lr - min),
            Shape::Wsd if step >= decay => min + (1.0 - part(decay).sqrt()) * (lr - min),
            Shape::Constant | Shape::Wsd => lr,
        };
        rate as f32
    }
}

impl Schedule {
    /// Returns the peak and the final rate as a person writes them: `6e-4` and `6e-5`.
    #[must_use]
    pub fn rate_texts(&self) -> [String; 2] {
        // multiplied as decimal numbers, and rounded once: in f32, 6e-4 times 0.1 would be 6.0000002e-5
        let decimal = |value: f32| value.to_string().parse::<f64>().unwrap_or(f64::from(value));
        let last = if self.shape == Shape::Constant { 1.0 } else { self.final_frac };
        [self.lr, (decimal(self.lr) * decimal(last)) as f32].map(|rate| match rate {
            0.0 | 1e-3..1e3 => rate.to_string(),
            _ => format!("{rate:e}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Schedule, Shape};

    /// Peak and final fraction, warm-up and steps, and (step, rate) pairs from llm.c's `schedulers.h`, computed in f32
    /// and compiled with gcc.
    type Case = (Shape, [f32; 2], [usize; 2], [(usize, f32); 7]);

    #[test]
    fn rates_are_those_of_llmc() {
        #[rustfmt::skip]
        #[expect(clippy::excessive_precision, clippy::unreadable_literal, reason = "as printed by llm.c's code")]
        let cases: [Case; 16] = [
            (Shape::Cosine, [6e-4, 0.0], [700, 18_865], [(0, 8.571428793e-07), (1, 1.714285759e-06), (700, 6.000000285e-04), (9_432, 3.181743086e-04), (15_091, 6.166668754e-05), (15_093, 6.160367775e-05), (18_864, 0.000000000e+00)]),
            (Shape::Linear, [6e-4, 0.0], [700, 18_865], [(0, 8.571428793e-07), (1, 1.714285759e-06), (700, 6.000000285e-04), (9_432, 3.115772270e-04), (15_091, 1.246573229e-04), (15_093, 1.245912572e-04), (18_864, 3.306195140e-08)]),
            (Shape::Constant, [6e-4, 0.0], [700, 18_865], [(0, 6.000000285e-04), (1, 6.000000285e-04), (700, 6.000000285e-04), (9_432, 6.000000285e-04), (15_091, 6.000000285e-04), (15_093, 6.000000285e-04), (18_864, 6.000000285e-04)]),
            (Shape::Wsd, [6e-4, 0.0], [700, 18_865], [(0, 8.571428793e-07), (1, 1.714285759e-06), (700, 6.000000285e-04), (9_432, 6.000000285e-04), (15_091, 6.000000285e-04), (15_093, 5.902319681e-04), (18_864, 7.953644143e-08)]),
            (Shape::Cosine, [1e-3, 0.1], [3, 12], [(0, 3.333333589e-04), (1, 6.666667177e-04), (3, 1.000000047e-03), (6, 7.750000223e-04), (8, 4.718582786e-04), (10, 2.052800119e-04), (11, 1.271383226e-04)]),
            (Shape::Linear, [1e-3, 0.1], [3, 12], [(0, 3.333333589e-04), (1, 6.666667177e-04), (3, 1.000000047e-03), (6, 7.000000332e-04), (8, 5.000000237e-04), (10, 3.000000142e-04), (11, 2.000000095e-04)]),
            (Shape::Constant, [1e-3, 0.1], [3, 12], [(0, 1.000000047e-03), (1, 1.000000047e-03), (3, 1.000000047e-03), (6, 1.000000047e-03), (8, 1.000000047e-03), (10, 1.000000047e-03), (11, 1.000000047e-03)]),
            (Shape::Wsd, [1e-3, 0.1], [3, 12], [(0, 3.333333589e-04), (1, 6.666667177e-04), (3, 1.000000047e-03), (6, 1.000000047e-03), (8, 1.000000047e-03), (10, 4.803847987e-04), (11, 2.651530667e-04)]),
            (Shape::Cosine, [3e-4, 0.25], [0, 10], [(0, 3.000000142e-04), (1, 2.944938606e-04), (0, 3.000000142e-04), (5, 1.875000016e-04), (7, 1.213741707e-04), (9, 8.050614997e-05), (9, 8.050614997e-05)]),
            (Shape::Linear, [3e-4, 0.25], [0, 10], [(0, 3.000000142e-04), (1, 2.775000175e-04), (0, 3.000000142e-04), (5, 1.875000016e-04), (7, 1.425000082e-04), (9, 9.750001482e-05), (9, 9.750001482e-05)]),
            (Shape::Constant, [3e-4, 0.25], [0, 10], [(0, 3.000000142e-04), (1, 3.000000142e-04), (0, 3.000000142e-04), (5, 3.000000142e-04), (7, 3.000000142e-04), (9, 3.000000142e-04), (9, 3.000000142e-04)]),
            (Shape::Wsd, [3e-4, 0.25], [0, 10], [(0, 3.000000142e-04), (1, 3.000000142e-04), (0, 3.000000142e-04), (5, 3.000000142e-04), (7, 3.000000142e-04), (9, 1.409009856e-04), (9, 1.409009856e-04)]),
            (Shape::Cosine, [2.5e-4, 0.0], [700, 286_102], [(0, 3.571428806e-07), (1, 7.142857612e-07), (700, 2.500000119e-04), (143_051, 1.254816016e-04), (228_880, 2.398752622e-05), (228_882, 2.398590914e-05), (286_101, 0.000000000e+00)]),
            (Shape::Linear, [2.5e-4, 0.0], [700, 286_102], [(0, 3.571428806e-07), (1, 7.142857612e-07), (700, 2.500000119e-04), (143_051, 1.253065857e-04), (228_880, 5.012404290e-05), (228_882, 5.012229667e-05), (286_101, 8.731149137e-10)]),
            (Shape::Constant, [2.5e-4, 0.0], [700, 286_102], [(0, 2.500000119e-04), (1, 2.500000119e-04), (700, 2.500000119e-04), (143_051, 2.500000119e-04), (228_880, 2.500000119e-04), (228_882, 2.500000119e-04), (286_101, 2.500000119e-04)]),
            (Shape::Wsd, [2.5e-4, 0.0], [700, 286_102], [(0, 3.571428806e-07), (1, 7.142857612e-07), (700, 2.500000119e-04), (143_051, 2.500000119e-04), (228_880, 2.500000119e-04), (228_882, 2.489548933e-04), (286_101, 2.190470694e-09)]),
        ];
        for (shape, [lr, final_frac], [warmup, steps], rates) in cases {
            let schedule = Schedule { shape, lr, warmup, final_frac, steps };
            for (step, want) in rates {
                // llm.c rounds every operation to f32; the numbers are at most the peak
                let (got, budget) = (schedule.at(step), 4.0 * f32::EPSILON * lr);
                assert!((got - want).abs() <= budget, "{shape:?} of {steps}, step {step}: {got:e}, expected {want:e}");
            }
        }
    }

    #[test]
    fn rates_are_printed_as_a_person_writes_them() {
        for (lr, final_frac, texts) in
            [(6e-4, 0.1, ["6e-4", "6e-5"]), (2.5e-4, 0.0, ["2.5e-4", "0"]), (5e-3, 0.3, ["0.005", "0.0015"])]
        {
            let schedule = Schedule { shape: Shape::Cosine, lr, warmup: 0, final_frac, steps: 10 };
            assert_eq!(schedule.rate_texts(), texts);
            assert_eq!(Schedule { shape: Shape::Constant, ..schedule }.rate_texts()[1], texts[0]);
        }
    }

    #[test]
    fn past_the_end_it_stays() {
        for shape in Shape::ALL {
            let schedule = Schedule { shape, lr: 6e-4, warmup: 2, final_frac: 0.5, steps: 10 };
            let last = if shape == Shape::Constant { 6e-4 } else { 3e-4 };
            assert!((schedule.at(10) - last).abs() < 1e-10 && schedule.at(99) == schedule.at(10), "{shape:?}");
        }
        let all_warmup = Schedule { shape: Shape::Cosine, lr: 1.0, warmup: 10, final_frac: 0.0, steps: 10 };
        assert_eq!(all_warmup.at(9), 1.0);
    }
}
