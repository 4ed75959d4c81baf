//! A run of several processes: joins those that an MPI launcher has started, deals out devices, and ends all together.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use wgpt::data::{Batches, Rows};
use wgpt::error::{Error, Fault, Result};
use wgpt::gpu::{Caps, adapter, devices};
use wgpt::run::orders::{self, Crew, Message, VERSION};
use wgpt::train::Settings;
use wgpt::train::collective::mpi::launcher::launched;
use wgpt::train::collective::mpi::{Layout, World, WorldOptions};
use wgpt::train::settings::compare;

use crate::cli::tell_of;

/// The word for a process that is to train alone, whatever has started it.
const NONE: &str = "none";

/// The processes of this one's run: for whoever has to end them all, from any thread.
static WORLD: OnceLock<World> = OnceLock::new();

/// Joins the processes that a launcher has started with this one, if it has.
///
/// # Errors
/// As [`World::join`].
pub fn join(mpi: Option<&PathBuf>, patience: Duration) -> Result<Option<&'static World>> {
    if mpi.is_some_and(|library| library.as_os_str() == NONE) {
        return Ok(None);
    }
    let launch = launched(|name| std::env::var(name).ok())?.filter(|launch| launch.size > 1);
    let Some(launch) = launch else { return Ok(None) };
    let world = World::join(launch, WorldOptions { library: mpi.cloned(), patience })?;
    Ok(Some(WORLD.get_or_init(|| world)))
}

/// True if a launcher has started this process, be it alone.
pub fn is_launched() -> bool {
    launched(|name| std::env::var(name).ok()).is_ok_and(|launch| launch.is_some())
}

/// True once the run of several processes has ended: a signal is then the launcher's, and of no concern.
pub fn is_over() -> bool {
    WORLD.get().is_some_and(World::has_ended)
}

/// Returns the words that start as many processes, for a command that continues a run.
pub fn launcher() -> Vec<String> {
    WORLD.get().map_or_else(Vec::new, |world| {
        let (command, size) = (world.launcher().command(), world.size().to_string());
        [command, "-n", &size].map(str::to_owned).to_vec()
    })
}

/// Returns true for the process that talks: the first, or the only one.
pub fn is_first(world: Option<&World>) -> bool {
    world.is_none_or(World::is_first)
}

/// Lays out the devices that all processes have chosen, each by its number or name.
///
/// # Errors
/// [`Error::Device`] if one is unknown; [`Error::Usage`] if two processes have chosen the same GPU and may not `share` it.
pub fn lay_out(world: &World, chosen: &[Option<String>], share: bool) -> Result<Layout> {
    let found = adapter::found();
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
    // the first process tells what all see
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
                    "start one process for each GPU, without --devices, or one for each machine: mpirun --map-by ppr:1:node \
                     wgpt train --devices all; --share-device lets processes share a GPU",
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
    questions: usize,
) -> Result<()> {
    let mut own: BTreeMap<String, String> = compare::noted(settings);
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
        ("hellaswag".into(), format!("{questions} questions")),
    ]);
    crew.compare(&own)
}

/// A fingerprint as people compare it.
fn short(fingerprint: &str) -> String {
    blake3::hash(fingerprint.as_bytes()).to_hex()[..12].to_owned()
}

/// Ends the first process of a run: all others leave with it.
///
/// # Errors
/// What the run has ended with, if it was stopped and saved; after any other error the process ends here.
pub fn leave(world: &World, result: Result<()>) -> Result<()> {
    let code = match &result {
        Ok(()) => 0,
        Err(error @ Error::Stopped(_)) => error.exit_code(),
        Err(error) => die(world, error),
    };
    let told = orders::tell(world, &Message::End(code));
    if let Err(error) = told.and_then(|()| world.finish()) {
        die(world, &error);
    }
    result
}

/// Ends a process but the first: with the exit code of the first, in silence, since that one says what there is to say.
pub fn follow_out(world: &World, result: Result<u8>) -> ! {
    let ended = result.and_then(|code| world.finish().map(|()| code));
    match ended {
        Ok(code) => std::process::exit(code.into()),
        Err(error) => die(world, &error),
    }
}

/// Says an error of this process, and ends all.
fn die(world: &World, error: &Error) -> ! {
    // an error that came from elsewhere was said there; before others hear of this one and end the process
    if world.far_error().is_none_or(|far| far != *error) {
        let place = |error: Error| if world.is_first() { error } else { error.within(world.name(world.rank())) };
        tell_of(error.clone(), "train", place);
    }
    world.die(error)
}

/// Ends all processes at once: a thread of this one may never come back.
pub fn end_all(error: &Error) {
    if let Some(world) = WORLD.get() {
        die(world, error);
    }
}
