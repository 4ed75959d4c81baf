//! A signal in any phase of a run is answered within a second, and nothing is lost.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::common::program::{Outcome, SMALL, program, same, text_file, wgpt_with};

const FLAGS: [&str; 21] = [
    "train",
    "--text",
    "text.txt",
    "--batch",
    "2",
    "--context",
    "16",
    "--steps",
    "60",
    "--tokens-per-step",
    "64",
    "--val-every",
    "30",
    "--sample-every",
    "30",
    "--hellaswag",
    "q.jsonl",
    "--hellaswag-every",
    "20",
    "--checkpoint-every",
    "10",
];

/// Runs `wgpt` to its end. Kernels are compiled without optimizations, as in `tests/it`, whose cache has them then.
fn wgpt(dir: &Path, args: &[&str]) -> Outcome {
    wgpt_with(dir, &[("GALLIVM_PERF", Path::new("nopt"))], args)
}

/// Files for these flags.
fn files(dir: &Path) {
    // a validation of some 300 batches
    text_file(dir, "text.txt", 100_000);
    let question = "{\"ctx\": \"Once\", \"endings\": [\" a time\", \" the sea\", \" b\", \" it\"], \"label\": 1}\n";
    fs::write(dir.join("q.jsonl"), question.repeat(192)).expect("write");
}

/// A running process, and the lines of its standard error with the times at which they arrived.
struct Started {
    id: u32,
    lines: Receiver<(Instant, String)>,
    waiter: std::thread::JoinHandle<Option<i32>>,
}

impl Started {
    /// Starts a command that prints its phases.
    fn new(dir: &Path, args: &[&str]) -> Self {
        let mut command = program();
        command.args(args).arg("-v").current_dir(dir);
        command
            .env("GALLIVM_PERF", "nopt")
            .env("WGPT_QUIET", "1")
            .env("WGPT_CACHE", dir.join("cache"))
            .env_remove("RUST_LOG");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let (send, lines) = channel();
        let err = BufReader::new(child.stderr.take().expect("piped"));
        std::thread::spawn(move || {
            for line in err.lines().map_while(std::io::Result::ok) {
                let _ = send.send((Instant::now(), line));
            }
        });
        Self { id: child.id(), lines, waiter: std::thread::spawn(move || child.wait().ok()?.code()) }
    }

    /// Waits for a line that contains `text`.
    #[track_caller]
    fn line(&self, text: &str) -> (Instant, String) {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(Duration::from_secs(60)) {
                Ok((at, line)) if line.contains(text) => return (at, line),
                Ok((_, line)) => seen.push(line),
                Err(error) => panic!("`{text}` did not come ({error}): {seen:#?}"),
            }
        }
    }

    /// Sends signals, right after one another.
    fn send(&self, signals: &[&str]) -> Instant {
        let id = self.id;
        let text: Vec<String> = signals.iter().map(|signal| format!("kill -{signal} {id}")).collect();
        let begin = Instant::now();
        assert!(Command::new("sh").args(["-c", &text.join(" && ")]).status().expect("sh").success());
        begin
    }

    /// Sends a signal in a phase. Returns the answer, which must come within a second.
    #[track_caller]
    fn answer(&self, phase: &str, signal: &str) -> String {
        self.line(&format!("phase: {phase}"));
        let signals = [signal, signal];
        let sent = self.send(if signal == "XCPU" { &signals } else { &signals[..1] });
        let (at, line) = self.line(&format!("SIG{signal}: "));
        let took = at.saturating_duration_since(sent);
        assert!(took < Duration::from_secs(1), "{signal}, {phase}: {took:?} until `{line}`");
        line
    }

    fn code(self) -> Option<i32> {
        self.waiter.join().expect("wait")
    }
}

#[test]
fn a_signal_is_answered_at_once_in_every_phase_and_the_run_keeps_its_bits() {
    let _turn = super::with_others();
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    files(dir);
    let flags = |out: &'static str| [&FLAGS[..], &SMALL, &["--out", out]].concat();
    wgpt(dir, &flags("whole")).ends_with(0);
    // those that a run may have left before the signal is there have no words of their own
    for (phase, signal, says) in [
        ("opening the device", "USR2", ""),
        ("compiling kernels", "INT", ""),
        ("validating", "HUP", "stopping after this validation batch, then saving; a second signal ends"),
        ("measuring HellaSwag", "TERM", "stopping after this part of HellaSwag's questions, then saving"),
        ("saving a checkpoint", "USR2", ""),
        ("writing a sample", "USR1", "stopping after this token of the sample, then saving"),
        // a process that has used up its CPU time gets this one every second
        ("training", "XCPU", ""),
    ] {
        let run = Started::new(dir, &flags("run"));
        let answer = run.answer(phase, signal);
        assert!(answer.contains(says), "{phase}: {answer}");
        assert!(answer.contains("nothing to save") || answer.contains("a second signal ends"), "{phase}: {answer}");
        assert_eq!(run.code(), Some(75), "{phase}: {answer}");
    }
    wgpt(dir, &flags("run")).ends_with(0);
    same(&dir.join("whole"), &dir.join("run"));
}

#[test]
fn a_run_that_reads_its_data_ends_at_once() {
    let _turn = super::with_others();
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let text = wgpt::data::Stories::new(7).text(100_000);
    fs::write(dir.join("text.txt"), text.repeat(300)).expect("write");
    let args = ["train", "--text", "text.txt", "--layers", "1", "--heads", "2", "--channels", "32", "--out", "run"];
    let run = Started::new(dir, &args);
    let answer = run.answer("reading", "USR1");
    assert!(answer.ends_with("SIGUSR1: ended while reading data and weights, with nothing to save"), "{answer}");
    let begin = Instant::now();
    assert_eq!(run.code(), Some(75));
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert!(!dir.join("run").exists());
}

#[test]
fn a_second_signal_ends_a_run_unsaved() {
    let _turn = super::with_others();
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    files(dir);
    let run = Started::new(dir, &[&FLAGS[..], &SMALL, &["--out", "run"]].concat());
    run.line("phase: validating");
    run.send(&["TERM", "INT"]);
    let (_, said) = run.line("ended without saving");
    // either may be heard first
    let orders = ["SIGINT after SIGTERM: ended without saving", "SIGTERM after SIGINT: ended without saving"];
    assert!(orders.contains(&&*said), "{said}");
    assert_eq!(run.code(), Some(130));
}

#[test]
fn a_run_that_waits_for_its_disk_can_be_ended() {
    let _turn = super::with_others();
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    files(dir);
    let run = Started::new(dir, &[&FLAGS[..], &SMALL, &["--out", "run"]].concat());
    run.line("phase: validating");
    // no checkpoint can be written
    fs::rename(dir.join("run/checkpoints"), dir.join("run/aside")).expect("rename");
    fs::write(dir.join("run/checkpoints"), "in the way").expect("write");
    let answer = run.answer("waiting for the disk", "TERM");
    assert!(answer.contains("ending without saving, because the disk does not accept writes"), "{answer}");
    assert_eq!(run.code(), Some(6));
}
