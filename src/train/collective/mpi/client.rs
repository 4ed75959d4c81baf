//! Requests to the thread that calls MPI ([`super::worker`]), from other threads, and its answers.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::library::{Communicator, Library};
use super::worker::Worker;
use crate::error::{Error, Fault, Result};
use crate::train::collective::Shared;

/// First tag of the devices' messages. MPI guarantees tags up to 32,767.
pub const FIRST_TAG: usize = 16;
/// Largest number of devices per process, so that every pair has a tag.
pub const MAX_DEVICES: usize = 64;

/// Bytes to send to a device of another process.
pub struct Outgoing {
    /// The receiving process.
    pub process: usize,
    /// Distinguishes messages between the same two processes.
    pub tag: i32,
    /// Memory that contains the bytes.
    pub bytes: Shared,
    /// The range of `bytes` to send.
    pub range: std::ops::Range<usize>,
}

impl Outgoing {
    pub(super) fn bytes(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.range.clone()]
    }
}

/// Bytes to receive from a device of another process.
pub struct Incoming {
    /// The sending process.
    pub process: usize,
    /// Tag of the message; see [`Outgoing::tag`].
    pub tag: i32,
    /// Number of bytes.
    pub length: usize,
    /// A buffer to reuse, of any length.
    pub buffer: Vec<u8>,
}

/// The early end of a run.
#[derive(Debug, Clone)]
pub struct End {
    /// The error, with rank and host if it occurred in another process.
    pub error: Error,
    /// Whether it occurred in another process, which prints it.
    pub is_far: bool,
}

pub(super) type Answer = Sender<Result<Vec<Vec<u8>>>>;

/// A request to the thread.
pub(super) enum Task {
    Exchange(Vec<Outgoing>, Vec<Incoming>, Answer),
    Broadcast(Vec<u8>, Answer),
    Stop,
    Abort(Error),
    Finish(Sender<Result<()>>),
    /// Ends all processes with an exit code after a delay.
    Die(u8, Duration),
}

/// A function that is called with the error that ends the run.
pub type OnEnd = Box<dyn Fn(&Error) + Send>;
/// A function that is called when another process asks to stop.
pub type OnStop = Box<dyn Fn() + Send>;

#[derive(Default)]
pub(super) struct RunState {
    /// The host of each process, once it is known.
    pub hosts: Vec<String>,
    pub end: Option<End>,
    pub stop: bool,
    /// The signal that this process received.
    pub own_signal: String,
    /// The signal that another process received, and which process that is.
    pub signal: Option<String>,
    pub finished: bool,
    pub calls: Vec<(OnEnd, OnStop)>,
}

impl RunState {
    pub fn name(&self, process: usize) -> String {
        let host = self.hosts.get(process).map_or_else(String::new, |host| format!(" on {host}"));
        format!("rank {process}{host}")
    }
}

/// Sends requests to the thread. An answer arrives when the request is done.
#[derive(Clone)]
pub struct Client {
    tasks: Sender<Task>,
    heard: Arc<Mutex<RunState>>,
}

/// Pending messages.
pub struct Pending(Receiver<Result<Vec<Vec<u8>>>>);

impl Pending {
    /// Waits for the messages; returns the received bytes, in the order of the request.
    ///
    /// # Errors
    /// The error that ended the run.
    pub fn wait(&self) -> Result<Vec<Vec<u8>>> {
        self.0.recv().unwrap_or_else(|_| Err(gone()))
    }
}

pub(super) fn gone() -> Error {
    Error::lost(Fault::at("mpi", "the thread that calls MPI has ended"))
}

/// The process's rank and limits, for the thread.
pub struct Process {
    /// Rank of this process.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// Longest time without a heartbeat from another process.
    pub silence_limit: Duration,
}

impl Client {
    /// Makes a client, and the function that serves its requests until the run ends. The function runs on the thread that
    /// started the library.
    pub fn new() -> (Self, impl FnOnce(&Library, Communicator, Process)) {
        let (tasks, receiver) = channel();
        let heard: Arc<Mutex<RunState>> = Arc::default();
        let client = Self { tasks, heard: Arc::clone(&heard) };
        let serve = move |library: &Library, all: Communicator, place: Process| {
            Worker::new(library, all, place, heard).serve(&receiver);
        };
        (client, serve)
    }

    /// Begins to send and to receive messages.
    #[must_use]
    pub fn exchange(&self, outgoing: Vec<Outgoing>, expected: Vec<Incoming>) -> Pending {
        self.ask(|answer| Task::Exchange(outgoing, expected, answer))
    }

    /// Sends the bytes of the first process to all others and returns them. All processes pass the same number of bytes
    /// and call this in the same order.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let came = self.ask(|answer| Task::Broadcast(bytes, answer)).wait()?;
        Ok(came.into_iter().next().unwrap_or_default())
    }

    fn ask(&self, task: impl FnOnce(Answer) -> Task) -> Pending {
        let (answer, pending) = channel();
        // if the thread has ended, the answer channel is closed
        let _ = self.tasks.send(task(answer));
        Pending(pending)
    }

    /// Registers functions to call when the run ends early and when another process asks to stop. Calls them at once if
    /// that has already happened.
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

    /// Sets the hosts of all processes, for messages.
    pub fn name(&self, hosts: Vec<String>) {
        self.heard().hosts = hosts;
    }

    /// Returns a process's name for messages.
    #[must_use]
    pub fn name_of(&self, process: usize) -> String {
        self.heard().name(process)
    }

    /// Records a signal that this process received.
    pub fn note_signal(&self, name: &str) {
        name.clone_into(&mut self.heard().own_signal);
    }

    /// Returns the signal that another process received and reported, and which process that is.
    #[must_use]
    pub fn signal(&self) -> Option<String> {
        self.heard().signal.clone()
    }

    /// Returns whether MPI was finalized without an error.
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

    /// Returns the early end of the run, if there was one.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.heard().end.clone()
    }

    /// Finalizes MPI when all processes have called this. After an error it does not wait for them.
    ///
    /// # Errors
    /// The error that ended the run.
    pub fn finish(&self) -> Result<()> {
        let (answer, pending) = channel();
        let _ = self.tasks.send(Task::Finish(answer));
        pending.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// Ends all processes, this one included, with an exit code after a delay, in which the others can receive the
    /// error.
    pub fn die(&self, code: u8, after: Duration) {
        let _ = self.tasks.send(Task::Die(code, after));
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, RunState> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
