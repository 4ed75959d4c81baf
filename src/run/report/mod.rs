//! `report.html`: one self-contained page about a run, written while it trains, or about several runs.

pub mod axis;
pub mod curves;
pub mod history;
pub mod html;
pub mod plot;
pub mod run_summary;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use history::History;
pub use html::page;
pub use run_summary::RunSummary;

use crate::error::Result;
use crate::files::atomic;
use crate::run::home::Home;
use crate::run::records::Metric;
use crate::train::settings::RunFile;
use crate::units;

/// The page's name in a run's folder.
pub const REPORT: &str = "report.html";
/// The longest time between two writes of the page.
const MAX_AGE: Duration = Duration::from_secs(60);
/// The shortest time between two writes of the page.
const MIN_AGE: Duration = Duration::from_secs(2);

/// Collects the figures of a running run, and writes its page.
#[derive(Debug)]
pub struct Reporter {
    home: Arc<Home>,
    summary: RunSummary,
    reference: Option<History>,
    written: Option<Instant>,
    /// Whether a warning was printed that the page cannot be written.
    warned: bool,
}

impl Reporter {
    /// Reads the records so far of the run in a folder. `reference` is drawn with its curves.
    ///
    /// # Errors
    /// [`crate::error::Error::Data`] if the folder contains no run.
    pub fn new(home: &Arc<Home>, file: RunFile, reference: Option<History>) -> Result<Self> {
        let mut summary = RunSummary::read(home.dir())?;
        summary.file = Some(file);
        Ok(Self { home: Arc::clone(home), summary, reference, written: None, warned: false })
    }

    /// Reads the records again, after they were truncated.
    ///
    /// # Errors
    /// [`crate::error::Error::Data`] if they are missing.
    pub fn rewind(&mut self) -> Result<()> {
        self.summary.history = History::read(self.home.dir())?;
        Ok(())
    }

    /// Replaces the run's settings and facts.
    pub fn set_file(&mut self, file: &RunFile) {
        self.summary.config = file.to_toml().unwrap_or_default();
        self.summary.file = Some(file.clone());
    }

    /// Adds a line of the metrics.
    pub fn push(&mut self, metric: &Metric) {
        self.summary.history.push(metric);
    }

    /// Returns the last parts of a status line, the most useful first: time to come, time so far, MFU, dollars, as far as
    /// they are known.
    #[must_use]
    pub fn status(&self, tokens_per_s: f64, eta: Option<Duration>) -> Vec<String> {
        let so_far = self.summary.history.seconds;
        let mut parts: Vec<String> = eta.map(|eta| format!("ETA {}", units::clock(eta))).into_iter().collect();
        parts.push(format!("{} so far", units::clock(Duration::from_secs_f64(so_far.clamp(0.0, 1e10)))));
        if let Some(part) = self.summary.mfu_per_token_per_second() {
            parts.push(format!("{:.1} % MFU", 100.0 * part * tokens_per_s));
        }
        let price = self.summary.file.as_ref().and_then(|file| file.settings.run.price_per_hour);
        if let Some(price) = price {
            let whole = eta.map(|eta| format!(" of ${:.2}", price * (so_far + eta.as_secs_f64()) / 3600.0));
            parts.push(format!("${:.2}{}", price * so_far / 3600.0, whole.unwrap_or_default()));
        }
        parts
    }

    /// Returns whether the page is too old.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.written.is_none_or(|at| at.elapsed() >= MAX_AGE)
    }

    /// Writes the page, unless it was written a moment ago and this is not the last time. If that fails, prints one warning;
    /// the run continues.
    pub fn write(&mut self, last: bool) {
        if !last && self.written.is_some_and(|at| at.elapsed() < MIN_AGE) {
            return;
        }
        self.written = Some(Instant::now());
        self.summary.samples = run_summary::samples(self.home.dir());
        let html = page(std::slice::from_ref(&self.summary), self.reference.as_ref());
        if self.home.check().is_err() {
            // the next write of the run reports why
            return;
        }
        let result = atomic::write(&self.home.dir().join(REPORT), |out| out.write_all(html.as_bytes()));
        if let (Err(error), false) = (&result, self.warned) {
            log::warn!("{error}; the run continues without it");
        }
        self.warned |= result.is_err();
    }
}
