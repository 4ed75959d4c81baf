//! Standard output. Commands print without looking; whether all of it was taken is asked once, at the end. Names that are
//! printed may hold anything: what leaves here has no control characters but the ends of lines and tabs of our own.

use std::fmt::{Arguments, Display};
use std::io::{self, ErrorKind, Write as _};
use std::sync::{Mutex, PoisonError};

use wgpt::error::{Error, Fault, Result};
use wgpt::files::visible;

use super::text::harmless;

/// The first error of writing.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints one line, whatever names in it hold.
pub fn line(text: Arguments) {
    note(writeln!(io::stdout(), "{}", visible::line(&text.to_string())));
}

/// Prints text that has its own line ends.
pub fn text(text: &str) {
    note(io::stdout().write_all(harmless(text).as_bytes()));
}

/// Prints JSON.
pub fn json(value: &impl Display) {
    note(writeln!(io::stdout(), "{}", visible::json(&value.to_string())));
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
