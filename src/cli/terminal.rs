//! Lines for people: on standard output, on standard error, and those of a run.

use std::path::Path;
use std::time::Duration;

use terminal_size::{Width, terminal_size_of};

use wgpt::run::Screen;
use wgpt::run::steps::StepLine;
use wgpt::train::Trainer;

use super::progress::{Progress, Steps};

/// Prints one line. What cannot be written is an error at the command's end and no panic: see [`super::stdout`].
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::stdout::line(format_args!($($text)*)) };
}
pub(super) use say;

/// Prints several lines, which no name of a stranger is part of.
macro_rules! say_lines {
    ($($text:tt)*) => { $crate::cli::stdout::text(&(format!($($text)*) + "\n")) };
}
pub(super) use say_lines;

/// Prints one line on standard error, where nobody need listen.
macro_rules! remark {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let text = wgpt::files::visible::line(&format!($($text)*));
        $crate::cli::progress::above(|| {
            let _ = writeln!(std::io::stderr(), "{text}");
        });
    }};
}
pub(super) use remark;

/// Returns the columns of the terminal that standard output is, if it is one.
pub fn columns() -> Option<usize> {
    terminal_size_of(std::io::stdout()).map(|(Width(columns), _)| usize::from(columns))
}

/// The lines of a run on standard output, and its progress below them.
pub struct Terminal<'a> {
    progress: Option<Progress>,
    header: &'a dyn Fn(&Trainer, &Path),
}

impl<'a> Terminal<'a> {
    /// Shows a run, whose header `header` prints.
    pub fn new(progress: Option<Progress>, header: &'a dyn Fn(&Trainer, &Path)) -> Self {
        Self { progress, header }
    }
}

impl Screen for Terminal<'_> {
    fn begins(&mut self, trainer: &Trainer, dir: &Path) {
        (self.header)(trainer, dir);
    }

    fn line(&mut self, text: &str) {
        say!("{text}");
    }

    fn step(&mut self, line: &StepLine) {
        say!("{}", line.within(columns().unwrap_or(usize::MAX)));
    }

    fn progress(&mut self, step: usize, steps: usize, eta: Option<Duration>) {
        if let Some(progress) = &self.progress {
            progress.set(Steps { done: step, all: steps, eta });
        }
    }
}
