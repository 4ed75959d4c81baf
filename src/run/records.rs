//! `metrics.jsonl`: a line a step, written by a run and read by reports, plans and tests.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Fault, Result};

/// The file's name in a run's folder.
pub const METRICS: &str = "metrics.jsonl";

/// One line of `metrics.jsonl`. Non-finite numbers become null.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// From 1; 0 for the validation before training.
    pub step: usize,
    /// Mean training loss in nats a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f32>,
    /// Gradient norm before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f32>,
    /// Learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f32>,
    /// Milliseconds from the end of the step before to the end of this one, by the device's clock where it has one (of a
    /// process's first step, from its own begin); validation, samples and saves excluded. On the host's clock steps whose
    /// reports come in together have equal shares of their time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms: Option<f32>,
    /// Milliseconds before that, since the end of the step before, in which no step ran: validation, samples, saves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<f32>,
    /// Tokens of the step over its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f32>,
    /// Validation loss after the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f32>,
    /// Accuracy on HellaSwag after the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hellaswag: Option<f32>,
    /// Factor of the gradients in mixed precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f32>,
    /// The loss's z-score, where outliers are skipped; 0 while its window fills.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_z: Option<f32>,
    /// The gradient norm's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_z: Option<f32>,
    /// True if the update was skipped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
}

impl Metric {
    /// A line of which only the step is known.
    #[must_use]
    pub fn of_step(step: usize) -> Self {
        Self { step, ..Self::default() }
    }

    /// Returns the line of `metrics.jsonl`, with its end.
    ///
    /// # Errors
    /// [`Error::Output`] if it cannot be written as JSON.
    pub(super) fn line(&self) -> Result<String> {
        let json = serde_json::to_string(self).map_err(|e| Error::output(Fault::at(METRICS, e.to_string())))?;
        Ok(json + "\n")
    }

    /// Returns the lines of `main.log`, in llm.c's form with steps from 0.
    pub(super) fn log_lines(&self) -> String {
        let mut log = String::new();
        if let (Some(loss), Some(lr), Some(norm)) = (self.loss, self.lr, self.grad_norm) {
            log += &format!("s:{} trl:{loss:.4} lr:{lr:.6} norm:{norm:.2}\n", self.step - 1);
        }
        if let Some(loss) = self.val_loss {
            log += &format!("s:{} tel:{loss:.4}\n", self.step);
        }
        if let Some(accuracy) = self.hellaswag {
            log += &format!("s:{} eval:{accuracy:.4}\n", self.step);
        }
        log
    }

    /// Every value with its name in TensorBoard.
    pub(super) fn scalars(&self) -> Vec<(&'static str, f32)> {
        let all = [
            ("train/loss", self.loss),
            ("train/grad_norm", self.grad_norm),
            ("train/lr", self.lr),
            ("train/loss_scale", self.loss_scale),
            ("train/loss_z", self.loss_z),
            ("train/norm_z", self.norm_z),
            ("val/loss", self.val_loss),
            ("val/hellaswag", self.hellaswag),
            ("speed/ms", self.ms),
            ("speed/tokens_per_s", self.tokens_per_s),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// Returns the lines of a file; one that is cut short, as the last of a run at work may be, is left out.
pub fn metrics(lines: impl BufRead) -> impl Iterator<Item = Metric> {
    lines.lines().map_while(std::io::Result::ok).filter_map(|line| serde_json::from_str(&line).ok())
}

/// Opens the records of the run in `run`.
///
/// # Errors
/// [`Error::Data`] if there are none.
pub fn open(run: &Path) -> Result<impl Iterator<Item = Metric>> {
    let file = File::open(run.join(METRICS)).map_err(|e| {
        let what = match e.kind() {
            std::io::ErrorKind::NotFound if !run.exists() => "no such file or folder".to_owned(),
            std::io::ErrorKind::NotFound => "holds no run".to_owned(),
            _ => format!("{METRICS} cannot be read ({e})"),
        };
        Error::data(Fault::at(run.components().as_path().display(), what).expected(format!("a folder with {METRICS}")))
    })?;
    Ok(metrics(BufReader::new(file)))
}
