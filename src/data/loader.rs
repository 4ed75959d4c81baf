//! Training batches in llm.c's exact order.
//!
//! A *sample* is P·B·T consecutive tokens (P ranks), of which rank r reads the r-th B·T. A shard of n tokens has
//! floor((n−1) / (P·B·T)) samples, and the tokens after them are not used. With shuffling, an epoch visits the shards
//! in a random order, and the samples of each shard in a random order. Source: llm.c's `dataloader.h`.

use crate::data::batch::Batch;
use crate::data::batches::BatchSource;
use crate::data::tokens::TokenSource;
use crate::error::{Error, Result};
use crate::random::mt19937::{Mt19937, Mt19937State};
use crate::units::count;
use serde::{Deserialize, Serialize};

/// Settings of a [`Loader`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Sequences in a batch, B.
    pub batch: usize,
    /// Tokens of a sequence, T.
    pub context: usize,
    /// Vocabulary V: every id must be below it.
    pub vocab: usize,
    /// Seed of the shuffle; `None` reads in file order.
    pub shuffle: Option<u32>,
    /// Index of this process among the `ranks` processes, from 0.
    pub rank: usize,
    /// Number of processes P.
    pub ranks: usize,
}

impl LoaderConfig {
    /// Returns the settings of a single process.
    #[must_use]
    pub fn new(batch: usize, context: usize, vocab: usize, shuffle: Option<u32>) -> Self {
        Self { batch, context, vocab, shuffle, rank: 0, ranks: 1 }
    }

    /// Returns the number of tokens of a sample, P·B·T.
    #[must_use]
    pub fn sample_tokens(&self) -> usize {
        // huge settings must lead to the error about too few tokens, not to an overflow
        self.ranks.saturating_mul(self.batch).saturating_mul(self.context)
    }

    fn check(&self) -> Result<()> {
        for (name, value) in [("batch", self.batch), ("context", self.context), ("ranks", self.ranks)] {
            if value == 0 {
                return Err(Error::usage(format!("loader: {name} is wrong, expected at least 1, got 0")));
            }
        }
        if self.rank >= self.ranks {
            return Err(Error::usage(format!(
                "loader: rank is wrong, expected below {} ranks, got {}",
                self.ranks, self.rank
            )));
        }
        Ok(())
    }
}

/// The position of a [`Loader`] in a checkpoint. It fits only the same shards, B, T, P, and shuffling on or off as
/// before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderState {
    /// Epochs completed.
    pub epoch: u64,
    /// Order of the shards in this epoch: a permutation of 0 to shards−1.
    pub shards: Vec<u32>,
    /// Order of the samples in the current shard; empty without shuffling.
    pub samples: Vec<u32>,
    /// State of the shuffle's random generator; `None` without shuffling.
    pub rng: Option<Mt19937State>,
    /// Position of the current shard in `shards`.
    pub shard: usize,
    /// Samples of the current shard already handed out.
    pub sample: usize,
}

/// An endless source of training batches, epoch after epoch.
#[derive(Debug)]
pub struct Loader {
    sources: Vec<TokenSource>,
    config: LoaderConfig,
    rng: Option<Mt19937>,
    epoch: u64,
    shards: Vec<u32>,
    samples: Vec<u32>,
    shard: usize,
    sample: usize,
    /// The B·T+1 tokens of the current batch.
    tokens: Vec<u16>,
    /// The last batch lent; empty before the first.
    batch: Batch,
}

impl Loader {
    /// Returns a loader at the start of the first epoch.
    ///
    /// # Errors
    /// [`Error::Usage`] if a size is 0 or `rank` is not below `ranks`. [`Error::Data`] if there is no source, or a
    /// source has fewer than P·B·T+1 tokens.
    pub fn new(sources: Vec<TokenSource>, config: LoaderConfig) -> Result<Self> {
        config.check()?;
        check_sources(&sources, config.sample_tokens())?;
        let mut loader = Self {
            shards: (0..sources.len() as u32).collect(),
            sources,
            config,
            // llm.c's ranks have different orders. Each reads only its own slice of a sample, so every token is still
            // seen once per epoch.
            rng: config.shuffle.map(|seed| Mt19937::new(seed.wrapping_add(config.rank as u32))),
            epoch: 0,
            samples: Vec::new(),
            shard: 0,
            sample: 0,
            tokens: vec![0; config.batch * config.context + 1],
            batch: Batch::default(),
        };
        loader.start_epoch();
        Ok(loader)
    }

    /// Skips the next batch without reading it.
    pub(super) fn skip(&mut self) {
        self.advance_to_sample();
        self.sample += 1;
    }

    fn advance_to_sample(&mut self) {
        if self.sample >= self.samples_in(self.source()) {
            self.advance();
        }
    }

    /// Overwrites `batch` with the next batch. An error does not change the position.
    ///
    /// # Errors
    /// [`Error::Data`] if a file can no longer be read or a token id is outside the vocabulary.
    pub(super) fn fill(&mut self, batch: &mut Batch) -> Result<()> {
        self.advance_to_batch()?;
        batch.fill(&self.tokens);
        self.sample += 1;
        Ok(())
    }

    /// Returns epoch, shard, and samples of the shard handed out, as in [`LoaderState`].
    pub(super) fn place(&self) -> (u64, usize, usize) {
        (self.epoch, self.shard, self.sample)
    }

    /// Reads the tokens of the current batch.
    fn advance_to_batch(&mut self) -> Result<()> {
        let n = self.config.batch * self.config.context;
        self.advance_to_sample();
        let at = self.sample_index() * self.config.sample_tokens() + self.config.rank * n;
        self.sources[self.source()].read_checked(at, &mut self.tokens, self.config.vocab)
    }

    /// Returns the settings.
    #[must_use]
    pub fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// Returns the number of tokens in all sources, including the unused tails. llm.c divides it by the tokens per step
    /// for the number of steps per epoch.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.sources.iter().map(TokenSource::len).sum()
    }

    /// Returns the number of batches per epoch of one rank.
    #[must_use]
    pub fn batches_per_epoch(&self) -> usize {
        (0..self.sources.len()).map(|source| self.samples_in(source)).sum()
    }

    /// Returns the number of tokens per epoch of all ranks together.
    #[must_use]
    pub fn tokens_per_epoch(&self) -> usize {
        self.batches_per_epoch() * self.config.sample_tokens()
    }

    /// Returns the current position.
    #[must_use]
    pub fn state(&self) -> LoaderState {
        LoaderState {
            epoch: self.epoch,
            shards: self.shards.clone(),
            samples: self.samples.clone(),
            rng: self.rng.as_ref().map(Mt19937::state),
            shard: self.shard,
            sample: self.sample,
        }
    }

    /// Continues at the batch at which `state` was taken.
    ///
    /// # Errors
    /// [`Error::Data`] if the state does not fit these sources and settings. The loader is then unchanged.
    pub fn restore(&mut self, state: LoaderState) -> Result<()> {
        self.check_state(&state)?;
        let rng = state.rng.as_ref().map(Mt19937::from_state).transpose()?;
        self.sources[self.source()].release();
        let LoaderState { epoch, shards, samples, rng: _, shard, sample } = state;
        (self.epoch, self.shards, self.samples, self.rng) = (epoch, shards, samples, rng);
        (self.shard, self.sample) = (shard, sample);
        Ok(())
    }

    fn check_state(&self, state: &LoaderState) -> Result<()> {
        let wrong = |what: &str, expected: String, got: String| {
            Err(Error::data(format!("loader.restore: {what}, expected {expected}, got {got}; has the data changed?")))
        };
        let shards = self.sources.len();
        if !is_permutation(&state.shards, shards) {
            let got = format!("{} entries", state.shards.len());
            return wrong("bad order of shards", format!("a permutation of {shards}"), got);
        }
        if state.shard >= shards {
            return wrong("bad shard", format!("below {shards}"), state.shard.to_string());
        }
        if state.rng.is_some() != self.rng.is_some() {
            let word = |shuffled| if shuffled { "shuffled" } else { "in file order" }.to_owned();
            return wrong("another order", word(self.rng.is_some()), word(state.rng.is_some()));
        }
        let samples = self.samples_in(state.shards[state.shard] as usize);
        if !is_permutation(&state.samples, if self.rng.is_some() { samples } else { 0 }) {
            let got = format!("{} entries", state.samples.len());
            return wrong("bad order of samples", format!("a permutation of {samples}"), got);
        }
        if state.sample > samples {
            return wrong("bad sample", format!("at most {samples}"), state.sample.to_string());
        }
        Ok(())
    }

    /// Returns the index of the current shard in `sources`.
    fn source(&self) -> usize {
        self.shards[self.shard] as usize
    }

    /// Returns the number of whole samples in a source. The last one needs one more token for its last target.
    fn samples_in(&self, source: usize) -> usize {
        (self.sources[source].len() - 1) / self.config.sample_tokens()
    }

    /// Returns the index of the next sample in the current shard's file order.
    fn sample_index(&self) -> usize {
        self.samples.get(self.sample).map_or(self.sample, |&index| index as usize)
    }

    /// Moves to the next shard, or to a new epoch after the last shard.
    fn advance(&mut self) {
        self.sources[self.source()].release();
        if self.shard + 1 == self.sources.len() {
            self.epoch += 1;
            self.start_epoch();
        } else {
            self.shard += 1;
            self.start_shard();
        }
    }

    /// Shuffles the shards, starting from their order in the previous epoch, as llm.c does.
    fn start_epoch(&mut self) {
        self.shard = 0;
        if let Some(rng) = &mut self.rng {
            rng.permute(&mut self.shards);
        }
        self.start_shard();
    }

    /// Shuffles the samples of the current shard, each time starting from file order.
    fn start_shard(&mut self) {
        self.sample = 0;
        let samples = self.samples_in(self.source()) as u32;
        if let Some(rng) = &mut self.rng {
            self.samples.clear();
            self.samples.extend(0..samples);
            rng.permute(&mut self.samples);
        }
    }
}

impl BatchSource for Loader {
    fn next_batch(&mut self) -> Result<&Batch> {
        let mut batch = std::mem::take(&mut self.batch);
        let filled = self.fill(&mut batch);
        self.batch = batch;
        filled.map(|()| &self.batch)
    }
}

fn check_sources(sources: &[TokenSource], sample_tokens: usize) -> Result<()> {
    if sources.is_empty() {
        return Err(Error::data("loader: no data, expected at least one source of tokens, got 0"));
    }
    let needed = sample_tokens.saturating_add(1);
    match sources.iter().find(|source| source.len() < needed) {
        None => Ok(()),
        Some(source) => Err(Error::data(format!(
            "{}: too few tokens for a batch, expected at least {}, got {}; try a smaller --batch or --context",
            source.name(),
            count(needed as u64),
            count(source.len() as u64)
        ))),
    }
}

fn is_permutation(order: &[u32], n: usize) -> bool {
    let mut seen = vec![false; n];
    order.len() == n
        && order.iter().all(|&i| seen.get_mut(i as usize).is_some_and(|seen| !std::mem::replace(seen, true)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Sources whose token ids count up across sources, so that an id identifies its position.
    fn counting(lens: &[usize]) -> Vec<TokenSource> {
        let mut next = 0;
        let source = |(i, &len): (usize, &usize)| {
            let tokens = (next..next + len as u16).collect();
            next += len as u16;
            TokenSource::from_tokens(format!("shard {i}"), tokens)
        };
        lens.iter().enumerate().map(source).collect()
    }

    fn loader(lens: &[usize], config: LoaderConfig) -> Loader {
        Loader::new(counting(lens), config).unwrap()
    }

    fn config(batch: usize, context: usize, shuffle: Option<u32>) -> LoaderConfig {
        LoaderConfig::new(batch, context, 65_536, shuffle)
    }

    fn next(loader: &mut Loader) -> (Vec<u32>, Vec<u32>) {
        let batch = loader.next_batch().unwrap();
        (batch.inputs().to_vec(), batch.targets().to_vec())
    }

    #[test]
    fn in_file_order_each_batch_takes_the_next_tokens() {
        let mut loader = loader(&[140, 70], config(4, 8, None));
        assert_eq!((loader.batches_per_epoch(), loader.tokens_per_epoch(), loader.tokens()), (6, 192, 210));
        for start in [0, 32, 64, 96, 140, 172, 0, 32] {
            let (inputs, targets) = next(&mut loader);
            assert_eq!(inputs, (start..start + 32).collect::<Vec<_>>());
            assert_eq!(targets, (start + 1..start + 33).collect::<Vec<_>>());
        }
        assert_eq!(loader.state().epoch, 1);
    }

    #[test]
    fn shuffled_samples_come_in_llmcs_order() {
        // 74 samples of 4 tokens
        let mut loader = loader(&[297], config(2, 2, Some(42)));
        assert_eq!(loader.batches_per_epoch(), 74);
        for sample in [29, 58, 10, 4, 11, 25, 63, 56, 72, 65] {
            assert_eq!(next(&mut loader).0[0], sample * 4);
        }
    }

    #[test]
    fn shuffled_shards_and_samples_come_in_llmcs_order() {
        // 103 shards of 190 samples of 2 tokens; all shards alike, as the ids would not fit otherwise
        let shard = |i: usize| TokenSource::from_tokens(format!("{i}"), (0..381).collect());
        for (seed, shards, samples) in [(42, [70, 102, 50], [57, 162, 84]), (43, [72, 53, 85], [110, 23, 168])] {
            let mut loader = Loader::new((0..103).map(shard).collect(), config(1, 2, Some(seed))).unwrap();
            assert_eq!(loader.state().shards[..3], shards);
            for sample in samples {
                assert_eq!(next(&mut loader).0[0], sample * 2);
            }
        }
    }

    #[test]
    fn two_shuffled_ranks_see_every_token_of_a_sample_once_an_epoch() {
        let lens = [140, 140, 70];
        let mut seen: HashMap<u32, usize> = HashMap::new();
        for rank in 0..2 {
            let mut loader = loader(&lens, LoaderConfig { rank, ranks: 2, ..config(2, 4, Some(42)) });
            assert_eq!(loader.tokens_per_epoch(), 16 * (8 + 8 + 4));
            for _ in 0..3 * loader.batches_per_epoch() {
                next(&mut loader).0.iter().for_each(|&token| *seen.entry(token).or_default() += 1);
            }
            assert_eq!(loader.state().epoch, 2);
        }
        let mut start = 0;
        for len in lens {
            for token in start..start + len {
                let expected = if token < start + (len - 1) / 16 * 16 { 3 } else { 0 };
                assert_eq!(seen.get(&(token as u32)).copied().unwrap_or(0), expected, "token {token}");
            }
            start += len;
        }
    }

    #[test]
    fn a_restored_loader_continues_identically_from_everywhere() {
        for shuffle in [None, Some(42)] {
            let mut original = loader(&[140, 100, 70], config(2, 4, shuffle));
            for _ in 0..80 {
                let state = original.state();
                let mut restored = loader(&[140, 100, 70], config(2, 4, shuffle));
                restored.restore(serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap()).unwrap();
                assert_eq!(restored.state(), state);
                let expected = next(&mut original);
                assert_eq!(next(&mut restored), expected);
                assert_eq!(restored.state(), original.state());
            }
        }
    }

    #[test]
    fn states_of_other_data_are_refused() {
        let state = loader(&[140, 70], config(2, 4, Some(1))).state();
        let mut others = [
            loader(&[140], config(2, 4, Some(1))),
            loader(&[140, 70], config(2, 4, None)),
            loader(&[140, 70], config(2, 2, Some(1))),
        ];
        for other in &mut others {
            let before = other.state();
            assert!(matches!(other.restore(state.clone()), Err(Error::Data(_))));
            assert_eq!(other.state(), before);
        }
        let mut same = loader(&[140, 70], config(2, 4, Some(1)));
        for broken in [
            LoaderState { shards: vec![0, 0], ..state.clone() },
            LoaderState { shard: 2, ..state.clone() },
            LoaderState { sample: 18, ..state.clone() },
        ] {
            assert!(matches!(same.restore(broken), Err(Error::Data(_))));
        }
        same.restore(state).unwrap();
    }

    #[test]
    fn a_source_must_hold_one_batch_and_a_token() {
        loader(&[33], config(4, 8, None));
        let error = Loader::new(counting(&[40, 32]), config(4, 8, None)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "shard 1: too few tokens for a batch, expected at least 33, got 32; try a smaller --batch or --context"
        );
        assert!(matches!(Loader::new(counting(&[40]), config(usize::MAX, 8, None)), Err(Error::Data(_))));
        assert!(matches!(Loader::new(Vec::new(), config(1, 1, None)), Err(Error::Data(_))));
        assert!(matches!(Loader::new(counting(&[40]), config(0, 1, None)), Err(Error::Usage(_))));
    }

    #[test]
    fn an_id_outside_the_vocabulary_stops_and_leaves_the_position() {
        let sources = vec![TokenSource::from_tokens("memory", vec![5; 9])];
        let mut loader = Loader::new(sources, LoaderConfig { vocab: 5, ..config(1, 4, None) }).unwrap();
        let error = loader.next_batch().unwrap_err();
        assert!(
            error.to_string().starts_with("memory: token 0 is outside the vocabulary, expected an id below 5, got 5")
        );
        assert_eq!(loader.state().sample, 0);
    }

    #[test]
    fn loaders_can_move_between_threads() {
        fn send<T: Send>() {}
        send::<Loader>();
        send::<crate::data::Rows>();
    }
}
