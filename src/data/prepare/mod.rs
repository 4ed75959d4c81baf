//! `wgpt data prepare`: turns a corpus into shards.
//!
//! One thread reads the files and cuts them into [batches](document_batch) of some 256 KiB, all cores encode batches,
//! and the calling thread writes the tokens in order. Queues of fixed length between them bound the memory. The output
//! depends on the files alone. The state, saved every few seconds, records the last batch that is safely on disk, so
//! that a killed preparation resumes after that batch and ends with the same bytes.

mod document_batch;
mod folder;
pub(crate) mod footer;
pub mod manifest;
pub(crate) mod pages;
pub(crate) mod partial_output;
mod reader;
pub mod source;
mod table;
mod text_file;
mod thrift;
mod values;

pub use document_batch::Counts;
pub use manifest::{Manifest, Recipe, ShardEntry};

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use document_batch::{CorpusPosition, DocumentBatch};
use partial_output::{PartialOutput, ResumeState};
use reader::Reader;
use source::Corpus;

use crate::data::tokenizer::{Cuts, Tokenizer};
use crate::error::{Error, Fault, Result};
use crate::formats::tokenizer_folder::{self, TokenizerFiles};
use crate::units::counted;

/// Default number of tokens per shard.
pub const SHARD_TOKENS: u64 = 100_000_000;

/// Inputs, outputs and settings of a preparation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Input files, folders and patterns.
    pub inputs: Vec<PathBuf>,
    /// Folder for the shards.
    pub out: PathBuf,
    /// Prefix of the shards' names.
    pub name: String,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Field of JSON Lines or column of Parquet with the text.
    pub field: String,
    /// Separator between the documents of a text file, if it contains several.
    pub split_on: Option<String>,
    /// Tokens per shard.
    pub shard_tokens: u64,
    /// Number of validation tokens; by default one shard, or a tenth of a small corpus.
    pub val_tokens: Option<u64>,
    /// Number of tokens at which preparation stops.
    pub max_tokens: Option<u64>,
    /// Number of encoding threads.
    pub threads: usize,
    /// Whether to discard an earlier preparation in the folder and start from scratch.
    pub restart: bool,
    /// Time between two saves of the state.
    pub save_every: Duration,
}

impl Options {
    /// Returns options with default settings.
    #[must_use]
    pub fn new(inputs: Vec<PathBuf>, out: PathBuf, name: impl Into<String>) -> Self {
        Self {
            inputs,
            out,
            name: name.into(),
            tokenizer: Tokenizer::Gpt2,
            field: "text".into(),
            split_on: None,
            shard_tokens: SHARD_TOKENS,
            val_tokens: None,
            max_tokens: None,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            restart: false,
            save_every: Duration::from_secs(2),
        }
    }

    fn recipe(&self) -> Result<Recipe> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.starts_with('.') || !self.name.chars().all(plain) {
            return Err(Error::usage(
                Fault::at("--name", format!("`{}`", self.name.escape_debug()))
                    .expected("letters, digits, `-`, `_` and `.`"),
            ));
        }
        let most = i32::MAX.unsigned_abs().into();
        // a shard needs two tokens: its last token is only a target
        for (flag, or, tokens) in
            [("--shard-tokens", "", self.shard_tokens), ("--val-tokens", "0 or ", self.val_tokens.unwrap_or(0))]
        {
            if !(2..=most).contains(&tokens) && (or.is_empty() || tokens != 0) {
                let fault = Fault::at(flag, tokens.to_string());
                return Err(Error::usage(fault.expected(format!("{or}2 to {most}"))));
            }
        }
        if let Some(tokens) = self.max_tokens.filter(|n| *n < 2) {
            return Err(Error::usage(Fault::at("--max-tokens", tokens.to_string()).expected("at least 2")));
        }
        if self.split_on.as_deref() == Some("") {
            return Err(Error::usage(Fault::at("--split-on", "an empty text").expected("the text between documents")));
        }
        let corpus = Corpus::find(&self.inputs, &self.field, &self.out)?;
        if self.split_on.is_some() && corpus.texts == 0 {
            let fault = Fault::at("--split-on", "cuts text files only").expected("a text file among the inputs");
            let fault = fault.found(counted(corpus.sources.len() as u64, "other file"));
            return Err(Error::usage(fault.advice("leave out --split-on: each line or row is a document")));
        }
        corpus.remarks.iter().for_each(|remark| log::warn!("{remark}"));
        Ok(Recipe {
            name: self.name.clone(),
            tokenizer: self.tokenizer.identity(),
            field: self.field.clone(),
            split_on: self.split_on.clone(),
            shard_tokens: self.shard_tokens,
            val_tokens: self.val_tokens,
            max_tokens: self.max_tokens,
            sources: corpus.sources,
        })
    }
}

/// Progress of a preparation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input files read so far.
    pub file_bytes: u64,
    /// Total size of the input files.
    pub total_bytes: u64,
    /// Number of tokens so far.
    pub tokens: u64,
    /// Documents and bytes of text so far.
    pub counts: Counts,
    /// Bytes of text encoded by this process, without those of earlier runs.
    pub text_bytes_now: u64,
    /// Whether this process waits for another process that prepares in the same folder.
    pub waiting: bool,
}

/// Result of a preparation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The data set was written.
    Done(Manifest),
    /// An earlier run had already written the data set.
    AlreadyPrepared(Manifest),
    /// The preparation was stopped. The next run resumes from the saved state.
    Stopped,
}

/// Prepares a corpus. Calls `watch` after every batch written; `watch` may stop the preparation. If another process
/// prepares in the folder, waits for it, then finds its data set or resumes its work.
///
/// # Errors
/// [`Error::Usage`] for invalid options, or a folder with another data set. [`Error::Data`] naming a broken file, or if
/// there is no text at all. [`Error::Output`] if writing fails.
pub fn prepare(options: &Options, watch: &mut dyn FnMut(&Progress) -> ControlFlow<()>) -> Result<Outcome> {
    let recipe = options.recipe()?;
    if !options.restart
        && let Some(manifest) = existing_data_set(options, &recipe)?
    {
        return Ok(Outcome::AlreadyPrepared(manifest));
    }
    check_tokenizer(options)?;
    let Some((mut output, state)) = acquire_folder(options, &recipe, watch)? else { return Ok(Outcome::Stopped) };
    if options.restart {
        discard(options)?;
    }
    // another preparation may have ended before the folder was locked
    match existing_data_set(options, &recipe) {
        Ok(None) => {}
        found => {
            if state.is_none() || found.is_ok() {
                output.remove();
            }
            return found.map(|manifest| manifest.map_or(Outcome::Stopped, Outcome::AlreadyPrepared));
        }
    }
    if let Some(state) = &state {
        require_same_recipe(options, &recipe, &state.recipe, "an unfinished preparation of another data set")?;
    }
    let fresh =
        ResumeState { recipe, place: CorpusPosition::default(), tokens: 0, counts: Counts::default(), manifest: None };
    let mut state = state.unwrap_or(fresh);
    if state.manifest.is_none() {
        output.rewind(&state.recipe, state.tokens)?;
        if encode_corpus(options, &mut output, &mut state, watch)?.is_break() {
            return Ok(Outcome::Stopped);
        }
        if state.counts.text_bytes == 0 {
            output.remove();
            return Err(Error::data(Fault::at(options.inputs[0].display(), "the corpus is empty").expected(format!(
                "at least one byte of text in {}",
                counted(state.recipe.sources.len() as u64, "file")
            ))));
        }
        output.seal(&mut state, &options.tokenizer)?;
    }
    let Some(manifest) = state.manifest else { return Ok(Outcome::Stopped) };
    if let Tokenizer::Own(own) = &options.tokenizer {
        own.files().add_to(&options.out)?;
    }
    // on a file system without locks, another preparation may have ended meanwhile
    if let Some(there) = Manifest::read(&options.out)? {
        require_same_recipe(options, &manifest.recipe, &there.recipe, "another data set, written meanwhile")?;
    }
    output.publish(&manifest)?;
    Ok(Outcome::Done(manifest))
}

/// Locks the folder, after waiting for the process that has it locked; `None` if `watch` stops the wait.
fn acquire_folder(
    options: &Options,
    recipe: &Recipe,
    watch: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Option<(PartialOutput, Option<ResumeState>)>> {
    let mut is_known = false;
    loop {
        if let Some(taken) = PartialOutput::acquire(&options.out, &recipe.name, options.restart)? {
            return Ok(Some(taken));
        }
        // do not wait for a preparation of another data set
        if !is_known
            && !options.restart
            && let Some(there) = ResumeState::recipe_in(&options.out, &recipe.name)
        {
            require_same_recipe(options, recipe, &there, "another process's preparation of another data set")?;
            is_known = true;
        }
        if watch(&Progress { waiting: true, ..Progress::default() }).is_break() {
            return Ok(None);
        }
    }
}

/// Fails if the tokenizer is unusable, or the folder has files of another tokenizer that a restart does not remove.
fn check_tokenizer(options: &Options) -> Result<()> {
    options.tokenizer.check()?;
    if options.restart && has_own_tokenizer(Manifest::read(&options.out).ok().flatten().as_ref()) {
        return Ok(());
    }
    match TokenizerFiles::read(&options.out)?.map(Tokenizer::of_files) {
        Some(there) if matches!(options.tokenizer, Tokenizer::Own(_)) && there != options.tokenizer => {
            let fault = Fault::at("--out", format!("{} contains files of another tokenizer", options.out.display()));
            Err(Error::usage(fault.expected(&options.tokenizer).found(there).advice("try another folder")))
        }
        _ => Ok(()),
    }
}

/// Returns the manifest if the folder already has this data set. Fails if it has another one.
fn existing_data_set(options: &Options, recipe: &Recipe) -> Result<Option<Manifest>> {
    let out = &options.out;
    let partial = partial_output::partial_folder(out, &recipe.name);
    let recorded = || match Manifest::read(out)? {
        Some(manifest) => {
            require_same_recipe(options, recipe, &manifest.recipe, "another data set").map(|()| Some(manifest))
        }
        None => Ok(None),
    };
    if let Some(manifest) = recorded()? {
        // left by a run that was killed just before it ended
        let _ = std::fs::remove_dir_all(&partial);
        return Ok(Some(manifest));
    }
    let strange = std::fs::read_dir(out).into_iter().flatten().flatten().find(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let rest = name.strip_prefix(recipe.name.as_str()).unwrap_or("");
        (rest.starts_with("_train_") || rest.starts_with("_val_")) && name.ends_with(".bin")
    });
    match strange {
        // a preparation that was killed while it renamed its files resumes renaming
        Some(entry) if !partial.join(partial_output::STATE_FILE).exists() => match recorded()? {
            None => Err(Error::usage(
                Fault::at("--out", format!("{} exists without a {}", entry.path().display(), manifest::MANIFEST_FILE))
                    .advice("try another --out or --name"),
            )),
            // another process has ended in the meantime
            manifest => Ok(manifest),
        },
        _ => Ok(None),
    }
}

/// Returns whether a manifest records the tokenizer whose files are next to it.
fn has_own_tokenizer(manifest: Option<&Manifest>) -> bool {
    manifest.is_some_and(|manifest| manifest.tokenizer == "own")
}

/// Removes the data set that a folder's manifest describes, and its tokenizer's files if the tokenizer differs now.
fn discard(options: &Options) -> Result<()> {
    let manifest = Manifest::read(&options.out).ok().flatten();
    if has_own_tokenizer(manifest.as_ref()) {
        let there = TokenizerFiles::read(&options.out)?.map(Tokenizer::of_files);
        if there.is_some_and(|there| there != options.tokenizer) {
            tokenizer_folder::remove_others(&options.out, |_| false)?;
        }
    }
    for shard in manifest.iter().flat_map(|n| &n.shards) {
        // a manifest could name any path: remove only plain names of shards in this folder
        if shard.file.ends_with(".bin") && !shard.file.contains(['/', '\\', ':']) {
            let _ = std::fs::remove_file(options.out.join(&shard.file));
        }
    }
    let _ = std::fs::remove_file(Manifest::path(&options.out));
    Ok(())
}

fn require_same_recipe(options: &Options, here: &Recipe, there: &Recipe, what: &str) -> Result<()> {
    let differences = here.differences(there);
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::usage(
        Fault::at("--out", format!("{} contains {what} ({})", options.out.display(), differences.join("; ")))
            .advice("try another folder, or --restart to start from scratch"),
    ))
}

type Encoded = Result<(Vec<u16>, Counts)>;
/// A batch in the queue of the writer: the channel that will deliver its tokens, the position after it, and the file
/// bytes read so far.
type PendingBatch = Result<(Receiver<Encoded>, CorpusPosition, u64)>;

/// Reads, encodes and writes the corpus from the state's position on.
fn encode_corpus(
    options: &Options,
    output: &mut PartialOutput,
    state: &mut ResumeState,
    watch: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    let recipe = state.recipe.clone();
    let threads = options.threads.max(1);
    let (batch_sender, batches) = sync_channel::<(DocumentBatch, SyncSender<Encoded>)>(threads);
    let (pending_sender, pending) = sync_channel::<PendingBatch>(2 * threads);
    let batches = Mutex::new(batches);
    let (place, cuts) = (state.place, options.tokenizer.cuts());
    std::thread::scope(|scope| {
        let recipe = &recipe;
        // the reader owns the senders: their end is the end of the corpus
        scope.spawn(move || read(recipe, cuts, place, &batch_sender, &pending_sender));
        for _ in 0..threads {
            scope.spawn(|| encode(&batches, options));
        }
        let result = write(options, recipe, output, state, &pending, watch);
        drop(pending); // ends a reader that waits for space in the queue, and then the encoders
        result
    })
}

fn read(
    recipe: &Recipe,
    cuts: Cuts,
    place: CorpusPosition,
    batches: &SyncSender<(DocumentBatch, SyncSender<Encoded>)>,
    pending: &SyncSender<PendingBatch>,
) {
    let mut reader = Reader::new(recipe, cuts, place);
    loop {
        match reader.next() {
            Ok(None) => return,
            Ok(Some(batch)) => {
                let (sender, receiver) = sync_channel(1);
                let next = (receiver, batch.end, batch.file_bytes);
                if pending.send(Ok(next)).is_err() || batches.send((batch, sender)).is_err() {
                    return;
                }
            }
            Err(error) => {
                let _ = pending.send(Err(error));
                return;
            }
        }
    }
}

fn encode(batches: &Mutex<Receiver<(DocumentBatch, SyncSender<Encoded>)>>, options: &Options) {
    loop {
        let next = batches.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((batch, sender)) = next else { return };
        // fails only if the writer has stopped
        let _ = sender.send(batch.contents.encode(&options.tokenizer, &options.field));
    }
}

fn write(
    options: &Options,
    recipe: &Recipe,
    output: &mut PartialOutput,
    state: &mut ResumeState,
    pending: &Receiver<PendingBatch>,
    watch: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    let total_bytes = recipe.sources.iter().map(|s| s.bytes).sum();
    let most = recipe.max_tokens.unwrap_or(u64::MAX);
    let before = state.counts.text_bytes;
    let mut saved = Instant::now();
    while state.tokens < most {
        let Ok(next) = pending.recv() else { break };
        let (receiver, place, file_bytes) = next?;
        let (mut tokens, mut counts) = receiver
            .recv()
            .unwrap_or_else(|_| Err(Error::data(Fault::at("prepare", "an encoding thread ended without an error"))))?;
        let room = usize::try_from(most - state.tokens).unwrap_or(usize::MAX);
        if tokens.len() > room {
            tokens.truncate(room);
            // text never encodes to this id
            counts.documents = tokens.iter().filter(|&&id| id == options.tokenizer.end_of_text()).count() as u64;
        }
        output.append(recipe, state.tokens, &tokens)?;
        state.tokens += tokens.len() as u64;
        state.counts += counts;
        state.place = place;
        if saved.elapsed() >= options.save_every {
            output.save(state)?;
            saved = Instant::now();
        }
        let text_bytes_now = state.counts.text_bytes - before;
        let progress = Progress {
            file_bytes,
            total_bytes,
            tokens: state.tokens,
            counts: state.counts,
            text_bytes_now,
            waiting: false,
        };
        if watch(&progress).is_break() {
            output.save(state)?;
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}
