//! The exchange of bytes between the devices of a run, through host memory, on one machine or several.
//!
//! Every device calls the same functions in the same order, each on its own thread. A call returns when all members of
//! its scope have made it. Devices of one process copy out of each other's memory ([`Link`]); between processes the
//! bytes go through MPI ([`mpi`]).

mod link;
pub mod mpi;

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
pub use crate::model::flat::Part;

pub use link::{AbortHandle, Link};

/// Bytes that other devices may read during an exchange.
pub type Shared = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Receives the bytes from each member of a scope.
pub type Receive<'r> = dyn FnMut(&[&[u8]]) -> Result<()> + 'r;

/// Bytes of a small message that are sent with its length, so that a vote takes one message instead of two.
const INLINE: usize = 56;

/// A set of devices that exchange with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The devices of one machine.
    Machine,
    /// One device of each machine: those with the same position on their machine.
    Machines,
}

impl Scope {
    /// Both scopes.
    pub const ALL: [Self; 2] = [Self::Machine, Self::Machines];

    /// Returns the members of a device's scope, in order, the device included.
    #[must_use]
    pub fn members(self, part: Part) -> Vec<Part> {
        let (each, machine, place) = (part.each(), part.machine(), part.place());
        let devices: Vec<usize> = match self {
            Self::Machine => (machine * each..(machine + 1) * each).collect(),
            Self::Machines => (0..part.machines).map(|machine| machine * each + place).collect(),
        };
        devices.into_iter().map(|device| Part { device, ..part }).collect()
    }

    /// Returns a device's position among the members of its scope.
    #[must_use]
    pub fn seat(self, part: Part) -> usize {
        match self {
            Self::Machine => part.place(),
            Self::Machines => part.machine(),
        }
    }
}

/// The exchange of one device with all others of the run.
pub trait Collective: Send {
    /// Returns the device's position in the run.
    fn part(&self) -> Part;

    /// Returns a device's name for messages.
    fn name(&self, device: usize) -> String;

    /// Gives each other member `m` of a scope the bytes `to[m]` of `sent`. Calls `receive` once with the bytes that
    /// each member `m` gives to this one, `coming[m]` of them; the entry of this device is empty. Keeps no reference to
    /// `sent`.
    ///
    /// # Errors
    /// The error of `receive`; the error that any device passed to [`Collective::abort`]; [`Error::Gpu`] if a member
    /// gives another number of bytes than expected; [`Error::Lost`] if a machine stops answering.
    fn exchange(
        &mut self,
        scope: Scope,
        sent: Shared,
        to: &[Range<usize>],
        coming: &[usize],
        receive: &mut Receive,
    ) -> Result<()>;

    /// Sends `own` to all devices and returns the bytes of each, in order, this one's included. For a few bytes.
    ///
    /// # Errors
    /// As [`Collective::exchange`].
    fn share(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let Part { devices, machines, .. } = self.part();
        if machines == 1 {
            return share_among(self, Scope::Machine, own);
        }
        // between machines first, so that the network carries each device's bytes once
        let places = share_among(self, Scope::Machines, own)?;
        if devices == machines {
            return Ok(places);
        }
        let all = share_among(self, Scope::Machine, &framed(&places))?;
        let all: Vec<Vec<Vec<u8>>> = all.iter().map(|bytes| unframed(bytes)).collect();
        // each entry of `all` has the bytes of one position on all machines
        Ok((0..machines).flat_map(|machine| all.iter().map(move |place| place[machine].clone())).collect())
    }

    /// Asks all devices to stop as soon as they can. They agree on the point by [`Collective::share`].
    fn ask_to_stop(&self);

    /// Returns whether a device has called [`Collective::ask_to_stop`].
    fn is_asked_to_stop(&self) -> bool;

    /// Aborts the run of all devices: all their calls, also those that wait, return `error`.
    fn abort(&self, error: &Error);
}

/// Returns the bytes of each member of a scope. Members may give different numbers of bytes.
fn share_among<C: Collective + ?Sized>(link: &mut C, scope: Scope, own: &[u8]) -> Result<Vec<Vec<u8>>> {
    let part = link.part();
    let (members, seat) = (scope.members(part).len(), scope.seat(part));
    let mut all = vec![Vec::new(); members];
    // the length, and the first bytes
    let mut head = (own.len() as u64).to_le_bytes().to_vec();
    let (first, rest) = own.split_at(own.len().min(INLINE));
    head.extend_from_slice(first);
    head.resize(8 + INLINE, 0);
    let mut lengths = vec![0; members];
    let (to, coming) = (vec![0..head.len(); members], lengths_but(seat, vec![head.len(); members]));
    link.exchange(scope, Arc::new(head), &to, &coming, &mut |given| {
        for (from, bytes) in given.iter().enumerate().filter(|(from, _)| *from != seat) {
            let (length, bytes) = bytes.split_at(8);
            let length = u64::from_le_bytes(length.try_into().unwrap_or_default()) as usize;
            all[from] = bytes[..length.min(INLINE)].to_vec();
            lengths[from] = length;
        }
        Ok(())
    })?;
    lengths[seat] = own.len();
    // all members know all lengths, so they agree whether a second message follows
    if lengths.iter().any(|length| *length > INLINE) {
        let coming = lengths_but(seat, lengths.iter().map(|length| length.saturating_sub(INLINE)).collect());
        link.exchange(scope, Arc::new(rest.to_vec()), &vec![0..rest.len(); members], &coming, &mut |given| {
            given.iter().zip(&mut all).for_each(|(bytes, all)| all.extend_from_slice(bytes));
            Ok(())
        })?;
    }
    all[seat] = own.to_vec();
    Ok(all)
}

/// Returns the lengths with that of this device set to 0.
fn lengths_but(seat: usize, mut lengths: Vec<usize>) -> Vec<usize> {
    lengths[seat] = 0;
    lengths
}

/// Joins several byte strings into one, each after its length.
fn framed(texts: &[Vec<u8>]) -> Vec<u8> {
    texts.iter().flat_map(|text| [&(text.len() as u64).to_le_bytes()[..], text].concat()).collect()
}

/// Splits the byte strings that [`framed`] joined.
fn unframed(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut texts = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<8>() {
        let (text, rest) = rest.split_at((u64::from_le_bytes(*length) as usize).min(rest.len()));
        texts.push(text.to_vec());
        bytes = rest;
    }
    texts
}
