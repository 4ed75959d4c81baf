//! An error on one rank ends all ranks, with one clear line and its exit code.

use std::process::Command;
use std::time::Instant;

use super::{Mpi, Ranks, errors, folder, libraries, processes, ranks, reaches, root, signal};

/// Runs to an error; returns its line.
#[track_caller]
fn fails(mpi: &Mpi, dir: &std::path::Path, out: &str, all: &[Ranks], code: i32) -> String {
    let begin = Instant::now();
    let done = mpi.run(dir, out, all);
    let err = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(code), "{mpi:?}: {err}");
    let lines = errors(&done);
    assert_eq!(lines.len(), 1, "{mpi:?}: {err}");
    assert!(begin.elapsed().as_secs() < 60, "{out} took {:?}", begin.elapsed());
    lines[0].clone()
}

#[test]
fn an_error_on_one_rank_is_one_line() {
    let dir = folder();
    let dir = dir.path();
    std::fs::write(dir.join("other.txt"), wgpt::data::Stories::new(8).text(6000)).expect("a text");
    for (number, mpi) in libraries().iter().enumerate() {
        let out = |name: &str| format!("{name}-{number}");
        let both = |more: &[&str]| [ranks(1, &[]), ranks(1, more)];
        let says = |line: String, parts: &[&str]| {
            assert!(parts.iter().all(|part| line.contains(part)), "{line}, expected {parts:?}");
        };
        let mistakes = [
            (
                "settings",
                both(&["--lr", "2e-2"]).to_vec(),
                9,
                &["rank 1 on ", "lr 0.02, expected 0.01 as on rank 0"][..],
            ),
            ("missing", both(&["--text", "nowhere.txt"]).to_vec(), 3, &["rank 1 on ", "nowhere.txt"]),
            // before anything but the launcher is known
            ("key", both(&["--set", "bogus=1"]).to_vec(), 2, &["rank 1 on ", "bogus"]),
            // the other mistakes do not depend on the library
            ("model", both(&["--channels", "64"]).to_vec(), 9, &["rank 1 on ", "channels 64, expected 32"]),
            ("data", both(&["--text", "other.txt"]).to_vec(), 9, &["rank 1 on ", "data "]),
            ("gpu", both(&["--device", "7"]).to_vec(), 4, &["rank 1 on ", "no adapter is `7`"]),
            (
                "shared",
                vec![ranks(2, &["--share-device=false"])],
                2,
                &["rank 0 on ", "and rank 1 on ", "have the same GPU"],
            ),
            // all ranks find this, and it is printed once
            ("uneven", vec![ranks(3, &[])], 2, &["3 devices cannot share 4 ranks evenly"]),
        ];
        for (name, all, code, parts) in &mistakes[..if number == 0 { mistakes.len() } else { 3 }] {
            says(fails(mpi, dir, &out(name), all, *code), parts);
        }
        // a disk that is full for the first rank, which writes the run
        let mut run = mpi.start(dir, &out("disk"), &[ranks(2, &["--steps", "4000", "--on-disk-full", "stop"])]);
        assert!(reaches(dir, &out("disk"), 2, &mut run));
        let first = processes(&out("disk"))[&0].to_string();
        let limited = Command::new("prlimit").args(["--pid", &first, "--fsize=2048"]).status().expect("prlimit starts");
        assert!(limited.success());
        let done = run.wait_with_output().expect("waited for");
        let lines = errors(&done);
        assert_eq!((done.status.code(), lines.len()), (Some(6), 1), "{}", String::from_utf8_lossy(&done.stderr));
        says(lines[0].clone(), &[&out("disk")]);
        // one rank of a folder in use
        let mut run = mpi.start(dir, &out("locked"), &[ranks(2, &["--steps", "4000"])]);
        assert!(reaches(dir, &out("locked"), 1, &mut run));
        let line = fails(mpi, dir, &out("locked"), &[ranks(2, &["--steps", "4000"])], 7);
        says(line, &[&out("locked")]);
        signal(run.id(), "-USR1");
        assert_eq!(run.wait_with_output().expect("waited for").status.code(), Some(75));
        if number > 0 {
            continue;
        }
        // no rank waits for one that never came
        let lost = both(&["--mpi", "/nowhere/libmpi.so"])
            .map(|ranks| Ranks { more: [&ranks.more[..], &["--rank-timeout".into(), "5".into()]].concat(), ..ranks });
        let done = mpi.run(dir, &out("library"), &lost);
        assert_eq!(done.status.code(), Some(4), "{}", String::from_utf8_lossy(&done.stderr));
        assert!(errors(&done).iter().any(|line| line.contains("rank 1 of 2")), "{:?}", errors(&done));
    }
}

#[test]
fn a_silent_rank_ends_the_run() {
    let dir = folder();
    let dir = dir.path();
    for (number, mpi) in libraries().iter().enumerate() {
        for &rank in if number == 0 { &[1, 0][..] } else { &[1] } {
            let out = format!("silent-{number}-{rank}");
            let mut run = mpi.start(dir, &out, &[ranks(2, &["--steps", "4000", "--rank-timeout", "5"])]);
            assert!(reaches(dir, &out, 2, &mut run), "{out} ended too early");
            let stopped = processes(&out)[&rank];
            signal(stopped, "-STOP");
            let done = run.wait_with_output().expect("waited for");
            assert_eq!(done.status.code(), Some(4), "{}", String::from_utf8_lossy(&done.stderr));
            let lines = errors(&done);
            assert!(lines.len() == 1 && lines[0].contains(&format!("rank {rank} on ")), "{lines:?}");
            assert!(lines[0].contains("no heartbeat from ") && lines[0].contains(" for 5 s"), "{lines:?}");
            let begin = Instant::now();
            while !processes(&out).is_empty() {
                assert!(begin.elapsed().as_secs() < 20, "{:?} are left", processes(&out));
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}

/// A process that a launcher has started, without its library or with another one's.
#[test]
fn a_launcher_without_its_library_is_told() {
    let dir = folder();
    let alone = |variables: &[(&str, &str)], more: &[&str]| {
        let mut command = Command::new(root().join("tools/run"));
        command
            .arg(env!("CARGO_BIN_EXE_wgpt"))
            .args(["train", "--text", "text.txt", "--tokenizer", "bytes"])
            .args(more);
        let done = super::command(command, dir.path()).envs(variables.iter().copied()).output().expect("started");
        let lines = errors(&done);
        assert_eq!((done.status.code(), lines.len()), (Some(4), 1), "{}", String::from_utf8_lossy(&done.stderr));
        lines[0].clone()
    };
    let pmi = [("PMI_RANK", "1"), ("PMI_SIZE", "3")];
    let line = alone(&pmi, &["--mpi", "/nowhere/libmpi.so"]);
    assert!(line.contains("rank 1 of 3 on ") && line.contains("/nowhere/libmpi.so: "), "{line}");
    let line = alone(&[("SLURM_PROCID", "2"), ("SLURM_STEP_NUM_TASKS", "4")], &[]);
    assert!(line.contains("rank 2 of 4, without MPI") && line.contains("--mpi=pmix"), "{line}");
}
