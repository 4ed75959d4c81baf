//! Runs in their own processes, which end at named places.

use std::fs;
use std::path::Path;

use super::{same, this_program, train, undisturbed};
use crate::killpoint::{POINTS, VARIABLE};

/// The work of a process that [`visit`] starts.
#[test]
#[ignore = "is started by the tests of kill points"]
fn child() {
    let Ok(dir) = std::env::var("WGPT_KILL_FOLDER") else { return };
    train(Path::new(&dir), "run").0.unwrap();
}

/// Two tests, which run at once.
#[cfg(unix)]
#[test]
fn every_kill_point_is_visited() {
    visit(&POINTS[..POINTS.len() / 2]);
}

#[cfg(unix)]
#[test]
fn every_later_kill_point_is_visited() {
    visit(&POINTS[POINTS.len() / 2..]);
}

#[cfg(unix)]
fn visit(points: &[&str]) {
    use std::os::unix::process::ExitStatusExt as _;
    let dir = undisturbed();
    let dir = dir.path();
    let child = |point: &str| {
        let mut command = this_program();
        command.args(["--exact", "run::session::tests::kills::child", "--ignored"]).env("WGPT_KILL_FOLDER", dir);
        command.env("WGPT_QUIET", "1").env(VARIABLE, point).output().unwrap()
    };
    for point in points {
        // the first visit, and if there are more, the third
        for visits in ["", "#2"] {
            fs::remove_dir_all(dir.join("run")).ok();
            if point.starts_with("resume") {
                // there must be something to resume
                let killed = child("run: sampled");
                assert_eq!(killed.status.signal(), Some(9), "{}", String::from_utf8_lossy(&killed.stdout));
            }
            let killed = child(&format!("{point}{visits}"));
            let text = String::from_utf8_lossy(&killed.stdout).into_owned();
            match visits {
                "" => assert_eq!(killed.status.signal(), Some(9), "{point} is never visited: {text}"),
                _ => assert!(killed.status.signal() == Some(9) || killed.status.success(), "{point}: {text}"),
            }
            // a run that visits the point less often has already finished
            if !killed.status.success() {
                // this process has the kernels
                train(dir, "run").0.unwrap_or_else(|e| panic!("{point}: {e}"));
            }
            same(dir, "run", point);
        }
    }
}
