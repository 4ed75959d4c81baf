//! A run's folder: whether it may be used, and the files that grow in it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::data::Tokenizer;
use crate::error::{Error, Fault, Result};
use crate::files::atomic::{self, output_error};
use crate::files::disk::System;
use crate::formats::checkpoint::Checkpoints;

use crate::files::lock::Lock;
use crate::run::lock;
use crate::run::tensorboard::Events;
use crate::train::settings::RunFile;
use crate::train::settings::file::{CONFIG, TOKENIZER};

use super::inspect::{State, inspect};
use super::records::{self, METRICS, Metric};

const LOG: &str = "main.log";
const SAMPLES: &str = "samples.txt";
/// How the file begins that tells whether a folder can be written.
pub(super) const PROBE: &str = ".wgpt-probe-";

/// The next free `runs/N`.
#[must_use]
pub fn next_free(parent: &Path) -> PathBuf {
    let taken = fs::read_dir(parent).into_iter().flatten().flatten();
    let most = taken.filter_map(|e| e.file_name().to_str()?.parse::<u64>().ok()).max().unwrap_or(0);
    parent.join((u128::from(most) + 1).to_string())
}

/// Returns the folders of runs in `parent`, in the order of their numbers.
#[must_use]
pub fn runs(parent: &Path) -> Vec<String> {
    let found = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut runs: Vec<PathBuf> = found.filter(|dir| is_run(dir)).collect();
    let number = |dir: &PathBuf| dir.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok());
    runs.sort_by_key(|dir| (number(dir).unwrap_or(u64::MAX), dir.clone()));
    runs.iter().map(|dir| dir.display().to_string()).collect()
}

/// The next free `DIR.N`.
fn aside(dir: &Path) -> PathBuf {
    let name = |n: u64| {
        let mut path = dir.as_os_str().to_owned();
        path.push(format!(".{n}"));
        PathBuf::from(path)
    };
    let mut n = 1;
    while name(n).exists() {
        n += 1;
    }
    name(n)
}

/// True if a folder holds a run.
#[must_use]
pub fn is_run(dir: &Path) -> bool {
    dir.join(CONFIG).exists()
}

/// How many checkpoints a run's folder holds.
#[must_use]
pub fn checkpoints(dir: &Path) -> usize {
    Checkpoints::new(&System, dir).steps().map_or(0, |steps| steps.len())
}

/// Renames a folder to the next free `DIR.N`, and returns that name.
///
/// # Errors
/// [`Error::Output`].
pub fn put_aside(dir: &Path) -> Result<PathBuf> {
    let to = aside(dir);
    fs::rename(dir, &to).map_err(|e| output_error(dir, &e))?;
    Ok(to)
}

/// Fails unless a folder can be made and written where `dir` is to be.
///
/// # Errors
/// [`Error::Output`] naming the folder that refuses.
pub fn check_writable(dir: &Path) -> Result<()> {
    let absolute = std::path::absolute(dir).map_err(|e| output_error(dir, &e))?;
    let existing = absolute.ancestors().find(|a| a.exists()).unwrap_or(&absolute);
    let name = format!("{PROBE}{}", std::process::id());
    atomic::probe(existing, &name).map_err(|e| output_error(existing, &e))
}

/// The growing files of a run, in a folder that is locked as long as this lives.
#[derive(Debug)]
pub struct Folder {
    /// The folder.
    pub dir: PathBuf,
    metrics: File,
    metric_lines: usize,
    log: File,
    samples: File,
    events: Events,
    /// Bytes of metrics and log before a step that may have been written in part.
    torn: Option<(u64, u64)>,
    /// Its `config.toml`.
    file: RunFile,
    _lock: Lock,
}

impl Folder {
    /// Makes the folder with its configuration and empty records.
    ///
    /// # Errors
    /// [`Error::Output`]; [`Error::Locked`] or [`Error::Usage`] if another run has just begun in it.
    pub fn create(dir: &Path, file: RunFile) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| output_error(dir, &e))?;
        let lock = lock::take(dir)?;
        if inspect(dir, &file.settings, file.record.data.as_deref())? != State::Free {
            let fault = Fault::at("--out", format!("{} holds another run that has just begun", dir.display()));
            return Err(Error::usage(fault.advice("try another folder")));
        }
        Self::resume(dir, file, lock, &BTreeMap::new(), 0)
    }

    /// Resumes in a folder whose records are cut back to the bytes in `records`, nothing if they are not in it, and
    /// `metrics.jsonl` to so many lines. The configuration is written anew, since some settings may differ.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn resume(
        dir: &Path,
        file: RunFile,
        mut lock: Lock,
        records: &BTreeMap<String, u64>,
        metric_lines: usize,
    ) -> Result<Self> {
        lock.sign()?;
        if let Some(Tokenizer::Own(own)) = &file.settings.data.tokenizer {
            own.files().write(&dir.join(TOKENIZER))?;
        }
        file.write(dir)?;
        let open = |name: &str| {
            let path = dir.join(name);
            let opened = end_of(dir, name, records, metric_lines).and_then(|bytes| cut_back(&path, bytes));
            opened.map_err(|e| output_error(&path, &e))
        };
        let (metrics, log, samples) = (open(METRICS)?, open(LOG)?, open(SAMPLES)?);
        let (dir, events) = (dir.to_owned(), Events::begin(dir, records)?);
        Ok(Self { dir, metrics, metric_lines, log, samples, events, torn: None, file, _lock: lock })
    }

    /// Returns the run's settings and facts.
    #[must_use]
    pub fn file(&self) -> &RunFile {
        &self.file
    }

    /// Notes in the configuration that the run has come to its end, the last thing that it does.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn finish(&mut self) -> Result<()> {
        self.sync()?;
        self.file.record.finished = true;
        self.file.write(&self.dir)
    }

    /// Bytes of each record so far.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn positions(&self) -> Result<BTreeMap<String, u64>> {
        let files = [(METRICS, &self.metrics), (LOG, &self.log), (SAMPLES, &self.samples)];
        let position = |(name, mut file): (&str, &File)| match file.stream_position() {
            Ok(bytes) => Ok((name.to_owned(), bytes)),
            Err(e) => Err(output_error(&self.dir.join(name), &e)),
        };
        let mut all = self.events.positions()?;
        for file in files {
            all.extend([position(file)?]);
        }
        Ok(all)
    }

    /// Lines of `metrics.jsonl` so far.
    #[must_use]
    pub fn metric_lines(&self) -> usize {
        self.metric_lines
    }

    /// Forces the records to disk.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn sync(&self) -> Result<()> {
        for (name, file) in [(METRICS, &self.metrics), (LOG, &self.log), (SAMPLES, &self.samples)] {
            file.sync_all().map_err(|e| output_error(&self.dir.join(name), &e))?;
        }
        self.events.sync()
    }

    /// [`Folder::create`] in the next free `parent/N`, which no other run gets.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn create_next(parent: &Path, file: &RunFile) -> Result<Self> {
        fs::create_dir_all(parent).map_err(|e| output_error(parent, &e))?;
        loop {
            let dir = next_free(parent);
            match fs::create_dir(&dir) {
                Ok(()) => return Self::create(&dir, file.clone()),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(output_error(&dir, &e)),
            }
        }
    }

    /// Appends a step to `metrics.jsonl` and, in llm.c's form with steps from 0, to `main.log`.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn step(&mut self, metric: &Metric) -> Result<()> {
        let path = self.dir.join(METRICS);
        let line = metric.line()?;
        let log = metric.log_lines();
        let log_path = self.dir.join(LOG);
        if let Some((metrics, log)) = self.torn {
            // what could not even be cut back, the last time
            shorten(&mut self.metrics, metrics).map_err(|e| output_error(&path, &e))?;
            shorten(&mut self.log, log).map_err(|e| output_error(&log_path, &e))?;
        }
        let before = self.metrics.stream_position().map_err(|e| output_error(&path, &e))?;
        let log_before = self.log.stream_position().map_err(|e| output_error(&log_path, &e))?;
        self.torn = Some((before, log_before));
        append(&mut self.metrics, line.as_bytes()).map_err(|e| output_error(&path, &e))?;
        crate::kill_point!("records: between metrics and log");
        let logged = append(&mut self.log, log.as_bytes()).map_err(|e| output_error(&log_path, &e));
        if let Err(error) = logged.and_then(|()| self.events.scalars(metric.step, &metric.scalars())) {
            // all or none, so that the step can be written again
            shorten(&mut self.metrics, before).map_err(|e| output_error(&path, &e))?;
            shorten(&mut self.log, log_before).map_err(|e| output_error(&log_path, &e))?;
            return Err(error);
        }
        self.metric_lines += 1;
        self.torn = None;
        Ok(())
    }

    /// Returns the last line of `metrics.jsonl`.
    ///
    /// # Errors
    /// [`Error::Data`] if the file is gone.
    pub fn last_line(&self) -> Result<Option<Metric>> {
        records::open(&self.dir).map(Iterator::last)
    }

    /// Puts `line` in the place of the last line of `metrics.jsonl`, which is of the same step and lacks what was measured
    /// since; the other records get that alone.
    ///
    /// # Errors
    /// [`Error::Output`], after which the old line is there, or the new one.
    pub fn amend(&mut self, line: &Metric, validated: bool, asked: bool) -> Result<()> {
        let path = self.dir.join(METRICS);
        let failed = |e: std::io::Error| output_error(&path, &e);
        let mut text = fs::read_to_string(&path).map_err(failed)?;
        let start = text.trim_end_matches('\n').rfind('\n').map_or(0, |at| at + 1);
        text.truncate(start);
        text += &line.line()?;
        atomic::write(&path, |out| out.write_all(text.as_bytes()))?;
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        self.metrics = file;
        let added = Metric {
            val_loss: line.val_loss.filter(|_| validated),
            hellaswag: line.hellaswag.filter(|_| asked),
            ..Metric::of_step(line.step)
        };
        append(&mut self.log, added.log_lines().as_bytes()).map_err(|e| output_error(&self.dir.join(LOG), &e))?;
        self.events.scalars(added.step, &added.scalars())
    }

    /// Appends a sample to `samples.txt`.
    ///
    /// # Errors
    /// [`Error::Output`], after which nothing of it is there.
    pub fn sample(&mut self, step: usize, text: &str) -> Result<()> {
        let text = format!("--- step {step} ---\n{text}\n");
        append(&mut self.samples, text.as_bytes()).map_err(|e| output_error(&self.dir.join(SAMPLES), &e))
    }

    /// Cuts the records back, as [`Folder::resume`] does, in a run that goes on in the same process.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn rewind(&mut self, records: &BTreeMap<String, u64>, metric_lines: usize) -> Result<()> {
        for (name, file) in [(METRICS, &mut self.metrics), (LOG, &mut self.log), (SAMPLES, &mut self.samples)] {
            let end = end_of(&self.dir, name, records, metric_lines);
            end.and_then(|bytes| shorten(file, bytes)).map_err(|e| output_error(&self.dir.join(name), &e))?;
        }
        self.events = Events::begin(&self.dir, records)?;
        (self.metric_lines, self.torn) = (metric_lines, None);
        Ok(())
    }
}

/// Appends all of `bytes`, or nothing.
pub(super) fn append(file: &mut File, bytes: &[u8]) -> std::io::Result<()> {
    let before = file.stream_position()?;
    let written = file.write_all(bytes);
    if written.is_err() {
        shorten(file, before)?;
    }
    written
}

/// Cuts a file and goes to its end.
fn shorten(file: &mut File, bytes: u64) -> std::io::Result<()> {
    file.set_len(bytes)?;
    file.seek(SeekFrom::Start(bytes)).map(drop)
}

/// Returns the bytes of a record that belong to a checkpoint. Lines of `metrics.jsonl` are counted: the last of them may have
/// grown since ([`Folder::amend`]).
fn end_of(dir: &Path, name: &str, records: &BTreeMap<String, u64>, metric_lines: usize) -> std::io::Result<u64> {
    let noted = records.get(name).copied().unwrap_or(0);
    let path = dir.join(name);
    if name != METRICS || !path.exists() {
        return Ok(noted);
    }
    let (mut reader, mut bytes, mut line) = (BufReader::new(File::open(path)?), 0, Vec::new());
    for _ in 0..metric_lines {
        line.clear();
        match reader.read_until(b'\n', &mut line)? {
            // fewer lines than there were
            0 => return Ok(noted),
            more => bytes += more as u64,
        }
    }
    Ok(bytes)
}

/// Opens a growing file at `bytes`, behind which nothing is left; a shorter file is as long as it is.
fn cut_back(path: &Path, bytes: u64) -> std::io::Result<File> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    crate::kill_point!("resume: before a record is cut back");
    let there = file.metadata()?.len();
    if there < bytes {
        log::warn!("{}: has {there} bytes, expected {bytes}; the record continues with a gap", path.display());
    }
    file.set_len(there.min(bytes))?;
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}
