//! Runs whose folder is moved, replaced or forged, or loses files.

use std::os::unix::fs::symlink;

use super::*;
use crate::run::contents::HANG;
use crate::run::lock::LOCK;

/// A run that SIGTERM stopped behind its first checkpoint, of step 2.
fn stopped(dir: &Path, name: &str) -> PathBuf {
    stopped_after(dir, name, &|_| (), 14)
}

/// Answers a run that asks whether to stop. `answer` gets the number of the question.
fn answering(answer: impl Fn(usize) -> Option<&'static str>) -> impl Fn() -> Option<&'static str> {
    let asked = Cell::new(0);
    move || {
        asked.set(asked.get() + 1);
        answer(asked.get())
    }
}

/// A run that is stopped once it has asked that many times whether to stop.
fn stopped_after(dir: &Path, name: &str, change: &dyn Fn(&mut Settings), asks: usize) -> PathBuf {
    let stop = answering(|asked| (asked > asks).then_some("SIGTERM"));
    let error = train_with(dir, name, change, &open, &stop).0.unwrap_err();
    assert_eq!(error.exit_code(), 75, "{error}");
    dir.join(name)
}

/// All files in a folder and below it, with their contents.
fn everything(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                all.push((entry.path(), fs::read(entry.path()).unwrap_or_default()));
            }
        }
    }
    all.sort();
    all
}

fn refused(dir: &Path, name: &str, code: u8, part: &str) {
    let error = train(dir, name).0.unwrap_err();
    assert_eq!(error.exit_code(), code, "{name}: {error}");
    assert!(error.to_string().contains(part), "{name}: {error}");
}

#[test]
fn a_stranger_s_run_folder_writes_nothing_outside_itself() {
    let dir = undisturbed();
    let dir = dir.path();
    let run = stopped(dir, "run");
    let aside = dir.join("aside");
    let victim = dir.join("victim");
    fs::create_dir(&victim).unwrap();
    for name in ["file", "metrics.jsonl", "config.json", "model.safetensors", "step-00000002.tmp"] {
        fs::write(victim.join(name), "precious").unwrap();
    }
    let before = everything(&victim);
    let names = [
        "config.toml",
        "metrics.jsonl",
        "main.log",
        "samples.txt",
        "report.html",
        "saved.json",
        "data.json",
        LOCK,
        HANG,
        "tb",
        "model",
        "tokenizer",
        "unsaved",
        "ranks",
        "checkpoints",
    ];
    let newest = fs::read_dir(run.join("checkpoints")).unwrap().flatten().map(|entry| entry.path());
    let newest = newest.filter(|path| path.is_dir()).max().unwrap();
    let mut forged: Vec<PathBuf> = names.iter().map(|name| run.join(name)).collect();
    forged.extend(["state.json", "manifest.json", "model.safetensors"].map(|name| newest.join(name)));
    forged.push(newest);
    for path in &forged {
        let there = path.symlink_metadata().is_ok();
        if there {
            fs::rename(path, &aside).unwrap();
        }
        let name = path.strip_prefix(&run).unwrap().display().to_string();
        // links to somebody else's file, to nothing and to the former contents, and special files
        let is_own = |to: &Path| name == "checkpoints" && to == aside;
        for to in [victim.join("file"), victim.clone(), victim.join("new"), aside.clone(), "/dev/zero".into()] {
            if is_own(&to) {
                continue;
            }
            symlink(&to, path).unwrap();
            let error = train(dir, "run").0.unwrap_err();
            let (code, text) = (error.exit_code(), error.to_string());
            assert!([2, 3].contains(&code) && text.contains("link"), "{name} to {}: {code}: {text}", to.display());
            fs::remove_file(path).unwrap();
        }
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
        let error = train(dir, "run").0.unwrap_err();
        assert!([2, 3].contains(&error.exit_code()), "{name}: {error}");
        fs::remove_file(path).unwrap();
        if there {
            fs::rename(&aside, path).unwrap();
        }
    }
    // in the places of temporary files
    for name in names {
        symlink(victim.join("file"), run.join(format!("{name}.tmp"))).unwrap();
    }
    assert!(everything(&victim) == before);
    train(dir, "run").0.unwrap().unwrap();
    same(dir, "run", "after all that");
    assert!(everything(&victim) == before);
    assert!(!victim.join("new").exists());
}

#[test]
fn the_user_s_own_links_to_a_scratch_disk_are_followed() {
    let dir = undisturbed();
    let dir = dir.path();
    let scratch = dir.join("scratch");
    fs::create_dir(&scratch).unwrap();
    // the run's folder itself
    fs::create_dir(scratch.join("a")).unwrap();
    symlink(scratch.join("a"), dir.join("linked")).unwrap();
    stopped(dir, "linked");
    train(dir, "linked").0.unwrap().unwrap();
    same(dir, "linked", "a linked folder");
    // its checkpoints, linked to another disk before it begins
    fs::create_dir(scratch.join("b")).unwrap();
    fs::create_dir(dir.join("before")).unwrap();
    symlink(scratch.join("b"), dir.join("before/checkpoints")).unwrap();
    stopped(dir, "before");
    assert!(fs::read_dir(scratch.join("b")).unwrap().flatten().any(|entry| entry.path().is_dir()));
    // and moved later
    let run = stopped(dir, "later");
    fs::rename(run.join("checkpoints"), scratch.join("c")).unwrap();
    symlink(scratch.join("c"), run.join("checkpoints")).unwrap();
    // somebody else's copy of the run, with the same link, is not this run
    assert!(std::process::Command::new("cp").arg("-a").args([&run, &dir.join("forged")]).status().unwrap().success());
    let before = everything(&scratch.join("c"));
    refused(dir, "forged", 3, "is a link to a folder of the checkpoints of");
    assert!(everything(&scratch.join("c")) == before);
    for name in ["before", "later"] {
        train(dir, name).0.unwrap().unwrap();
        same(dir, name, name);
    }
    // a run that was moved with its link
    let run = stopped(dir, "moved");
    fs::rename(run.join("checkpoints"), scratch.join("d")).unwrap();
    symlink(scratch.join("d"), run.join("checkpoints")).unwrap();
    fs::rename(&run, dir.join("new")).unwrap();
    train(dir, "new").0.unwrap().unwrap();
    same(dir, "new", "moved");
}

#[test]
fn a_run_whose_checkpoints_are_gone_is_no_new_run() {
    let dir = undisturbed();
    let dir = dir.path();
    let run = stopped(dir, "run");
    let records = || [fs::read(run.join("metrics.jsonl")).unwrap(), fs::read(run.join("main.log")).unwrap()];
    let before = records();
    let steps = || {
        let all = fs::read_dir(run.join("checkpoints")).unwrap().flatten().map(|entry| entry.path());
        all.filter(|path| path.is_dir()).collect::<Vec<_>>()
    };
    // each alone, and the folder as a whole
    fs::create_dir(dir.join("aside")).unwrap();
    let moved: Vec<(PathBuf, PathBuf)> =
        steps().into_iter().map(|path| (path.clone(), dir.join("aside").join(path.file_name().unwrap()))).collect();
    moved.iter().for_each(|(path, aside)| fs::rename(path, aside).unwrap());
    refused(dir, "run", 3, "those that the run saved, the first after step 2");
    fs::remove_dir_all(run.join("checkpoints")).unwrap();
    refused(dir, "run", 3, "holds no checkpoint");
    assert!(records() == before, "records were cut without a checkpoint");
    fs::create_dir(run.join("checkpoints")).unwrap();
    moved.iter().for_each(|(path, aside)| fs::rename(aside, path).unwrap());
    train(dir, "run").0.unwrap().unwrap();
    same(dir, "run", "brought back");
}

#[test]
fn records_that_no_checkpoint_vouches_for_are_put_aside() {
    let dir = undisturbed();
    let dir = dir.path();
    // killed before the first checkpoint: what a kill leaves
    let seldom = |settings: &mut Settings| settings.run.checkpoint_every = Interval::Steps(100);
    let run = stopped_after(dir, "run", &seldom, 14);
    fs::remove_dir_all(run.join("checkpoints")).unwrap();
    fs::remove_file(run.join("saved.json")).unwrap();
    let before = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert!(before.lines().count() > 1);
    train(dir, "run").0.unwrap().unwrap();
    same(dir, "run", "from the start");
    assert_eq!(fs::read_to_string(run.join("unsaved/1/metrics.jsonl")).unwrap(), before);
    for name in ["main.log", "samples.txt", "tb"] {
        assert!(run.join("unsaved/1").join(name).exists(), "{name}");
    }
    assert!(!run.join("unsaved/2").exists());
}

#[test]
fn a_moved_run_and_the_new_run_in_its_place_do_not_mix() {
    let dir = undisturbed();
    let dir = dir.path();
    let run = dir.join("run");
    let stop = answering(|asked| {
        if asked == 14 {
            fs::rename(&run, dir.join("moved")).unwrap();
            // another seed, so that the weights of the two runs differ
            let seed = |settings: &mut Settings| settings.train.seed = 7;
            train_with(dir, "run", &seed, &open, &|| None).0.unwrap().unwrap();
        }
        None
    });
    let error = train_with(dir, "run", &|_| (), &open, &stop).0.unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("now holds another run"), "{error}");
    let there = everything(&run);
    // the moved run is resumed where it is; the new one is as it ended
    train(dir, "moved").0.unwrap().unwrap();
    same(dir, "moved", "moved");
    assert!(everything(&run) == there);
    // a checkpoint of one run among those of the other is refused
    let newest = "checkpoints/step-00000006";
    fs::remove_dir_all(run.join(newest)).unwrap();
    assert!(
        std::process::Command::new("cp")
            .arg("-r")
            .args([dir.join("moved").join(newest), run.join(newest)])
            .status()
            .unwrap()
            .success()
    );
    let longer = |settings: &mut Settings| (settings.train.seed, settings.train.steps) = (7, 8);
    let error = train_with(dir, "run", &longer, &open, &|| None).0.unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("belongs to another run"), "{error}");
    // and so are its records
    fs::remove_dir_all(run.join("checkpoints")).unwrap();
    fs::remove_file(run.join("saved.json")).unwrap();
    fs::write(
        run.join("config.toml"),
        fs::read_to_string(run.join("config.toml")).unwrap().replace("finished = true", "finished = false"),
    )
    .unwrap();
    fs::copy(dir.join("moved/metrics.jsonl"), run.join("metrics.jsonl")).unwrap();
    let error = train_with(dir, "run", &|s| s.train.seed = 7, &open, &|| None).0.unwrap_err();
    assert!(error.exit_code() == 3 && error.to_string().contains("belongs to another run"), "{error}");
}

#[test]
fn a_folder_that_goes_away_and_comes_back_costs_time_and_nothing_else() {
    let dir = undisturbed();
    let dir = dir.path();
    let run = dir.join("run");
    let stop = answering(|asked| {
        match asked {
            14 => fs::rename(&run, dir.join("away")).unwrap(),
            // the empty mount point of a disk that is not mounted
            20 => fs::create_dir(&run).unwrap(),
            30 => fs::remove_dir(&run).unwrap(),
            35 => fs::rename(dir.join("away"), &run).unwrap(),
            _ => {}
        }
        None
    });
    let (done, lines) = train_with(dir, "run", &|_| (), &open, &stop);
    done.unwrap().unwrap();
    let told = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
    assert!(told("paused: ") >= 1 && told("resumed: ") >= 1, "{lines:?}");
    same(dir, "run", "away");
}

#[test]
fn a_configuration_that_was_changed_by_hand_is_refused_by_the_checkpoint() {
    let dir = undisturbed();
    let dir = dir.path();
    let run = stopped(dir, "run");
    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    for (key, old, new) in
        [("seed", "seed = 42", "seed = 7"), ("weight-decay", "weight-decay = 0.1", "weight-decay = 0.5")]
    {
        assert!(config.contains(old), "{config}");
        fs::write(run.join("config.toml"), config.replace(old, new)).unwrap();
        let change = |settings: &mut Settings| match key {
            "seed" => settings.train.seed = 7,
            _ => settings.train.weight_decay = 0.5,
        };
        let error = train_with(dir, "run", &change, &open, &|| None).0.unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(key), "{error}");
    }
    fs::write(run.join("config.toml"), config).unwrap();
    train(dir, "run").0.unwrap().unwrap();
    same(dir, "run", "changed back");
}

#[test]
fn config_lock_checkpoints_and_records_carry_the_run_s_id() {
    let dir = undisturbed();
    let dir = dir.path();
    let id = RunFile::read(&dir.join("whole")).unwrap().record.run.unwrap();
    for name in [
        "config.toml",
        LOCK,
        "saved.json",
        "checkpoints/run.json",
        "metrics.jsonl",
        "checkpoints/step-00000006/state.json",
    ] {
        assert!(fs::read_to_string(dir.join("whole").join(name)).unwrap().contains(&id), "{name}");
    }
    stopped(dir, "other");
    let other = RunFile::read(&dir.join("other")).unwrap().record.run.unwrap();
    assert_ne!(other, id);
    train(dir, "other").0.unwrap().unwrap();
    assert_eq!(RunFile::read(&dir.join("other")).unwrap().record.run.unwrap(), other);
}

#[test]
fn a_run_that_diverges_loses_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (name, timestamps) in [("clock", true), ("no-clock", false)] {
        let open = || {
            let mut gpu = open()?;
            gpu.caps.encoder_timestamps &= timestamps;
            Ok(gpu)
        };
        for val_every in [0, 2, 3, 5] {
            let change = |settings: &mut Settings| {
                (settings.train.lr, settings.train.steps, settings.train.warmup) = (1e30, 40, 0);
                (settings.run.val_every, settings.run.sample_every) = (val_every, 0);
            };
            let name = format!("{name}-{val_every}");
            let (done, _) = train_with(dir, &name, &change, &open, &|| None);
            assert_eq!(done.unwrap_err().exit_code(), 8);
            let text = fs::read_to_string(dir.join(&name).join("metrics.jsonl")).unwrap();
            let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let steps: Vec<u64> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
            assert!(steps.iter().copied().eq(0..steps.len() as u64), "{name}: {steps:?}");
            // the step after the eighth skipped one was computed before the host knew
            let skipped = lines.iter().filter(|line| line["skipped"] == true).count();
            let eighth = steps[steps.len() - skipped] + 7;
            let measured = val_every > 0 && eighth.is_multiple_of(val_every as u64);
            assert!(*steps.last().unwrap() > eighth || measured, "{name}: {steps:?}, {skipped} skipped");
            let log = fs::read_to_string(dir.join(&name).join("main.log")).unwrap();
            assert_eq!(log.lines().filter(|line| line.contains("trl:")).count() as u64, *steps.last().unwrap());
        }
    }
}

#[test]
fn a_cheap_copy_of_a_run_by_hard_links_keeps_its_records() {
    let dir = undisturbed();
    let dir = dir.path();
    let run = stopped(dir, "run");
    assert!(std::process::Command::new("cp").arg("-al").args([&run, &dir.join("copy")]).status().unwrap().success());
    let before = everything(&dir.join("copy"));
    let error = train(dir, "run").0.unwrap_err();
    assert!(error.to_string().contains("lock: cannot be written (has a second name"), "{error}");
    fs::remove_file(run.join(LOCK)).unwrap();
    train(dir, "run").0.unwrap().unwrap();
    same(dir, "run", "next to a copy");
    assert!(everything(&dir.join("copy")) == before);
}

#[test]
fn a_metrics_file_that_was_lost_for_a_while_has_no_step_twice() {
    let dir = undisturbed();
    let dir = dir.path();
    // removed after the first steps; the run is stopped, then killed in the steps after its checkpoint
    let stop = answering(|asked| {
        if asked == 4 {
            fs::remove_file(dir.join("run/metrics.jsonl")).unwrap();
        }
        (asked > 14).then_some("SIGTERM")
    });
    assert_eq!(train_with(dir, "run", &|_| (), &open, &stop).0.unwrap_err().exit_code(), 75);
    let path = dir.join("run/metrics.jsonl");
    let there = fs::read_to_string(&path).unwrap();
    let last: serde_json::Value = serde_json::from_str(there.lines().last().unwrap()).unwrap();
    let later = format!("{{\"step\":{}}}\n", last["step"].as_u64().unwrap() + 1);
    fs::write(&path, there + &later).unwrap();
    train(dir, "run").0.unwrap().unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let steps: Vec<u64> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap())
        .collect();
    assert!(steps.windows(2).all(|pair| pair[1] == pair[0] + 1) && steps.last() == Some(&6), "{steps:?}");
}

#[test]
fn checkpoints_on_another_disk_are_saved_there_and_waited_for() {
    let dir = undisturbed();
    let dir = dir.path();
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
        crate::not_run::not_run("checkpoints on another disk", "there is no second file system here");
        return;
    };
    fs::create_dir(dir.join("run")).unwrap();
    let (here, away) = (other.path().join("ck"), other.path().join("away"));
    fs::create_dir(&here).unwrap();
    symlink(&here, dir.join("run/checkpoints")).unwrap();
    // the disk is not mounted, and its mount point is an empty folder
    let stop = answering(|asked| {
        match asked {
            8 => {
                fs::rename(&here, &away).unwrap();
                fs::create_dir(&here).unwrap();
            }
            40 => {
                fs::remove_dir(&here).unwrap();
                fs::rename(&away, &here).unwrap();
            }
            _ => {}
        }
        None
    });
    let (done, lines) = train_with(dir, "run", &|_| (), &open, &stop);
    done.unwrap().unwrap();
    assert!(
        lines.iter().any(|line| line.starts_with("paused: ") && line.contains("leads to another folder")),
        "{lines:?}"
    );
    same(dir, "run", "another disk");
    assert!(here.join("step-00000006").is_dir());
    // a copy of the run does not own the checkpoints while the run exists, even if the run cannot be read
    assert!(
        std::process::Command::new("cp").arg("-a").args(["run", "copy"]).current_dir(dir).status().unwrap().success()
    );
    fs::write(dir.join("run/config.toml"), "[newer]\nx = 1\n").unwrap();
    let before = everything(&here);
    let longer = |settings: &mut Settings| settings.train.steps = 8;
    let error = train_with(dir, "copy", &longer, &open, &|| None).0.unwrap_err();
    assert!(error.exit_code() == 3 && error.to_string().contains("of the checkpoints of"), "{error}");
    assert!(everything(&here) == before);
}
