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
    let mut arguments = own_arguments();
    arguments.retain(|word| word != "--restart");
    if !names_folder {
        // behind a bare `--` there are no flags
        let at = arguments.iter().position(|word| word == "--").unwrap_or(arguments.len());
        arguments.splice(at..at, flag("--out", out));
    }
    command(arguments)
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
    if std::env::var_os(BY_CARGO).is_some() && !parent_has(BY_CARGO) {
        return cargo_words(Path::new(&program));
    }
    // tools/run becomes this process, so that its number is ours
    let runner = std::env::var("WGPT_RUNNER").ok();
    let is_ours = std::env::var("WGPT_RUNNER_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    runner.filter(|_| is_ours).into_iter().chain([program]).collect()
}

/// Cargo sets this for what it runs, and on Unix becomes that process. Children of what it runs inherit it.
const BY_CARGO: &str = "CARGO_MANIFEST_DIR";

/// Returns the words of `cargo run` for a program in the folder of a profile.
fn cargo_words(program: &Path) -> Vec<String> {
    let folder =
        program.parent().and_then(Path::file_name).map_or_else(String::new, |f| f.to_string_lossy().into_owned());
    let profile: &[&str] = match folder.as_str() {
        "release" => &["--release"],
        "debug" | "" => &[],
        name => &["--profile", name],
    };
    [&["cargo", "run"], profile, &["--"]].concat().into_iter().map(str::to_owned).collect()
}

/// True if the process that started this one has a variable, where the system tells.
#[cfg(target_os = "linux")]
fn parent_has(variable: &str) -> bool {
    let bytes = std::fs::read(format!("/proc/{}/environ", std::os::unix::process::parent_id())).unwrap_or_default();
    bytes.split(|byte| *byte == 0).any(|word| word.starts_with(format!("{variable}=").as_bytes()))
}

#[cfg(not(target_os = "linux"))]
fn parent_has(_: &str) -> bool {
    false
}

/// Joins words so that a shell takes them apart again.
fn quoted(words: &[String]) -> String {
    let quote = |word: &String| shlex::try_quote(word).map_or_else(|_| word.clone(), std::borrow::Cow::into_owned);
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
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
            assert_eq!(cargo_words(Path::new(program)).join(" "), expected, "{program}");
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
