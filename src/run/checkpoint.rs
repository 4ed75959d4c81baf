//! What a checkpoint of a run holds, and the thread that writes it while training goes on.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use crate::data::BatchesState;
use crate::error::{Error, Fault, Result};
use crate::files::atomic::output_error;
use crate::files::disk::{Disk, System};
use crate::formats::checkpoint::{CHECKPOINTS, Checkpoints, Damaged, Keep, SaveContext};
use crate::formats::checkpoint_weights::{self, WEIGHTS};
use crate::formats::safetensors_file::{Entry, Layout};
use crate::gpu::Gpu;
use crate::model::params::PARAMS;
use crate::model::{Config, Weights};

use crate::ops::stepcontrol::{self, Report};
use crate::run::contents;
use crate::run::home::Home;

use crate::train::schedule::Schedule;
use crate::train::settings::Interval;
use crate::train::snapshot::Snapshot;
use crate::train::trainer::{DeviceSlot, Trainer};

/// The layout of [`WEIGHTS`] with `m.` and `v.` before the names: AdamW's moments, never sharded.
const MOMENTS: &str = "optimizer.safetensors";
/// A [`StateFile`].
const STATE: &str = "state.json";

/// What is neither weight nor moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StateFile {
    /// Steps done.
    pub step: usize,
    /// [`crate::ops::stepcontrol::State`] as 32-bit words: bits, since decimal numbers may round.
    pub control: Vec<u32>,
    /// Two [`crate::ops::stepcontrol::OutlierWindow`]s, likewise.
    pub windows: Vec<u32>,
    /// For readers: updates applied, updates skipped, what gradients are multiplied by.
    pub updates: u32,
    /// See above.
    pub skipped: u32,
    /// See above.
    pub loss_scale: f32,
    /// Where the next batch stands, in each rank's stream.
    pub batches: BatchesState,
    /// [`crate::data::Batches::fingerprint`].
    pub data: String,
    /// Bytes of each growing record that belong to these steps.
    pub records: BTreeMap<String, u64>,
    /// Lines of `metrics.jsonl` that do.
    pub metric_lines: usize,
    /// Peak learning rate, warm-up, final fraction, steps.
    pub schedule: Schedule,
    /// Seed of the run.
    pub seed: u32,
    /// The run's random id; none in a checkpoint of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Every other setting that moved a loss of these steps, by key; none in a checkpoint of an earlier version.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// What the bits of the steps depend on beside all this.
    pub made_by: MadeBy,
    /// What a tuning record said of this adapter's kernels: used again, whatever it says now.
    pub tuned: BTreeMap<String, String>,
    /// True if the end of a run came after these steps: its last validation, its model, its last sample.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// What a signal has left undone after the last of these steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
}

/// What is left to do after a step: its line of the records with what is measured for it, or what comes after that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// [`crate::ops::stepcontrol::Report`] as 32-bit words; none for what comes before the first step.
    report: Vec<u32>,
    /// Milliseconds of the step.
    pub ms: f64,
    /// True if the line is written.
    pub written: bool,
}

impl Pending {
    /// What comes before the first step.
    pub const BEFORE_TRAINING: Self = Self { report: Vec::new(), ms: 0.0, written: false };

    /// The rest of the work after a step whose line is written.
    pub const WRITTEN: Self = Self { report: Vec::new(), ms: 0.0, written: true };

    /// All that comes after a step with this report, which took so many milliseconds.
    #[must_use]
    pub fn new(report: Option<Report>, ms: f64) -> Self {
        let words = report.map_or_else(Vec::new, |r| bytemuck::cast_slice(std::slice::from_ref(&r)).to_vec());
        Self { report: words, ms, written: false }
    }

    /// The step's report.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        let bytes: &[u8] = bytemuck::cast_slice(&self.report);
        bytemuck::try_pod_read_unaligned(bytes).ok()
    }
}

/// Program, adapter and kernels: with others, steps may round differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeBy {
    /// This program's version.
    pub version: String,
    /// Name, backend and driver of the adapter.
    pub adapter: String,
    /// Invocations that a software adapter computes at once.
    pub lanes: u32,
    /// `f32` or `f16`.
    pub precision: String,
    /// Matrix and attention kernels of a step.
    pub kernels: Vec<String>,
    /// How kernels are built, where it is not as usual.
    #[serde(default)]
    pub built: String,
    /// The 16-bit format in which devices send gradients and the number of devices, as `bf16 on 2 devices`; empty for f32.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rounded: String,
}

impl MadeBy {
    /// Of this program and an open device.
    #[must_use]
    pub fn new(gpu: &Gpu, trainer: &Trainer, precision: &str) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            adapter: gpu.caps.summary(),
            lanes: gpu.caps.lanes,
            precision: precision.into(),
            kernels: trainer.kernel_summary(),
            built: gpu.codegen_mode().into(),
            rounded: match (trainer.wire(), trainer.part()) {
                (Some(format), DeviceSlot { devices: devices @ 2.., machines, .. }) => {
                    let on = if machines > 1 { format!(" of {machines} machines") } else { String::new() };
                    format!("{} on {devices} devices{on}", format.name())
                }
                _ => String::new(),
            },
        }
    }

    /// What differs, as `adapter: A there, B here`; empty if a resumed run has the bits of an undisturbed one.
    #[must_use]
    pub fn differences(&self, there: &Self) -> Vec<String> {
        let words = |m: &Self| {
            let kernels = m.kernels.join(", ");
            let rounded = if m.rounded.is_empty() { "not rounded" } else { &m.rounded };
            [&m.version, &m.adapter, &m.lanes.to_string(), &m.precision, &kernels, &m.built, rounded].map(str::to_owned)
        };
        let names = ["version", "adapter", "lanes", "precision", "kernels", "built", "gradients between devices"];
        let pairs = names.into_iter().zip(words(there).into_iter().zip(words(self)));
        pairs.filter(|(_, (a, b))| a != b).map(|(name, (a, b))| format!("{name}: {a} there, {b} here")).collect()
    }
}

/// A checkpoint in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// Weights, moments, step control.
    pub snapshot: Snapshot,
    /// The rest.
    pub state: StateFile,
}

/// Finds the newest checkpoint of a run that verifies, and reads it. Damaged ones that are newer come as sentences, and
/// get other names, since the run will save those steps again. `None` if there is no sound one; `id` is the run's, where it
/// has one.
///
/// # Errors
/// [`Error::Output`] if the folder cannot be read or changed; [`Error::Data`] if checkpoints were saved and are gone or
/// damaged, or a sound one is of another model; [`Error::Usage`] if it is of another run.
pub fn load_newest(run: &Path, id: Option<&str>, config: Config) -> Result<(Option<Saved>, Vec<String>)> {
    let checkpoints = Checkpoints::new(&System, run);
    let (newest, damaged) = checkpoints.newest()?;
    if let (None, [first, ..]) = (newest, damaged.as_slice()) {
        return Err(Error::data(format!(
            "{}: none of its {} checkpoints is sound, expected one ({}); bring one back, or --restart to begin anew",
            run.display(),
            damaged.len(),
            first.error
        )));
    }
    if newest.is_none()
        && let Some(saved) = checkpoints.saved()?
    {
        let place = run.join(CHECKPOINTS);
        let fault = Fault::at(place.display(), "holds no checkpoint");
        return Err(Error::data(
            fault
                .expected(format!("those that the run saved from step {} on", saved.first))
                .advice("bring them back, or --restart to begin anew"),
        ));
    }
    let mut passed = Vec::new();
    for Damaged { step, error } in damaged {
        let to = checkpoints.put_aside(step)?;
        passed
            .push(format!("checkpoint of step {step} is damaged and passed over: {error}; it is now {}", to.display()));
    }
    let Some(step) = newest else { return Ok((None, passed)) };
    let place = checkpoints.path(step);
    let state: StateFile = serde_json::from_slice(&checkpoints.read(step, STATE)?).map_err(|e| {
        Error::data(format!("{}: {STATE} is not a run's state ({e}); try another wgpt", place.display()))
    })?;
    let wrong = |what: String| Err(Error::data(format!("{}: {STATE}: {what}", place.display())));
    if let (Some(id), Some(other)) = (id, &state.run)
        && id != other
    {
        let fault = Fault::at(place.display(), "is a checkpoint of another run").expected(format!("run {id}"));
        return Err(Error::usage(
            fault.found(format!("run {other}")).advice("move it away and bring this run's checkpoints back"),
        ));
    }
    if state.step != step {
        return wrong(format!("is of step {}, expected {step}", state.step));
    }
    if let Some(pending) = &state.pending
        && !(pending.report.is_empty() || pending.report().is_some_and(|report| report.step as usize == step))
    {
        return wrong(format!("what is left to do is not of step {step}"));
    }
    let control = from_words(&place, &state.control, "step control")?;
    let windows = from_words(&place, &state.windows, "windows")?;
    let windows: [stepcontrol::OutlierWindow; 2] = windows;
    if let Some(window) =
        windows.iter().find(|w| w.count as usize > w.values.len() || w.next as usize >= w.values.len())
    {
        return wrong(format!("a window of {} values goes on at {}", window.count, window.next));
    }
    let weights = checkpoints.read(step, WEIGHTS)?;
    let weights = checkpoint_weights::read(&place.join(WEIGHTS), &weights, config, "")?;
    let bytes = checkpoints.read(step, MOMENTS)?;
    let moment = |prefix| checkpoint_weights::read(&place.join(MOMENTS), &bytes, config, prefix);
    let snapshot = Snapshot { weights, moments: [moment("m.")?, moment("v.")?], control, windows };
    Ok((Some(Saved { snapshot, state }), passed))
}

/// What was written as 32-bit words.
fn from_words<T: bytemuck::AnyBitPattern>(place: &Path, words: &[u32], what: &str) -> Result<T> {
    let (found, expected) = (words.len(), size_of::<T>() / 4);
    if found == expected {
        return Ok(bytemuck::pod_read_unaligned(bytemuck::cast_slice(words)));
    }
    Err(Error::data(format!("{}: {STATE}: {found} words of {what}, expected {expected}", place.display())))
}

/// Puts out sets of values, each under its prefix.
fn put(path: &Path, sets: &[(&str, &Weights)], out: &mut dyn Write) -> Result<()> {
    let (mut entries, mut values): (Vec<Entry>, Vec<&[f32]>) = (Vec::new(), Vec::new());
    for (prefix, set) in sets {
        for (param, tensor) in PARAMS.iter().zip(&set.tensors) {
            let [rows, columns] = (param.shape)(&set.config);
            let shape = vec![param.copies(&set.config), rows, columns];
            entries.push(Entry { name: format!("{prefix}{}", param.name), dtype: Dtype::F32, shape });
            values.push(tensor);
        }
    }
    let metadata = BTreeMap::from([("format", "wgpt")]);
    Layout::new(&metadata, &entries)?
        .put(out, &entries, |i, out| out.write_all(bytemuck::cast_slice(values[i])))
        .map_err(|e| output_error(path, &e))
}

/// Writes checkpoints of one run, one at a time, on a thread of its own.
pub struct Saver {
    home: Arc<Home>,
    keep: Keep,
    interval: Interval,
    at_work: Option<(Arc<Saved>, JoinHandle<Result<()>>)>,
    /// Taken from the GPU and not yet on disk, though it was tried.
    failed: Option<Arc<Saved>>,
    last: Option<usize>,
    since: Instant,
}

impl Saver {
    /// For a run's folder; `last` is the step that has a checkpoint already.
    #[must_use]
    pub fn new(home: Arc<Home>, interval: Interval, keep: Keep, last: Option<usize>) -> Self {
        Self { home, keep, interval, at_work: None, failed: None, last, since: Instant::now() }
    }

    /// True if a checkpoint is to be made after `step`.
    #[must_use]
    pub fn is_due(&self, step: usize) -> bool {
        match self.interval {
            Interval::Steps(steps) => steps > 0 && step.is_multiple_of(steps),
            Interval::Minutes(minutes) => self.since.elapsed().as_secs_f64() >= 60.0 * minutes,
        }
    }

    /// The step saved last.
    #[must_use]
    pub fn last(&self) -> Option<usize> {
        self.last
    }

    /// Starts to write; waits for the checkpoint before it first.
    ///
    /// # Errors
    /// [`Error::Output`] of the checkpoint before it.
    pub fn save(&mut self, saved: Saved) -> Result<()> {
        self.wait()?;
        (self.last, self.since) = (Some(saved.state.step), Instant::now());
        self.start(Arc::new(saved))
    }

    fn start(&mut self, saved: Arc<Saved>) -> Result<()> {
        let (home, keep, own) = (Arc::clone(&self.home), self.keep, Arc::clone(&saved));
        let thread = std::thread::Builder::new().name("checkpoint".into());
        match thread.spawn(move || write(&System, &home, keep, &own)) {
            Ok(thread) => {
                self.at_work = Some((saved, thread));
                Ok(())
            }
            Err(e) => {
                self.failed = Some(saved);
                Err(Error::output(format!("checkpoint: no thread can be started ({e})")))
            }
        }
    }

    /// Tells of a checkpoint that has failed meanwhile; if it is called again, tries it again.
    ///
    /// # Errors
    /// As [`Saver::wait`].
    pub fn check(&mut self) -> Result<()> {
        let ended = self.at_work.as_ref().is_some_and(|(_, thread)| thread.is_finished());
        if ended || self.failed.is_some() { self.wait() } else { Ok(()) }
    }

    /// Waits until the checkpoint at hand is on disk and verified; one that failed is tried again.
    ///
    /// # Errors
    /// [`Error::Output`] if it could not be written; older ones are then as they were.
    pub fn wait(&mut self) -> Result<()> {
        if let Some(saved) = self.failed.take() {
            self.start(saved)?;
        }
        let Some((saved, thread)) = self.at_work.take() else { return Ok(()) };
        let panicked = |_| Err(Error::output("checkpoint: the thread that writes it panicked"));
        let result = thread.join().unwrap_or_else(panicked);
        if result.is_err() {
            self.failed = Some(saved);
        }
        result
    }

    /// Waits for the checkpoint at hand and forgets one that failed: the run goes back to what is on disk.
    pub fn settle(&mut self) {
        let _ = self.wait();
        self.failed = None;
    }

    /// Goes on from the checkpoint of a step.
    pub fn rewind(&mut self, last: Option<usize>) {
        (self.last, self.since) = (last, Instant::now());
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        // an error of the run is told first, and a checkpoint that failed is not tried again
        if let Some((_, thread)) = self.at_work.take() {
            let _ = thread.join();
        }
    }
}

/// Writes one checkpoint.
fn write(disk: &dyn Disk, home: &Home, keep: Keep, saved: &Saved) -> Result<()> {
    let run = home.dir();
    let checkpoints = Checkpoints::new(disk, run);
    let step = saved.state.step;
    let place = checkpoints.path(step);
    let records: Vec<PathBuf> = saved.state.records.keys().map(|name| run.join(name)).collect();
    let Snapshot { weights, moments: [m, v], .. } = &saved.snapshot;
    let state =
        serde_json::to_vec(&saved.state).map_err(|e| Error::output(format!("{STATE}: cannot be made ({e})")))?;
    checkpoints.save(
        step,
        &[
            (WEIGHTS, &|out| put(&place.join(WEIGHTS), &[("", weights)], out)),
            (MOMENTS, &|out| put(&place.join(MOMENTS), &[("m.", m), ("v.", v)], out)),
            (STATE, &|out| out.write_all(&state).map_err(|e| output_error(&place.join(STATE), &e))),
        ],
        &SaveContext {
            records: &records,
            run: home.run(),
            check: &|| home.check().and_then(|()| contents::still_own_checkpoints(run, home.run())),
        },
        keep,
    )
}
