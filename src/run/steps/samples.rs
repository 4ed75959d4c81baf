//! Samples of a run, and its saved model.

use crate::data::Stories;
use crate::error::{Error, Result};
use crate::files::atomic::output_error;
use crate::files::open;
use crate::formats::hf::{self, ModelInfo};
use crate::infer::{Generator, Sampling};
use crate::model::Weights;
use crate::run::contents::MODEL;
use crate::run::phase::Phase;
use crate::run::steps::Run;
use crate::train::Trainer;

/// Tokens of a sample.
const SAMPLE_TOKENS: usize = 300;
/// Temperature of a sample. Below 1, so that a small model's rare mistakes are drawn even more rarely.
const SAMPLE_TEMPERATURE: f32 = 0.6;

impl Run<'_> {
    pub(super) fn generator<'g>(&self, trainer: &Trainer<'g>) -> Result<Generator<'g>> {
        let context = trainer.sizes().context;
        Generator::new(trainer.gpu(), *trainer.config(), trainer.params(), trainer.activations(), context)
    }

    /// Returns a sample, or `None` if a signal interrupts it.
    pub(super) fn sample(&self, generator: &mut Generator) -> Result<Option<String>> {
        let Some(tokenizer) = self.tokenizer.as_ref().filter(|t| t.check().is_ok()) else {
            return Ok(Some(String::new()));
        };
        let _phase = self.phase.enter(Phase::Sampling);
        let seed = u64::from(self.settings.train.seed);
        let sampling = Sampling { temperature: SAMPLE_TEMPERATURE, seed, ..Sampling::default() };
        let end = u32::from(tokenizer.end_of_text());
        // a story follows a blank line; other texts follow an end-of-text token
        let prompt: Vec<u32> = if self.baseline.is_some() {
            tokenizer.encode("\n\n")?.into_iter().map(u32::from).collect()
        } else {
            vec![end]
        };
        let mut tokens = Vec::new();
        let made = generator.generate(&prompt, SAMPLE_TOKENS, Some(end), &sampling, |token| {
            tokens.push(token);
            match (self.stop)() {
                Some(signal) => Err(Error::stopped(signal)),
                None => Ok(()),
            }
        });
        match made {
            Err(Error::Stopped(_)) => return Ok(None),
            made => made?,
        }
        let mut text = String::from_utf8_lossy(&tokenizer.decode(&tokens)).into_owned();
        if self.baseline.is_some() {
            // the last word may be incomplete
            let whole = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len();
            text.truncate(if whole == 0 { text.len() } else { whole });
        }
        Ok(Some(text))
    }

    pub(super) fn save(&self, weights: &Weights) -> Result<()> {
        // the model may have fewer ids than the tokenizer of its shards
        let tokenizer = self.tokenizer.as_ref();
        let info = tokenizer.map_or_else(ModelInfo::default, |t| t.info(weights.config.vocab));
        self.folder.home().check()?;
        let dir = self.folder.dir().join(MODEL);
        open::make_own_folder(&dir).map_err(|e| output_error(&dir, &e))?;
        hf::save(&dir, weights, &info)?;
        tokenizer.map_or(Ok(false), |t| t.write_files(&dir, &weights.config)).map(drop)
    }
}

/// Returns how many of a text's words the grammar of the stories contains, and how many words there are.
#[must_use]
pub fn known_words(text: &str) -> (usize, usize) {
    let words = Stories::words();
    let lower = text.to_lowercase();
    let found: Vec<&str> =
        lower.split(|c: char| !(c.is_ascii_alphabetic() || c == '\'')).filter(|w| !w.is_empty()).collect();
    (found.iter().filter(|w| words.contains(**w)).count(), found.len())
}
