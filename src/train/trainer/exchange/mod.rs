//! The end of a step that several devices share: ZeRO-1 through host memory.
//!
//! Each device owns some blocks of every bucket of parameters ([`crate::model::flat`]), and it alone holds their
//! moments. Bucket by bucket, each owner receives the sums of gradients that the other devices hold, and adds them by
//! the tree over ranks. All devices share the sums of squares of the blocks that they own. From these, each device
//! makes the same decision about the step. Owners update their parameters and send them to all devices.
//!
//! A device has one queue, in which copies wait for kernels and for each other. The last micro-step is cut at the
//! points where the backward pass has finished a layer's gradients. These are sent, and while they are on the host the
//! device computes the layer before. Later, while a bucket is on the host, the device copies the next one out, and
//! copies in and adds the one before.

mod moments;
mod plan;
mod rounds;
pub(super) mod stages;

use std::ops::Range;

use super::TrainerOptions;
use super::micro_step::Model;
use crate::error::{Error, Fault, Result};
use crate::gpu::{Arrivals, Departures, Elem, Gpu, Program, ReadRing, Tensor, Timed};
use crate::model::Config;
use crate::model::flat::{self, Bucket, Group, Part};
use crate::ops::stepcontrol::StepControl;
use crate::train::collective::Collective;
use crate::train::optimizer::UpdateRule;
use plan::{Plan, ReceivedSums, Recording, Route, Transfer};
pub use rounds::MAX_COPY_THREADS;
use rounds::rounds;

/// Labels of the host memory through which buckets are sent and received.
const OUT: &str = "exchange out";
const IN: &str = "exchange in";

/// Steps between two comparisons of all devices.
pub const COMPARED: usize = 100;

/// The end of steps that a device shares with others.
pub(super) struct Exchange {
    /// `None` on a dry device.
    link: Option<Box<dyn Collective>>,
    plan: Plan,
    buckets: Vec<Bucket>,
    groups: Vec<Group>,
    config: Config,
    part: Part,
    /// Number of sums that each device holds after it has computed its ranks.
    held: Vec<usize>,
    /// Keeps the memory that the programs use alive.
    _sums: ReceivedSums,
    rule: UpdateRule,
    /// ReceivedSums of squares, one per block of the model.
    squares: Tensor,
    /// This device's sums of losses.
    own_losses: Vec<Tensor>,
    /// The sums of losses of all nodes of the tree.
    losses: Vec<Tensor>,
    /// The two halves of the weights' hash.
    hash: Tensor,
    out: Departures,
    into: Arrivals,
    words_out: Departures,
    words_in: Arrivals,
}

impl Exchange {
    /// Allocates the exchange's memory and records its programs, into which the last micro-step of the device's last
    /// rank is cut.
    pub fn new(
        gpu: &Gpu,
        options: &TrainerOptions,
        model: &Model,
        last: &Program,
        link: Option<Box<dyn Collective>>,
    ) -> Result<Self> {
        let config = &options.config;
        let part = options.part;
        let sums = ReceivedSums::new(gpu, options)?;
        let nodes: Vec<Vec<Range<usize>>> = (0..part.devices).map(|device| options.nodes(device)).collect();
        let held: Vec<usize> = nodes.iter().map(Vec::len).collect();
        let nodes = nodes.concat();
        let squares = gpu.tensor("norm partials", flat::blocks(config), 1, Elem::F32)?;
        let loss = |_| gpu.tensor("loss", 1, 1, Elem::F32);
        let losses: Vec<Tensor> = nodes.iter().map(loss).collect::<Result<_>>()?;
        let hash = gpu.tensor("weights' hash", 2, 1, Elem::U32)?;
        let (groups, buckets) = (flat::groups(config), flat::buckets(config));
        let recording = Recording {
            gpu,
            options,
            model,
            groups: &groups,
            buckets: &buckets,
            last,
            sums: &sums,
            squares: &squares,
            nodes: &nodes,
            losses: &losses,
            hash: &hash,
        };
        let (plan, rule) = recording.plan()?;
        let transfers = || plan.gradients.iter().chain(&plan.weights);
        let most = |of: fn(&Transfer) -> u64| transfers().map(of).max().unwrap_or(0);
        let own_losses: Vec<Tensor> = model.sums[..held[part.device]].iter().map(|sum| sum.loss.clone()).collect();
        let words = squares.bytes() + 4 * nodes.len() as u64;
        Ok(Self {
            out: Departures::new(gpu, OUT, most(|transfer| Route::bytes(&transfer.route.out)))?,
            into: Arrivals::new(gpu, IN, most(|transfer| Route::bytes(&transfer.route.into)))?,
            words_out: Departures::new(gpu, OUT, words)?,
            words_in: Arrivals::new(gpu, IN, words)?,
            link,
            plan,
            buckets,
            groups,
            config: options.config,
            part,
            held,
            _sums: sums,
            rule,
            squares,
            own_losses,
            losses,
            hash,
        })
    }

    /// Returns the part of the last micro-step that runs before the first gradients are sent.
    pub fn opening(&self) -> &Program {
        &self.plan.opening
    }

    /// Returns all commands from [`Exchange::opening`] to the end of a step.
    pub fn program(&self) -> Program {
        let Plan { opening, gradients, norm, end, weights, .. } = &self.plan;
        let around = |transfers: &'_ [Transfer]| {
            let programs = transfers.iter().flat_map(|transfer| [&transfer.before, &transfer.after]);
            Program::join(programs)
        };
        Program::join([opening, &around(gradients), norm, end, &around(weights)])
    }

    /// Returns the link to the other devices.
    pub fn link(&mut self) -> Result<&mut (dyn Collective + 'static)> {
        present(&mut self.link)
    }

    /// Returns the link for calls that do not wait; `None` on a dry device.
    pub fn collective(&self) -> Option<&(dyn Collective + 'static)> {
        self.link.as_deref()
    }

    /// Ends a step after [`Exchange::opening`]: computes the rest of the last micro-step while sums of gradients travel
    /// to their owners, decides, updates, and sends the weights to all devices.
    pub fn finish(&mut self, gpu: &Gpu, reports: &mut ReadRing, timed: Option<Timed<'_>>) -> Result<()> {
        gpu.span("exchange gradients", || self.gradients(gpu))?;
        self.decide(gpu)?;
        gpu.span("exchange weights", || self.weights(gpu, reports, timed))
    }

    /// Compares the weights of all devices, by a hash of 64 bits, and their step control, before the end of step
    /// `step`.
    ///
    /// # Errors
    /// [`Error::Disagree`] naming the devices that differ from the majority.
    pub fn compare(&mut self, gpu: &Gpu, control: &StepControl, step: usize) -> Result<()> {
        self.plan.hash.run(gpu)?;
        let own = [gpu.read(&self.hash)?, gpu.read(&control.state)?].concat();
        let all = present(&mut self.link)?.share(&own)?;
        let count = |words: &Vec<u8>| all.iter().filter(|other| *other == words).count();
        let most = all.iter().map(count).max().unwrap_or(0);
        if most == all.len() {
            return Ok(());
        }
        let link = present(&mut self.link)?;
        let describe = |(device, words): (usize, &Vec<u8>)| {
            let word = |at: usize| u32::from_le_bytes(words[at..at + 4].try_into().unwrap_or_default());
            format!("{} {:08x}{:08x}", link.name(device), word(4), word(0))
        };
        let hashes: Vec<String> = all.iter().enumerate().map(describe).collect();
        let other = |(device, words): (usize, &Vec<u8>)| (count(words) < most).then(|| link.name(device));
        let others: Vec<String> = all.iter().enumerate().filter_map(other).collect();
        // without a majority the faulty device is unknown
        let who = if others.is_empty() { "some devices".to_owned() } else { others.join(", ") };
        let what = format!("weights or step control of {who} differ from those of the other devices in step {step}");
        let fault = Fault::at("weights", what).expected("the same hash on all devices").found(hashes.join(", "));
        let since = step.saturating_sub(COMPARED);
        Err(Error::disagree(fault.advice(format!(
            "a GPU or its memory is faulty: resume from a checkpoint of step {since} or before, without that device"
        ))))
    }

    fn gradients(&mut self, gpu: &Gpu) -> Result<()> {
        let Self { link, plan, out, into, .. } = self;
        rounds(gpu, present(link)?, &plan.gradients, (out, into), &mut [], None)
    }

    /// Shares the sums of squares of owned blocks and the losses; then every device decides, and owners update.
    fn decide(&mut self, gpu: &Gpu) -> Result<()> {
        let Self { link, plan, words_out, words_in, squares, buckets, part, held, .. } = self;
        let link = present(link)?;
        let own: Vec<&Tensor> = [&*squares].into_iter().chain(&self.own_losses).collect();
        words_out.send(gpu, Some(&plan.norm), &own)?;
        let parcel = words_out.take(gpu)?;
        let own_words = parcel.as_ref().to_vec();
        words_out.give_back(parcel)?;
        // the sums of squares of owned blocks, followed by the losses
        let losses = squares.bytes() as usize;
        let owned = |part: Part| {
            let of = |bucket: &Bucket| {
                let blocks = bucket.owned_blocks(part);
                4 * (bucket.first_block + blocks.start)..4 * (bucket.first_block + blocks.end)
            };
            buckets.iter().map(of).collect::<Vec<Range<usize>>>()
        };
        let mut words: Vec<u8> = owned(*part).into_iter().flat_map(|range| own_words[range].to_vec()).collect();
        words.extend(&own_words[losses..]);
        let all = gpu.span("wait for the norm", || link.share(&words))?;
        let mut merged = vec![0; losses];
        for (device, words) in all.iter().enumerate() {
            let mut rest = &words[..];
            for range in owned(Part { device, ..*part }) {
                let (squares, behind) = rest.split_at(range.len().min(rest.len()));
                merged[range.start..range.start + squares.len()].copy_from_slice(squares);
                rest = behind;
            }
            merged.extend(&rest[..(4 * held[device]).min(rest.len())]);
        }
        let mut arrival = words_in.open(gpu)?;
        arrival.put(0, &merged)?;
        let words: Vec<&Tensor> = [&*squares].into_iter().chain(&self.losses).collect();
        words_in.land(gpu, arrival, &words, Some(&plan.end), &mut [], None)
    }

    fn weights(&mut self, gpu: &Gpu, reports: &mut ReadRing, timed: Option<Timed<'_>>) -> Result<()> {
        let Self { link, plan, out, into, .. } = self;
        rounds(gpu, present(link)?, &plan.weights, (out, into), &mut [reports], timed)
    }
}

fn present(link: &mut Option<Box<dyn Collective>>) -> Result<&mut (dyn Collective + 'static)> {
    let none = || Error::gpu(Fault::at("exchange", "a dry device cannot exchange"));
    link.as_deref_mut().ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Caps, Command};
    use crate::ops::wire::Format;
    use crate::train::Sizes;
    use crate::train::trainer::{Finish, Part, Trainer};

    fn names(programs: &[&Program]) -> Vec<String> {
        programs.iter().flat_map(|program| &program.commands).map(|command| command.name().to_owned()).collect()
    }

    /// The gradients of every layer except the first are sent before the backward pass ends, and no command is lost.
    #[test]
    fn gradients_leave_as_soon_as_the_backward_pass_is_done_with_them() {
        let config = Config::new(64, 257, 4, 2, 64).unwrap();
        for (ranks, wire) in [(2, None), (6, None), (2, Some(Format::Bf16))] {
            let sizes = Sizes { batch: 1, context: 64, accumulation: ranks };
            let part = Part::on_one_machine(1, 2);
            let gpu = Gpu::dry(Caps::webgpu_defaults());
            let options = TrainerOptions { ranks, part, wire, ..TrainerOptions::new(config, sizes) };
            let trainer = Trainer::new(&gpu, options).unwrap();
            let Finish::Shared(exchange) = &trainer.finish else { panic!("not shared") };
            let Plan { opening, gradients, norm, .. } = &exchange.plan;
            let whole = trainer.micro.program(trainer.turns.last().unwrap().level, 0);
            let before: Vec<&Program> = gradients.iter().map(|transfer| &transfer.before).collect();
            let mut all = names(&[&[opening], &before[..], &[norm]].concat());
            // sums over ranks and conversions to 16 bits come in between
            all.retain(|name| !["tree.", "wire.", "gradnorm."].iter().any(|other| name.starts_with(other)));
            assert_eq!(all, names(&[whole]), "{ranks} ranks, {wire:?}");
            let layers = |program: &Program| -> Vec<u32> {
                let mut layers: Vec<u32> =
                    program.commands.iter().filter_map(|command: &Command| command.place.layer).collect();
                layers.dedup();
                layers
            };
            assert_eq!(layers(opening), [0, 1, 2, 3], "{ranks} ranks");
            // the end of a layer, which has no matrices, and the one before
            let between: Vec<Vec<u32>> = before[..4].iter().map(|before| layers(before)).collect();
            assert_eq!(between, [vec![], vec![3, 2], vec![2, 1], vec![1, 0]], "{ranks} ranks");
            let added = |start: &str| names(&before).iter().filter(|name| name.starts_with(start)).count();
            assert_eq!(added("tree."), if ranks == 6 { gradients.len() } else { 0 }, "{ranks} ranks");
            assert_eq!(added("wire.narrow"), wire.map_or(0, |_| gradients.len()));
        }
    }
}
