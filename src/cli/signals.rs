//! Signals that end a command when it has saved what it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use wgpt::error::{Error, Result};

/// Signals that are listened for.
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
pub fn listen() -> Result<impl Fn() -> Option<&'static str>> {
    let (came, which) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    for (signal, name) in SIGNALS {
        // `nohup` and shells without job control have programs ignore some; that holds for us too
        if is_ignored(signal) {
            continue;
        }
        let failed = |e| Error::output(format!("signals: {name} cannot be listened for ({e})"));
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
