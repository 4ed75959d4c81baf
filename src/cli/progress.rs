//! The line at the bottom of a terminal: what the program does, and how far it is. Elsewhere a line on standard error
//! where it takes long.

use std::io::{IsTerminal as _, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use wgpt::files::visible;
use wgpt::run::{CurrentPhase, Phase};
use wgpt::units;

use super::terminal::remark;

/// Time between two drawings of the line.
const TICK: Duration = Duration::from_millis(100);
/// Time in a phase before a terminal shows it: most phases are over sooner.
const SOON: Duration = Duration::from_millis(500);
/// Time in a phase before a line tells so where there is no terminal.
const LONG: Duration = Duration::from_secs(10);

/// The line that is drawn, if one is.
static DRAWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Prints above the line at the bottom.
pub fn above<T>(print: impl FnOnce() -> T) -> T {
    // the lock is not held while something is printed: a reader may be slow
    let drawn = DRAWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match drawn {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// Standard error, above the line at the bottom.
pub struct Above;

impl Write for Above {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        above(|| std::io::stderr().write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Removes the line at the bottom, before the last words of the process.
pub fn clear() {
    if let Some(bar) = DRAWN.lock().unwrap_or_else(PoisonError::into_inner).take() {
        bar.finish_and_clear();
    }
}

/// How far the steps of a run are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Steps {
    /// Steps that are done.
    pub done: usize,
    /// Steps of the run.
    pub all: usize,
    /// Time to come, if it is known.
    pub eta: Option<Duration>,
}

/// Shows the phase of a command until it is dropped.
pub struct Progress {
    steps: Arc<Mutex<Steps>>,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows the phases of a command. The terminal has to be that of standard output too if `prints` is true: lines are
    /// printed meanwhile.
    pub fn of(phase: &CurrentPhase, prints: bool) -> Self {
        let on_terminal = std::io::stderr().is_terminal() && (!prints || std::io::stdout().is_terminal());
        let (steps, phase) = (Arc::new(Mutex::new(Steps::default())), phase.clone());
        let (end, ended) = channel();
        let seen = Arc::clone(&steps);
        let show = move || {
            let mut screen = Screen { on_terminal, seen: Seen::new(phase.get()) };
            while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                let steps = *seen.lock().unwrap_or_else(PoisonError::into_inner);
                screen.show(phase.get(), phase.reached(), steps);
            }
        };
        let thread = std::thread::Builder::new().name("progress".into()).spawn(show).ok();
        Self { steps, end: Some(end), thread }
    }

    /// Notes how far the steps are.
    pub fn set(&self, steps: Steps) {
        *self.steps.lock().unwrap_or_else(PoisonError::into_inner) = steps;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        clear();
    }
}

struct Screen {
    on_terminal: bool,
    seen: Seen,
}

impl Screen {
    fn show(&mut self, phase: Phase, parts: Option<(usize, usize)>, steps: Steps) {
        let elapsed = self.seen.in_phase(phase, Instant::now());
        if self.on_terminal {
            self.draw(phase, parts, steps, elapsed);
        } else if self.seen.is_line_due(elapsed) && (phase != Phase::Training || steps.done == 0) {
            let of = parts.map_or_else(String::new, |(done, all)| {
                format!(", {} of {}", units::count(done as u64), units::count(all as u64))
            });
            let name = if phase == Phase::Training { "first step" } else { phase.name() };
            remark!("{name}{of}, {} so far", units::clock(elapsed));
        }
    }

    fn draw(&self, phase: Phase, parts: Option<(usize, usize)>, steps: Steps, elapsed: Duration) {
        let (done, all, text) = match (phase, parts) {
            (Phase::Training, _) if steps.done > 0 => {
                let eta = steps.eta.map_or_else(String::new, |eta| format!("{} left", units::clock(eta)));
                (steps.done, steps.all, eta)
            }
            _ if elapsed < SOON => return,
            (Phase::Training, _) => (0, 0, format!("first step {}", units::clock(elapsed))),
            (_, Some((done, all))) => (done, all, format!("{} {}", phase.name(), units::clock(elapsed))),
            (_, None) => (0, 0, format!("{} {}", phase.name(), units::clock(elapsed))),
        };
        let bar =
            DRAWN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(ProgressBar::no_length).clone();
        let template = if all > 0 { "{bar:40} {pos}/{len} {msg}" } else { "{msg}" };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        if all > 0 {
            bar.set_length(all as u64);
        }
        bar.set_position(done as u64);
        bar.set_message(visible::line(&text));
    }
}

/// The phase that was seen last.
struct Seen {
    phase: Phase,
    since: Instant,
    next_line: Duration,
}

impl Seen {
    fn new(phase: Phase) -> Self {
        Self { phase, since: Instant::now(), next_line: LONG }
    }

    /// Returns the time in the phase.
    fn in_phase(&mut self, phase: Phase, now: Instant) -> Duration {
        if phase != self.phase {
            *self = Self { phase, since: now, next_line: LONG };
        }
        now.duration_since(self.since)
    }

    /// Returns whether a line is due: after 10 s, 20 s, 40 s and so on.
    fn is_line_due(&mut self, elapsed: Duration) -> bool {
        let is_due = elapsed >= self.next_line;
        if is_due {
            self.next_line *= 2;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_rarer_in_a_long_phase() {
        let mut seen = Seen::new(Phase::Reading);
        let begin = seen.since;
        let at = |seen: &mut Seen, phase, second| {
            let elapsed = seen.in_phase(phase, begin + Duration::from_secs(second));
            seen.is_line_due(elapsed)
        };
        let due: Vec<u64> = (0..100).filter(|second| at(&mut seen, Phase::Reading, *second)).collect();
        assert_eq!(due, [10, 20, 40, 80]);
        // a new phase begins its own time
        assert!(!at(&mut seen, Phase::Opening, 100));
        assert!(at(&mut seen, Phase::Opening, 110));
    }
}
