//! One device's end of the exchange. Devices of one process are threads that copy out of each other's memory; devices
//! of other processes are reached over MPI.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::mpi::client::{Client, Incoming, Outgoing};
use super::{Collective, Part, Receive, Scope, Shared};
use crate::error::{Error, Fault, Result};

/// The bytes that a device offers in a round.
#[derive(Clone)]
struct Offer {
    bytes: Shared,
    /// The range for each member of the round.
    to: Vec<Range<usize>>,
}

impl Offer {
    /// Returns the bytes for a member.
    fn to(&self, member: usize) -> &[u8] {
        &(*self.bytes).as_ref()[self.to[member].clone()]
    }
}

/// A meeting of the devices of one scope that are threads of this process.
#[derive(Default)]
struct Round {
    number: u64,
    /// The offer of each member, once it has arrived.
    offers: Vec<Option<Offer>>,
    /// Members that have received their bytes.
    done: usize,
}

#[derive(Default)]
struct State {
    rounds: Vec<Round>,
    aborted: Option<Error>,
}

struct Meeting {
    state: Mutex<State>,
    moved: Condvar,
    stop: AtomicBool,
    /// Bytes that receivers have copied.
    copied: AtomicU64,
    /// The connection to other processes.
    client: Option<Client>,
    /// The process of each device of the run.
    processes: Vec<usize>,
}

/// A device's position in one of its scopes.
struct Seat {
    own: usize,
    members: usize,
    /// The round of the members in this process; `None` if the device is the only one.
    round: Option<usize>,
    /// Positions in the scope of the members of the round, this one included.
    local: Vec<usize>,
    /// The members in other processes.
    remote: Vec<Remote>,
    /// Receive buffers, one per remote member.
    buffers: Vec<Vec<u8>>,
}

/// A member in another process.
struct Remote {
    position: usize,
    process: usize,
    /// Tags of the messages to it and from it.
    tags: [i32; 2],
}

/// One device's end of the exchange. A panic of its thread aborts the run of all devices.
pub struct Link {
    part: Part,
    meeting: Arc<Meeting>,
    /// In the order of [`Scope::ALL`].
    seats: [Seat; 2],
}

/// Aborts the exchange of a process's devices from outside, and counts its bytes.
#[derive(Clone)]
pub struct AbortHandle(Arc<Meeting>);

impl AbortHandle {
    /// Aborts the run of all devices, as [`Collective::abort`] does.
    pub fn abort(&self, error: &Error) {
        self.0.abort(error);
    }

    /// Returns the bytes that the process's devices have received from others so far.
    #[must_use]
    pub fn copied(&self) -> u64 {
        self.0.copied.load(Ordering::Relaxed)
    }
}

impl Meeting {
    fn state(&self) -> MutexGuard<'_, State> {
        // a panic leaves no half-made change: the state changes by single assignments
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn abort(&self, error: &Error) {
        self.end(error);
        if let Some(client) = &self.client {
            client.abort(error);
        }
    }

    /// Aborts the rounds of this process.
    fn end(&self, error: &Error) {
        self.state().aborted.get_or_insert_with(|| error.clone());
        self.moved.notify_all();
    }

    /// Waits until `ready` returns true, or returns the error that aborts the run.
    fn wait<'m>(
        &'m self,
        state: MutexGuard<'m, State>,
        ready: impl Fn(&State) -> bool,
    ) -> Result<MutexGuard<'m, State>> {
        let waits = |state: &mut State| state.aborted.is_none() && !ready(state);
        let state = self.moved.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        match &state.aborted {
            // a round that is complete counts, even if the run was aborted since
            Some(error) if !ready(&state) => Err(error.clone()),
            _ => Ok(state),
        }
    }

    /// Gives each other member of a round its part of `offer`, and calls `receive` with the bytes that each member
    /// gives to the member at `own`; the entry at `own` is empty.
    fn exchange(&self, round: usize, own: usize, offer: Offer, receive: &mut Receive) -> Result<()> {
        let mut state = self.state();
        let members = state.rounds[round].offers.len();
        let number = state.rounds[round].number;
        state.rounds[round].offers[own] = Some(offer);
        self.moved.notify_all();
        let state = self.wait(state, |state| state.rounds[round].offers.iter().all(Option::is_some))?;
        let offers = state.rounds[round].offers.clone();
        drop(state);
        let mut given: Vec<&[u8]> =
            offers.iter().map(|offer| offer.as_ref().map_or(&[][..], |offer| offer.to(own))).collect();
        given[own] = &[];
        receive(&given)?;
        drop(given);
        drop(offers);
        let mut state = self.state();
        let this = &mut state.rounds[round];
        this.done += 1;
        if this.done == members {
            this.offers.iter_mut().for_each(|offer| *offer = None);
            (this.done, this.number) = (0, number + 1);
            self.moved.notify_all();
        }
        self.wait(state, |state| state.rounds[round].number > number).map(drop)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let device = format!("device {}", self.part.device);
            self.meeting.abort(&Error::gpu(Fault::at(device, "its thread panicked")));
        }
    }
}

impl Link {
    /// Makes the links of the devices of one machine, all of them in this process, in order.
    #[must_use]
    pub fn threads(devices: usize) -> Vec<Self> {
        Self::on_machines(1, devices)
    }

    /// Makes the links of several simulated machines, all of whose devices are threads of this process. They exchange
    /// in the same stages as devices of real machines.
    #[must_use]
    pub fn on_machines(machines: usize, each: usize) -> Vec<Self> {
        let devices = machines * each;
        let parts = (0..devices).map(|device| Part { device, devices, machines });
        Self::of(parts.collect(), &vec![0; devices], None)
    }

    /// Makes the links of this process's devices. `processes` contains the process of each device of the run; devices
    /// in other processes are reached through `client`.
    pub(super) fn of(own: Vec<Part>, processes: &[usize], client: Option<Client>) -> Vec<Self> {
        let is_local = |device: usize| own.iter().any(|part| part.device == device);
        // a scope with several devices in this process has one round, made for the first of them
        let mut rounds: Vec<(Scope, usize, Round)> = Vec::new();
        let mut seats = Vec::new();
        for part in &own {
            seats.push(Scope::ALL.map(|scope| {
                let members = scope.members(*part);
                let local: Vec<usize> = (0..members.len()).filter(|at| is_local(members[*at].device)).collect();
                let round = (local.len() > 1).then(|| {
                    let first = members[local[0]].device;
                    let there = rounds.iter().position(|(other, of, _)| (*other, *of) == (scope, first));
                    there.unwrap_or_else(|| {
                        let offers = vec![None; local.len()];
                        rounds.push((scope, first, Round { offers, ..Round::default() }));
                        rounds.len() - 1
                    })
                });
                let far = (0..members.len()).filter(|at| !is_local(members[*at].device));
                let remote: Vec<Remote> = far
                    .map(|position| {
                        let (own, other) = (part.device, members[position].device);
                        let tags = [tag(scope, own, other, processes), tag(scope, other, own, processes)];
                        Remote { position, process: processes[other], tags }
                    })
                    .collect();
                let buffers = vec![Vec::new(); remote.len()];
                Seat { own: scope.seat(*part), members: members.len(), round, local, remote, buffers }
            }));
        }
        let state = State { rounds: rounds.into_iter().map(|(.., round)| round).collect(), aborted: None };
        let meeting = Arc::new(Meeting {
            state: Mutex::new(state),
            moved: Condvar::new(),
            stop: AtomicBool::new(false),
            copied: AtomicU64::new(0),
            client,
            processes: processes.to_vec(),
        });
        if let Some(client) = &meeting.client {
            let (ends, stops) = (Arc::downgrade(&meeting), Arc::downgrade(&meeting));
            client.on_end(
                Box::new(move |error| ends.upgrade().into_iter().for_each(|meeting| meeting.end(error))),
                Box::new(move || {
                    stops.upgrade().into_iter().for_each(|meeting| meeting.stop.store(true, Ordering::SeqCst));
                }),
            );
        }
        own.into_iter().zip(seats).map(|(part, seats)| Self { part, meeting: Arc::clone(&meeting), seats }).collect()
    }

    /// Returns a handle that can abort the exchange from outside.
    #[must_use]
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle(Arc::clone(&self.meeting))
    }
}

/// Returns the tag of messages from one device to another. Messages with the same tag between two processes arrive in
/// order.
fn tag(scope: Scope, from: usize, to: usize, processes: &[usize]) -> i32 {
    let position = |device: usize| processes[..device].iter().filter(|process| **process == processes[device]).count();
    let of_scope = usize::from(scope == Scope::Machines);
    i32::try_from(
        super::mpi::client::FIRST_TAG
            + (position(from) * super::mpi::client::MAX_DEVICES + position(to)) * 2
            + of_scope,
    )
    .unwrap_or(i32::MAX)
}

impl Collective for Link {
    fn part(&self) -> Part {
        self.part
    }

    fn name(&self, device: usize) -> String {
        let of = |client: &Client| format!("device {device} ({})", client.name_of(self.meeting.processes[device]));
        self.meeting.client.as_ref().map_or_else(|| format!("device {device}"), of)
    }

    fn exchange(
        &mut self,
        scope: Scope,
        sent: Shared,
        to: &[Range<usize>],
        coming: &[usize],
        receive: &mut Receive,
    ) -> Result<()> {
        let Self { meeting, seats, .. } = self;
        let Seat { own, members, round, local, remote, buffers } = &mut seats[scope as usize];
        let own = *own;
        // the callback sees only the bytes of others
        let mut check = |given: &[&[u8]]| {
            let other = given.iter().zip(coming).position(|(bytes, length)| bytes.len() != *length);
            if let Some(from) = other.filter(|from| *from != own) {
                let fault = Fault::at("exchange", format!("member {from} gave another number of bytes"));
                return Err(Error::gpu(fault.expected(coming[from]).found(given[from].len())));
            }
            receive(given)?;
            let bytes: usize = given.iter().map(|bytes| bytes.len()).sum();
            meeting.copied.fetch_add(bytes as u64, Ordering::Relaxed);
            Ok(())
        };
        let pending = match &meeting.client {
            Some(client) if !remote.is_empty() => {
                let message = |other: &Remote| Outgoing {
                    process: other.process,
                    tag: other.tags[0],
                    bytes: Arc::clone(&sent),
                    range: to[other.position].clone(),
                };
                let expected = |(other, buffer): (&Remote, Vec<u8>)| Incoming {
                    process: other.process,
                    tag: other.tags[1],
                    length: coming[other.position],
                    buffer,
                };
                let expected = remote.iter().zip(buffers.drain(..)).map(expected).collect();
                Some(client.exchange(remote.iter().map(message).collect(), expected))
            }
            _ => None,
        };
        let mut came = Vec::new();
        let mut with_remote = |near: &[&[u8]]| {
            if let Some(pending) = &pending {
                came = pending.wait()?;
            }
            let mut given: Vec<&[u8]> = vec![&[]; *members];
            near.iter().zip(local.iter()).for_each(|(bytes, position)| given[*position] = bytes);
            came.iter().zip(remote.iter()).for_each(|(bytes, other)| given[other.position] = bytes);
            check(&given)
        };
        match round {
            Some(round) => {
                let to = local.iter().map(|position| to[*position].clone()).collect();
                let position = local.iter().position(|position| *position == own).unwrap_or(0);
                meeting.exchange(*round, position, Offer { bytes: sent, to }, &mut with_remote)?;
            }
            None => {
                drop(sent);
                with_remote(&[])?;
            }
        }
        *buffers = came;
        Ok(())
    }

    fn ask_to_stop(&self) {
        if !self.meeting.stop.swap(true, Ordering::SeqCst)
            && let Some(client) = &self.meeting.client
        {
            client.ask_to_stop();
        }
    }

    fn is_asked_to_stop(&self) -> bool {
        self.meeting.stop.load(Ordering::SeqCst)
    }

    fn abort(&self, error: &Error) {
        self.meeting.abort(error);
    }
}
#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_device_gets_what_the_others_of_a_scope_give_it() {
        for (machines, each) in [(1, 1), (1, 2), (1, 5), (2, 1), (2, 3), (3, 2)] {
            let all = machines * each;
            std::thread::scope(|scope| {
                for mut link in Link::on_machines(machines, each) {
                    scope.spawn(move || {
                        for round in 0..100_usize {
                            for scope in Scope::ALL {
                                trade(&mut link, scope, round);
                            }
                            let me = link.part().device;
                            // some fit into one message, others do not
                            let own = |device: usize| {
                                vec![device as u8; if device.is_multiple_of(2) { device } else { 50 + round }]
                            };
                            let shared = link.share(&own(me)).unwrap();
                            assert_eq!(shared, (0..all).map(own).collect::<Vec<_>>());
                        }
                    });
                }
            });
        }
    }

    /// Member m gets m + 1 bytes from each member; in every third round member 1 gives nothing.
    fn trade(link: &mut Link, scope: Scope, round: usize) {
        let (members, me) = (scope.members(link.part), scope.seat(link.part));
        if (round + me).is_multiple_of(17) {
            std::thread::sleep(Duration::from_micros(300));
        }
        let length = |from: usize, to: usize| {
            if from == to || (from == 1 && round.is_multiple_of(3)) { 0 } else { to + 1 }
        };
        let value = |from: Part, to: Part| (round * 7 + from.device * 31 + to.device) as u8;
        let mut sent = Vec::new();
        let give = |(to, other): (usize, &Part)| {
            let start = sent.len();
            sent.resize(start + length(me, to), value(link.part, *other));
            start..sent.len()
        };
        let to: Vec<Range<usize>> = members.iter().enumerate().map(give).collect();
        let coming: Vec<usize> = (0..members.len()).map(|from| length(from, me)).collect();
        let mut got = Vec::new();
        let sent: Shared = Arc::new(sent);
        let kept = Arc::downgrade(&sent);
        link.exchange(scope, sent, &to, &coming, &mut |given| {
            got = given.iter().map(|bytes| bytes.to_vec()).collect();
            Ok(())
        })
        .unwrap();
        assert!(kept.upgrade().is_none(), "someone still reads what was sent");
        let want: Vec<Vec<u8>> =
            members.iter().enumerate().map(|(from, other)| vec![value(*other, link.part); length(from, me)]).collect();
        assert_eq!(got, want, "round {round}, {scope:?}");
    }

    #[test]
    fn another_number_of_bytes_than_is_expected_is_an_error() {
        std::thread::scope(|scope| {
            for mut link in Link::threads(2) {
                scope.spawn(move || {
                    let me = link.part().device;
                    let mut coming = vec![3; 2];
                    coming[me] = 0;
                    let to = vec![0..2 + me; 2];
                    let result = link.exchange(Scope::Machine, Arc::new(vec![0_u8; 3]), &to, &coming, &mut |_| Ok(()));
                    let error = result.and_then(|()| link.share(&[]).map(drop)).unwrap_err();
                    link.abort(&error);
                    assert!(error.to_string().contains("expected 3, got 2"), "{error}");
                });
            }
        });
    }

    #[test]
    fn an_error_of_one_ends_all() {
        let error = Error::lost("device 2 fell off the bus");
        for (machines, each) in [(1, 3), (3, 1), (2, 2)] {
            std::thread::scope(|scope| {
                let mut links = Link::on_machines(machines, each);
                let last = links.pop().unwrap();
                let waiting: Vec<_> = links
                    .into_iter()
                    .map(|mut link| scope.spawn(move || (link.share(&[1]), link.share(&[2]))))
                    .collect();
                std::thread::sleep(Duration::from_millis(50));
                assert!(!last.is_asked_to_stop());
                last.ask_to_stop();
                last.abort(&error);
                last.abort(&Error::gpu("a later one"));
                for thread in waiting {
                    let (first, second) = thread.join().unwrap();
                    assert_eq!((first.unwrap_err(), second.unwrap_err()), (error.clone(), error.clone()));
                }
            });
        }
    }
}
