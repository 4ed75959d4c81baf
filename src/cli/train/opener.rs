//! The devices of a run.

use std::cell::{Cell, RefCell};

use wgpt::error::Result;
use wgpt::gpu::{self, Caps, Elem, Gpu, Options};
use wgpt::measure::plan::check_memory;
use wgpt::measure::tune::{self, LoadedRecord};
use wgpt::train::Settings;

use super::super::precision;
use super::Asked;

/// Opens the devices of a run: once, and again after a loss.
pub struct Opener<'r> {
    settings: &'r Settings,
    devices: &'r [Option<String>],
    tokens_per_step: Option<usize>,
    /// The first device reuses the kernels of the plan.
    planner: Cell<Option<Gpu>>,
    /// The record of tuning that was loaded last.
    pub tuned: RefCell<LoadedRecord>,
    /// Capabilities of the devices that were opened last.
    pub opened: RefCell<Vec<Caps>>,
}

impl<'r> Opener<'r> {
    pub fn new(asked: &Asked, settings: &'r Settings, devices: &'r [Option<String>], planner: Option<Gpu>) -> Self {
        Self {
            settings,
            devices,
            tokens_per_step: asked.recipe().training.tokens_per_step,
            planner: Cell::new(planner),
            tuned: RefCell::new(LoadedRecord::Nothing),
            opened: RefCell::default(),
        }
    }

    /// Opens the devices, with their records of tuning, and checks that the run fits into their memory.
    pub fn open(&self) -> Result<Vec<Gpu>> {
        let settings = self.settings;
        let options = |device: &Option<String>| Options {
            device: device.clone(),
            checked: settings.run.checked,
            matrices: settings.elem() == Elem::F16,
            unrepaired: settings.run.no_spirv_repair,
            // for the header, which names kernels that spill
            statistics: true,
            ..Options::default()
        };
        let mut gpus = gpu::devices::open(&self.devices.iter().map(options).collect::<Vec<_>>())?;
        gpus.iter().try_for_each(|gpu| precision::check(settings.elem(), &gpu.caps))?;
        self.tuned.replace(tune::load_all(&mut gpus));
        if let Some(planner) = self.planner.take()
            && let Some(last) = gpus.pop()
        {
            // any of several devices: all record the same commands
            gpus.push(last.adopting_kernels(planner));
        }
        check_memory(&gpus[0], settings, settings.run.memory, self.tokens_per_step)?;
        Ok(gpus)
    }

    /// Records the capabilities of opened devices. Returns whether these are the first ones.
    pub fn record(&self, gpus: &[Gpu]) -> bool {
        self.opened.replace(gpus.iter().map(|gpu| gpu.caps.clone()).collect()).is_empty()
    }
}
