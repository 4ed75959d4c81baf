//! How long a run takes on a software adapter, before it begins: there a model of a common size takes days.

use std::time::Duration;

use wgpt::gpu::Caps;
use wgpt::measure;
use wgpt::train::Settings;
use wgpt::units;

/// FLOP/s of software Vulkan per core of the processor: 36 G in steps of 124M and 14 G in steps of 0.7 M parameters on
/// an AMD EPYC with AVX-512 (README, Speed). A large model's figure, since only its run is worth a warning.
const FLOPS_PER_CORE: f64 = 30e9;
/// Runs that are estimated to take less begin without a word.
const LONG: Duration = Duration::from_secs(15 * 60);
/// Longest time that is printed.
const LONGEST: f64 = 3.6e8;

/// Returns the lines about a run that takes long on an adapter of software; none for others.
pub fn lines(settings: &Settings, rows: usize, caps: &Caps, names_shape: bool) -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if !caps.software {
        return Vec::new();
    }
    of(settings, rows, cores, names_shape)
}

fn of(settings: &Settings, rows: usize, cores: usize, names_shape: bool) -> Vec<String> {
    let (train, run) = (&settings.train, &settings.run);
    let token = measure::flops_per_token(&settings.config(), train.context) / (FLOPS_PER_CORE * cores as f64);
    let step = token * train.tokens_per_step as f64;
    // a forward pass alone, over as many rows as a validation has
    let validation = token / 3.0 * (rows.min(run.val_rows.unwrap_or(usize::MAX)) * train.context) as f64;
    let between = (train.steps - 1).checked_div(run.val_every).unwrap_or(0);
    let validations = if rows == 0 { 0.0 } else { (between + 2) as f64 };
    let whole = step * train.steps as f64 + validation * validations;
    if whole < LONG.as_secs_f64() {
        return Vec::new();
    }
    let time = |seconds: f64| match seconds {
        short if short < 1.0 => format!("{:.0} ms", 1e3 * short),
        long => units::clock(Duration::from_secs_f64(long.min(LONGEST))),
    };
    let mut lines = vec![
        format!(
            "about {} per step, {} per validation, {} for {}",
            time(step),
            time(validation),
            time(whole),
            units::counted(train.steps as u64, "step")
        ),
        format!(
            "an estimate for a software adapter: {:.0} GFLOP/s on each of {}",
            FLOPS_PER_CORE / 1e9,
            units::counted(cores as u64, "core")
        ),
    ];
    if names_shape {
        lines.push("less: a smaller model, --context, --steps or --val-steps".into());
    } else {
        lines.push("for a first try: --tokenizer bytes --layers 4 --heads 4".into());
        lines.push("--channels 128 --context 64 --batch 16 --steps 300".into());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpt::model::Config;
    use wgpt::train::settings::Recipe;
    use wgpt::train::settings::resolve::InitWeights;

    fn settings(config: Config, steps: usize) -> Settings {
        let mut settings = Recipe::default().resolve(InitWeights::Random).expect("settings");
        settings.model.shape = config;
        (settings.train.batch, settings.train.context, settings.train.tokens_per_step) = (4, 1024, 4096);
        (settings.train.steps, settings.run.val_every, settings.run.val_rows) = (steps, 250, None);
        settings
    }

    #[test]
    fn a_large_model_is_estimated_and_a_small_one_is_not() {
        let large = settings(Config::from_descriptor("d12").expect("d12"), 100);
        // 3.29 TFLOP per step and 0.27 per row of validation at 60 GFLOP/s: 54.9 s and 4.57 s
        let lines = of(&large, 33, 2, false);
        assert_eq!(lines[0], "about 0:55 per step, 2:31 per validation, 1:36:27 for 100 steps");
        assert!(lines[1].contains("an estimate") && lines[1].contains("30 GFLOP/s on each of 2 cores"), "{lines:?}");
        assert!(lines[2].contains("--tokenizer bytes --layers 4") && lines[3].contains("--steps 300"), "{lines:?}");
        assert!(lines.iter().all(|line| line.len() <= 71), "{lines:?}");
        let small = settings(Config::new(128, 257, 3, 4, 128).expect("a model"), 100);
        assert_eq!(of(&small, 33, 2, false), [""; 0]);
        assert!(of(&large, 33, 2, true)[2].contains("--val-steps"));
    }
}
