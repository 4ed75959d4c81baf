//! What `wgpt train` does with a folder that holds a run already, and with signals.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use wgpt::error::{Error, Result};
use wgpt::model::Config;
use wgpt::train::checkpoint::{MadeBy, Saved, load_newest};
use wgpt::train::folder::{self, State};
use wgpt::train::lock::Lock;
use wgpt::train::settings::Settings;

use super::terminal::say;

/// How a run begins in a folder.
pub enum Begin {
    /// It does not: it is finished there already.
    Finished,
    /// From the start; the lock is that of a run that is to be put aside.
    Anew(Option<Lock>),
    /// Where it was, from the start if nothing was saved.
    Resume(Lock, Option<Box<Saved>>),
}

/// Looks at the folder of `--out`, which nobody else may use meanwhile.
pub fn begin(out: &Path, settings: &Settings, config: Config, restart: bool) -> Result<Begin> {
    let lock = Lock::take_known(out)?;
    if restart && out.join("config.toml").exists() {
        return Ok(Begin::Anew(lock));
    }
    match folder::inspect(out, settings)? {
        State::Free => Ok(Begin::Anew(None)),
        State::Finished => {
            say!("{} holds this run, finished; --restart begins anew", out.display());
            Ok(Begin::Finished)
        }
        State::Unfinished => {
            let mut lock = lock.map_or_else(|| Lock::take(out), Ok)?;
            lock.sign()?;
            let (saved, passed) = load_newest(out, config)?;
            passed.iter().for_each(|text| say!("{text}"));
            Ok(Begin::Resume(lock, saved.map(Box::new)))
        }
    }
}

/// Tells where a run goes on, and whether its steps keep their bits.
pub fn announce(saved: Option<&Saved>, made_by: &MadeBy) {
    let Some(saved) = saved else {
        say!("resumed  from the start: no checkpoint was saved yet");
        return;
    };
    say!("resumed  after step {}", saved.state.step);
    let differences = made_by.differences(&saved.state.made_by);
    if !differences.is_empty() {
        say!("         steps may differ in their last bits from an undisturbed run's ({})", differences.join("; "));
    }
}

/// Signals that end a run when it has been saved.
#[cfg(unix)]
const SIGNALS: [(i32, &str); 3] = [
    (signal_hook::consts::SIGINT, "SIGINT"),
    (signal_hook::consts::SIGTERM, "SIGTERM"),
    (signal_hook::consts::SIGHUP, "SIGHUP"),
];
#[cfg(not(unix))]
const SIGNALS: [(i32, &str); 2] = [(signal_hook::consts::SIGINT, "SIGINT"), (signal_hook::consts::SIGTERM, "SIGTERM")];

/// Listens for signals; what it returns gives the name of one that has come. A second one ends the process at once.
///
/// # Errors
/// [`Error::Output`] if the system does not let us listen.
pub fn signals() -> Result<impl Fn() -> Option<&'static str>> {
    let (came, which) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    for (signal, name) in SIGNALS {
        // `nohup` and shells without job control have programs ignore some; that holds for us too
        if is_ignored(signal) {
            continue;
        }
        let failed = |e| Error::Output(format!("signals: {name} cannot be listened for ({e})"));
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&came)).map_err(failed)?;
        signal_hook::flag::register_usize(signal, Arc::clone(&which), signal as usize).map_err(failed)?;
        signal_hook::flag::register(signal, Arc::clone(&came)).map_err(failed)?;
    }
    Ok(move || {
        let signal = which.load(Ordering::SeqCst) as i32;
        SIGNALS.iter().find(|(number, _)| *number == signal).map(|(_, name)| *name)
    })
}

/// True where the system tells that a signal is ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}
