//! Named places at which a test ends the process as `kill -9` does: the tests of `run::session` visit every one.

use std::sync::atomic::{AtomicU64, Ordering};

/// All of them, in the order in which a run comes by.
pub const POINTS: [&str; 20] = [
    "resume: locked",
    "resume: before a record is cut back",
    "resume: before the first weights",
    "run: data noted",
    "run: validated",
    "records: between metrics and log",
    "run: first step",
    "run: before a snapshot",
    "save: records on disk",
    "save: folder made",
    "save: a file written",
    "save: manifest written",
    "save: before the rename",
    "save: renamed",
    "save: verified",
    "save: note of the first one written",
    "save: an older one renamed",
    "run: before the model",
    "run: after the model",
    "run: sampled",
];

/// The variable that names a point, and behind `#` how many visits it survives.
pub const VARIABLE: &str = "WGPT_KILL_POINT";

static VISITS: AtomicU64 = AtomicU64::new(0);

/// Ends the process if this is the point that the environment names.
pub fn visit(name: &str) {
    assert!(POINTS.contains(&name), "`{name}` is not listed");
    let Ok(wanted) = std::env::var(VARIABLE) else { return };
    let (wanted, visits) = wanted.split_once('#').unwrap_or((&wanted, "0"));
    if wanted == name && VISITS.fetch_add(1, Ordering::SeqCst) >= visits.parse().unwrap_or(0) {
        let _ = signal_hook::low_level::raise(signal_hook::consts::SIGKILL);
    }
}
