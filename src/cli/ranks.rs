//! A run of several processes: joins those that an MPI launcher has started, assigns devices, and ends all together.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use wgpt::data::hellaswag::Example;
use wgpt::data::{Batches, Rows};
use wgpt::error::{Error, Fault, Result};
use wgpt::gpu::{Caps, adapter, devices};
use wgpt::run::orders::{self, Crew, Message, VERSION};
use wgpt::train::Settings;
use wgpt::train::collective::mpi::launcher::{Launch, launched};
use wgpt::train::collective::mpi::{Layout, World, WorldOptions};
use wgpt::train::settings::compare;

use super::tell_of;
use super::terminal::remark;

/// The value of `--mpi` for a process that trains alone, whatever has started it.
const NONE: &str = "none";

/// How long a process waits for the first one to print an error that both may have.
const PATIENCE: Duration = Duration::from_millis(200);

/// The processes of this process's run, so that any thread can end them all.
static WORLD: OnceLock<World> = OnceLock::new();

/// How processes find each other, and how long they wait for each other.
#[derive(Debug, clap::Args)]
#[group(id = "processes")]
pub struct Args {
    /// MPI library of the launcher
    ///
    /// With none this process ignores the launcher that started it [default: the first of libmpi_abi.so.1, libmpi.so.12
    /// and libmpi.so.40 that belongs to the launcher]
    #[arg(long, value_name = "PATH|none", help_heading = "Devices", hide_short_help = true)]
    mpi: Option<PathBuf>,
    /// Seconds of silence of a process that end an MPI run
    ///
    /// The exit code is then 4
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..))]
    #[arg(help_heading = "Devices", hide_short_help = true)]
    rank_timeout: u64,
}

/// Joins the processes that a launcher has started with this one, if it has.
///
/// # Errors
/// As [`World::join`].
pub fn join(args: &Args) -> Result<Option<&'static World>> {
    let (mpi, silence_limit) = (args.mpi.as_ref(), Duration::from_secs(args.rank_timeout));
    if mpi.is_some_and(|library| library.as_os_str() == NONE) {
        return Ok(None);
    }
    let launch = launch()?.filter(|launch| launch.size > 1);
    let Some(launch) = launch else {
        let size = std::env::var("WORLD_SIZE").ok().and_then(|size| size.parse::<usize>().ok());
        if let (Some(size @ 2..), Ok(_)) = (size, std::env::var("RANK")) {
            remark!(
                "WORLD_SIZE={size}: torchrun does not connect processes of wgpt, each trains alone; try --devices all, or mpirun"
            );
        }
        return Ok(None);
    };
    let world = World::join(launch, WorldOptions { library: mpi.cloned(), silence_limit })?;
    Ok(Some(WORLD.get_or_init(|| world)))
}

/// Reads this process's place among those that a launcher has started.
fn launch() -> Result<Option<Launch>> {
    launched(|name| std::env::var(name).ok())
}

/// Returns how many processes a launcher has started, this one among them.
pub fn launched_size() -> usize {
    launch().ok().flatten().map_or(1, |launch| launch.size)
}

/// Returns whether the run of several processes has ended. A signal after that comes from the launcher and is ignored.
pub fn is_over() -> bool {
    WORLD.get().is_some_and(World::has_ended)
}

/// Returns the launcher's words that start as many processes, for a command that resumes the run.
pub fn launcher() -> Vec<String> {
    WORLD.get().map_or_else(Vec::new, |world| {
        let (command, size) = (world.launcher().command(), world.size().to_string());
        [command, "-n", &size].map(str::to_owned).to_vec()
    })
}

/// Returns whether a launcher has started this process and it is not the first one.
pub fn is_other() -> bool {
    launch().is_ok_and(|launch| launch.is_some_and(|launch| launch.rank > 0))
}

/// Returns the signal that has asked another process of the run to stop, and that process.
pub fn signal() -> Option<&'static str> {
    static SIGNAL: OnceLock<String> = OnceLock::new();
    let told = WORLD.get().and_then(World::signal)?;
    Some(SIGNAL.get_or_init(|| told))
}

/// Returns whether this process prints: the first one does, or the only one.
pub fn is_first(world: Option<&World>) -> bool {
    world.is_none_or(World::is_first)
}

/// Returns the number of the default GPU of a process at position `at` among `local` ones of its machine.
///
/// # Errors
/// [`Error::Usage`] if there are fewer GPUs than processes, which may not `share` them.
pub fn own_device((at, local): (usize, usize), share: bool) -> Result<usize> {
    let all = devices::choose("all", false)?;
    match &all[..] {
        // a batch system may show each process only its own GPU
        [only] => Ok(*only),
        all if at < all.len() || share => Ok(all[at % all.len()]),
        all => {
            let fault = Fault::at("ranks", format!("{local} processes on this machine, {} GPUs", all.len()));
            let advice =
                "start as many processes as there are GPUs, or one with --devices all; --share-device lets them share";
            Err(Error::usage(fault.expected("a GPU for each").advice(advice)))
        }
    }
}

/// Returns the layout of the devices that all processes have chosen, each by its number or name.
///
/// # Errors
/// [`Error::Device`] if one is unknown; [`Error::Usage`] if two processes have chosen the same GPU and may not `share`
/// it.
pub fn lay_out(world: &World, chosen: &[Option<String>], share: bool) -> Result<Layout> {
    let found = adapter::list();
    let caps = |device: &Option<String>| -> Result<Caps> {
        let number = device.as_ref().and_then(|device| device.parse::<usize>().ok());
        match number.and_then(|number| found.get(number)) {
            Some(device) => Ok(device.caps.clone()),
            None => adapter::find(device.as_deref()),
        }
    };
    let own: Vec<Caps> = chosen.iter().map(caps).collect::<Result<_>>()?;
    let all: Vec<Vec<Caps>> = orders::share(world, &own)?;
    let machines = world.machines();
    let layout = Layout::new(machines, &all.iter().map(Vec::len).collect::<Vec<_>>());
    // the first process reports what all see
    if share || !world.is_first() {
        return Ok(layout);
    }
    for (process, devices) in all.iter().enumerate() {
        for before in (0..process).filter(|before| machines[*before] == machines[process]) {
            let twice = devices.iter().find(|device| all[before].iter().any(|other| devices::are_same(device, other)));
            if let Some(device) = twice {
                let what = format!("{} and {} have the same GPU", world.name(before), world.name(process));
                let fault =
                    Fault::at("ranks", what).expected("each its own").found(device.name.clone() + &device.at_bus());
                return Err(Error::usage(fault.advice(
                    "start no more processes than there are GPUs, or one for each machine with --devices all (mpirun --map-by \
                     ppr:1:node); to try several on one GPU: --share-device",
                )));
            }
        }
    }
    Ok(layout)
}

/// Compares what moves losses: program, settings, data.
///
/// # Errors
/// [`Error::Disagree`] in the first process, with the name of another one.
pub fn compare(
    crew: &Crew,
    settings: &Settings,
    loader: &Batches,
    rows: Option<&Rows>,
    questions: &[Example],
) -> Result<()> {
    let mut own: BTreeMap<String, String> = compare::recorded(settings);
    let t = &settings.train;
    own.extend([
        (VERSION.to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("seed".into(), t.seed.to_string()),
        ("steps".into(), t.steps.to_string()),
        ("lr".into(), t.lr.to_string()),
        ("schedule".into(), t.schedule.name().to_owned()),
        ("warmup".into(), t.warmup.to_string()),
        ("final-lr-frac".into(), t.final_lr_frac.to_string()),
        ("recompute".into(), t.recompute.to_string()),
        ("data".into(), short(loader.fingerprint())),
        (
            "validation".into(),
            rows.map_or_else(|| Ok("none".to_owned()), |rows| rows.fingerprint().map(|hash| short(&hash)))?,
        ),
        ("hellaswag".into(), if questions.is_empty() { "none".into() } else { short(&format!("{questions:?}")) }),
    ]);
    crew.compare(&own)
}

/// Returns the short form of a fingerprint, for people to compare.
fn short(fingerprint: &str) -> String {
    blake3::hash(fingerprint.as_bytes()).to_hex()[..12].to_owned()
}

/// Ends the first process of a run, and all others with it.
///
/// # Errors
/// [`Error::Stopped`] of a run that was saved. After any other error the process ends here.
pub fn leave(world: &World, result: Result<()>) -> Result<()> {
    let code = match &result {
        Ok(()) => 0,
        Err(error @ Error::Stopped(_)) => error.exit_code(),
        Err(error) => die(world, error),
    };
    let told = orders::send(world, &Message::End(code));
    if let Err(error) = told.and_then(|()| world.finish()) {
        die(world, &error);
    }
    result
}

/// Ends a process that is not the first, with the exit code of the first and without a message: the first one prints
/// it.
pub fn follow_out(world: &World, result: Result<u8>) -> ! {
    let ended = result.and_then(|code| world.finish().map(|()| code));
    match ended {
        Ok(code) => std::process::exit(code.into()),
        Err(error) => die(world, &error),
    }
}

/// Ends a process at a point that all processes reach. Only the first one returns from here, and only without an error.
///
/// # Errors
/// None.
pub fn part(world: &World, result: Result<()>) -> Result<()> {
    if let Err(error) = result.and_then(|()| world.finish()) {
        die(world, &error);
    }
    if world.is_first() { Ok(()) } else { std::process::exit(0) }
}

/// Ends a process whose arguments are wrong, and all others, which would wait for it. `say` prints the error.
pub fn refuse(error: &Error, say: impl FnOnce()) {
    let args = Args { mpi: None, rank_timeout: 60 };
    match join(&args) {
        Ok(Some(world)) => die_saying(world, error, say),
        _ => say(),
    }
}

/// Prints an error of this process, and ends all processes.
fn die(world: &World, error: &Error) -> ! {
    let place = |error: Error| if world.is_first() { error } else { error.within(world.name(world.rank())) };
    die_saying(world, error, || {
        tell_of(error.clone(), "train", place);
    })
}

fn die_saying(world: &World, error: &Error, say: impl FnOnce()) -> ! {
    // the first process prints an error that all have found
    let is_said =
        || world.far_error().is_some_and(|far| far == *error || far.to_string().ends_with(&error.to_string()));
    if !world.is_first() && !is_said() {
        std::thread::sleep(PATIENCE);
    }
    // before others hear of this error and end the process
    if !is_said() {
        say();
    }
    world.die(error)
}

/// Ends all processes at once: a thread of this one may never come back.
pub fn end_all(error: &Error) {
    if let Some(world) = WORLD.get() {
        die(world, error);
    }
}
