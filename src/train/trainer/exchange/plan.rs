//! The commands at the end of a step that devices share, and the bytes that are sent and received between them.

use std::ops::Range;

use super::stages::{Stage, stages};
use crate::error::Result;
use crate::gpu::{Elem, Gpu, Pass, Program, Tensor};
use crate::model::flat::{self, Bucket, Group, Part};
use crate::model::place;
use crate::ops::wire::{self, Format, Wire};
use crate::ops::{gradnorm, hash, stepcontrol, tree};
use crate::train::collective::Scope;
use crate::train::optimizer::{ParameterRun, UpdateRule};
use crate::train::ranks;
use crate::train::trainer::TrainerOptions;
use crate::train::trainer::micro_step::Model;

/// Label of the sums that an owner receives from other devices.
const RECEIVED: &str = "received sums";
/// Label of sums in 16 bits that are sent or received.
const PACKED: &str = "packed sums";

/// The tensors of one bucket that a device sends and receives.
#[derive(Debug)]
pub struct Route {
    /// The devices that exchange.
    pub scope: Scope,
    /// Tensors to send, in order.
    pub out: Vec<Tensor>,
    /// The bytes of `out` for each member.
    pub to: Vec<Range<usize>>,
    /// Tensors to receive, in order.
    pub into: Vec<Tensor>,
    /// The bytes of `into` from each member.
    pub from: Vec<Range<usize>>,
}

impl Route {
    /// Lays out the tensors that are sent to each member and received from it.
    fn new(
        scope: Scope,
        members: &[Part],
        mut out: impl FnMut(usize) -> Result<Vec<Tensor>>,
        mut into: impl FnMut(usize) -> Result<Vec<Tensor>>,
    ) -> Result<Self> {
        let mut route = Self { scope, out: Vec::new(), to: Vec::new(), into: Vec::new(), from: Vec::new() };
        let (mut left, mut came) = (0, 0);
        for member in 0..members.len() {
            let [leaving, coming] = [out(member)?, into(member)?];
            let bytes = |tensors: &[Tensor]| tensors.iter().map(|tensor| tensor.bytes() as usize).sum::<usize>();
            route.to.push(left..left + bytes(&leaving));
            route.from.push(came..came + bytes(&coming));
            (left, came) = (left + bytes(&leaving), came + bytes(&coming));
            route.out.extend(leaving.into_iter().filter(|tensor| !tensor.is_empty()));
            route.into.extend(coming.into_iter().filter(|tensor| !tensor.is_empty()));
        }
        Ok(route)
    }

    /// Returns the bytes of some of its tensors.
    pub fn bytes(tensors: &[Tensor]) -> u64 {
        tensors.iter().map(Tensor::bytes).sum()
    }
}

/// The exchange of a bucket over the host, and the commands around it.
#[derive(Debug)]
pub struct Transfer {
    /// Commands before it is sent.
    pub before: Program,
    pub route: Route,
    /// Commands after the bytes of others have arrived.
    pub after: Program,
}

/// All commands of a device at the end of a step.
pub struct Plan {
    /// The last micro-step, up to the point where the first bucket of gradients is finished.
    pub opening: Program,
    /// Transfers of gradients, in the order in which the backward pass finishes them, with the rest of it in between.
    pub gradients: Vec<Transfer>,
    /// ReceivedSums of squares of the owned blocks.
    pub norm: Program,
    /// Decision and update, after the squares and losses of all devices have arrived.
    pub end: Program,
    /// Transfers of weights; the f16 copies follow the last one.
    pub weights: Vec<Transfer>,
    /// The hash of the weights.
    pub hash: Program,
}

/// Memory for sums in 16 bits.
struct Packed {
    format: Format,
    scale: f32,
    /// A bucket of each sum that the device sends.
    out: Vec<Tensor>,
    /// Parts of others' sums that the device receives.
    into: Vec<Option<Tensor>>,
}

impl Packed {
    fn wire<'t>(&self, model: &'t Model, wide: &'t Tensor, packed: &'t Tensor) -> Wire<'t> {
        Wire { format: self.format, wide, packed, scale: self.scale, state: &model.control.state }
    }
}

/// Memory of one stage for received sums, by the position of the sum.
struct StageMemory {
    stage: Stage,
    /// Sets of buffers, which transfers use in turn.
    received: Vec<Vec<Option<Tensor>>>,
    packed: Option<Packed>,
}

/// The tensors that contain the sums over ranks that a device adds up.
pub struct ReceivedSums {
    stages: Vec<StageMemory>,
}

impl ReceivedSums {
    /// Allocates memory for received sums.
    pub fn new(gpu: &Gpu, options: &TrainerOptions) -> Result<Self> {
        let buckets = flat::buckets(&options.config);
        let memory_of = |stage: Stage| {
            let (leaving, received) = (stage.leaving(&buckets), stage.received(&buckets));
            let others = |label: &str, length: usize, elem: Elem| -> Result<Vec<Option<Tensor>>> {
                let slot = |node| (!stage.own.contains(&node)).then(|| gpu.tensor(label, 1, length, elem)).transpose();
                (0..stage.nodes.len()).map(slot).collect()
            };
            let packed = |format| -> Result<Packed> {
                let out =
                    stage.own.clone().map(|_| gpu.tensor(PACKED, 1, leaving / 2, Elem::U32)).collect::<Result<_>>()?;
                let into = others(PACKED, received / 2, Elem::U32)?;
                // f16 sends the gradient of a sum of losses, f32 that of a mean
                let unit = if options.elem == Elem::F16 { options.sizes.tokens().next_power_of_two() } else { 1 };
                Ok(Packed { format, scale: wire::SCALE / unit as f32, out, into })
            };
            let sets =
                (0..stage.buffer_sets()).map(|_| others(RECEIVED, received, Elem::F32)).collect::<Result<_>>()?;
            let packed = options.wire.map(packed).transpose()?;
            Ok(StageMemory { stage, received: sets, packed })
        };
        Ok(Self { stages: stages(options).into_iter().map(memory_of).collect::<Result<_>>()? })
    }
}

/// A bucket of a group.
#[derive(Clone, Copy)]
struct BucketPlace<'p> {
    group: &'p Group,
    bucket: &'p Bucket,
    /// Its position in the order of exchange, which is not memory order.
    position: usize,
}

/// The sums of a bucket in the memory of one device.
struct HeldSums<'h> {
    model: &'h Model,
    stages: &'h [StageMemory],
    piece: BucketPlace<'h>,
}

impl HeldSums<'_> {
    /// Returns elements of the sum at a position of a stage. The device must hold these elements at that stage.
    fn sum(&self, stage: usize, position: usize, elements: Range<usize>) -> Result<Tensor> {
        let BucketPlace { group, bucket, position: turn } = self.piece;
        let StageMemory { stage: Stage { own, .. }, received, .. } = &self.stages[stage];
        let there = &received[turn % received.len()];
        if let Some(slot) = &there[position] {
            let start = self.stages[stage].stage.summed(bucket, self.stages[stage].stage.part).start;
            return Ok(slot.flat(elements.start - start..elements.end - start));
        }
        let own = position - own.start;
        match stage.checked_sub(1) {
            None => self.model.sums[own].grads.flat(group, elements),
            Some(before) => self.sum(before, self.stages[before].stage.results[own], elements),
        }
    }

    /// Returns the tensor that receives elements of the sum at a position of a stage.
    fn coming(&self, stage: usize, position: usize, elements: Range<usize>) -> Result<Tensor> {
        let packed = self.stages[stage].packed.as_ref().and_then(|packed| packed.into[position].as_ref());
        match packed {
            Some(slot) => Ok(slot.flat(0..elements.len() / 2)),
            None => self.sum(stage, position, elements),
        }
    }

    /// Returns the tensors that are sent in a stage: these elements of each of the device's sums.
    fn leaving(&self, stage: usize, elements: Range<usize>) -> Result<Vec<Tensor>> {
        let StageMemory { stage: of, packed, .. } = &self.stages[stage];
        match packed {
            Some(Packed { out, .. }) => {
                let start = of.held(self.piece.bucket).start;
                let words = (elements.start - start) / 2..(elements.end - start) / 2;
                Ok(out.iter().map(|out| out.flat(words.clone())).collect())
            }
            None => of.own.clone().map(|position| self.sum(stage, position, elements.clone())).collect(),
        }
    }

    /// Records the conversion to 16 bits of the sums that a stage sends.
    fn pack(&self, pass: &mut Pass, stage: usize) -> Result<()> {
        let StageMemory { stage: of, packed, .. } = &self.stages[stage];
        let Some(packed) = packed else { return Ok(()) };
        for (position, out) in of.own.clone().zip(&packed.out) {
            let wide = &self.sum(stage, position, of.held(self.piece.bucket))?;
            if !wide.is_empty() {
                wire::narrow(pass, &packed.wire(self.model, wide, &out.flat(0..wide.len() / 2)))?;
            }
        }
        Ok(())
    }

    /// Records the conversion to f32 of the sums that a stage has received.
    fn unpack(&self, pass: &mut Pass, stage: usize, elements: &Range<usize>) -> Result<()> {
        let StageMemory { packed: Some(packed), .. } = &self.stages[stage] else { return Ok(()) };
        for (position, from) in packed.into.iter().enumerate() {
            let Some(from) = from else { continue };
            let wide = &self.sum(stage, position, elements.clone())?;
            wire::widen(pass, &packed.wire(self.model, wide, &from.flat(0..elements.len() / 2)))?;
        }
        Ok(())
    }

    /// Records one stage of the bucket after `before`: the tensors to send and receive, and the additions to the
    /// scope's sums.
    fn transfer(&self, gpu: &Gpu, stage: usize, before: Pass) -> Result<Transfer> {
        let of = &self.stages[stage].stage;
        let (members, seat) = (of.scope.members(of.part), of.scope.seat(of.part));
        let bucket = self.piece.bucket;
        let own = of.summed(bucket, of.part);
        let mut before = before;
        self.pack(&mut before, stage)?;
        let leaving = |to: usize| match to {
            _ if to == seat => Ok(Vec::new()),
            _ => self.leaving(stage, of.summed(bucket, members[to])),
        };
        let coming = |from: usize| match from {
            _ if from == seat => Ok(Vec::new()),
            _ => of.nodes_of(from).map(|position| self.coming(stage, position, own.clone())).collect(),
        };
        let route = Route::new(of.scope, &members, leaving, coming)?;
        let mut after = Pass::new(gpu);
        after.at(place::UPDATE);
        if !own.is_empty() {
            self.unpack(&mut after, stage, &own)?;
            for [to, from] in &of.additions {
                let [left, right] = [to, from].map(|position| self.sum(stage, *position, own.clone()));
                tree::add(&mut after, tree::Add { left: &left?, right: &right? })?;
            }
        }
        Ok(Transfer { before: before.finish(), route, after: after.finish() })
    }
}

/// Orders the transfers of two stages. A bucket's second stage begins after its first one has ended, with another
/// transfer in between, because `rounds` sends one transfer while the one before is on the host. A bucket's second
/// stage ends before the first stage of the bucket after the next, which uses the same memory.
///
/// # Panics
/// If there is only one bucket; every model has several groups, and so several buckets.
fn interleaved(first: Vec<Transfer>, second: Vec<Transfer>) -> Vec<Transfer> {
    if first.is_empty() || second.is_empty() {
        return first.into_iter().chain(second).collect();
    }
    assert!(first.len() == second.len() && first.len() > 1, "a stage of {} buckets", first.len());
    let mut order = Vec::new();
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    order.extend(first.next());
    for transfer in first {
        order.push(transfer);
        order.extend(second.next());
    }
    order.extend(second);
    order
}

/// Arguments for recording the end of a step.
pub struct Recording<'r> {
    pub gpu: &'r Gpu,
    pub options: &'r TrainerOptions,
    pub model: &'r Model,
    /// The model's flat order.
    pub groups: &'r [Group],
    pub buckets: &'r [Bucket],
    /// The last micro-step of the device's last rank.
    pub last: &'r Program,
    pub sums: &'r ReceivedSums,
    /// ReceivedSums of squares, one per block of the model.
    pub squares: &'r Tensor,
    /// The nodes of the tree that all devices together hold, and the sum of losses of each node.
    pub nodes: &'r [Range<usize>],
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

    /// Records all programs; also returns the update rule, with the moments that the device owns.
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

    /// Returns the last micro-step up to the first bucket, the transfers of gradients, and the rest of the micro-step.
    fn gradients(&self) -> Result<(Program, Vec<Transfer>, Program)> {
        let Self { options, model, last, sums, .. } = self;
        let turn = options.turns().pop();
        let last_sum = turn.map_or(0, |turn| turn.level);
        let own_additions = turn.map_or(0, |turn| turn.additions);
        let mut opening = None;
        let mut transfers: Vec<Vec<Transfer>> = sums.stages.iter().map(|_| Vec::new()).collect();
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
                let held = HeldSums {
                    model,
                    stages: &sums.stages,
                    piece: BucketPlace { group, bucket, position: transfers[..].first().map_or(0, Vec::len) },
                };
                for (stage, transfers) in transfers.iter_mut().enumerate() {
                    let before = std::mem::replace(&mut before, self.pass());
                    let mut transfer = held.transfer(self.gpu, stage, before)?;
                    transfer.before = Program::join([&std::mem::take(&mut commands), &transfer.before]);
                    transfers.push(transfer);
                }
            }
        }
        let mut rest = self.pass();
        for into in (last_sum - own_additions..last_sum).rev() {
            tree::add(&mut rest, tree::Add { left: &model.sums[into].loss, right: &model.sums[into + 1].loss })?;
        }
        let rest = Program::join([&last.part(done..last.commands.len()), &rest.finish()]);
        let mut stages = transfers.into_iter();
        let transfers = interleaved(stages.next().unwrap_or_default(), stages.next().unwrap_or_default());
        Ok((opening.unwrap_or_default(), transfers, rest))
    }

    fn norm(&self) -> Result<Program> {
        let mut pass = self.pass();
        let part = self.options.part;
        for bucket in self.buckets {
            let (owned, blocks) = (bucket.owned(part), bucket.owned_blocks(part));
            if !owned.is_empty() {
                let [first, end] = [blocks.start, blocks.end].map(|block| bucket.first_block + block);
                let grads = self.model.grads().flat(&self.groups[bucket.group], owned)?;
                gradnorm::blocks(&mut pass, &grads, &self.squares.slice(0..end), first)?;
            }
        }
        Ok(pass.finish())
    }

    fn end(&self) -> Result<(Program, UpdateRule)> {
        let Self { gpu, options, model, nodes, losses, .. } = self;
        let mut runs = Vec::new();
        for bucket in self.buckets {
            let (group, owned) = (&self.groups[bucket.group], bucket.owned(options.part));
            if !owned.is_empty() {
                let weight = model.params.flat(group, owned.clone())?;
                runs.push(ParameterRun { weight, gradient: model.grads().flat(group, owned)?, decays: group.decays });
            }
        }
        let rule = UpdateRule::owned(gpu, &runs.iter().map(|run| run.weight.len()).collect::<Vec<_>>())?;
        let mut pass = self.pass();
        for [to, from] in ranks::additions(nodes, std::slice::from_ref(&(0..options.ranks)), 0).0 {
            tree::add(&mut pass, tree::Add { left: &losses[to], right: &losses[from] })?;
        }
        stepcontrol::decide(&mut pass, &model.control, self.squares, &losses[0])?;
        rule.record_runs(&mut pass, &runs, &model.control)?;
        Ok((pass.finish(), rule))
    }

    /// Returns the transfers of weights: from each owner to the devices at its position on other machines, and from
    /// these to all devices of their machines.
    fn weights(&self) -> Result<Vec<Transfer>> {
        let Self { options, model, .. } = self;
        let stage = |scope: Scope| -> Result<Vec<Transfer>> {
            let (members, seat) = (scope.members(options.part), scope.seat(options.part));
            if members.len() == 1 {
                return Ok(Vec::new());
            }
            let transfer = |bucket: &Bucket| {
                let of = |member: usize| {
                    let elements = match scope {
                        Scope::Machines => bucket.owned(members[member]),
                        Scope::Machine => bucket.shard(members[member]),
                    };
                    model.params.flat(&self.groups[bucket.group], elements)
                };
                // all other members receive the same bytes
                let leaving = |to: usize| Ok(if to == 0 { vec![of(seat)?] } else { Vec::new() });
                let coming = |from: usize| Ok(if from == seat { Vec::new() } else { vec![of(from)?] });
                let mut route = Route::new(scope, &members, leaving, coming)?;
                let whole = 0..Route::bytes(&route.out) as usize;
                route.to = vec![whole; members.len()];
                Ok(Transfer { before: Program::default(), route, after: Program::default() })
            };
            self.buckets.iter().map(transfer).collect()
        };
        let mut transfers = interleaved(stage(Scope::Machines)?, stage(Scope::Machine)?);
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
