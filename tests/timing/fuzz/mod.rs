//! Every parser of files from users is fed files that were changed at random. It must not panic, abort, run forever or
//! exceed a limit of memory, and its errors are one line with the exit code of bad input.
//!
//! ```text
//! cargo test --release --test timing fuzz::                          the fixed budget of CI
//! WGPT_FUZZ=50000 cargo test --release --test timing fuzz::parquet    so many executions of a target
//! WGPT_SEED=7 WGPT_FUZZ=1000 cargo test ...                          other changes; a failure prints its seed
//! WGPT_FUZZ_FILE=FILE cargo test ... fuzz::parquet                   one file, as it is
//! ```
//!
//! An input begins as a file of `corpus/TARGET`, which [`seeds`] makes. A file that once did harm is added there. Each
//! input is written to a file before it is tried, so that an input that ends the process can be examined.

mod deep;
pub mod memory;
mod mutate;
mod seeds;
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use wgpt::error::Error;

use mutate::{Frame, Mutator};

/// Time that an execution may take. Machines that are busy with other tests are slow.
const MOST_TIME: Duration = Duration::from_secs(20);

/// A parser.
struct Target {
    name: &'static str,
    /// What of a file's own lengths is made to fit again.
    frame: Frame,
    /// Executions in CI.
    executions: u32,
    /// Reads an input, in a folder of its own.
    run: fn(&Path, &[u8]),
}

/// Panics if a user's file should not cause this error.
fn refused<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let text = error.to_string();
            assert!([2, 3].contains(&error.exit_code()), "exit code {}: {text}", error.exit_code());
            // control characters are for the command line to show
            assert!(text.len() < 25_000, "{} bytes: {text:.2000}", text.len());
            None
        }
    }
}

fn number(variable: &str) -> Option<u32> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}: `{text}` is no number")))
}

/// Makes a folder, in memory if possible.
fn scratch() -> tempfile::TempDir {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() }.expect("a folder")
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/timing/fuzz/corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{}: empty", folder.display());
    paths.iter().map(|path| fs::read(path).expect("a file")).collect()
}

/// Ends the process, and prints the path of the input, if no message arrives for too long.
fn watch(name: &'static str, input: PathBuf) -> mpsc::Sender<()> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        loop {
            match receiver.recv_timeout(MOST_TIME) {
                Ok(()) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let kept = keep(name, &input);
                    eprintln!("{name}: an execution takes more than {MOST_TIME:?}: {}", kept.display());
                    std::process::abort();
                }
            }
        }
    });
    sender
}

/// Copies an input to a file that is kept.
fn keep(name: &str, input: &Path) -> PathBuf {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/fuzz-{name}"));
    let _ = fs::copy(input, &kept);
    kept
}

fn fuzz(target: &Target) {
    let _turn = super::with_others();
    let folder = scratch();
    let (input, inner) = (folder.path().join("input"), folder.path().join("inner"));
    let _limit = memory::Limit::new(input.clone());
    let watched = watch(target.name, input.clone());
    let execute = |bytes: &[u8], what: &str| {
        fs::write(&input, bytes).expect("written");
        fs::create_dir_all(&inner).expect("a folder");
        watched.send(()).expect("somebody watches");
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(&inner, bytes))) {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
            panic!("{}, {what}: {said}; the input is {}", target.name, keep(target.name, &input).display());
        }
    };
    if let Some(file) = std::env::var_os("WGPT_FUZZ_FILE") {
        return execute(&fs::read(&file).expect("the file"), "the file given");
    }
    let seeds = corpus(target.name);
    for (i, seed) in seeds.iter().enumerate() {
        execute(seed, &format!("file {i} of the corpus"));
    }
    let (seed, executions) = (number("WGPT_SEED").unwrap_or(42), number("WGPT_FUZZ").unwrap_or(target.executions));
    let begin = Instant::now();
    for execution in 0..executions {
        let bytes = Mutator::new(seed, target.name, execution).input(&seeds, target.frame);
        execute(&bytes, &format!("execution {execution} of WGPT_SEED={seed}"));
    }
    println!("{}: {executions} executions in {:.1?}, WGPT_SEED={seed}", target.name, begin.elapsed());
}

/// Makes a test of each target.
macro_rules! tests {
    ($($name:ident $frame:ident $executions:literal;)+) => {
        const TARGETS: &[Target] = &[$(Target {
            name: stringify!($name),
            frame: Frame::$frame,
            executions: $executions,
            run: targets::$name,
        }),+];

        $(
            #[test]
            fn $name() {
                fuzz(TARGETS.iter().find(|target| target.name == stringify!($name)).expect("a target"));
            }
        )+
    };
}

#[test]
fn every_folder_of_the_corpus_has_a_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/timing/fuzz/corpus");
    for entry in fs::read_dir(folder).expect("the corpus") {
        let name = entry.expect("an entry").file_name();
        assert!(TARGETS.iter().any(|target| name == *target.name), "{} has no target", name.display());
    }
}

tests! {
    checkpoint_manifest Plain 400;
    checkpoint_saved Plain 1000;
    checkpoint_state Plain 400;
    checkpoint_weights Safetensors 2000;
    config_json Plain 2000;
    config_toml Plain 2000;
    data_files Plain 1000;
    dataset_json Plain 2000;
    hellaswag_bin Plain 2000;
    hellaswag_lines Plain 2000;
    hellaswag_parquet Parquet 1000;
    ids Plain 2000;
    json_lines Plain 300;
    llmc Plain 2000;
    machine_code Plain 2000;
    main_log Plain 2000;
    metrics Plain 2000;
    npy Npy 2000;
    parquet Parquet 600;
    path_pattern Plain 2000;
    path_text Plain 2000;
    recipe Plain 2000;
    recognize Plain 2000;
    safetensors Safetensors 2000;
    safetensors_index Plain 2000;
    shard Plain 2000;
    text_packed Plain 1000;
    tokenizer_json Plain 1000;
    tokenizer_pair Plain 1000;
    tune_record Plain 2000;
}
