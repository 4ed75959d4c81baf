//! The commands of the end of a step that devices share, and the bytes that leave and come between them.

use std::ops::Range;

use crate::error::Result;
use crate::gpu::{Elem, Gpu, Pass, Program, Tensor};
use crate::model::flat::{self, Bucket, Group};
use crate::model::place;
use crate::ops::wire::{self, Format, Wire};
use crate::ops::{gradnorm, hash, stepcontrol, tree};
use crate::train::optimizer::{Run, UpdateRule};
use crate::train::ranks;
use crate::train::trainer::TrainerOptions;
use crate::train::trainer::micro_step::Model;

/// Sums that other devices hold, on their owner.
const RECEIVED: &str = "received sums";
/// Sums in 16 bits, on their way.
const PACKED: &str = "packed sums";

/// Tensors that one device gives to others, or gets from them, for one bucket.
#[derive(Debug, Default)]
pub struct Route {
    /// What leaves, in order.
    pub out: Vec<Tensor>,
    /// For each device, its bytes of that.
    pub to: Vec<Range<usize>>,
    /// What comes, in order.
    pub into: Vec<Tensor>,
    /// For each device, where its bytes begin in that.
    pub from: Vec<usize>,
}

impl Route {
    /// Lays out what leaves for each device and comes from it.
    fn new(
        devices: usize,
        mut out: impl FnMut(usize) -> Result<Vec<Tensor>>,
        mut into: impl FnMut(usize) -> Result<Vec<Tensor>>,
    ) -> Result<Self> {
        let mut route = Self::default();
        let (mut left, mut came) = (0, 0);
        for device in 0..devices {
            let [leaving, coming] = [out(device)?, into(device)?];
            let bytes = |tensors: &[Tensor]| tensors.iter().map(|tensor| tensor.bytes() as usize).sum::<usize>();
            route.to.push(left..left + bytes(&leaving));
            route.from.push(came);
            (left, came) = (left + bytes(&leaving), came + bytes(&coming));
            route.out.extend(leaving.into_iter().filter(|tensor| !tensor.is_empty()));
            route.into.extend(coming.into_iter().filter(|tensor| !tensor.is_empty()));
        }
        Ok(route)
    }

    /// Bytes of some of its tensors.
    pub fn bytes(tensors: &[Tensor]) -> u64 {
        tensors.iter().map(Tensor::bytes).sum()
    }
}

/// A bucket's way over the host, and what is computed around it.
#[derive(Debug, Default)]
pub struct Transfer {
    /// Before it leaves.
    pub before: Program,
    pub route: Route,
    /// After others' bytes have come.
    pub after: Program,
}

/// All that a device computes in the end of a step.
pub struct Plan {
    /// The last micro-step, until the first bucket of gradients may leave.
    pub opening: Program,
    /// Of gradients, in the order in which the backward pass is done with them, with what is left of it in between.
    pub gradients: Vec<Transfer>,
    /// The squares of the owned blocks.
    pub norm: Program,
    /// Decision and update, once the squares and losses of all are there.
    pub end: Program,
    /// Of weights; behind the last the f16 copies.
    pub weights: Vec<Transfer>,
    /// The hash of the weights.
    pub hash: Program,
}

/// Sums in 16 bits on their way.
struct Packed {
    format: Format,
    scale: f32,
    /// A bucket of each sum that the device holds.
    out: Vec<Tensor>,
    /// What the device owns of others' sums.
    into: Vec<Option<Tensor>>,
}

impl Packed {
    fn wire<'t>(&self, model: &'t Model, wide: &'t Tensor, packed: &'t Tensor) -> Wire<'t> {
        Wire { format: self.format, wide, packed, scale: self.scale, state: &model.control.state }
    }
}

/// Positions of a device's nodes among those of all devices, of which each holds as many as `held` says.
fn nodes_of(held: &[usize], device: usize) -> Range<usize> {
    let first = held[..device].iter().sum();
    first..first + held[device]
}

/// The tensors that contain the sums over ranks that a device adds up.
pub struct Sums {
    /// The nodes of the tree, those of the first device first.
    pub nodes: Vec<Range<usize>>,
    /// For each device, how many of them it holds.
    pub held: Vec<usize>,
    /// Positions of the device's own nodes.
    own: Range<usize>,
    /// What the device owns of the others.
    received: Vec<Option<Tensor>>,
    packed: Option<Packed>,
}

impl Sums {
    /// Allocates memory for what is received.
    pub fn new(gpu: &Gpu, options: &TrainerOptions) -> Result<Self> {
        let (device, devices) = (options.part.device, options.part.devices);
        let buckets = flat::buckets(&options.config);
        let held: Vec<usize> = (0..devices).map(|device| options.nodes(device).len()).collect();
        let nodes: Vec<Range<usize>> = (0..devices).flat_map(|device| options.nodes(device)).collect();
        let own = nodes_of(&held, device);
        let most_owned = buckets.iter().map(|bucket| bucket.owned(device, devices).len()).max().unwrap_or(0);
        let most = buckets.iter().map(|bucket| bucket.elements.len()).max().unwrap_or(0);
        let others = |label: &str, length: usize, elem: Elem| -> Result<Vec<Option<Tensor>>> {
            let slot = |node| (!own.contains(&node)).then(|| gpu.tensor(label, 1, length, elem)).transpose();
            (0..nodes.len()).map(slot).collect()
        };
        let packed = |format| -> Result<Packed> {
            let out = own.clone().map(|_| gpu.tensor(PACKED, 1, most / 2, Elem::U32)).collect::<Result<_>>()?;
            let into = others(PACKED, most_owned / 2, Elem::U32)?;
            // of a sum's gradient in f16, of a mean's in f32
            let unit = if options.elem == Elem::F16 { options.sizes.tokens().next_power_of_two() } else { 1 };
            Ok(Packed { format, scale: wire::SCALE / unit as f32, out, into })
        };
        let received = others(RECEIVED, most_owned, Elem::F32)?;
        let packed = options.wire.map(packed).transpose()?;
        Ok(Self { nodes, held, own, received, packed })
    }

    /// The owned elements of a bucket of one sum: on this device, or received.
    fn owned(&self, model: &Model, group: &Group, owned: Range<usize>, node: usize) -> Result<Tensor> {
        match &self.received[node] {
            Some(slot) => Ok(slot.flat(0..owned.len())),
            None => model.sums[node - self.own.start].grads.flat(group, owned),
        }
    }

    /// What others send, in the place of that.
    fn coming(&self, model: &Model, group: &Group, owned: Range<usize>, node: usize) -> Result<Tensor> {
        let packed = self.packed.as_ref().and_then(|packed| packed.into[node].as_ref());
        match packed {
            Some(slot) => Ok(slot.flat(0..owned.len() / 2)),
            None => self.owned(model, group, owned, node),
        }
    }

    /// What the device sends of some elements of a bucket, of each of its sums.
    fn leaving(&self, model: &Model, group: &Group, bucket: &Bucket, elements: Range<usize>) -> Result<Vec<Tensor>> {
        let start = bucket.elements.start;
        match &self.packed {
            Some(Packed { out, .. }) => {
                let words = (elements.start - start) / 2..(elements.end - start) / 2;
                Ok(out.iter().map(|out| out.flat(words.clone())).collect())
            }
            None => {
                let own = &model.sums[..self.own.len()];
                own.iter().map(|sum| sum.grads.flat(group, elements.clone())).collect()
            }
        }
    }

    /// Records what makes a bucket ready to leave, in 16 bits.
    fn pack(&self, pass: &mut Pass, model: &Model, group: &Group, bucket: &Bucket) -> Result<()> {
        let Some(packed) = &self.packed else { return Ok(()) };
        for (sum, out) in model.sums.iter().zip(&packed.out) {
            let wide = &sum.grads.flat(group, bucket.elements.clone())?;
            wire::narrow(pass, &packed.wire(model, wide, &out.flat(0..wide.len() / 2)))?;
        }
        Ok(())
    }

    /// Records what makes f32 of the sums that have come.
    fn unpack(&self, pass: &mut Pass, model: &Model, length: usize) -> Result<()> {
        let Some(packed) = &self.packed else { return Ok(()) };
        for (from, wide) in packed.into.iter().flatten().zip(self.received.iter().flatten()) {
            wire::widen(pass, &packed.wire(model, &wide.flat(0..length), &from.flat(0..length / 2)))?;
        }
        Ok(())
    }
}

/// What the end of a step is recorded for.
pub struct Recording<'r> {
    pub gpu: &'r Gpu,
    pub options: &'r TrainerOptions,
    pub model: &'r Model,
    /// The model's flat order.
    pub groups: &'r [Group],
    pub buckets: &'r [Bucket],
    /// The last micro-step of the device's last rank.
    pub last: &'r Program,
    pub sums: &'r Sums,
    /// Sums of squares of all blocks.
    pub squares: &'r Tensor,
    /// The sums of losses of all nodes.
    pub losses: &'r [Tensor],
    /// The two halves of the weights' hash.
    pub hash: &'r Tensor,
}

impl Recording<'_> {
    fn pass(&self) -> Pass<'_> {
        let mut pass = Pass::new(self.gpu);
        pass.at(place::UPDATE);
        pass
    }

    /// Elements of a group that the device owns of a bucket.
    fn owned(&self, bucket: &Bucket, device: usize) -> Range<usize> {
        bucket.owned(device, self.options.part.devices)
    }

    /// Records all; returns the rule of the update, with the moments of what the device owns.
    pub fn plan(&self) -> Result<(Plan, UpdateRule)> {
        let (opening, gradients, rest) = self.gradients()?;
        let (end, rule) = self.end()?;
        let plan = Plan {
            opening,
            gradients,
            norm: Program::join([&rest, &self.norm()?]),
            end,
            weights: self.weights()?,
            hash: self.hash()?,
        };
        Ok((plan, rule))
    }

    /// The last micro-step up to the first bucket, the buckets of gradients, and the rest of the micro-step.
    fn gradients(&self) -> Result<(Program, Vec<Transfer>, Program)> {
        let Self { options, model, last, sums, .. } = self;
        let turn = options.turns().pop();
        let last_sum = turn.map_or(0, |turn| turn.level);
        let own_additions = turn.map_or(0, |turn| turn.additions);
        let mut opening = None;
        let mut transfers = Vec::new();
        let mut done = 0;
        for position in flat::by_completion(&options.config) {
            let group = &self.groups[position];
            let until = last.written_until(&model.sums[last_sum].grads.flat(group, 0..group.len)?).max(done);
            let mut commands = last.part(done..until);
            done = until;
            if opening.is_none() {
                opening = Some(std::mem::take(&mut commands));
            }
            for bucket in self.buckets.iter().filter(|bucket| bucket.group == position) {
                let mut before = self.pass();
                for into in (last_sum - own_additions..last_sum).rev() {
                    let [left, right] =
                        [into, into + 1].map(|sum| model.sums[sum].grads.flat(group, bucket.elements.clone()));
                    tree::add(&mut before, tree::Add { left: &left?, right: &right? })?;
                }
                sums.pack(&mut before, model, group, bucket)?;
                let before = Program::join([&std::mem::take(&mut commands), &before.finish()]);
                let (route, after) = self.bucket(group, bucket)?;
                transfers.push(Transfer { before, route, after });
            }
        }
        let mut rest = self.pass();
        for into in (last_sum - own_additions..last_sum).rev() {
            tree::add(&mut rest, tree::Add { left: &model.sums[into].loss, right: &model.sums[into + 1].loss })?;
        }
        let rest = Program::join([&last.part(done..last.commands.len()), &rest.finish()]);
        Ok((opening.unwrap_or_default(), transfers, rest))
    }

    /// A bucket of gradients: what leaves for its owners and comes to this one, and the additions to the whole tree's sum.
    fn bucket(&self, group: &Group, bucket: &Bucket) -> Result<(Route, Program)> {
        let Self { options, model, sums, .. } = self;
        let (device, devices) = (options.part.device, options.part.devices);
        let own = self.owned(bucket, device);
        let leaving = |to: usize| match to {
            _ if to == device => Ok(Vec::new()),
            _ => sums.leaving(model, group, bucket, self.owned(bucket, to)),
        };
        let coming = |from: usize| match from {
            _ if from == device => Ok(Vec::new()),
            _ => nodes_of(&sums.held, from).map(|node| sums.coming(model, group, own.clone(), node)).collect(),
        };
        let route = Route::new(devices, leaving, coming)?;
        let mut after = self.pass();
        if !own.is_empty() {
            sums.unpack(&mut after, model, own.len())?;
            let sum = |node: usize| sums.owned(model, group, own.clone(), node);
            for [to, from] in ranks::additions(&sums.nodes, options.ranks, sums.own.start) {
                tree::add(&mut after, tree::Add { left: &sum(to)?, right: &sum(from)? })?;
            }
        }
        Ok((route, after.finish()))
    }

    fn norm(&self) -> Result<Program> {
        let mut pass = self.pass();
        let (device, devices) = (self.options.part.device, self.options.part.devices);
        for bucket in self.buckets {
            let (owned, blocks) = (self.owned(bucket, device), bucket.owned_blocks(device, devices));
            if !owned.is_empty() {
                let [first, end] = [blocks.start, blocks.end].map(|block| bucket.first_block + block);
                let grads = self.model.grads().flat(&self.groups[bucket.group], owned)?;
                gradnorm::blocks(&mut pass, &grads, &self.squares.slice(0..end), first)?;
            }
        }
        Ok(pass.finish())
    }

    fn end(&self) -> Result<(Program, UpdateRule)> {
        let Self { gpu, options, model, sums, losses, .. } = self;
        let mut runs = Vec::new();
        for bucket in self.buckets {
            let (group, owned) = (&self.groups[bucket.group], self.owned(bucket, options.part.device));
            if !owned.is_empty() {
                let weight = model.params.flat(group, owned.clone())?;
                runs.push(Run { weight, gradient: model.grads().flat(group, owned)?, decays: group.decays });
            }
        }
        let rule = UpdateRule::owned(gpu, &runs.iter().map(|run| run.weight.len()).collect::<Vec<_>>())?;
        let mut pass = self.pass();
        for [to, from] in ranks::additions(&sums.nodes, options.ranks, 0) {
            tree::add(&mut pass, tree::Add { left: &losses[to], right: &losses[from] })?;
        }
        stepcontrol::decide(&mut pass, &model.control, self.squares, &losses[0])?;
        rule.record_runs(&mut pass, &runs, &model.control)?;
        Ok((pass.finish(), rule))
    }

    fn weights(&self) -> Result<Vec<Transfer>> {
        let Self { options, model, .. } = self;
        let (device, devices) = (options.part.device, options.part.devices);
        let mut transfers = Vec::new();
        for bucket in self.buckets {
            let of = |of: usize| model.params.flat(&self.groups[bucket.group], self.owned(bucket, of));
            // all others get the same bytes
            let leaving = |to: usize| Ok(if to == 0 { vec![of(device)?] } else { Vec::new() });
            let coming = |from: usize| Ok(if from == device { Vec::new() } else { vec![of(from)?] });
            let mut route = Route::new(devices, leaving, coming)?;
            let whole = 0..Route::bytes(&route.out) as usize;
            route.to = vec![whole; devices];
            transfers.push(Transfer { route, ..Transfer::default() });
        }
        let mut copies = self.pass();
        model.params.refresh(&mut copies)?;
        if let Some(last) = transfers.last_mut() {
            last.after = copies.finish();
        }
        Ok(transfers)
    }

    fn hash(&self) -> Result<Program> {
        let mut pass = Pass::new(self.gpu);
        pass.clear(self.hash);
        let mut first = 0_u32;
        for bucket in self.buckets {
            let values = &self.model.params.flat(&self.groups[bucket.group], bucket.elements.clone())?;
            hash::forward(&mut pass, hash::Forward { values, first, sums: self.hash })?;
            first = first.wrapping_add(bucket.elements.len() as u32);
        }
        Ok(pass.finish())
    }
}
