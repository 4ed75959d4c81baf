//! Messages from the first process of a run to the others: the calls that all devices make, and the run's folder.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::data::BatchesState;
use crate::error::{Error, Fault, Result};
use crate::files::path_text;
use crate::gpu::{Caps, Gpu, devices};
use crate::model::Weights;
use crate::train::collective::mpi::{Layout, World};
use crate::train::collective::{Link, Part};
use crate::train::{Snapshot, Trainer};

/// One message. The variants are in the order in which they arrive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Share the capabilities of your devices.
    Open,
    /// Make trainers, with these choices of a tuning record.
    Begin(BTreeMap<String, String>),
    /// Use this as the run's folder.
    Folder(#[serde(with = "path_text::one")] PathBuf),
    /// Receive the weights, which follow.
    Load,
    /// Receive the snapshot, which follows.
    Restore,
    /// Continue with the batches at this position.
    Batches(BatchesState),
    /// Make a step on the next batches.
    Step {
        /// Its number, from 1.
        step: usize,
        /// The learning rate's bits.
        lr: u32,
    },
    /// Take part in a validation over `count` rows.
    Evaluate {
        /// Number of rows.
        count: usize,
    },
    /// Take part in scoring HellaSwag.
    Answer,
    /// Send this process's moments.
    Snapshot,
    /// End with this exit code.
    End(u8),
}

/// This process among those of the run.
#[derive(Clone, Copy)]
pub struct Crew<'w> {
    world: &'w World,
    layout: &'w Layout,
}

impl<'w> Crew<'w> {
    /// Makes a crew from the processes and the layout of their devices.
    #[must_use]
    pub fn new(world: &'w World, layout: &'w Layout) -> Self {
        Self { world, layout }
    }

    /// Returns the processes.
    #[must_use]
    pub fn world(&self) -> &'w World {
        self.world
    }

    /// Returns the logical ranks that this process's devices compute, of `ranks` in all.
    #[must_use]
    pub fn ranks(&self, ranks: usize) -> Range<usize> {
        let own = self.layout.parts(self.world.rank());
        let each = ranks / self.layout.processes.len().max(1);
        let at = |part: Option<&Part>| part.map_or(0, |part| part.device);
        at(own.first()) * each..(at(own.last()) + 1) * each
    }

    /// Connects this process's devices with all others.
    ///
    /// # Errors
    /// Those of [`World::links`].
    pub fn links(&self) -> Result<Vec<Link>> {
        self.world.links(self.layout)
    }

    /// Sends a message to all other processes if this is the first one. Does nothing in others.
    ///
    /// # Errors
    /// The error that ended the run.
    pub fn send(&self, message: &Message) -> Result<()> {
        if self.world.is_first() { send(self.world, message) } else { Ok(()) }
    }

    /// Restricts all devices of the run to the capabilities that every one has, so that all run the same kernels.
    ///
    /// # Errors
    /// The error that ended the run.
    pub fn restrict(&self, gpus: &mut [Gpu]) -> Result<()> {
        let own: Vec<&Caps> = gpus.iter().map(|gpu| &gpu.caps).collect();
        let all: Vec<Vec<Caps>> = share(self.world, &own)?;
        devices::restrict(gpus, &all.concat());
        Ok(())
    }

    /// Waits for the next message of the first process.
    ///
    /// # Errors
    /// The error that ended the run.
    pub fn next(&self) -> Result<Message> {
        let text = self.world.broadcast(None)?;
        serde_json::from_slice(&text).map_err(|error| unreadable(&error))
    }

    /// Overwrites weights with those of the first process.
    ///
    /// # Errors
    /// The error that ended the run.
    pub fn fill(&self, weights: &mut Weights) -> Result<()> {
        weights.tensors.iter_mut().try_for_each(|tensor| self.world.fill(bytemuck::cast_slice_mut(tensor)))
    }

    /// Overwrites a snapshot with that of the first process.
    ///
    /// # Errors
    /// The error that ended the run.
    pub fn fill_snapshot(&self, snapshot: &mut Snapshot) -> Result<()> {
        self.fill(&mut snapshot.weights)?;
        snapshot.moments.iter_mut().try_for_each(|moments| self.fill(moments))?;
        self.world.fill(bytemuck::bytes_of_mut(&mut snapshot.control))?;
        self.world.fill(bytemuck::bytes_of_mut(&mut snapshot.windows))
    }

    /// Checks that all processes have equal values, by key.
    ///
    /// # Errors
    /// [`Error::Disagree`] in the first process, naming the first difference with rank and host. The other processes receive that
    /// error from the first one later.
    pub fn compare(&self, own: &BTreeMap<String, String>) -> Result<()> {
        let all: Vec<BTreeMap<String, String>> = share(self.world, own)?;
        if !self.world.is_first() {
            return Ok(());
        }
        difference(&all, |process| self.world.name(process)).map_or(Ok(()), |fault| Err(Error::disagree(fault)))
    }

    /// Checks that all processes run the same kernels in a step.
    ///
    /// # Errors
    /// Those of [`Crew::compare`].
    pub fn compare_kernels(&self, trainer: &Trainer) -> Result<()> {
        self.compare(&BTreeMap::from([("kernels".to_owned(), kernels_of(trainer))]))
    }
}

/// Returns a text that is equal in two processes if their steps run the same kernels.
fn kernels_of(trainer: &Trainer) -> String {
    let mut names: Vec<String> = Vec::new();
    for program in trainer.programs() {
        names.extend(program.commands.iter().map(|command| command.name().to_owned()));
    }
    names.sort();
    names.dedup();
    let hash = blake3::hash(names.join("\n").as_bytes()).to_hex();
    format!("{} ({})", &hash[..8], trainer.kernel_summary().join(", "))
}

/// Sends a message from the first process to all others.
///
/// # Errors
/// The error that ended the run.
pub fn send(world: &World, message: &Message) -> Result<()> {
    world.broadcast(Some(&serde_json::to_vec(message).map_err(|error| unreadable(&error))?)).map(drop)
}

/// Returns the values of all processes in order, including this one's.
///
/// # Errors
/// The error that ended the run.
pub fn share<T: Serialize, U: DeserializeOwned>(world: &World, own: &T) -> Result<Vec<U>> {
    let all = world.share(&serde_json::to_vec(own).map_err(|error| unreadable(&error))?)?;
    all.iter().map(|text| serde_json::from_slice(text).map_err(|error| unreadable(&error))).collect()
}

fn unreadable(error: &serde_json::Error) -> Error {
    Error::gpu(Fault::at("ranks", format!("cannot read a message between processes: {error}")))
}

/// Returns the first difference between the first process and any other.
fn difference(all: &[BTreeMap<String, String>], name: impl Fn(usize) -> String) -> Option<Fault> {
    let (first, others) = all.split_first()?;
    // the version comes first, because it explains keys that the other side does not know
    let mut keys: Vec<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    keys.sort_by_key(|key| (*key != VERSION, (*key).clone()));
    keys.dedup();
    for key in keys {
        let at = others.iter().position(|other| other.get(key) != first.get(key));
        if let Some(at) = at {
            let value = |map: &BTreeMap<String, String>| map.get(key).map_or_else(|| "none".to_owned(), Clone::clone);
            let what = format!("{} has {key} {}", name(at + 1), value(&others[at]));
            let fault = Fault::at("ranks", what).expected(format!("{} as on {}", value(first), name(0)));
            return Some(fault.advice("start the same program on the same data with the same settings everywhere"));
        }
    }
    None
}

/// The key of the program's version, which is compared first.
pub const VERSION: &str = "version";

/// Returns the name of a rank's log in a run's folder.
#[must_use]
pub fn log_of(run: &Path, rank: usize) -> PathBuf {
    run.join(RANKS).join(format!("{rank}.log"))
}

/// The folder of the logs of all ranks but the first.
pub const RANKS: &str = "ranks";

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_first_difference_is_named_with_rank_and_host() {
        let name = |process: usize| format!("rank {process} on host{process}");
        let first = map(&[("version", "0.1.0"), ("lr", "6e-4"), ("data", "ab")]);
        assert_eq!(difference(&[first.clone(), first.clone()], name), None);
        let other = map(&[("version", "0.1.0"), ("lr", "1e-3"), ("data", "ab")]);
        let text = difference(&[first.clone(), first.clone(), other], name).unwrap().to_string();
        assert!(text.starts_with("ranks: rank 2 on host2 has lr 1e-3, expected 6e-4 as on rank 0 on host0;"), "{text}");
        // the version is named first
        let old = map(&[("version", "0.0.9"), ("lr", "1e-3"), ("data", "ab"), ("a", "b")]);
        let text = difference(&[first.clone(), old], name).unwrap().to_string();
        assert!(text.contains("has version 0.0.9, expected 0.1.0"), "{text}");
        let less = map(&[("version", "0.1.0"), ("lr", "6e-4")]);
        let text = difference(&[first, less], name).unwrap().to_string();
        assert!(text.contains("has data none, expected ab"), "{text}");
    }

    #[test]
    fn messages_come_as_they_were_sent() {
        for message in [
            Message::Step { step: 7, lr: 6e-4_f32.to_bits() },
            Message::Folder("runs/a b".into()),
            Message::Begin(map(&[("matmul", "x")])),
            Message::End(75),
        ] {
            let text = serde_json::to_vec(&message).unwrap();
            assert_eq!(serde_json::from_slice::<Message>(&text).unwrap(), message);
        }
    }
}
