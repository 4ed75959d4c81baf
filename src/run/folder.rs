//! A run's folder: its name, its creation and resumption, and the records that grow in it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::data::Tokenizer;
use crate::error::{Error, Fault, Result};
use crate::files::atomic::{self, output_error};
use crate::files::disk::System;
use crate::files::open;
use crate::formats::checkpoint::Checkpoints;

use crate::run::contents;
use crate::run::home::{self, Home};
use crate::run::lock::FolderLock;
use crate::run::record::Record;
use crate::run::tensorboard::{self, Events};
use crate::train::settings::RunFile;
use crate::train::settings::file::{CONFIG, TOKENIZER};

use super::inspect::{State, inspect};
use super::records::{self, METRICS, Metric};

pub(super) const LOG: &str = "main.log";
pub(super) const SAMPLES: &str = "samples.txt";
/// The folder for records that were moved aside.
pub(super) const UNSAVED: &str = "unsaved";
/// Prefix of the temporary file that tests whether a folder can be written.
pub(super) const PROBE: &str = ".wgpt-probe-";

/// Returns the next free `parent/N`.
#[must_use]
pub fn next_free(parent: &Path) -> PathBuf {
    let taken = fs::read_dir(parent).into_iter().flatten().flatten();
    let most = taken.filter_map(|e| e.file_name().to_str()?.parse::<u64>().ok()).max().unwrap_or(0);
    parent.join((u128::from(most) + 1).to_string())
}

/// Returns the run folders in `parent`, ordered by number.
#[must_use]
pub fn runs(parent: &Path) -> Vec<String> {
    let found = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut runs: Vec<PathBuf> = found.filter(|dir| is_run(dir)).collect();
    let number = |dir: &PathBuf| dir.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok());
    runs.sort_by_key(|dir| (number(dir).unwrap_or(u64::MAX), dir.clone()));
    runs.iter().map(|dir| dir.display().to_string()).collect()
}

/// Most runs that a message lists.
const MOST_LISTED: usize = 6;

/// Says which runs are next to a folder that does not exist; `None` if it does, or there are none.
#[must_use]
pub fn siblings(missing: &Path) -> Option<String> {
    let parent = missing.parent().filter(|parent| !parent.as_os_str().is_empty() && !missing.exists())?;
    match runs(parent).as_slice() {
        [] => None,
        [only] => Some(format!("there is {only}")),
        some if some.len() <= MOST_LISTED => Some(format!("there are {}", some.join(", "))),
        many => Some(format!("there are {} runs, the last are {}", many.len(), many[many.len() - 3..].join(", "))),
    }
}

/// Returns the next free `DIR.N`.
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

/// Returns whether a folder contains a run.
#[must_use]
pub fn is_run(dir: &Path) -> bool {
    dir.join(CONFIG).exists()
}

/// Returns the number of checkpoints in a run's folder.
#[must_use]
pub fn checkpoints(dir: &Path) -> usize {
    Checkpoints::new(&System, dir).steps().map_or(0, |steps| steps.len())
}

/// Renames a folder to the next free `DIR.N` and returns that path.
///
/// # Errors
/// [`Error::Output`].
pub fn put_aside(dir: &Path) -> Result<PathBuf> {
    let to = aside(dir);
    fs::rename(dir, &to).map_err(|e| output_error(dir, &e))?;
    Ok(to)
}

/// Checks that the folder `dir` can be created and written.
///
/// # Errors
/// [`Error::Output`] naming the folder that cannot be written.
pub fn check_writable(dir: &Path) -> Result<()> {
    let absolute = std::path::absolute(dir).map_err(|e| output_error(dir, &e))?;
    let existing = absolute.ancestors().find(|a| a.exists()).unwrap_or(&absolute);
    let name = format!("{PROBE}{}", std::process::id());
    atomic::probe(existing, &name).map_err(|e| match existing == absolute {
        true => output_error(dir, &e),
        false => {
            let fault = Fault::at(dir.display(), format!("cannot be made in {} ({e})", existing.display()));
            Error::output(fault.advice("try another folder"))
        }
    })
}

/// The growing files of a run, in a folder that stays locked while this exists.
#[derive(Debug)]
pub struct Folder {
    home: Arc<Home>,
    metrics: Record,
    metric_lines: usize,
    log: Record,
    samples: Record,
    events: Events,
    /// [`Home::returns`] when the files were opened.
    returns: usize,
    /// Contents of its `config.toml`.
    file: RunFile,
}

/// The part of each record that belongs to the steps of a checkpoint. Empty if there is no checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordExtents {
    /// Bytes of each record, keyed by its path relative to the run's folder.
    pub bytes: BTreeMap<String, u64>,
    /// Lines of `metrics.jsonl`. The last one may have grown since ([`Folder::amend`]).
    pub metric_lines: usize,
    /// Upper bound of the lines' steps, exclusive.
    pub below: usize,
}

impl Folder {
    /// Creates the folder with its configuration and empty records.
    ///
    /// # Errors
    /// [`Error::Output`]; [`Error::Locked`] or [`Error::Usage`] if another run has just begun in it.
    pub fn create(dir: &Path, file: RunFile) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| output_error(dir, &e))?;
        let lock = FolderLock::take(dir)?;
        if inspect(dir, &file.settings, file.record.data.as_deref())? != State::Free {
            let fault = Fault::at("--out", format!("{} holds another run, which has just begun", dir.display()));
            return Err(Error::usage(fault.advice("try another folder")));
        }
        Self::resume(dir, file, lock, &RecordExtents::default())
    }

    /// Resumes a run in its folder. Truncates the records to the extents that a checkpoint gives; without a checkpoint moves
    /// them aside. Writes the configuration again, because some settings may have changed.
    ///
    /// # Errors
    /// [`Error::Output`]; [`Error::Data`] if the records belong to another run.
    pub fn resume(dir: &Path, mut file: RunFile, lock: FolderLock, extents: &RecordExtents) -> Result<Self> {
        let lock = lock.with_file(dir)?;
        let run = match &file.record.run {
            Some(run) => run.clone(),
            None => home::new_run()?,
        };
        file.record.run = Some(run.clone());
        let home = Arc::new(Home::new(dir, &run, lock)?);
        atomic::sweep(dir);
        if let Some(Tokenizer::Own(own)) = &file.settings.data.tokenizer {
            let kept = dir.join(TOKENIZER);
            open::make_folder(&kept).map_err(|e| output_error(&kept, &e))?;
            own.files().write(&kept)?;
        }
        let (metric_lines, metrics) = records::checkpointed_lines(dir, &run, extents.metric_lines, extents.below)?;
        file.write(dir)?;
        contents::own_checkpoints(dir, &run)?;
        if *extents == RecordExtents::default() {
            put_records_aside(dir)?;
        }
        let bytes = |name: &str| extents.bytes.get(name).copied().unwrap_or(0);
        let open = |name: &str, bytes: u64| {
            let path = dir.join(name);
            Record::open(&path, bytes).map_err(|e| output_error(&path, &e))
        };
        let metrics = open(METRICS, metrics)?;
        let (log, samples) = (open(LOG, bytes(LOG))?, open(SAMPLES, bytes(SAMPLES))?);
        let events = Events::begin(dir, &extents.bytes)?;
        Ok(Self { home, metrics, metric_lines, log, samples, events, returns: 0, file })
    }

    /// Returns the folder's path.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.home.dir()
    }

    /// Returns the identity of this folder.
    #[must_use]
    pub fn home(&self) -> &Arc<Home> {
        &self.home
    }

    /// Returns the run's settings and facts.
    #[must_use]
    pub fn file(&self) -> &RunFile {
        &self.file
    }

    /// Checks that the folder still belongs to this run. Reopens the records if the folder was away.
    fn check(&mut self) -> Result<()> {
        self.home.check()?;
        let returns = self.home.returns();
        if returns != self.returns {
            [&mut self.metrics, &mut self.log, &mut self.samples].into_iter().for_each(Record::close);
            self.events.close();
            self.returns = returns;
        }
        Ok(())
    }

    /// Records in the configuration that the run is finished. This is the last action of a run.
    ///
    /// # Errors
    /// Those of [`Folder::step`].
    pub fn finish(&mut self) -> Result<()> {
        self.sync()?;
        self.file.record.finished = true;
        self.file.write(self.home.dir())
    }

    /// Returns the bytes of each record and the lines of `metrics.jsonl` so far.
    #[must_use]
    pub fn written(&self) -> (BTreeMap<String, u64>, usize) {
        let files = [(METRICS, &self.metrics), (LOG, &self.log), (SAMPLES, &self.samples)];
        let mut bytes = self.events.positions();
        bytes.extend(files.map(|(name, record)| (name.to_owned(), record.bytes())));
        (bytes, self.metric_lines)
    }

    /// Flushes the records to disk.
    ///
    /// # Errors
    /// Those of [`Folder::step`].
    pub fn sync(&mut self) -> Result<()> {
        self.check()?;
        for record in [&mut self.metrics, &mut self.log, &mut self.samples] {
            record.sync().map_err(|e| output_error(record.path(), &e))?;
        }
        self.events.sync()
    }

    /// Creates the next free `parent/N` as [`Folder::create`] does. No other run gets the same number.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn create_next(parent: &Path, file: &RunFile) -> Result<Self> {
        fs::create_dir_all(parent).map_err(|e| output_error(parent, &e))?;
        loop {
            let dir = next_free(parent);
            match fs::create_dir(&dir) {
                Ok(()) => return Self::create(&dir, file.clone()),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(output_error(&dir, &e)),
            }
        }
    }

    /// Appends a step to `metrics.jsonl`, to the event files and, in llm.c's format with steps from 0, to `main.log`. The first
    /// line of `metrics.jsonl` contains the run's id.
    ///
    /// # Errors
    /// [`Error::Output`], after which no part of the step is recorded; [`Error::Usage`] or [`Error::Locked`] if the folder no
    /// longer belongs to this run.
    pub fn step(&mut self, metric: &Metric) -> Result<()> {
        self.check()?;
        let run = (self.metric_lines == 0).then(|| self.home.run().to_owned());
        let line = Metric { run, ..metric.clone() }.line()?;
        let before = [self.metrics.bytes(), self.log.bytes()];
        let failed = |record: &Record, e: io::Error| output_error(record.path(), &e);
        let written = self.metrics.append(line.as_bytes()).map_err(|e| failed(&self.metrics, e)).and_then(|()| {
            crate::kill_point!("records: between metrics and log");
            self.log.append(metric.log_lines().as_bytes()).map_err(|e| failed(&self.log, e))?;
            self.events.scalars(metric.step, &metric.scalars())
        });
        if written.is_err() {
            // all or none, so that the step can be written again
            self.metrics.cut(before[0]);
            self.log.cut(before[1]);
            return written;
        }
        self.metric_lines += 1;
        Ok(())
    }

    /// Returns the last line of `metrics.jsonl`.
    ///
    /// # Errors
    /// [`Error::Output`] if the file cannot be read. The condition may be temporary.
    pub fn last_line(&mut self) -> Result<Option<Metric>> {
        self.check()?;
        let lines = records::open(self.dir()).map_err(|e| Error::output(e.fault().clone()))?;
        Ok(lines.last())
    }

    /// Replaces the last line of `metrics.jsonl` by `line`, which has the same step and adds later measurements: a validation
    /// loss if `validated`, an accuracy on HellaSwag if `scored_hellaswag`. Appends only the added values to the other records.
    ///
    /// # Errors
    /// Those of [`Folder::step`], after which the file has either the old line or the new one.
    pub fn amend(&mut self, line: &Metric, validated: bool, scored_hellaswag: bool) -> Result<()> {
        self.check()?;
        let path = self.metrics.path().to_owned();
        let mut text = fs::read_to_string(&path).map_err(|e| output_error(&path, &e))?;
        let start = text.trim_end_matches('\n').rfind('\n').map_or(0, |at| at + 1);
        text.truncate(start);
        text += &line.line()?;
        atomic::write(&path, |out| out.write_all(text.as_bytes()))?;
        self.metrics.replaced(text.len() as u64);
        let added = Metric {
            val_loss: line.val_loss.filter(|_| validated),
            hellaswag: line.hellaswag.filter(|_| scored_hellaswag),
            ..Metric::of_step(line.step)
        };
        let before = self.log.bytes();
        self.log.append(added.log_lines().as_bytes()).map_err(|e| output_error(self.log.path(), &e))?;
        let written = self.events.scalars(added.step, &added.scalars());
        if written.is_err() {
            // a retry must not write the line twice
            self.log.cut(before);
        }
        written
    }

    /// Appends a sample to `samples.txt`.
    ///
    /// # Errors
    /// Those of [`Folder::step`].
    pub fn sample(&mut self, step: usize, text: &str) -> Result<()> {
        self.check()?;
        let text = format!("--- step {step} ---\n{text}\n");
        self.samples.append(text.as_bytes()).map_err(|e| output_error(self.samples.path(), &e))
    }

    /// Truncates the records as [`Folder::resume`] does, for a run that is resumed in the same process.
    ///
    /// # Errors
    /// Those of [`Folder::resume`].
    pub fn rewind(&mut self, extents: &RecordExtents) -> Result<()> {
        self.check()?;
        let dir = self.home.dir();
        let (metric_lines, metrics) =
            records::checkpointed_lines(dir, self.home.run(), extents.metric_lines, extents.below)?;
        self.events.close();
        if *extents == RecordExtents::default() {
            [&mut self.metrics, &mut self.log, &mut self.samples].into_iter().for_each(Record::close);
            put_records_aside(dir)?;
        }
        let bytes = |name: &str| extents.bytes.get(name).copied().unwrap_or(0);
        self.metrics.cut(metrics);
        self.log.cut(bytes(LOG));
        self.samples.cut(bytes(SAMPLES));
        self.events = Events::begin(dir, &extents.bytes)?;
        self.metric_lines = metric_lines;
        Ok(())
    }
}

/// Moves records to `unsaved/N` if they contain steps. No checkpoint covers these steps, so the run computes them again.
fn put_records_aside(dir: &Path) -> Result<()> {
    let lines = match records::reader(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        lines => lines.map_err(|e| output_error(&dir.join(METRICS), &e))?,
    };
    if !records::metrics(lines).any(|metric| metric.step > 0) {
        return Ok(());
    }
    let unsaved = dir.join(UNSAVED);
    open::make_folder(&unsaved).map_err(|e| output_error(&unsaved, &e))?;
    let to = next_free(&unsaved);
    fs::create_dir(&to).map_err(|e| output_error(&to, &e))?;
    // the metrics move last: after a kill, their presence shows that the others must be moved too
    for name in [LOG, SAMPLES, tensorboard::FOLDER, METRICS] {
        match fs::rename(dir.join(name), to.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(output_error(&dir.join(name), &e)),
            _ => {}
        }
    }
    Ok(())
}
