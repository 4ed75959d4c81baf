//! Layouts, killed ranks and stops: records and weights are always those of one device.

use std::fs;

use super::{Ranks, alone, errors, folder, libraries, processes, ranks, reaches, same, signal};
use wgpt::reference::random::Random;

#[test]
fn every_layout_leaves_what_one_device_leaves() {
    let dir = folder();
    let dir = dir.path();
    alone(dir, "one", &[]);
    let machine = |machine, count, more: &[&str]| Ranks { machine: Some(machine), ..ranks(count, more) };
    for (number, mpi) in libraries().iter().enumerate() {
        let layouts = [
            ("four", vec![ranks(4, &[])]),
            ("machines", vec![machine("a", 1, &["--devices", "0,0"]), machine("b", 1, &["--devices", "0,0"])]),
            ("two", vec![ranks(2, &[])]),
            // as many processes as devices, and dealt out in turn
            ("turns", vec![machine("a", 1, &[]), machine("b", 1, &[]), machine("a", 1, &[]), machine("b", 1, &[])]),
            // which layouts there are is no matter of the library
            ("two-of-two", vec![ranks(2, &["--devices", "0,0"])]),
            ("uneven", vec![machine("a", 1, &["--devices", "0,0,0"]), machine("b", 1, &[])]),
        ];
        for (name, all) in &layouts[..if number == 0 { layouts.len() } else { 2 }] {
            let out = format!("{name}-{number}");
            mpi.finish(dir, &out, all);
            same(dir, "one", &out);
            let logs = fs::read_dir(dir.join(&out).join("ranks")).expect("logs").count();
            assert_eq!(logs, all.iter().map(|ranks| ranks.count).sum::<usize>() - 1, "{out}");
        }
    }
}

#[test]
fn a_rank_that_is_killed_ends_the_run_which_resumes_on_other_numbers() {
    let dir = folder();
    let dir = dir.path();
    alone(dir, "one", &[]);
    for (number, mpi) in libraries().iter().enumerate() {
        let out = format!("killed-{number}");
        let mut random = Random::new(100 + number as u64);
        let mut draw = |most: usize| random.tokens(1, most)[0] as usize;
        for &count in if number == 0 { &[2, 4, 1][..] } else { &[4] } {
            let begins = fs::read_to_string(dir.join(&out).join("metrics.jsonl")).unwrap_or_default().lines().count();
            let mut run = mpi.start(dir, &out, &[ranks(count, &[])]);
            // at most three steps behind where it has begun, so that it does not end before
            let step = (begins + draw(3)).clamp(1, 22);
            if !reaches(dir, &out, step, &mut run) {
                panic!("{out} on {count} ended before step {step}: {:?}", run.wait_with_output());
            }
            let all = processes(&out);
            assert_eq!(all.len(), count, "{all:?}");
            signal(all[&draw(count)], "-KILL");
            let done = run.wait_with_output().expect("waited for");
            assert!(!done.status.success(), "{out}: a killed rank went unnoticed");
            let left = processes(&out);
            assert!(left.is_empty(), "{left:?} are left");
        }
        mpi.finish(dir, &out, &[ranks(2, &[])]);
        same(dir, "one", &out);
    }
}

#[test]
fn a_signal_stops_all_ranks_at_one_step() {
    let dir = folder();
    let dir = dir.path();
    alone(dir, "one", &[]);
    for (number, mpi) in libraries().iter().enumerate() {
        let out = format!("stopped-{number}");
        // to the launcher, which tells its processes; then to one rank alone
        for to_launcher in [true, false] {
            let mut run = mpi.start(dir, &out, &[ranks(2, &[])]);
            assert!(reaches(dir, &out, if to_launcher { 3 } else { 9 }, &mut run), "{out} ended too early");
            signal(if to_launcher { run.id() } else { processes(&out)[&1] }, "-USR1");
            let done = run.wait_with_output().expect("waited for");
            assert_eq!(done.status.code(), Some(75), "{}", String::from_utf8_lossy(&done.stderr));
            assert!(errors(&done).is_empty(), "{:?}", errors(&done));
            let err = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(err.contains("saved in") && err.contains("to continue: mpirun -n 2 "), "{err}");
        }
        mpi.finish(dir, &out, &[ranks(4, &[])]);
        same(dir, "one", &out);
        // a run that is finished says so, on all ranks
        let done = mpi.run(dir, &out, &[ranks(2, &[])]);
        assert!(done.status.success() && String::from_utf8_lossy(&done.stdout).contains("finished after 24 steps"));
    }
}

/// A profile measures the exchange between all processes and is printed once.
#[test]
fn a_profile_is_of_all_processes() {
    let dir = folder();
    for mpi in libraries() {
        let size = "--layers 1 --heads 2 --channels 32 --vocab 257 --batch 1 --context 16";
        let args = format!("profile {size} --wall --steps 3 --seconds 1 --share-device");
        let done = mpi.command(dir.path(), 2, &args).output().expect("mpirun starts");
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{mpi:?}: {err}");
        for line in ["mpi     2 processes on ", "x 2 on 2 devices; f32", " MiB of weights come at "] {
            assert_eq!(out.matches(line).count(), 1, "{line}: {out}");
        }
    }
}
