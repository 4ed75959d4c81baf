//! Runs of several processes on software Vulkan, started by MPICH and by Open MPI. They have the bits of one device,
//! whatever ends them.
//!
//! Debian's packages are fetched as the driver is. Other libraries are tried by hand: `WGPT_TEST_MPI` names the
//! commands that start a program under each, separated by commas.

mod failures;
mod runs;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::common::not_run::not_run;
use crate::common::program::{FOUR_LANES, program};

/// A way to start processes.
#[derive(Debug, Clone)]
pub struct Mpi {
    /// The words of its `mpirun`.
    words: Vec<String>,
}

/// Returns the libraries that are found, and records the others as not run.
pub fn libraries() -> &'static [Mpi] {
    static FOUND: OnceLock<Vec<Mpi>> = OnceLock::new();
    FOUND.get_or_init(look_for_libraries)
}

fn look_for_libraries() -> Vec<Mpi> {
    if let Ok(given) = std::env::var("WGPT_TEST_MPI") {
        return given
            .split(',')
            .map(|line| Mpi { words: line.split_whitespace().map(str::to_owned).collect() })
            .collect();
    }
    let tool = root().join("tools/mpi").display().to_string();
    let mut found = Vec::new();
    for name in ["mpich", "openmpi"] {
        let words = vec![tool.clone(), name.to_owned()];
        let tried =
            Command::new(&words[0]).args(&words[1..]).args(["-n", "1", "true"]).output().expect("tools/mpi starts");
        match tried.status.code() {
            Some(0) => found.push(Mpi { words }),
            Some(4) => {
                let err = String::from_utf8_lossy(&tried.stderr).into_owned();
                not_run(
                    &format!("several processes under {name}"),
                    err.lines().last().unwrap_or("tools/mpi says nothing"),
                );
            }
            code => panic!("tools/mpi {name} ended with {code:?}: {}", String::from_utf8_lossy(&tried.stderr)),
        }
    }
    found
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Several processes with the same arguments.
#[derive(Debug, Clone, Default)]
pub struct Ranks {
    /// The number of processes.
    pub count: usize,
    /// The name of the machine on which they pretend to run, if any.
    pub machine: Option<&'static str>,
    /// Additional arguments.
    pub more: Vec<String>,
}

/// Returns several processes with additional arguments.
pub fn ranks(count: usize, more: &[&str]) -> Ranks {
    Ranks { count, more: more.iter().map(|&word| word.to_owned()).collect(), ..Ranks::default() }
}

/// A small model that a rank trains in milliseconds.
const RUN: &str = "train --text text.txt --tokenizer bytes --layers 1 --heads 2 --channels 32 --context 16 --batch 2 \
                   --tokens-per-step 128 --emulate-ranks 4 --steps 24 --lr 1e-2 --val-every 8 --val-steps 3 \
                   --checkpoint-every 5 --sample-every 0 --share-device --precision f32";

/// Makes a folder with words to train on.
pub fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("text.txt"), wgpt::data::Stories::new(7).text(6000)).expect("a text");
    dir
}

fn command(mut command: Command, dir: &Path) -> Command {
    // devices of software would take all cores each
    command.env(FOUR_LANES.0, FOUR_LANES.1);
    command.env("WGPT_QUIET", "1").env("WGPT_CACHE", dir.join("cache")).env("LP_NUM_THREADS", "1");
    command.env_remove("WGPT_TUNING").env_remove("WGPT_MACHINE").current_dir(dir);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Trains in one process on one device.
#[track_caller]
pub fn alone(dir: &Path, out: &str, more: &[&str]) {
    let mut alone = program();
    let words = RUN.split_whitespace().filter(|word| *word != "--share-device");
    alone.args(words).args(["--out", out]).args(more);
    let done = command(alone, dir).output().expect("the program starts");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

impl Mpi {
    /// Starts the run in several processes.
    pub fn start(&self, dir: &Path, out: &str, all: &[Ranks]) -> Child {
        let mut mpirun = Command::new(&self.words[0]);
        mpirun.args(&self.words[1..]);
        for (number, ranks) in all.iter().enumerate() {
            if number > 0 {
                mpirun.arg(":");
            }
            mpirun.args(["-n", &ranks.count.to_string()]);
            if let Some(machine) = ranks.machine {
                mpirun.args(["env", &format!("WGPT_MACHINE={machine}")]);
            }
            mpirun.arg(root().join("tools/run")).arg(env!("CARGO_BIN_EXE_wgpt"));
            mpirun.args(RUN.split_whitespace()).args(["--out", out]).args(&ranks.more);
        }
        command(mpirun, dir).spawn().expect("mpirun starts")
    }

    /// Returns the command that starts any command of the program in several processes.
    pub fn command(&self, dir: &Path, count: usize, args: &str) -> Command {
        let mut mpirun = Command::new(&self.words[0]);
        mpirun.args(&self.words[1..]).args(["-n", &count.to_string()]);
        mpirun.arg(root().join("tools/run")).arg(env!("CARGO_BIN_EXE_wgpt")).args(args.split_whitespace());
        command(mpirun, dir)
    }

    /// Runs to the end.
    pub fn run(&self, dir: &Path, out: &str, all: &[Ranks]) -> Output {
        self.start(dir, out, all).wait_with_output().expect("waited for")
    }

    /// Runs to an end without an error.
    #[track_caller]
    pub fn finish(&self, dir: &Path, out: &str, all: &[Ranks]) {
        let done = self.run(dir, out, all);
        assert!(done.status.success(), "{self:?} {all:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// Panics unless two runs have the same losses and weights.
#[track_caller]
pub fn same(dir: &Path, a: &str, b: &str) {
    let losses = |run: &str| -> Vec<String> {
        let text = fs::read_to_string(dir.join(run).join("metrics.jsonl")).expect("metrics.jsonl");
        let line = |line: &str| {
            let values: BTreeMap<String, serde_json::Value> = serde_json::from_str(line).expect("a line of JSON");
            let kept = ["step", "loss", "grad_norm", "lr", "val_loss"];
            let pairs: Vec<String> = values
                .iter()
                .filter(|(key, _)| kept.contains(&key.as_str()))
                .map(|(k, v)| format!("{k} {v}"))
                .collect();
            pairs.join(", ")
        };
        // the first line has the run's id
        text.lines().filter(|line| line.contains("\"step\"")).map(line).collect()
    };
    assert_eq!(losses(a), losses(b), "{a} and {b}");
    let weights = |run: &str| fs::read(dir.join(run).join("model/model.safetensors")).expect("weights");
    assert!(weights(a) == weights(b), "{a} and {b} have other weights");
}

/// Returns the processes of a run by their rank.
pub fn processes(out: &str) -> BTreeMap<usize, u32> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
        // the program itself, not what has started it
        let is_program = words.iter().any(|word| word.ends_with(b"/wgpt")) && words[0].ends_with(b"wgpt")
            || words[0].windows(8).any(|part| part == b"ld-linux");
        let is_of_run = words.windows(2).any(|two| two[0] == b"--out" && two[1] == out.as_bytes());
        if !is_program || !is_of_run || words.contains(&&b"-n"[..]) {
            continue;
        }
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let rank = environment.split(|byte| *byte == 0).find_map(|line| {
            let (name, value) = std::str::from_utf8(line).ok()?.split_once('=')?;
            ["PMI_RANK", "OMPI_COMM_WORLD_RANK"].contains(&name).then(|| value.parse::<usize>().ok())?
        });
        found.extend(rank.map(|rank| (rank, id)));
    }
    found
}

/// Sends a signal.
pub fn signal(id: u32, name: &str) {
    let sent = Command::new("kill").args([name, &id.to_string()]).status().expect("kill starts");
    assert!(sent.success(), "kill {name} {id}");
}

/// Waits until a run has written the line of a step. Returns false if the run ends first.
pub fn reaches(dir: &Path, out: &str, step: usize, run: &mut Child) -> bool {
    let begin = Instant::now();
    loop {
        let text = fs::read_to_string(dir.join(out).join("metrics.jsonl")).unwrap_or_default();
        if text.lines().any(|line| line.contains(&format!("\"step\":{step},"))) {
            return true;
        }
        if run.try_wait().expect("asked").is_some() {
            return false;
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "{out} does not reach step {step}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the errors that the program printed, without the launcher's own lines.
pub fn errors(done: &Output) -> Vec<String> {
    let err = String::from_utf8_lossy(&done.stderr);
    err.lines().filter(|line| line.starts_with("error: ")).map(str::to_owned).collect()
}
