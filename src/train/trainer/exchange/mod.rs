//! The end of a step that several devices share: ZeRO-1 through host memory.
//!
//! Each device owns some blocks of every bucket of parameters ([`crate::model::flat`]): it alone holds their moments. Bucket by
//! bucket the owners get the sums of gradients that the other devices hold, and add them by the tree over ranks. From the
//! squares of what they own, which all devices share, each decides alike what happens to the step. Owners update their
//! parameters, and all get them.
//!
//! A device has one queue, in which copies wait for kernels and for each other. While a bucket is on the host, the next one is
//! copied out and the one before is copied in and added.

use std::ops::Range;
use std::sync::Arc;

use super::TrainerOptions;
use super::micro_step::Model;
use crate::error::{Error, Fault, Result};
use crate::gpu::{Arrival, Arrivals, Departures, Elem, Gpu, Parcel, Pass, Program, ReadRing, Tensor, Timed};
use crate::model::flat::{self, Bucket, Group, Piece};
use crate::model::{Config, Weights, place};
use crate::ops::stepcontrol::StepControl;
use crate::ops::{gradnorm, hash, stepcontrol, tree};
use crate::train::collective::{Collective, Shared};
use crate::train::optimizer::{Moments, Run, UpdateRule};
use crate::train::ranks;

/// Host memory through which buckets leave and come.
const OUT: &str = "exchange out";
const IN: &str = "exchange in";
/// Sums that other devices hold, on their owner.
const RECEIVED: &str = "received sums";

/// Steps from one comparison of all devices to the next.
pub const COMPARED: usize = 100;

/// Threads that copy for a device at most: a few have the speed of a GPU's link.
pub const MOST_COPIERS: usize = 4;

/// Tensors that one device gives to others, or gets from them, for one bucket.
#[derive(Debug, Default)]
struct Route {
    /// What leaves, in order.
    out: Vec<Tensor>,
    /// For each device, its bytes of that.
    to: Vec<Range<usize>>,
    /// What comes, in order.
    into: Vec<Tensor>,
    /// For each device, where its bytes begin in that.
    from: Vec<usize>,
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

    fn bytes(tensors: &[Tensor]) -> u64 {
        tensors.iter().map(Tensor::bytes).sum()
    }
}

/// The routes of all buckets and what is computed between them.
struct Plan {
    /// Of gradients, with the additions that follow the arrival of each.
    gradients: Vec<(Route, Program)>,
    /// Of weights.
    weights: Vec<Route>,
    /// The squares of the owned blocks.
    norm: Program,
    /// Decision and update, once the squares and losses of all are there.
    end: Program,
    /// The f16 copies of the weights.
    copies: Program,
    /// The hash of the weights.
    hash: Program,
}

/// What a device needs for the end of steps that it shares with others.
pub(super) struct Exchange {
    /// None on a dry device.
    link: Option<Box<dyn Collective>>,
    plan: Plan,
    buckets: Vec<Bucket>,
    groups: Vec<Group>,
    config: Config,
    device: usize,
    devices: usize,
    /// For each device, how many sums it holds.
    held: Vec<usize>,
    rule: UpdateRule,
    /// Sums of squares of all blocks.
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
    /// Allocates what the exchange needs and records its programs.
    pub fn new(gpu: &Gpu, options: &TrainerOptions, model: &Model, link: Option<Box<dyn Collective>>) -> Result<Self> {
        let config = &options.config;
        let (device, devices) = (options.part.device, options.part.devices);
        let (groups, buckets) = (flat::groups(config), flat::buckets(config));
        let held: Vec<usize> = (0..devices).map(|device| options.nodes(device).len()).collect();
        let nodes: Vec<Range<usize>> = (0..devices).flat_map(|device| options.nodes(device)).collect();
        let first_own: usize = held[..device].iter().sum();
        let most_owned = buckets.iter().map(|bucket| bucket.owned(device, devices).len()).max().unwrap_or(0);
        let squares = gpu.tensor("norm partials", flat::blocks(config), 1, Elem::F32)?;
        let losses: Vec<Tensor> = nodes.iter().map(|_| gpu.tensor("loss", 1, 1, Elem::F32)).collect::<Result<_>>()?;
        // of this device there is no copy
        let received: Vec<Option<Tensor>> = (0..nodes.len())
            .map(|node| {
                let is_own = (first_own..first_own + held[device]).contains(&node);
                (!is_own).then(|| gpu.tensor(RECEIVED, 1, most_owned, Elem::F32)).transpose()
            })
            .collect::<Result<_>>()?;
        let additions = ranks::additions(&nodes, options.ranks, first_own);
        let mut gradients = Vec::new();
        let mut weights = Vec::new();
        let mut runs = Vec::new();
        for bucket in &buckets {
            let group = &groups[bucket.group];
            let owned = |device: usize| bucket.owned(device, devices);
            let own_sums = &model.sums[..held[device]];
            let sums =
                |of: usize| own_sums.iter().map(|sum| sum.grads.flat(group, owned(of))).collect::<Result<Vec<_>>>();
            let length = owned(device).len();
            // a sum of the tree over the owned elements: of this device, or received
            let sum = |node: usize| match &received[node] {
                Some(slot) => Ok(slot.flat(0..length)),
                None => model.sums[node - first_own].grads.flat(group, owned(device)),
            };
            let others = |of: usize| if of == device { Ok(Vec::new()) } else { sums(of) };
            let first = |of: usize| held[..of].iter().sum::<usize>();
            let coming = |of: usize| match of {
                of if of == device => Ok(Vec::new()),
                of => (first(of)..first(of) + held[of]).map(sum).collect::<Result<Vec<_>>>(),
            };
            let route = Route::new(devices, others, coming)?;
            let mut pass = Pass::new(gpu);
            pass.at(place::UPDATE);
            for &[to, from] in additions.iter().filter(|_| length > 0) {
                tree::add(&mut pass, tree::Add { left: &sum(to)?, right: &sum(from)? })?;
            }
            gradients.push((route, pass.finish()));
            let of = |of: usize| model.params.flat(group, owned(of));
            // all others get the same bytes
            let leaving = |to: usize| Ok(if to == 0 { vec![of(device)?] } else { Vec::new() });
            let coming = |from: usize| Ok(if from == device { Vec::new() } else { vec![of(from)?] });
            let mut route = Route::new(devices, leaving, coming)?;
            let whole = 0..Route::bytes(&route.out) as usize;
            route.to = vec![whole; devices];
            weights.push(route);
            if length > 0 {
                runs.push(Run { weight: of(device)?, gradient: sum(first_own)?, decays: group.decays });
            }
        }
        let rule = UpdateRule::owned(gpu, &runs.iter().map(|run| run.weight.len()).collect::<Vec<_>>())?;
        let mut norm = Pass::new(gpu);
        norm.at(place::UPDATE);
        for bucket in &buckets {
            let (owned, blocks) = (bucket.owned(device, devices), bucket.owned_blocks(device, devices));
            if !owned.is_empty() {
                let [first, end] = [blocks.start, blocks.end].map(|block| bucket.first_block + block);
                let grads = model.grads().flat(&groups[bucket.group], owned)?;
                gradnorm::blocks(&mut norm, &grads, &squares.slice(0..end), first)?;
            }
        }
        let mut end = Pass::new(gpu);
        end.at(place::UPDATE);
        for [to, from] in ranks::additions(&nodes, options.ranks, 0) {
            tree::add(&mut end, tree::Add { left: &losses[to], right: &losses[from] })?;
        }
        stepcontrol::decide(&mut end, &model.control, &squares, &losses[0])?;
        rule.record_runs(&mut end, &runs, &model.control)?;
        let mut copies = Pass::new(gpu);
        copies.at(place::UPDATE);
        model.params.refresh(&mut copies)?;
        let hash = gpu.tensor("weights' hash", 2, 1, Elem::U32)?;
        let mut hashed = Pass::new(gpu);
        hashed.clear(&hash);
        let mut first = 0_u32;
        for bucket in &buckets {
            let values = &model.params.flat(&groups[bucket.group], bucket.elements.clone())?;
            hash::forward(&mut hashed, hash::Forward { values, first, sums: &hash })?;
            first = first.wrapping_add(bucket.elements.len() as u32);
        }
        let plan = Plan {
            hash: hashed.finish(),
            gradients,
            weights,
            norm: norm.finish(),
            end: end.finish(),
            copies: copies.finish(),
        };
        let routes = || plan.gradients.iter().map(|(route, _)| route).chain(&plan.weights);
        let most = |of: fn(&Route) -> u64| routes().map(of).max().unwrap_or(0);
        let own_losses: Vec<Tensor> = model.sums[..held[device]].iter().map(|sum| sum.loss.clone()).collect();
        let words = squares.bytes() + 4 * nodes.len() as u64;
        Ok(Self {
            out: Departures::new(gpu, OUT, most(|route| Route::bytes(&route.out)))?,
            into: Arrivals::new(gpu, IN, most(|route| Route::bytes(&route.into)))?,
            words_out: Departures::new(gpu, OUT, words)?,
            words_in: Arrivals::new(gpu, IN, words)?,
            link,
            plan,
            buckets,
            groups,
            config: options.config,
            device,
            devices,
            held,
            rule,
            squares,
            own_losses,
            losses,
            hash,
        })
    }

    /// The exchange with the other devices.
    pub fn link(&mut self) -> Result<&mut (dyn Collective + 'static)> {
        present(&mut self.link)
    }

    /// The same for questions that wait for nobody.
    pub fn peek(&self) -> Option<&(dyn Collective + 'static)> {
        self.link.as_deref()
    }

    /// Ends a step: brings the sums of gradients to their owners, decides, updates, and brings the weights to all.
    pub fn finish(&mut self, gpu: &Gpu, reports: &mut ReadRing, timed: Option<Timed<'_>>) -> Result<()> {
        gpu.span("exchange gradients", || self.gradients(gpu))?;
        self.decide(gpu)?;
        gpu.span("exchange weights", || self.weights(gpu, reports, timed))
    }

    /// Compares the weights of all devices by a hash of 64 bits, and their step control, before the end of step `step`.
    ///
    /// # Errors
    /// [`Error::Disagree`] naming the devices that are not like most.
    pub fn compare(&mut self, gpu: &Gpu, control: &StepControl, step: usize) -> Result<()> {
        self.plan.hash.run(gpu)?;
        let own = [gpu.read(&self.hash)?, gpu.read(&control.state)?].concat();
        let all = present(&mut self.link)?.share(&own)?;
        let count = |words: &Vec<u8>| all.iter().filter(|other| *other == words).count();
        let most = all.iter().map(count).max().unwrap_or(0);
        if most == all.len() {
            return Ok(());
        }
        let describe = |(device, words): (usize, &Vec<u8>)| {
            let word = |at: usize| u32::from_le_bytes(words[at..at + 4].try_into().unwrap_or_default());
            format!("device {device} {:08x}{:08x}", word(4), word(0))
        };
        let hashes: Vec<String> = all.iter().enumerate().map(describe).collect();
        let other = |(device, words): (usize, &Vec<u8>)| (count(words) < most).then(|| device.to_string());
        let others: Vec<String> = all.iter().enumerate().filter_map(other).collect();
        // with as many of either kind nobody knows who is wrong
        let who = if others.is_empty() { "some devices".to_owned() } else { format!("device {}", others.join(", ")) };
        let what = format!("{who} had other weights or another step control than the others in step {step}");
        let fault = Fault::at("weights", what).expected("the same hash on all").found(hashes.join(", "));
        let since = step.saturating_sub(COMPARED);
        Err(Error::disagree(fault.advice(format!(
            "a GPU or its memory computes wrongly: resume from a checkpoint of step {since} or before, without that device"
        ))))
    }

    fn gradients(&mut self, gpu: &Gpu) -> Result<()> {
        let routes: Vec<&Route> = self.plan.gradients.iter().map(|(route, _)| route).collect();
        let additions: Vec<&Program> = self.plan.gradients.iter().map(|(_, additions)| additions).collect();
        rounds(
            gpu,
            present(&mut self.link)?,
            &routes,
            (&mut self.out, &mut self.into),
            |into, number, arrival, tensors| into.land(gpu, arrival, tensors, Some(additions[number]), &mut [], None),
        )
    }

    /// Shares the squares of owned blocks and the losses, then lets every device decide and owners update.
    fn decide(&mut self, gpu: &Gpu) -> Result<()> {
        let Self { link, plan, words_out, words_in, .. } = self;
        let link = present(link)?;
        let own: Vec<&Tensor> = [&self.squares].into_iter().chain(&self.own_losses).collect();
        words_out.send(gpu, Some(&plan.norm), &own)?;
        let parcel = words_out.take(gpu)?;
        let own_words = parcel.as_ref().to_vec();
        words_out.give_back(parcel)?;
        let all = gpu.span("exchange the norm", || link.share(&own_words))?;
        let mut merged = own_words;
        for bucket in &self.buckets {
            for (device, words) in all.iter().enumerate() {
                let blocks = bucket.owned_blocks(device, self.devices);
                let [start, end] = [blocks.start, blocks.end].map(|block| 4 * (bucket.first_block + block));
                merged[start..end].copy_from_slice(&words[start..end]);
            }
        }
        // behind the squares the losses of all nodes
        let losses = self.squares.bytes() as usize;
        merged.truncate(losses);
        all.iter().zip(&self.held).for_each(|(words, held)| merged.extend(&words[losses..losses + 4 * held]));
        let mut arrival = words_in.open(gpu)?;
        arrival.put(0, &merged)?;
        let words: Vec<&Tensor> = [&self.squares].into_iter().chain(&self.losses).collect();
        words_in.land(gpu, arrival, &words, Some(&plan.end), &mut [], None)
    }

    fn weights(&mut self, gpu: &Gpu, reports: &mut ReadRing, mut timed: Option<Timed<'_>>) -> Result<()> {
        let Self { link, plan, out, into, .. } = self;
        let routes: Vec<&Route> = plan.weights.iter().collect();
        let last = routes.len() - 1;
        rounds(gpu, present(link)?, &routes, (out, into), |into, number, arrival, tensors| match number {
            _ if number < last => into.land(gpu, arrival, tensors, None, &mut [], None),
            _ => into.land(gpu, arrival, tensors, Some(&plan.copies), &mut [&mut *reports], timed.take()),
        })
    }

    /// The first and second moments of all parameters, on the first device; none on others.
    pub fn gather_moments(&mut self, gpu: &Gpu) -> Result<Option<[Weights; 2]>> {
        let Moments::Owned(own) = self.rule.moments() else { return Ok(None) };
        let link = present(&mut self.link)?;
        let is_first = self.device == 0;
        let mut gathered = is_first.then(|| [(); 2].map(|()| Weights::zeros(self.config)));
        for (which, tensors) in own.iter().enumerate() {
            let tensors: Vec<&Tensor> = tensors.iter().collect();
            let mut bytes = Vec::new();
            gpu.read_all(&tensors, |_, part| bytes.extend_from_slice(part))?;
            let mut all = vec![Vec::new(); self.devices];
            let mut to = vec![0..0; self.devices];
            to[0] = 0..bytes.len();
            let sent: Arc<Vec<u8>> = Arc::new(bytes);
            let shared: Shared = Arc::clone(&sent) as Shared;
            link.exchange(shared, &to, &mut |given| {
                all = given.iter().map(|bytes| bytes.to_vec()).collect();
                Ok(())
            })?;
            let Some(weights) = gathered.as_mut().map(|gathered| &mut gathered[which]) else { continue };
            all[0] = Arc::unwrap_or_clone(sent);
            for (device, bytes) in all.iter().enumerate() {
                let mut rest = &bytes[..];
                for bucket in &self.buckets {
                    let owned = bucket.owned(device, self.devices);
                    let (own, after) = rest.split_at(4 * owned.len());
                    rest = after;
                    for Piece { name, layer, elements, at } in self.groups[bucket.group].pieces(&self.config, owned) {
                        let bytes = &own[4 * at..4 * (at + elements.len())];
                        let values = &mut weights.get_mut(name, layer)[elements];
                        bytemuck::cast_slice_mut(values).copy_from_slice(bytes);
                    }
                }
            }
        }
        Ok(gathered)
    }

    /// Overwrites the owned moments.
    pub fn restore_moments(&self, gpu: &Gpu, moments: &[Weights; 2]) -> Result<()> {
        let Moments::Owned(own) = self.rule.moments() else { return Ok(()) };
        for (tensors, weights) in own.iter().zip(moments) {
            let mut tensors = tensors.iter();
            for bucket in &self.buckets {
                let owned = bucket.owned(self.device, self.devices);
                if owned.is_empty() {
                    continue;
                }
                let mut values = vec![0_f32; owned.len()];
                for Piece { name, layer, elements, at } in self.groups[bucket.group].pieces(&self.config, owned) {
                    values[at..at + elements.len()].copy_from_slice(&weights.get(name, layer)[elements]);
                }
                if let Some(tensor) = tensors.next() {
                    gpu.write(tensor, bytemuck::cast_slice(&values))?;
                }
            }
        }
        Ok(())
    }
}

fn present(link: &mut Option<Box<dyn Collective>>) -> Result<&mut (dyn Collective + 'static)> {
    let none = || Error::gpu(Fault::at("exchange", "a dry device was asked to exchange"));
    link.as_deref_mut().ok_or_else(none)
}

/// Exchanges what each route says, one after the other; `land` is given the number of a route, what came and where it goes. The
/// next route's bytes leave the device meanwhile.
fn rounds(
    gpu: &Gpu,
    link: &mut dyn Collective,
    routes: &[&Route],
    (out, into): (&mut Departures, &mut Arrivals),
    mut land: impl FnMut(&mut Arrivals, usize, Arrival, &[&Tensor]) -> Result<()>,
) -> Result<()> {
    let send = |out: &mut Departures, number: usize| match routes.get(number) {
        Some(route) => out.send(gpu, None, &route.out.iter().collect::<Vec<_>>()),
        None => Ok(()),
    };
    send(out, 0)?;
    for (number, route) in routes.iter().enumerate() {
        send(out, number + 1)?;
        let arrival = exchange(gpu, link, route, out, into)?;
        land(into, number, arrival, &route.into.iter().collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Exchanges the oldest parcel on its way; returns what came instead.
fn exchange(
    gpu: &Gpu,
    link: &mut dyn Collective,
    route: &Route,
    out: &mut Departures,
    into: &mut Arrivals,
) -> Result<Arrival> {
    let parcel: Arc<Parcel> = Arc::new(out.take(gpu)?);
    let mut arrival = into.open(gpu)?;
    // cores for each device
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = (cores / link.devices()).clamp(1, MOST_COPIERS);
    link.exchange(Arc::clone(&parcel) as Shared, &route.to, &mut |given| {
        let pieces: Vec<(usize, &[u8])> = route.from.iter().copied().zip(given.iter().copied()).collect();
        arrival.put_all(&pieces, threads)
    })?;
    if let Some(parcel) = Arc::into_inner(parcel) {
        out.give_back(parcel)?;
    }
    Ok(arrival)
}
