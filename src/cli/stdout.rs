//! Standard output. Commands print without checking for errors; the first error is reported once, at the end. Names
//! that are printed may contain anything: the output has no control characters other than wgpt's own line ends and
//! tabs.

use std::fmt::{Arguments, Display};
use std::io::{self, ErrorKind, Write as _};
use std::sync::{Mutex, PoisonError};

use wgpt::error::{Error, Fault, Result};
use wgpt::files::visible;

use super::progress::above;
use super::text::harmless;

/// The first error of writing.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints one line, whatever characters names in it have.
pub fn line(text: Arguments) {
    let text = visible::line(&text.to_string());
    note(above(|| writeln!(io::stdout(), "{text}")));
}

/// Prints text that has its own line ends.
pub fn text(text: &str) {
    let text = harmless(text);
    note(above(|| io::stdout().write_all(text.as_bytes())));
}

/// Prints JSON.
pub fn json(value: &impl Display) {
    note(writeln!(io::stdout(), "{}", visible::json(&value.to_string())));
}

fn note(written: io::Result<()>) {
    // a reader that closes the pipe, such as `head`, has seen enough
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        FAILED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// Fails if output could not be written, other than to a reader that has closed the pipe.
///
/// # Errors
/// [`Error::Output`].
pub fn finish() -> Result<()> {
    note(io::stdout().flush());
    match &*FAILED.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(fault(error)),
        None => Ok(()),
    }
}

/// Makes the error of an output that cannot be written.
pub fn fault(error: &io::Error) -> Error {
    let what = format!("cannot be written ({error})");
    Error::output(
        Fault::at("standard output", what).advice("try a disk with more room, or another place for the output"),
    )
}
