//! Shards while they grow: everything lies in `NAME.partial` until all of it is there.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::note::{Note, Recipe, ShardNote, write_json};
use super::unit::{Counts, Place};
use crate::data::tokenizer::Tokenizer;
use crate::data::tokens::{HEADER_BYTES, TokenSource, header, write_tokens};
use crate::error::{Error, Fault, Result};
use crate::files::atomic::{self, output_error};
use crate::files::lock::{Lock, Refusal};

/// Tokens that are copied at once.
const COPY_TOKENS: usize = 1 << 20;

/// The locked file's name.
const LOCK: &str = "lock";

/// Wait for the lock: a process that this one is just starting holds copies of its files for a moment.
const PATIENCE: Duration = Duration::from_millis(200);

/// What has to be known to go on after a break.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What is being made. Anything else may not go on here.
    pub recipe: Recipe,
    /// Where reading goes on.
    pub place: Place,
    /// Tokens that are safely written.
    pub tokens: u64,
    /// Counts up to the place.
    pub counts: Counts,
    /// Set once all tokens are written: what the data set will be.
    pub note: Option<Note>,
}

/// The folder in which a preparation works, held by one process.
pub struct Stage {
    folder: PathBuf,
    partial: PathBuf,
    _lock: Option<Lock>,
    /// The file that grows.
    open: Option<File>,
}

/// The folder of an unfinished preparation.
fn partial(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.partial"))
}

impl Stage {
    /// Takes the folder, or fails if another process has it. With what an earlier run left there.
    pub fn take(folder: &Path, name: &str, restart: bool) -> Result<(Self, Option<State>)> {
        let partial = partial(folder, name);
        fs::create_dir_all(&partial).map_err(|e| output_error(&partial, &e))?;
        let path = partial.join(LOCK);
        let lock = match Lock::take(&path, PATIENCE) {
            Ok(lock) => Some(lock),
            Err(Refusal::Unsupported(e)) => {
                log::warn!("{}: cannot be locked ({e})", path.display());
                None
            }
            Err(refusal) => {
                return Err(refusal.error(&path, |_| {
                    Fault::at(partial.display(), "another `wgpt data prepare` works here")
                        .advice("wait for it or try another --out or --name")
                }));
            }
        };
        let stage = Self { folder: folder.to_owned(), partial, _lock: lock, open: None };
        if restart {
            stage.clear()?;
        }
        let path = stage.state_path();
        let state = match fs::read_to_string(&path) {
            Err(_) => None,
            Ok(text) => Some(serde_json::from_str(&text).map_err(|e| {
                Error::data(
                    Fault::at(path.display(), format!("is not the state of a preparation: {e}"))
                        .advice("try --restart"),
                )
            })?),
        };
        Ok((stage, state))
    }

    fn state_path(&self) -> PathBuf {
        self.partial.join("state.json")
    }

    fn file(&self, index: u64) -> PathBuf {
        self.partial.join(format!("{index:06}.tokens"))
    }

    /// Removes what an earlier run left, but the lock.
    fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(&self.partial).map_err(|e| output_error(&self.partial, &e))?.flatten() {
            if entry.file_name() != LOCK {
                fs::remove_file(entry.path()).map_err(|e| output_error(&entry.path(), &e))?;
            }
        }
        Ok(())
    }

    /// Makes the files hold the first `tokens` tokens and no more.
    pub fn rewind(&mut self, recipe: &Recipe, tokens: u64) -> Result<()> {
        let (index, inside) = file_of(recipe, tokens);
        for entry in fs::read_dir(&self.partial).map_err(|e| output_error(&self.partial, &e))?.flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|n| n.strip_suffix(".tokens")).and_then(|n| n.parse::<u64>().ok());
            if number.is_some_and(|n| n > index) || name.to_string_lossy().starts_with("new-") {
                fs::remove_file(entry.path()).map_err(|e| output_error(&entry.path(), &e))?;
            }
        }
        let mut start = 0;
        for i in 0..index {
            start += file_tokens(recipe, i);
            self.check_length(i, file_tokens(recipe, i))?;
        }
        debug_assert_eq!(start + inside, tokens);
        if inside > 0 {
            let path = self.file(index);
            let mut file = OpenOptions::new().write(true).open(&path).map_err(|e| output_error(&path, &e))?;
            let bytes = HEADER_BYTES + 2 * inside;
            if file.metadata().map_err(|e| output_error(&path, &e))?.len() < bytes {
                return Err(Error::data(
                    Fault::at(path.display(), "became shorter")
                        .expected(format!("{bytes} bytes"))
                        .advice("try --restart"),
                ));
            }
            file.set_len(bytes).and_then(|()| file.seek(SeekFrom::End(0))).map_err(|e| output_error(&path, &e))?;
            self.open = Some(file);
        } else if self.file(index).exists() {
            fs::remove_file(self.file(index)).map_err(|e| output_error(&self.file(index), &e))?;
        }
        Ok(())
    }

    fn check_length(&self, index: u64, tokens: u64) -> Result<()> {
        let path = self.file(index);
        let (expected, got) = (HEADER_BYTES + 2 * tokens, fs::metadata(&path).map_or(0, |m| m.len()));
        if got == expected {
            return Ok(());
        }
        Err(Error::data(
            Fault::at(path.display(), "has changed")
                .expected(format!("{expected} bytes"))
                .found(got)
                .advice("try --restart"),
        ))
    }

    /// Appends tokens, of which `before` lie in the files already.
    pub fn append(&mut self, recipe: &Recipe, before: u64, tokens: &[u16]) -> Result<()> {
        let (mut at, mut rest) = (before, tokens);
        while !rest.is_empty() {
            let (index, inside) = file_of(recipe, at);
            let room = usize::try_from(file_tokens(recipe, index) - inside).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(room.min(rest.len()));
            let path = self.file(index);
            let result = match &mut self.open {
                Some(file) if inside > 0 => write_tokens(file, now),
                open => File::create(&path).and_then(|mut file| {
                    file.write_all(&header(0))?;
                    write_tokens(&mut file, now)?;
                    *open = Some(file);
                    Ok(())
                }),
            };
            result.map_err(|e| output_error(&path, &e))?;
            at += now.len() as u64;
            rest = later;
            if now.len() == room {
                self.sync(&path)?;
                self.open = None;
            }
        }
        Ok(())
    }

    fn sync(&self, path: &Path) -> Result<()> {
        self.open.as_ref().map_or(Ok(()), File::sync_data).map_err(|e| output_error(path, &e))
    }

    /// Forces the tokens to disk, then the state that counts them.
    pub fn save(&self, state: &State) -> Result<()> {
        self.sync(&self.partial)?;
        write_json(&self.state_path(), state)
    }

    /// Cuts the tokens into training and validation and notes what will be where. Nothing has its final name yet.
    pub fn seal(&mut self, state: &mut State, tokenizer: &Tokenizer) -> Result<()> {
        self.open = None;
        let recipe = &state.recipe;
        let split = Split::of(recipe, state.tokens)?;
        let mut shards = Vec::new();
        let mut sizes = Vec::new();
        sizes.extend((split.val > 0).then(|| (format!("{}_val_000000.bin", recipe.name), split.val)));
        let mut left = split.train;
        while left > 0 {
            let number = shards.len() as u64 + sizes.len() as u64 + u64::from(split.val == 0);
            let tokens = left.min(recipe.shard_tokens);
            shards.push((format!("{}_train_{number:06}.bin", recipe.name), tokens));
            left -= tokens;
        }
        sizes.extend(shards);
        if split.copies {
            self.copy(recipe, state.tokens, &split, &sizes)?;
        } else {
            for (i, (_, tokens)) in sizes.iter().enumerate() {
                let path = self.file(i as u64);
                seal_file(&path, *tokens).map_err(|e| output_error(&path, &e))?;
            }
        }
        state.note = Some(Note {
            tokenizer: tokenizer.name().into(),
            vocab: tokenizer.vocab(),
            tokens: state.tokens,
            train_tokens: split.train,
            val_tokens: split.val,
            counts: state.counts,
            shards: sizes.into_iter().map(|(file, tokens)| ShardNote { file, tokens }).collect(),
            recipe: recipe.clone(),
        });
        self.save(state)
    }

    /// Writes the tokens anew, in files cut another way: `new-I.tokens`.
    fn copy(&self, recipe: &Recipe, total: u64, split: &Split, sizes: &[(String, u64)]) -> Result<()> {
        let validation = usize::from(split.val > 0);
        let order = (validation..sizes.len()).chain(0..validation);
        let mut at = 0;
        let mut buffer = vec![0; COPY_TOKENS];
        for i in order {
            let path = self.partial.join(format!("new-{i}.tokens"));
            let fail = |e: std::io::Error| output_error(&path, &e);
            let mut out = File::create(&path).map_err(fail)?;
            out.write_all(&header(0)).map_err(fail)?;
            let end = at + sizes[i].1;
            while at < end {
                let (index, inside) = file_of(recipe, at);
                let there = file_tokens(recipe, index).min(total - (at - inside)) - inside;
                let n = usize::try_from(there.min(end - at)).unwrap_or(COPY_TOKENS).min(COPY_TOKENS);
                self.read(index, inside, &mut buffer[..n])?;
                write_tokens(&mut out, &buffer[..n]).map_err(fail)?;
                at += n as u64;
            }
            drop(out);
            seal_file(&path, sizes[i].1).map_err(fail)?;
        }
        Ok(())
    }

    fn read(&self, index: u64, offset: u64, out: &mut [u16]) -> Result<()> {
        let path = self.file(index);
        let fail = |e: std::io::Error| output_error(&path, &e);
        let file = File::open(&path).map_err(fail)?;
        crate::data::tokens::read_at(&file, bytemuck::cast_slice_mut(out), HEADER_BYTES + 2 * offset).map_err(fail)?;
        out.iter_mut().for_each(|id| *id = u16::from_le(*id));
        Ok(())
    }

    /// Gives the files of a sealed state their names, the note last, and removes the rest. May be done again.
    pub fn publish(self, note: &Note) -> Result<()> {
        let copied = self.partial.join("new-0.tokens").exists();
        for (i, shard) in note.shards.iter().enumerate() {
            let staged = if copied { self.partial.join(format!("new-{i}.tokens")) } else { self.file(i as u64) };
            let path = self.folder.join(&shard.file);
            // copies are linked and removed with the folder, so that a break in between leaves all of them there
            let there = || TokenSource::open(&path).is_ok_and(|s| s.len() as u64 == shard.tokens);
            if staged.exists() {
                if copied {
                    atomic::place(&path, |temporary| {
                        fs::hard_link(&staged, temporary).or_else(|_| fs::copy(&staged, temporary).map(drop))
                    })?;
                } else {
                    atomic::publish(&staged, &path)?;
                }
            } else if !there() {
                return Err(Error::data(
                    Fault::at(path.display(), "is gone")
                        .expected("the shard of an unfinished preparation")
                        .advice("try --restart"),
                ));
            }
        }
        note.write(&self.folder)?;
        let _ = fs::remove_dir_all(&self.partial);
        Ok(())
    }

    /// Gives the folder back where nothing was begun.
    pub fn leave(self) {
        let _ = fs::remove_dir_all(&self.partial);
    }
}

/// Fills in the header of a file that is complete, and forces it to disk.
fn seal_file(path: &Path, tokens: u64) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let count = i32::try_from(tokens).map_err(|_| std::io::Error::other("more than 2^31 - 1 tokens"))?;
    file.write_all(&header(count))?;
    file.sync_all()
}

/// Tokens that file `index` takes while the corpus is read: the first one is validation, if there is any.
fn file_tokens(recipe: &Recipe, index: u64) -> u64 {
    match (index, recipe.val_tokens) {
        (0, Some(tokens)) if tokens > 0 => tokens,
        _ => recipe.shard_tokens,
    }
}

/// The file in which token `at` lies, and its place there.
fn file_of(recipe: &Recipe, at: u64) -> (u64, u64) {
    let first = file_tokens(recipe, 0);
    if at < first { (0, at) } else { (1 + (at - first) / recipe.shard_tokens, (at - first) % recipe.shard_tokens) }
}

/// Where training and validation are.
struct Split {
    train: u64,
    val: u64,
    /// Validation is the end of the corpus, which the files were not cut for.
    copies: bool,
}

impl Split {
    fn of(recipe: &Recipe, total: u64) -> Result<Self> {
        let large = total >= 2 * recipe.shard_tokens;
        let val = recipe.val_tokens.unwrap_or(if large { recipe.shard_tokens } else { total / 10 });
        if val >= total {
            return Err(Error::usage(
                Fault::at("--val-tokens", format!("{val} tokens for validation leave none for training"))
                    .expected(format!("fewer than the corpus's {total}"))
                    .advice(format!("try {}", total / 10)),
            ));
        }
        Ok(Self { train: total - val, val, copies: !large && val > 0 })
    }
}
