//! `metrics.jsonl`: one line per step, written by a run and read by reports, plans and tests.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Fault, Result};
use crate::files::atomic::output_error;
use crate::files::lines::{Line, Lines};
use crate::files::open;

/// The file's name in a run's folder.
pub const METRICS: &str = "metrics.jsonl";
/// The longest line that is read. Those that wgpt writes have some 300 bytes.
const LINE_BYTES: u64 = 1 << 16;

/// One line of `metrics.jsonl`. Non-finite numbers become null.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Step, counted from 1; 0 for the validation before training.
    pub step: usize,
    /// The run's random id. Only the first line has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Mean training loss in nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f32>,
    /// Gradient norm before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f32>,
    /// Learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f32>,
    /// Milliseconds from the end of the previous step to the end of this one, without validation, samples and saves. The first
    /// step of a process counts from its own begin. Measured by the device's clock if it has one. On the host's clock, steps
    /// whose reports arrive together get equal shares of their time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms: Option<f32>,
    /// Milliseconds between the end of the previous step and the time in `ms`, in which no step ran: validation, samples, saves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<f32>,
    /// Tokens of the step divided by its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f32>,
    /// Validation loss after the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f32>,
    /// Accuracy on HellaSwag after the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hellaswag: Option<f32>,
    /// Factor by which gradients are multiplied in mixed precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f32>,
    /// z-score of the loss, if outliers are skipped; 0 while its window fills.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_z: Option<f32>,
    /// z-score of the gradient norm, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_z: Option<f32>,
    /// Whether the update was skipped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
}

impl Metric {
    /// Returns a line that has only a step.
    #[must_use]
    pub fn of_step(step: usize) -> Self {
        Self { step, ..Self::default() }
    }

    /// Returns the line of `metrics.jsonl`, including its newline.
    ///
    /// # Errors
    /// [`Error::Output`] if it cannot be written as JSON.
    pub(super) fn line(&self) -> Result<String> {
        let json = serde_json::to_string(self).map_err(|e| Error::output(Fault::at(METRICS, e.to_string())))?;
        Ok(json + "\n")
    }

    /// Returns the lines of `main.log`, in llm.c's format with steps from 0.
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

    /// Returns every value with its name in TensorBoard.
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

/// Returns the metrics in a file's lines. Stops at a line that is too long. Skips lines that are no metrics, as the last line of
/// a running run may be.
pub fn metrics<R: BufRead>(lines: Lines<R>) -> impl Iterator<Item = Metric> {
    lines.map_while(io::Result::ok).filter_map(|line| serde_json::from_slice(&line.bytes).ok())
}

/// Opens the records of the run in `run`.
///
/// # Errors
/// [`Error::Data`] if there are none, or the file is a link.
pub fn open(run: &Path) -> Result<impl Iterator<Item = Metric> + use<>> {
    let file = reader(run).map_err(|e| {
        let what = match e.kind() {
            io::ErrorKind::NotFound if !run.exists() => "no such file or folder".to_owned(),
            io::ErrorKind::NotFound => "holds no run".to_owned(),
            _ => format!("{METRICS} cannot be read ({e})"),
        };
        let fault = Fault::at(run.components().as_path().display(), what).expected(format!("a folder with {METRICS}"));
        Error::data(fault.advice(super::folder::siblings(run).unwrap_or_default()))
    })?;
    Ok(metrics(file))
}

pub(super) fn reader(run: &Path) -> io::Result<Lines<BufReader<File>>> {
    let file = open::no_follow(&run.join(METRICS), OpenOptions::new().read(true))?;
    Ok(Lines::new(BufReader::new(file), LINE_BYTES))
}

/// Returns the number of lines of a run's `metrics.jsonl` that belong to a checkpoint, and their bytes: at most `most` whole
/// lines, of steps below `below`. There are fewer if somebody has shortened the file.
///
/// # Errors
/// [`Error::Data`] if the first line belongs to another run, or a line is longer than any that wgpt writes; [`Error::Output`] if
/// the file cannot be read.
pub(super) fn checkpointed_lines(dir: &Path, run: &str, most: usize, below: usize) -> Result<(usize, u64)> {
    let path = dir.join(METRICS);
    let failed = |e: &io::Error| match e.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => {
            Error::data(Fault::at(path.display(), e.to_string()).expected("the lines that the run wrote"))
        }
        _ => output_error(&path, e),
    };
    let lines = match reader(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((0, 0)),
        lines => lines.map_err(|e| failed(&e))?,
    };
    let (mut there, mut bytes) = (0, 0);
    for line in lines {
        let Line { bytes: line, ends } = line.map_err(|e| failed(&e))?;
        if there == 0 {
            check_run(&path, &line, run)?;
        }
        let is_later = || serde_json::from_slice::<Metric>(&line).is_ok_and(|metric| metric.step >= below);
        if there == most || !ends || is_later() {
            break;
        }
        (there, bytes) = (there + 1, bytes + line.len() as u64 + 1);
    }
    if there < most {
        log::warn!("{}: has {there} of {most} lines; the record continues with a gap", path.display());
    }
    Ok((there, bytes))
}

/// Checks that the first line names no other run. Runs of earlier versions have no id.
fn check_run(path: &Path, line: &[u8], run: &str) -> Result<()> {
    match serde_json::from_slice::<Metric>(line).ok().and_then(|metric| metric.run) {
        Some(other) if other != run => {
            let fault = Fault::at(path.display(), "belongs to another run").expected(run).found(other);
            Err(Error::data(fault.advice("restore this run's file, or move that one away")))
        }
        _ => Ok(()),
    }
}
