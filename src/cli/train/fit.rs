//! Settings that depend on the adapter: `--batch auto`, `--precision auto`. A run that is resumed keeps its own.

use wgpt::error::Result;
use wgpt::gpu::Gpu;
use wgpt::measure::plan::auto_batch;
use wgpt::train::Settings;
use wgpt::train::settings::{Batch, Precision};

use super::Asked;
use crate::cli::precision;

impl Asked {
    /// With `--batch auto` sets the largest batch that memory holds on the adapter that `dry` opens without a device: that of
    /// the run in the folder, if it may be resumed. Returns the dry device if a plan was made on it.
    pub fn choose_batch(&self, settings: &mut Settings, dry: impl FnOnce() -> Result<Gpu>) -> Result<Option<Gpu>> {
        let asked = &self.recipe().training;
        if asked.batch != Some(Batch::Auto) {
            return Ok(None);
        }
        let (batch, planner) = match &self.there {
            Some(there) => (there.settings.train.batch, None),
            None => {
                let dry = dry()?;
                (auto_batch(&dry, settings, settings.run.memory, asked.tokens_per_step)?, Some(dry))
            }
        };
        let t = &mut settings.train;
        t.batch = batch;
        t.tokens_per_step = asked.tokens_per_step.unwrap_or(batch * t.context * settings.data.ranks.max(1));
        settings.run.val_rows = self.recipe().val_rows(settings.train.context, batch);
        settings.check()?;
        Ok(planner)
    }

    /// With `--precision auto` sets the precision that the adapter is fast in: that of the run in the folder, if it may be
    /// resumed.
    ///
    /// # Errors
    /// As [`precision::resolve`].
    pub fn choose_precision(&self, settings: &mut Settings) -> Result<()> {
        settings.train.precision = match (self.precision(), &self.there) {
            (Precision::Auto, Some(there)) => there.settings.elem(),
            (asked, _) => precision::resolve(asked, settings.run.device.as_deref())?,
        };
        Ok(())
    }
}
