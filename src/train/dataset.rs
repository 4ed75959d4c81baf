//! From a run's data settings to its batches and the rows of its validation.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::data::{
    Batches, FileContents, LoaderConfig, Part, Rows, Stories, TokenFormat, TokenSource, Tokenizer, markov, noted,
    split, token_paths, tokens_of_text_files,
};
use crate::error::{Error, Fault, Result};

use super::settings::{DataSettings, Source};
use crate::units::{count, counted};

/// What a byte-level model of generated stories is measured against, in nats a byte.
#[derive(Debug, Clone, Copy)]
pub struct Baseline {
    /// An order-2 Markov model's validation loss.
    pub markov: f64,
    /// The entropy rate of the grammar: no model can do better.
    pub entropy: f64,
}

/// The tokens of a run, before they are cut into batches.
pub struct Dataset {
    train: Vec<TokenSource>,
    validation: Vec<TokenSource>,
    /// One line for the header.
    pub summary: String,
    /// For generated stories.
    pub baseline: Option<Baseline>,
}

/// Bytes of generated stories.
const STORIES_BYTES: usize = 2 << 20;

/// Tokens of each source that are checked before the device is opened.
const LOOK: usize = 1 << 16;

fn source_tokens(sources: &[TokenSource]) -> usize {
    sources.iter().map(TokenSource::len).sum()
}

/// Returns the tokenizer that `data prepare` noted beside files of tokens, and the file that notes it.
///
/// # Errors
/// [`Error::Data`] if a note is broken; [`Error::Usage`] if two are not of one tokenizer.
pub fn noted_tokenizer(given: &[(&[PathBuf], Part)], format: TokenFormat) -> Result<Option<(String, Tokenizer)>> {
    let folders = given.iter().flat_map(|(given, part)| token_paths::folders(given, *part, format));
    let folders: BTreeSet<PathBuf> = folders.collect();
    noted::agreed(noted::tokenizers(folders.iter().map(PathBuf::as_path))?)
}

impl Dataset {
    /// Opens or makes the tokens.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file and what is wrong with it.
    pub fn open(settings: &DataSettings, seed: u32) -> Result<Self> {
        if let Source::Shards { train, validation, format } = &settings.source {
            let open = |given: &[PathBuf], part| token_paths::open(given, part, *format);
            let validation = open(validation, Part::Validation)?;
            // as llm.c does: the batch to be overfitted is the first of the validation
            let overfits = settings.overfit_one_batch && !validation.is_empty();
            let train = if overfits { validation.clone() } else { open(train, Part::Train)? };
            let both =
                validation.iter().filter(|source| train.iter().any(|other| other.name() == source.name())).count();
            let warning = match both {
                both if both > 0 && !overfits => {
                    format!(" (it shares {} with the training)", counted(both as u64, "shard"))
                }
                _ => String::new(),
            };
            let summary = format!(
                "{} in {}, {} for validation{warning}",
                counted(source_tokens(&train) as u64, "token"),
                counted(train.len() as u64, "shard"),
                count(source_tokens(&validation) as u64)
            );
            return Ok(Self { train, validation, summary, baseline: None });
        }
        let tokenizer = settings.tokenizer.as_ref().ok_or_else(|| {
            let fault = Fault::at("--tokenizer", "the weights do not say which tokenizer they are for");
            Error::usage(fault.advice("try --tokenizer gpt2 or bytes"))
        })?;
        let mut read_from = Vec::new();
        let (tokens, name) = match &settings.source {
            Source::Text(files) => {
                // before they are read: what changes meanwhile is seen later
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
        let (train, validation) = split(tokens);
        let baseline = (settings.source == Source::Stories).then(|| Baseline {
            markov: markov::nats_per_token(&train, &validation, tokenizer.vocab()),
            entropy: Stories::nats_per_byte(),
        });
        let (all, kept) = (train.len() + validation.len(), validation.len());
        let summary = format!(
            "{name}: {} ({}), the last {} for validation",
            counted(all as u64, "token"),
            tokenizer.name(),
            count(kept as u64)
        );
        let source = |tokens| TokenSource::from_tokens(name.clone(), tokens);
        // validation comes from the same files
        let train = source(train).read_from(read_from);
        Ok(Self { train: vec![train], validation: vec![source(validation)], summary, baseline })
    }

    /// Cuts the tokens into batches and validation rows. A step takes `micro_steps` batches, as many of each of `ranks` ranks, one
    /// rank's behind one another.
    ///
    /// # Errors
    /// [`Error::Data`] if a shard is shorter than one batch, validation shorter than one row, or a token id among the
    /// first of a shard past the vocabulary.
    pub fn cut(
        self,
        batch: usize,
        context: usize,
        vocab: usize,
        shuffle: Option<u32>,
        (ranks, micro_steps): (usize, usize),
    ) -> Result<(Batches, Option<Rows>)> {
        // a look into every shard before anything else is made; the rest is checked batch by batch
        let mut head = vec![0u16; LOOK];
        for source in self.train.iter().chain(&self.validation) {
            let n = source.len().min(LOOK);
            source.read_checked(0, &mut head[..n], vocab)?;
            source.release();
        }
        let config = LoaderConfig { ranks, ..LoaderConfig::new(batch, context, vocab, shuffle) };
        let loader = Batches::in_rows(self.train, config, micro_steps / ranks.max(1))?;
        if self.validation.is_empty() {
            return Ok((loader, None));
        }
        Ok((loader, Some(Rows::new(self.validation, context, vocab)?)))
    }
}
