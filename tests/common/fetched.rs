//! Programs that tests need and that most machines lack. tools/fetch brings them.

use std::path::Path;
use std::process::Command;

/// Fetches a package unless it is already fetched. Returns its folder, the loader of its C library and the folders of
/// its libraries. `Err` is one line that states why the package is missing: the caller then records its test as not
/// run.
///
/// # Panics
/// If tools/fetch fails for any other reason than that it cannot reach Debian.
pub fn fetched(who: &str, size: &str, what: &str, package: &str) -> Result<[String; 3], String> {
    if !cfg!(target_os = "linux") {
        return Err(format!("{what} not found"));
    }
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/fetch"))
        .args(["-f", who, "-m", size, package, what, package])
        .output()
        .expect("tools/fetch starts");
    let err = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 4)), "tools/fetch ended with exit code {code:?}: {err}");
    let lines: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    let why = || {
        let line = err.lines().last().unwrap_or("tools/fetch printed nothing");
        line.strip_prefix(who).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(line).to_owned()
    };
    lines.try_into().map_err(|_| why())
}
