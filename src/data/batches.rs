//! Training batches read ahead of the GPU, of one rank or of several in turn. A thread reads, checks, widens and sorts;
//! who trains gets blocks that only need to be uploaded, and their memory goes back to the thread.

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

/// Bytes of batches that wait to be used: far more than a step takes while a disk answers.
const AHEAD_BYTES: usize = 32 << 20;
/// Tokens at one place of a source that its fingerprint looks at.
const FINGERPRINT: usize = 1 << 16;
/// Fewest and most batches that wait.
const AHEAD: [usize; 2] = [4, 256];

/// Whatever hands out training batches, one after the other.
pub trait BatchSource {
    /// Lends the next batch, sorted, until the next call. An error leaves the position where it was.
    ///
    /// # Errors
    /// [`Error::Data`] if a file cannot be read any more, or an id is outside the vocabulary.
    fn next_batch(&mut self) -> Result<&Batch>;
}

/// Where [`Batches`] stand, for a checkpoint: the place of the next batch to be handed out, not of the one read last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchesState {
    /// The rank whose batch comes next.
    pub rank: usize,
    /// Batches of that rank that were handed out behind one another.
    #[serde(default)]
    pub taken: usize,
    /// Where each rank's loader stands.
    pub ranks: Vec<LoaderState>,
}

/// The batches of all ranks, some of rank 0 behind one another, then as many of rank 1, …, P−1, 0, …, read and checked by a
/// thread of their own.
///
/// One device that takes them as micro-steps sees in a step what P devices of llm.c see in one: rank r shuffles
/// with seed + r and reads the r-th B·T of each sample of P·B·T tokens.
#[derive(Debug)]
pub struct Batches {
    config: LoaderConfig,
    names: Vec<String>,
    files: Vec<FileContents>,
    fingerprint: String,
    tokens: usize,
    batches_per_epoch: usize,
    turn: Turn,
    /// Each rank's place.
    places: Vec<RankPosition>,
    /// The ranks whose batches are read; those of others are empty.
    own: Range<usize>,
    reader: Option<Reader>,
    /// The batch that is lent.
    lent: Option<Batch>,
    /// What stopped the reader: it is told again and again.
    broken: Option<Error>,
}

/// Whose batch comes next.
#[derive(Debug, Clone, Copy)]
struct Turn {
    rank: usize,
    /// Batches of the rank that were handed out behind one another, of so many.
    taken: usize,
    consecutive: usize,
}

impl Turn {
    /// The one after this of so many ranks.
    fn next(self, ranks: usize) -> Self {
        match self.taken + 1 {
            taken if taken < self.consecutive => Self { taken, ..self },
            _ => Self { rank: (self.rank + 1) % ranks, taken: 0, ..self },
        }
    }
}

/// A rank's place: the state at the first batch of its shard, shared by all batches of that shard, and the samples
/// handed out since. A state holds the order of a whole shard, too much to copy for every batch.
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

/// Where [`Batches`] stood: cheap to take at every step.
#[derive(Debug, Clone)]
pub struct BatchPosition {
    turn: Turn,
    places: Vec<RankPosition>,
}

impl BatchPosition {
    /// The same for a checkpoint.
    #[must_use]
    pub fn state(&self) -> BatchesState {
        let Turn { rank, taken, .. } = self.turn;
        BatchesState { rank, taken, ranks: self.places.iter().map(RankPosition::state).collect() }
    }
}

/// A batch, and the place of the next one of its rank.
type Ready = Result<(Batch, RankPosition)>;

#[derive(Debug)]
struct Reader {
    ready: Receiver<Ready>,
    /// Batches that were used, for the thread to fill again.
    spent: SyncSender<Batch>,
    thread: JoinHandle<Vec<Loader>>,
}

impl Batches {
    /// The batches of `config.ranks` ranks in turn, from the start of the first epoch (`config.rank` is not used).
    /// Reading begins at once.
    ///
    /// # Errors
    /// As [`Loader::new`].
    pub fn new(sources: Vec<TokenSource>, config: LoaderConfig) -> Result<Self> {
        Self::with_consecutive(sources, config, 1)
    }

    /// [`Batches::new`] with so many batches of each rank behind one another: the micro-steps of a step.
    ///
    /// # Errors
    /// As [`Loader::new`].
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

    /// Reads the batches of some ranks alone from now on: those of others, which other processes read, are handed out empty.
    ///
    /// # Errors
    /// [`Error::Data`] if the reader cannot be started again.
    pub fn read_ranks(&mut self, ranks: Range<usize>) -> Result<()> {
        let state = self.state();
        self.own = ranks;
        self.restore(state)
    }

    /// The settings it was made with.
    #[must_use]
    pub fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// Returns the files that the tokens come from, in order, as they were before that.
    #[must_use]
    pub fn files(&self) -> &[FileContents] {
        &self.files
    }

    /// What the sources hold, in a few words: other tokens give another one.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Tokens in all sources, the unused tails included.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Batches of B·T tokens that all ranks together hand out in an epoch.
    #[must_use]
    pub fn batches_per_epoch(&self) -> usize {
        self.batches_per_epoch
    }

    /// Where the next batch stands.
    #[must_use]
    pub fn state(&self) -> BatchesState {
        self.position().state()
    }

    /// Remembers where the next batch stands, without a copy of the shards' orders.
    #[must_use]
    pub fn position(&self) -> BatchPosition {
        BatchPosition { turn: self.turn, places: self.places.clone() }
    }

    /// The place of the batch that comes next at a position: `sample 12 of shard 3, FILE, in epoch 2`.
    #[must_use]
    pub fn describe(&self, position: &BatchPosition) -> String {
        let place = &position.places[position.turn.rank];
        let state = &place.shard;
        let shard = state.shards.get(state.shard).map_or(0, |shard| *shard as usize);
        // a shuffled shard hands its samples out in an order of its own
        let sample = state.samples.get(place.sample).map_or(place.sample, |sample| *sample as usize);
        let name = self.names.get(shard).map_or("", String::as_str);
        let rank = if position.places.len() > 1 { format!(", rank {}", position.turn.rank) } else { String::new() };
        format!("its batches begin at sample {sample} of {name} in epoch {}{rank}", state.epoch + 1)
    }

    /// Goes on where `state` was taken, batch for batch.
    ///
    /// # Errors
    /// [`Error::Data`] if the state does not fit these sources and settings; the position is then unchanged.
    pub fn restore(&mut self, state: BatchesState) -> Result<()> {
        let ranks = self.places.len();
        if state.ranks.len() != ranks || state.rank >= ranks || state.taken >= self.turn.consecutive {
            return Err(Error::data(format!(
                "loader.restore: another number of ranks, expected {ranks} with {} batches in a row, got {} (the next is {}, of \
                 which {} are taken)",
                self.turn.consecutive,
                state.ranks.len(),
                state.rank,
                state.taken
            )));
        }
        let mut loaders = self.stop()?;
        let old = self.state();
        let result = loaders.iter_mut().zip(state.ranks).try_for_each(|(loader, state)| loader.restore(state));
        if result.is_err() {
            // the places are those of batches handed out, which always fit
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
        // one more is in the thread's hands and one is lent: there are never more
        let (spent, returned) = sync_channel(depth + 2);
        let (first, mut places, own) = (self.turn, self.places.clone(), self.own.clone());
        let thread = std::thread::Builder::new()
            .name("data".into())
            .spawn(move || {
                read_ahead(&mut loaders, &mut places, (first, own), &sender, &returned);
                loaders
            })
            .map_err(|e| Error::data(Fault::at("loader", format!("no thread can be started ({e})"))))?;
        self.reader = Some(Reader { ready, spent, thread });
        Ok(())
    }

    /// Ends the reader; its loaders, which stand somewhere ahead.
    fn stop(&mut self) -> Result<Vec<Loader>> {
        let Reader { ready, thread, .. } = self.reader.take().ok_or_else(ended)?;
        drop(ready); // the thread's next send fails
        thread.join().map_err(|_| ended())
    }

    /// Gives the lent batch back and takes the next one.
    fn receive(&mut self) -> Ready {
        let reader = self.reader.as_ref().ok_or_else(ended)?;
        if let Some(spent) = self.lent.take() {
            // a thread that ended needs none
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
        // a thread that panicked has said so already
        let _ = self.stop();
    }
}

/// BLAKE3 of each source's length and of tokens at its start, middle and end: all of a terabyte takes too long to read.
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

/// Sends batch after batch, until nobody wants them any more or one cannot be read. Memory comes from batches that were
/// `returned`; only while there are none does it allocate.
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
