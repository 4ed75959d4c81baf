//! Processes of a run, on one machine or on several, that an MPI launcher started.
//!
//! | module | contents |
//! |---|---|
//! | [`launcher`] | detection of a launcher from the environment |
//! | [`library`] | an MPI library, opened at run time, and its functions |
//! | `worker` | the one thread that calls MPI |
//! | [`client`] | requests to that thread |

pub mod client;
pub mod launcher;
pub mod library;
mod worker;

use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::error::{Error, Fault, Result};
use crate::train::collective::{Link, Part};
use client::{Client, Incoming, MAX_DEVICES, Outgoing, Process};
use launcher::{Launch, Launcher};
use library::Library;

/// Bytes per message of a broadcast.
const PIECE: usize = 64 << 20;
/// Tag of the messages of [`World::share`].
const SHARED: i32 = 2;
/// Processes with the same value of this variable count as one machine. Without it, processes under one kernel do, or
/// processes that share memory according to MPI.
const MACHINE: &str = "WGPT_MACHINE";
/// Linux's random id of a boot. It is needed because MPICH with UCX reports that no two processes share memory.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// Time for the first process to save its records when another process ends the run.
const GRACE: Duration = Duration::from_secs(10);
/// Time for the message of an error to reach the other processes.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Settings of [`World::join`].
#[derive(Debug, Clone)]
pub struct WorldOptions {
    /// Path of the library; without it the first one that the launcher supports.
    pub library: Option<PathBuf>,
    /// Longest time without a heartbeat from another process.
    pub silence_limit: Duration,
}

/// This process and the other processes of a run.
pub struct World {
    client: Client,
    rank: usize,
    /// The host of each process.
    hosts: Vec<String>,
    /// The machine of each process; machines are numbered in the order of their first processes.
    machines: Vec<usize>,
    library: String,
    launcher: Launcher,
}

/// Facts that the MPI thread reports after it has started.
struct ProcessFacts {
    rank: usize,
    size: usize,
    machine: usize,
    host: String,
    library: String,
}

/// The placement of a run's devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The process of each device. Devices of a machine are neighbours.
    pub processes: Vec<usize>,
    /// Number of machines for the exchange, each with the same number of devices; 1 if their numbers differ.
    pub machines: usize,
    /// Number of real machines.
    pub hosts: usize,
}

impl Layout {
    /// Places the devices of processes. `machines` contains the machine of each process, `devices` its number of
    /// devices.
    #[must_use]
    pub fn new(machines: &[usize], devices: &[usize]) -> Self {
        let hosts = machines.iter().max().map_or(1, |last| last + 1);
        let of = |machine: usize| (0..machines.len()).filter(move |process| machines[*process] == machine);
        let on = |machine: usize| -> Vec<usize> {
            of(machine).flat_map(|process| std::iter::repeat_n(process, devices[process])).collect()
        };
        let all: Vec<Vec<usize>> = (0..hosts).map(on).collect();
        let is_even = all.iter().all(|one| one.len() == all[0].len());
        Self { processes: all.concat(), machines: if is_even { hosts } else { 1 }, hosts }
    }

    /// Returns the devices of a process.
    #[must_use]
    pub fn parts(&self, process: usize) -> Vec<Part> {
        let (devices, machines) = (self.processes.len(), self.machines);
        let own = (0..devices).filter(|device| self.processes[*device] == process);
        own.map(|device| Part { device, devices, machines }).collect()
    }
}

impl World {
    /// Joins the processes that the launcher started together with this one, and waits for all of them.
    ///
    /// # Errors
    /// [`Error::Device`] if the launcher's library cannot be opened; [`Error::Lost`] if MPI fails.
    pub fn join(launch: Launch, options: WorldOptions) -> Result<Self> {
        let host = host();
        let (client, serve) = Client::new();
        let limit = options.silence_limit;
        let (tell, told) = channel();
        let start = move || {
            let WorldOptions { library, silence_limit } = options;
            let begun = Library::open(library.as_deref(), launch, &host).and_then(|library| {
                let all = library.start()?;
                Ok((facts(&library, all, host, launch)?, library, all))
            });
            match begun {
                Ok((facts, library, all)) => {
                    let (rank, size) = (facts.rank, facts.size);
                    let _ = tell.send(Ok(facts));
                    serve(&library, all, Process { rank, size, silence_limit });
                }
                Err(error) => drop(tell.send(Err(error))),
            }
        };
        let thread = std::thread::Builder::new().name("mpi".into()).spawn(start);
        thread.map_err(|error| Error::device(Fault::at("mpi", format!("cannot start a thread: {error}"))))?;
        // MPI would wait forever for a process that has ended
        let most = 2 * limit;
        let waited = |_| {
            let seconds = most.as_secs();
            let what =
                format!("rank {} of {} has waited {seconds} s for the other ranks to start", launch.rank, launch.size);
            let fault = Fault::at("mpi", what).advice("check their output; --rank-timeout SECONDS waits longer");
            Err(Error::device(fault))
        };
        let ProcessFacts { rank, size, machine, host, library } = told.recv_timeout(most).unwrap_or_else(waited)?;
        let mut world = Self {
            client,
            rank,
            hosts: vec![String::new(); size],
            machines: vec![0; size],
            library,
            launcher: launch.launcher,
        };
        let boot = || std::fs::read_to_string(BOOT).map(|id| id.trim().to_owned());
        let named = std::env::var(MACHINE).or_else(|_| boot()).unwrap_or_else(|_| format!("with rank {machine}"));
        let all = world.share(format!("{host}\n{named}").as_bytes())?;
        let mut names: Vec<String> = Vec::new();
        for (process, text) in all.iter().enumerate() {
            let text = String::from_utf8_lossy(text).into_owned();
            let (host, machine) = text.split_once('\n').unwrap_or_default();
            world.hosts[process] = host.to_owned();
            let known = names.iter().position(|name| name == machine);
            world.machines[process] = known.unwrap_or_else(|| {
                names.push(machine.to_owned());
                names.len() - 1
            });
        }
        world.client.name(world.hosts.clone());
        Ok(world)
    }

    /// Returns this process's rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Returns whether this is the process that writes the run's folder.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Returns the number of processes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.hosts.len()
    }

    /// Returns a process's name for messages.
    #[must_use]
    pub fn name(&self, process: usize) -> String {
        format!("rank {process} on {}", self.hosts[process])
    }

    /// Returns a line about the processes for the run's header.
    #[must_use]
    pub fn summary(&self) -> String {
        let machines = self.machines.iter().max().map_or(1, |last| last + 1);
        let on = if machines == 1 { format!("on {}", self.hosts[0]) } else { format!("on {machines} machines") };
        format!("{} processes {on}, {}", self.size(), self.library)
    }

    /// Returns the number of each process's machine.
    #[must_use]
    pub fn machines(&self) -> &[usize] {
        &self.machines
    }

    /// Returns this process's position among the processes of its machine, and their number.
    #[must_use]
    pub fn local(&self) -> (usize, usize) {
        let here = |process: &usize| self.machines[*process] == self.machines[self.rank];
        ((0..self.rank).filter(here).count(), (0..self.size()).filter(here).count())
    }

    /// Returns the library's name and version.
    #[must_use]
    pub fn library(&self) -> &str {
        &self.library
    }

    /// Sends `own` to all processes and returns the bytes of each, in order, this one's included. All processes call
    /// this in the same order.
    ///
    /// # Errors
    /// The error that ended the run.
    pub fn share(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let lengths = self.give_all(&(own.len() as u64).to_le_bytes(), |_| 8)?;
        let length = |process: usize| {
            let bytes: [u8; 8] = lengths[process][..].try_into().unwrap_or_default();
            u64::from_le_bytes(bytes) as usize
        };
        self.give_all(own, length)
    }

    fn give_all(&self, own: &[u8], length: impl Fn(usize) -> usize) -> Result<Vec<Vec<u8>>> {
        let bytes: std::sync::Arc<Vec<u8>> = std::sync::Arc::new(own.to_vec());
        let others: Vec<usize> = (0..self.size()).filter(|process| *process != self.rank).collect();
        let message = |process: &usize| Outgoing {
            process: *process,
            tag: SHARED,
            bytes: std::sync::Arc::clone(&bytes) as super::Shared,
            range: 0..own.len(),
        };
        let expected =
            |process: &usize| Incoming { process: *process, tag: SHARED, length: length(*process), buffer: Vec::new() };
        let pending = self.client.exchange(others.iter().map(message).collect(), others.iter().map(expected).collect());
        let mut all = vec![own.to_vec(); self.size()];
        others.iter().zip(pending.wait()?).for_each(|(process, bytes)| all[*process] = bytes);
        Ok(all)
    }

    /// Sends the bytes of the first process to all others, which pass `None`. All processes call this in the same
    /// order.
    ///
    /// # Errors
    /// The error that ended the run.
    pub fn broadcast(&self, bytes: Option<&[u8]>) -> Result<Vec<u8>> {
        let length = (bytes.map_or(0, <[u8]>::len) as u64).to_le_bytes();
        let length = self.client.broadcast(length.to_vec())?;
        let length = u64::from_le_bytes(length[..].try_into().unwrap_or_default()) as usize;
        let mut all = bytes.map_or_else(|| vec![0; length], <[u8]>::to_vec);
        self.fill(&mut all)?;
        Ok(all)
    }

    /// Overwrites memory with that of the first process, which must have the same length.
    ///
    /// # Errors
    /// The error that ended the run.
    pub fn fill(&self, memory: &mut [u8]) -> Result<()> {
        for piece in memory.chunks_mut(PIECE) {
            let came = self.client.broadcast(piece.to_vec())?;
            piece.copy_from_slice(&came);
        }
        Ok(())
    }

    /// Makes the links of this process's devices.
    ///
    /// # Errors
    /// [`Error::Device`] if the process has too many devices.
    pub fn links(&self, layout: &Layout) -> Result<Vec<Link>> {
        let own = layout.parts(self.rank);
        if own.len() > MAX_DEVICES {
            let fault = Fault::at("mpi", format!("{} devices in one process", own.len()));
            return Err(Error::device(fault.expected(format!("at most {MAX_DEVICES}"))));
        }
        Ok(Link::of(own, &layout.processes, Some(self.client.clone())))
    }

    /// Ends the run of all processes with an error of this one, which all pending calls return.
    pub fn abort(&self, error: &Error) {
        self.client.abort(error);
    }

    /// Returns the launcher that started the processes.
    #[must_use]
    pub fn launcher(&self) -> Launcher {
        self.launcher
    }

    /// Returns whether an error has ended the run or MPI was finalized.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.client.end().is_some() || self.client.has_finished()
    }

    /// Records a signal that this process received, to be sent to the others with the request to stop.
    pub fn note_signal(&self, name: &str) {
        self.client.note_signal(name);
    }

    /// Returns the signal that asked another process to stop: `SIGUSR1 to rank 1 on node7`.
    #[must_use]
    pub fn signal(&self) -> Option<String> {
        self.client.signal()
    }

    /// Returns the error that ended the run early, if it occurred in another process.
    #[must_use]
    pub fn far_error(&self) -> Option<Error> {
        self.client.end().filter(|end| end.is_far).map(|end| end.error)
    }

    /// Finalizes MPI. All processes call this at the end of a run that finished, or that was stopped and saved.
    ///
    /// # Errors
    /// The error that ended the run in the meantime.
    pub fn finish(&self) -> Result<()> {
        self.client.finish()
    }

    /// Ends all processes with the exit code of an error that was printed here or in another process. The first process
    /// does this; other processes give it a few seconds to save its records.
    pub fn die(&self, error: &Error) -> ! {
        self.client.abort(error);
        let after = if self.is_first() { LAST_WORDS } else { GRACE };
        self.client.die(error.exit_code(), after);
        // the launcher ends this process
        std::thread::sleep(after + GRACE);
        std::process::exit(error.exit_code().into())
    }
}

/// Collects the facts that other processes need about this one.
fn facts(library: &Library, all: library::Communicator, host: String, launch: Launch) -> Result<ProcessFacts> {
    let (rank, size) = library.place(all)?;
    if size != launch.size {
        let what = format!("{} sees {size} processes, but the launcher started {}", library.version(), launch.size);
        let fault = Fault::at("mpi", what).expected("the launcher's own library");
        return Err(Error::device(fault.advice("name it: --mpi PATH")));
    }
    let machine = library.machine(all)?;
    let (local, _) = library.place(machine)?;
    // a machine is identified by the first process on it
    let mut first = (rank as u64).to_le_bytes();
    if local > 0 {
        first = [0; 8];
    }
    // SAFETY: `first` does not move, and nothing uses it until the request is done
    let mut request = unsafe { library.broadcast(&mut first, 0, machine) }?;
    while !library.is_done(&mut request)? {
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(ProcessFacts {
        rank,
        size,
        machine: u64::from_le_bytes(first) as usize,
        host,
        library: library.version().to_owned(),
    })
}

/// Returns the name of this machine.
fn host() -> String {
    #[cfg(unix)]
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    let name = std::env::var("COMPUTERNAME").unwrap_or_default();
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_a_machine_are_neighbours() {
        let layout = Layout::new(&[0, 0], &[2, 2]);
        assert_eq!(layout, Layout { processes: vec![0, 0, 1, 1], machines: 1, hosts: 1 });
        // processes alternate between machines
        let layout = Layout::new(&[0, 1, 0, 1], &[1, 1, 1, 1]);
        assert_eq!(layout, Layout { processes: vec![0, 2, 1, 3], machines: 2, hosts: 2 });
        assert_eq!(layout.parts(2), [Part { device: 1, devices: 4, machines: 2 }]);
        assert_eq!(Layout::new(&[0, 1], &[4, 4]).machines, 2);
    }

    #[test]
    fn machines_with_unequal_numbers_are_as_one() {
        let layout = Layout::new(&[0, 1, 1], &[1, 1, 1]);
        assert_eq!(layout, Layout { processes: vec![0, 1, 2], machines: 1, hosts: 2 });
    }
}
