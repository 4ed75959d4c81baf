//! A summary of one run: its curves, settings, samples and figures.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use crate::error::Result;
use crate::files::{bounded, open};
use crate::measure::flops_per_token;
use crate::run::contents;
use crate::run::report::axis::short;
use crate::run::report::history::History;
use crate::train::settings::RunFile;
use crate::train::settings::file::CONFIG;
use crate::units;

/// Number of samples on the page, the newest ones.
const MAX_SAMPLES: usize = 5;
/// Bytes at the end of `samples.txt` that are searched for them.
const SAMPLE_BYTES: u64 = 64 << 10;
/// The longest `config.toml` that is read.
const CONFIG_BYTES: u64 = 1 << 20;

/// One run in a report.
#[derive(Debug, Clone, Default)]
pub struct RunSummary {
    /// Its curves.
    pub history: History,
    /// Its settings and facts, if they can be read.
    pub file: Option<RunFile>,
    /// Text of its `config.toml`.
    pub config: String,
    /// Steps and texts of its samples, the newest last.
    pub samples: Vec<(usize, String)>,
}

impl RunSummary {
    /// Reads a run's folder, or a log in the format of llm.c's `main.log`.
    ///
    /// # Errors
    /// [`crate::error::Error::Data`] if it is neither.
    pub fn read(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Ok(Self { history: History::read(path)?, ..Self::default() });
        }
        // the page shows what it reads, so links in an untrusted folder are not followed
        contents::check_files(path)?;
        let mut summary = Self { history: History::read(path)?, ..Self::default() };
        summary.config = bounded::read_text(&path.join(CONFIG), CONFIG_BYTES, "a run's settings").unwrap_or_default();
        summary.file = RunFile::parse(&summary.config, path).ok();
        summary.samples = samples(path);
        Ok(summary)
    }

    /// Returns model, precision, step and adapter in one line.
    #[must_use]
    pub fn about(&self) -> String {
        let Some(RunFile { settings, record }) = &self.file else { return String::new() };
        let (m, t) = (&settings.model.shape, &settings.train);
        let parameters = match m.parameters() {
            n @ 1_000_000.. => format!("{:.1} M", n as f64 / 1e6),
            n => units::count(n as u64),
        };
        let adapter = record.adapter.as_ref().map_or(String::new(), |adapter| format!(" · {adapter}"));
        let counted = |n: usize, noun: &str| units::counted(n as u64, noun);
        format!(
            "{parameters} parameters: {}, {}, {}, vocabulary {} · {} · {} per step, context {}{adapter}",
            counted(m.layers, "layer"),
            counted(m.heads, "head"),
            counted(m.channels, "channel"),
            units::count(m.vocab as u64),
            t.precision.name(),
            counted(t.tokens_per_step, "token"),
            units::count(t.context as u64)
        )
    }

    /// Returns the tokens in one step, if known.
    #[must_use]
    pub fn tokens_per_step(&self) -> Option<u64> {
        let of_settings = self.file.as_ref().map(|file| file.settings.train.tokens_per_step as u64);
        of_settings.or(self.history.tokens_per_step)
    }

    /// Returns the model FLOPs utilisation at one token per second, from 0 to 1, if the peak is known: 6 N + 6 L C T
    /// operations over the peak.
    #[must_use]
    pub fn mfu_per_token_per_second(&self) -> Option<f64> {
        let file = self.file.as_ref()?;
        let flops = flops_per_token(&file.settings.config(), file.settings.train.context);
        Some(flops / (file.peak_tflops()? * 1e12))
    }

    /// Returns the seconds that the remaining steps take at the speed of the last steps.
    #[must_use]
    pub fn remaining_seconds(&self) -> Option<f64> {
        let train = &self.file.as_ref()?.settings.train;
        let left = train.steps.saturating_sub(self.history.step) as f64;
        Some(left * train.tokens_per_step as f64 / self.history.recent_speed()?)
    }

    /// Returns name, value and note of each figure that is known.
    #[must_use]
    pub fn figures(&self) -> Vec<(&'static str, String, String)> {
        let (history, settings) = (&self.history, self.file.as_ref().map(|file| &file.settings));
        let count = |number: usize| units::count(number as u64);
        let mut list = Vec::new();
        let mut add = |name, value: String, note: String| list.push((name, value, note));
        let steps = settings.map_or(String::new(), |settings| format!("of {}", count(settings.train.steps)));
        add("step", count(history.step), steps);
        if let Some((_, loss)) = history.loss.last() {
            add("training loss", format!("{loss:.4}"), "nats/token".into());
        }
        if let Some((step, loss)) = history.val_loss.last() {
            let (at, best) =
                history.val_loss.iter().fold((0, f32::MAX), |best, p| if p.1 < best.1 { *p } else { best });
            let note = if best < *loss {
                format!("best {best:.4} after step {}", count(at as usize))
            } else {
                format!("after step {}", count(*step as usize))
            };
            add("validation loss", format!("{loss:.4}"), note);
        }
        if let Some((step, accuracy)) = history.hellaswag.last() {
            add("HellaSwag", format!("{accuracy:.4}"), format!("after step {}", count(*step as usize)));
        }
        if let Some(tokens) = self.tokens_per_step() {
            add("tokens", short(history.step as f64 * tokens as f64), String::new());
        }
        if let Some(speed) = history.recent_speed() {
            add("tokens/s", short(speed.round()), "median of the last 100 steps".into());
            if let (Some(part), Some(peak)) =
                (self.mfu_per_token_per_second(), self.file.as_ref().and_then(RunFile::peak_tflops))
            {
                let peak = format!("of {} TFLOP/s", short(peak));
                add("MFU", format!("{:.1} %", 100.0 * part * speed), peak);
            }
        }
        let clock = |seconds: f64| units::clock(Duration::from_secs_f64(seconds.clamp(0.0, 1e10)));
        if history.seconds > 0.0 {
            add("elapsed", clock(history.seconds), "with validation and saves".into());
        }
        let remaining = self.remaining_seconds();
        if let Some(seconds) = remaining.filter(|seconds| *seconds > 0.0) {
            add("remaining", clock(seconds), "steps only".into());
        }
        if let Some(price) = settings.and_then(|settings| settings.run.price_per_hour) {
            let dollars = |seconds: f64| format!("${:.2}", price * seconds / 3600.0);
            let whole = remaining.map_or(String::new(), |left| format!("of {}", dollars(history.seconds + left)));
            add("cost", dollars(history.seconds), format!("{whole} at ${price} per hour").trim().to_owned());
        }
        if history.skipped > 0 {
            add("skipped updates", count(history.skipped), String::new());
        }
        list
    }
}

/// Returns the newest samples of a run.
pub(super) fn samples(run: &Path) -> Vec<(usize, String)> {
    let mut bytes = Vec::new();
    let read = open::input(&run.join("samples.txt")).and_then(|mut file| {
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(length.saturating_sub(SAMPLE_BYTES)))?;
        // the file may grow in the meantime
        file.take(SAMPLE_BYTES).read_to_end(&mut bytes)
    });
    if read.is_err() {
        return Vec::new();
    }
    let mut found: Vec<(usize, String)> = Vec::new();
    for line in String::from_utf8_lossy(&bytes).lines() {
        let step = line.strip_prefix("--- step ").and_then(|rest| rest.strip_suffix(" ---")?.parse().ok());
        match (step, found.last_mut()) {
            (Some(step), _) => found.push((step, String::new())),
            (None, Some((_, text))) => *text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    found.drain(..found.len().saturating_sub(MAX_SAMPLES));
    found.iter_mut().for_each(|(_, text)| text.truncate(text.trim_end().len()));
    found
}
