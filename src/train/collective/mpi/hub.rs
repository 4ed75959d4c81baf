//! The way to the thread that calls MPI ([`super::desk`]): others hand it what is to be sent and received, and wait for its answer.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::desk::Desk;
use super::library::{Communicator, Library};
use crate::error::{Error, Fault, Result};
use crate::train::collective::Shared;

/// Tags of the devices' messages begin here. MPI promises 32,767 of them.
pub const FIRST_TAG: usize = 16;
/// Devices of a process at most, so that every pair has a tag.
pub const MOST_DEVICES: usize = 64;
/// Bytes for a device of another process.
pub struct Letter {
    /// The process.
    pub process: usize,
    /// Tells the letters of two processes from each other.
    pub tag: i32,
    /// The bytes, and which of them.
    pub bytes: Shared,
    /// See `bytes`.
    pub range: std::ops::Range<usize>,
}

impl Letter {
    pub(super) fn bytes(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.range.clone()]
    }
}

/// Bytes from a device of another process.
pub struct Expected {
    /// The process.
    pub process: usize,
    /// As [`Letter::tag`].
    pub tag: i32,
    /// How many bytes come.
    pub length: usize,
    /// Memory for them, which may have any length.
    pub buffer: Vec<u8>,
}

/// What a process learns when its run ends early.
#[derive(Debug, Clone)]
pub struct End {
    /// The error, with rank and host if it came up in another process.
    pub error: Error,
    /// True if it came up in another process, which tells it.
    pub is_far: bool,
}

pub(super) type Answer = Sender<Result<Vec<Vec<u8>>>>;

/// What the thread is asked to do.
pub(super) enum Task {
    Exchange(Vec<Letter>, Vec<Expected>, Answer),
    Broadcast(Vec<u8>, Answer),
    Stop,
    Abort(Error),
    Finish(Sender<Result<()>>),
    /// Ends all processes, after a while.
    Die(u8, Duration),
}

/// Called with the error that ends the run.
pub type OnEnd = Box<dyn Fn(&Error) + Send>;
/// Called when another process asks to stop.
pub type OnStop = Box<dyn Fn() + Send>;

#[derive(Default)]
pub(super) struct Heard {
    /// For each process, its host, once that is known.
    pub hosts: Vec<String>,
    pub end: Option<End>,
    pub stop: bool,
    /// The signal that has come to this process.
    pub own_signal: String,
    /// The signal that has come to another one, and to which.
    pub signal: Option<String>,
    pub finished: bool,
    pub calls: Vec<(OnEnd, OnStop)>,
}

impl Heard {
    pub fn name(&self, process: usize) -> String {
        let host = self.hosts.get(process).map_or_else(String::new, |host| format!(" on {host}"));
        format!("rank {process}{host}")
    }
}

/// The way to the thread. Answers come when it has done what it was asked for.
#[derive(Clone)]
pub struct Hub {
    tasks: Sender<Task>,
    heard: Arc<Mutex<Heard>>,
}

/// Messages on their way.
pub struct Pending(Receiver<Result<Vec<Vec<u8>>>>);

impl Pending {
    /// Waits for them; returns what came, in the order in which it was expected.
    ///
    /// # Errors
    /// The error that ended the run.
    pub fn wait(&self) -> Result<Vec<Vec<u8>>> {
        self.0.recv().unwrap_or_else(|_| Err(gone()))
    }
}

pub(super) fn gone() -> Error {
    Error::lost(Fault::at("mpi", "the thread that calls it has ended"))
}

/// The process and its run, as the thread sees them.
pub struct Place {
    /// This process.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// How long another process may be silent.
    pub patience: Duration,
}

impl Hub {
    /// Serves what is asked for on this thread until the run ends; `library` has been started on it.
    pub fn new() -> (Self, impl FnOnce(&Library, Communicator, Place)) {
        let (tasks, receiver) = channel();
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let hub = Self { tasks, heard: Arc::clone(&heard) };
        let serve = move |library: &Library, all: Communicator, place: Place| {
            Desk::new(library, all, place, heard).serve(&receiver);
        };
        (hub, serve)
    }

    /// Begins to send letters and to receive others.
    #[must_use]
    pub fn exchange(&self, letters: Vec<Letter>, expected: Vec<Expected>) -> Pending {
        self.ask(|answer| Task::Exchange(letters, expected, answer))
    }

    /// Gives the bytes of the first process to all others, which bring as many. All processes call this in the same order.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let came = self.ask(|answer| Task::Broadcast(bytes, answer)).wait()?;
        Ok(came.into_iter().next().unwrap_or_default())
    }

    fn ask(&self, task: impl FnOnce(Answer) -> Task) -> Pending {
        let (answer, pending) = channel();
        // a thread that has ended drops the answer
        let _ = self.tasks.send(task(answer));
        Pending(pending)
    }

    /// Has functions called when the run ends early, and when another process asks to stop; at once if that was before.
    pub fn on_end(&self, end: OnEnd, stop: OnStop) {
        let mut heard = self.heard();
        if let Some(ended) = &heard.end {
            end(&ended.error);
        }
        if heard.stop {
            stop();
        }
        heard.calls.push((end, stop));
    }

    /// Tells the hosts of all processes, for messages.
    pub fn name(&self, hosts: Vec<String>) {
        self.heard().hosts = hosts;
    }

    /// Returns a process's name for messages.
    #[must_use]
    pub fn name_of(&self, process: usize) -> String {
        self.heard().name(process)
    }

    /// Notes a signal that has come to this process.
    pub fn note_signal(&self, name: &str) {
        name.clone_into(&mut self.heard().own_signal);
    }

    /// Returns the signal that another process has told of, and which process that is.
    #[must_use]
    pub fn signal(&self) -> Option<String> {
        self.heard().signal.clone()
    }

    /// True once MPI has ended as it should.
    #[must_use]
    pub fn has_finished(&self) -> bool {
        self.heard().finished
    }

    /// Asks all processes to stop.
    pub fn ask_to_stop(&self) {
        let _ = self.tasks.send(Task::Stop);
    }

    /// Ends the run of all processes with an error of this one.
    pub fn abort(&self, error: &Error) {
        let _ = self.tasks.send(Task::Abort(error.clone()));
    }

    /// Returns what ended the run early.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.heard().end.clone()
    }

    /// Ends MPI when all processes have called this. After an error it does not wait for them.
    ///
    /// # Errors
    /// The error that ended the run.
    pub fn finish(&self) -> Result<()> {
        let (answer, pending) = channel();
        let _ = self.tasks.send(Task::Finish(answer));
        pending.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// Ends all processes with an exit code, this one too, after a while in which they may hear why.
    pub fn die(&self, code: u8, after: Duration) {
        let _ = self.tasks.send(Task::Die(code, after));
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
