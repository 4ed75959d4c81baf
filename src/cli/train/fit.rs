//! Settings that depend on the adapter: `--batch auto`, `--precision auto`. A resumed run keeps its own values.

use wgpt::error::Result;
use wgpt::gpu::{Gpu, devices};
use wgpt::measure::plan::auto_batch;
use wgpt::train::Settings;
use wgpt::train::collective::mpi::{Layout, World};
use wgpt::train::settings::{Batch, Precision};

use super::Asked;
use crate::cli::{precision, ranks};

impl Asked {
    /// Chooses the devices of `--devices`, by their numbers; none for a run on one device. A new run has as many
    /// logical ranks as devices, a resumed one keeps its own, unless `--emulate-ranks` sets them.
    ///
    /// # Errors
    /// [`Error::Device`] if one is unknown; [`Error::Usage`] if one is listed twice.
    pub fn choose_devices(&mut self) -> Result<Vec<usize>> {
        let run = &self.recipe().run;
        let chosen = match &run.devices {
            Some(asked) => devices::choose(asked, run.share_device.unwrap_or(false))?,
            None => Vec::new(),
        };
        self.default_ranks(chosen.len().max(1));
        Ok(chosen)
    }

    /// Chooses the devices of a process among `local` ones of its machine, at position `at`. Without `--devices` and
    /// `--device` each takes its own GPU. The number of devices of the run is known later, and so are its ranks: see
    /// [`Asked::default_ranks`].
    ///
    /// # Errors
    /// Those of [`Asked::choose_devices`], and [`wgpt::error::Error::Usage`] if the machine has fewer GPUs than
    /// processes.
    pub fn choose_devices_of_rank(&self, (at, local): (usize, usize)) -> Result<Vec<usize>> {
        let run = &self.recipe().run;
        let share = run.share_device.unwrap_or(false);
        if let Some(asked) = &run.devices {
            return devices::choose(asked, share);
        }
        if run.device.is_some() {
            return Ok(Vec::new());
        }
        Ok(vec![ranks::own_device((at, local), share)?])
    }

    /// Returns this process' devices, by number or as asked for, and with `world` where all processes have theirs.
    ///
    /// # Errors
    /// Those of [`Asked::choose_devices`] and of [`ranks::lay_out`].
    pub fn lay_out(&mut self, world: Option<&World>) -> Result<(Vec<Option<String>>, Option<Layout>)> {
        let chosen = match world {
            None => self.choose_devices()?,
            Some(world) => self.choose_devices_of_rank(world.local())?,
        };
        let devices: Vec<Option<String>> = match &chosen[..] {
            [] => vec![self.recipe().run.device.clone()],
            several => several.iter().map(|number| Some(number.to_string())).collect(),
        };
        let shares = self.recipe().run.share_device.unwrap_or(false);
        let layout = world.map(|world| ranks::lay_out(world, &devices, shares)).transpose()?;
        world.map_or(Ok(()), |world| self.share_run(world))?;
        if let Some(layout) = &layout {
            self.default_ranks(layout.processes.len());
        }
        Ok((devices, layout))
    }

    /// Returns the number of devices of `--devices` in all processes that a launcher has started. Listed devices may be
    /// those of another machine.
    ///
    /// # Errors
    /// [`Error::Device`] for `all` if there is none.
    pub fn count_devices(&mut self) -> Result<usize> {
        let run = &self.recipe().run;
        let count = match run.devices.as_deref().map(|asked| devices::count(asked, run.share_device.unwrap_or(false))) {
            None => 1,
            Some(count) => match count? {
                Some(count) => count,
                None => devices::choose("all", false)?.len(),
            },
        };
        let count = count * ranks::launched_size();
        self.default_ranks(count);
        Ok(count)
    }

    /// Gives a new run as many logical ranks as there are devices. A resumed one keeps its own.
    pub fn default_ranks(&mut self, devices: usize) {
        let ranks = self.there.as_ref().map_or(devices, |there| there.settings.data.ranks);
        let given = &mut self.merged.recipe.data.emulate_ranks;
        *given = given.or((ranks > 1).then_some(ranks));
    }

    /// With `--batch auto`, sets the largest batch that fits into the memory of the adapter that `dry` opens without a
    /// device, or the batch of the run in the folder, if it may be resumed. Returns the dry device if a plan was made
    /// on it.
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

    /// Takes the number of steps from the run in the folder if it is not given, and the warm-up whose default depends
    /// on it: that run may have become longer.
    pub fn keep_horizon(&self, settings: &mut Settings) {
        let (Some(there), given) = (&self.there, &self.recipe().training) else { return };
        if given.steps.is_none() {
            settings.train.steps = there.settings.train.steps;
        }
        if given.warmup.is_none() && self.recipe().uses_stories() {
            settings.train.warmup = there.settings.train.warmup;
        }
    }

    /// With `--precision auto`, sets the precision in which the adapter is fast, or that of the run in the folder, if
    /// it may be resumed.
    ///
    /// # Errors
    /// [`wgpt::error::Error::Device`] if there is no such adapter.
    pub fn choose_precision(&self, settings: &mut Settings, device: Option<&str>) -> Result<()> {
        settings.train.precision = match (self.precision(), &self.there) {
            (Precision::Auto, Some(there)) => there.settings.elem(),
            (asked, _) => precision::resolve(asked, device)?,
        };
        Ok(())
    }
}
