//! The lines of a run, and the place to which it prints them.

use std::path::Path;
use std::time::Duration;

use crate::train::trainer::Trainer;

/// The line of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepLine {
    /// The part that is always shown: step and losses, and why a step was skipped.
    pub whole: String,
    /// The rest, the most useful first.
    pub more: Vec<String>,
}

impl StepLine {
    /// Makes a line of the part that is always shown.
    #[must_use]
    pub fn new(whole: String) -> Self {
        Self { whole, more: Vec::new() }
    }

    /// Returns the line with as many of its parts as `width` columns hold.
    #[must_use]
    pub fn within(&self, width: usize) -> String {
        let mut text = self.whole.clone();
        for part in &self.more {
            if text.chars().count() + " | ".len() + part.chars().count() > width {
                break;
            }
            text = text + " | " + part;
        }
        text
    }
}

/// The place to which a run prints its progress.
pub trait Screen {
    /// Prints a line.
    fn line(&mut self, text: &str);
    /// Prints the line of a step, which a narrow screen shortens.
    fn step(&mut self, line: &StepLine) {
        self.line(&line.within(usize::MAX));
    }
    /// Shows the progress of the run: steps done, all steps, and the remaining time if it is known.
    fn progress(&mut self, step: usize, steps: usize, eta: Option<Duration>);
    /// Called when the run begins or resumes, with its trainer and its folder.
    fn begins(&mut self, trainer: &Trainer, dir: &Path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_screen_loses_the_last_parts_of_a_line() {
        let whole = "step 7/9 | loss 1.5000".to_owned();
        let line = StepLine {
            whole: whole.clone(),
            more: ["norm 1.000", "20 ms", "$0.10 of $1.20"].map(str::to_owned).to_vec(),
        };
        assert_eq!(line.within(80), "step 7/9 | loss 1.5000 | norm 1.000 | 20 ms | $0.10 of $1.20");
        assert_eq!(line.within(45), "step 7/9 | loss 1.5000 | norm 1.000 | 20 ms");
        assert_eq!(line.within(43), line.within(45));
        assert_eq!(line.within(42), "step 7/9 | loss 1.5000 | norm 1.000");
        assert_eq!(line.within(1), whole);
    }
}
