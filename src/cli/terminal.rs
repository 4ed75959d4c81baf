//! The status lines and, on a terminal, a progress bar.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use wgpt::run::Screen;
use wgpt::train::Trainer;
use wgpt::units;

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
        let _ = writeln!(std::io::stderr(), "{}", wgpt::files::visible::line(&format!($($text)*)));
    }};
}
pub(super) use remark;

/// Plain lines on standard output; on a terminal a bar below them on standard error.
pub struct Terminal<'a> {
    bar: Option<ProgressBar>,
    header: &'a dyn Fn(&Trainer, &Path),
}

impl<'a> Terminal<'a> {
    /// A bar only where somebody looks at it.
    pub fn new(steps: usize, header: &'a dyn Fn(&Trainer, &Path)) -> Self {
        let bar = (std::io::stderr().is_terminal() && std::io::stdout().is_terminal()).then(|| {
            let bar = ProgressBar::new(steps as u64);
            if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, header }
    }
}

impl Screen for Terminal<'_> {
    fn begins(&mut self, trainer: &Trainer, dir: &Path) {
        match &self.bar {
            Some(bar) => bar.suspend(|| (self.header)(trainer, dir)),
            None => (self.header)(trainer, dir),
        }
    }

    fn line(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say!("{text}")),
            None => say!("{text}"),
        }
    }

    fn progress(&mut self, step: usize, _steps: usize, eta: Option<Duration>) {
        let Some(bar) = &self.bar else { return };
        bar.set_position(step as u64);
        if let Some(eta) = eta {
            bar.set_message(format!("{} left", units::clock(eta)));
        }
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
