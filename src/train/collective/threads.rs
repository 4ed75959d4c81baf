//! Devices of one process, each with a thread: a receiver copies out of the memory that the sender's device has written.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{Collective, Receive, Shared};
use crate::error::{Error, Fault, Result};

/// What a device offers in a round.
#[derive(Clone)]
struct Offer {
    bytes: Shared,
    to: Vec<Range<usize>>,
}

impl Offer {
    /// The bytes for a device.
    fn to(&self, device: usize) -> &[u8] {
        &(*self.bytes).as_ref()[self.to[device].clone()]
    }
}

#[derive(Default)]
struct Round {
    number: u64,
    /// Of each device, once it has come.
    offers: Vec<Option<Offer>>,
    /// Devices that have what they were given.
    done: usize,
    aborted: Option<Error>,
}

struct Meeting {
    round: Mutex<Round>,
    moved: Condvar,
    stop: AtomicBool,
    /// Bytes that a receiver copied.
    copied: AtomicU64,
}

/// One device's part of the exchange between the threads of a process. A panic of its
/// thread ends all.
pub struct Threads {
    device: usize,
    devices: usize,
    meeting: Arc<Meeting>,
}

/// Looks at the exchange of all devices from outside, and ends it.
#[derive(Clone)]
pub struct Ender(Arc<Meeting>);

impl Ender {
    /// As [`Collective::abort`].
    pub fn abort(&self, error: &Error) {
        self.0.abort(error);
    }

    /// Bytes that all devices together have copied from others so far.
    #[must_use]
    pub fn copied(&self) -> u64 {
        self.0.copied.load(Ordering::Relaxed)
    }
}

impl Meeting {
    fn round(&self) -> MutexGuard<'_, Round> {
        // what is guarded is set in single assignments
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn abort(&self, error: &Error) {
        self.round().aborted.get_or_insert_with(|| error.clone());
        self.moved.notify_all();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.meeting.abort(&Error::gpu(Fault::at(format!("device {}", self.device), "its thread panicked")));
        }
    }
}

impl Threads {
    /// Makes the parts of so many devices, in their order.
    #[must_use]
    pub fn of(devices: usize) -> Vec<Self> {
        let round = Mutex::new(Round { offers: vec![None; devices], ..Round::default() });
        let meeting =
            Arc::new(Meeting { round, moved: Condvar::new(), stop: AtomicBool::new(false), copied: AtomicU64::new(0) });
        (0..devices).map(|device| Self { device, devices, meeting: Arc::clone(&meeting) }).collect()
    }

    /// Returns what ends the exchange from outside.
    #[must_use]
    pub fn ender(&self) -> Ender {
        Ender(Arc::clone(&self.meeting))
    }

    /// Waits until `ready`, or for the error that ends all.
    fn wait<'m>(
        &'m self,
        round: MutexGuard<'m, Round>,
        ready: impl Fn(&Round) -> bool,
    ) -> Result<MutexGuard<'m, Round>> {
        let waits = |round: &mut Round| round.aborted.is_none() && !ready(round);
        let round = self.meeting.moved.wait_while(round, waits).unwrap_or_else(PoisonError::into_inner);
        match &round.aborted {
            // a device may leave as soon as a round is done
            Some(error) if !ready(&round) => Err(error.clone()),
            _ => Ok(round),
        }
    }
}

impl Collective for Threads {
    fn device(&self) -> usize {
        self.device
    }

    fn devices(&self) -> usize {
        self.devices
    }

    fn exchange(&mut self, sent: Shared, to: &[Range<usize>], receive: &mut Receive) -> Result<()> {
        let mut round = self.meeting.round();
        let number = round.number;
        round.offers[self.device] = Some(Offer { bytes: sent, to: to.to_vec() });
        self.meeting.moved.notify_all();
        let round = self.wait(round, |round| round.offers.iter().all(Option::is_some))?;
        let offers = round.offers.clone();
        drop(round);
        let mut given: Vec<&[u8]> =
            offers.iter().map(|offer| offer.as_ref().map_or(&[][..], |o| o.to(self.device))).collect();
        given[self.device] = &[];
        receive(&given)?;
        let copied: usize = given.iter().map(|bytes| bytes.len()).sum();
        self.meeting.copied.fetch_add(copied as u64, Ordering::Relaxed);
        drop(given);
        drop(offers);
        let mut round = self.meeting.round();
        round.done += 1;
        if round.done == self.devices {
            round.offers.iter_mut().for_each(|offer| *offer = None);
            (round.done, round.number) = (0, number + 1);
            self.meeting.moved.notify_all();
        }
        self.wait(round, |round| round.number > number).map(drop)
    }

    fn ask_to_stop(&self) {
        self.meeting.stop.store(true, Ordering::SeqCst);
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
    fn every_device_gets_what_the_others_give_it() {
        for devices in [1, 2, 5] {
            std::thread::scope(|scope| {
                for mut link in Threads::of(devices) {
                    scope.spawn(move || {
                        for round in 0..200_usize {
                            let me = link.device();
                            if (round + me).is_multiple_of(17) {
                                std::thread::sleep(Duration::from_micros(300));
                            }
                            // device d gets d + 1 bytes, nobody gets anything from device 1 in every third round
                            let gives = |from: usize| from != 1 || !round.is_multiple_of(3);
                            let value = |from: usize, to: usize| (round * 7 + from * 31 + to) as u8;
                            let mut sent = Vec::new();
                            let to: Vec<Range<usize>> = (0..devices)
                                .map(|d| {
                                    let start = sent.len();
                                    sent.resize(start + if gives(me) { d + 1 } else { 0 }, value(me, d));
                                    start..sent.len()
                                })
                                .collect();
                            let mut got = vec![Vec::new(); devices];
                            let sent: Shared = Arc::new(sent);
                            let kept = Arc::downgrade(&sent);
                            link.exchange(sent, &to, &mut |given| {
                                got = given.iter().map(|bytes| bytes.to_vec()).collect();
                                Ok(())
                            })
                            .unwrap();
                            assert!(kept.upgrade().is_none(), "someone still reads what was sent");
                            for (from, got) in got.iter().enumerate() {
                                let want =
                                    if from != me && gives(from) { vec![value(from, me); me + 1] } else { Vec::new() };
                                assert_eq!(*got, want, "round {round}, {from} to {me} of {devices}");
                            }
                            let shared = link.share(&[me as u8, round as u8]).unwrap();
                            assert_eq!(shared, (0..devices).map(|d| vec![d as u8, round as u8]).collect::<Vec<_>>());
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn an_error_of_one_ends_all() {
        let error = Error::lost("device 2 fell off the bus");
        std::thread::scope(|scope| {
            let mut links = Threads::of(3);
            let last = links.pop().unwrap();
            let waiting: Vec<_> =
                links.into_iter().map(|mut link| scope.spawn(move || (link.share(&[1]), link.share(&[2])))).collect();
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
