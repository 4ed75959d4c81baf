//! Runs on several devices: with one device's records and weights, whatever ends them in between.

use std::fs;
use std::path::Path;

use super::resume::{same, signal, start, wait_for};
use super::{text_file, wgpt};

const FOUR_RANKS: [&str; 2] = ["--emulate-ranks", "4"];
const TOKENS: [&str; 2] = ["--tokens-per-step", "128"];

fn shared(list: &str) -> Vec<&str> {
    vec!["--devices", list, "--share-device"]
}

/// Runs to the end.
#[track_caller]
fn finish(dir: &Path, out: &str, more: &[&str]) {
    let done = start(dir, out, more).wait_with_output().expect("waited for");
    assert!(done.status.success(), "{out}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn several_devices_leave_what_one_leaves_however_they_end() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 4000);
    let question = "{\"ctx\": \"Once\", \"endings\": [\" a time\", \" the sea\", \" b\", \" it\"], \"label\": 1}\n";
    fs::write(dir.join("q.jsonl"), question.repeat(192)).expect("write");
    let of = |more: &[&'static str]| [&TOKENS, &["--hellaswag", "q.jsonl"], more].concat();
    finish(dir, "one", &of(&FOUR_RANKS));
    // as many ranks as devices, if nothing else is said
    finish(dir, "four", &of(&shared("0,0,0,0")));
    same(&dir.join("one"), &dir.join("four"));

    // killed, then stopped by a signal, each time on another number of devices
    let mut killed = start(dir, "ended", &of(&shared("0,0,0,0")));
    assert!(wait_for(&mut killed, "step 9/"), "the run ended");
    signal(&killed, "-KILL");
    killed.wait().expect("waited for");
    let mut stopped = start(dir, "ended", &of(&shared("0,0")));
    assert!(wait_for(&mut stopped, "step 17/"), "the run ended");
    signal(&stopped, "-INT");
    assert_eq!(stopped.wait().expect("waited for").code(), Some(75));
    // the run's ranks are known, whatever the command says
    finish(dir, "ended", &of(&[]));
    same(&dir.join("one"), &dir.join("ended"));
    finish(dir, "four", &of(&shared("0,0,0,0")));
}

#[test]
fn devices_that_cannot_be_are_refused_with_one_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 3000);
    let text =
        ["train", "--text", "text.txt", "--tokenizer", "bytes", "--batch", "1", "--context", "8", "--steps", "1"];
    let size = ["--layers", "1", "--heads", "1", "--channels", "8"];
    for (flags, code, says) in [
        (&["--devices", "0,0"][..], 2, "comes twice"),
        (&["--devices", "97"], 4, "no adapter is `97`"),
        (&["--devices", "0000:ff:1f.7"], 4, "no adapter is `0000:ff:1f.7`"),
        (&["--devices", ""], 4, "no adapter is ``"),
        (&["--devices", "0", "--device", "0"], 2, "--devices"),
        (
            &["--devices", "0,0,0", "--share-device", "--emulate-ranks", "4", "--tokens-per-step", "32"],
            2,
            "among 1, 2, 4",
        ),
    ] {
        let done = wgpt(dir, &[&text[..], &size, flags].concat());
        assert_eq!(done.code, code, "{flags:?}: {}", done.err);
        assert!(done.err.contains("--device") && done.err.contains(says), "{flags:?}: {}", done.err);
        assert_eq!(done.err.lines().filter(|line| line.starts_with("error")).count(), 1, "{}", done.err);
        assert!(!dir.join("runs").exists(), "{flags:?} left a folder");
    }
    let planned = wgpt(dir, &[&text[..], &size, &["--dry-run", "--devices", "0,1,2,3"]].concat());
    assert_eq!(planned.code, 0, "{}", planned.err);
    assert!(planned.out.contains("exchange out") && planned.out.contains("received sums"), "{}", planned.out);
}

#[test]
fn a_run_keeps_its_ranks_on_other_devices() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 3000);
    finish(dir, "one", &["--steps", "2"]);
    // one rank is not shared by two devices
    let done = start(dir, "one", &[&["--steps", "3"][..], &shared("0,0")].concat()).wait_with_output().expect("waited");
    let text = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{text}");
    assert!(text.contains("2 devices do not share 1 ranks"), "{text}");
}
