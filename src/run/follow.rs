//! Any process of a run but the first. It makes the same calls on its devices as the first process, reads its own data, and
//! writes only a log.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use crate::data::hellaswag::Example;
use crate::data::{Batches, Repeat, Rows};
use crate::error::{Error, Fault, Result};
use crate::files::{open, visible};
use crate::gpu::Gpu;
use crate::model::Weights;
use crate::run::orders::{Crew, Message, RANKS, log_of};
use crate::run::phase::{CurrentPhase, Phase};
use crate::run::session::trainer_options;
use crate::run::team::Team;
use crate::run::watchdog::{self, HangTimeout};
use crate::train::Snapshot;
use crate::train::settings::Settings;

/// Steps between two lines of the log.
const LOGGED: usize = 100;

/// A process that follows the first one.
pub struct Follower<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// Batches, at the start of the first epoch.
    pub loader: Batches,
    /// Validation, if there is any.
    pub rows: Option<Rows>,
    /// HellaSwag's questions, if the run is scored on them.
    pub questions: Vec<Example>,
    /// Opens the devices.
    pub open: &'a dyn Fn() -> Result<Vec<Gpu>>,
    /// Returns the name of a signal that asks the run to end, once one has arrived.
    pub stop: &'a dyn Fn() -> Option<&'static str>,
    /// The current phase of the run, for the answer to a signal.
    pub phase: CurrentPhase,
    /// Called when a device hangs. It should end the process.
    pub hang: Option<fn(&str)>,
    /// All processes of the run.
    pub crew: &'a Crew<'a>,
}

impl Follower<'_> {
    /// Carries out the messages of the first process until [`Message::End`], and returns its exit code.
    ///
    /// # Errors
    /// The first error in any process.
    pub fn follow(mut self, log: &mut Log) -> Result<u8> {
        self.phase.set(Phase::Opening);
        let mut gpus = (self.open)()?;
        for gpu in &gpus {
            log.line(&format!("device {}{}", gpu.caps.summary(), gpu.caps.at_bus()));
        }
        let crew = self.crew;
        let first = match crew.next()? {
            Message::Open => {
                crew.restrict(&mut gpus)?;
                crew.next()?
            }
            other => other,
        };
        match first {
            Message::Begin(tuned) => {
                let tuned = Arc::new(tuned);
                gpus.iter_mut().for_each(|gpu| gpu.caps.tuned = Arc::clone(&tuned));
            }
            // the first process found that the run is finished
            Message::End(code) => return Ok(code),
            other => return Err(unexpected(&other)),
        }
        self.phase.set(Phase::Compiling);
        log.line("kernels are built");
        let mut watchdogs = Vec::new();
        Team::with(&gpus, trainer_options(self.settings), Some(crew), |team| {
            crew.compare_kernels(team.lead())?;
            log.line(&format!(
                "ready, memory {:.1} MiB",
                team.lead().gpu().allocated_bytes() as f64 / f64::from(1 << 20)
            ));
            if let Some(hang) = self.hang {
                watchdogs = watchdog::watch(&gpus, HangTimeout::of, hang);
            }
            self.obey(team, log)
        })
    }

    fn obey(&mut self, team: &mut Team, log: &mut Log) -> Result<u8> {
        let Self { settings, loader, rows, questions, stop, crew, .. } = self;
        let config = settings.config();
        let accumulation = settings.sizes().accumulation;
        let mut repeat = if settings.data.overfit_one_batch { Some(Repeat::new(loader, accumulation)?) } else { None };
        let questions: Arc<[Example]> = std::mem::take(questions).into();
        let mut reached = 0;
        loop {
            match crew.next()? {
                Message::Folder(dir) => log.begin(dir),
                Message::Load => {
                    self.phase.set(Phase::Uploading);
                    let weights = Weights::zeros(config);
                    team.load(weights)?;
                    log.line("weights loaded");
                    self.phase.set(Phase::Training);
                }
                Message::Restore => {
                    self.phase.set(Phase::Uploading);
                    team.restore(Snapshot::zeros(config))?;
                    log.line("snapshot loaded");
                    self.phase.set(Phase::Training);
                }
                Message::Batches(state) => loader.restore(state)?,
                Message::Step { step, lr } => {
                    let source = Repeat::choose(&mut repeat, loader);
                    let is_done = team.step_unless(source, step, f32::from_bits(lr), &|| stop().is_some())?;
                    team.drop_reports()?;
                    reached = if is_done { step } else { step - 1 };
                    if !is_done {
                        log.line(&format!(
                            "step {step} given up: {}",
                            stop().unwrap_or("another rank was asked to stop")
                        ));
                    } else if step == 1 || step.is_multiple_of(LOGGED) {
                        log.line(&format!("step {step}"));
                    }
                }
                Message::Evaluate { count } => {
                    let none = || Error::data(Fault::at("validation", "this process has no rows"));
                    let rows = rows.as_mut().ok_or_else(none)?;
                    team.evaluate_unless(rows, count, &|| stop().is_some())?;
                }
                Message::Answer => drop(team.answer(&questions, &|| stop().is_some())?),
                Message::Snapshot => drop(team.snapshot()?),
                Message::End(code) => {
                    log.line(&format!("ended after step {reached} with exit code {code}"));
                    return Ok(code);
                }
                other @ (Message::Open | Message::Begin(_)) => return Err(unexpected(&other)),
            }
        }
    }
}

fn unexpected(message: &Message) -> Error {
    Error::gpu(Fault::at("orders", format!("{message:?} arrived out of order")))
}

/// The log of a process. Lines wait until the run's folder is known.
#[derive(Debug)]
pub struct Log {
    rank: usize,
    waiting: Vec<String>,
    path: Option<PathBuf>,
}

impl Log {
    /// Creates the log of a rank.
    #[must_use]
    pub fn new(rank: usize) -> Self {
        Self { rank, waiting: Vec::new(), path: None }
    }

    /// Writes a line. If that fails, the line is dropped and the run continues.
    pub fn line(&mut self, text: &str) {
        self.waiting.push(format!(
            "{} {}\n",
            jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ"),
            visible::line(text)
        ));
        let Some(path) = &self.path else { return };
        let lines = std::mem::take(&mut self.waiting).concat();
        let file = open::unshared(path, OpenOptions::new().append(true).create(true));
        let written = file.and_then(|mut file| file.write_all(lines.as_bytes()));
        if let Err(error) = written {
            log::error!("{}: cannot be written ({error}); the run continues without this log", path.display());
            self.path = None;
        }
    }

    /// Sets the run's folder, writes the waiting lines there, and all later ones. Creates the folder if machines do not share
    /// it.
    fn begin(&mut self, dir: PathBuf) {
        let made = std::fs::create_dir_all(&dir).and_then(|()| open::make_folder(&dir.join(RANKS)));
        match made {
            Ok(()) => self.path = Some(log_of(&dir, self.rank)),
            Err(error) => {
                log::error!("{}: the log of this rank cannot be created ({error})", dir.join(RANKS).display());
            }
        }
        self.line(&format!("folder {}", dir.display()));
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_log_is_written_into_the_runs_folder_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut log = Log::new(3);
        log.line("before");
        log.begin(dir.join("new/run"));
        log.line("a\nb");
        let text = fs::read_to_string(dir.join("new/run/ranks/3.log")).unwrap();
        let words: Vec<&str> = text.lines().filter_map(|line| line.split_once(' ')).map(|(_, text)| text).collect();
        assert_eq!((words.len(), words[0], words[2]), (3, "before", "a\\nb"), "{text}");
        // a link that somebody has put there is not followed, and does not end the run
        fs::write(dir.join("victim"), "precious").unwrap();
        for (linked, to) in [("a/ranks/3.log", "victim"), ("b/ranks", "elsewhere")] {
            fs::create_dir_all(dir.join(linked).parent().unwrap()).unwrap();
            fs::create_dir_all(dir.join("elsewhere")).unwrap();
            symlink(dir.join(to), dir.join(linked)).unwrap();
            let mut log = Log::new(3);
            log.begin(dir.join(&linked[..1]));
            log.line("lost");
            assert_eq!(fs::read_to_string(dir.join("victim")).unwrap(), "precious");
            assert_eq!(fs::read_dir(dir.join("elsewhere")).unwrap().count(), 0);
        }
    }
}
