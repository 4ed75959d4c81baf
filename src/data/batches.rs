//! Training batches read ahead of the GPU, for one rank or for several in turn. A background thread reads, checks,
//! widens and sorts. The training thread receives blocks that only need to be uploaded, and returns their memory for
//! reuse.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use crate::data::batch::Batch;
use crate::data::contents::FileContents;
use crate::data::loader::{Loader, LoaderConfig, LoaderState};
use crate::data::tokens::TokenSource;
use crate::error::{Error, Fault, Result};

/// Bytes of batches read ahead: far more than the steps consume while a disk answers a read.
const AHEAD_BYTES: usize = 32 << 20;
/// Tokens that a fingerprint samples at each of its places in a source.
const FINGERPRINT: usize = 1 << 16;
/// Minimum and maximum number of batches read ahead.
const AHEAD: [usize; 2] = [4, 256];

/// A source of training batches.
pub trait BatchSource {
    /// Lends the next batch, sorted, until the next call. An error does not change the position.
    ///
    /// # Errors
    /// [`Error::Data`] if a file can no longer be read or a token id is outside the vocabulary.
    fn next_batch(&mut self) -> Result<&Batch>;
}

/// The position of [`Batches`] in a checkpoint: that of the next batch to be handed out, not of the last one read
/// ahead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchesState {
    /// Rank of the next batch.
    pub rank: usize,
    /// Batches of the rank's current turn already handed out.
    #[serde(default)]
    pub taken: usize,
    /// State of each rank's loader.
    pub ranks: Vec<LoaderState>,
}

/// The batches of all ranks, read and checked by a background thread. The ranks take turns: a fixed number of
/// consecutive batches of rank 0, then as many of rank 1, …, P−1, 0, ….
///
/// One device that uses them as micro-steps sees the same batches in a step as P devices of llm.c: rank r shuffles
/// with seed + r and reads the r-th B·T tokens of each sample of P·B·T tokens.
#[derive(Debug)]
pub struct Batches {
    config: LoaderConfig,
    names: Vec<String>,
    files: Vec<FileContents>,
    fingerprint: String,
    tokens: usize,
    batches_per_epoch: usize,
    turn: Turn,
    /// Position of each rank.
    places: Vec<RankPosition>,
    /// Ranks whose batches are read. Batches of other ranks are empty.
    own: Range<usize>,
    reader: Option<Reader>,
    /// The batch that is lent.
    lent: Option<Batch>,
    /// The error that stopped the reader. Every later call returns it again.
    broken: Option<Error>,
}

/// The rank of the next batch, and the batch's place in the rank's turn.
#[derive(Debug, Clone, Copy)]
struct Turn {
    rank: usize,
    /// Batches of this turn already handed out, below `consecutive`.
    taken: usize,
    /// Batches per turn.
    consecutive: usize,
}

impl Turn {
    /// Returns the state after one more batch, among `ranks` ranks.
    fn next(self, ranks: usize) -> Self {
        match self.taken + 1 {
            taken if taken < self.consecutive => Self { taken, ..self },
            _ => Self { rank: (self.rank + 1) % ranks, taken: 0, ..self },
        }
    }
}

/// The position of a rank: the state at the first batch of its shard, shared by all batches of that shard, and the
/// samples of the shard handed out so far. A state holds the sample order of a whole shard, which is too large to copy
/// per batch.
#[derive(Debug, Clone)]
struct RankPosition {
    shard: Arc<LoaderState>,
    sample: usize,
}

impl RankPosition {
    fn state(&self) -> LoaderState {
        LoaderState { sample: self.sample, ..LoaderState::clone(&self.shard) }
    }
}

/// A position of [`Batches`], cheap enough to take at every step.
#[derive(Debug, Clone)]
pub struct BatchPosition {
    turn: Turn,
    places: Vec<RankPosition>,
}

impl BatchPosition {
    /// Returns the position in the form that a checkpoint stores.
    #[must_use]
    pub fn state(&self) -> BatchesState {
        let Turn { rank, taken, .. } = self.turn;
        BatchesState { rank, taken, ranks: self.places.iter().map(RankPosition::state).collect() }
    }
}

/// A batch, and the position of its rank after it.
type Ready = Result<(Batch, RankPosition)>;

#[derive(Debug)]
struct Reader {
    ready: Receiver<Ready>,
    /// Returns used batches to the thread, which refills them.
    spent: SyncSender<Batch>,
    thread: JoinHandle<Vec<Loader>>,
}

impl Batches {
    /// Starts reading the batches of `config.ranks` ranks in turn, from the start of the first epoch. `config.rank` is
    /// ignored.
    ///
    /// # Errors
    /// Those of [`Loader::new`].
    pub fn new(sources: Vec<TokenSource>, config: LoaderConfig) -> Result<Self> {
        Self::with_consecutive(sources, config, 1)
    }

    /// Starts reading as [`Batches::new`] does, with `consecutive` batches per rank and turn: a rank's micro-steps per
    /// step.
    ///
    /// # Errors
    /// Those of [`Loader::new`].
    pub fn with_consecutive(sources: Vec<TokenSource>, config: LoaderConfig, consecutive: usize) -> Result<Self> {
        let loaders = (0..config.ranks.max(1))
            .map(|rank| Loader::new(sources.clone(), LoaderConfig { rank, ..config }))
            .collect::<Result<Vec<_>>>()?;
        let mut batches = Self {
            config,
            files: sources.iter().flat_map(TokenSource::files).cloned().collect(),
            fingerprint: fingerprint(&sources)?,
            names: sources.iter().map(|source| source.name().to_owned()).collect(),
            tokens: loaders[0].tokens(),
            batches_per_epoch: loaders[0].batches_per_epoch() * loaders.len(),
            turn: Turn { rank: 0, taken: 0, consecutive: consecutive.max(1) },
            places: loaders.iter().map(place).collect(),
            own: 0..loaders.len(),
            reader: None,
            lent: None,
            broken: None,
        };
        batches.start(loaders)?;
        Ok(batches)
    }

    /// Restricts reading to some ranks. Batches of the others, which other processes read, are handed out empty.
    ///
    /// # Errors
    /// [`Error::Data`] if the reader cannot be started again.
    pub fn read_ranks(&mut self, ranks: Range<usize>) -> Result<()> {
        let state = self.state();
        self.own = ranks;
        self.restore(state)
    }

    /// Returns the settings.
    #[must_use]
    pub fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// Returns the files that the tokens come from, in order, as they were before they were read.
    #[must_use]
    pub fn files(&self) -> &[FileContents] {
        &self.files
    }

    /// Returns a hash of the sources' lengths and of samples of their tokens, which differs between data sets.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Returns the number of tokens in all sources, including the unused tails.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Returns the number of batches of B·T tokens per epoch, of all ranks together.
    #[must_use]
    pub fn batches_per_epoch(&self) -> usize {
        self.batches_per_epoch
    }

    /// Returns the position of the next batch in the form that a checkpoint stores.
    #[must_use]
    pub fn state(&self) -> BatchesState {
        self.position().state()
    }

    /// Returns the position of the next batch without copying the shards' sample orders.
    #[must_use]
    pub fn position(&self) -> BatchPosition {
        BatchPosition { turn: self.turn, places: self.places.clone() }
    }

    /// Describes a position for messages: `its batches begin at sample 12 of FILE in epoch 2, rank 1`.
    #[must_use]
    pub fn describe(&self, position: &BatchPosition) -> String {
        let place = &position.places[position.turn.rank];
        let state = &place.shard;
        let shard = state.shards.get(state.shard).map_or(0, |shard| *shard as usize);
        // a shuffled shard hands out its samples in its own order
        let sample = state.samples.get(place.sample).map_or(place.sample, |sample| *sample as usize);
        let name = self.names.get(shard).map_or("", String::as_str);
        let rank = if position.places.len() > 1 { format!(", rank {}", position.turn.rank) } else { String::new() };
        format!("its batches begin at sample {sample} of {name} in epoch {}{rank}", state.epoch + 1)
    }

    /// Continues at the batch at which `state` was taken.
    ///
    /// # Errors
    /// [`Error::Data`] if the state does not fit these sources and settings. The position is then unchanged.
    pub fn restore(&mut self, state: BatchesState) -> Result<()> {
        let ranks = self.places.len();
        if state.ranks.len() != ranks || state.rank >= ranks || state.taken >= self.turn.consecutive {
            let fault = Fault::at("loader.restore", "the state is of another number of ranks or batches per turn");
            let expected = format!("{ranks} ranks of {} consecutive batches", self.turn.consecutive);
            let found =
                format!("{} ranks, of which rank {} is after batch {}", state.ranks.len(), state.rank, state.taken);
            return Err(Error::data(fault.expected(expected).found(found)));
        }
        let mut loaders = self.stop()?;
        let old = self.state();
        let result = loaders.iter_mut().zip(state.ranks).try_for_each(|(loader, state)| loader.restore(state));
        if result.is_err() {
            // positions of batches that were handed out always fit
            loaders.iter_mut().zip(old.ranks).try_for_each(|(loader, state)| loader.restore(state))?;
        } else {
            self.turn = Turn { rank: state.rank, taken: state.taken, ..self.turn };
            self.places = loaders.iter().map(place).collect();
            self.broken = None;
        }
        self.start(loaders)?;
        result
    }

    fn start(&mut self, mut loaders: Vec<Loader>) -> Result<()> {
        let block_bytes = Batch::BYTES_PER_TOKEN * self.config.batch * self.config.context;
        let depth = (AHEAD_BYTES / block_bytes).clamp(AHEAD[0], AHEAD[1]);
        let (sender, ready) = sync_channel(depth);
        // at most `depth` batches wait, the thread fills one more, and one is lent
        let (spent, returned) = sync_channel(depth + 2);
        let (first, mut places, own) = (self.turn, self.places.clone(), self.own.clone());
        let thread = std::thread::Builder::new()
            .name("data".into())
            .spawn(move || {
                read_ahead(&mut loaders, &mut places, (first, own), &sender, &returned);
                loaders
            })
            .map_err(|e| Error::data(Fault::at("loader", format!("cannot start a thread ({e})"))))?;
        self.reader = Some(Reader { ready, spent, thread });
        Ok(())
    }

    /// Stops the reader and returns its loaders, whose positions are ahead of the batches handed out.
    fn stop(&mut self) -> Result<Vec<Loader>> {
        let Reader { ready, thread, .. } = self.reader.take().ok_or_else(ended)?;
        drop(ready); // the thread's next send fails
        thread.join().map_err(|_| ended())
    }

    /// Returns the lent batch to the reader and receives the next one.
    fn receive(&mut self) -> Ready {
        let reader = self.reader.as_ref().ok_or_else(ended)?;
        if let Some(spent) = self.lent.take() {
            // fails only if the thread has ended
            let _ = reader.spent.try_send(spent);
        }
        reader.ready.recv().unwrap_or_else(|_| Err(ended()))
    }
}

fn ended() -> Error {
    Error::data(Fault::at("loader", "the thread that reads ahead ended without an error"))
}

impl BatchSource for Batches {
    fn next_batch(&mut self) -> Result<&Batch> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let (batch, place) = self.receive().inspect_err(|error| self.broken = Some(error.clone()))?;
        self.places[self.turn.rank] = place;
        self.turn = self.turn.next(self.places.len());
        Ok(self.lent.insert(batch))
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        // a panic of the thread has already been printed
        let _ = self.stop();
    }
}

/// Returns the BLAKE3 of each source's length and of tokens at its start, middle and end. Reading all of a terabyte
/// would take too long.
pub(super) fn fingerprint(sources: &[TokenSource]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for source in sources {
        let n = source.len();
        hasher.update(&(n as u64).to_le_bytes());
        for at in [0, (n / 2).saturating_sub(FINGERPRINT / 2), n.saturating_sub(FINGERPRINT)] {
            let mut tokens = vec![0; FINGERPRINT.min(n - at)];
            source.read(at, &mut tokens)?;
            hasher.update(bytemuck::cast_slice(&tokens));
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn place(loader: &Loader) -> RankPosition {
    let state = loader.state();
    RankPosition { sample: state.sample, shard: Arc::new(state) }
}

/// Sends batches until the receiver is gone or a batch cannot be read. Reuses the memory of `returned` batches and
/// allocates only if there are none.
fn read_ahead(
    loaders: &mut [Loader],
    places: &mut [RankPosition],
    (first, own): (Turn, Range<usize>),
    sender: &SyncSender<Ready>,
    returned: &Receiver<Batch>,
) {
    let mut turn = first;
    loop {
        let rank = turn.rank;
        let loader = &mut loaders[rank];
        let mut batch = returned.try_recv().unwrap_or_default();
        let filled = if own.contains(&rank) {
            loader.fill(&mut batch)
        } else {
            loader.skip();
            batch.resize(0);
            Ok(())
        };
        let ready = filled.map(|()| {
            let place = &mut places[rank];
            let (epoch, shard, sample) = loader.place();
            if (place.shard.epoch, place.shard.shard) != (epoch, shard) {
                place.shard = Arc::new(loader.state());
            }
            place.sample = sample;
            (batch, place.clone())
        });
        let failed = ready.is_err();
        if sender.send(ready).is_err() || failed {
            return;
        }
        turn = turn.next(loaders.len());
    }
}

#[cfg(test)]
#[path = "batches_tests.rs"]
mod tests;
