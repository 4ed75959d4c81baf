//! The flat order of a model's parameters, by which devices divide norms and updates.
//!
//! A group is a run of parameters that are contiguous in memory on every device: an embedding, the matrices of a layer,
//! or all parameters that do not decay. A group is cut into blocks of a fixed size, for each of which the gradient's
//! squares are summed. Blocks form buckets, which devices exchange one after the other. Nothing here depends on the
//! kind of device.

use std::ops::Range;

use super::config::Config;
use super::params::{PARAMS, Param};
use crate::gpu::context::ALIGNMENT;
pub use crate::ops::gradnorm::BLOCK;

/// Most blocks in a bucket, which is then 32 MiB of f32.
const BUCKET: usize = 256;

/// A device's position among the devices that share a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSlot {
    /// Number of the device, from 0. The devices of the first machine come first.
    pub device: usize,
    /// Number of devices.
    pub devices: usize,
    /// Number of machines, which all have the same number of devices.
    pub machines: usize,
}

impl DeviceSlot {
    /// The position of a device that runs alone.
    pub const WHOLE: Self = Self::on_one_machine(0, 1);

    /// Returns the position of one of several devices on one machine.
    #[must_use]
    pub const fn on_one_machine(device: usize, devices: usize) -> Self {
        Self { device, devices, machines: 1 }
    }

    /// Returns the number of devices per machine.
    #[must_use]
    pub fn devices_per_machine(self) -> usize {
        self.devices / self.machines
    }

    /// Returns the device's position on its machine.
    #[must_use]
    pub fn position_on_machine(self) -> usize {
        self.device % self.devices_per_machine()
    }

    /// Returns the number of the device's machine.
    #[must_use]
    pub fn machine(self) -> usize {
        self.device / self.devices_per_machine()
    }
}

/// One copy of a parameter in its group.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// The parameter.
    pub param: &'static Param,
    /// The layer; 0 for parameters that the model has once.
    pub layer: usize,
    /// First element in the group.
    pub start: usize,
}

/// Parameters that are contiguous in memory.
#[derive(Debug, Clone)]
pub struct Group {
    /// Whether weight decay applies to them.
    pub decays: bool,
    /// The parameters in order.
    pub members: Vec<Member>,
    /// Number of elements, including the padding after each member.
    pub len: usize,
}

impl Group {
    fn new(decays: bool, params: impl IntoIterator<Item = (&'static Param, usize)>, config: &Config) -> Self {
        let mut group = Self { decays, members: Vec::new(), len: 0 };
        for (param, layer) in params {
            group.members.push(Member { param, layer, start: group.len });
            group.len += param.elements(config).next_multiple_of(ALIGNMENT as usize);
        }
        group
    }

    /// Returns the number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.len.div_ceil(BLOCK)
    }

    /// Returns the parts of parameters in `range` of the group, in order, without padding.
    pub fn pieces<'g>(&'g self, config: &'g Config, range: Range<usize>) -> impl Iterator<Item = Piece> + 'g {
        self.members.iter().filter_map(move |Member { param, layer, start }| {
            let end = start + param.elements(config);
            let (from, to) = (range.start.max(*start), range.end.min(end));
            let piece = || Piece {
                name: param.name,
                layer: *layer,
                elements: from - start..to - start,
                at: from - range.start,
            };
            (from < to).then(piece)
        })
    }
}

/// Elements of one copy of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The parameter's name.
    pub name: &'static str,
    /// The layer; 0 for parameters that the model has once.
    pub layer: usize,
    /// The elements.
    pub elements: Range<usize>,
    /// Position of the first element in the requested range.
    pub at: usize,
}

/// Returns the groups of a model in memory order: groups that decay, then the others.
#[must_use]
pub fn groups(config: &Config) -> Vec<Group> {
    let of = |decays: bool, per_layer: bool| {
        PARAMS.iter().filter(move |param| param.decays == decays && param.per_layer == per_layer)
    };
    let embeddings = of(true, false).map(|param| Group::new(true, [(param, 0)], config));
    let layers = (0..config.layers).map(|layer| Group::new(true, of(true, true).map(|param| (param, layer)), config));
    let vectors = of(false, false)
        .map(|p| (p, 0))
        .chain((0..config.layers).flat_map(|layer| of(false, true).map(move |p| (p, layer))));
    embeddings.chain(layers).chain([Group::new(false, vectors, config)]).collect()
}

/// Returns the positions of a model's groups in the order in which the backward pass completes their gradients: the
/// layers from last to first, then the group of parameters from several layers, then the embeddings, of which the token
/// embedding comes last.
#[must_use]
pub fn groups_by_completion(config: &Config) -> Vec<usize> {
    let groups = groups(config);
    let is_layer = |position: &usize| groups[*position].decays && groups[*position].members[0].param.per_layer;
    let (mut layers, others): (Vec<usize>, Vec<usize>) = (0..groups.len()).partition(is_layer);
    layers.reverse();
    layers.into_iter().chain(others.into_iter().rev()).collect()
}

/// Consecutive blocks of a group that are exchanged together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Position among all buckets.
    pub number: usize,
    /// Position of its group.
    pub group: usize,
    /// Elements in the group.
    pub elements: Range<usize>,
    /// Position of the first block among all blocks of the model.
    pub first_block: usize,
}

impl Bucket {
    /// Returns the number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.elements.len().div_ceil(BLOCK)
    }

    /// Divides the bucket's blocks into `of` equal parts and returns the blocks of `parts`, counted from the bucket's
    /// first block.
    fn cut(&self, parts: Range<usize>, of: usize) -> Range<usize> {
        parts.start * self.blocks() / of..parts.end * self.blocks() / of
    }

    /// Returns the device's position on its machine and its machine, both rotated by the bucket's number. So if blocks
    /// do not divide evenly, other devices own more in the next bucket.
    fn turned(&self, part: DeviceSlot) -> [usize; 2] {
        [
            (part.position_on_machine() + self.number) % part.devices_per_machine(),
            (part.machine() + self.number) % part.machines,
        ]
    }

    /// Returns the blocks that a device owns, counted from the bucket's first block. Each block has one owner.
    #[must_use]
    pub fn owned_blocks(&self, part: DeviceSlot) -> Range<usize> {
        let [place, machine] = self.turned(part);
        let number = place * part.machines + machine;
        self.cut(number..number + 1, part.devices)
    }

    /// Returns the elements of the group that a device owns.
    #[must_use]
    pub fn owned(&self, part: DeviceSlot) -> Range<usize> {
        self.elements_of(self.owned_blocks(part))
    }

    /// Returns the elements that the devices at this device's position on all machines own. They are contiguous.
    #[must_use]
    pub fn shard(&self, part: DeviceSlot) -> Range<usize> {
        let [place, _] = self.turned(part);
        self.elements_of(self.cut(place * part.machines..(place + 1) * part.machines, part.devices))
    }

    fn elements_of(&self, blocks: Range<usize>) -> Range<usize> {
        let at = |block: usize| (self.elements.start + block * BLOCK).min(self.elements.end);
        at(blocks.start)..at(blocks.end)
    }
}

/// Returns the buckets of a model in memory order.
#[must_use]
pub fn buckets(config: &Config) -> Vec<Bucket> {
    let mut buckets: Vec<Bucket> = Vec::new();
    let mut first_block = 0;
    for (number, group) in groups(config).iter().enumerate() {
        for start in (0..group.len).step_by(BUCKET * BLOCK) {
            let elements = start..(start + BUCKET * BLOCK).min(group.len);
            let bucket = Bucket { number: buckets.len(), group: number, elements, first_block };
            first_block += bucket.blocks();
            buckets.push(bucket);
        }
    }
    buckets
}

/// Returns the number of blocks of a model.
#[must_use]
pub fn blocks(config: &Config) -> usize {
    groups(config).iter().map(Group::blocks).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Weights;

    fn configs() -> [Config; 3] {
        [
            Config::new(1024, 50_257, 12, 12, 768).unwrap(),
            Config::new(24, 257, 3, 2, 34).unwrap(),
            Config::new(1024, 50_257, 2, 25, 1600).unwrap(),
        ]
    }

    #[test]
    fn every_element_has_one_owner() {
        for config in configs() {
            let (groups, buckets) = (groups(&config), buckets(&config));
            assert!(buckets.iter().enumerate().all(|(number, bucket)| bucket.number == number));
            let layouts = (1..10).map(|devices| (1, devices)).chain([(2, 2), (2, 6), (3, 6), (4, 4), (64, 512)]);
            for (machines, devices) in layouts {
                let of = |device| DeviceSlot { device, devices, machines };
                let mut owned = vec![0; devices];
                let mut ends = vec![0; groups.len()];
                let mut blocks = 0;
                for bucket in &buckets {
                    assert_eq!((bucket.elements.start, bucket.first_block), (ends[bucket.group], blocks));
                    assert!(bucket.elements.start.is_multiple_of(BLOCK));
                    ends[bucket.group] = bucket.elements.end;
                    blocks += bucket.blocks();
                    let mut shares: Vec<(Range<usize>, usize)> =
                        (0..devices).map(|device| (bucket.owned(of(device)), device)).collect();
                    shares.sort_by_key(|(share, _)| (share.start, share.end));
                    let mut at = bucket.elements.start;
                    for (share, device) in shares {
                        assert_eq!(share.start, at);
                        at = share.end;
                        owned[device] += share.len();
                    }
                    assert_eq!(at, bucket.elements.end);
                    // a shard consists of the blocks that its devices own, and each machine has all shards
                    for device in 0..devices {
                        let shard = bucket.shard(of(device));
                        let there = (0..devices)
                            .filter(|other| of(*other).position_on_machine() == of(device).position_on_machine());
                        let lengths = there.map(|other| {
                            let owned = bucket.owned(of(other));
                            assert!(owned.is_empty() || shard.start <= owned.start && owned.end <= shard.end);
                            owned.len()
                        });
                        assert_eq!(lengths.sum::<usize>(), shard.len());
                    }
                }
                assert_eq!(ends, groups.iter().map(|group| group.len).collect::<Vec<_>>());
                assert_eq!(blocks, super::blocks(&config));
                // no device owns much more than others
                let (least, most) = (owned.iter().min().unwrap(), owned.iter().max().unwrap());
                let unit = BLOCK * buckets.len();
                assert!(most - least <= unit.max(most / 10), "{devices} devices on {machines} machines own {owned:?}");
            }
        }
    }

    #[test]
    fn layers_are_done_from_the_last_to_the_first() {
        let config = configs()[1];
        let groups = groups(&config);
        let order = groups_by_completion(&config).into_iter().map(|position| {
            let first = groups[position].members[0];
            (first.param.name, first.layer, groups[position].decays)
        });
        let matrices = [2, 1, 0].map(|layer| ("qkvw", layer, true));
        let last = [("wpe", 0, true), ("wte", 0, true)];
        let order: Vec<_> = order.collect();
        assert_eq!((&order[..3], &order[4..]), (&matrices[..], &last[..]));
        assert!(!order[3].2);
    }

    #[test]
    fn weights_lie_where_the_flat_order_says() {
        let config = configs()[1];
        let mut weights = Weights::zeros(config);
        let mut seen = 0;
        for group in groups(&config) {
            for start in (0..group.len).step_by(1000) {
                let range = start..(start + 1000).min(group.len);
                for Piece { name, layer, elements, at } in group.pieces(&config, range.clone()) {
                    assert!(at + elements.len() <= range.len());
                    seen += elements.len();
                    weights.get_mut(name, layer)[elements].iter_mut().for_each(|value| *value += 1.0);
                }
            }
        }
        assert!(weights.tensors.iter().flatten().all(|value| *value == 1.0));
        assert_eq!(seen, weights.tensors.iter().map(Vec::len).sum::<usize>());
    }
}
