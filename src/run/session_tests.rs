//! Whole runs of a tiny model inside this process, in which the device, memory, the disk or numbers fail. `losses` has the
//! device and memory, `kills` processes that end, `hostile` folders that others change.

#[cfg(unix)]
#[path = "session_hostile_tests.rs"]
mod hostile;
#[path = "session_kill_tests.rs"]
mod kills;
#[path = "session_loss_tests.rs"]
mod losses;

use std::cell::{Cell, OnceCell};
use std::fs;
use std::sync::Mutex;

use super::*;
use crate::data::Stories;
use crate::gpu::Options;
use crate::gpu::faults::Call;
use crate::model::init;
use crate::train::Dataset;
use crate::train::Trainer;
use crate::train::settings::resolve::InitWeights;
use crate::train::settings::{Recipe, WhenFull};

/// Settings of a run of six steps that uses every feature: validation, samples, checkpoints, several micro-steps.
fn settings(text: &Path) -> Settings {
    let recipe = format!(
        "[data]\ntext = [{text:?}]\ntokenizer = \"bytes\"\n\
         [model]\nlayers = 1\nheads = 1\nchannels = 8\n\
         [training]\nbatch = 1\ncontext = 8\ntokens-per-step = 16\nsteps = 6\nlr = 1e-2\nwarmup = 2\n\
         [run]\nval-every = 3\nval-limit = 32\nsample-every = 4\ncheckpoint-every = 2\nkeep = 1\n"
    );
    toml::from_str::<Recipe>(&recipe).unwrap().resolve(InitWeights::Random).unwrap()
}

/// Keeps the lines that a run prints.
#[derive(Default)]
struct Lines(Vec<String>);

impl Screen for Lines {
    fn line(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
    fn progress(&mut self, _: usize, _: usize, _: Option<std::time::Duration>) {}
    fn begins(&mut self, _: &Trainer, _: &Path) {}
}

/// Returns a command that starts this test program again.
pub fn this_program() -> std::process::Command {
    // through the runner, because the dynamic loader of a fetched driver hides this program's name
    let program = std::env::args().next().unwrap();
    if cfg!(target_os = "linux") {
        let mut command = std::process::Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/run"));
        command.arg(program);
        command
    } else {
        std::process::Command::new(program)
    }
}

thread_local! {
    static DEVICE: OnceCell<Gpu> = const { OnceCell::new() };
}

/// Returns a handle of this thread's device, which all healthy runs of a test share: its kernels are built once.
fn open() -> Result<Gpu> {
    DEVICE.with(|device| {
        let gpu = device.get_or_init(|| open_anew().unwrap());
        Ok(gpu.with_caps(gpu.caps.clone()))
    })
}

/// Opens a device that may be lost.
fn open_anew() -> Result<Gpu> {
    Gpu::open(&Options::default())
}

/// Trains in `dir/name` on a device that `open` opens, until `stop` returns a signal.
fn train_with(
    dir: &Path,
    name: &str,
    change: &dyn Fn(&mut Settings),
    open: &dyn Fn() -> Result<Gpu>,
    stop: &dyn Fn() -> Option<&'static str>,
) -> (Result<Option<Outcome>>, Vec<String>) {
    train_on(dir, name, change, &|| open().map(|gpu| vec![gpu]), stop)
}

/// Trains as [`train_with`] does, on several devices.
fn train_on(
    dir: &Path,
    name: &str,
    change: &dyn Fn(&mut Settings),
    open: &dyn Fn() -> Result<Vec<Gpu>>,
    stop: &dyn Fn() -> Option<&'static str>,
) -> (Result<Option<Outcome>>, Vec<String>) {
    let text = dir.join("text.txt");
    if !text.exists() {
        fs::write(&text, Stories::new(7).text(3000)).unwrap();
    }
    let mut settings = settings(&text);
    change(&mut settings);
    let config = settings.config();
    let dataset = Dataset::open(&settings.data, 42).unwrap();
    let t = &settings.train;
    let of_ranks = (settings.data.ranks, settings.sizes().accumulation);
    let (loader, rows) = dataset.cut(t.batch, t.context, config.vocab, Some(42), of_ranks).unwrap();
    let session = Session {
        settings: &settings,
        loader: Some(loader),
        rows,
        tokenizer: Some(Tokenizer::Bytes),
        baseline: None,
        extras: Extras::default(),
        out: Some(dir.join(name)),
        restart: false,
        open,
        weights: &|| Ok(init::init(config, 42)),
        stop,
        phase: CurrentPhase::default(),
        hang: None,
        crew: None,
        continues: &|dir| format!("wgpt train --resume {}", dir.display()),
    };
    let mut lines = Lines::default();
    (session.train(&mut lines), lines.0)
}

fn train(dir: &Path, name: &str) -> (Result<Option<Outcome>>, Vec<String>) {
    train_with(dir, name, &|_| (), &open, &|| None)
}

/// Returns everything that a run leaves and that depends neither on time nor on its random id.
fn result(run: &Path) -> (Vec<String>, Vec<Vec<u8>>) {
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|line| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        line.as_object_mut()
            .unwrap()
            .retain(|key, _| !["ms", "pause_ms", "tokens_per_s", "run"].contains(&key.as_str()));
        line.to_string()
    });
    let files = ["main.log", "samples.txt", "model/model.safetensors"];
    // the values of the same steps have the same size; every file begins with an event of forty bytes
    let events = fs::read_dir(run.join("tb")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len() - 40);
    let lines = lines.chain([format!("{} bytes of events", events.sum::<u64>())]);
    (lines.collect(), files.map(|file| fs::read(run.join(file)).unwrap()).into())
}

/// Panics unless a run left the same as an undisturbed one.
#[track_caller]
fn same(dir: &Path, name: &str, what: &str) {
    let ((lines, files), (expected_lines, expected_files)) = (result(&dir.join(name)), result(&dir.join("whole")));
    assert_eq!(lines, expected_lines, "{what}");
    assert!(files == expected_files, "{what}: log, samples or weights differ");
}

/// A folder with an undisturbed run.
fn undisturbed() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    train(dir.path(), "whole").0.unwrap().unwrap();
    let metrics = fs::read_to_string(dir.path().join("whole/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 7);
    dir
}

/// A signal at every check for one: before every micro-step, in validation, in samples.
#[test]
fn a_signal_anywhere_saves_and_the_run_goes_on_with_the_same_bits() {
    let dir = undisturbed();
    let dir = dir.path();
    let asked = Cell::new(0);
    let counted = train_with(dir, "counted", &|_| (), &open, &|| {
        asked.set(asked.get() + 1);
        None
    });
    counted.0.unwrap();
    let most = asked.get();
    assert!(most > 50, "{most}");
    // in one folder, each time a little further, and at single places of a whole run
    let stop_at = |name: &str, at: i32| {
        let asked = Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            (asked.get() > at).then_some("SIGTERM")
        };
        train_with(dir, name, &|_| (), &open, &stop).0
    };
    let mut stops = 0;
    for at in (0..most).step_by(5) {
        let name = format!("stop-{at}");
        match stop_at(&name, at) {
            Err(error) => {
                assert_eq!(error.exit_code(), 75, "{error}");
                stops += 1;
                train(dir, &name).0.unwrap();
            }
            done => drop(done.unwrap()),
        }
        same(dir, &name, &name);
    }
    assert!(stops >= 9, "{stops}");
    let mut rounds = 0;
    while let Err(error) = stop_at("again", 3 + rounds) {
        assert_eq!(error.exit_code(), 75, "{error}");
        rounds += 1;
        assert!(rounds < 200, "no progress");
    }
    same(dir, "again", "again");
}

/// NaN in any weight tensor or gradient: the step changes no bit of weights and moments.
#[test]
fn a_nan_anywhere_changes_nothing() {
    let dir = undisturbed();
    let gpu = open().unwrap();
    let settings = settings(&dir.path().join("text.txt"));
    let config = settings.config();
    let dataset = Dataset::open(&settings.data, 42).unwrap();
    let (mut loader, _) = dataset.cut(1, 8, config.vocab, Some(42), (1, 1)).unwrap();
    let mut trainer = Trainer::new(&gpu, trainer_options(&settings)).unwrap();
    trainer.load(&init::init(config, 42)).unwrap();
    let mut skipped = 0;
    for step in 1..=4 {
        let good = trainer.snapshot().unwrap().unwrap();
        for (tensor, bad) in (0..good.weights.tensors.len()).zip([f32::NAN, f32::INFINITY].into_iter().cycle()) {
            let mut poisoned = good.clone();
            let middle = poisoned.weights.tensors[tensor].len() / 2;
            // the batch may not use a single row of the embeddings, so all rows are set
            let range = if tensor < 2 { 0..poisoned.weights.tensors[tensor].len() } else { middle..middle + 1 };
            poisoned.weights.tensors[tensor][range].fill(bad);
            trainer.restore(&poisoned).unwrap();
            trainer.step(&mut loader, step, 1e-2).unwrap();
            let report = trainer.report(true).unwrap().unwrap();
            skipped += 1;
            let place = format!("step {step}, tensor {tensor}: {report:?}");
            assert_eq!((report.skipped_now, report.skipped), (1, good.control.skipped + 1), "{place}");
            let after = trainer.snapshot().unwrap().unwrap();
            let bits = |w: &Weights| w.tensors.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(&after.weights) == bits(&poisoned.weights), "{place}: weights changed");
            for (after, before) in after.moments.iter().zip(&good.moments) {
                assert!(bits(after) == bits(before), "{place}: moments changed");
            }
            assert_eq!(after.control.updates, good.control.updates, "{place}");
            // a value that is not finite enters neither window
            assert!(after.windows.iter().all(|w| w.values.iter().all(|v| v.is_finite())), "{place}");
        }
        // gradients alone, with finite losses
        trainer.restore(&good).unwrap();
        for (window, _) in trainer.grads().windows(&gpu) {
            trainer.step(&mut loader, step, 0.0).unwrap();
            trainer.report(true).unwrap().unwrap();
            let before = trainer.snapshot().unwrap().unwrap();
            gpu.write(&window.flat(0..1), bytemuck::bytes_of(&f32::NAN)).unwrap();
            trainer.programs()[1].run(&gpu).unwrap();
            let after = trainer.snapshot().unwrap().unwrap();
            assert_eq!(after.control.skipped, before.control.skipped + 1, "step {step}");
            assert!(after.weights == before.weights && after.moments == before.moments, "step {step}: a bit changed");
        }
        trainer.restore(&good).unwrap();
        trainer.step(&mut loader, step, 1e-2).unwrap();
        assert_eq!(trainer.report(true).unwrap().unwrap().skipped_now, 0, "step {step}");
    }
    assert_eq!(skipped, 4 * 16);
}

#[test]
fn without_a_device_s_clock_every_step_is_recorded_once() {
    let dir = undisturbed();
    let dir = dir.path();
    let open = || {
        let mut gpu = open()?;
        gpu.caps.encoder_timestamps = false;
        Ok(gpu)
    };
    train_with(dir, "no-clock", &|_| (), &open, &|| None).0.unwrap();
    same(dir, "no-clock", "no-clock");
}

/// The run waits for a folder that vanishes or cannot be written; with `stop` it ends with exit code 6.
#[test]
fn a_disk_that_fails_pauses_the_run() {
    let dir = undisturbed();
    let dir = dir.path();
    for (policy, when_full) in [("pause", WhenFull::Pause), ("stop", WhenFull::Stop)] {
        let run = dir.join(policy);
        let blocked = Mutex::new(0_u32);
        // a file in the place of checkpoints: nothing can be written into it
        let stop = || {
            let mut calls = blocked.lock().unwrap();
            *calls += 1;
            let (folder, aside) = (run.join("checkpoints"), dir.join("aside"));
            if *calls == 1 {
                fs::rename(&folder, &aside).unwrap();
                fs::write(&folder, "in the way").unwrap();
            } else if *calls == 60 && policy == "pause" {
                fs::remove_file(&folder).unwrap();
                fs::rename(&aside, &folder).unwrap();
            }
            None
        };
        let change = |settings: &mut Settings| settings.run.on_disk_full = when_full;
        let (done, lines) = train_with(dir, policy, &change, &open, &stop);
        let told = lines.iter().filter(|line| line.starts_with("paused: ") && line.contains("checkpoints")).count();
        if policy == "stop" {
            assert_eq!((done.unwrap_err().exit_code(), told), (6, 0));
            fs::remove_file(run.join("checkpoints")).unwrap();
            fs::rename(dir.join("aside"), run.join("checkpoints")).unwrap();
            train(dir, policy).0.unwrap();
        } else {
            done.unwrap();
            assert!(told == 1 && lines.iter().any(|line| line.starts_with("resumed: ")), "{lines:?}");
        }
        same(dir, policy, policy);
    }
}

/// Another run takes a free folder between the run's inspection of it and the opening of the device.
#[test]
fn a_restart_puts_no_run_aside_that_began_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let text = dir.join("text.txt");
    fs::write(&text, Stories::new(7).text(3000)).unwrap();
    let (settings, run) = (settings(&text), dir.join("run"));
    let (loader, rows) = Dataset::open(&settings.data, 42).unwrap().cut(1, 8, 257, Some(42), (1, 1)).unwrap();
    let other = Cell::new(None);
    let open = || {
        other.set(Some(Folder::create(&run, RunFile::new(&settings, None)).unwrap()));
        open()
    };
    let session = Session {
        settings: &settings,
        loader: Some(loader),
        rows,
        tokenizer: Some(Tokenizer::Bytes),
        baseline: None,
        extras: Extras::default(),
        out: Some(run.clone()),
        restart: true,
        open: &|| open().map(|gpu| vec![gpu]),
        weights: &|| Ok(init::init(settings.config(), 42)),
        stop: &|| None,
        phase: CurrentPhase::default(),
        hang: None,
        crew: None,
        continues: &|_| String::new(),
    };
    assert_eq!(session.train(&mut Lines::default()).unwrap_err().exit_code(), 7);
    assert!(!dir.join("run.1").exists() && run.join("config.toml").exists());
}

/// A run that cannot be resumed is refused, and nothing in its folder changes.
#[test]
fn other_data_and_damage_everywhere_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let long = |settings: &mut Settings| {
        settings.train.steps = 4;
        settings.run.checkpoint_every = Interval::Steps(2);
    };
    // stopped after a checkpoint
    let asked = Cell::new(0);
    let stop = || {
        asked.set(asked.get() + 1);
        (asked.get() > 9).then_some("SIGTERM")
    };
    assert_eq!(train_with(dir, "run", &long, &open, &stop).0.unwrap_err().exit_code(), 75);
    let everything = |run: &Path| {
        let mut all: Vec<(String, Vec<u8>)> = Vec::new();
        for name in ["metrics.jsonl", "main.log", "config.toml"] {
            all.push((name.into(), fs::read(run.join(name)).unwrap()));
        }
        let names = fs::read_dir(run.join("checkpoints")).unwrap().flatten();
        all.extend(names.map(|entry| (entry.file_name().to_string_lossy().into_owned(), Vec::new())));
        all
    };
    let run = dir.join("run");
    let before = everything(&run);

    // a text of the same length
    let text = dir.join("text.txt");
    let words = fs::read_to_string(&text).unwrap();
    fs::write(&text, words.replace('a', "e")).unwrap();
    let error = train_with(dir, "run", &long, &open, &|| None).0.unwrap_err();
    assert!(error.exit_code() == 3 && error.to_string().contains("not those"), "{error}");
    assert!(everything(&run) == before);
    fs::write(&text, words).unwrap();

    // no sound checkpoint
    let steps = fs::read_dir(run.join("checkpoints")).unwrap().flatten().map(|entry| entry.path());
    let states = steps.filter(|path| path.is_dir()).map(|path| path.join("state.json"));
    let whole: Vec<(std::path::PathBuf, Vec<u8>)> =
        states.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    for (path, bytes) in &whole {
        let mut broken = bytes.clone();
        broken[40] ^= 1;
        fs::write(path, broken).unwrap();
    }
    let error = train_with(dir, "run", &long, &open, &|| None).0.unwrap_err();
    assert!(error.exit_code() == 3 && error.to_string().contains("is sound"), "{error}");
    assert!(everything(&run) == before);
    whole.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    train_with(dir, "run", &long, &open, &|| None).0.unwrap().unwrap();

    // neither a file nor a dangling link is a folder
    fs::write(dir.join("file"), "").unwrap();
    assert_eq!(train(dir, "file").0.unwrap_err().exit_code(), 2);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(dir.join("nothing"), dir.join("link")).unwrap();
        assert_eq!(train(dir, "link").0.unwrap_err().exit_code(), 2);
    }
}
