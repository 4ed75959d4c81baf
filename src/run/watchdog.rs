//! Detects a device that hangs: the host waits for it far longer than ever before. A driver that hangs reports no error itself.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::gpu::{Gpu, Waits};

/// Number of waits after which the longest one defines the usual duration.
const KNOWN: u64 = 16;
/// A wait is a hang once it lasts this many times as long as the longest one before it.
const TIMES: u32 = 20;
/// Time between two checks.
const LOOK: Duration = Duration::from_millis(500);
/// The longest time between two checks of a process that runs on a busy machine. A longer gap means that the process was
/// suspended.
const MOST: Duration = Duration::from_secs(2);

/// The time after which a wait counts as a hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HangTimeout {
    /// Limit until the usual duration of waits is known; `None` for no limit.
    pub at_first: Option<Duration>,
    /// Lower bound of the limit after that.
    pub least: Duration,
}

impl HangTimeout {
    /// Returns the timeout for a device. The first submissions of a software adapter have no limit.
    #[must_use]
    pub fn of(gpu: &Gpu) -> Self {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        if gpu.caps.software {
            Self { at_first: None, least: minutes(10) }
        } else {
            Self { at_first: Some(minutes(10)), least: minutes(1) }
        }
    }

    /// Returns the limit of a wait after `ended` waits, of which the longest took `longest`.
    #[must_use]
    fn limit(self, ended: u64, longest: Duration) -> Option<Duration> {
        if ended < KNOWN { self.at_first } else { Some(self.least.max(longest * TIMES)) }
    }
}

/// Watches a device until it is dropped.
#[derive(Debug)]
pub struct Watchdog {
    _end: Sender<()>,
}

impl Watchdog {
    /// Watches a device's waits. On a hang, calls `bark` once on the watching thread, with a description.
    #[must_use]
    pub fn new(waits: Waits, timeout: HangTimeout, bark: impl FnOnce(String) + Send + 'static) -> Self {
        let (end, ended) = channel::<()>();
        waits.tick(MOST);
        std::thread::spawn(move || {
            loop {
                match ended.recv_timeout(LOOK) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return,
                }
                waits.tick(MOST);
                let limit = timeout.limit(waits.ended(), waits.longest());
                let (Some(limit), Some(current)) = (limit, waits.current()) else { continue };
                if current > limit {
                    bark(format!(
                        "the device has not answered for {:.0} s, expected at most {:.0} s (its longest answer took {:.1} s)",
                        current.as_secs_f64(),
                        limit.as_secs_f64(),
                        waits.longest().as_secs_f64()
                    ));
                    return;
                }
            }
        });
        Self { _end: end }
    }
}

/// Watches each device of a run. If there are several, `bark` gets the device's number and name before the description.
#[must_use]
pub fn watch(
    gpus: &[Gpu],
    timeout: impl Fn(&Gpu) -> HangTimeout,
    bark: impl Fn(&str) + Clone + Send + 'static,
) -> Vec<Watchdog> {
    let watch = |(device, gpu): (usize, &Gpu)| {
        let (several, bark) = (gpus.len() > 1, bark.clone());
        let name = if several { format!("device {device} ({}): ", gpu.caps.name) } else { String::new() };
        Watchdog::new(gpu.waits(), timeout(gpu), move |what| bark(&format!("{name}{what}")))
    };
    gpus.iter().enumerate().map(watch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Caps;

    #[test]
    fn the_timeout_follows_the_usual_duration() {
        let seconds = Duration::from_secs;
        let timeout = HangTimeout { at_first: Some(seconds(600)), least: seconds(60) };
        assert_eq!(timeout.limit(0, seconds(0)), Some(seconds(600)));
        assert_eq!(timeout.limit(100, Duration::from_millis(700)), Some(seconds(60)));
        assert_eq!(timeout.limit(100, seconds(9)), Some(seconds(180)));
        assert_eq!(HangTimeout { at_first: None, ..timeout }.limit(3, seconds(1)), None);
    }

    /// Waits twice as long as a hang while the process is suspended. Its exit code is 0 if that does not count as a hang.
    #[test]
    #[ignore = "is started by a_suspended_process_does_not_hang"]
    fn child() {
        if std::env::var("WGPT_SUSPEND").is_err() {
            return;
        }
        let waits = Waits::default();
        (0..KNOWN).for_each(|_| waits.during(|| ()));
        let timeout = HangTimeout { at_first: None, least: 2 * MOST };
        let (sender, barks) = channel();
        let dog = Watchdog::new(waits.clone(), timeout, move |text| sender.send(text).unwrap());
        println!("waits");
        waits.during(|| std::thread::sleep(4 * MOST));
        assert!(barks.try_recv().is_err(), "a suspension is reported as a hang");
        // nor does it make later hangs look usual
        assert!(waits.longest() < 2 * MOST, "{:?}", waits.longest());
        drop(dog);
    }

    #[cfg(unix)]
    #[test]
    fn a_suspended_process_does_not_hang() {
        use std::io::{BufRead as _, BufReader};
        use std::process::Stdio;

        use rustix::process::{Pid, Signal, kill_process};
        let mut command = crate::run::session::tests::this_program();
        command.args(["--exact", "run::watchdog::tests::child", "--ignored", "--nocapture"]).env("WGPT_SUSPEND", "1");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.by_ref().any(|line| line.ends_with("waits")), "the process does not begin");
        std::thread::sleep(MOST / 4);
        kill_process(pid, Signal::STOP).unwrap();
        std::thread::sleep(3 * MOST + MOST / 2);
        kill_process(pid, Signal::CONT).unwrap();
        let text: Vec<String> = lines.collect();
        assert!(child.wait().unwrap().success(), "{text:?}");
    }

    #[test]
    fn the_device_of_several_that_hangs_is_named() {
        let named = |name: &str| Gpu::dry(Caps { name: name.into(), ..Caps::webgpu_defaults() });
        let gpus = ["a card", "another", "a third"].map(named);
        let timeout = |_: &Gpu| HangTimeout { at_first: Some(Duration::from_secs(1)), least: Duration::from_secs(1) };
        let (sender, barks) = channel();
        let _dogs = watch(&gpus, timeout, move |text: &str| sender.send(text.to_owned()).unwrap());
        let text = gpus[1].waits().during(|| barks.recv_timeout(Duration::from_secs(60)).unwrap());
        assert!(text.starts_with("device 1 (another): the device has not answered for"), "{text}");
        assert!(barks.recv_timeout(3 * LOOK).is_err(), "the others do not wait");
    }

    #[test]
    fn a_wait_that_does_not_end_is_reported_and_others_are_not() {
        let waits = Waits::default();
        (0..KNOWN).for_each(|_| waits.during(|| ()));
        let timeout = HangTimeout { at_first: None, least: Duration::from_secs(1) };
        let (sender, barks) = channel();
        let _dog = Watchdog::new(waits.clone(), timeout, move |text| sender.send(text).unwrap());
        std::thread::sleep(3 * LOOK);
        assert!(barks.try_recv().is_err(), "nothing waits");
        let text = waits.during(|| barks.recv_timeout(Duration::from_secs(60)).unwrap());
        assert!(text.contains("has not answered for"), "{text}");
    }
}
