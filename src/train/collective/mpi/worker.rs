//! The thread of a process that calls MPI. Other threads send it requests through [`super::client`] and wait for its
//! answers.
//!
//! MPI waits in a busy loop and notices neither signals nor the silence of another machine. So this thread never waits
//! in MPI: it polls for messages, sleeps briefly and polls again. It sends each other process a heartbeat every second.
//! If a process is silent for too long, the run ends with an error.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::client::{Answer, End, Incoming, Outgoing, Process, RunState, Task, gone};
use super::library::{Communicator, Library, Request};
use crate::error::{Error, Fault, Result};

/// Largest message in bytes; longer ones are sent in pieces. MPI counts up to 2^31.
const MAX_BYTES: usize = 1 << 30;
/// Tag of heartbeats, stops and errors.
const CONTROL: i32 = 1;
/// Bytes of a control message: kind, exit code, length of the text, text.
const NOTE_BYTES: usize = 2048;
/// Time between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Time after the last transfer during which the thread polls without sleeping.
const EAGER: Duration = Duration::from_micros(200);
/// Shortest and longest sleep between two polls while messages are pending.
const SLEEP: [Duration; 2] = [Duration::from_micros(50), Duration::from_millis(1)];
/// Sleep between two polls while only heartbeats are pending.
const IDLE: Duration = Duration::from_millis(5);
/// Longest gap between two polls that counts as silence of others. A longer gap means that this process was suspended,
/// so it has not observed the others.
const GAP: Duration = Duration::from_secs(2);

/// The messages of one request.
struct Posted {
    requests: Vec<Request>,
    /// Memory that MPI reads until the requests are done.
    outgoing: Vec<Outgoing>,
    /// Memory that MPI writes until the requests are done.
    buffers: Vec<Vec<u8>>,
    answer: Option<Answer>,
}

/// The kind of a control message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoteKind {
    Heartbeat,
    Stop,
    Abort,
    End,
}

impl NoteKind {
    const ALL: [Self; 4] = [Self::Heartbeat, Self::Stop, Self::Abort, Self::End];
}

/// One other process.
struct Peer {
    process: usize,
    note: Box<[u8; NOTE_BYTES]>,
    /// The pending receive; `None` after the peer's last message.
    listening: Option<Request>,
    silent: Duration,
    /// Pending control messages to it.
    notes: Vec<(Request, Vec<u8>)>,
}

/// State of the thread that calls MPI.
pub struct Worker<'l> {
    library: &'l Library,
    all: Communicator,
    place: Process,
    heard: Arc<Mutex<RunState>>,
    posted: Vec<Posted>,
    /// Messages of a run that has ended; MPI may still use their memory.
    abandoned: Vec<Posted>,
    peers: Vec<Peer>,
    last_beat: Instant,
    last_look: Instant,
    finishing: Option<Sender<Result<()>>>,
    dying: Option<(u8, Instant)>,
}

impl<'l> Worker<'l> {
    /// Makes the state for a library that was started on this thread.
    pub fn new(library: &'l Library, all: Communicator, place: Process, heard: Arc<Mutex<RunState>>) -> Self {
        let peer = |process| Peer {
            process,
            note: Box::new([0; NOTE_BYTES]),
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

    /// Serves requests until the run ends.
    pub fn serve(&mut self, tasks: &Receiver<Task>) {
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
                // all senders are gone and MPI was not finished: the process is about to exit
                Err(RecvTimeoutError::Disconnected) => return,
            }
            match self.poll() {
                Ok(true) => (moved, sleep) = (Instant::now(), SLEEP[0]),
                Ok(false) => {}
                Err(error) => self.end(&error, false),
            }
            if let Some((code, at)) = self.dying
                && Instant::now() >= at
            {
                self.library.abort(code);
                // MPI_Abort does not return
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
            Task::Exchange(outgoing, expected, answer) => {
                let result = self.post(outgoing, expected, answer);
                result.unwrap_or_else(|error| self.end(&error, false));
            }
            Task::Broadcast(bytes, answer) => {
                let mut posted =
                    Posted { requests: Vec::new(), outgoing: Vec::new(), buffers: vec![bytes], answer: Some(answer) };
                let mut result = Ok(());
                for piece in posted.buffers[0].chunks_mut(MAX_BYTES) {
                    // SAFETY: `posted` keeps the bytes, and nothing uses them until all requests are done
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
                self.broadcast_note(NoteKind::Stop, 0, &name);
            }
            Task::Abort(error) => self.end(&error, false),
            Task::Finish(answer) => {
                if ended.is_none() {
                    self.broadcast_note(NoteKind::End, 0, "");
                }
                self.finishing = Some(answer);
            }
            Task::Die(code, after) => self.dying = Some((code, Instant::now() + after)),
        }
    }

    fn post(&mut self, outgoing: Vec<Outgoing>, expected: Vec<Incoming>, answer: Answer) -> Result<()> {
        let mut posted = Posted { requests: Vec::new(), outgoing, buffers: Vec::new(), answer: Some(answer) };
        let mut result = Ok(());
        for Incoming { process, tag, length, mut buffer } in expected {
            buffer.resize(length, 0);
            posted.buffers.push(buffer);
            let Some(buffer) = posted.buffers.last_mut() else { continue };
            for piece in buffer.chunks_mut(MAX_BYTES) {
                // SAFETY: `posted` keeps the memory, and nothing uses it until all requests are done
                match unsafe { self.library.receive(piece, process, tag, self.all) } {
                    Ok(request) => posted.requests.push(request),
                    Err(error) => result = result.and(Err(error)),
                }
            }
        }
        for message in &posted.outgoing {
            for piece in message.bytes().chunks(MAX_BYTES) {
                // SAFETY: `posted` keeps the bytes, and nothing writes them while they are shared
                match unsafe { self.library.send(piece, message.process, message.tag, self.all) } {
                    Ok(request) => posted.requests.push(request),
                    Err(error) => result = result.and(Err(error)),
                }
            }
        }
        self.posted.push(posted);
        result
    }

    /// Begins to receive the next control message of a peer.
    fn listen(&mut self, at: usize) -> Result<()> {
        let peer = &mut self.peers[at];
        // SAFETY: the buffer belongs to the peer, and is read only when the request is done
        let request = unsafe { self.library.receive(&mut peer.note[..], peer.process, CONTROL, self.all) }?;
        peer.listening = Some(request);
        Ok(())
    }

    /// Sends a control message to all peers.
    fn broadcast_note(&mut self, kind: NoteKind, code: u8, text: &str) {
        let mut end = text.len().min(NOTE_BYTES - 4);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = &text.as_bytes()[..end];
        let length = u16::try_from(text.len()).unwrap_or(0).to_le_bytes();
        let note = [&[kind as u8, code, length[0], length[1]], text].concat();
        let mut failed = None;
        for peer in &mut self.peers {
            // no second heartbeat while one is pending
            if kind == NoteKind::Heartbeat && !peer.notes.is_empty() {
                continue;
            }
            let note = note.clone();
            // SAFETY: the message is kept with its request until the request is done
            match unsafe { self.library.send(&note, peer.process, CONTROL, self.all) } {
                Ok(request) => peer.notes.push((request, note)),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            self.end(&error, false);
        }
    }

    /// Polls all pending messages; returns whether one has arrived or left.
    fn poll(&mut self) -> Result<bool> {
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
        // before any answer, because a failed message has not arrived
        if let Some(error) = failed {
            return Err(error);
        }
        abandoned.retain(|posted| !posted.requests.is_empty());
        for Posted { outgoing, buffers, answer, .. } in posted.extract_if(.., |posted| posted.requests.is_empty()) {
            // the waiting thread may overwrite the sent bytes after the answer
            drop(outgoing);
            if let Some(answer) = answer {
                let _ = answer.send(Ok(buffers));
            }
        }
        self.poll_peers()?;
        Ok(moved)
    }

    fn poll_peers(&mut self) -> Result<()> {
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
            let length = usize::from(u16::from_le_bytes([low, high])).min(NOTE_BYTES - 4);
            let text = String::from_utf8_lossy(&peer.note[4..4 + length]).into_owned();
            let process = peer.process;
            match NoteKind::ALL.into_iter().find(|other| *other as u8 == kind) {
                Some(NoteKind::Stop) => {
                    let mut heard = self.heard();
                    heard.stop = true;
                    let from = heard.name(process);
                    heard.signal.get_or_insert(if text.is_empty() { from } else { format!("{text} to {from}") });
                    heard.calls.iter().for_each(|(_, stop)| stop());
                }
                Some(NoteKind::Abort) => {
                    let fault = Fault::from(text).within(self.heard().name(process));
                    self.end(&Error::of_code(code, fault), true);
                }
                Some(NoteKind::End) => continue,
                _ => {}
            }
            self.listen(at)?;
        }
        if self.last_beat.elapsed() >= HEARTBEAT && self.finishing.is_none() {
            self.last_beat = Instant::now();
            self.broadcast_note(NoteKind::Heartbeat, 0, "");
        }
        let silence_limit = self.place.silence_limit;
        let silent = self.peers.iter().find(|peer| peer.listening.is_some() && peer.silent > silence_limit);
        let silent = silent.map(|peer| peer.process).filter(|_| self.ended().is_none());
        silent.map_or(Ok(()), |process| {
            let what =
                format!("no heartbeat from {} for {:.0} s", self.heard().name(process), silence_limit.as_secs_f64());
            let fault = Fault::at("mpi", what).expected("one per second");
            Err(Error::lost(fault.advice("check the machine, the process and the network, then resume the run")))
        })
    }

    /// Ends the run of this process with an error, and that of all others unless the error came from one of them.
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
            self.broadcast_note(NoteKind::Abort, error.exit_code(), &error.to_string());
        }
    }

    fn ended(&self) -> Option<End> {
        self.heard().end.clone()
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, RunState> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether MPI may be finalized: all processes are finished, and no message is pending.
    fn is_finished(&self) -> bool {
        self.finishing.is_some()
            && (self.ended().is_some()
                || self.posted.is_empty()
                    && self.peers.iter().all(|peer| peer.listening.is_none() && peer.notes.is_empty()))
    }
}
