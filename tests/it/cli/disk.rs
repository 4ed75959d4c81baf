//! Runs whose disk is full, or whose folder changes while they run.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::{SMALL, program, same, text_file, wgpt};

const FLAGS: [&str; 15] = [
    "train",
    "--text",
    "text.txt",
    "--batch",
    "2",
    "--context",
    "16",
    "--steps",
    "300",
    "--val-every",
    "100",
    "--sample-every",
    "150",
    "--checkpoint-every",
    "100",
];

/// A run at work whose standard output is in the file `log`.
struct Started(Child);

impl Started {
    fn new(dir: &Path, out: &str) -> Self {
        let mut command = program();
        command.args(FLAGS).args(SMALL).args(["--out", out]).current_dir(dir);
        command.env("WGPT_QUIET", "1").env("WGPT_CACHE", dir.join("cache"));
        let file = |name: &str| File::create(dir.join(name)).expect("the test's folder can be written");
        Self(command.stdout(file("log")).stderr(file("errors")).spawn().expect("the program starts"))
    }

    /// Limits the size of files that the run may write from now on, a number of bytes or `unlimited`. Not before its
    /// first step: software Vulkan keeps its memory in a file.
    fn limit(&self, bytes: &str) {
        let (id, limit) = (self.0.id().to_string(), format!("--fsize={bytes}:unlimited"));
        assert!(Command::new("prlimit").args(["--pid", &id, &limit]).status().expect("prlimit").success());
    }

    /// A run that a limit has paused at its first checkpoint: records fit, checkpoints do not.
    fn paused(dir: &Path, out: &str) -> Self {
        let mut run = Self::new(dir, out);
        run.says(dir, "step 1/");
        run.limit("60000");
        run.says(dir, "paused: ");
        run
    }

    #[track_caller]
    fn says(&mut self, dir: &Path, line: &str) {
        let begin = Instant::now();
        while !fs::read_to_string(dir.join("log")).expect("log").lines().any(|there| there.starts_with(line)) {
            let ended = self.0.try_wait().expect("wait");
            let errors = || fs::read_to_string(dir.join("errors")).unwrap_or_default();
            assert!(ended.is_none() && begin.elapsed() < Duration::from_secs(60), "no `{line}`: {}", errors());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn ends_with(&mut self, dir: &Path, code: i32) -> String {
        let found = self.0.wait().expect("wait").code();
        let errors = fs::read_to_string(dir.join("errors")).expect("errors");
        assert_eq!(found, Some(code), "{errors}");
        errors
    }
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("folder");
    text_file(dir.path(), "text.txt", 20_000);
    let whole = [&FLAGS[..], &SMALL, &["--out", "whole"]].concat();
    wgpt(dir.path(), &whole).ends_with(0);
    dir
}

#[test]
fn a_limit_of_file_sizes_pauses_a_run_and_ends_none() {
    let dir = folder();
    let dir = dir.path();
    // SIGXFSZ ends a program that does not expect it
    let mut run = Started::paused(dir, "run");
    let log = fs::read_to_string(dir.join("log")).expect("log");
    assert!(log.contains("File too large") && log.contains("ulimit -f"), "{log}");
    run.limit("unlimited");
    run.says(dir, "resumed: ");
    run.ends_with(dir, 0);
    same(&dir.join("whole"), &dir.join("run"));
}

#[test]
fn a_removed_lock_lets_no_second_run_in_and_stops_none() {
    let dir = folder();
    let dir = dir.path();
    let mut run = Started::paused(dir, "run");
    fs::remove_file(dir.join("run/lock")).expect("the lock");
    let second = wgpt(dir, &[&FLAGS[..], &SMALL, &["--out", "run"]].concat()).ends_with(7);
    assert!(second.err.contains("is in use by"), "{}", second.err);
    run.limit("unlimited");
    run.ends_with(dir, 0);
    assert!(fs::read_to_string(dir.join("run/lock")).expect("the lock is made again").contains("\nrun "));
    same(&dir.join("whole"), &dir.join("run"));
}

#[test]
fn a_report_of_a_stranger_s_run_writes_nothing_outside_its_folder() {
    use std::os::unix::fs::symlink;
    let dir = folder();
    let dir = dir.path();
    let victim = dir.join("victim");
    fs::write(&victim, "precious").expect("write");
    for name in ["report.html.tmp", ".wgpt-.tmp", "config.toml.tmp"] {
        symlink(&victim, dir.join("whole").join(name)).expect("link");
    }
    wgpt(dir, &["report", "whole"]).ends_with(0);
    // in place of the page: replaced or refused, never followed
    let page = dir.join("whole/report.html");
    fs::remove_file(&page).expect("a page");
    symlink(&victim, &page).expect("link");
    wgpt(dir, &["report", "whole"]);
    symlink(dir.join("nothing"), dir.join("page.html")).expect("link");
    wgpt(dir, &["report", "whole", "--out", "page.html"]);
    for name in ["metrics.jsonl", "config.toml"] {
        let path = dir.join("whole").join(name);
        fs::rename(&path, dir.join("aside")).expect("rename");
        symlink(dir.join("aside"), &path).expect("link");
        let refused = wgpt(dir, &["report", "whole", "--out", "other.html"]);
        assert!(refused.code == 3 && refused.err.contains("is a link"), "{name}: {}", refused.err);
        fs::rename(dir.join("aside"), &path).expect("rename");
    }
    assert_eq!(fs::read_to_string(&victim).expect("victim"), "precious");
    assert!(!dir.join("nothing").exists());
}
