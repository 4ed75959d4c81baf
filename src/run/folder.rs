//! A run's folder: whether it may be used, and the files that grow in it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::atomic::{self, output_error};
use crate::files::disk::System;
use crate::formats::checkpoint::Checkpoints;

use crate::files::lock::{LOCK, Lock};
use crate::run::tensorboard::Events;
use crate::train::settings::{RunSettings, Settings};

const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
const LOG: &str = "main.log";
const SAMPLES: &str = "samples.txt";
/// How the file begins that tells whether a folder can be written.
const PROBE: &str = ".wgpt-probe-";

/// What a folder holds, seen from a run that wants it.
#[derive(Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing: the run may begin.
    Free,
    /// The same run, finished.
    Finished,
    /// The same run, not finished.
    Unfinished,
}

/// The next free `runs/N`.
#[must_use]
pub fn next_free(parent: &Path) -> PathBuf {
    let taken = fs::read_dir(parent).into_iter().flatten().flatten();
    let most = taken.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()).max().unwrap_or(0);
    parent.join((u64::from(most) + 1).to_string())
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

/// Looks at a folder before anything is written.
///
/// # Errors
/// [`Error::Usage`] if it holds another run or other files, [`Error::Output`] if it cannot be read.
pub fn inspect(dir: &Path, settings: &Settings) -> Result<State> {
    if dir.symlink_metadata().is_ok() && !dir.exists() {
        return Err(Error::usage(format!(
            "--out: {} is a link to nothing, expected a folder; try another name",
            dir.display()
        )));
    }
    if !dir.exists() {
        return Ok(State::Free);
    }
    if !dir.is_dir() {
        return Err(Error::usage(format!("--out: {} is a file, expected a folder; try another name", dir.display())));
    }
    let config = dir.join(CONFIG);
    if !config.exists() {
        // a run that was killed as it began leaves no more than this
        let own = |name: &str| name == LOCK || name == format!("{CONFIG}.tmp") || name.starts_with(PROBE);
        let mut names = fs::read_dir(dir).map_err(|e| output_error(dir, &e))?.flatten().map(|entry| entry.file_name());
        let empty = names.all(|name| own(&name.to_string_lossy()));
        return if empty {
            Ok(State::Free)
        } else {
            Err(Error::usage(format!(
                "--out: {} holds files and no run, expected an empty folder; try another name",
                dir.display()
            )))
        };
    }
    let text = fs::read_to_string(&config).map_err(|e| output_error(&config, &e))?;
    let there: toml::Table = text.parse().map_err(|e| {
        Error::usage(format!("{}: is not a run's configuration ({e}); try another --out", config.display()))
    })?;
    let differences = settings.differences(&there)?;
    if !differences.is_empty() {
        return Err(Error::usage(format!(
            "--out: {} holds another run ({}); try another folder, or --restart to put that one aside",
            dir.display(),
            differences.join("; ")
        )));
    }
    let finished = there.get("run").and_then(|run| run.get("finished")).and_then(toml::Value::as_bool);
    Ok(if finished == Some(true) { State::Finished } else { State::Unfinished })
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

/// One line of `metrics.jsonl`. Non-finite numbers become null.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// From 1; 0 for the validation before training.
    pub step: usize,
    /// Mean training loss in nats a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f32>,
    /// Gradient norm before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f32>,
    /// Learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f32>,
    /// Milliseconds from the end of the step before to the end of this one; validation, samples and saves excluded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms: Option<f32>,
    /// Milliseconds before that, since the end of the step before, in which no step ran: validation, samples, saves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<f32>,
    /// Tokens of the step over its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f32>,
    /// Validation loss after the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f32>,
    /// Accuracy on HellaSwag after the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hellaswag: Option<f32>,
    /// What gradients were multiplied by, in mixed precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f32>,
    /// The loss's z-score, where outliers are skipped; 0 while its window fills.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_z: Option<f32>,
    /// The gradient norm's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_z: Option<f32>,
    /// True if the update was skipped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
}

impl Metric {
    /// A line of which only the step is known.
    #[must_use]
    pub fn of_step(step: usize) -> Self {
        Self { step, ..Self::default() }
    }

    /// Every value with its name in TensorBoard.
    fn scalars(&self) -> Vec<(&'static str, f32)> {
        let all = [
            ("train/loss", self.loss),
            ("train/grad_norm", self.grad_norm),
            ("train/lr", self.lr),
            ("train/loss_scale", self.loss_scale),
            ("train/loss_z", self.loss_z),
            ("train/norm_z", self.norm_z),
            ("val/loss", self.val_loss),
            ("val/hellaswag", self.hellaswag),
            ("speed/ms", self.ms),
            ("speed/tokens_per_s", self.tokens_per_s),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// Fails unless a folder can be made and written where `dir` is to be.
///
/// # Errors
/// [`Error::Output`] naming the folder that refuses.
pub fn check_writable(dir: &Path) -> Result<()> {
    let absolute = std::path::absolute(dir).map_err(|e| output_error(dir, &e))?;
    let existing = absolute.ancestors().find(|a| a.exists()).unwrap_or(&absolute);
    // permissions do not tell: the superuser, read-only mounts and special file systems have rules of their own
    let probe = existing.join(format!("{PROBE}{}", std::process::id()));
    File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(|e| output_error(existing, &e))
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
    /// What lies under `run` in the configuration.
    run: RunSettings,
    _lock: Lock,
}

impl Folder {
    /// Makes the folder with its configuration and empty records.
    ///
    /// # Errors
    /// [`Error::Output`]; [`Error::Locked`] or [`Error::Usage`] if another run has just begun in it.
    pub fn create(dir: &Path, settings: &Settings) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| output_error(dir, &e))?;
        let lock = Lock::take(dir)?;
        if inspect(dir, settings)? != State::Free {
            return Err(Error::usage(format!(
                "--out: {} holds another run that has just begun; try another folder",
                dir.display()
            )));
        }
        Self::resume(dir, settings, lock, &BTreeMap::new(), 0)
    }

    /// Goes on in a folder whose records are cut back to the bytes in `records`, nothing if they are not in it, and
    /// `metrics.jsonl` to so many lines. The configuration is written anew, since what lies under `run` may differ.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn resume(
        dir: &Path,
        settings: &Settings,
        mut lock: Lock,
        records: &BTreeMap<String, u64>,
        metric_lines: usize,
    ) -> Result<Self> {
        lock.sign()?;
        configure(dir, settings)?;
        let open = |name: &str| {
            let path = dir.join(name);
            cut_back(&path, records.get(name).copied().unwrap_or(0)).map_err(|e| output_error(&path, &e))
        };
        let (metrics, log, samples) = (open(METRICS)?, open(LOG)?, open(SAMPLES)?);
        let (dir, run, events) = (dir.to_owned(), settings.run.clone(), Events::begin(dir, records)?);
        Ok(Self { dir, metrics, metric_lines, log, samples, events, torn: None, run, _lock: lock })
    }

    /// Notes in the configuration what is known once there is a device.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn note(&mut self, settings: &Settings, run: RunSettings) -> Result<()> {
        self.run = run.clone();
        configure(&self.dir, &Settings { run, ..settings.clone() })
    }

    /// Notes that the run has come to its end, the last thing that it does.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn finish(&self, settings: &Settings) -> Result<()> {
        self.sync()?;
        let run = RunSettings { finished: true, ..self.run.clone() };
        configure(&self.dir, &Settings { run, ..settings.clone() })
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
    pub fn create_next(parent: &Path, settings: &Settings) -> Result<Self> {
        fs::create_dir_all(parent).map_err(|e| output_error(parent, &e))?;
        loop {
            let dir = next_free(parent);
            match fs::create_dir(&dir) {
                Ok(()) => return Self::create(&dir, settings),
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
        let mut line = serde_json::to_string(metric).map_err(|e| Error::output(format!("{}: {e}", path.display())))?;
        line.push('\n');
        let mut log = String::new();
        if let (Some(loss), Some(lr), Some(norm)) = (metric.loss, metric.lr, metric.grad_norm) {
            log += &format!("s:{} trl:{loss:.4} lr:{lr:.6} norm:{norm:.2}\n", metric.step - 1);
        }
        if let Some(loss) = metric.val_loss {
            log += &format!("s:{} tel:{loss:.4}\n", metric.step);
        }
        if let Some(accuracy) = metric.hellaswag {
            log += &format!("s:{} eval:{accuracy:.4}\n", metric.step);
        }
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
            let bytes = records.get(name).copied().unwrap_or(0);
            shorten(file, bytes).map_err(|e| output_error(&self.dir.join(name), &e))?;
        }
        self.events = Events::begin(&self.dir, records)?;
        (self.metric_lines, self.torn) = (metric_lines, None);
        Ok(())
    }
}

/// Writes a run's configuration.
fn configure(dir: &Path, settings: &Settings) -> Result<()> {
    let text = settings.to_toml()?;
    atomic::write(&dir.join(CONFIG), |out| out.write_all(text.as_bytes()))
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

/// Opens a growing file at `bytes`, behind which nothing is left; a shorter file is as long as it is.
fn cut_back(path: &Path, bytes: u64) -> std::io::Result<File> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    crate::kill_point!("resume: before a record is cut back");
    let there = file.metadata()?.len();
    if there < bytes {
        log::warn!("{}: has {there} bytes, expected {bytes}; it goes on with a gap", path.display());
    }
    file.set_len(there.min(bytes))?;
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}
