//! Compares a run's settings with those of a resume. Settings that affected a past loss must be equal.

use std::collections::BTreeMap;
use std::fmt;

use super::{Settings, same_path};
use crate::data::Tokenizer;
use crate::train::schedule::Schedule;

/// A setting that prevents a resume because it differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its key in recipes.
    pub key: &'static str,
    /// Its value in the run's folder.
    pub there: String,
    /// Its value in the resume.
    pub here: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} there, {} here", self.key, self.there, self.here)
    }
}

/// Key of the order in which gradients are summed over ranks. Earlier versions added the micro-steps of all ranks one
/// by one and did not record this.
const SUM: &str = "sum over ranks";

/// Returns the settings that affect the loss, by key, except the schedule and the data, which have a fingerprint.
fn loss_settings(settings: &Settings) -> Vec<(&'static str, String)> {
    let Settings { model, data, train, .. } = settings;
    let (shape, none) = (&model.shape, || "none".to_owned());
    let switch = |on: bool| on.to_string();
    vec![
        ("context (positions)", shape.positions.to_string()),
        ("vocab", shape.vocab.to_string()),
        ("layers", shape.layers.to_string()),
        ("heads", shape.heads.to_string()),
        ("channels", shape.channels.to_string()),
        ("split-on", data.split_on.as_ref().map_or_else(none, |text| format!("{text:?}"))),
        ("tokenizer", data.tokenizer.as_ref().map_or_else(none, Tokenizer::identity)),
        ("no-shuffle", switch(!data.shuffle)),
        ("overfit-one-batch", switch(data.overfit_one_batch)),
        ("emulate-ranks", data.ranks.to_string()),
        ("batch", train.batch.to_string()),
        ("context", train.context.to_string()),
        ("tokens-per-step", train.tokens_per_step.to_string()),
        ("weight-decay", train.weight_decay.to_string()),
        ("clip", train.clip.to_string()),
        ("skip-loss-z", train.skip_loss_z.to_string()),
        ("skip-norm-z", train.skip_norm_z.to_string()),
        ("beta1", train.beta1.to_string()),
        ("beta2", train.beta2.to_string()),
        ("eps", train.eps.to_string()),
        ("precision", train.precision.name().to_owned()),
        ("wire", train.wire.to_string()),
        ("seed", train.seed.to_string()),
    ]
}

/// Returns the schedule by key, without the number of steps, which may change.
fn rates(schedule: &Schedule) -> [(&'static str, String); 4] {
    [
        ("lr", schedule.lr.to_string()),
        ("schedule", schedule.shape.name().to_owned()),
        ("warmup", schedule.warmup.to_string()),
        ("final-lr-frac", schedule.final_frac.to_string()),
    ]
}

/// Returns the settings that affected the first `reached` steps of the run and that differ between `there`, the run's
/// folder, and `here`, the resume. A schedule may differ in later rates.
#[must_use]
pub fn differences(there: &Settings, here: &Settings, reached: usize) -> Vec<Difference> {
    let (mut old, mut new) = (loss_settings(there), loss_settings(here));
    let init = |settings: &Settings| settings.model.init.clone().unwrap_or_else(|| "none".into());
    if !same_path(&init(there), &init(here)) {
        old.push(("init", init(there).display().to_string()));
        new.push(("init", init(here).display().to_string()));
    }
    let (before, now) = (there.schedule(), Schedule { steps: there.train.steps, ..here.schedule() });
    // a run without a finished step has a schedule too
    if moved(&before, &now, reached.max(1)) {
        old.extend(rates(&before));
        new.extend(rates(&now));
    }
    unequal(old, new)
}

/// Returns the settings that affect the loss, by key, for a checkpoint to record. A checkpoint records rates and seed
/// separately. A tokenizer that cannot be used is left out: it has encoded nothing, and only its files identify it, of
/// which a run keeps a part.
#[must_use]
pub fn recorded(settings: &Settings) -> BTreeMap<String, String> {
    let encodes = settings.data.tokenizer.as_ref().is_none_or(|tokenizer| tokenizer.check().is_ok());
    let all = loss_settings(settings).into_iter().filter(|(key, _)| encodes || *key != "tokenizer");
    all.chain(sum(settings)).map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Returns the order in which gradients are summed, if there are several ranks.
fn sum(settings: &Settings) -> Option<(&'static str, String)> {
    (settings.data.ranks > 1).then(|| (SUM, "by a tree".to_owned()))
}

/// Returns the settings that a checkpoint of step `reached` records and that differ `here`. `saved` is the schedule at
/// that time: a run that was extended had other rates before. `settings` come from [`recorded`]; keys that only one side
/// has belong to another version and are skipped.
#[must_use]
pub fn saved_differences(
    saved: &Schedule,
    seed: u32,
    settings: &BTreeMap<String, String>,
    here: &Settings,
    reached: usize,
) -> Vec<Difference> {
    let (mut old, mut new) = (vec![("seed", seed.to_string())], vec![("seed", here.train.seed.to_string())]);
    let now = Schedule { steps: saved.steps, ..here.schedule() };
    if moved(saved, &now, reached) {
        old.extend(rates(saved));
        new.extend(rates(&now));
    }
    for (key, value) in loss_settings(here).into_iter().filter(|(key, _)| *key != "seed") {
        if let Some(there) = settings.get(key) {
            old.push((key, there.clone()));
            new.push((key, value));
        }
    }
    // a different number of ranks is reported as its own difference
    let same_ranks = settings.get("emulate-ranks").is_none_or(|ranks| *ranks == here.data.ranks.to_string());
    if let Some((key, value)) = sum(here).filter(|_| same_ranks) {
        old.push((key, settings.get(key).cloned().unwrap_or_else(|| "one by one".into())));
        new.push((key, value));
    }
    unequal(old, new)
}

/// Returns whether two schedules differ in one of the first `steps` steps.
fn moved(before: &Schedule, now: &Schedule, steps: usize) -> bool {
    (0..steps).any(|step| before.at(step).to_bits() != now.at(step).to_bits())
}

fn unequal(old: Vec<(&'static str, String)>, new: Vec<(&'static str, String)>) -> Vec<Difference> {
    let pairs = old.into_iter().zip(new).filter(|((_, there), (_, here))| there != here);
    pairs.map(|((key, there), (_, here))| Difference { key, there, here }).collect()
}
