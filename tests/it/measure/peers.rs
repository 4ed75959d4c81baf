//! `tools/peers`: it names what ran, ours and theirs take turns, a busy machine gets no ratios, and no peer can hang the others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::common::gpu_check::{read_json, root, succeeded, text};
use crate::common::not_run::not_run;

fn script(path: &Path, body: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, format!("#!/bin/sh\n{body}\n")).expect("script");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("script");
}

/// Our program as a script: logs its calls and says what the real one does. `ms` is a shell expression that sees
/// `$batch` and the `$call`.
fn wgpt(dir: &Path, ms: &str) -> PathBuf {
    let log = dir.join("log");
    let body = format!(
        "[ $1 = profile ] || {{ echo '0: Stub GPU (Vulkan, stub driver 1.0)'; exit; }}
        precision=f16
        while [ $# -gt 0 ]; do case $1 in --batch) batch=$2;; --json) json=$2;; --precision) [ $2 = auto ] || precision=$2;; esac; shift; done
        echo \"ours $precision $batch\" >>'{log}'
        call=$(grep -c 'ours f16' '{log}')
        kernel=matmul_coop.forward
        [ $precision = f16 ] || kernel=matmul_tiled.forward
        printf '{{\\n \"precision\": \"%s\",\\n \"ms\": %s,\\n \"kernels\": [\\n \"%s\"\\n],\\n \"tuned\": \"3 kernels of this adapter\"\\n}}' \\
            $precision $(({ms})) $kernel >\"$json\"",
        log = log.display()
    );
    script(&dir.join("wgpt"), &body);
    log
}

/// PyTorch as a script, which measures 500 ms a turn at the batch that it is given.
fn python(dir: &Path, turn: &str) -> PathBuf {
    let path = dir.join("python3");
    let line = "printf 'pytorch\\tcompile, flash attention\\tbf16\\t%s\\t500.0\\tPyTorch 9\\n' $batch";
    let log = dir.join("log");
    let body = format!(
        "while [ $# -gt 0 ]; do [ $1 = --batch ] && batch=$2; shift; done
        echo READY
        while read -r _; do echo theirs >>'{}'; {turn} {line}; echo DONE; done",
        log.display()
    );
    script(&path, &body);
    path
}

/// Returns the figures, all that was printed, and the seconds.
fn peers(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> (Value, String, f64) {
    let json = dir.join("figures.json");
    let begin = Instant::now();
    let mut command = Command::new(root().join("tools/peers/run"));
    // tools/run starts a program as it is where the user names a driver
    command.env_remove("WGPT_SOFTWARE_HOME").env_remove("WGPT_SOFTWARE").env("VK_DRIVER_FILES", "stub");
    command.arg("--programs").arg(dir).args(arguments).env("WGPT_BENCH_JSON", &json).env("WGPT_PEERS_LOAD", "0");
    let output = command.envs(environment.iter().copied()).output().expect("peers starts");
    let printed = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{printed}");
    (read_json(&json), printed, begin.elapsed().as_secs_f64())
}

fn row<'a>(figures: &'a Value, name: &str, kind: &str) -> &'a Value {
    let rows = figures["peers"].as_array().expect("peers");
    let found = rows.iter().find(|row| row["name"] == name && row["type"] == kind);
    found.unwrap_or_else(|| panic!("no {name} in {kind}: {figures:#}"))
}

#[test]
fn ours_and_theirs_take_turns_and_say_what_ran() {
    let dir = tempfile::tempdir().expect("folder");
    // f16 takes 200 ms in the first turn, 300 in the second
    let log = wgpt(dir.path(), "100 + 100 * call");
    let python = python(dir.path(), "");
    let arguments = ["--batch", "8", "--seconds", "20", "--python", python.to_str().expect("a path")];
    let (figures, printed, _) = peers(dir.path(), &arguments, &[]);
    let calls = fs::read_to_string(log).expect("log");
    assert_eq!(calls, "ours f16 8\nours f32 8\ntheirs\n".repeat(2), "{printed}");
    let (ours, theirs) = (row(&figures, "wgpt", "f16"), row(&figures, "pytorch", "bf16"));
    assert_eq!((&ours["ms"], &ours["turns"], &ours["spread"]), (&json!(250), &json!(2), &json!(0.2)), "{printed}");
    assert_eq!(theirs["ours_over_theirs"], 2, "{printed}");
    assert_eq!(ours["remark"], "Stub GPU, matrix units; 3 kernels of this adapter", "{printed}");
    let plain = row(&figures, "wgpt", "f32");
    assert_eq!(plain["remark"], "Stub GPU; 3 kernels of this adapter", "{printed}");
    assert_eq!((&figures["busy"], &figures["batch"], &figures["turns"]), (&json!(false), &json!(8), &json!(2)));
    assert!(printed.contains("ours is wgpt at f16, batch 8; medians of at most 2 turns"), "{printed}");
}

#[test]
fn a_busy_machine_has_no_ratios() {
    let dir = tempfile::tempdir().expect("folder");
    wgpt(dir.path(), "200");
    let python = python(dir.path(), "");
    let arguments = ["--batch", "8", "--turns", "1", "--seconds", "20", "--python", python.to_str().expect("a path")];
    let (figures, printed, _) = peers(dir.path(), &arguments, &[("WGPT_PEERS_LOAD", "1000")]);
    assert!(printed.contains("not a result: the machine was busy (others used 1000.00 of "), "{printed}");
    assert!(printed.contains("(2.500)"), "{printed}");
    assert_eq!(figures["busy"], true);
    for row in figures["peers"].as_array().expect("peers") {
        assert!(row["ours_over_theirs"].is_null(), "{row}");
    }
    assert_eq!(row(&figures, "pytorch", "bf16")["ms"], 500);
}

/// A process that ends with the test, whatever comes of that.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Measured, not planted: another program that computes on one processor.
#[test]
fn others_on_the_processor_are_seen() {
    if !Path::new("/proc/stat").exists() {
        not_run("others on the processor", "there is no /proc/stat");
        return;
    }
    let dir = tempfile::tempdir().expect("folder");
    wgpt(dir.path(), "200$(sleep 0.5)");
    let other = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("a shell");
    let _ended = Ended(other);
    let arguments = ["--batch", "8", "--turns", "1", "--seconds", "20", "--only", "llmc"];
    let (figures, printed, _) = peers(dir.path(), &arguments, &[("WGPT_PEERS_LOAD", "")]);
    // it shares the processors with other tests
    let others = figures["others_cores"].as_f64().expect("a number");
    assert!(others > 0.2, "others used {others} cores\n{printed}");
}

#[test]
fn missing_peers_say_how_to_get_them() {
    let dir = tempfile::tempdir().expect("folder");
    wgpt(dir.path(), "200");
    let arguments = ["--batch", "8", "--turns", "1", "--seconds", "20", "--python", "/nonexistent/python3"];
    let (figures, printed, _) = peers(dir.path(), &arguments, &[]);
    for hint in
        ["not run: no python3", "pip install torch", "git clone https://github.com/karpathy/llm.c", "--llmc DIR"]
    {
        assert!(printed.contains(hint), "no `{hint}` in\n{printed}");
    }
    for name in ["meganeura", "burn"] {
        let built = root().join(format!("tools/peers/{name}/target/release/peer-{name}")).exists();
        assert!(built || printed.contains(&format!("cargo build --release in tools/peers/{name}")), "{printed}");
    }
    assert_eq!(figures["peers"][0]["ms"], 200);
}

#[test]
fn a_peer_that_hangs_or_dies_loses_nothing_else() {
    for (turn, why) in [("sleep 100;", "took longer than"), ("echo 'it broke' >&2; exit 3;", "it broke")] {
        let dir = tempfile::tempdir().expect("folder");
        wgpt(dir.path(), "200");
        let python = python(dir.path(), turn);
        let arguments = ["--batch", "8", "--seconds", "15", "--python", python.to_str().expect("a path")];
        let (figures, printed, seconds) = peers(dir.path(), &arguments, &[]);
        assert!(seconds < 25.0, "{seconds} s\n{printed}");
        let lost = row(&figures, "pytorch", "-")["remark"].as_str().expect("a remark");
        assert!(lost.starts_with(&format!("not run: {why}")), "{printed}");
        assert_eq!(row(&figures, "wgpt", "f16")["turns"], 2, "{printed}");
    }
}

#[test]
fn our_best_batch_is_found_by_doubling() {
    let dir = tempfile::tempdir().expect("folder");
    // as many tokens a second from 32 on
    let log = wgpt(dir.path(), "batch < 32 ? 100 : 100 * batch / 32");
    let arguments = ["--turns", "1", "--seconds", "30", "--only", "llmc"];
    let (figures, printed, _) = peers(dir.path(), &arguments, &[]);
    assert_eq!((&figures["batch"], &figures["context"]), (&json!(32), &json!(1024)), "{printed}");
    let calls = fs::read_to_string(log).expect("log");
    let tried = "ours f16 8\nours f16 16\nours f16 32\nours f16 64\n";
    assert_eq!(calls, format!("{tried}ours f16 32\nours f32 32\n"), "{printed}");
}

/// Without PyTorch or with it, nothing that a rehearsal prints can be taken for a result.
#[test]
fn rehearsals_take_the_whole_way_and_are_named() {
    use std::io::Write as _;
    let started = |arguments: &[&str]| {
        let mut command = Command::new("python3");
        command.args(arguments).current_dir(root().join("tools/peers")).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).spawn().ok()
    };
    let variants = "eager;eager, flash attention";
    let turns =
        ["pytorch.py", "--rehearse", "--turns", "--seconds", "0.1", "--batches", "8,64", "--variants", variants];
    let Some(mut peer) = started(&turns) else {
        not_run("rehearsals of peers", "python3 not found");
        return;
    };
    peer.stdin.take().expect("a pipe").write_all(b"turn\nturn\n").expect("written");
    let printed = succeeded(&peer.wait_with_output().expect("it ends"));
    let (words, lines): (Vec<&str>, Vec<&str>) = printed.lines().partition(|line| !line.contains('\t'));
    assert_eq!(words, ["READY", "DONE", "DONE"], "{printed}");
    assert!(lines.len() >= 2 && lines.iter().all(|line| line.starts_with("rehearsal\t")), "{printed}");
    assert!(lines.iter().all(|line| line.split('\t').count() == 6), "{printed}");

    let dir = tempfile::tempdir().expect("folder");
    let json = dir.path().join("products.json");
    let products = started(&["products.py", "--rehearse", "--seconds", "2", "--json", &json.to_string_lossy()]);
    let printed = succeeded(&products.expect("python3").wait_with_output().expect("it ends"));
    let figures = read_json(&json);
    assert_eq!(figures["name"], "rehearsal");
    let rows = figures["products"].as_array().expect("products");
    assert!(rows.len().is_multiple_of(15) && rows.iter().any(|row| row["tflops"].is_f64()), "{printed}");
    assert!(
        printed.lines().count() == rows.len() && printed.lines().all(|l| l.starts_with("rehearsal\t")),
        "{printed}"
    );
}
