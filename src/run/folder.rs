//! A run's folder: whether it may be used, and the files that grow in it.

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
/// The folder of records that were put aside.
pub(super) const UNSAVED: &str = "unsaved";
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
    atomic::probe(existing, &name).map_err(|e| match existing == absolute {
        true => output_error(dir, &e),
        false => {
            let fault = Fault::at(dir.display(), format!("cannot be made in {} ({e})", existing.display()));
            Error::output(fault.advice("try another folder"))
        }
    })
}

/// The growing files of a run, in a folder that is locked as long as this lives.
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
    /// Its `config.toml`.
    file: RunFile,
}

/// Bytes of each record and lines of `metrics.jsonl` that a checkpoint vouches for; nothing where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vouched {
    /// By names seen from the run's folder.
    pub bytes: BTreeMap<String, u64>,
    /// The last of them may have grown since ([`Folder::amend`]).
    pub metric_lines: usize,
    /// Their steps are below this one.
    pub below: usize,
}

impl Folder {
    /// Makes the folder with its configuration and empty records.
    ///
    /// # Errors
    /// [`Error::Output`]; [`Error::Locked`] or [`Error::Usage`] if another run has just begun in it.
    pub fn create(dir: &Path, file: RunFile) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| output_error(dir, &e))?;
        let lock = FolderLock::take(dir)?;
        if inspect(dir, &file.settings, file.record.data.as_deref())? != State::Free {
            let fault = Fault::at("--out", format!("{} holds another run that has just begun", dir.display()));
            return Err(Error::usage(fault.advice("try another folder")));
        }
        Self::resume(dir, file, lock, &Vouched::default())
    }

    /// Resumes in a folder whose records are cut back to what a checkpoint vouches for; without one they are put aside. The
    /// configuration is written anew, since some settings may differ.
    ///
    /// # Errors
    /// [`Error::Output`]; [`Error::Data`] if the records are not this run's.
    pub fn resume(dir: &Path, mut file: RunFile, lock: FolderLock, vouched: &Vouched) -> Result<Self> {
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
            open::make_own_folder(&kept).map_err(|e| output_error(&kept, &e))?;
            own.files().write(&kept)?;
        }
        let (metric_lines, metrics) = records::vouched_lines(dir, &run, vouched.metric_lines, vouched.below)?;
        file.write(dir)?;
        contents::own_checkpoints(dir, &run)?;
        if *vouched == Vouched::default() {
            put_records_aside(dir)?;
        }
        let bytes = |name: &str| vouched.bytes.get(name).copied().unwrap_or(0);
        let open = |name: &str, bytes: u64| {
            let path = dir.join(name);
            Record::open(&path, bytes).map_err(|e| output_error(&path, &e))
        };
        let metrics = open(METRICS, metrics)?;
        let (log, samples) = (open(LOG, bytes(LOG))?, open(SAMPLES, bytes(SAMPLES))?);
        let events = Events::begin(dir, &vouched.bytes)?;
        Ok(Self { home, metrics, metric_lines, log, samples, events, returns: 0, file })
    }

    /// Returns the folder's path.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.home.dir()
    }

    /// Returns what tells this folder from every other one.
    #[must_use]
    pub fn home(&self) -> &Arc<Home> {
        &self.home
    }

    /// Returns the run's settings and facts.
    #[must_use]
    pub fn file(&self) -> &RunFile {
        &self.file
    }

    /// Fails unless the folder is still this run's; opens the records anew if it was away.
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

    /// Notes in the configuration that the run has come to its end, the last thing that it does.
    ///
    /// # Errors
    /// As [`Folder::step`].
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

    /// Forces the records to disk.
    ///
    /// # Errors
    /// As [`Folder::step`].
    pub fn sync(&mut self) -> Result<()> {
        self.check()?;
        for record in [&mut self.metrics, &mut self.log, &mut self.samples] {
            record.sync().map_err(|e| output_error(record.path(), &e))?;
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
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(output_error(&dir, &e)),
            }
        }
    }

    /// Appends a step to `metrics.jsonl` and, in llm.c's form with steps from 0, to `main.log`. The first line has the run's
    /// id.
    ///
    /// # Errors
    /// [`Error::Output`], after which nothing of it counts; [`Error::Usage`] or [`Error::Locked`] if the folder is not this
    /// run's any more.
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
    /// [`Error::Output`] if the file cannot be read, which may pass.
    pub fn last_line(&mut self) -> Result<Option<Metric>> {
        self.check()?;
        let lines = records::open(self.dir()).map_err(|e| Error::output(e.fault().clone()))?;
        Ok(lines.last())
    }

    /// Puts `line` in the place of the last line of `metrics.jsonl`, which is of the same step and lacks what was measured
    /// since; the other records get that alone.
    ///
    /// # Errors
    /// As [`Folder::step`], after which the old line is there, or the new one.
    pub fn amend(&mut self, line: &Metric, validated: bool, asked: bool) -> Result<()> {
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
            hellaswag: line.hellaswag.filter(|_| asked),
            ..Metric::of_step(line.step)
        };
        let before = self.log.bytes();
        self.log.append(added.log_lines().as_bytes()).map_err(|e| output_error(self.log.path(), &e))?;
        let written = self.events.scalars(added.step, &added.scalars());
        if written.is_err() {
            // the line is written once, however often this is tried
            self.log.cut(before);
        }
        written
    }

    /// Appends a sample to `samples.txt`.
    ///
    /// # Errors
    /// As [`Folder::step`].
    pub fn sample(&mut self, step: usize, text: &str) -> Result<()> {
        self.check()?;
        let text = format!("--- step {step} ---\n{text}\n");
        self.samples.append(text.as_bytes()).map_err(|e| output_error(self.samples.path(), &e))
    }

    /// Cuts the records back, as [`Folder::resume`] does, in a run that is resumed in the same process.
    ///
    /// # Errors
    /// As [`Folder::resume`].
    pub fn rewind(&mut self, vouched: &Vouched) -> Result<()> {
        self.check()?;
        let dir = self.home.dir();
        let (metric_lines, metrics) =
            records::vouched_lines(dir, self.home.run(), vouched.metric_lines, vouched.below)?;
        self.events.close();
        if *vouched == Vouched::default() {
            [&mut self.metrics, &mut self.log, &mut self.samples].into_iter().for_each(Record::close);
            put_records_aside(dir)?;
        }
        let bytes = |name: &str| vouched.bytes.get(name).copied().unwrap_or(0);
        self.metrics.cut(metrics);
        self.log.cut(bytes(LOG));
        self.samples.cut(bytes(SAMPLES));
        self.events = Events::begin(dir, &vouched.bytes)?;
        self.metric_lines = metric_lines;
        Ok(())
    }
}

/// Moves records with steps that no checkpoint vouches for to `unsaved/N`: the run computes these steps again.
fn put_records_aside(dir: &Path) -> Result<()> {
    let lines = match records::reader(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        lines => lines.map_err(|e| output_error(&dir.join(METRICS), &e))?,
    };
    if !records::metrics(lines).any(|metric| metric.step > 0) {
        return Ok(());
    }
    let unsaved = dir.join(UNSAVED);
    open::make_own_folder(&unsaved).map_err(|e| output_error(&unsaved, &e))?;
    let to = next_free(&unsaved);
    fs::create_dir(&to).map_err(|e| output_error(&to, &e))?;
    // the metrics last: after a kill the others are found by them again
    for name in [LOG, SAMPLES, tensorboard::FOLDER, METRICS] {
        match fs::rename(dir.join(name), to.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(output_error(&dir.join(name), &e)),
            _ => {}
        }
    }
    Ok(())
}
