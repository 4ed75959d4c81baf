//! The partial output of a preparation: the folder `NAME.partial`, in which shards grow until all are complete.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::document_batch::{CorpusPosition, Counts};
use super::manifest::{MAX_MANIFEST_BYTES, Manifest, Recipe, ShardEntry, write_json};
use crate::data::contents::blake3_of;
use crate::data::tokenizer::Tokenizer;
use crate::data::tokens::{HEADER_BYTES, TokenSource, cannot_read, header, write_tokens};
use crate::error::{Error, Fault, Result};
use crate::files::atomic::{self, output_error};
use crate::files::bounded;
use crate::files::lock::{Lock, Refusal};
use crate::units::{count, counted};

/// Tokens that are copied at once.
const COPY_TOKENS: usize = 1 << 20;

/// Name of the lock file. A folder contains one data set, so the whole folder is locked.
const LOCK: &str = ".prepare.lock";

/// Longest wait for the lock: a child process holds copies of open files for a moment while it starts.
const PATIENCE: Duration = Duration::from_millis(200);

/// The state that an interrupted preparation resumes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeState {
    /// Recipe of the data set. Only the same recipe may resume here.
    pub recipe: Recipe,
    /// Position at which reading resumes.
    pub place: CorpusPosition,
    /// Number of tokens that are safely written.
    pub tokens: u64,
    /// Counts up to the position.
    pub counts: Counts,
    /// Manifest of the data set, once all tokens are written.
    #[serde(rename = "note")]
    pub manifest: Option<Manifest>,
}

impl ResumeState {
    /// Reads the state from the folder of an unfinished preparation; `None` if there is none.
    fn read(partial: &Path) -> Result<Option<Self>> {
        let path = partial.join(STATE_FILE);
        let text = match bounded::read_text(&path, MAX_MANIFEST_BYTES, "the state of a preparation") {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(cannot_read(&path.display().to_string(), &e).with_advice("try --restart")),
            Ok(text) => text,
        };
        serde_json::from_str(&text).map(Some).map_err(|e| {
            let fault = Fault::at(path.display(), format!("is not the state of a preparation: {e}"));
            Error::data(fault.advice("try --restart"))
        })
    }

    /// Returns the saved recipe of a preparation, which another process may be running; `None` if none is saved.
    pub fn recipe_in(folder: &Path, name: &str) -> Option<Recipe> {
        Self::read(&partial_folder(folder, name)).ok().flatten().map(|state| state.recipe)
    }
}

/// The locked output folder of a preparation.
pub struct PartialOutput {
    folder: PathBuf,
    partial: PathBuf,
    _lock: Option<Lock>,
    /// The file that grows.
    open: Option<File>,
}

/// Name of the state's file in the partial folder.
pub const STATE_FILE: &str = "state.json";

/// Returns the folder of an unfinished preparation.
pub fn partial_folder(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.partial"))
}

impl PartialOutput {
    /// Locks the folder and returns it with the state of an earlier run; `None` if another process has locked it.
    pub fn acquire(folder: &Path, name: &str, restart: bool) -> Result<Option<(Self, Option<ResumeState>)>> {
        let partial = partial_folder(folder, name);
        fs::create_dir_all(folder).map_err(|e| output_error(folder, &e))?;
        let path = folder.join(LOCK);
        // a lock file that its last holder has removed locks nothing: try again
        let taken = loop {
            match Lock::take(&path, PATIENCE) {
                Ok(lock) if !lock.is_in_place().unwrap_or(true) => {}
                taken => break taken,
            }
        };
        let lock = match taken {
            Ok(lock) => Some(lock),
            Err(Refusal::Held(_)) => return Ok(None),
            Err(Refusal::Unsupported(e)) => {
                log::warn!("{}: cannot be locked ({e})", path.display());
                None
            }
            Err(Refusal::Failed(e)) => return Err(output_error(&path, &e)),
        };
        fs::create_dir_all(&partial).map_err(|e| output_error(&partial, &e))?;
        let output = Self { folder: folder.to_owned(), partial, _lock: lock, open: None };
        if restart {
            output.clear()?;
        }
        let state = ResumeState::read(&output.partial)?;
        Ok(Some((output, state)))
    }

    fn state_path(&self) -> PathBuf {
        self.partial.join(STATE_FILE)
    }

    fn file(&self, index: u64) -> PathBuf {
        self.partial.join(format!("{index:06}.tokens"))
    }

    /// Removes the files of an earlier run.
    fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(&self.partial).map_err(|e| output_error(&self.partial, &e))?.flatten() {
            fs::remove_file(entry.path()).map_err(|e| output_error(&entry.path(), &e))?;
        }
        Ok(())
    }

    /// Truncates the files to the first `tokens` tokens.
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
                        .expected(counted(bytes, "byte"))
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
                .expected(counted(expected, "byte"))
                .found(count(got))
                .advice("try --restart"),
        ))
    }

    /// Appends tokens after the `before` tokens that the files already contain.
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
    pub fn save(&self, state: &ResumeState) -> Result<()> {
        self.sync(&self.partial)?;
        write_json(&self.state_path(), state)
    }

    /// Divides the tokens into training and validation shards and saves the manifest in the state. Files do not have
    /// their final names yet.
    pub fn seal(&mut self, state: &mut ResumeState, tokenizer: &Tokenizer) -> Result<()> {
        self.open = None;
        let recipe = &state.recipe;
        let split = Split::of(recipe, state.tokens)?;
        let sizes = split.shards(recipe);
        // the files written while reading are the shards, except those with other boundaries now
        let cut_anew: Vec<usize> = if split.copies {
            (0..sizes.len()).collect()
        } else {
            let as_cut = |i: &usize| sizes[*i].1 == tokens_in(recipe, *i as u64, state.tokens);
            (0..sizes.len()).filter(|i| !as_cut(i)).collect()
        };
        self.copy(recipe, state.tokens, &split, &sizes, &cut_anew)?;
        for (i, (_, tokens)) in sizes.iter().enumerate().filter(|(i, _)| !cut_anew.contains(i)) {
            let path = self.file(i as u64);
            seal_file(&path, *tokens).map_err(|e| output_error(&path, &e))?;
        }
        let staged =
            |i: usize| if split.copies { self.partial.join(format!("new-{i}.tokens")) } else { self.file(i as u64) };
        let shards = sizes.into_par_iter().enumerate().map(|(i, (file, tokens))| {
            let path = staged(i);
            let blake3 = Some(blake3_of(&path).map_err(|e| output_error(&path, &e))?);
            Ok(ShardEntry { file, tokens, blake3 })
        });
        let shards = shards.collect::<Result<Vec<_>>>()?;
        state.manifest = Some(Manifest {
            tokenizer: tokenizer.name().into(),
            vocab: tokenizer.vocab(),
            tokens: state.tokens,
            train_tokens: split.train,
            val_tokens: split.val,
            counts: state.counts,
            shards,
            recipe: recipe.clone(),
        });
        self.save(state)
    }

    /// Copies the tokens of some shards into new files `new-I.tokens`.
    fn copy(&self, recipe: &Recipe, total: u64, split: &Split, sizes: &[(String, u64)], which: &[usize]) -> Result<()> {
        // validation is the end of the corpus if all shards are copied, else the beginning
        let last = usize::from(split.copies && split.val > 0);
        let order = (last..sizes.len()).chain(0..last);
        let mut start = 0;
        let mut buffer = vec![0; if which.is_empty() { 0 } else { COPY_TOKENS }];
        for i in order {
            let (mut at, end) = (start, start + sizes[i].1);
            start = end;
            if !which.contains(&i) {
                continue;
            }
            let path = self.partial.join(format!("new-{i}.tokens"));
            let fail = |e: std::io::Error| output_error(&path, &e);
            let mut out = File::create(&path).map_err(fail)?;
            out.write_all(&header(0)).map_err(fail)?;
            while at < end {
                let (index, inside) = file_of(recipe, at);
                let there = tokens_in(recipe, index, total) - inside;
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

    /// Renames the files of a sealed state to their final names, writes the manifest last, and removes the rest. May be
    /// repeated after an interruption.
    pub fn publish(self, manifest: &Manifest) -> Result<()> {
        for (i, shard) in manifest.shards.iter().enumerate() {
            let anew = self.partial.join(format!("new-{i}.tokens"));
            let copied = anew.exists();
            let staged = if copied { anew } else { self.file(i as u64) };
            let path = self.folder.join(&shard.file);
            // copies are hard-linked and removed with the folder, so that an interruption leaves all of them
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
        manifest.write(&self.folder)?;
        self.remove();
        Ok(())
    }

    /// Removes the partial folder and the lock file, when nothing was started or everything is done.
    pub fn remove(self) {
        let _ = fs::remove_dir_all(&self.partial);
        let _ = fs::remove_file(self.folder.join(LOCK));
    }
}

/// Shortest last shard, in tokens. A shorter one is merged with the shard before, because less than a step of a large
/// run is useless.
const SHORT_TOKENS: u64 = 1 << 20;

/// Writes the header of a complete file and syncs it to disk.
fn seal_file(path: &Path, tokens: u64) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let count = i32::try_from(tokens).map_err(|_| std::io::Error::other("more than 2^31 - 1 tokens"))?;
    file.write_all(&header(count))?;
    file.sync_all()
}

/// Returns the capacity in tokens of file `index` while the corpus is read. File 0 is the validation shard, if one was
/// asked for.
fn file_tokens(recipe: &Recipe, index: u64) -> u64 {
    match (index, recipe.val_tokens) {
        (0, Some(tokens)) if tokens > 0 => tokens,
        _ => recipe.shard_tokens,
    }
}

/// Returns the number of tokens in file `index` after reading a corpus of `total` tokens.
fn tokens_in(recipe: &Recipe, index: u64, total: u64) -> u64 {
    let before = if index == 0 { 0 } else { file_tokens(recipe, 0) + (index - 1) * recipe.shard_tokens };
    file_tokens(recipe, index).min(total.saturating_sub(before))
}

/// Returns the file that contains token `at`, and the token's index in that file.
fn file_of(recipe: &Recipe, at: u64) -> (u64, u64) {
    let first = file_tokens(recipe, 0);
    if at < first { (0, at) } else { (1 + (at - first) / recipe.shard_tokens, (at - first) % recipe.shard_tokens) }
}

/// The division of a corpus into training and validation tokens.
struct Split {
    train: u64,
    val: u64,
    /// Whether validation is the end of the corpus. Then the files have other boundaries and are copied.
    copies: bool,
}

impl Split {
    fn of(recipe: &Recipe, total: u64) -> Result<Self> {
        let large = total >= 2 * recipe.shard_tokens;
        // a single token has no successor to predict
        let tenth = Some(total / 10).filter(|tokens| *tokens > 1).unwrap_or(0);
        let val = recipe.val_tokens.unwrap_or(if large { recipe.shard_tokens } else { tenth });
        if val > 0 && val.saturating_add(2) > total {
            return Err(Error::usage(
                Fault::at("--val-tokens", format!("{val} leaves too few tokens for training"))
                    .expected(format!(
                        "at most {} of the corpus's {}",
                        total.saturating_sub(2),
                        counted(total, "token")
                    ))
                    .advice(format!("try {tenth}")),
            ));
        }
        Ok(Self { train: total - val, val, copies: !large && val > 0 })
    }

    /// Returns the names and sizes of the shards, validation first. A short last shard is merged with the one before.
    fn shards(&self, recipe: &Recipe) -> Vec<(String, u64)> {
        let mut sizes = Vec::new();
        let mut left = self.train;
        while left > 0 {
            let rest = left.saturating_sub(recipe.shard_tokens);
            let is_short = 2 * rest <= recipe.shard_tokens && rest < SHORT_TOKENS;
            let fits = left <= i32::MAX.unsigned_abs().into();
            let tokens = if is_short && fits { left } else { recipe.shard_tokens };
            sizes.push(tokens);
            left -= tokens;
        }
        let name = &recipe.name;
        let train =
            sizes.into_iter().zip(1..).map(|(tokens, number)| (format!("{name}_train_{number:06}.bin"), tokens));
        let val = (self.val > 0).then(|| (format!("{name}_val_000000.bin"), self.val));
        val.into_iter().chain(train).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::{Loader, LoaderConfig, Rows};

    fn recipe(shard_tokens: u64, val_tokens: Option<u64>) -> Recipe {
        Recipe { name: "x".into(), shard_tokens, val_tokens, ..Recipe::default() }
    }

    fn sizes(total: u64, shard_tokens: u64, val_tokens: Option<u64>) -> Vec<u64> {
        let recipe = recipe(shard_tokens, val_tokens);
        Split::of(&recipe, total).unwrap().shards(&recipe).into_iter().map(|(_, tokens)| tokens).collect()
    }

    #[test]
    fn a_short_last_shard_is_merged_with_the_one_before() {
        let large = 100_000_000;
        // validation, then training
        assert_eq!(sizes(300_000_001, large, None), [large, large, large + 1]);
        assert_eq!(sizes(301_048_575, large, None), [large, large, large + 1_048_575]);
        assert_eq!(sizes(301_048_576, large, None), [large, large, large, 1_048_576]);
        assert_eq!(sizes(45, 10, None), [10, 10, 10, 15]);
        assert_eq!(sizes(46, 10, None), [10, 10, 10, 10, 6]);
        assert_eq!(sizes(21, 20, Some(0)), [21]);
        // the largest count of a header
        let most = i32::MAX.unsigned_abs().into();
        assert_eq!(sizes(most + 3, most, Some(0)), [most, 3]);
        assert_eq!(sizes(most, most - 3, Some(0)), [most]);
        // too few for a row of validation
        assert_eq!((sizes(19, 100, None), sizes(20, 100, None)), (vec![19], vec![2, 18]));
        assert_eq!(
            Split::of(&recipe(100, Some(10)), 11).err().map(|e| e.fault().expected.clone()),
            Some("at most 9 of the corpus's 11 tokens".into())
        );
    }

    proptest! {
        /// Every shard has a batch, and validation a row, of the sizes that the printed command names.
        #[test]
        fn the_printed_command_finds_a_batch_in_every_shard(
            total in 2..20_000_u64,
            shard_tokens in prop_oneof![2..40_u64, 2..9000_u64],
            val_tokens in prop_oneof![Just(None), Just(Some(0)), (2..5000_u64).prop_map(Some)],
        ) {
            let recipe = recipe(shard_tokens, val_tokens);
            let Ok(split) = Split::of(&recipe, total) else { return Ok(()) };
            let shards = split.shards(&recipe);
            prop_assert_eq!(shards.iter().map(|(_, tokens)| tokens).sum::<u64>(), total);
            let shards = shards.into_iter().map(|(file, tokens)| ShardEntry { file, tokens, blake3: None }).collect();
            let manifest = Manifest { shards, recipe, ..Manifest::default() };
            let (batch, context) = manifest.fitting_sizes();
            let sources = |part: &str| -> Vec<TokenSource> {
                let of_part = manifest.shards.iter().filter(|shard| shard.file.contains(part));
                of_part.map(|shard| TokenSource::from_tokens(&*shard.file, vec![0; shard.tokens as usize])).collect()
            };
            prop_assert!(Loader::new(sources("_train_"), LoaderConfig::new(batch, context, 1, None)).is_ok());
            let validation = sources("_val_");
            prop_assert!(validation.is_empty() || Rows::new(validation, context, 1).is_ok());
        }
    }
}
