//! Runs that are resumed the way people expect: by the command that is printed, by their folder, with more steps, with
//! paths that have moved.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use super::bad_input::refused;
use super::resume::{signal, spawn, wait_for};
use super::{FOUR_LANES, Outcome, SMALL, metrics, same, text_file, train, wgpt};

/// Everything but the text and the folder.
const FLAGS: [&str; 14] = [
    "--batch",
    "2",
    "--context",
    "16",
    "--val-every",
    "7",
    "--val-steps",
    "2",
    "--schedule",
    "constant",
    "--checkpoint-every",
    "5",
    "--log-every",
    "1",
];

/// Arguments of a run on `text` of so many steps.
fn args<'a>(text: &'a str, steps: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--text", text, "--steps", steps][..], &SMALL, &FLAGS, more].concat()
}

/// Stops a run after some steps; returns its last line.
fn stopped(mut child: Child, step: &str) -> String {
    assert!(wait_for(&mut child, step));
    signal(&child, "-TERM");
    let output = child.wait_with_output().expect("wait");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(75), "{text}");
    text.lines().last().unwrap_or_default().to_owned()
}

/// Gives a line to a shell.
fn shell(dir: &Path, line: &str) -> Outcome {
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(dir).env("WGPT_QUIET", "1").env("WGPT_CACHE", dir.join("cache"));
    command.env(FOUR_LANES.0, FOUR_LANES.1);
    let output = command.output().expect("a shell");
    Outcome {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        seconds: 0.0,
    }
}

/// Losses of all steps, as they are written.
fn losses(run: &Path) -> Vec<String> {
    metrics(run).iter().map(|m| format!("{} {} {}", m["step"], m["loss"], m["grad_norm"])).collect()
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("model/model.safetensors")).expect("weights")
}

#[test]
fn a_stopped_run_prints_the_command_that_continues_it() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "it's a text.txt", 20_000);
    wgpt(dir, &args("it's a text.txt", "40", &["--out", "whole"])).ends_with(0);
    // without --out, which a person would have to guess
    let line = stopped(spawn(dir, &args("it's a text.txt", "40", &[])), "step 9/");
    assert!(line.starts_with("SIGTERM: stopped after step ") && line.contains("saved in runs/1"), "{line}");
    let (_, command) = line.split_once("to continue: ").expect("a command");
    assert!(command.contains("tools/run ") && command.ends_with("--out runs/1"), "{command}");
    let out = shell(dir, command).ends_with(0).out;
    assert!(out.contains("resumed  after step "), "{out}");
    same(&dir.join("runs/1"), &dir.join("whole"));
    assert_eq!(fs::read_dir(dir.join("runs")).expect("runs").count(), 1);

    // --restart, given again, would throw the run away; the end of a run names commands that can be copied too
    let again = ["--out", "runs/1", "--restart"];
    let line = stopped(spawn(dir, &args("it's a text.txt", "40", &again)), "step 9/");
    let (_, command) = line.split_once("to continue: ").expect("a command");
    assert!(!command.contains("--restart"), "{command}");
    let out = shell(dir, command).ends_with(0).out;
    assert!(dir.join("runs/1.1/model").exists() && !dir.join("runs/1.2").exists());
    let next = out.lines().find_map(|line| line.strip_prefix("next: ")).expect("a command");
    assert!(shell(dir, &format!("{next} --max-tokens 3")).ends_with(0).out.starts_with("Once upon a time"));
    assert!(out.contains("report: runs/1/report.html"), "{out}");
}

#[test]
fn a_run_is_resumed_by_its_folder_alone() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    wgpt(dir, &args("text.txt", "40", &["--out", "whole"])).ends_with(0);
    for (out, command) in [
        ("a", vec!["train", "--resume", "a"]),
        ("b", vec!["train", "b/"]),
        ("c", vec!["train", "c/config.toml", "--out", "c"]),
    ] {
        let line = stopped(spawn(dir, &args("text.txt", "40", &["--out", out])), "step 9/");
        assert_eq!(line.matches("--out").count(), 1, "{line}");
        wgpt(dir, &command).ends_with(0);
        same(&dir.join(out), &dir.join("whole"));
        let again = wgpt(dir, &command).ends_with(0).out;
        assert!(again.contains("finished after 40 steps"), "{again}");
    }
    // the file of a run is a recipe of another one with the same bits
    wgpt(dir, &["train", "whole/config.toml", "--out", "copy"]).ends_with(0);
    same(&dir.join("copy"), &dir.join("whole"));

    // without its flags a folder is another run's, and the message says how to go on
    refused(wgpt(dir, &["train", "--out", "whole"]), 2, &["holds another run", "--resume whole alone"]);
    refused(wgpt(dir, &["train", "--resume", "whole", "--seed", "7"]), 2, &["seed: 42 there, 7 here"]);
    refused(wgpt(dir, &["train", "--resume", "whole", "--out", "d"]), 2, &["--out: d, while whole is resumed"]);
    refused(wgpt(dir, &["train", "--resume", "nothing"]), 3, &["nothing: no such run"]);
    fs::create_dir(dir.join("empty")).expect("folder");
    refused(wgpt(dir, &["train", "--resume", "empty"]), 3, &["empty: holds no run"]);
}

#[test]
fn a_finished_run_becomes_longer_with_the_bits_of_one_that_was_as_long_from_the_start() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    wgpt(dir, &args("text.txt", "24", &["--out", "whole"])).ends_with(0);
    wgpt(dir, &args("text.txt", "12", &["--out", "run"])).ends_with(0);
    assert!(dir.join("run/checkpoints/step-00000012").exists(), "the last step has a checkpoint");
    assert!(wgpt(dir, &["verify", "run"]).ends_with(0).out.contains("sound"));
    let out = wgpt(dir, &["train", "--resume", "run", "--steps", "24"]).ends_with(0).out;
    assert!(out.contains("resumed  after step 12") && out.contains("24 now"), "{out}");
    assert_eq!(losses(&dir.join("run")), losses(&dir.join("whole")));
    assert!(weights(&dir.join("run")) == weights(&dir.join("whole")));
    // the validation after what was the last step is kept
    assert!(metrics(&dir.join("run"))[12]["val_loss"].is_number());
    refused(wgpt(dir, &["train", "run", "--steps", "12"]), 2, &["--steps: 12, but run has done 24 steps"]);

    // a cosine's rate changes with its end, and the header says by how much
    let cosine = [&args("text.txt", "12", &[])[..], &["--schedule", "cosine", "--out", "cosine"]].concat();
    let cosine: Vec<&str> = cosine.into_iter().filter(|word| *word != "constant").collect();
    let at = cosine.iter().position(|word| *word == "--schedule").expect("twice");
    let cosine = [&cosine[..at], &cosine[at + 1..]].concat();
    wgpt(dir, &cosine).ends_with(0);
    let out = wgpt(dir, &["train", "--resume", "cosine", "--steps", "24"]).ends_with(0).out;
    // half of the peak in the middle of 24 steps, nothing at the end of 12
    assert!(out.contains("rate     at step 13: 0.00e0 before, 3.00e-4 now (12 steps before, 24 now)"), "{out}");
}

#[test]
fn a_run_that_is_cut_short_at_its_checkpoint_is_concluded() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    let line = stopped(spawn(dir, &args("text.txt", "400", &["--out", "run"])), "step 9/");
    let step: usize = line.split_whitespace().find_map(|word| word.trim_end_matches(',').parse().ok()).expect("a step");
    refused(wgpt(dir, &["train", "run", "--steps", "3"]), 2, &["--steps: 3", &format!("expected at least {step}")]);
    let out = wgpt(dir, &["train", "run", "--steps", &step.to_string()]).ends_with(0).out;
    assert!(out.contains("saved run/model"), "{out}");
    let lines = metrics(&dir.join("run"));
    assert_eq!(lines.len(), step + 1);
    assert!(lines[step]["val_loss"].is_number(), "the last step is validated: {}", lines[step]);
    let log = fs::read_to_string(dir.join("run/main.log")).expect("log");
    assert!(log.contains(&format!("s:{step} tel:")), "{log}");
    assert!(dir.join("run/model/model.safetensors").exists());
    // and becomes longer again, every line there once
    wgpt(dir, &["train", "run", "--steps", &(step + 9).to_string()]).ends_with(0);
    let longer = metrics(&dir.join("run"));
    assert_eq!(longer.len(), step + 10);
    assert_eq!(longer[step]["val_loss"], lines[step]["val_loss"]);
}

#[test]
fn a_finished_run_without_its_last_checkpoint_is_not_thrown_away() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    wgpt(dir, &args("text.txt", "6", &["--out", "run"])).ends_with(0);
    fs::remove_dir_all(dir.join("run/checkpoints")).expect("checkpoints");
    let before = fs::read(dir.join("run/metrics.jsonl")).expect("metrics");
    refused(wgpt(dir, &["train", "run", "--steps", "9"]), 2, &["no checkpoint of its last step 6"]);
    assert!(fs::read(dir.join("run/metrics.jsonl")).expect("metrics") == before);
}

#[test]
fn the_command_without_steps_takes_those_of_its_run_that_became_longer() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 800);
    let epoch = [&["train", "--text", "text.txt"][..], &SMALL, &FLAGS, &["--out", "run"]].concat();
    wgpt(dir, &epoch).ends_with(0);
    let steps = metrics(&dir.join("run")).len() - 1;
    wgpt(dir, &["train", "run", "--steps", &(steps + 5).to_string()]).ends_with(0);
    let again = wgpt(dir, &epoch).ends_with(0).out;
    assert!(again.contains(&format!("finished after {} steps", steps + 5)), "{again}");
}

#[test]
fn intervals_and_paths_of_the_same_data_may_change() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    wgpt(dir, &args("text.txt", "40", &["--out", "whole"])).ends_with(0);
    stopped(spawn(dir, &args("text.txt", "40", &["--out", "run"])), "step 9/");
    fs::create_dir(dir.join("elsewhere")).expect("folder");
    fs::rename(dir.join("text.txt"), dir.join("elsewhere/moved.txt")).expect("rename");
    refused(wgpt(dir, &["train", "run"]), 3, &["text.txt"]);
    let moved = dir.join("elsewhere/moved.txt").display().to_string();
    let more = ["--val-every", "3", "--checkpoint-every", "9", "--keep", "4", "--out", "run"];
    let flags: Vec<&str> =
        args(&moved, "40", &[]).into_iter().take(13).chain(["--batch", "2", "--context", "16"]).collect();
    let out = wgpt(dir, &[&flags[..], &["--schedule", "constant"], &more].concat()).ends_with(0).out;
    assert!(out.contains("validate all rows now, 4 before"), "{out}");
    assert_eq!(losses(&dir.join("run")), losses(&dir.join("whole")));
    assert!(weights(&dir.join("run")) == weights(&dir.join("whole")));

    // other words of the same length are other data
    let words = fs::read_to_string(&moved).expect("text").replace('a', "e");
    fs::write(dir.join("text.txt"), words).expect("write");
    refused(
        wgpt(dir, &["train", "run", "--text", "text.txt", "--steps", "60"]),
        3,
        &["not those with which run began"],
    );
}

/// The file as the version before recipes wrote it.
fn old_config(steps: usize) -> String {
    format!(
        "[model]\npositions = 16\nvocab = 257\nlayers = 1\nheads = 2\nchannels = 32\n\n[data]\ntext = [\"text.txt\"]\n\
         tokenizer = \"bytes\"\nshuffle = true\n\n[train]\nbatch = 2\ncontext = 16\ntokens_per_step = 32\nsteps = {steps}\n\
         schedule = \"constant\"\nlr = 0.0006\nwarmup = 0\nfinal_lr_frac = 0.0\nweight_decay = 0.1\nclip = 1.0\n\
         beta1 = 0.9\nbeta2 = 0.95\neps = 1e-8\nskip_loss_z = 0.0\nskip_norm_z = 0.0\nprecision = \"f32\"\nseed = 42\n\
         val_every = 7\nval_rows = 4\n\n[run]\nsample_every = 0\ncheckpoint_every = \"5\"\nkeep = 2\nkeep_every = 0\n\
         recompute = \"none\"\non_disk_full = \"pause\"\n"
    )
}

#[test]
fn a_run_of_the_version_before_is_resumed_with_the_same_bits() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    wgpt(dir, &args("text.txt", "40", &["--out", "whole"])).ends_with(0);
    for (out, command) in [("a", vec!["train", "a"]), ("b", args("text.txt", "40", &["--out", "b"]))] {
        stopped(spawn(dir, &args("text.txt", "40", &["--out", out])), "step 9/");
        fs::write(dir.join(out).join("config.toml"), old_config(40)).expect("write");
        wgpt(dir, &["generate", "--from", out, "ab", "--max-tokens", "2"]).ends_with(0);
        wgpt(dir, &command).ends_with(0);
        same(&dir.join(out), &dir.join("whole"));
        let config = fs::read_to_string(dir.join(out).join("config.toml")).expect("config");
        assert!(config.contains("[training]") && config.contains("[record]"), "{config}");
    }
    // what cannot be read is refused with one line
    fs::write(dir.join("a/config.toml"), "[train]\nbatch = 2\n").expect("write");
    refused(
        train(dir, &["--steps", "40", "--out", "a"]),
        2,
        &["is not the configuration of a run", "try another --out"],
    );
}
