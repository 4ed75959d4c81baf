//! Makes batches and validation rows from a run's data settings.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::data::{
    Batches, FileContents, LoaderConfig, Part, Rows, Stories, TokenFormat, TokenSource, Tokenizer, markov,
    recorded_tokenizer, split_validation, token_paths, tokens_of_text_files,
};
use crate::error::{Error, Fault, Result};
use crate::units;

use super::settings::{DataSettings, Source};

/// Reference losses for a byte-level model of generated stories, in nats per byte.
#[derive(Debug, Clone, Copy)]
pub struct Baseline {
    /// Validation loss of an order-2 Markov model.
    pub markov: f64,
    /// Entropy rate of the grammar, a lower bound for any model.
    pub entropy: f64,
}

/// The tokens of a run, before they are cut into batches.
pub struct Dataset {
    train: Vec<TokenSource>,
    validation: Vec<TokenSource>,
    /// A line for the run's header.
    pub summary: String,
    /// Reference losses, for generated stories only.
    pub baseline: Option<Baseline>,
}

/// Bytes of generated stories.
const STORIES_BYTES: usize = 2 << 20;

/// Number of tokens per source that are checked before the device is opened.
const CHECKED_TOKENS: usize = 1 << 16;

fn source_tokens(sources: &[TokenSource]) -> usize {
    sources.iter().map(TokenSource::len).sum()
}

/// Returns the tokenizer that `data prepare` recorded next to token files, and the file that records it.
///
/// # Errors
/// [`Error::Data`] if a record is invalid; [`Error::Usage`] if two records name different tokenizers.
pub fn recorded_tokenizer(given: &[(&[PathBuf], Part)], format: TokenFormat) -> Result<Option<(String, Tokenizer)>> {
    let folders = given.iter().flat_map(|(given, part)| token_paths::folders(given, *part, format));
    let folders: BTreeSet<PathBuf> = folders.collect();
    recorded_tokenizer::require_one(recorded_tokenizer::of_folders(folders.iter().map(PathBuf::as_path))?)
}

impl Dataset {
    /// Opens the token files, encodes the text files or generates the stories.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file and its fault.
    pub fn open(settings: &DataSettings, seed: u32) -> Result<Self> {
        if let Source::Shards { train, validation, format } = &settings.source {
            let open = |given: &[PathBuf], part| token_paths::open(given, part, *format);
            let validation = open(validation, Part::Validation)?;
            // as in llm.c, the batch to overfit is the first one of the validation data
            let overfits = settings.overfit_one_batch && !validation.is_empty();
            let train = if overfits { validation.clone() } else { open(train, Part::Train)? };
            let both =
                validation.iter().filter(|source| train.iter().any(|other| other.name() == source.name())).count();
            let warning = match both {
                both if both > 0 && !overfits => {
                    format!(" (training uses {} of its shards too)", units::count(both as u64))
                }
                _ => String::new(),
            };
            let summary = format!(
                "{} in {}, {} for validation{warning}",
                units::counted(source_tokens(&train) as u64, "token"),
                units::counted(train.len() as u64, "shard"),
                units::count(source_tokens(&validation) as u64)
            );
            return Ok(Self { train, validation, summary, baseline: None });
        }
        let tokenizer = settings.tokenizer.as_ref().ok_or_else(|| {
            let fault = Fault::at("--tokenizer", "the tokenizer of the weights is unknown");
            Error::usage(fault.advice("try --tokenizer gpt2 or bytes"))
        })?;
        let mut read_from = Vec::new();
        let (tokens, name) = match &settings.source {
            Source::Text(files) => {
                // recorded before the files are read, so that a later check finds changes during the read
                read_from.extend(files.iter().filter_map(|file| FileContents::of(file)));
                let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
                (tokens_of_text_files(files, tokenizer, settings.split_on.as_deref())?, names.join(", "))
            }
            _ => {
                let mut tokens = vec![tokenizer.end_of_text()];
                tokens.extend(tokenizer.encode(Stories::new(seed).text(STORIES_BYTES))?);
                (tokens, "generated stories".to_owned())
            }
        };
        let (train, validation) = split_validation(tokens);
        let baseline = (settings.source == Source::Stories).then(|| Baseline {
            markov: markov::nats_per_token(&train, &validation, tokenizer.vocab()),
            entropy: Stories::nats_per_byte(),
        });
        let [all, kept] = [train.len() + validation.len(), validation.len()].map(|tokens| tokens as u64);
        let (all, kept) = (units::counted(all, "token"), units::count(kept));
        let summary = format!("{name}: {all} ({}), the last {kept} for validation", tokenizer.name());
        let source = |tokens| TokenSource::from_tokens(name.clone(), tokens);
        // the validation tokens come from the same files
        let train = source(train).with_files(read_from);
        Ok(Self { train: vec![train], validation: vec![source(validation)], summary, baseline })
    }

    /// Cuts the tokens into batches and validation rows. A step takes `micro_steps` batches, the same number from each
    /// of `ranks` ranks; the batches of one rank come one after the other.
    ///
    /// # Errors
    /// [`Error::Data`] if a shard is shorter than one batch, if the validation data are shorter than one row, or if a
    /// token id at the start of a shard is outside the vocabulary.
    pub fn cut(
        self,
        batch: usize,
        context: usize,
        vocab: usize,
        shuffle: Option<u32>,
        (ranks, micro_steps): (usize, usize),
    ) -> Result<(Batches, Option<Rows>)> {
        // check the start of every shard first; the rest is checked batch by batch
        let mut head = vec![0u16; CHECKED_TOKENS];
        for source in self.train.iter().chain(&self.validation) {
            let n = source.len().min(CHECKED_TOKENS);
            source.read_checked(0, &mut head[..n], vocab)?;
            source.release();
        }
        let config = LoaderConfig { ranks, ..LoaderConfig::new(batch, context, vocab, shuffle) };
        let loader = Batches::with_consecutive(self.train, config, micro_steps / ranks.max(1))?;
        if self.validation.is_empty() {
            return Ok((loader, None));
        }
        Ok((loader, Some(Rows::new(self.validation, context, vocab)?)))
    }
}
