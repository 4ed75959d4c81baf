//! What a run that goes on keeps: `--batch auto`, `--precision auto`, the shape of `--init`.

use wgpt::error::Result;
use wgpt::formats::{ModelInfo, checkpoint_weights};
use wgpt::gpu::{Elem, Gpu};
use wgpt::measure::plan::auto_batch;
use wgpt::run::folder;
use wgpt::train::settings::Settings;

use super::resolve::Start;
use super::{Args, Batch, Precision};

impl Args {
    /// With `--batch auto` sets the largest batch that memory holds on the adapter that `dry` opens without a device: that of
    /// the run in --out, if there is one that may go on. Returns the dry device if a plan was made on it.
    pub fn choose_batch(&self, settings: &mut Settings, dry: impl FnOnce() -> Result<Gpu>) -> Result<Option<Gpu>> {
        if self.batch != Some(Batch::Auto) {
            return Ok(None);
        }
        let (batch, planner) = match self.noted_batch() {
            Some(batch) => (batch, None),
            None => {
                let dry = dry()?;
                (auto_batch(&dry, settings, self.memory, self.tokens_per_step)?, Some(dry))
            }
        };
        let t = &mut settings.train;
        t.batch = batch;
        let ranks = settings.data.emulate_ranks.unwrap_or(1).max(1);
        t.tokens_per_step = self.tokens_per_step.unwrap_or(batch * t.context * ranks);
        settings.train.val_rows = self.val_rows(&settings.train);
        settings.check()?;
        Ok(planner)
    }

    /// What `--precision auto` comes to: a run that goes on keeps its own, else what the adapter is fast in.
    ///
    /// # Errors
    /// As [`Precision::resolve`].
    pub fn choose_precision(&self, settings: &mut Settings) -> Result<()> {
        let noted = self.noted("precision").filter(|_| self.precision == Precision::Auto);
        let elem = match noted.as_ref().and_then(toml::Value::as_str) {
            Some("f16") => Elem::F16,
            Some("f32") => Elem::F32,
            _ => self.precision.resolve(self.device.as_deref())?,
        };
        settings.train.precision = elem.name().into();
        Ok(())
    }

    /// The batch of the run that --out holds.
    fn noted_batch(&self) -> Option<usize> {
        usize::try_from(self.noted("batch")?.as_integer()?).ok().filter(|batch| *batch > 0)
    }

    /// What the run in --out notes of the weights that it began with, if it can go on from a checkpoint.
    pub fn noted_start(&self) -> Option<Start> {
        let out = self.out.as_ref().filter(|_| !self.restart && self.init.is_some())?;
        let path = self.init.clone()?;
        let (config, table) = checkpoint_weights::run_config(out).ok()?;
        let noted = |section: &str, key: &str| table.get(section)?.get(key)?.as_str().map(str::to_owned);
        let same = noted("model", "init")? == path.display().to_string();
        let info = noted("data", "tokenizer").map_or_else(ModelInfo::default, |name| ModelInfo::for_tokenizer(&name));
        (same && folder::checkpoints(out) > 0).then_some(Start { path, config, info })
    }

    /// A training setting of the run that --out holds.
    fn noted(&self, key: &str) -> Option<toml::Value> {
        let out = self.out.as_ref().filter(|_| !self.restart)?;
        let text = std::fs::read_to_string(out.join("config.toml")).ok()?;
        text.parse::<toml::Table>().ok()?.get("train")?.get(key).cloned()
    }
}
