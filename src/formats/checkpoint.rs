//! Checkpoints: folders that are either complete or absent, and in which every changed byte is detected.
//!
//! `checkpoints/step-00000250/` contains files and `manifest.json`, which records the size and the BLAKE3 of each file
//! and its own BLAKE3. A save has the following order, so that one complete checkpoint is on disk at every moment:
//!
//! 1. The run's growing records are synced to disk.
//! 2. The files are written into `step-00000250.tmp/`, each synced to disk, the manifest last.
//! 3. That folder is synced to disk and renamed, and its parent is synced to disk.
//! 4. Everything is read back and compared with the manifest.
//! 5. After the first save, `saved.json` is written next to `checkpoints`. From then on, a run without checkpoints has
//!    lost them.
//! 6. Older checkpoints that need not be kept are renamed to `….tmp` and removed.
//!
//! A manifest is not trusted: it may only name plain files in its folder, and no more than the listed bytes are read.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Fault, Result};
use crate::files::atomic::output_error;
use crate::files::disk::{Disk, DiskFile};
use crate::files::hub::is_plain_name;

/// Name of the folder of checkpoints in a run's folder.
pub const CHECKPOINTS: &str = "checkpoints";
/// Name of the file in a run's folder that records that a checkpoint was saved.
pub const SAVED: &str = "saved.json";
/// Temporary folder in which [`SAVED`] is written first.
const SAVED_TEMPORARY: &str = ".wgpt-saved.tmp";
/// Name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// Version of the layout of manifests and of the files that they list.
const VERSION: u32 = 1;
/// Size of the write buffer, and of reads, in bytes.
const BUFFER_BYTES: usize = 1 << 20;
/// Largest manifest that is read, in bytes.
const MANIFEST_BYTES: u64 = 1 << 20;
/// Largest [`SAVED`] that is read, in bytes.
const SAVED_BYTES: u64 = 1 << 12;

/// A function that writes the contents of a checkpoint's file.
pub type WriteContents<'a> = &'a dyn Fn(&mut dyn Write) -> Result<()>;

/// Size and BLAKE3 of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    blake3: String,
}

/// Contents of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    step: usize,
    files: BTreeMap<String, Entry>,
    /// BLAKE3 of this manifest with this field empty.
    blake3: String,
}

impl Manifest {
    fn new(step: usize, files: BTreeMap<String, Entry>) -> Result<Self> {
        let mut manifest = Self { version: VERSION, step, files, blake3: String::new() };
        manifest.blake3 = blake3::hash(&manifest.text()?).to_hex().to_string();
        Ok(manifest)
    }

    fn text(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|e| Error::output(Fault::at(MANIFEST, format!("cannot be made ({e})"))))
    }

    /// Parses a manifest. Accepts only the exact bytes that [`Manifest::text`] writes, so that a changed blank is
    /// detected.
    fn parse(text: &[u8]) -> Result<Self> {
        let broken = |fault: Fault| Error::data(fault.within(MANIFEST));
        let found: Self =
            serde_json::from_slice(text).map_err(|e| broken(format!("is not a manifest ({e})").into()))?;
        if let Some(name) = found.files.keys().find(|name| !is_plain_name(name)) {
            let fault = Fault::from(format!("lists {name:?}")).expected("names of files next to it");
            return Err(broken(fault));
        }
        if found.version != VERSION {
            return Err(broken(
                Fault::from(format!("has version {}", found.version)).expected(VERSION).advice("try a newer wgpt"),
            ));
        }
        let expected = Self::new(found.step, found.files)?;
        if expected.text()? != text {
            return Err(broken(format!("does not have its own BLAKE3 {}", expected.blake3).into()));
        }
        Ok(expected)
    }
}

/// Returns the version of an intact manifest of a newer program.
fn newer_version(text: &[u8]) -> Option<u64> {
    let version = serde_json::from_slice::<serde_json::Value>(text).ok()?.get("version")?.as_u64()?;
    let text = std::str::from_utf8(text).ok()?;
    let key = "\"blake3\": \"";
    let at = text.rfind(key)? + key.len();
    let digest = text.get(at..at + 64)?;
    let without = [&text[..at], &text[at + 64..]].concat();
    let whole = blake3::hash(without.as_bytes()).to_hex().as_str() == digest;
    (whole && version > u64::from(VERSION)).then_some(version)
}

/// The checkpoints that a save keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Number of newest checkpoints to keep, at least 1.
    pub newest: usize,
    /// Also keep all checkpoints of steps that are multiples of this; 0 for none.
    pub every: usize,
}

/// The run that a checkpoint is saved for.
pub struct SaveContext<'a> {
    /// Growing files that are synced to disk before the checkpoint is saved.
    pub records: &'a [PathBuf],
    /// The run's random id.
    pub run: &'a str,
    /// Fails if the folder no longer belongs to this run.
    pub check: &'a dyn Fn() -> Result<()>,
}

/// Contents of [`SAVED`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The run's random id.
    pub run: String,
    /// The step of its first checkpoint.
    pub first: usize,
}

/// A folder's checkpoints.
pub struct Checkpoints<'d> {
    disk: &'d dyn Disk,
    run: PathBuf,
    /// `RUN/checkpoints`.
    dir: PathBuf,
}

/// Returns the name of a step's checkpoint: `step-00000250`.
#[must_use]
pub fn name(step: usize) -> String {
    format!("step-{step:08}")
}

/// Returns the step of a checkpoint's name, as in `step-00000250`.
fn step_of(name_there: &str) -> Option<usize> {
    let step = name_there.strip_prefix("step-")?.parse().ok()?;
    (name(step) == name_there).then_some(step)
}

impl<'d> Checkpoints<'d> {
    /// Returns the checkpoints of a run's folder, which may have none yet.
    #[must_use]
    pub fn new(disk: &'d dyn Disk, run: &Path) -> Self {
        Self { disk, run: run.to_owned(), dir: run.join(CHECKPOINTS) }
    }

    /// Returns the path of a step's checkpoint.
    #[must_use]
    pub fn path(&self, step: usize) -> PathBuf {
        self.dir.join(name(step))
    }

    /// Returns the steps that have a checkpoint, sound or not, the newest first.
    ///
    /// # Errors
    /// [`Error::Output`] if the folder cannot be read.
    pub fn steps(&self) -> Result<Vec<usize>> {
        let names = match self.disk.list(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            names => names.map_err(|e| output_error(&self.dir, &e))?,
        };
        let mut steps: Vec<usize> = names.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps)
    }

    /// Saves a checkpoint of `step` in the order that the module's documentation gives.
    ///
    /// # Errors
    /// [`Error::Output`] naming the file; older checkpoints are then unchanged. That of `context.check`.
    pub fn save(&self, step: usize, files: &[(&str, WriteContents)], context: &SaveContext, keep: Keep) -> Result<()> {
        (context.check)()?;
        for record in context.records {
            match self.disk.sync_file(record) {
                // a removed record is no reason to lose the run, too
                Err(e) if e.kind() == io::ErrorKind::NotFound => log::warn!("{}: is gone", record.display()),
                synced => synced.map_err(|e| output_error(record, &e))?,
            }
        }
        crate::kill_point!("save: records on disk");
        self.make_parent()?;
        self.sweep()?;
        let (path, temporary) = (self.path(step), self.dir.join(name(step) + ".tmp"));
        if self.steps()?.contains(&step) {
            // a save that failed after its rename is retried: its checkpoint may be complete
            match self.verify(step) {
                Ok(_) => {
                    self.disk.sync_folder(&self.dir).map_err(|e| output_error(&self.dir, &e))?;
                    self.note_first(context)?;
                    return self.forget(step, keep);
                }
                Err(Error::Data(_)) => drop(self.put_aside(step)?),
                Err(error) => return Err(error),
            }
        }
        let result = self.write(&temporary, step, files).and_then(|()| {
            crate::kill_point!("save: before the rename");
            (context.check)()?;
            self.disk.rename(&temporary, &path).map_err(|e| output_error(&path, &e))?;
            crate::kill_point!("save: renamed");
            self.disk.sync_folder(&self.dir).map_err(|e| output_error(&self.dir, &e))
        });
        if result.is_err() {
            // return the first error; the next save removes what is left
            let _ = self.disk.remove_folder(&temporary);
            return result;
        }
        self.verify(step).map_err(|e| Error::output(format!("{e}, right after it was written; try another disk")))?;
        crate::kill_point!("save: verified");
        self.note_first(context)?;
        self.forget(step, keep)
    }

    /// Writes [`SAVED`] unless it exists for this run.
    fn note_first(&self, context: &SaveContext) -> Result<()> {
        (context.check)()?;
        match self.saved() {
            Ok(Some(saved)) if saved.run == context.run => return Ok(()),
            // replace a broken file: there is a sound checkpoint
            Ok(_) | Err(Error::Data(_)) => {}
            Err(error) => return Err(error),
        }
        let path = self.run.join(SAVED);
        let fail = |e: &io::Error| output_error(&path, e);
        let first = self.steps()?.last().copied().unwrap_or(0);
        let text = serde_json::to_vec(&Saved { run: context.run.to_owned(), first })
            .map_err(|e| Error::output(Fault::at(SAVED, format!("cannot be made ({e})"))))?;
        // next to `saved.json`, because the checkpoints may be on another disk
        let temporary = self.run.join(SAVED_TEMPORARY);
        let file = temporary.join(SAVED);
        match self.disk.remove_folder(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(&e)),
            _ => {}
        }
        self.disk.make_folder(&temporary).map_err(|e| fail(&e))?;
        self.write_file(&file, &|out| out.write_all(&text).map_err(|e| fail(&e)))?;
        for folder in [&temporary, &self.run] {
            self.disk.sync_folder(folder).map_err(|e| output_error(folder, &e))?;
        }
        crate::kill_point!("save: note of the first one written");
        self.disk.rename(&file, &path).map_err(|e| fail(&e))?;
        self.disk.sync_folder(&self.run).map_err(|e| fail(&e))?;
        self.disk.remove_folder(&temporary).map_err(|e| output_error(&temporary, &e))
    }

    /// Returns the record of the run's first checkpoint; `None` if none was saved, or an earlier version saved it.
    ///
    /// # Errors
    /// [`Error::Output`] if it cannot be read; [`Error::Data`] if it is not such a record.
    pub fn saved(&self) -> Result<Option<Saved>> {
        let path = self.run.join(SAVED);
        let mut text = Vec::new();
        let opened = match self.disk.open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|e| output_error(&path, &e))?,
        };
        opened.take(SAVED_BYTES).read_to_end(&mut text).map_err(|e| output_error(&path, &e))?;
        let broken = |e| Error::data(Fault::at(path.display(), format!("is not a record of a checkpoint ({e})")));
        serde_json::from_slice(&text).map(Some).map_err(broken)
    }

    fn make_parent(&self) -> Result<()> {
        match self.disk.make_folder(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(output_error(&self.dir, &e)),
            Ok(()) => {
                let run = Some(self.run.as_path()).filter(|run| !run.as_os_str().is_empty()).unwrap_or(Path::new("."));
                self.disk.sync_folder(run).map_err(|e| output_error(run, &e))
            }
        }
    }

    /// Removes the temporary folders of killed saves.
    fn sweep(&self) -> Result<()> {
        for litter in self.disk.list(&self.dir).map_err(|e| output_error(&self.dir, &e))? {
            if litter.strip_suffix(".tmp").and_then(step_of).is_some() {
                let path = self.dir.join(litter);
                self.disk.remove_folder(&path).map_err(|e| output_error(&path, &e))?;
            }
        }
        Ok(())
    }

    fn write(&self, dir: &Path, step: usize, files: &[(&str, WriteContents)]) -> Result<()> {
        self.disk.make_folder(dir).map_err(|e| output_error(dir, &e))?;
        crate::kill_point!("save: folder made");
        let mut entries = BTreeMap::new();
        for (name, fill) in files {
            entries.insert((*name).to_owned(), self.write_file(&dir.join(name), *fill)?);
            crate::kill_point!("save: a file written");
        }
        let manifest = Manifest::new(step, entries)?.text()?;
        let path = dir.join(MANIFEST);
        self.write_file(&path, &|out| out.write_all(&manifest).map_err(|e| output_error(&path, &e)))?;
        crate::kill_point!("save: manifest written");
        self.disk.sync_folder(dir).map_err(|e| output_error(dir, &e))
    }

    fn write_file(&self, path: &Path, fill: WriteContents) -> Result<Entry> {
        let fail = |e: &io::Error| output_error(path, e);
        let file = self.disk.create(path).map_err(|e| fail(&e))?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, Hashed { file, hasher: blake3::Hasher::new(), bytes: 0 });
        fill(&mut out)?;
        let mut hashed = out.into_inner().map_err(|e| fail(e.error()))?;
        hashed.file.sync().map_err(|e| fail(&e))?;
        Ok(Entry { bytes: hashed.bytes, blake3: hashed.hasher.finalize().to_hex().to_string() })
    }

    /// Removes the checkpoints older than `step`, the newest, that need not be kept.
    fn forget(&self, step: usize, keep: Keep) -> Result<()> {
        let older = self.steps()?.into_iter().filter(|&s| s < step).skip(keep.newest.max(1) - 1);
        for old in older.filter(|&s| keep.every == 0 || s == 0 || !s.is_multiple_of(keep.every)) {
            // rename first, so that a checkpoint never exists in part
            let (path, temporary) = (self.path(old), self.dir.join(name(old) + ".tmp"));
            self.disk.rename(&path, &temporary).map_err(|e| output_error(&path, &e))?;
            crate::kill_point!("save: an older one renamed");
            self.disk.remove_folder(&temporary).map_err(|e| output_error(&temporary, &e))?;
        }
        Ok(())
    }

    /// Compares a checkpoint with its manifest. Returns its size in bytes.
    ///
    /// # Errors
    /// [`Error::Data`] naming a file that is missing, a link, too short, too long or changed; [`Error::Output`] if
    /// reading fails; [`Error::Usage`] if a newer program wrote it.
    pub fn verify(&self, step: usize) -> Result<u64> {
        let dir = self.path(step);
        let damaged = |name: &str, fault: Fault| Error::data(fault.within(dir.join(name).display()));
        let (manifest, mut bytes) = self.manifest(step)?;
        for (name, expected) in &manifest.files {
            let path = dir.join(name);
            let found = self.measure(&path, expected.bytes).map_err(|e| unread(&path, &e))?;
            if found.bytes != expected.bytes {
                let than = if found.bytes > expected.bytes { "more than " } else { "" };
                let found = found.bytes.min(expected.bytes);
                return Err(damaged(name, Fault::from(format!("has {than}{found} bytes")).expected(expected.bytes)));
            }
            if found.blake3 != expected.blake3 {
                return Err(damaged(
                    name,
                    Fault::from(format!("has BLAKE3 {}", found.blake3)).expected(&expected.blake3),
                ));
            }
            bytes += found.bytes;
        }
        Ok(bytes)
    }

    /// Reads the manifest of a step's checkpoint. Returns it with its length.
    fn manifest(&self, step: usize) -> Result<(Manifest, u64)> {
        let dir = self.path(step);
        self.disk.own_folder(&dir).map_err(|e| unread(&dir, &e))?;
        let (path, mut text) = (dir.join(MANIFEST), Vec::new());
        let opened = self.disk.open(&path).map_err(|e| unread(&path, &e))?;
        opened.take(MANIFEST_BYTES).read_to_end(&mut text).map_err(|e| unread(&path, &e))?;
        if let Some(version) = newer_version(&text) {
            return Err(Error::usage(
                Fault::at(dir.display(), "is a checkpoint of a newer wgpt")
                    .expected(format!("layout {VERSION}"))
                    .found(version)
                    .advice("try a newer wgpt"),
            ));
        }
        let manifest = Manifest::parse(&text).map_err(|e| Error::data(e.fault().clone().within(dir.display())))?;
        if manifest.step != step {
            let fault = Fault::from(format!("is of step {}", manifest.step)).expected(step);
            return Err(Error::data(fault.within(path.display())));
        }
        Ok((manifest, text.len() as u64))
    }

    /// Hashes a file. Reads at most `most` bytes and one more.
    fn measure(&self, path: &Path, most: u64) -> io::Result<Entry> {
        let mut file = self.disk.open(path)?.take(most.saturating_add(1));
        let (mut hasher, mut bytes, mut buffer) = (blake3::Hasher::new(), 0, vec![0; BUFFER_BYTES]);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(Entry { bytes, blake3: hasher.finalize().to_hex().to_string() }),
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    bytes += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Returns the newest step whose checkpoint verifies, and the faults of every newer checkpoint.
    ///
    /// # Errors
    /// [`Error::Output`] if the folder cannot be read; [`Error::Usage`] if a newer program wrote a checkpoint.
    pub fn newest(&self) -> Result<(Option<usize>, Vec<Damaged>)> {
        let mut damaged = Vec::new();
        for step in self.steps()? {
            match self.verify(step) {
                Ok(_) => return Ok((Some(step), damaged)),
                Err(error @ Error::Data(_)) => damaged.push(Damaged { step, error }),
                Err(error) => return Err(error),
            }
        }
        Ok((None, damaged))
    }

    /// Renames a step's checkpoint to `….damaged`, so that the step can be saved again. Removes an earlier one of that
    /// name.
    ///
    /// # Errors
    /// [`Error::Output`] if the disk fails.
    pub fn put_aside(&self, step: usize) -> Result<PathBuf> {
        let (path, to) = (self.path(step), self.dir.join(name(step) + ".damaged"));
        match self.disk.remove_folder(&to) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(output_error(&to, &e)),
            _ => {}
        }
        self.disk.rename(&path, &to).map_err(|e| output_error(&path, &e))?;
        Ok(to)
    }

    /// Reads a file of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Data`] if the manifest does not list the file, or its size differs from the listed one.
    pub fn read(&self, step: usize, file: &str) -> Result<Vec<u8>> {
        let path = self.path(step).join(file);
        let wrong = |fault: Fault| Error::data(fault.within(path.display()));
        let (manifest, _) = self.manifest(step)?;
        let expected = manifest.files.get(file).ok_or_else(|| wrong("is not in the manifest".into()))?.bytes;
        let mut bytes = Vec::new();
        self.disk
            .open(&path)
            .and_then(|file| file.take(expected).read_to_end(&mut bytes))
            .map_err(|e| wrong(format!("cannot be read ({e})").into()))?;
        if bytes.len() as u64 != expected {
            return Err(wrong(Fault::from(format!("has {} bytes", bytes.len())).expected(expected)));
        }
        Ok(bytes)
    }
}

/// Returns the error of an unreadable file or folder of a checkpoint.
fn unread(path: &Path, error: &io::Error) -> Error {
    let fault = Fault::at(path.display(), format!("cannot be read ({error})"));
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::InvalidInput => Error::data(fault),
        // a disk that is offline does not make a checkpoint a bad one
        _ => Error::output(fault.advice("try again")),
    }
}

/// A checkpoint that does not verify.
#[derive(Debug)]
pub struct Damaged {
    /// Step of the checkpoint.
    pub step: usize,
    /// The fault.
    pub error: Error,
}

/// Hashes and counts the bytes that are written through it.
struct Hashed<'d> {
    file: Box<dyn DiskFile + 'd>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashed<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
