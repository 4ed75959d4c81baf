//! The curves of a run: gathered as it goes, or read from its folder or from llm.c's `main.log`.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::GzDecoder;

use crate::error::{Error, Fault, Result};
use crate::files::lines::Lines;
use crate::files::open;
use crate::run::folder;
use crate::run::records::{self, Metric};

/// Bytes of a log that are read, unpacked.
const LOG_BYTES: u64 = 1 << 30;
/// Bytes of a line at most: what has longer ones is no log.
const LINE_BYTES: u64 = 1 << 16;
/// The inputs of a report, for messages.
const KINDS: &str = "a run's folder or a main.log of llm.c's form";

/// Step, counted from 1 (0 is before training), and value.
pub type Point = (u32, f32);

/// The curves of a run. Values that are not finite are left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// What it is called.
    pub name: String,
    /// Training loss, nats a token.
    pub loss: Vec<Point>,
    /// Validation loss, nats a token.
    pub val_loss: Vec<Point>,
    /// Accuracy on HellaSwag.
    pub hellaswag: Vec<Point>,
    /// Gradient norm before clipping.
    pub norm: Vec<Point>,
    /// Learning rate.
    pub lr: Vec<Point>,
    /// Tokens a second.
    pub speed: Vec<Point>,
    /// Steps done.
    pub step: usize,
    /// Steps whose update was skipped.
    pub skipped: usize,
    /// Seconds of all steps with what came between them; time in which no process ran is not in it.
    pub seconds: f64,
}

impl History {
    /// Adds the line of a step.
    pub fn push(&mut self, metric: &Metric) {
        let step = u32::try_from(metric.step).unwrap_or(u32::MAX);
        for (curve, value) in [
            (&mut self.loss, metric.loss),
            (&mut self.val_loss, metric.val_loss),
            (&mut self.hellaswag, metric.hellaswag),
            (&mut self.norm, metric.grad_norm),
            (&mut self.lr, metric.lr),
            (&mut self.speed, metric.tokens_per_s),
        ] {
            curve.extend(value.filter(|value| value.is_finite()).map(|value| (step, value)));
        }
        self.step = self.step.max(metric.step);
        self.skipped += usize::from(metric.skipped);
        let ms =
            [metric.ms, metric.pause_ms].into_iter().flatten().filter(|ms| ms.is_finite() && *ms > 0.0).sum::<f32>();
        self.seconds += f64::from(ms) / 1e3;
    }

    /// Tokens a second in the middle of the last hundred steps.
    #[must_use]
    pub fn recent_speed(&self) -> Option<f64> {
        let mut last: Vec<f32> = self.speed.iter().rev().take(100).map(|(_, value)| *value).collect();
        last.sort_by(f32::total_cmp);
        last.get(last.len() / 2).map(|value| f64::from(*value))
    }

    /// Reads a run's folder, or a log in the form of llm.c's `main.log` (`.gz` too).
    ///
    /// # Errors
    /// [`Error::Data`] if it is neither.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.components().as_path().display().to_string();
        if path.is_dir() {
            return Ok(Self { name, ..Self::of_metrics(records::open(path)?) });
        }
        let siblings = || folder::siblings(path).unwrap_or_default();
        let unread = |e: io::Error| Error::data(open::fault(&name, &e).expected(KINDS).advice(siblings()));
        let file = open::input(path).map_err(unread)?;
        let packed = path.extension().is_some_and(|extension| extension == "gz");
        let reader: Box<dyn Read> = if packed { Box::new(GzDecoder::new(file)) } else { Box::new(file) };
        let history = Self::of_log(BufReader::new(reader)).map_err(unread)?;
        if history.loss.is_empty() && history.val_loss.is_empty() {
            let what = "has no line such as `s:250 tel:6.1710` or `s:0 trl:11.0091 lr:0.000001 norm:15.37`";
            return Err(Error::data(Fault::at(name, what).expected(KINDS)));
        }
        // enough to tell it by: `llmc/main.log` of a long path
        let parts: Vec<_> = path.components().rev().take(2).map(|part| part.as_os_str().to_string_lossy()).collect();
        let name = parts.iter().rev().map(|part| part.trim_matches('/')).filter(|part| !part.is_empty());
        Ok(Self { name: name.collect::<Vec<_>>().join("/"), ..history })
    }

    fn of_metrics(metrics: impl Iterator<Item = Metric>) -> Self {
        let mut history = Self::default();
        metrics.for_each(|metric| history.push(&metric));
        history
    }

    /// The lines of a `main.log`, whose training steps count from 0. Where a step stands twice, as after llm.c resumes,
    /// the later line counts.
    fn of_log(log: impl BufRead) -> io::Result<Self> {
        let mut history = Self::default();
        for line in Lines::new(log.take(LOG_BYTES), LINE_BYTES) {
            let line = match line {
                // a packed log that still grows
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                line => line?.bytes,
            };
            let line = String::from_utf8_lossy(&line);
            let mut words = line.split_whitespace().filter_map(|word| word.split_once(':'));
            let Some(step) = words.next().filter(|(key, _)| *key == "s").and_then(|(_, step)| step.parse::<u32>().ok())
            else {
                continue;
            };
            for (key, value) in words {
                let Ok(value) = value.parse::<f32>() else { continue };
                let (curve, step) = match key {
                    "trl" => (&mut history.loss, step.saturating_add(1)),
                    "lr" => (&mut history.lr, step.saturating_add(1)),
                    "norm" => (&mut history.norm, step.saturating_add(1)),
                    "tel" => (&mut history.val_loss, step),
                    "eval" => (&mut history.hellaswag, step),
                    _ => continue,
                };
                while curve.last().is_some_and(|(last, _)| *last >= step) {
                    curve.pop();
                }
                if value.is_finite() {
                    curve.push((step, value));
                    history.step = history.step.max(step as usize);
                }
            }
        }
        Ok(history)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::lines::Lines;

    #[test]
    fn a_log_of_llmc_is_read_and_later_lines_count() {
        let log = "s:0 tel:11.0092\ns:0 trl:11.0091 lr:0.000001 norm:15.37\ns:1 trl:10.9598 lr:0.000002 norm:15.24\n\
                   hello\ns:x trl:3\ns:2 eval:0.2945\ns:1 trl:9.5 lr:0.000002 norm:-nan\n";
        let history = History::of_log(log.as_bytes()).unwrap();
        assert_eq!(history.loss, [(1, 11.0091), (2, 9.5)]);
        assert_eq!(history.val_loss, [(0, 11.0092)]);
        assert_eq!(history.hellaswag, [(2, 0.2945)]);
        assert_eq!(history.norm, [(1, 15.37)]);
        assert_eq!(history.step, 2);
    }

    #[test]
    fn metrics_are_read_up_to_a_line_that_is_cut_short() {
        let lines = "{\"step\":0,\"val_loss\":5.5}\n\
                     {\"step\":1,\"loss\":5.4,\"grad_norm\":2.0,\"lr\":0.1,\"ms\":500.0,\"tokens_per_s\":64.0}\n\
                     {\"step\":2,\"loss\":null,\"grad_norm\":null,\"lr\":0.1,\"ms\":500.0,\"pause_ms\":1000.0,\"skipped\":true}\n\
                     {\"step\":3,\"lo";
        let history = History::of_metrics(records::metrics(Lines::new(lines.as_bytes(), 1000)));
        assert_eq!((history.loss.as_slice(), history.step, history.skipped), (&[(1, 5.4)][..], 2, 1));
        assert!((history.seconds - 2.0).abs() < 1e-9);
        assert_eq!(history.recent_speed(), Some(64.0));
    }
}
