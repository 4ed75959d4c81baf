//! `report.html`: one self-contained page of a run, written as it goes, or of several.

pub mod history;
pub mod page;
pub mod plot;
pub mod sheet;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use history::History;
pub use page::page;
pub use sheet::Sheet;

use crate::error::Result;
use crate::files::atomic;
use crate::run::home::Home;
use crate::run::records::Metric;
use crate::train::settings::RunFile;
use crate::units;

/// The page's name in a run's folder.
pub const REPORT: &str = "report.html";
/// How often the page is written when nothing happens, and how often at most when much does.
const SELDOM: Duration = Duration::from_secs(60);
const OFTEN: Duration = Duration::from_secs(2);

/// Keeps the figures of a run at work, and its page.
#[derive(Debug)]
pub struct Reporter {
    home: Arc<Home>,
    sheet: Sheet,
    reference: Option<History>,
    written: Option<Instant>,
    /// True once it was told that the page cannot be written.
    warned: bool,
}

impl Reporter {
    /// For the run of a folder, whose records so far are read; `reference` stands beside its curves.
    ///
    /// # Errors
    /// [`crate::error::Error::Data`] if the folder holds no run.
    pub fn new(home: &Arc<Home>, file: RunFile, reference: Option<History>) -> Result<Self> {
        let mut sheet = Sheet::read(home.dir())?;
        sheet.file = Some(file);
        Ok(Self { home: Arc::clone(home), sheet, reference, written: None, warned: false })
    }

    /// Reads the records again, after they were cut back.
    ///
    /// # Errors
    /// [`crate::error::Error::Data`] if they are gone.
    pub fn rewind(&mut self) -> Result<()> {
        self.sheet.history = History::read(self.home.dir())?;
        Ok(())
    }

    /// Takes the run's settings and facts as they are now.
    pub fn set_file(&mut self, file: &RunFile) {
        self.sheet.config = file.to_toml().unwrap_or_default();
        self.sheet.file = Some(file.clone());
    }

    /// Adds a line of the metrics.
    pub fn push(&mut self, metric: &Metric) {
        self.sheet.history.push(metric);
    }

    /// Returns the last parts of a status line, the most useful first: time to come, time so far, MFU, dollars, as far as
    /// they are known.
    #[must_use]
    pub fn status(&self, tokens_per_s: f64, eta: Option<Duration>) -> Vec<String> {
        let so_far = self.sheet.history.seconds;
        let mut parts: Vec<String> = eta.map(|eta| format!("ETA {}", units::clock(eta))).into_iter().collect();
        parts.push(format!("{} so far", units::clock(Duration::from_secs_f64(so_far.clamp(0.0, 1e10)))));
        if let Some(part) = self.sheet.utilisation_of_a_token_a_second() {
            parts.push(format!("{:.1} % MFU", 100.0 * part * tokens_per_s));
        }
        let price = self.sheet.file.as_ref().and_then(|file| file.settings.run.price_per_hour);
        if let Some(price) = price {
            let whole = eta.map(|eta| format!(" of ${:.2}", price * (so_far + eta.as_secs_f64()) / 3600.0));
            parts.push(format!("${:.2}{}", price * so_far / 3600.0, whole.unwrap_or_default()));
        }
        parts
    }

    /// True if the page is old.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.written.is_none_or(|at| at.elapsed() >= SELDOM)
    }

    /// Writes the page, unless it was written a moment ago and the run goes on. A page that cannot be written is told
    /// of once and ends nothing.
    pub fn write(&mut self, last: bool) {
        if !last && self.written.is_some_and(|at| at.elapsed() < OFTEN) {
            return;
        }
        self.written = Some(Instant::now());
        self.sheet.samples = sheet::samples(self.home.dir());
        let html = page(std::slice::from_ref(&self.sheet), self.reference.as_ref());
        if self.home.check().is_err() {
            // whatever the run does next says why
            return;
        }
        let result = atomic::write(&self.home.dir().join(REPORT), |out| out.write_all(html.as_bytes()));
        if let (Err(error), false) = (&result, self.warned) {
            log::warn!("{error}; the run continues without it");
        }
        self.warned |= result.is_err();
    }
}
