//! Signals that end a command after it has saved its work.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use signal_hook::consts;

use wgpt::error::{Error, Result};
use wgpt::files::visible;
use wgpt::run::CurrentPhase;

/// The signals that a command handles.
#[cfg(unix)]
const SIGNALS: [(i32, &str); 6] = [
    (consts::SIGINT, "SIGINT"),
    (consts::SIGTERM, "SIGTERM"),
    (consts::SIGHUP, "SIGHUP"),
    (consts::SIGUSR1, "SIGUSR1"),
    (consts::SIGUSR2, "SIGUSR2"),
    (SIGXCPU, "SIGXCPU"),
];
#[cfg(not(unix))]
const SIGNALS: [(i32, &str); 2] = [(consts::SIGINT, "SIGINT"), (consts::SIGTERM, "SIGTERM")];

/// The kernel repeats it every second once a process has used up its CPU time, so a second one has no meaning.
#[cfg(unix)]
const SIGXCPU: i32 = consts::SIGXCPU;
#[cfg(not(unix))]
const SIGXCPU: i32 = -1;

/// Exit code of a run that a signal has stopped and that can be resumed.
const STOPPED: i32 = 75;
/// Exit code after a second signal.
const AT_ONCE: i32 = 130;
/// How long a process that ends waits for its last line to be written.
const PATIENCE: Duration = Duration::from_millis(500);

/// A command's reaction to a signal.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    /// It stops as soon as it can, and saves. The text follows the signal's name; an empty one prints nothing.
    Stops(&'static str),
    /// The process ends at once.
    Ends(&'static str),
    /// The command ignores the signal.
    None,
}

impl Answer {
    /// Returns the reaction of a run in its current phase.
    pub fn of(phase: &CurrentPhase) -> Self {
        let phase = phase.get();
        if phase.has_nothing_to_save() { Self::Ends(phase.answer()) } else { Self::Stops(phase.answer()) }
    }

    /// Returns the same reaction without a text.
    #[must_use]
    pub fn silent(self) -> Self {
        match self {
            Self::Stops(_) => Self::Stops(""),
            Self::Ends(_) => Self::Ends(""),
            Self::None => Self::None,
        }
    }
}

/// Makes a write beyond the size that a file may have (`ulimit -f`) an error, as on a full disk. By default the kernel
/// ends the process.
pub fn survive_large_files() {
    #[cfg(unix)]
    {
        // a handler that does nothing; where it cannot be installed, nothing has changed
        let _ = signal_hook::flag::register(consts::SIGXFSZ, Arc::default());
    }
}

/// Listens for signals on its own thread. The first one is answered by a line on standard error, whatever the command
/// is doing. A second one ends the process at once. Returns a function that returns the name of the signal that has
/// arrived.
///
/// # Errors
/// [`Error::Output`] if the handlers cannot be installed.
pub fn listen(answer: impl Fn() -> Answer + Send + 'static) -> Result<impl Fn() -> Option<&'static str>> {
    let which = Arc::new(AtomicUsize::new(0));
    let noted = Arc::clone(&which);
    // `nohup` and shells without job control make programs ignore some: these stay ignored
    let heard: Vec<i32> = SIGNALS.iter().map(|(signal, _)| *signal).filter(|signal| !is_ignored(*signal)).collect();
    deliver(heard, move |signal| {
        let Some(name) = name_of(signal) else { return };
        let first = name_of(noted.load(Ordering::SeqCst) as i32);
        match (first, answer()) {
            (_, Answer::None) => {}
            // before the command can see the signal and end with its own line
            (None, Answer::Ends(text)) => end(&said(name, text), STOPPED),
            (None, Answer::Stops(text)) => {
                noted.store(signal as usize, Ordering::SeqCst);
                if !text.is_empty() {
                    say(format!("{}; a second signal ends the run without saving", said(name, text)));
                }
            }
            (Some(_), _) if signal == SIGXCPU => {}
            (Some(first), _) if first == name => end(&format!("{name} again: ended without saving"), AT_ONCE),
            (Some(first), _) => end(&format!("{name} after {first}: ended without saving"), AT_ONCE),
        }
    })
    .map_err(|e| Error::output(format!("signals: handlers cannot be installed ({e})")))?;
    Ok(move || name_of(which.load(Ordering::SeqCst) as i32))
}

/// Returns the line about a signal: its name and `text`, or nothing without a text.
fn said(name: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{name}: {text}") }
}

fn name_of(signal: i32) -> Option<&'static str> {
    SIGNALS.iter().find(|(number, _)| *number == signal).map(|(_, name)| *name)
}

/// Calls `call` with every signal that arrives from now on, on another thread.
#[cfg(unix)]
fn deliver(heard: Vec<i32>, call: impl Fn(i32) + Send + 'static) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new(heard)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || signals.forever().for_each(call)).map(drop)
}

#[cfg(not(unix))]
fn deliver(heard: Vec<i32>, call: impl Fn(i32) + Send + 'static) -> std::io::Result<()> {
    let came = Arc::new(AtomicUsize::new(0));
    for signal in heard {
        signal_hook::flag::register_usize(signal, Arc::clone(&came), signal as usize)?;
    }
    let look = move || {
        loop {
            std::thread::sleep(Duration::from_millis(50));
            match came.swap(0, Ordering::SeqCst) {
                0 => {}
                signal => call(signal as i32),
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(look).map(drop)
}

/// Writes a line to standard error on its own thread, because the reader may be gone or suspended. The receiver gets a
/// message when it is written.
fn say(text: String) -> Receiver<()> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut err = std::io::stderr();
        // over the progress line, which is drawn again below
        let erase = if err.is_terminal() { "\r\x1b[K" } else { "" };
        let _ = writeln!(err, "{erase}{}", visible::line(&text));
        let _ = tell.send(());
    });
    told
}

/// Ends the process, whatever its other threads are doing.
fn end(text: &str, code: i32) {
    if !text.is_empty() {
        let _ = say(text.to_owned()).recv_timeout(PATIENCE);
    }
    signal_hook::low_level::exit(code);
}

/// Returns whether a signal is ignored, where the system shows that.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}
