//! What a report tells of one run.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use crate::error::Result;
use crate::files::{bounded, open};
use crate::measure::flops_per_token;
use crate::run::contents;
use crate::run::report::history::History;
use crate::train::settings::RunFile;
use crate::train::settings::file::CONFIG;
use crate::units;

/// Samples that a report shows, the newest.
const MOST_SAMPLES: usize = 5;
/// Bytes at the end of `samples.txt` that they are looked for in.
const SAMPLE_BYTES: u64 = 64 << 10;

/// Bytes of a run's `config.toml` at most.
const CONFIG_BYTES: u64 = 1 << 20;

/// One run.
#[derive(Debug, Clone, Default)]
pub struct Sheet {
    /// Its curves.
    pub history: History,
    /// Its settings and facts, if it has any that can be read.
    pub file: Option<RunFile>,
    /// Its `config.toml`.
    pub config: String,
    /// Steps and texts, the newest last.
    pub samples: Vec<(usize, String)>,
}

impl Sheet {
    /// Reads a run's folder, or a log in the form of llm.c's `main.log`.
    ///
    /// # Errors
    /// [`crate::error::Error::Data`] if it is neither.
    pub fn read(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Ok(Self { history: History::read(path)?, ..Self::default() });
        }
        // a page shows what it reads: nothing behind a link of a stranger's folder
        contents::check_files(path)?;
        let mut sheet = Self { history: History::read(path)?, ..Self::default() };
        sheet.config = bounded::read_text(&path.join(CONFIG), CONFIG_BYTES, "a run's settings").unwrap_or_default();
        sheet.file = RunFile::parse(&sheet.config, path).ok();
        sheet.samples = samples(path);
        Ok(sheet)
    }

    /// Adapter, model and data in one line.
    #[must_use]
    pub fn about(&self) -> String {
        let Some(RunFile { settings, record }) = &self.file else { return String::new() };
        let (m, t) = (&settings.model.shape, &settings.train);
        let parameters = m.parameters() as f64 / 1e6;
        let adapter = record.adapter.as_ref().map_or(String::new(), |adapter| format!(" · {adapter}"));
        format!(
            "{parameters:.1} M parameters: {} layers, {} heads, {} channels, vocabulary {} · {} · {} tokens a step, \
             context {}{adapter}",
            m.layers,
            m.heads,
            m.channels,
            m.vocab,
            t.precision.name(),
            t.tokens_per_step,
            t.context
        )
    }

    /// The part of the peak that one token a second takes, if a peak is known: 6 N + 6 L C T operations over it.
    #[must_use]
    pub fn utilisation_of_a_token_a_second(&self) -> Option<f64> {
        let file = self.file.as_ref()?;
        let flops = flops_per_token(&file.settings.config(), file.settings.train.context);
        Some(flops / (file.peak_tflops()? * 1e12))
    }

    /// Seconds to come at the speed of the last steps.
    #[must_use]
    pub fn seconds_to_come(&self) -> Option<f64> {
        let train = &self.file.as_ref()?.settings.train;
        let left = train.steps.saturating_sub(self.history.step) as f64;
        Some(left * train.tokens_per_step as f64 / self.history.recent_speed()?)
    }

    /// Name, value and note of each figure that is known.
    #[must_use]
    pub fn figures(&self) -> Vec<(&'static str, String, String)> {
        let (history, settings) = (&self.history, self.file.as_ref().map(|file| &file.settings));
        let mut list = Vec::new();
        let mut add = |name, value: String, note: String| list.push((name, value, note));
        let steps = settings.map_or(String::new(), |settings| format!("of {}", settings.train.steps));
        add("step", history.step.to_string(), steps);
        if let Some((_, loss)) = history.loss.last() {
            add("training loss", format!("{loss:.4}"), "nats a token".into());
        }
        if let Some((step, loss)) = history.val_loss.last() {
            let (at, best) =
                history.val_loss.iter().fold((0, f32::MAX), |best, p| if p.1 < best.1 { *p } else { best });
            let note =
                if best < *loss { format!("best {best:.4} after step {at}") } else { format!("after step {step}") };
            add("validation loss", format!("{loss:.4}"), note);
        }
        if let Some((step, accuracy)) = history.hellaswag.last() {
            add("HellaSwag", format!("{accuracy:.4}"), format!("after step {step}"));
        }
        if let Some(settings) = settings {
            let tokens = history.step as f64 * settings.train.tokens_per_step as f64;
            add("tokens", super::plot::short(tokens), String::new());
        }
        if let Some(speed) = history.recent_speed() {
            add("tokens a second", super::plot::short(speed.round()), "middle of the last 100 steps".into());
            if let (Some(part), Some(peak)) =
                (self.utilisation_of_a_token_a_second(), self.file.as_ref().and_then(RunFile::peak_tflops))
            {
                let peak = format!("of {} TFLOP/s", super::plot::short(peak));
                add("MFU", format!("{:.1} %", 100.0 * part * speed), peak);
            }
        }
        let clock = |seconds: f64| units::clock(Duration::from_secs_f64(seconds.clamp(0.0, 1e10)));
        if history.seconds > 0.0 {
            add("time so far", clock(history.seconds), "steps and what came between".into());
        }
        let to_come = self.seconds_to_come();
        if let Some(seconds) = to_come.filter(|seconds| *seconds > 0.0) {
            add("time to come", clock(seconds), "steps alone".into());
        }
        if let Some(price) = settings.and_then(|settings| settings.run.price_per_hour) {
            let dollars = |seconds: f64| format!("${:.2}", price * seconds / 3600.0);
            let whole = to_come.map_or(String::new(), |left| format!("of {}", dollars(history.seconds + left)));
            add("cost", dollars(history.seconds), format!("{whole} at ${price} an hour").trim().to_owned());
        }
        if history.skipped > 0 {
            add("skipped updates", history.skipped.to_string(), String::new());
        }
        list
    }
}

/// The newest samples of a run.
pub(super) fn samples(run: &Path) -> Vec<(usize, String)> {
    let mut bytes = Vec::new();
    let read = open::input(&run.join("samples.txt")).and_then(|mut file| {
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(length.saturating_sub(SAMPLE_BYTES)))?;
        // it may grow meanwhile
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
    found.drain(..found.len().saturating_sub(MOST_SAMPLES));
    found.iter_mut().for_each(|(_, text)| text.truncate(text.trim_end().len()));
    found
}
