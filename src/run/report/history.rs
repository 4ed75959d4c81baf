//! The recorded values of a run: collected while it trains, or read from its folder or from llm.c's `main.log`.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::GzDecoder;

use crate::error::{Error, Fault, Result};
use crate::files::lines::Lines;
use crate::files::open;
use crate::run::folder;
use crate::run::records::{self, Metric};
use crate::train::settings::RunFile;

/// The most bytes that are read of a log, unpacked.
const LOG_BYTES: u64 = 1 << 30;
/// The longest line of a log. A file with a longer one is not a log.
const LINE_BYTES: u64 = 1 << 16;
/// The inputs of a report, for messages.
const KINDS: &str = "a run's folder or a main.log in llm.c's format";

/// A step, counted from 1 (0 is before training), and a value.
pub type Point = (u32, f32);

/// The recorded values of a run. Values that are not finite are left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// A short name: the last two parts of its path.
    pub name: String,
    /// Its path, as it was given.
    pub path: String,
    /// Tokens per step, if the run's settings are there.
    pub tokens_per_step: Option<u64>,
    /// Training loss in nats per token.
    pub loss: Vec<Point>,
    /// Validation loss in nats per token.
    pub val_loss: Vec<Point>,
    /// Accuracy on HellaSwag.
    pub hellaswag: Vec<Point>,
    /// Gradient norm before clipping.
    pub norm: Vec<Point>,
    /// Learning rate.
    pub lr: Vec<Point>,
    /// Tokens per second.
    pub speed: Vec<Point>,
    /// Number of the last step.
    pub step: usize,
    /// Number of steps whose update was skipped.
    pub skipped: usize,
    /// Seconds of all steps and of the pauses between them, without the time in which no process ran.
    pub seconds: f64,
}

impl History {
    /// Adds a step.
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

    /// Returns the median of the tokens per second of the last hundred steps.
    #[must_use]
    pub fn recent_speed(&self) -> Option<f64> {
        let mut last: Vec<f32> = self.speed.iter().rev().take(100).map(|(_, value)| *value).collect();
        last.sort_by(f32::total_cmp);
        last.get(last.len() / 2).map(|value| f64::from(*value))
    }

    /// Reads a run's folder, or a log in the format of llm.c's `main.log`, which may be a `.gz`.
    ///
    /// # Errors
    /// [`Error::Data`] if it is neither.
    pub fn read(path: &Path) -> Result<Self> {
        let place = path.components().as_path().display().to_string();
        let name = short_name(path);
        if path.is_dir() {
            let history = Self::of_metrics(records::open(path)?);
            let tokens_per_step = RunFile::read(path).ok().map(|file| file.settings.train.tokens_per_step as u64);
            return Ok(Self { name, path: place, tokens_per_step, ..history });
        }
        let unread = |e: io::Error| {
            let fault = open::fault(&place, &e).expected(KINDS);
            Error::data(match folder::siblings(path) {
                Some(runs) => fault.advice(runs),
                None => fault,
            })
        };
        let file = open::input(path).map_err(unread)?;
        let packed = path.extension().is_some_and(|extension| extension == "gz");
        let reader: Box<dyn Read> = if packed { Box::new(GzDecoder::new(file)) } else { Box::new(file) };
        let history = Self::of_log(BufReader::new(reader)).map_err(unread)?;
        if history.loss.is_empty() && history.val_loss.is_empty() {
            let what = "has no line such as `s:250 tel:6.1710` or `s:0 trl:11.0091 lr:0.000001 norm:15.37`";
            return Err(Error::data(Fault::at(place, what).expected(KINDS)));
        }
        Ok(Self { name, path: place, ..history })
    }

    fn of_metrics(metrics: impl Iterator<Item = Metric>) -> Self {
        let mut history = Self::default();
        metrics.for_each(|metric| history.push(&metric));
        history
    }

    /// Returns the values in a `main.log`, whose training steps count from 0. If a step has two lines, as after a resume of
    /// llm.c, the later one counts.
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

/// Returns the last two parts of a path, as seen from the current directory if the path is in it: `runs/2`, however the
/// path was given.
fn short_name(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let here = std::env::current_dir().unwrap_or_default();
    let inside = absolute.strip_prefix(here).ok().filter(|inside| inside.components().next().is_some());
    let parts: Vec<_> = inside.unwrap_or(&absolute).components().collect();
    let last = parts[parts.len().saturating_sub(2)..].iter().map(|part| part.as_os_str().to_string_lossy());
    last.map(|part| part.trim_matches('/').to_owned()).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
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
    fn a_name_does_not_depend_on_how_the_path_was_given() {
        let here = std::env::current_dir().unwrap();
        for (path, name) in [
            ("runs/2".into(), "runs/2"),
            ("./runs/2/".into(), "runs/2"),
            (here.join("runs/2"), "runs/2"),
            ("run".into(), "run"),
            (here.join("run"), "run"),
            ("/a/b/llmc/main.log".into(), "llmc/main.log"),
            ("/x".into(), "x"),
        ] {
            assert_eq!(short_name(&path), name, "{}", path.display());
        }
        assert!(!short_name(Path::new(".")).is_empty());
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
