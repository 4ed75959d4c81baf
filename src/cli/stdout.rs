//! Standard output. Commands print without looking; whether all of it was taken is asked once, at the end.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write as _};
use std::sync::{Mutex, PoisonError};

use wgpt::error::{Error, Fault, Result};

/// The first error of writing.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints a line.
pub fn line(text: Arguments) {
    note(writeln!(io::stdout(), "{text}"));
}

/// Prints text that has its own line ends.
pub fn text(text: &str) {
    note(io::stdout().write_all(text.as_bytes()));
}

fn note(written: io::Result<()>) {
    // a reader that has gone away, as `head` does, has seen enough
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        FAILED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// Fails if anything that was printed could not be written, other than to a reader that has gone away.
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
