//! Commands for a person to copy: they begin with the words that started this process, and are quoted for a shell.

use std::ffi::OsString;
use std::path::Path;

use wgpt::files::shell;

use super::ranks;

/// Returns a command of this program with these arguments.
pub fn command(arguments: impl IntoIterator<Item = impl Into<OsString>>) -> String {
    let words: Vec<OsString> = started_with().into_iter().chain(arguments.into_iter().map(Into::into)).collect();
    quoted(&words)
}

/// Returns a flag and its path as one word or two: a path with a dash in front would be taken for a flag.
pub fn flag(name: &str, path: &Path) -> Vec<OsString> {
    let (mut word, path) = (OsString::from(name), path.as_os_str());
    if path.as_encoded_bytes().starts_with(b"-") {
        word.push("=");
        word.push(path);
        return vec![word];
    }
    vec![word, path.to_owned()]
}

/// Returns the command that continues the run in `out`: this process's own, which names the folder.
pub fn continued(out: &Path, names_folder: bool) -> String {
    let mut arguments = own_arguments();
    arguments.retain(|word| word != "--restart");
    if !names_folder {
        // words after a bare `--` are no flags
        let at = arguments.iter().position(|word| word == "--").unwrap_or(arguments.len());
        arguments.splice(at..at, flag("--out", out));
    }
    launched(arguments)
}

/// Returns a command that starts as many processes as this run has.
pub fn launched(arguments: Vec<OsString>) -> String {
    let launcher = ranks::launcher();
    let line = command(arguments);
    if launcher.is_empty() { line } else { format!("{} {line}", launcher.join(" ")) }
}

fn own_arguments() -> Vec<OsString> {
    std::env::args_os().skip(1).collect()
}

/// Returns the words before this process's arguments, as the user typed them: `cargo run --release --`, `tools/run` and
/// the program, or the program alone.
fn started_with() -> Vec<OsString> {
    let program = std::env::args_os().next().unwrap_or_else(|| "wgpt".into());
    if std::env::var_os(BY_CARGO).is_some() && !parent_has(BY_CARGO) {
        return cargo_words(Path::new(&program));
    }
    // tools/run becomes this process, so that its number is ours
    let runner = std::env::var_os("WGPT_RUNNER");
    let is_ours = std::env::var("WGPT_RUNNER_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    runner.filter(|_| is_ours).into_iter().chain([program]).collect()
}

/// A variable that Cargo sets for the process that it runs, and on Unix becomes. Children of that process inherit it.
const BY_CARGO: &str = "CARGO_MANIFEST_DIR";

/// Returns the words of `cargo run` for a program in the folder of a profile.
fn cargo_words(program: &Path) -> Vec<OsString> {
    let folder =
        program.parent().and_then(Path::file_name).map_or_else(String::new, |f| f.to_string_lossy().into_owned());
    let profile: &[&str] = match folder.as_str() {
        "release" => &["--release"],
        "debug" | "" => &[],
        name => &["--profile", name],
    };
    [&["cargo", "run"], profile, &["--"]].concat().into_iter().map(OsString::from).collect()
}

/// Returns whether the process that started this one has a variable, where the system shows that.
#[cfg(target_os = "linux")]
fn parent_has(variable: &str) -> bool {
    let bytes = std::fs::read(format!("/proc/{}/environ", std::os::unix::process::parent_id())).unwrap_or_default();
    bytes.split(|byte| *byte == 0).any(|word| word.starts_with(format!("{variable}=").as_bytes()))
}

#[cfg(not(target_os = "linux"))]
fn parent_has(_: &str) -> bool {
    false
}

/// Joins words, quoted so that a shell splits them again.
fn quoted(words: &[OsString]) -> String {
    words.iter().map(shell::word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_words_are_those_of_the_profile() {
        for (program, expected) in [
            ("target/release/wgpt", "cargo run --release --"),
            ("/a/target/debug/wgpt", "cargo run --"),
            ("target/fast/wgpt", "cargo run --profile fast --"),
        ] {
            assert_eq!(quoted(&cargo_words(Path::new(program))), expected, "{program}");
        }
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        let list = ["train", "--text", "my book.txt", "it's", "--data", "a_*.bin"].map(str::to_owned);
        let line = quoted(&list.clone().map(OsString::from));
        assert_eq!(shlex::split(&line).unwrap(), list);
        assert!(line.starts_with("train --text 'my book.txt'"), "{line}");
    }
}
