//! Not a test: lists what the tests of this `cargo test` did not run, and fails on a reason that `tests/not-run.txt`
//! does not list. Cargo runs test programs in the order of their names, so this one is the last.

#[path = "common/not_run.rs"]
#[allow(dead_code, reason = "this program only reads")]
mod not_run;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use regex::Regex;

/// What did not run, and why.
type Line = (String, String);

fn main() -> ExitCode {
    // tools that ask for a list of tests must get an empty one
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let filtered = std::env::args().nth(1).is_some_and(|argument| !argument.starts_with('-'));
    let mut lines = recorded(&not_run::folder());
    let runs_ignored = std::env::args().any(|argument| argument.ends_with("ignored"));
    if !filtered && !runs_ignored {
        lines.extend(ignored(root));
    }
    if std::env::var_os(not_run::VARIABLE).is_none() {
        remove_old(&not_run::root(), &not_run::folder());
    }
    if filtered && lines.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("\nnot run: {}", if lines.is_empty() { "nothing".to_owned() } else { lines.len().to_string() });
    for (what, why) in &lines {
        println!("    {what}: {why}");
    }
    let text = fs::read_to_string(root.join("tests/not-run.txt")).expect("tests/not-run.txt");
    let accepted = accepted(&text).unwrap_or_else(|fault| panic!("tests/not-run.txt: {fault}"));
    let unknown: Vec<&Line> =
        lines.iter().filter(|(_, why)| !accepted.iter().any(|pattern| pattern.is_match(why))).collect();
    for (what, why) in &unknown {
        eprintln!("error: {what}: not run: expected a reason of tests/not-run.txt, got `{why}`");
    }
    if unknown.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns the lines that the test programs left in a folder, each once.
fn recorded(folder: &Path) -> BTreeSet<Line> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let text: String = files.filter_map(|file| fs::read_to_string(file.path()).ok()).collect();
    text.lines().filter_map(|line| line.split_once('\t')).map(|(what, why)| (what.into(), why.into())).collect()
}

/// Returns the tests that are ignored, with their reasons, but not those that other tests start.
fn ignored(root: &Path) -> BTreeSet<Line> {
    let mark = r#"#\[(?:cfg_attr\([^"\]]*)?ignore(?: = "([^"]*)")?\)?\][^{]*?fn (\$?\w+)"#;
    let mark = Regex::new(mark).expect("a pattern");
    let mut found = BTreeSet::new();
    for folder in ["src", "tests"] {
        let files = glob::glob(&root.join(folder).join("**/*.rs").to_string_lossy()).expect("a pattern");
        for path in files.flatten() {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let place = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            for captures in mark.captures_iter(&text) {
                let why = captures.get(1).map_or("ignored without a reason", |why| why.as_str());
                if why.starts_with("is started by ") {
                    continue;
                }
                // a macro's name stands for several tests
                let name =
                    captures[2].strip_prefix('$').map_or_else(|| format!(", {}", &captures[2]), |_| String::new());
                found.insert((format!("{place}{name}"), why.to_owned()));
            }
        }
    }
    found
}

/// Reads the patterns of the accepted reasons: lines that are neither empty, nor begin with `#` or a space. The indented
/// lines below one or several patterns say why they are accepted, and no pattern may lack them.
fn accepted(text: &str) -> Result<Vec<Regex>, String> {
    let (mut patterns, mut unexplained) = (Vec::new(), None);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with(' ') {
            unexplained = None;
        } else if !line.is_empty() {
            patterns.push(Regex::new(&format!("^(?:{line})$")).map_err(|e| e.to_string())?);
            unexplained = Some(line);
        } else if let Some(line) = unexplained {
            return Err(format!("`{line}`: nothing below it says why that is accepted"));
        }
    }
    unexplained.map_or(Ok(patterns), |line| Err(format!("`{line}`: nothing below it says why that is accepted")))
}

/// Removes the record that was printed, and those of runs that never printed theirs.
fn remove_old(root: &Path, printed: &Path) {
    let _ = fs::remove_dir_all(printed);
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let modified = entry.metadata().and_then(|data| data.modified());
        let age = modified.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        if age.is_some_and(|age| age > Duration::from_secs(24 * 60 * 60)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
