//! `wgpt train`.

pub mod asked;
mod estimate;
mod fit;
pub mod header;
mod opener;
pub mod resolve;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

use wgpt::data::Rows;
use wgpt::error::{Error, Fault, Result};
use wgpt::files::atomic;
use wgpt::measure::tune::LoadedRecord;
use wgpt::model::init;
use wgpt::run::contents::HANG;
use wgpt::run::follow::{Follower, Log};
use wgpt::run::model::{self, Description};
use wgpt::run::orders::{Crew, Message};
use wgpt::run::report::{History, REPORT};
use wgpt::run::session::Extras;
use wgpt::run::steps::{Outcome, known_words};
use wgpt::run::{CurrentPhase, Phase, Session};
use wgpt::train::Trainer;
use wgpt::train::collective::mpi::World;
use wgpt::train::dataset::Baseline;
use wgpt::train::settings::{Peak, Recipe};

use super::progress::Progress;
use super::terminal::{Terminal, remark, say, say_lines};
use super::{invocation, ranks, signals, stdout};
pub use asked::Asked;
use opener::Opener;
use resolve::{DataSummary, Resolved};

#[derive(Debug, clap::Args)]
#[command(args_override_self = true, after_help = EXAMPLES, after_long_help = LONG_HELP)]
pub struct Args {
    /// Recipe (a TOML file), or the folder of a run to resume
    ///
    /// A recipe has flags without their dashes; --set and flags win over it
    #[arg(value_name = "RECIPE|RUN")]
    recipe: Option<PathBuf>,
    /// Resume the run in DIR with its own settings
    ///
    /// Settings that move no past loss may be changed: --steps, intervals, paths, devices
    #[arg(long, value_name = "DIR", conflicts_with = "recipe")]
    resume: Option<PathBuf>,
    /// Print the run and its memory, and end
    ///
    /// Needs neither the data nor a device
    #[arg(long)]
    pub dry_run: bool,
    /// A setting as a recipe has it (repeatable)
    ///
    /// Wins over the recipe. Without a VALUE it is unset
    #[arg(long, value_name = "KEY=VALUE", hide_short_help = true)]
    set: Vec<String>,
    /// Rename a run that is in the folder to DIR.N and begin again
    #[arg(long, hide_short_help = true)]
    restart: bool,
    /// Print every value and its source, as a recipe, and end
    #[arg(long, conflicts_with = "dry_run", hide_short_help = true)]
    pub print_config: bool,
    #[command(flatten)]
    given: Recipe,
    #[command(flatten)]
    processes: ranks::Args,
}

const EXAMPLES: &str = "\
Without data the program trains a small model on stories that it makes up.
More flags: wgpt train --help

Examples:
  wgpt train
  wgpt train --text book.txt --tokenizer bytes --layers 4 --heads 4 \\
      --channels 128 --context 64 --batch 16 --steps 300
  wgpt train --resume runs/1 --steps 600
  wgpt train tools/recipes/gpt2-124M.toml --set batch=32 --dry-run";

const LONG_HELP: &str = "\
Without --text and --data the program trains on stories that it makes up, with
their own defaults: 3 layers, 4 heads, 128 channels, context 128, batch 8, 700
steps, lr 5e-3, warmup 40, byte tokens, validation every 100 steps on 16
batches, one sample at the end.

Examples:
  wgpt train
  wgpt train --text book.txt --tokenizer bytes --layers 4 --heads 4 \\
      --channels 128 --context 64 --batch 16 --steps 300
  wgpt train --resume runs/1 --steps 600
  wgpt train tools/recipes/gpt2-124M.toml --set batch=32 --dry-run
  wgpt train --data fineweb10B --val fineweb10B --model d12 --batch 64 \\
      --tokens-per-step 524288
  wgpt train --data 'data/x_train_*.bin' --val 'data/x_val_*.bin' --model d12";

/// Trains, alone or with the processes that a launcher has started with this one.
pub fn run(args: &Args) -> Result<()> {
    let phase = CurrentPhase::default();
    let current = phase.clone();
    let own = signals::listen(move || {
        let answer = signals::Answer::of(&current);
        match () {
            // after the run: the launcher ends all processes
            () if ranks::is_over() => signals::Answer::None,
            () if ranks::is_other() => answer.silent(),
            () => answer,
        }
    })?;
    phase.set(Phase::Reading);
    // before files are read that other machines may lack: no process waits for one that has ended
    let Some(world) = ranks::join(&args.processes)? else {
        return train(args, &own, phase, None).map(drop);
    };
    let stop = || own().inspect(|name| world.note_signal(name)).or_else(ranks::signal);
    let result = train(args, &stop, phase, Some(world));
    if !world.is_first() {
        ranks::follow_out(world, result);
    }
    ranks::leave(world, result.map(drop))
}

/// Trains in one process of `world`. Returns the exit code that the first process has sent; the first one returns 0.
fn train(
    args: &Args,
    stop: &dyn Fn() -> Option<&'static str>,
    phase: CurrentPhase,
    world: Option<&'static World>,
) -> Result<u8> {
    let speaks = ranks::is_first(world);
    let progress = speaks.then(|| Progress::of(&phase, true));
    let mut asked = args.ask()?;
    super::widen_for(asked.precision());
    if !speaks {
        // warnings of all processes are printed once, by the first
        log::set_max_level(log::max_level().min(log::LevelFilter::Error));
    }
    let (devices, layout) = asked.lay_out(world)?;
    let crew = world.zip(layout.as_ref()).map(|(world, layout)| Crew::new(world, layout));
    let Resolved { mut settings, init, planner } = Resolved::of(&asked, &devices, world.zip(layout.as_ref()))?;
    if speaks {
        asked.merged.notices.iter().for_each(|text| say!("recipe   {text}"));
        resolve::say_tokenizer(asked.recipe(), &settings, init.as_ref())?;
    }
    // the weights are checked before anything else is created
    let loaded = init.as_ref().map(Description::weights).transpose()?;

    let DataSummary { mut loader, rows, baseline, summary } = resolve::look(&mut settings)?;
    let extras = Extras {
        questions: resolve::questions(&settings)?,
        reference: settings.run.compare.as_deref().filter(|_| speaks).map(History::read).transpose()?,
        measures_peak: settings.run.peak_tflops == Some(Peak::Measure),
    };

    if let Some(crew) = &crew {
        ranks::compare(crew, &settings, &loader, rows.as_ref(), &extras.questions)?;
        loader.read_ranks(crew.ranks(settings.data.ranks))?;
    }
    let opener = Opener::new(&asked, &settings, &devices, planner);
    let validation_rows = rows.as_ref().map_or(0, Rows::len);
    let open = || {
        let mut gpus = opener.open()?;
        // the first process decides when
        if let (Some(crew), true) = (&crew, speaks) {
            crew.send(&Message::Open)?;
            crew.restrict(&mut gpus)?;
        }
        let is_first = opener.record(&gpus);
        if speaks && is_first {
            estimate::say(&asked, &settings, validation_rows, &gpus[0].caps);
        }
        Ok(gpus)
    };
    if let (Some(crew), false) = (&crew, speaks) {
        let follower = Follower {
            settings: &settings,
            loader,
            rows,
            questions: extras.questions,
            open: &open,
            stop,
            phase,
            hang: Some(|what| ranks::end_all(&Error::lost(Fault::at("device", what)))),
            crew,
        };
        let world = crew.world();
        let mut log = Log::new(world.rank());
        log.line(&format!("{} of {}, {}", world.name(world.rank()), world.size(), world.library()));
        return follower.follow(&mut log).inspect_err(|error| log.line(&error.to_string()));
    }
    // the weights that were read above are used once; after that they are read again
    let loaded = Cell::new(loaded);
    let first = || match (loaded.take(), &settings.model.init) {
        (Some(weights), _) => Ok(weights),
        (None, Some(path)) => model::load(path).map(|(weights, ..)| weights),
        (None, None) => Ok(init::init(settings.config(), settings.train.seed)),
    };
    let folder = RefCell::new(PathBuf::new());
    let header = |trainer: &Trainer, dir: &Path| {
        folder.replace(dir.to_owned());
        let processes = world.map(World::summary);
        let found = opener.tuned.replace(LoadedRecord::Nothing);
        header::print(&settings, &summary, trainer, &opener.opened.borrow(), dir, (&found, processes.as_deref()));
    };
    let mut terminal = Terminal::new(progress, &header);
    let session = Session {
        settings: &settings,
        loader: Some(loader),
        rows,
        tokenizer: settings.data.tokenizer.clone(),
        baseline,
        extras,
        out: asked.out.clone(),
        restart: args.restart,
        open: &open,
        weights: &first,
        stop,
        phase,
        hang: Some(hang),
        continues: &|dir| invocation::continued(dir, asked.names_folder),
        crew: crew.as_ref(),
    };
    let Some(outcome) = session.train(&mut terminal)? else { return stdout::finish().map(|()| 0) };
    drop(terminal);
    // text can be generated only with a tokenizer
    let speaks = settings.data.tokenizer.as_ref().is_some_and(|tokenizer| tokenizer.check().is_ok());
    conclude(&folder.take(), &outcome, baseline, speaks);
    Ok(0)
}

/// Prints the results of a finished run, and a command that uses it.
fn conclude(out: &Path, outcome: &Outcome, baseline: Option<Baseline>, speaks: bool) {
    say!("saved {}", out.join("model").display());
    if let (Some(baseline), Some(loss)) = (baseline, outcome.val_loss) {
        say!(
            "validation {loss:.4} nats per byte; order-2 Markov model {:.4}; entropy rate of the text {:.4}",
            baseline.markov,
            baseline.entropy
        );
    }
    if let Some(sample) = &outcome.sample {
        say_lines!("sample:\n{sample}");
        if baseline.is_some() {
            let (known, all) = known_words(sample);
            say!("{known} of the sample's {all} words are words of the grammar");
        }
    }
    say!("report: {}", out.join(REPORT).display());
    if !speaks {
        return;
    }
    let from = invocation::flag("--from", out);
    say!("next: {}", invocation::command([vec!["generate".into()], from, vec!["Once upon a time".into()]].concat()));
}

/// Ends the process: the thread that waits for the device may never come back.
fn hang(dir: &Path, what: &str) {
    let again = invocation::launched([vec!["train".into()], invocation::flag("--resume", dir)].concat());
    let text = format!("train: {what}; to continue from the last checkpoint: {again}");
    let (path, note) = (dir.join(HANG), format!("{text}\n"));
    // on another thread: the disk may hang too
    let noted = std::thread::spawn(move || atomic::write(&path, |out| out.write_all(note.as_bytes())));
    std::thread::sleep(std::time::Duration::from_secs(1));
    drop(noted);
    ranks::end_all(&Error::lost(text.clone()));
    // standard error may have no reader, which must not keep the process
    remark!("error: {text}");
    std::process::exit(4);
}
