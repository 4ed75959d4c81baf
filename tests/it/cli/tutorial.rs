//! TUTORIAL.md does what it says: its commands run as they are, and print what it shows.
//!
//! - A block `sh` of "Ten minutes" is run by `sh -e`, in order, with `wgpt` in `PATH`, in one folder that is empty at
//!   first.
//! - A block `sh` of a later section is run in the root of the repository. It needs neither data nor a device, and
//!   writes nothing.
//! - `<!-- test: Ctrl-C at "TEXT", exit code N -->` before a block interrupts it when a line with TEXT is printed.
//!   Without this comment the exit code is 0.
//! - A block `text` after a block `sh` is all of its standard output.
//! - Other blocks are not run: they build, download or train for hours.
//!
//! In a block `text`, `...` alone stands for any number of lines, and at the end of a line for any rest. A number
//! matches one that differs by at most 15 %, because other adapters round otherwise, and spaces match any number of
//! spaces. All else must be equal.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use regex::Regex;

/// Heading of the part whose commands are run in a folder of their own.
const SMALL_RUN: &str = "Ten minutes";
/// Largest difference of a number from the one shown, relative to the larger of both.
const TOLERANCE: f64 = 0.15;
/// A number, with its thousands separated or not.
const NUMBER: &str = r"(\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?:e[-+]?\d+)?)";

/// Commands of the tutorial, and what it says of them.
#[derive(Debug, PartialEq)]
struct Block {
    /// Number of the line where the block begins, counted from 1.
    line: usize,
    /// The heading of the second level above it.
    section: String,
    commands: String,
    /// The text after whose line Ctrl-C is pressed, and the exit code.
    interrupt: Option<(String, i32)>,
    shown: Option<Vec<String>>,
}

/// Returns the blocks of commands of a document.
fn blocks(document: &str) -> Vec<Block> {
    let comment = Regex::new(r#"^<!-- test: Ctrl-C at "(.+)", exit code (\d+) -->$"#).expect("a pattern");
    let (mut blocks, mut section, mut interrupt) = (Vec::<Block>::new(), String::new(), None);
    let mut lines = document.lines().enumerate();
    // whether a block `text` here would belong to the last block of commands
    let mut is_next = false;
    while let Some((at, line)) = lines.next() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading.to_owned();
        }
        if let Some(found) = comment.captures(line) {
            interrupt = Some((found[1].to_owned(), found[2].parse().expect("an exit code")));
        }
        let Some(kind) = line.strip_prefix("```") else {
            is_next &= line.is_empty();
            continue;
        };
        let inside: Vec<String> =
            lines.by_ref().map(|(_, line)| line.to_owned()).take_while(|line| line != "```").collect();
        match kind {
            "sh" => {
                let (section, interrupt) = (section.clone(), interrupt.take());
                blocks.push(Block { line: at + 1, section, commands: inside.join("\n"), interrupt, shown: None });
            }
            "text" => {
                let block = blocks.last_mut().filter(|block| is_next && block.shown.is_none());
                block.unwrap_or_else(|| panic!("line {}: output without commands", at + 1)).shown = Some(inside);
            }
            _ => {}
        }
        is_next = kind == "sh";
    }
    assert_eq!(interrupt, None, "a comment without a block");
    blocks
}

/// Returns whether a printed line is the one that is shown.
fn is_line(shown: &str, printed: &str) -> bool {
    let number = Regex::new(NUMBER).expect("a pattern");
    let (shown, rest) = shown.strip_suffix("...").map_or((shown, ""), |shown| (shown.trim_end(), ".*"));
    let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    let texts: Vec<String> = number.split(&shown).map(regex::escape).collect();
    let pattern = Regex::new(&format!("^{}{rest}$", texts.join(NUMBER))).expect("a pattern");
    let printed = printed.split_whitespace().collect::<Vec<_>>().join(" ");
    let Some(found) = pattern.captures(&printed) else { return false };
    let value = |text: &str| text.replace(',', "").parse::<f64>().expect("a number");
    number.find_iter(&shown).zip(found.iter().skip(1).flatten()).all(|(shown, printed)| {
        let [shown, printed] = [shown, printed].map(|found| value(found.as_str()));
        (shown - printed).abs() <= TOLERANCE * shown.max(printed)
    })
}

/// Returns whether printed lines are those that are shown.
fn is_output(shown: &[String], printed: &[String]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((first, shown)) if first == "..." => (0..=printed.len()).any(|at| is_output(shown, &printed[at..])),
        Some((first, shown)) => {
            printed.split_first().is_some_and(|(line, printed)| is_line(first, line) && is_output(shown, printed))
        }
    }
}

/// Runs commands and returns what they print.
fn run(block: &Block, dir: &Path, programs: &Path) -> Vec<String> {
    let path = std::env::var("PATH").expect("PATH");
    let err = programs.join("standard-error");
    let mut command = Command::new("sh");
    // as in an interactive shell, Ctrl-C ends the program and not the shell
    command.args(["-e", "-c", &format!("trap : INT\n{}", block.commands)]).current_dir(dir).process_group(0);
    command.env("PATH", format!("{}:{path}", programs.display())).env("WGPT_QUIET", "1");
    // as a reader's driver compiles: its runs compute for longer than that takes
    command.env("GALLIVM_PERF", "");
    command.env("WGPT_CACHE", programs.join("cache")).env_remove("WGPT_TUNING");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(fs::File::create(&err).expect("a file"));
    let mut child = command.spawn().expect("sh");
    let group = rustix::process::Pid::from_child(&child);
    let mut interrupt = block.interrupt.as_ref();
    let mut printed = Vec::new();
    for line in BufReader::new(child.stdout.take().expect("piped")).split(b'\n') {
        // a sample may be no UTF-8
        let line = String::from_utf8_lossy(&line.expect("output")).into_owned();
        if interrupt.take_if(|(text, _)| line.contains(text.as_str())).is_some() {
            rustix::process::kill_process_group(group, rustix::process::Signal::INT).expect("a signal");
        }
        printed.push(line);
    }
    let code = child.wait().expect("waited for").code();
    let expected = block.interrupt.as_ref().map_or(0, |(_, code)| *code);
    let told = || format!("{}\n{}", printed.join("\n"), fs::read_to_string(&err).unwrap_or_default());
    assert_eq!(code, Some(expected), "TUTORIAL.md:{}: exit code of\n{}\n\n{}", block.line, block.commands, told());
    printed
}

/// Makes a folder with a program `wgpt`, as the tutorial asks for.
fn programs(dir: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = format!("#!/bin/sh\nexec '{}/tools/run' '{}' \"$@\"\n", root.display(), env!("CARGO_BIN_EXE_wgpt"));
    let folder = dir.join("programs");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("wgpt"), script).expect("a script");
    fs::set_permissions(folder.join("wgpt"), fs::Permissions::from_mode(0o755)).expect("permissions");
    folder
}

/// Runs the blocks that `choose` accepts, in order.
fn run_those(dir: &Path, programs: &Path, choose: impl Fn(&Block) -> bool) -> usize {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("TUTORIAL.md")).expect("TUTORIAL.md");
    let blocks: Vec<Block> = blocks(&document).into_iter().filter(choose).collect();
    for block in &blocks {
        let begin = std::time::Instant::now();
        let printed = run(block, dir, programs);
        println!("TUTORIAL.md:{}: {:.1} s", block.line, begin.elapsed().as_secs_f64());
        let shown = block.shown.as_deref().unwrap_or(&[]);
        assert!(
            block.shown.is_none() || is_output(shown, &printed),
            "TUTORIAL.md:{}: shown\n{}\n\nprinted\n{}",
            block.line,
            shown.join("\n"),
            printed.join("\n")
        );
    }
    blocks.len()
}

#[test]
fn the_ten_minutes_of_the_tutorial() {
    let dir = tempfile::tempdir().expect("folder");
    let folder = dir.path().join("ten-minutes");
    fs::create_dir(&folder).expect("a folder");
    let ran = run_those(&folder, &programs(dir.path()), |block| block.section == SMALL_RUN);
    assert!(ran >= 10, "{ran} blocks");
}

#[test]
fn the_plans_of_the_tutorial() {
    let dir = tempfile::tempdir().expect("folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ran = run_those(root, &programs(dir.path()), |block| block.section != SMALL_RUN);
    assert!(ran >= 4, "{ran} blocks");
}

#[test]
fn output_is_compared_with_what_is_shown() {
    for (shown, printed, is_same) in [
        ("a\nb", "a\nb", true),
        ("a  b", " a b", true),
        ("a\nb", "a\nc\nb", false),
        ("a\n...\nb", "a\nc\nd\nb", true),
        ("a\n...\nb", "a\nb", true),
        ("...\nb\n...", "b", true),
        ("a", "a\nb", false),
        ("a ...", "a 12 b", true),
        ("a ...", "b a", false),
        ("Kate had a...", "Kate had a hat", true),
        ("1,024 MiB (a+)", "1000 MiB (a+)", true),
        ("step 1/250 | loss 5.57", "step 1/250 | loss 5.5742", true),
        ("loss 5.57", "loss 4.57", false),
        ("loss 5.57", "loss nan", false),
        ("loss 5.57", "loss 5.57 | norm 1", false),
        ("lr 2e-4", "lr 2.0e-4", true),
        ("lr 2e-4", "lr 2.0e-3", false),
    ] {
        let [shown, printed] = [shown, printed].map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(is_output(&shown, &printed), is_same, "{shown:?} {printed:?}");
    }
}

#[test]
fn blocks_of_the_tutorial_are_found() {
    let document = "## A\n```\nno\n```\n```sh\none\ntwo\n```\n\n```text\nout\n```\n\n## B\n\
                    <!-- test: Ctrl-C at \"s 2/\", exit code 75 -->\n```sh\nthree\n```\n";
    let block = |line, section: &str, commands: &str| {
        let (section, commands) = (section.to_owned(), commands.to_owned());
        Block { line, section, commands, interrupt: None, shown: None }
    };
    let expected = [
        Block { shown: Some(vec!["out".to_owned()]), ..block(5, "A", "one\ntwo") },
        Block { interrupt: Some(("s 2/".to_owned(), 75)), ..block(16, "B", "three") },
    ];
    assert_eq!(blocks(document), expected);
}
