//! The contents of a run's checkpoint, and the thread that writes it while training continues.

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
use crate::train::trainer::{Part, Trainer};

/// The layout of [`WEIGHTS`] with `m.` and `v.` before the names: AdamW's moments, never sharded.
const MOMENTS: &str = "optimizer.safetensors";
/// A [`StateFile`].
const STATE: &str = "state.json";

/// Contents of [`STATE`]: everything in a checkpoint but weights and moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StateFile {
    /// Steps done.
    pub step: usize,
    /// [`crate::ops::stepcontrol::State`] as 32-bit words. Words keep the bits; decimal numbers may round.
    pub control: Vec<u32>,
    /// Two [`crate::ops::stepcontrol::Window`]s, also as 32-bit words.
    pub windows: Vec<u32>,
    /// Updates applied. This field and the next two repeat `control`, for people who read the file.
    pub updates: u32,
    /// Updates skipped.
    pub skipped: u32,
    /// Factor by which gradients are multiplied.
    pub loss_scale: f32,
    /// Position of the next batch in each rank's stream.
    pub batches: BatchesState,
    /// [`crate::data::Batches::fingerprint`].
    pub data: String,
    /// Bytes of each growing record that belong to these steps.
    pub records: BTreeMap<String, u64>,
    /// Lines of `metrics.jsonl` that belong to these steps.
    pub metric_lines: usize,
    /// Peak learning rate, warm-up, final fraction, steps.
    pub schedule: Schedule,
    /// Seed of the run.
    pub seed: u32,
    /// The run's random id. Checkpoints of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Every other setting that changed a loss of these steps, by key. Checkpoints of earlier versions have none.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Program, adapter and kernels, on which the bits of the steps also depend.
    pub made_by: MadeBy,
    /// Choices of the tuning record for this adapter's kernels. A resume uses them again, even if the record has changed.
    pub tuned: BTreeMap<String, String>,
    /// Whether the run's end followed these steps: its last validation, its model and its last sample.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// Work after the last of these steps that a signal prevented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
}

/// Work that remains after a step: measuring for and writing its line of the records, or only what follows that line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// [`crate::ops::stepcontrol::Report`] as 32-bit words; empty for the work before the first step.
    report: Vec<u32>,
    /// Milliseconds of the step.
    pub ms: f64,
    /// Whether the line is written.
    pub written: bool,
}

impl Pending {
    /// The work before the first step.
    pub const BEFORE_TRAINING: Self = Self { report: Vec::new(), ms: 0.0, written: false };

    /// The work that remains after a step whose line is written.
    pub const WRITTEN: Self = Self { report: Vec::new(), ms: 0.0, written: true };

    /// All work after a step that has this report and took `ms` milliseconds.
    #[must_use]
    pub fn new(report: Option<Report>, ms: f64) -> Self {
        let words = report.map_or_else(Vec::new, |r| bytemuck::cast_slice(std::slice::from_ref(&r)).to_vec());
        Self { report: words, ms, written: false }
    }

    /// Returns the step's report.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        let bytes: &[u8] = bytemuck::cast_slice(&self.report);
        bytemuck::try_pod_read_unaligned(bytes).ok()
    }
}

/// Program, adapter and kernels. If one of them changes, steps may round differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeBy {
    /// This program's version.
    pub version: String,
    /// Name, backend and driver of the adapter.
    pub adapter: String,
    /// Invocations that a software adapter computes together.
    pub lanes: u32,
    /// `f32` or `f16`.
    pub precision: String,
    /// Matrix and attention kernels of a step.
    pub kernels: Vec<String>,
    /// The way in which kernels are built, if it is not the default.
    #[serde(default)]
    pub built: String,
    /// The 16-bit format in which devices send gradients and the number of devices, as in `bf16 on 2 devices`; empty for f32.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rounded: String,
}

impl MadeBy {
    /// Describes this program on an open device.
    #[must_use]
    pub fn new(gpu: &Gpu, trainer: &Trainer, precision: &str) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            adapter: gpu.caps.summary(),
            lanes: gpu.caps.lanes,
            precision: precision.into(),
            kernels: trainer.kernel_summary(),
            built: gpu.built().into(),
            rounded: match (trainer.wire(), trainer.part()) {
                (Some(format), Part { devices: devices @ 2.., machines, .. }) => {
                    let on = if machines > 1 { format!(" of {machines} machines") } else { String::new() };
                    format!("{} on {devices} devices{on}", format.name())
                }
                _ => String::new(),
            },
        }
    }

    /// Returns the differences, each as `adapter: A there, B here`. If there are none, a resumed run has the bits of an
    /// undisturbed one.
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

/// Reads the newest checkpoint of a run that verifies. Returns `None` if there is none. `id` is the run's id, if it has one.
///
/// Newer checkpoints that are damaged are renamed, because the run will save those steps again. Each of them is described by
/// a sentence in the second value.
///
/// # Errors
/// [`Error::Output`] if the folder cannot be read or changed; [`Error::Data`] if all saved checkpoints are missing or
/// damaged, or a sound one belongs to another model; [`Error::Usage`] if it belongs to another run.
pub fn load_newest(run: &Path, id: Option<&str>, config: Config) -> Result<(Option<Saved>, Vec<String>)> {
    let checkpoints = Checkpoints::new(&System, run);
    let (newest, damaged) = checkpoints.newest()?;
    if let (None, [first, ..]) = (newest, damaged.as_slice()) {
        return Err(Error::data(format!(
            "{}: none of its {} checkpoints is sound, expected one ({}); restore one, or use --restart to start over",
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
                .expected(format!("those that the run saved, the first after step {}", saved.first))
                .advice("restore them, or use --restart to start over"),
        ));
    }
    let mut passed = Vec::new();
    for Damaged { step, error } in damaged {
        let to = checkpoints.put_aside(step)?;
        passed.push(format!(
            "the checkpoint of step {step} is damaged and is skipped: {error}; it is now {}",
            to.display()
        ));
    }
    let Some(step) = newest else { return Ok((None, passed)) };
    let place = checkpoints.path(step);
    let state: StateFile = serde_json::from_slice(&checkpoints.read(step, STATE)?).map_err(|e| {
        Error::data(format!(
            "{}: {STATE} is not the state of a run ({e}); try the version of wgpt that wrote it",
            place.display()
        ))
    })?;
    let wrong = |what: String| Err(Error::data(format!("{}: {STATE}: {what}", place.display())));
    if let (Some(id), Some(other)) = (id, &state.run)
        && id != other
    {
        let fault = Fault::at(place.display(), "belongs to another run").expected(format!("run {id}"));
        return Err(Error::usage(
            fault.found(format!("run {other}")).advice("move it away and restore this run's checkpoints"),
        ));
    }
    if state.step != step {
        return wrong(format!("step {}, expected {step}", state.step));
    }
    if let Some(pending) = &state.pending
        && !(pending.report.is_empty() || pending.report().is_some_and(|report| report.step as usize == step))
    {
        return wrong(format!("its pending work belongs to another step than {step}"));
    }
    let control = from_words(&place, &state.control, "step control")?;
    let windows = from_words(&place, &state.windows, "windows")?;
    let windows: [stepcontrol::Window; 2] = windows;
    if let Some(window) =
        windows.iter().find(|w| w.count as usize > w.values.len() || w.next as usize >= w.values.len())
    {
        return wrong(format!("a window of {} values has its next value at {}", window.count, window.next));
    }
    let weights = checkpoints.read(step, WEIGHTS)?;
    let weights = checkpoint_weights::read(&place.join(WEIGHTS), &weights, config, "")?;
    let bytes = checkpoints.read(step, MOMENTS)?;
    let moment = |prefix| checkpoint_weights::read(&place.join(MOMENTS), &bytes, config, prefix);
    let snapshot = Snapshot { weights, moments: [moment("m.")?, moment("v.")?], control, windows };
    Ok((Some(Saved { snapshot, state }), passed))
}

/// Returns the value that `words` hold.
fn from_words<T: bytemuck::AnyBitPattern>(place: &Path, words: &[u32], what: &str) -> Result<T> {
    let (found, expected) = (words.len(), size_of::<T>() / 4);
    if found == expected {
        return Ok(bytemuck::pod_read_unaligned(bytemuck::cast_slice(words)));
    }
    Err(Error::data(format!("{}: {STATE}: {what} has {found} words, expected {expected}", place.display())))
}

/// Writes sets of tensors to `out`, with the names of each set behind its prefix.
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

/// Writes the checkpoints of one run, one at a time, on its own thread.
pub struct Saver {
    home: Arc<Home>,
    keep: Keep,
    interval: Interval,
    running: Option<(Arc<Saved>, JoinHandle<Result<()>>)>,
    /// A checkpoint that was copied from the GPU and that could not be written yet.
    failed: Option<Arc<Saved>>,
    last: Option<usize>,
    since: Instant,
}

impl Saver {
    /// Makes a saver for a run's folder. `last` is the step that already has a checkpoint.
    #[must_use]
    pub fn new(home: Arc<Home>, interval: Interval, keep: Keep, last: Option<usize>) -> Self {
        Self { home, keep, interval, running: None, failed: None, last, since: Instant::now() }
    }

    /// Returns whether a checkpoint is due after `step`.
    #[must_use]
    pub fn is_due(&self, step: usize) -> bool {
        match self.interval {
            Interval::Steps(steps) => steps > 0 && step.is_multiple_of(steps),
            Interval::Minutes(minutes) => self.since.elapsed().as_secs_f64() >= 60.0 * minutes,
        }
    }

    /// Returns the step of the last checkpoint.
    #[must_use]
    pub fn last(&self) -> Option<usize> {
        self.last
    }

    /// Starts to write a checkpoint, after the one before it is on disk.
    ///
    /// # Errors
    /// [`Error::Output`] if the checkpoint before it could not be written.
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
                self.running = Some((saved, thread));
                Ok(())
            }
            Err(e) => {
                self.failed = Some(saved);
                Err(Error::output(format!("checkpoint: cannot start a thread ({e})")))
            }
        }
    }

    /// Reports a checkpoint that has failed in the meantime. The next call retries it.
    ///
    /// # Errors
    /// Those of [`Saver::wait`].
    pub fn check(&mut self) -> Result<()> {
        let ended = self.running.as_ref().is_some_and(|(_, thread)| thread.is_finished());
        if ended || self.failed.is_some() { self.wait() } else { Ok(()) }
    }

    /// Waits until the current checkpoint is on disk and verified. Retries one that failed.
    ///
    /// # Errors
    /// [`Error::Output`] if it could not be written; older checkpoints are unchanged.
    pub fn wait(&mut self) -> Result<()> {
        if let Some(saved) = self.failed.take() {
            self.start(saved)?;
        }
        let Some((saved, thread)) = self.running.take() else { return Ok(()) };
        let panicked = |_| Err(Error::output("checkpoint: the thread that writes it panicked"));
        let result = thread.join().unwrap_or_else(panicked);
        if result.is_err() {
            self.failed = Some(saved);
        }
        result
    }

    /// Waits for the current checkpoint and drops one that failed, because the run returns to what is on disk.
    pub fn settle(&mut self) {
        let _ = self.wait();
        self.failed = None;
    }

    /// Sets the step of the last checkpoint, after the run has returned to it.
    pub fn rewind(&mut self, last: Option<usize>) {
        (self.last, self.since) = (last, Instant::now());
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        // an error of the run is reported first, and a checkpoint that failed is not retried
        if let Some((_, thread)) = self.running.take() {
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
