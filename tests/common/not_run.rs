//! The record of what tests leave out. Every test that cannot run, or cannot run a part of itself, calls [`not_run`].
//! `tests/what_did_not_run.rs` prints the record at the end of `cargo test` and fails on a reason that
//! `tests/not-run.txt` does not list. The library's own tests include this file too.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Names the folder of the record. Set it for a child process that is a test program itself: otherwise the folder
/// follows from the parent process.
pub const VARIABLE: &str = "WGPT_NOT_RUN";

/// Records that `what` did not run, and why. The line also appears on standard error, past the capture of the test
/// harness.
pub fn not_run(what: &str, why: &str) {
    let line = format!("{what}: {why}").replace('\n', " ");
    say(&format!("not run: {line}"));
    let folder = folder();
    fs::create_dir_all(&folder).expect("the folder of what is not run can be made");
    let path = folder.join(std::process::id().to_string());
    let mut file = fs::OpenOptions::new().append(true).create(true).open(path).expect("a file of what is not run");
    // one write: two tests of a process may get here at once
    file.write_all(format!("{what}\t{}\n", why.replace('\n', " ")).as_bytes()).expect("what is not run is noted");
}

/// Prints a line on standard error, past the capture of the test harness, which swallows the output of tests that pass.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Returns the folder of this run of `cargo test`: the test programs of one run have one parent, which is cargo.
pub fn folder() -> PathBuf {
    std::env::var_os(VARIABLE).map_or_else(|| root().join(parent()), PathBuf::from)
}

/// Returns the folder that contains the records of all runs.
pub fn root() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("not-run")
}

/// Names the parent process. On Linux the name contains the time at which it started, because numbers of processes are
/// used again.
#[cfg(unix)]
fn parent() -> String {
    let id = std::os::unix::process::parent_id();
    let status = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // field 22 counts from the number; the program's name in field 2 may contain spaces
    let began = status.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    format!("{id}-{}", began.unwrap_or("0"))
}

#[cfg(not(unix))]
fn parent() -> String {
    "0".to_owned()
}
