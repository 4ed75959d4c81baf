//! `wgpt train`.

mod asked;
mod estimate;
mod fit;
pub mod header;
pub mod resolve;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

use wgpt::data::{Rows, Tokenizer};
use wgpt::error::{Error, Fault, Result};
use wgpt::files::atomic;
use wgpt::gpu::{self, Elem, Gpu, Options};
use wgpt::measure::plan::check_memory;
use wgpt::measure::tune::{self, LoadedRecord};
use wgpt::model::init;
use wgpt::run::contents::HANG;
use wgpt::run::follow::{Follower, Log};
use wgpt::run::model::{self, Description};
use wgpt::run::orders::{Crew, Message};
use wgpt::run::report::{History, REPORT};
use wgpt::run::session::Extras;
use wgpt::run::steps::{Outcome, known_words};
use wgpt::run::{CurrentPhase, Phase, Session};
use wgpt::train::collective::mpi::World;
use wgpt::train::dataset::Baseline;
use wgpt::train::settings::{Peak, Recipe};
use wgpt::train::{Settings, Trainer};

use super::progress::Progress;
use super::terminal::{Terminal, remark, say, say_lines};
use super::{invocation, precision, ranks, signals, stdout};
pub use asked::Asked;
use resolve::DataSummary;

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
    let chosen = match world {
        None => asked.choose_devices()?,
        Some(world) => asked.choose_devices_of_rank(world.local())?,
    };
    // several by their numbers, or the one that is asked for
    let devices: Vec<Option<String>> = match &chosen[..] {
        [] => vec![asked.recipe().run.device.clone()],
        several => several.iter().map(|number| Some(number.to_string())).collect(),
    };
    let shares = asked.recipe().run.share_device.unwrap_or(false);
    let layout = world.map(|world| ranks::lay_out(world, &devices, shares)).transpose()?;
    world.map_or(Ok(()), |world| asked.share_run(world))?;
    if let Some(layout) = &layout {
        asked.default_ranks(layout.processes.len());
    }
    let crew = world.zip(layout.as_ref()).map(|(world, layout)| Crew::new(world, layout));
    let recipe = asked.recipe();
    // a run with checkpoints does not need its first weights, which may be gone
    let known = asked.known_start();
    let init = if known.is_some() { None } else { resolve::init(recipe)? };
    let mut settings = recipe.resolve(known.unwrap_or_else(|| resolve::start(init.as_ref())))?;
    asked.keep_horizon(&mut settings);
    settings.run.device_count = devices.len();
    if let Some(layout) = &layout {
        (settings.run.device_count, settings.run.machines) = (layout.processes.len(), layout.machines);
    }
    settings.check().map_err(|error| match (world, error.fault().place.as_str()) {
        (Some(world), "--devices") => error.with_place(world.summary()),
        _ => error,
    })?;
    let device = devices[0].clone();
    asked.choose_precision(&mut settings, device.as_deref())?;
    let planner = asked.choose_batch(&mut settings, || gpu::adapter::find(device.as_deref()).map(Gpu::dry))?;
    if speaks {
        asked.merged.notices.iter().for_each(|text| say!("recipe   {text}"));
    }
    let assumption =
        init.as_ref().filter(|_| recipe.data.tokenizer.is_none()).and_then(|model| model.tokenizer.assumption());
    match (assumption, &settings.data.tokenizer) {
        _ if !speaks => {}
        (Some(assumption), _) => say!("tokens   {assumption}"),
        (None, Some(own @ Tokenizer::Own(_))) => say!("tokens   {own}"),
        _ if resolve::assumes_gpt2(recipe, &settings)? => {
            say!(
                "tokens   gpt2, assumed: no file next to the data names a tokenizer; --vocab N for a model of other ids"
            );
        }
        _ => {}
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
    let (tuned, folder) = (RefCell::new(LoadedRecord::Nothing), RefCell::new(PathBuf::new()));
    let (validation_rows, warned) = (rows.as_ref().map_or(0, Rows::len), Cell::new(!speaks));
    let opened = RefCell::new(Vec::new());
    // the first device reuses the files that were read for the plan
    let planner = Cell::new(planner);
    let open = || {
        let mut gpus = open(&settings, &devices, &planner, &tuned, asked.recipe().training.tokens_per_step)?;
        // the first process decides when
        if let (Some(crew), true) = (&crew, speaks) {
            crew.send(&Message::Open)?;
            crew.restrict(&mut gpus)?;
        }
        if !warned.replace(true) {
            let model = &asked.recipe().model;
            let names_shape = model.layers.is_some() || model.model.is_some() || model.init.is_some();
            let lines = estimate::lines(&settings, validation_rows, &gpus[0].caps, names_shape);
            lines
                .iter()
                .enumerate()
                .for_each(|(i, line)| say!("{}{line}", if i == 0 { "time     " } else { "         " }));
        }
        opened.replace(gpus.iter().map(|gpu| gpu.caps.clone()).collect());
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
    let header = |trainer: &Trainer, dir: &Path| {
        folder.replace(dir.to_owned());
        let processes = world.map(World::summary);
        let found = tuned.replace(LoadedRecord::Nothing);
        header::print(&settings, &summary, trainer, &opened.borrow(), dir, (&found, processes.as_deref()));
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

/// Opens the devices: once, and again after a loss.
fn open(
    settings: &Settings,
    devices: &[Option<String>],
    planner: &Cell<Option<Gpu>>,
    tuned: &RefCell<LoadedRecord>,
    tokens_per_step: Option<usize>,
) -> Result<Vec<Gpu>> {
    let options = |device: &Option<String>| Options {
        device: device.clone(),
        checked: settings.run.checked,
        matrices: settings.elem() == Elem::F16,
        unrepaired: settings.run.no_spirv_repair,
        // for the header, which names kernels that spill
        statistics: true,
        ..Options::default()
    };
    let mut gpus = gpu::devices::open(&devices.iter().map(options).collect::<Vec<_>>())?;
    gpus.iter().try_for_each(|gpu| precision::check(settings.elem(), &gpu.caps))?;
    tuned.replace(tune::load_all(&mut gpus));
    if let Some(planner) = planner.take()
        && let Some(last) = gpus.pop()
    {
        // any of several devices: all record the same commands
        gpus.push(last.adopting_kernels(planner));
    }
    check_memory(&gpus[0], settings, settings.run.memory, tokens_per_step)?;
    Ok(gpus)
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
