//! The thread of a process that calls MPI. Others hand it what is to be sent and received, and wait for its answer.
//!
//! MPI itself waits by computing, and hears neither signals nor the silence of another machine. So nothing here waits in MPI: the
//! thread asks what has arrived, sleeps a little, and asks again. Every second it gives each other process a sign of life; from one
//! that is silent for too long the run ends.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::library::{Communicator, Library, Request};
use crate::error::{Error, Fault, Result};
use crate::train::collective::Shared;

/// Bytes of a message at most; what is longer goes in pieces. MPI counts to 2^31.
const LONGEST: usize = 1 << 30;
/// The tag of signs of life, stops and errors.
const CONTROL: i32 = 1;
/// Tags of the devices' messages begin here. MPI promises 32,767 of them.
pub const FIRST_TAG: usize = 16;
/// Devices of a process at most, so that every pair has a tag.
pub const MOST_DEVICES: usize = 64;
/// Bytes of a control message: a kind, an exit code, the length of a text, the text.
const NOTE: usize = 2048;
/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(1);
/// As long as it has just moved bytes, the thread asks without sleeping.
const EAGER: Duration = Duration::from_micros(200);
/// Sleep between two looks at messages on their way, at first, and at most.
const SLEEP: [Duration; 2] = [Duration::from_micros(50), Duration::from_millis(1)];
/// Sleep between two looks when only signs of life are awaited.
const IDLE: Duration = Duration::from_millis(5);
/// Between two looks of a process that runs; a longer gap is a suspension, of which others' silence is no proof.
const GAP: Duration = Duration::from_secs(2);

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
    fn bytes(&self) -> &[u8] {
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

type Answer = Sender<Result<Vec<Vec<u8>>>>;

/// What the thread is asked to do.
enum Task {
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
struct Heard {
    /// For each process, its host, once that is known.
    hosts: Vec<String>,
    end: Option<End>,
    stop: bool,
    /// The signal that has come to this process.
    own_signal: String,
    /// The signal that has come to another one, and to which.
    signal: Option<String>,
    finished: bool,
    calls: Vec<(OnEnd, OnStop)>,
}

impl Heard {
    fn name(&self, process: usize) -> String {
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

fn gone() -> Error {
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

/// Messages that belong together.
struct Posted {
    requests: Vec<Request>,
    /// Is read until they are done.
    letters: Vec<Letter>,
    /// Is written until they are done.
    buffers: Vec<Vec<u8>>,
    answer: Option<Answer>,
}

/// What another process wants everyone to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Beat,
    Stop,
    Abort,
    End,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Beat, Self::Stop, Self::Abort, Self::End];
}

/// One other process.
struct Peer {
    process: usize,
    note: Box<[u8; NOTE]>,
    /// None once it has said its last.
    listening: Option<Request>,
    silent: Duration,
    /// Notes to it that are on their way.
    notes: Vec<(Request, Vec<u8>)>,
}

/// The thread's state.
struct Desk<'l> {
    library: &'l Library,
    all: Communicator,
    place: Place,
    heard: Arc<Mutex<Heard>>,
    posted: Vec<Posted>,
    /// Messages of a run that has ended, whose memory MPI may still use.
    abandoned: Vec<Posted>,
    peers: Vec<Peer>,
    last_beat: Instant,
    last_look: Instant,
    finishing: Option<Sender<Result<()>>>,
    dying: Option<(u8, Instant)>,
}

impl<'l> Desk<'l> {
    fn new(library: &'l Library, all: Communicator, place: Place, heard: Arc<Mutex<Heard>>) -> Self {
        let peer = |process| Peer {
            process,
            note: Box::new([0; NOTE]),
            listening: None,
            silent: Duration::ZERO,
            notes: Vec::new(),
        };
        let peers = (0..place.size).filter(|process| *process != place.rank).map(peer).collect();
        let now = Instant::now();
        Self {
            library,
            all,
            place,
            heard,
            posted: Vec::new(),
            abandoned: Vec::new(),
            peers,
            last_beat: now,
            last_look: now,
            finishing: None,
            dying: None,
        }
    }

    fn serve(&mut self, tasks: &Receiver<Task>) {
        for at in 0..self.peers.len() {
            if let Err(error) = self.listen(at) {
                self.end(&error, false);
            }
        }
        let mut moved = Instant::now();
        let mut sleep = SLEEP[0];
        loop {
            let is_busy = !self.posted.is_empty() || self.finishing.is_some() || self.dying.is_some();
            let task = if !is_busy {
                tasks.recv_timeout(IDLE)
            } else if moved.elapsed() < EAGER {
                std::thread::yield_now();
                tasks.try_recv().map_err(|error| match error {
                    std::sync::mpsc::TryRecvError::Empty => RecvTimeoutError::Timeout,
                    std::sync::mpsc::TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                })
            } else {
                let task = tasks.recv_timeout(sleep);
                sleep = (sleep * 5 / 4).min(SLEEP[1]);
                task
            };
            match task {
                Ok(task) => {
                    (moved, sleep) = (Instant::now(), SLEEP[0]);
                    self.take(task);
                }
                Err(RecvTimeoutError::Timeout) => {}
                // nobody asks any more, and nobody has ended MPI: the process is about to end
                Err(RecvTimeoutError::Disconnected) => return,
            }
            match self.look() {
                Ok(true) => (moved, sleep) = (Instant::now(), SLEEP[0]),
                Ok(false) => {}
                Err(error) => self.end(&error, false),
            }
            if let Some((code, at)) = self.dying
                && Instant::now() >= at
            {
                self.library.abort(code);
                // it does not come back from that
                return;
            }
            if self.is_finished() {
                let result = match self.ended() {
                    Some(end) => Err(end.error),
                    None => self.library.finish(),
                };
                let went_well = result.is_ok();
                self.heard().finished = went_well;
                self.finishing.take().into_iter().for_each(|answer| drop(answer.send(result.clone())));
                if went_well {
                    return;
                }
            }
        }
    }

    fn take(&mut self, task: Task) {
        let ended = self.ended();
        match task {
            Task::Exchange(_, _, answer) | Task::Broadcast(_, answer) if ended.is_some() => {
                let error = ended.map_or_else(gone, |end| end.error);
                let _ = answer.send(Err(error));
            }
            Task::Exchange(letters, expected, answer) => {
                let result = self.post(letters, expected, answer);
                result.unwrap_or_else(|error| self.end(&error, false));
            }
            Task::Broadcast(bytes, answer) => {
                let mut posted =
                    Posted { requests: Vec::new(), letters: Vec::new(), buffers: vec![bytes], answer: Some(answer) };
                let mut result = Ok(());
                for piece in posted.buffers[0].chunks_mut(LONGEST) {
                    // SAFETY: `posted` keeps the bytes, which nobody uses until all requests are done
                    match unsafe { self.library.broadcast(piece, 0, self.all) } {
                        Ok(request) => posted.requests.push(request),
                        Err(error) => result = result.and(Err(error)),
                    }
                }
                self.posted.push(posted);
                result.unwrap_or_else(|error| self.end(&error, false));
            }
            Task::Stop => {
                let name = {
                    let mut heard = self.heard();
                    heard.stop = true;
                    heard.own_signal.clone()
                };
                self.tell(Kind::Stop, 0, &name);
            }
            Task::Abort(error) => self.end(&error, false),
            Task::Finish(answer) => {
                if ended.is_none() {
                    self.tell(Kind::End, 0, "");
                }
                self.finishing = Some(answer);
            }
            Task::Die(code, after) => self.dying = Some((code, Instant::now() + after)),
        }
    }

    fn post(&mut self, letters: Vec<Letter>, expected: Vec<Expected>, answer: Answer) -> Result<()> {
        let mut posted = Posted { requests: Vec::new(), letters, buffers: Vec::new(), answer: Some(answer) };
        let mut result = Ok(());
        for Expected { process, tag, length, mut buffer } in expected {
            buffer.resize(length, 0);
            posted.buffers.push(buffer);
            let Some(buffer) = posted.buffers.last_mut() else { continue };
            for piece in buffer.chunks_mut(LONGEST) {
                // SAFETY: `posted` keeps the memory, which nobody uses until all requests are done
                match unsafe { self.library.receive(piece, process, tag, self.all) } {
                    Ok(request) => posted.requests.push(request),
                    Err(error) => result = result.and(Err(error)),
                }
            }
        }
        for letter in &posted.letters {
            for piece in letter.bytes().chunks(LONGEST) {
                // SAFETY: `posted` keeps the bytes, which nobody writes while they are shared
                match unsafe { self.library.send(piece, letter.process, letter.tag, self.all) } {
                    Ok(request) => posted.requests.push(request),
                    Err(error) => result = result.and(Err(error)),
                }
            }
        }
        self.posted.push(posted);
        result
    }

    /// Waits for the next note of a peer.
    fn listen(&mut self, at: usize) -> Result<()> {
        let peer = &mut self.peers[at];
        // SAFETY: the note is the peer's, and looked at when the request is done
        let request = unsafe { self.library.receive(&mut peer.note[..], peer.process, CONTROL, self.all) }?;
        peer.listening = Some(request);
        Ok(())
    }

    /// Sends a note to all peers.
    fn tell(&mut self, kind: Kind, code: u8, text: &str) {
        let mut end = text.len().min(NOTE - 4);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = &text.as_bytes()[..end];
        let length = u16::try_from(text.len()).unwrap_or(0).to_le_bytes();
        let note = [&[kind as u8, code, length[0], length[1]], text].concat();
        let mut failed = None;
        for peer in &mut self.peers {
            // a beat that has not left says enough
            if kind == Kind::Beat && !peer.notes.is_empty() {
                continue;
            }
            let note = note.clone();
            // SAFETY: the note is kept with its request until that is done
            match unsafe { self.library.send(&note, peer.process, CONTROL, self.all) } {
                Ok(request) => peer.notes.push((request, note)),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            self.end(&error, false);
        }
    }

    /// Looks at everything that is on its way; true if something has arrived or left.
    fn look(&mut self) -> Result<bool> {
        let Self { library, posted, abandoned, .. } = self;
        let (mut moved, mut failed) = (false, None);
        for posted in posted.iter_mut().chain(abandoned.iter_mut()) {
            posted.requests.retain_mut(|request| match library.is_done(request) {
                Ok(false) => true,
                Ok(true) => {
                    moved = true;
                    false
                }
                Err(error) => {
                    failed.get_or_insert(error);
                    false
                }
            });
        }
        // before any answer: what has failed has not arrived
        if let Some(error) = failed {
            return Err(error);
        }
        abandoned.retain(|posted| !posted.requests.is_empty());
        for Posted { letters, buffers, answer, .. } in posted.extract_if(.., |posted| posted.requests.is_empty()) {
            // who waits may write there again
            drop(letters);
            if let Some(answer) = answer {
                let _ = answer.send(Ok(buffers));
            }
        }
        self.look_at_peers()?;
        Ok(moved)
    }

    fn look_at_peers(&mut self) -> Result<()> {
        let gap = self.last_look.elapsed().min(GAP);
        self.last_look = Instant::now();
        for at in 0..self.peers.len() {
            let (library, peer) = (self.library, &mut self.peers[at]);
            let mut sent = 0;
            while let Some((request, _)) = peer.notes.get_mut(sent) {
                if library.is_done(request)? {
                    peer.notes.remove(sent);
                } else {
                    sent += 1;
                }
            }
            let Some(request) = &mut peer.listening else { continue };
            if !library.is_done(request)? {
                peer.silent += gap;
                continue;
            }
            (peer.listening, peer.silent) = (None, Duration::ZERO);
            let [kind, code, low, high] = [0, 1, 2, 3].map(|at| peer.note[at]);
            let length = usize::from(u16::from_le_bytes([low, high])).min(NOTE - 4);
            let text = String::from_utf8_lossy(&peer.note[4..4 + length]).into_owned();
            let process = peer.process;
            match Kind::ALL.into_iter().find(|other| *other as u8 == kind) {
                Some(Kind::Stop) => {
                    let mut heard = self.heard();
                    heard.stop = true;
                    let from = heard.name(process);
                    heard.signal.get_or_insert(if text.is_empty() { from } else { format!("{text} to {from}") });
                    heard.calls.iter().for_each(|(_, stop)| stop());
                }
                Some(Kind::Abort) => {
                    let fault = Fault::from(text).within(self.heard().name(process));
                    self.end(&Error::of_code(code, fault), true);
                }
                Some(Kind::End) => continue,
                _ => {}
            }
            self.listen(at)?;
        }
        if self.last_beat.elapsed() >= BEAT && self.finishing.is_none() {
            self.last_beat = Instant::now();
            self.tell(Kind::Beat, 0, "");
        }
        let patience = self.place.patience;
        let silent = self.peers.iter().find(|peer| peer.listening.is_some() && peer.silent > patience);
        let silent = silent.map(|peer| peer.process).filter(|_| self.ended().is_none());
        silent.map_or(Ok(()), |process| {
            let what =
                format!("{} has given no sign of life for {:.0} s", self.heard().name(process), patience.as_secs_f64());
            let fault = Fault::at("mpi", what).expected("one a second");
            Err(Error::lost(
                fault.advice("see whether the machine, the process and the network are well, and resume the run"),
            ))
        })
    }

    /// Ends the run: of this process, and of all others unless they have said so.
    fn end(&mut self, error: &Error, is_far: bool) {
        {
            let mut heard = self.heard();
            if heard.end.is_some() {
                return;
            }
            heard.end = Some(End { error: error.clone(), is_far });
            heard.calls.iter().for_each(|(end, _)| end(error));
        }
        for mut posted in std::mem::take(&mut self.posted) {
            posted.answer.take().into_iter().for_each(|answer| drop(answer.send(Err(error.clone()))));
            self.abandoned.push(posted);
        }
        if !is_far {
            self.tell(Kind::Abort, error.exit_code(), &error.to_string());
        }
    }

    fn ended(&self) -> Option<End> {
        self.heard().end.clone()
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when MPI may end: everybody has said so, and nothing is on its way.
    fn is_finished(&self) -> bool {
        self.finishing.is_some()
            && (self.ended().is_some()
                || self.posted.is_empty()
                    && self.peers.iter().all(|peer| peer.listening.is_none() && peer.notes.is_empty()))
    }
}
