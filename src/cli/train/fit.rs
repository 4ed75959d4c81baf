//! `--batch auto`.

use wgpt::error::Result;
use wgpt::gpu::Caps;
use wgpt::train::plan::auto_batch;
use wgpt::train::settings::Settings;

use super::{Args, Batch};

impl Args {
    /// With `--batch auto` the largest batch that memory holds on the adapter that `caps` tells of: that of the run in
    /// --out, if there is one that may go on.
    pub fn choose_batch(&self, settings: &mut Settings, caps: impl FnOnce() -> Result<Caps>) -> Result<()> {
        if self.batch != Some(Batch::Auto) {
            return Ok(());
        }
        let batch = match self.noted_batch() {
            Some(batch) => batch,
            None => auto_batch(&caps()?, settings, self.memory, self.tokens_per_step)?,
        };
        let t = &mut settings.train;
        t.batch = batch;
        let ranks = settings.data.emulate_ranks.unwrap_or(1).max(1);
        t.tokens_per_step = self.tokens_per_step.unwrap_or(batch * t.context * ranks);
        settings.train.val_rows = self.val_rows(&settings.train);
        settings.check()
    }

    /// The batch of the run that --out holds.
    fn noted_batch(&self) -> Option<usize> {
        let out = self.out.as_ref().filter(|_| !self.restart)?;
        let text = std::fs::read_to_string(out.join("config.toml")).ok()?;
        let batch = text.parse::<toml::Table>().ok()?.get("train")?.get("batch")?.as_integer()?;
        usize::try_from(batch).ok().filter(|batch| *batch > 0)
    }
}
