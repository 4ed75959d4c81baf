//! Commands for a person to copy: they begin as the user began, and are quoted for a shell.

use std::ffi::OsString;
use std::path::Path;

/// Returns a command of this program with these arguments.
pub fn command(arguments: Vec<String>) -> String {
    quoted(&[started_with(), arguments].concat())
}

/// Returns a flag and its path as one word or two: a path with a dash in front would be taken for a flag.
pub fn flag(name: &str, path: &Path) -> Vec<String> {
    let path = path.display().to_string();
    if path.starts_with('-') { vec![format!("{name}={path}")] } else { vec![name.to_owned(), path] }
}

/// Returns the command that continues the run in `out`: this process's own, which names the folder.
pub fn continued(out: &Path, names_folder: bool) -> String {
    let mut words = started_with();
    words.extend(own_arguments().into_iter().filter(|word| word != "--restart"));
    if !names_folder {
        words.extend(flag("--out", out));
    }
    quoted(&words)
}

fn text(words: impl Iterator<Item = OsString>) -> Vec<String> {
    words.map(|word| word.to_string_lossy().into_owned()).collect()
}

fn own_arguments() -> Vec<String> {
    text(std::env::args_os().skip(1))
}

/// The words before this process's own arguments, as the user typed them: `cargo run --release --`, `tools/run` and the
/// program, or the program alone.
fn started_with() -> Vec<String> {
    let program = text(std::env::args_os().take(1)).pop().unwrap_or_else(|| "wgpt".into());
    if let Some(words) = cargo_words(&parent_words(), &own_arguments()) {
        return words;
    }
    // tools/run becomes this process, so that its number is ours
    let runner = std::env::var("WGPT_RUNNER").ok();
    let is_ours = std::env::var("WGPT_RUNNER_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    runner.filter(|_| is_ours).into_iter().chain([program]).collect()
}

/// The words of `cargo run` before the program's arguments, if `parent` is one.
fn cargo_words(parent: &[String], arguments: &[String]) -> Option<Vec<String>> {
    let program = Path::new(parent.first()?).file_stem()?.to_str()?;
    let before = parent.strip_suffix(arguments)?;
    let is_run = program == "cargo" && before.iter().skip(1).any(|word| word == "run" || word == "r");
    let mut words: Vec<String> = is_run.then(|| before.to_vec())?;
    words[0] = "cargo".into();
    if words.last().is_some_and(|word| word != "--") {
        words.push("--".into());
    }
    Some(words)
}

/// The command line of the process that started this one, where the system tells.
#[cfg(target_os = "linux")]
fn parent_words() -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{}/cmdline", std::os::unix::process::parent_id())).unwrap_or_default();
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Elsewhere Cargo's variables tell that it started this process, and the program's folder how it was built.
#[cfg(not(target_os = "linux"))]
fn parent_words() -> Vec<String> {
    let by_cargo = std::env::var_os("CARGO").is_some() && std::env::var_os("CARGO_PKG_NAME").is_some();
    let program = std::env::args_os().next().unwrap_or_default();
    let release = Path::new(&program).components().any(|part| part.as_os_str() == "release");
    let words = ["cargo", "run"].into_iter().chain(release.then_some("--release")).chain(["--"]);
    let words = by_cargo.then(|| words.map(str::to_owned).chain(own_arguments()).collect());
    words.unwrap_or_default()
}

/// Joins words so that a shell takes them apart again.
fn quoted(words: &[String]) -> String {
    let quote = |word: &String| shlex::try_quote(word).map_or_else(|_| word.clone(), std::borrow::Cow::into_owned);
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn cargos_words_are_kept() {
        for (parent, arguments, expected) in [
            ("cargo run --release -- train --steps 3", "train --steps 3", Some("cargo run --release --")),
            ("/opt/bin/cargo run --release train", "train", Some("cargo run --release --")),
            ("cargo r -- train", "train", Some("cargo r --")),
            ("cargo test --release", "train", None),
            ("bash train", "train", None),
        ] {
            assert_eq!(cargo_words(&words(parent), &words(arguments)), expected.map(words), "{parent}");
        }
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        let list = ["train", "--text", "my book.txt", "it's", "--data", "a_*.bin"].map(str::to_owned);
        let line = quoted(&list);
        assert_eq!(shlex::split(&line).unwrap(), list);
        assert!(line.starts_with("train --text 'my book.txt'"), "{line}");
    }
}
