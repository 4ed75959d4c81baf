//! Training steps in tests: PyTorch's golden runs, weights in which every term shows, and a loop that collects reports.

use std::path::{Path, PathBuf};

use wgpt::data::{BatchSource, Loader, LoaderConfig, TokenSource};
use wgpt::formats::hf;
use wgpt::model::{Config, PARAMS, Weights, init};
use wgpt::ops::stepcontrol::Report;
use wgpt::reference::random::Random;
use wgpt::train::schedule::Shape;
use wgpt::train::{Optimizer, Schedule, Sizes, Trainer, TrainerOptions};

pub fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

pub fn steps_json(case: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(golden(case).join("steps.json")).expect("golden file");
    serde_json::from_str(&text).expect("golden file")
}

/// Twelve training steps that PyTorch made.
pub struct GoldenRun {
    pub json: serde_json::Value,
    pub weights: Weights,
    pub sizes: Sizes,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
}

impl GoldenRun {
    pub fn read(case: &str) -> Self {
        let json = steps_json(case);
        let h = &json["hyperparameters"];
        let real = |key: &str| h[key].as_f64().unwrap_or_else(|| panic!("{key}")) as f32;
        let size = |key: &str| h[key].as_u64().unwrap_or_else(|| panic!("{key}")) as usize;
        Self {
            weights: hf::load(&golden(case)).expect("golden folder").0,
            sizes: Sizes { batch: size("B"), context: size("T"), accumulation: size("accumulation") },
            optimizer: Optimizer { weight_decay: real("weight_decay"), clip: real("clip"), ..Optimizer::default() },
            schedule: Schedule {
                shape: Shape::Cosine,
                lr: real("lr"),
                warmup: size("warmup"),
                final_frac: real("final_lr_frac"),
                steps: 12,
            },
            json,
        }
    }

    /// Returns the options of a trainer in f32 for this run.
    pub fn options(&self) -> TrainerOptions {
        TrainerOptions { optimizer: self.optimizer, ..TrainerOptions::new(self.weights.config, self.sizes) }
    }

    /// Returns the run's batches, from the first.
    pub fn loader(&self, case: &str) -> Loader {
        let source = TokenSource::open(golden(case).join("tokens.bin")).expect("golden tokens");
        let config = LoaderConfig::new(self.sizes.batch, self.sizes.context, self.weights.config.vocab, None);
        Loader::new(vec![source], config).expect("loader")
    }
}

pub fn run(trainer: &mut Trainer, loader: &mut dyn BatchSource, schedule: &Schedule) -> Vec<Report> {
    let mut reports = Vec::new();
    for step in 0..schedule.steps {
        trainer.step(loader, step + 1, schedule.at(step)).expect("step");
        while let Some(report) = trainer.report(false).expect("report") {
            reports.push(report);
        }
    }
    while let Some(report) = trainer.report(true).expect("report") {
        reports.push(report);
    }
    reports
}

/// Returns weights that are not small and biases that are not zero, so that every term of a formula shows.
pub fn lively(config: Config, seed: u64) -> Weights {
    let mut weights = init::init(config, 42);
    let mut random = Random::new(seed);
    for (param, values) in PARAMS.iter().zip(&mut weights.tensors) {
        let real = if param.name == "wte" { config.vocab * config.channels } else { values.len() };
        for value in &mut values[..real] {
            *value += (0.3 * random.value()) as f32;
        }
    }
    weights
}
