//! Two preparations of one folder: the second waits for the first, or is refused.

use std::ops::ControlFlow;
use std::time::Duration;

use wgpt::data::Tokenizer;
use wgpt::data::prepare::{Options, Outcome, Progress, prepare};
use wgpt::error::Error;

use super::made::{bins, command, prose};
use super::prepare::{options, run, same};

#[test]
fn two_at_once_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("t.txt");
    std::fs::write(&text, prose(1, 1000)).unwrap();
    let one = options(&[text], dir.path().join("out"));
    let mut second = None;
    prepare(&one, &mut |_| {
        second = Some(prepare(&one, &mut |progress| {
            assert!(progress.waiting);
            ControlFlow::Break(())
        }));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(second, Some(Ok(Outcome::Stopped)));
    assert!(!one.out.join(".prepare.lock").exists());
}

#[test]
fn a_second_preparation_beside_a_finishing_one_waits_and_finds_the_work_done() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("t.txt");
    std::fs::write(&text, prose(1, 100_000)).unwrap();
    let one = Options { tokenizer: Tokenizer::Bytes, ..options(&[text], dir.path().join("out")) };
    let whole = Options { out: dir.path().join("whole"), ..one.clone() };
    run(&whole);
    let (tell, told) = std::sync::mpsc::channel();
    let (first, second) = std::thread::scope(|scope| {
        let (mut second, other) = (None, &one);
        let first = prepare(&one, &mut |progress| {
            assert!(!progress.waiting);
            second.get_or_insert_with(|| {
                let tell = tell.clone();
                let wait = move |progress: &Progress| {
                    tell.send(progress.waiting).unwrap();
                    ControlFlow::Continue(())
                };
                scope.spawn(move || prepare(other, &mut { wait }))
            });
            // no further than this before the other one waits
            assert!(told.recv().unwrap());
            ControlFlow::Continue(())
        });
        (first, second.unwrap().join().unwrap())
    });
    let Outcome::Done(note) = first.unwrap() else { panic!("the first one did the work") };
    assert_eq!(second.unwrap(), Outcome::AlreadyPrepared(note));
    same(&one.out, &whole.out);
    assert!(!one.out.join(".prepare.lock").exists() && !one.out.join("x.partial").exists());
}

#[test]
fn a_second_preparation_of_something_else_does_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("t.txt");
    std::fs::write(&text, prose(1, 1000)).unwrap();
    let one = Options { save_every: Duration::ZERO, ..options(&[text], dir.path().join("out")) };
    let other = Options { max_tokens: Some(10), ..one.clone() };
    // it leaves its state, and then works with that there
    prepare(&one, &mut |_| ControlFlow::Break(())).unwrap();
    let mut second = None;
    let _lock = wgpt::files::lock::Lock::take(&one.out.join(".prepare.lock"), Duration::ZERO).unwrap();
    let error = prepare(&other, &mut |progress| {
        second = Some(*progress);
        ControlFlow::Break(())
    });
    let error = error.unwrap_err();
    assert!(second.is_none(), "{second:?}");
    assert!(
        matches!(&error, Error::Usage(fault) if fault.what.contains("--max-tokens: none there, 10 here")),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn a_signal_ends_a_preparation_that_waits() {
    use std::io::{BufRead as _, BufReader};
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("t.txt"), prose(1, 1000)).unwrap();
    std::fs::create_dir(dir.path().join("out")).unwrap();
    let lock = wgpt::files::lock::Lock::take(&dir.path().join("out/.prepare.lock"), Duration::ZERO).unwrap();
    let start = || {
        let mut child = command(&["data", "prepare", "t.txt", "--out", "out"]);
        let mut child = child.current_dir(dir.path()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        assert_eq!(line, "out: waiting for another `wgpt data prepare` on this folder");
        (child, lines)
    };
    let (mut child, mut lines) = start();
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(75));
    let line = lines.next().unwrap().unwrap();
    assert_eq!(line, "SIGINT: ended while waiting for another process, with nothing to save");
    let (mut child, _lines) = start();
    drop(lock);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(bins(&dir.path().join("out")).len(), 2);
}
