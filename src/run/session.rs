//! A run from start to end: inspects its folder, opens its devices, begins or resumes training, and starts again from the last
//! checkpoint if a device is lost.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::data::hellaswag::Example;
use crate::data::{Batches, BatchesState, Repeat, Rows, Tokenizer};
use crate::error::{Error, Fault, Result};
use crate::files::disk::free_bytes;
use crate::gpu::{Elem, Gpu};
use crate::model::{Config, Weights};

use crate::measure::Roofs;
use crate::measure::plan::{SMALLER, plan};
use crate::run::checkpoint::{MadeBy, Pending, Saved, Saver, StateFile, load_newest};
use crate::run::contents;
use crate::run::data_files::{self, DataFiles, FileHasher};
use crate::run::folder::{self, Folder, RecordExtents};
use crate::run::inspect::{self, State, inspect, other_data_than};
use crate::run::lock::FolderLock;
use crate::run::orders::{Crew, Message};
use crate::run::phase::{CurrentPhase, Phase};
use crate::run::report::{History, Reporter};
use crate::run::steps::{Done, Outcome, Run, Screen};
use crate::run::team::Team;
use crate::run::watchdog::{self, HangTimeout};
use crate::train::TrainerOptions;
use crate::train::dataset::Baseline;
use crate::train::settings::{Interval, RunFile, Settings, compare};
use crate::units;

/// Optional extras of a run; none by default.
#[derive(Debug, Default)]
pub struct Extras {
    /// HellaSwag's questions, already checked.
    pub questions: Vec<Example>,
    /// Curves with which the report compares the run.
    pub reference: Option<History>,
    /// Whether to measure the adapter's peak, for MFU.
    pub measures_peak: bool,
}

/// Everything that a run needs before it begins or resumes.
pub struct Session<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// Batches, at the start of the first epoch.
    pub loader: Option<Batches>,
    /// Validation, if there is any.
    pub rows: Option<Rows>,
    /// Tokenizer for samples and the saved model.
    pub tokenizer: Option<Tokenizer>,
    /// Reference losses of generated stories.
    pub baseline: Option<Baseline>,
    /// Optional extras.
    pub extras: Extras,
    /// The run's folder; by default the next free `runs/N`.
    pub out: Option<PathBuf>,
    /// Whether to move aside a run that is in the folder.
    pub restart: bool,
    /// Opens the devices. Called once, and once more after a loss.
    pub open: &'a dyn Fn() -> Result<Vec<Gpu>>,
    /// Makes or reads the weights with which the run begins.
    pub weights: &'a dyn Fn() -> Result<Weights>,
    /// Returns the name of a signal that asks the run to end, once one has arrived.
    pub stop: &'a dyn Fn() -> Option<&'static str>,
    /// The current phase of the run, for the answer to a signal.
    pub phase: CurrentPhase,
    /// Called with the run's folder and a description when a device hangs. It should end the process, because the waiting thread
    /// may never return.
    pub hang: Option<fn(&Path, &str)>,
    /// Returns the command that continues the run in a folder, for the user to copy.
    pub continues: &'a dyn Fn(&Path) -> String,
    /// The processes of the run, if there are several. This is the first of them.
    pub crew: Option<&'a Crew<'a>>,
}

/// The way in which a run begins in a folder.
enum Begin {
    /// Not at all, because it is already finished there.
    Finished,
    /// From the start. The lock is on an older run there that is moved aside.
    FromStart(Option<FolderLock>),
    /// From its checkpoint, or from the start if it saved none; with the settings that it had.
    Resume(FolderLock, Option<Box<Saved>>, Box<RunFile>),
}

/// Locks and inspects a folder, and returns how the run begins in it.
fn begin(out: &Path, settings: &Settings, data: Option<&str>, restart: bool, screen: &mut dyn Screen) -> Result<Begin> {
    // a file, or a dangling link, is refused before anything is locked
    if out.symlink_metadata().is_ok() && !out.is_dir() {
        return inspect(out, settings, data).map(|_| Begin::FromStart(None));
    }
    if !out.exists() {
        return Ok(Begin::FromStart(None));
    }
    if restart && folder::is_run(out) {
        // the lock keeps a running run from being moved aside
        return Ok(Begin::FromStart(Some(FolderLock::take(out)?)));
    }
    contents::check(out)?;
    let lock = FolderLock::take_as_it_is(out)?;
    match inspect(out, settings, data)? {
        State::Free => Ok(Begin::FromStart(None)),
        State::Finished => {
            screen.line(&format!(
                "{} holds this run, finished after {} steps; a larger --steps resumes it, --restart starts over",
                out.display(),
                settings.train.steps
            ));
            Ok(Begin::Finished)
        }
        State::Unfinished(there) => {
            let id = there.record.run.as_deref();
            let lock = lock.with_file(out)?;
            crate::kill_point!("resume: locked");
            let (saved, passed) = load_newest(out, id, settings.config())?;
            passed.iter().for_each(|text| screen.line(text));
            Ok(Begin::Resume(lock, saved.map(Box::new), there))
        }
    }
}

/// Checks that a checkpoint belongs to this run and its data.
fn check_saved(out: &Path, state: &StateFile, loader: &Batches, settings: &Settings) -> Result<()> {
    if state.data != loader.fingerprint() {
        return Err(other_data_than(out));
    }
    let differences = compare::saved_differences(&state.schedule, state.seed, &state.settings, settings, state.step);
    if !differences.is_empty() {
        let list: Vec<String> = differences.iter().map(ToString::to_string).collect();
        let what = format!("its checkpoint of step {} was made with other settings ({})", state.step, list.join("; "));
        return Err(Error::usage(
            Fault::at(out.display(), what).advice("try those settings, or --restart to start over"),
        ));
    }
    if state.step > settings.train.steps {
        let fault = Fault::at("checkpoint", format!("is of step {}", state.step));
        return Err(Error::data(fault.expected(format!("at most {}", settings.train.steps)).advice("try --restart")));
    }
    Ok(())
}

/// Checks that the disk has room for a run's checkpoints. `there` of them exist already.
fn check_free(out: &Path, settings: &Settings, there: usize) -> Result<()> {
    let tensor_bytes = 4 * settings.config().parameters() as u64;
    let (steps, keep) = (settings.train.steps as u64, settings.run.keep);
    let checkpoints = match settings.run.checkpoint_every {
        Interval::Steps(0) => 1,
        interval => {
            let most = match interval {
                Interval::Steps(every) => steps / every as u64 + 1,
                Interval::Minutes(_) => u64::MAX,
            };
            let kept = match keep.every as u64 {
                0 => 0,
                every => (steps / every).min(most),
            };
            // one more exists while the newest is written
            (keep.newest as u64).saturating_add(1).min(most).saturating_add(kept).saturating_sub(there as u64)
        }
    };
    // weights and two moments each; the model; records
    let needed = (checkpoints.saturating_mul(3).saturating_add(1)).saturating_mul(tensor_bytes).saturating_add(1 << 20);
    let Some(free) = free_bytes(out) else { return Ok(()) };
    if free >= needed {
        return Ok(());
    }
    let [free, needed] = units::sizes([free, needed]);
    let checkpoints = units::counted(checkpoints, "checkpoint");
    Err(Error::output(format!(
        "--out: {}: {free} are free, expected {needed} for {checkpoints} and the model; try another disk or a smaller \
         --keep or larger --keep-every",
        out.display()
    )))
}

impl<'a> Session<'a> {
    /// Trains to the end. Returns `None` if the folder holds this run and it is finished.
    ///
    /// # Errors
    /// [`Error::Usage`], [`Error::Locked`] or [`Error::Output`] if the folder cannot be used, before the device is opened;
    /// [`Error::Lost`] if a device is lost twice; [`Error::Memory`] with the memory plan; otherwise those of [`Run::train`].
    pub fn train(mut self, screen: &mut dyn Screen) -> Result<Option<Outcome>> {
        let data = self.loader.as_ref().map(Batches::fingerprint);
        let files = DataFiles::of(self.loader.as_ref(), self.rows.as_ref());
        let begun = match &self.out {
            Some(out) => begin(out, self.settings, data, self.restart, screen)
                .map_err(|error| data_files::name_changed_file(out, &files, error, screen))?,
            None => Begin::FromStart(None),
        };
        let parent = self.out.clone().unwrap_or_else(|| "runs".into());
        folder::check_writable(&parent)?;
        let (mut lock, mut saved, there) = match begun {
            Begin::Finished => return Ok(None),
            Begin::FromStart(lock) => (lock, None, None),
            Begin::Resume(lock, saved, there) => (Some(lock), saved, Some(*there)),
        };
        let start = self.loader.as_ref().map(Batches::state);
        if let (Some(saved), Some(loader)) = (&saved, &self.loader) {
            check_saved(&parent, &saved.state, loader, self.settings)?;
        }
        if let (Some(_), Some(there)) = (&saved, &there) {
            data_files::check(&parent, &files, &there.settings, self.settings, screen)?;
        }
        let mut run: Option<Run<'a>> = None;
        loop {
            let rebuilt = run.as_ref().is_some_and(|run| run.rebuilt);
            self.phase.set(Phase::Opening);
            let mut gpus = (self.open)()?;
            if run.is_none() {
                // after opening, so that a model that does not fit in memory is reported as that
                let kept = if there.is_some() { folder::checkpoints(&parent) } else { 0 };
                check_free(&parent, self.settings, kept)?;
            }
            if let Some(saved) = &saved {
                let tuned = Arc::new(saved.state.tuned.clone());
                gpus.iter_mut().for_each(|gpu| gpu.caps.tuned = Arc::clone(&tuned));
            }
            if let (Some(crew), [gpu, ..]) = (self.crew, &gpus[..]) {
                crew.send(&Message::Begin(gpu.caps.tuned.as_ref().clone()))?;
            }
            let result = self.attempt(&gpus, &mut run, &mut saved, &mut lock, there.as_ref(), screen);
            let is_lost = gpus.iter().any(Gpu::is_lost);
            match result {
                // other processes cannot return to a checkpoint while they wait, so a run of several ends here
                Err(error) if is_lost && !rebuilt && self.crew.is_none() => {
                    screen.line(&format!("{error}; it is reopened once, and the run resumes from its last checkpoint"));
                    let (Some(run), Some(start)) = (&mut run, &start) else { return Err(error) };
                    run.rebuilt = true;
                    saved = rewind(run, self.settings.config(), start, screen)?;
                }
                Err(error) if is_lost => {
                    let advice = (self.continues)(run.as_ref().map_or(&parent, |run| run.folder.dir()));
                    let again = if rebuilt { ", the second time" } else { "" };
                    return Err(Error::lost(format!("{error}{again}; to continue: {advice}")));
                }
                done => return done.map(Some),
            }
        }
    }

    /// Does everything that needs a device, until the run ends or a device is lost.
    fn attempt(
        &mut self,
        gpus: &[Gpu],
        run: &mut Option<Run<'a>>,
        saved: &mut Option<Box<Saved>>,
        lock: &mut Option<FolderLock>,
        there: Option<&RunFile>,
        screen: &mut dyn Screen,
    ) -> Result<Outcome> {
        let settings = self.settings;
        let [gpu, ..] = gpus else { return Err(Error::device("devices: none was opened")) };
        // measured while the device's memory is free
        let peak = if run.is_none() && self.extras.measures_peak { Some(peak_tflops(gpu, settings)?) } else { None };
        self.phase.set(Phase::Compiling);
        // these outlive the work of all devices
        let mut watchdogs = Vec::new();
        Team::with(gpus, trainer_options(settings), self.crew, |team| {
            self.crew.map_or(Ok(()), |crew| crew.compare_kernels(team.lead()))?;
            crate::kill_point!("resume: before the first weights");
            self.phase.set(Phase::Uploading);
            let state = match saved.take() {
                Some(saved) => {
                    let Saved { snapshot, state } = *saved;
                    team.restore(snapshot)?;
                    Some(state)
                }
                None => {
                    team.load((self.weights)()?)?;
                    None
                }
            };
            let made_by = MadeBy::new(gpu, team.lead(), settings.train.precision.name());
            let run = match run {
                Some(run) => run,
                None => run.insert(self.run(
                    lock,
                    state.as_ref(),
                    there,
                    (&made_by, peak, team.lead().part().devices),
                    screen,
                )?),
            };
            if let Some(crew) = self.crew {
                crew.send(&Message::Folder(
                    std::path::absolute(run.folder.dir()).unwrap_or_else(|_| run.folder.dir().into()),
                ))?;
                state.as_ref().map_or(Ok(()), |state| crew.send(&Message::Batches(state.batches.clone())))?;
            }
            run.done = state.as_ref().map(|state| done(state, there, settings));
            screen.begins(team.lead(), run.folder.dir());
            if there.is_some() || run.rebuilt {
                announce(state.as_ref(), &made_by, screen);
                let reached = state.as_ref().map_or(0, |state| state.step);
                announce_changes(reached, there.map(|there| &there.settings), settings, screen);
            }
            run.made_by = made_by;
            let dir = run.folder.dir().to_owned();
            if let Some(hang) = self.hang {
                watchdogs = watchdog::watch(gpus, HangTimeout::of, move |what| hang(&dir, what));
            }
            run.train(team, screen)
        })
        .map_err(|error| with_plan(error, gpu, settings))
    }

    /// Takes the folder and makes the run.
    fn run(
        &mut self,
        lock: &mut Option<FolderLock>,
        state: Option<&StateFile>,
        there: Option<&RunFile>,
        (made_by, peak, devices): (&MadeBy, Option<f64>, usize),
        screen: &mut dyn Screen,
    ) -> Result<Run<'a>> {
        let settings = self.settings;
        let gone = || Error::data("session: its batches are already in use by another run");
        let mut loader = self.loader.take().ok_or_else(gone)?;
        let sizes = settings.sizes();
        let repeat =
            if settings.data.overfit_one_batch { Some(Repeat::new(&mut loader, sizes.accumulation)?) } else { None };
        if let Some(state) = state {
            loader.restore(state.batches.clone())?;
        }
        let mut file = RunFile::new(settings, Some(loader.fingerprint().to_owned()));
        (file.record.adapter, file.record.peak_tflops) = (Some(made_by.adapter.clone()), peak);
        file.record.kernels.clone_from(&made_by.kernels);
        file.record.devices = (devices > 1).then_some(devices);
        // a configuration that an earlier version or a person wrote has no id
        let known = there.and_then(|there| there.record.run.clone());
        file.record.run = known.or_else(|| state.and_then(|state| state.run.clone()));
        let folder = match (&self.out, lock.take()) {
            (None, _) => {
                let parent = Path::new("runs");
                if let Some(unfinished) = inspect::unfinished(parent, &file) {
                    screen
                        .line(&format!("{unfinished} holds this run, unfinished: --resume {unfinished} continues it"));
                }
                Folder::create_next(parent, &file)?
            }
            (Some(out), Some(lock)) if there.is_some() => Folder::resume(out, file, lock, &record_extents(state))?,
            (Some(out), Some(old)) if self.restart && folder::is_run(out) => {
                screen.line(&format!("{} is now {}", out.display(), folder::put_aside(out)?.display()));
                drop(old);
                Folder::create(out, file)?
            }
            // a run that has begun there in the meantime is refused, even with --restart
            (Some(out), old) => {
                drop(old);
                Folder::create(out, file)?
            }
        };
        let data_files = FileHasher::begin(folder.home(), DataFiles::of(Some(&loader), self.rows.as_ref()))?;
        let reporter = Reporter::new(folder.home(), folder.file().clone(), self.extras.reference.take())?;
        let (every, keep) = (settings.run.checkpoint_every, settings.run.keep);
        let saver = Saver::new(Arc::clone(folder.home()), every, keep, state.map(|state| state.step));
        Ok(Run {
            settings,
            loader,
            repeat,
            rows: self.rows.take(),
            questions: std::mem::take(&mut self.extras.questions).into(),
            tokenizer: self.tokenizer.clone(),
            baseline: self.baseline,
            data_files,
            folder,
            reporter,
            saver,
            done: None,
            made_by: made_by.clone(),
            stop: self.stop,
            continues: self.continues,
            phase: self.phase.clone(),
            places: VecDeque::new(),
            printed: None,
            rebuilt: false,
        })
    }
}

/// Returns the trainer's options for a run's settings.
pub(super) fn trainer_options(settings: &Settings) -> TrainerOptions {
    TrainerOptions {
        optimizer: settings.optimizer(),
        elem: settings.elem(),
        recompute: settings.train.recompute,
        ranks: settings.data.ranks,
        wire: settings.train.wire.format(),
        ..TrainerOptions::new(settings.config(), settings.sizes())
    }
}

/// Measures the adapter's peak, in TFLOP/s, in the arithmetic of the run's matrix products.
fn peak_tflops(gpu: &Gpu, settings: &Settings) -> Result<f64> {
    let roofs = Roofs::measure(gpu, Duration::from_millis(300))?;
    let matrix = roofs.matrix.filter(|_| settings.elem() == Elem::F16);
    Ok(matrix.unwrap_or(roofs.fused_f32) / 1e12)
}

/// Adds the whole memory plan to an error of the driver that memory is exhausted.
fn with_plan(error: Error, gpu: &Gpu, settings: &Settings) -> Error {
    match (&error, plan(gpu, settings)) {
        (Error::Memory(_), Ok((_, table))) => error.with_advice(format!("{SMALLER}\n{table}")),
        _ => error,
    }
}

/// Returns the part of each record that belongs to a checkpoint, empty if there is none.
fn record_extents(state: Option<&StateFile>) -> RecordExtents {
    state.map_or_else(RecordExtents::default, |state| RecordExtents {
        bytes: state.records.clone(),
        metric_lines: state.metric_lines,
        // a pending line of this step is written again
        below: state.step + usize::from(state.pending.as_ref().is_none_or(|pending| pending.written)),
    })
}

/// Returns the steps that a checkpoint covers, with the work that remains after them. A run that is shortened to end at the
/// checkpoint's step still has to do the work at its end. A run that becomes longer still has to do the work that a signal
/// prevented after the checkpoint's step.
fn done(state: &StateFile, there: Option<&RunFile>, settings: &Settings) -> Done {
    let ends_here = (state.step == settings.train.steps && !state.ended).then_some(Pending::WRITTEN);
    let was_last = there.is_some_and(|there| there.record.finished && there.settings.train.steps == state.step);
    Done { step: state.step, pending: state.pending.clone().or(ends_here), was_last }
}

/// Prints how a changed number of steps changes the learning rate, and that validation uses other rows than before.
fn announce_changes(step: usize, there: Option<&Settings>, settings: &Settings, screen: &mut dyn Screen) {
    let Some(there) = there else { return };
    let (before, now) = (there.schedule(), settings.schedule());
    if before != now {
        screen.line(&format!(
            "rate     at step {}: {:.2e} before, {:.2e} now ({} steps before, {} now)",
            step + 1,
            before.at(step),
            now.at(step),
            before.steps,
            now.steps
        ));
    }
    let rows = |settings: &Settings| settings.run.val_rows.map_or_else(|| "all".to_owned(), |rows| rows.to_string());
    if there.run.val_rows != settings.run.val_rows {
        screen.line(&format!(
            "validate {} rows now, {} before, so losses are not comparable with earlier ones",
            rows(settings),
            rows(there)
        ));
    }
}

/// Prints the step after which a run resumes, and whether later steps may differ in their bits.
fn announce(state: Option<&StateFile>, made_by: &MadeBy, screen: &mut dyn Screen) {
    let Some(state) = state else {
        screen.line("resumed  from the start: no checkpoint was saved yet");
        return;
    };
    screen.line(&format!("resumed  after step {}", state.step));
    let differences = made_by.differences(&state.made_by);
    if !differences.is_empty() {
        let differences = differences.join("; ");
        screen.line(&format!("         steps may differ in their last bits from an undisturbed run's ({differences})"));
    }
}

/// Returns a run to its newest checkpoint, or to its start if it has none.
fn rewind(run: &mut Run, config: Config, start: &BatchesState, screen: &mut dyn Screen) -> Result<Option<Box<Saved>>> {
    run.saver.settle();
    let home = run.folder.home();
    home.check()?;
    let (saved, passed) = load_newest(home.dir(), Some(home.run()), config)?;
    passed.iter().for_each(|text| screen.line(text));
    let state = saved.as_ref().map(|saved| &saved.state);
    run.saver.rewind(state.map(|state| state.step));
    run.folder.rewind(&record_extents(state))?;
    run.reporter.rewind()?;
    run.loader.restore(state.map_or(start, |state| &state.batches).clone())?;
    Ok(saved.map(Box::new))
}

#[cfg(test)]
#[path = "session_tests.rs"]
pub(crate) mod tests;
