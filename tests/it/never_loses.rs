//! Runs of the program that are killed from outside, again and again, at any time. They end with the bits of an
//! undisturbed run, and no line of their records is lost or doubled.
//!
//! `WGPT_KILLS=10000` makes this a soak test (tools/soak). A kill takes more than half a second.
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wgpt::data::{Mt19937, Stories};

use crate::common::not_run::not_run;
use crate::common::program::{FOUR_LANES, program};

/// Kills in a run of the tests.
const KILLS: u32 = 25;
/// Steps of each run.
const STEPS: usize = 400;
/// Kills that must fall inside the save of a checkpoint, of [`KILLS`].
const IN_SAVES: u32 = 5;

/// The smallest model, with everything that a run does in addition to its steps.
const FLAGS: [&str; 26] = [
    "--log-every",
    "1",
    "--text",
    "text.txt",
    "--tokenizer",
    "bytes",
    "--layers",
    "1",
    "--heads",
    "1",
    "--channels",
    "8",
    "--context",
    "8",
    "--batch",
    "1",
    "--tokens-per-step",
    "16",
    "--val-every",
    "50",
    "--val-steps",
    "2",
    "--sample-every",
    "111",
    "--checkpoint-every",
    "2",
];

fn start(dir: &Path, out: &str) -> Child {
    let mut command = program();
    command.arg("train").args(FLAGS).args(["--steps", &STEPS.to_string(), "--out", out]);
    command.env("WGPT_QUIET", "1").env("WGPT_CACHE", dir.join("cache"));
    command.current_dir(dir).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

/// The end of a process that was to be killed.
enum End {
    Killed,
    Done,
}

/// The event from which the time of a kill is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    FromStart,
    FromFirstStep,
    /// From a save that is seen to have begun.
    InSave,
}

/// Returns whether a checkpoint does not have its final name yet: it is being written, or its save was interrupted.
fn saves(run: &Path) -> bool {
    let names = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    names.into_iter().any(|name| name.file_name().to_string_lossy().ends_with(".tmp"))
}

/// Starts the run once and kills it some time `after`.
fn kill_once(dir: &Path, out: &str, when: When, after: Duration) -> End {
    let begin = Instant::now();
    let mut child = start(dir, out);
    let text = BufReader::new(child.stdout.take().expect("piped"));
    let stepped = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stepped);
    // nobody may be stopped by a full pipe
    let reader = std::thread::spawn(move || {
        let lines = text.lines().map_while(std::io::Result::ok);
        lines.for_each(|line| {
            if line.starts_with("step ") {
                flag.store(true, Ordering::SeqCst);
            }
        });
    });
    let mut since = (when == When::FromStart).then_some(begin);
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        let steps_now = stepped.load(Ordering::SeqCst);
        if since.is_none() && steps_now && (when != When::InSave || saves(&dir.join(out))) {
            since = Some(Instant::now());
        }
        if since.is_some_and(|since| since.elapsed() >= after) {
            child.kill().expect("kill");
            break child.wait().expect("wait");
        }
        std::thread::sleep(Duration::from_micros(200));
    };
    reader.join().expect("reader");
    match status.code() {
        None => End::Killed,
        Some(0) => End::Done,
        Some(code) => {
            let mut error = String::new();
            let read = child.stderr.take().map(|mut e| std::io::Read::read_to_string(&mut e, &mut error));
            panic!("exit code {code}: {error} {read:?}")
        }
    }
}

/// The steps of a run without what depends on time, and without its random id.
fn steps_of(run: &Path) -> Vec<String> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics.jsonl");
    let line = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
        line.as_object_mut()
            .expect("an object")
            .retain(|key, _| !["ms", "tokens_per_s", "pause_ms", "run"].contains(&key.as_str()));
        line.to_string()
    };
    text.lines().map(line).collect()
}

/// Kills, how many of them fell inside a save, and the folders of the runs that were killed.
#[derive(Default)]
struct Killed {
    kills: u32,
    in_saves: u32,
    runs: Vec<String>,
}

/// Kills runs until there were `kills` of them, one run after the other, each until it is done.
fn chain(dir: &Path, name: &str, kills: u32, seed: u32) -> Killed {
    let mut random = Mt19937::new(seed);
    let mut killed = Killed { runs: vec![format!("{name}1")], ..Killed::default() };
    while killed.kills < kills {
        // one in eight at any time of the start, two soon after a save was seen, the others among the steps
        let (when, most) = match random.next_u32() % 8 {
            0 => (When::FromStart, 1_200_000),
            1 | 2 => (When::InSave, 4_000),
            _ => (When::FromFirstStep, 80_000),
        };
        let after = Duration::from_micros(u64::from(random.next_u32()) % most);
        let out = killed.runs.last().expect("one").clone();
        match kill_once(dir, &out, when, after) {
            End::Killed => killed.kills += 1,
            End::Done => killed.runs.push(format!("{name}{}", killed.runs.len() + 1)),
        }
        killed.in_saves += u32::from(saves(&dir.join(&out)));
    }
    killed
}

#[test]
fn kills_at_any_time_change_no_bit() {
    let number = |variable: &str| std::env::var(variable).ok().map(|text| text.parse().expect("a number"));
    let (kills, seed) = (number("WGPT_KILLS").unwrap_or(KILLS), number("WGPT_SEED").unwrap_or(1));
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    fs::write(dir.join("text.txt"), Stories::new(7).text(20_000)).expect("text");
    let begin = Instant::now();
    let (left, right) = std::thread::scope(|scope| {
        let left = scope.spawn(|| chain(dir, "a", kills.div_ceil(2), seed));
        let right = scope.spawn(|| chain(dir, "b", kills / 2, seed.wrapping_add(1)));
        (left.join().expect("a"), right.join().expect("b"))
    });
    let (killed, in_saves) = (left.kills + right.kills, left.in_saves + right.in_saves);
    let runs = [left.runs, right.runs].concat();
    let (seconds, count) = (begin.elapsed().as_secs_f64(), runs.len());
    println!("{killed} kills, {in_saves} of them inside a save, in {seconds:.0} s, of {count} runs of {STEPS} steps");
    assert_eq!(killed, kills);
    let expected = u64::from(IN_SAVES) * u64::from(kills) / u64::from(KILLS);
    assert!(u64::from(in_saves) >= expected, "{in_saves} of {kills} kills inside a save, expected {expected}");

    // those that were not done; the others say that they are
    let finish = |out: &str| {
        let output = start(dir, out).wait_with_output().expect("the program ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    ["whole"].into_iter().chain(runs.iter().map(String::as_str)).for_each(finish);
    let whole = steps_of(&dir.join("whole"));
    assert_eq!(whole.len(), STEPS + 1);
    for out in &runs {
        let lines = steps_of(&dir.join(out));
        if let Some(i) = (0..whole.len()).find(|&i| lines.get(i) != Some(&whole[i])) {
            panic!("{out}, line {i}: {:?}, expected {}", lines.get(i), whole[i]);
        }
        assert_eq!(lines.len(), whole.len(), "{out}");
        for file in ["main.log", "samples.txt", "model/model.safetensors"] {
            let read = |out: &str| fs::read(dir.join(out).join(file)).expect(file);
            assert!(read(out) == read("whole"), "{out}: {file} differs");
        }
    }
}

/// Fills a small disk under a run, waits until it says so, makes room again; then starts on one that is too small, and
/// on one that cannot be written.
const DISKS: &str = r#"
mkdir disk small || exit 98
mount -t tmpfs -o size=8m none disk && mount -t tmpfs -o size=256k none small || exit 99
"$@" --out disk/run > log 2> errors &
run=$!
reached() { until grep -q "$1" log; do kill -0 $run 2>/dev/null || { echo "ended before '$1'"; cat log errors; exit 97; }; sleep 0.02; done; }
reached '^step 20/'
cat /dev/zero > disk/ballast 2>/dev/null
reached '^paused: '
sleep 1
grep -q '^resumed: ' log && { echo 'went on without room'; exit 96; }
rm disk/ballast
wait $run || { echo "exit code $?"; cat errors; exit 95; }
grep -q '^resumed: ' log || exit 94
cp -r disk/run filled
"$@" --out small/run > small.log 2> small.errors
[ $? = 6 ] && grep -q 'are free, expected' small.errors || { cat small.errors; exit 93; }
[ -e small/run ] && exit 92
mount -o remount,ro disk
"$@" --out disk/other > ro.log 2> ro.errors
[ $? = 6 ] && grep -q 'Read-only' ro.errors || { cat ro.errors; exit 91; }
"#;

#[test]
fn a_full_disk_costs_time_and_nothing_else() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    fs::write(dir.join("text.txt"), Stories::new(7).text(20_000)).expect("text");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", DISKS, "sh"])
        .arg(root.join("tools/run"))
        .args([env!("CARGO_BIN_EXE_wgpt"), "train"])
        .args(FLAGS)
        .args(["--steps", &STEPS.to_string()])
        .env(FOUR_LANES.0, FOUR_LANES.1)
        .env("WGPT_QUIET", "1")
        .env("WGPT_CACHE", dir.join("cache"))
        .current_dir(dir)
        .output();
    let output = match output {
        Ok(output) if output.status.code() != Some(99) && dir.join("disk").exists() => output,
        other => {
            let why = other.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stderr).into_owned());
            not_run("a full disk", &format!("no disk can be mounted here: {}", why.trim()));
            return;
        }
    };
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{:?}: {text}", output.status.code());
    let whole = start(dir, "whole").wait_with_output().expect("the program ends");
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    assert!(steps_of(&dir.join("filled")) == steps_of(&dir.join("whole")));
    let weights = |out: &str| fs::read(dir.join(out).join("model/model.safetensors")).expect("weights");
    assert!(weights("filled") == weights("whole"));
}
