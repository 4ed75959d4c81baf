//! How long a run takes on a software adapter, before it begins: there a model of a common size takes days.

use std::time::Duration;

use wgpt::gpu::Caps;
use wgpt::measure;
use wgpt::train::Settings;
use wgpt::train::settings::Source;
use wgpt::units;

use super::super::terminal::say;
use super::Asked;

/// FLOP/s of software Vulkan per core of the processor: 36 G in steps of 124M and 14 G in steps of 0.7 M parameters on
/// an AMD EPYC with AVX-512 (README, Speed). A large model's figure, since only its run is worth a warning.
const FLOPS_PER_CORE: f64 = 30e9;
/// Runs that are estimated to take less begin without a word.
const LONG: Duration = Duration::from_secs(15 * 60);
/// Longest time that is printed.
const LONGEST: f64 = 3.6e8;

/// Prints how long a run with `rows` validation rows takes, if it takes long and the adapter is software.
pub fn say(asked: &Asked, settings: &Settings, rows: usize, caps: &Caps) {
    if !caps.software {
        return;
    }
    let model = &asked.recipe().model;
    let advice = if asked.there.is_some() {
        Advice::Resumed
    } else if model.layers.is_some()
        || model.model.is_some()
        || model.init.is_some()
        || matches!(settings.data.source, Source::Shards { .. })
    {
        Advice::Less
    } else {
        Advice::FirstTry
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for (i, line) in of(settings, rows, cores, advice).iter().enumerate() {
        say!("{}{line}", if i == 0 { "time     " } else { "         " });
    }
}

/// Advice on how to make a run shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Advice {
    /// The flags of a small model on text.
    FirstTry,
    /// Smaller values of flags.
    Less,
    /// A run in progress: how much of it is left is known later.
    Resumed,
}

fn of(settings: &Settings, rows: usize, cores: usize, advice: Advice) -> Vec<String> {
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
    let all = format!(", {} for {}", time(whole), units::counted(train.steps as u64, "step"));
    let mut lines = vec![
        format!(
            "about {} per step, {} per validation{}",
            time(step),
            time(validation),
            if advice == Advice::Resumed { "" } else { &all }
        ),
        format!(
            "an estimate for a software adapter: {:.0} GFLOP/s on each of {}",
            FLOPS_PER_CORE / 1e9,
            units::counted(cores as u64, "core")
        ),
    ];
    let advice: &[&str] = match advice {
        Advice::FirstTry => &[
            "for a first try: --tokenizer bytes --layers 4 --heads 4",
            "--channels 128 --context 64 --batch 16 --steps 300",
        ],
        Advice::Less => &["less: a smaller model, --context, --steps or --val-steps"],
        Advice::Resumed => &[],
    };
    lines.extend(advice.iter().map(ToString::to_string));
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
        let lines = of(&large, 33, 2, Advice::FirstTry);
        assert_eq!(lines[0], "about 0:55 per step, 2:31 per validation, 1:36:27 for 100 steps");
        assert!(lines[1].contains("an estimate") && lines[1].contains("30 GFLOP/s on each of 2 cores"), "{lines:?}");
        assert!(lines[2].contains("--tokenizer bytes --layers 4") && lines[3].contains("--steps 300"), "{lines:?}");
        assert!(lines.iter().all(|line| line.len() <= 71), "{lines:?}");
        let small = settings(Config::new(128, 257, 3, 4, 128).expect("a model"), 100);
        assert_eq!(of(&small, 33, 2, Advice::FirstTry), [""; 0]);
        assert!(of(&large, 33, 2, Advice::Less)[2].contains("--val-steps"));
        let resumed = of(&large, 33, 2, Advice::Resumed);
        assert!(resumed.len() == 2 && resumed[0].ends_with("2:31 per validation"), "{resumed:?}");
    }
}
