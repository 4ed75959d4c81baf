//! Predicts the time in which devices exchange sums of gradients and weights at the end of a step. The bytes are
//! counted; the speeds come from data sheets and published measurements. The prediction is meant to be refuted by a
//! measurement.
//!
//! # Formula
//! A device has one queue, in which kernels, copies out and copies in run one after the other. At the same time the
//! host copies other buckets and a network carries them. The gradients of a layer are sent while the backward pass
//! computes the layers before it. These are the early bytes. The gradients that are finished last, and the weights, are
//! the late bytes, which cannot be hidden. The exchange makes a step longer by
//!
//! `max(queue(early), host(early) - backward pass) + max(queue(late), host(late)) + one bucket through each`
//!
//! where `queue` is `out / out_gb + in / in_gb`, and `host` is `max(copied / (copiers x copy_gb), network)`. The
//! devices of a machine share its network: `network` is `devices per machine x bytes from other machines / network_gb +
//! messages x latency`.
//!
//! # Left out
//! Waits of devices for each other, the vote and the small exchange of the norm, the speed of the host's memory when
//! many devices share it, and the time that the smaller AdamW update saves on each device.

use serde::Serialize;

use super::plan::{Subject, mib};
use super::steps::Steps;
use super::table::number;
use crate::error::{Error, Fault, Result};
use crate::model::flat::{self, Part};
use crate::train::TrainerOptions;
use crate::train::collective::Scope;
use crate::train::trainer::{MAX_COPY_THREADS, stages};

/// The connections of devices to the host's memory and to other machines.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkSpeed {
    /// The bus of a device.
    pub bus: Bus,
    /// The network of a machine.
    pub network: Network,
}

/// The connection of a device to the host's memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bus {
    /// Its name in flags.
    pub name: &'static str,
    /// GB/s from a device to the host.
    pub out_gb: f64,
    /// GB/s from the host to a device.
    pub in_gb: f64,
}

/// The connection of a machine to other machines.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Network {
    /// Its name in flags.
    pub name: &'static str,
    /// GB/s in each direction.
    pub gb: f64,
}

/// PCIe 4 as measured on an A100, and PCIe 5 as measured on an H100 (NVIDIA's nvbandwidth, issues 42 and 24).
pub const BUSES: [Bus; 2] =
    [Bus { name: "pcie4", out_gb: 25.0, in_gb: 25.0 }, Bus { name: "pcie5", out_gb: 52.8, in_gb: 45.0 }];

/// Networks by their Gb/s, of which 90 % are assumed to be reached.
pub const NETWORKS: [Network; 5] = [
    Network { name: "10G", gb: 1.125 },
    Network { name: "25G", gb: 2.8125 },
    Network { name: "100G", gb: 11.25 },
    Network { name: "200G", gb: 22.5 },
    Network { name: "400G", gb: 45.0 },
];

/// Milliseconds of latency per bucket from one machine to another: assumed, mostly sleep between two polls.
pub const LATENCY_MS: f64 = 0.1;

/// GB/s that one core copies.
pub const COPY_GB: f64 = 10.0;

/// Share of the backward pass in a micro-step, which has two of three products.
const BACKWARD: f64 = 2.0 / 3.0;

/// Bytes that a device sends and receives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExchangeBytes {
    /// Bytes from the device to the host.
    pub out: u64,
    /// Bytes from the host to the device; the host copies each of them once before.
    pub into: u64,
    /// The part of `into` that comes from other machines.
    pub far: u64,
    /// Number of buckets that come from other machines.
    pub messages: u64,
}

impl std::ops::AddAssign for ExchangeBytes {
    fn add_assign(&mut self, other: Self) {
        self.out += other.out;
        self.into += other.into;
        self.far += other.far;
        self.messages += other.messages;
    }
}

/// Bytes of a step's exchange, for the device with the most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Gradients that are sent before the backward pass ends.
    pub early: ExchangeBytes,
    /// All other gradients, and all weights.
    pub late: ExchangeBytes,
    /// Bytes of the largest bucket in either direction.
    pub bucket: u64,
    /// Bytes of the largest bucket from other machines.
    pub far_bucket: u64,
    /// Devices per machine.
    pub each: u64,
    /// The weights among the late bytes.
    pub weights: ExchangeBytes,
}

impl Traffic {
    /// Counts the bytes that [`crate::train::Trainer`] exchanges per step, for the device with the most.
    #[must_use]
    pub fn of(options: &TrainerOptions) -> Self {
        // all machines exchange the same bytes
        let all = (0..options.part.each()).map(|device| Self::of_device(options, device));
        all.max_by_key(|traffic| traffic.all().out + traffic.all().into).unwrap_or_default()
    }

    /// Counts the bytes of one device.
    #[must_use]
    pub fn of_device(options: &TrainerOptions, device: usize) -> Self {
        let part = Part { device, ..options.part };
        let mut all = Self { each: part.each() as u64, ..Self::default() };
        let order = flat::by_completion(&options.config);
        // the backward pass computes the first layer last; all other layers are sent before
        let early = &order[..options.config.layers.saturating_sub(1)];
        let element = options.wire.map_or(4, |_| 2);
        let stages = stages(&TrainerOptions { part, ..*options });
        for bucket in flat::buckets(&options.config) {
            for stage in &stages {
                let (held, summed) = (stage.held(&bucket).len() as u64, stage.summed(&bucket, part).len() as u64);
                let (own, nodes) = (stage.own.len() as u64, stage.nodes.len() as u64);
                let gradients = ExchangeBytes {
                    out: element * (held - summed) * own,
                    into: element * summed * (nodes - own),
                    ..ExchangeBytes::default()
                };
                let weights = ExchangeBytes { out: 4 * summed, into: 4 * (held - summed), ..ExchangeBytes::default() };
                all.weights += weights;
                for (bytes, is_early) in [(gradients, early.contains(&bucket.group)), (weights, false)] {
                    all.add(bytes, stage.scope, is_early);
                }
            }
        }
        all
    }

    fn add(&mut self, mut bytes: ExchangeBytes, scope: Scope, is_early: bool) {
        if scope == Scope::Machines {
            (bytes.far, bytes.messages) = (bytes.into, 1);
            self.far_bucket = self.far_bucket.max(bytes.into);
        }
        *(if is_early { &mut self.early } else { &mut self.late }) += bytes;
        self.bucket = self.bucket.max(bytes.out).max(bytes.into);
    }

    /// Returns the sum of early and late bytes.
    #[must_use]
    pub fn all(&self) -> ExchangeBytes {
        let mut all = self.early;
        all += self.late;
        all
    }

    /// Predicts the milliseconds by which the exchange over a link makes a step longer, with `copiers` copying threads
    /// per device and a backward pass of `backward_ms`.
    #[must_use]
    pub fn ms(&self, link: &LinkSpeed, copiers: usize, backward_ms: f64) -> f64 {
        if self.all() == ExchangeBytes::default() {
            return 0.0;
        }
        let LinkSpeed { bus, network } = link;
        let ms = |bytes: u64, gb: f64| bytes as f64 / gb / 1e6;
        let copy_gb = COPY_GB * copiers as f64;
        let carried = |bytes: u64| ms(bytes * self.each, network.gb);
        let queue = |bytes: ExchangeBytes| ms(bytes.out, bus.out_gb) + ms(bytes.into, bus.in_gb);
        let far = |bytes: ExchangeBytes| carried(bytes.far) + bytes.messages as f64 * LATENCY_MS;
        let host = |bytes: ExchangeBytes| ms(bytes.into, copy_gb).max(far(bytes));
        let early = queue(self.early).max(host(self.early) - backward_ms);
        let late = queue(self.late).max(host(self.late));
        let bucket = self.bucket;
        early + late + ms(bucket, bus.out_gb) + ms(bucket, copy_gb) + carried(self.far_bucket) + ms(bucket, bus.in_gb)
    }
}

/// The prediction of a step that several devices share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SharedStep {
    /// Tokens per step.
    pub tokens: f64,
    /// Milliseconds of each device's micro-steps.
    pub kernels_ms: f64,
    /// Milliseconds by which the exchange makes the step longer.
    pub exchange_ms: f64,
}

impl SharedStep {
    /// Predicts a step of `tokens` tokens, or of one micro-step per rank without them, from the milliseconds of a
    /// micro-step.
    ///
    /// # Errors
    /// [`Error::Usage`] if the tokens cannot be divided into the same number of micro-steps for each rank.
    pub fn predict(
        subject: &Subject,
        link: &LinkSpeed,
        batch: usize,
        micro_ms: f64,
        tokens: Option<f64>,
    ) -> Result<Self> {
        let tokens = tokens.unwrap_or((batch * subject.context * subject.ranks) as f64);
        let micro_steps = micro_steps(subject, batch, tokens)?;
        let exchange_ms = Traffic::of(&subject.options(batch)).ms(link, MAX_COPY_THREADS, BACKWARD * micro_ms);
        Ok(Self { tokens, kernels_ms: micro_steps * micro_ms, exchange_ms })
    }

    /// Returns the milliseconds of the step.
    #[must_use]
    pub fn ms(&self) -> f64 {
        self.kernels_ms + self.exchange_ms
    }

    /// Returns the tokens per second of all devices together.
    #[must_use]
    pub fn tokens_per_s(&self) -> f64 {
        self.tokens / self.ms() * 1e3
    }

    /// Returns the fewest tokens per step, a multiple of those of a micro-step, with which devices compute this share
    /// of the time.
    #[must_use]
    pub fn tokens_for(&self, efficiency: f64, tokens_of_a_micro_step: f64, micro_ms: f64) -> f64 {
        let micro_steps = (efficiency / (1.0 - efficiency) * self.exchange_ms / micro_ms).ceil().max(1.0);
        micro_steps * tokens_of_a_micro_step
    }

    /// Returns the share of the time in which devices compute.
    #[must_use]
    pub fn efficiency(&self) -> f64 {
        self.kernels_ms / self.ms()
    }
}

/// Returns the micro-steps of one device in a step of `tokens` tokens.
///
/// # Errors
/// [`Error::Usage`] if the tokens cannot be divided into the same number of micro-steps for each rank.
pub fn micro_steps(subject: &Subject, batch: usize, tokens: f64) -> Result<f64> {
    let each_of = |batch: usize| (batch * subject.context * subject.ranks) as f64;
    let divides = |batch: usize| tokens >= each_of(batch) && (tokens / each_of(batch)).fract() == 0.0;
    let each = each_of(batch);
    let most = (1_u64 << 50) as f64;
    if tokens > most {
        return Err(Error::usage(
            Fault::at("--tokens-per-step", format!("{tokens:e} tokens")).expected("at most 2^50"),
        ));
    }
    if divides(batch) {
        return Ok(tokens / each * (subject.ranks / subject.devices) as f64);
    }
    let ranks = if subject.ranks > 1 { format!(" times {} ranks", subject.ranks) } else { String::new() };
    let fault = Fault::at("--tokens-per-step", format!("{tokens} tokens"));
    let fault = fault.expected(format!("a multiple of {each}: batch {batch} times context {}{ranks}", subject.context));
    let smaller = (1..batch).rev().find(|batch| divides(*batch)).map(|batch| format!("--batch {batch} or "));
    let next = ((tokens / each).ceil().max(1.0)) * each;
    Err(Error::usage(fault.advice(format!("try {}--tokens-per-step {next}", smaller.unwrap_or_default()))))
}

/// The measured exchange of a step on the first device.
#[derive(Debug, Clone, Serialize)]
pub struct MeasuredExchange {
    /// Bytes per step from the device to the host.
    pub out_bytes: u64,
    /// Bytes per step from the host to the device.
    pub into_bytes: u64,
    /// Milliseconds per step from the last micro-step's first bucket to the last sum, including the rest of the
    /// micro-step.
    pub gradients_ms: f64,
    /// Milliseconds per step in which the host copied gradients and weights from other devices.
    pub copies_ms: f64,
    /// Milliseconds per step in which the host waited for other devices.
    pub others_ms: f64,
    /// Milliseconds per step in which the host waited for bytes of its own device, and so for kernels too.
    pub own_ms: f64,
    /// Milliseconds per step of the norm's small exchange.
    pub norm_ms: f64,
    /// Milliseconds per step of the exchange of weights.
    pub weights_ms: f64,
    /// Bytes of weights that the device receives per step.
    pub weights_bytes: u64,
}

impl MeasuredExchange {
    /// Computes the times from the spans of steps.
    #[must_use]
    pub fn new(traffic: &Traffic, steps: &Steps) -> Self {
        let ExchangeBytes { out, into, .. } = traffic.all();
        let copies_ms = steps.whole_ms("copy from other devices");
        Self {
            out_bytes: out,
            into_bytes: into,
            gradients_ms: steps.whole_ms("exchange gradients"),
            copies_ms,
            others_ms: steps.whole_ms("wait for other devices") - copies_ms,
            own_ms: steps.whole_ms("wait for a departure"),
            norm_ms: steps.whole_ms("wait for the norm"),
            weights_ms: steps.whole_ms("exchange weights"),
            weights_bytes: traffic.weights.into,
        }
    }

    /// Returns the bytes of weights per second from one device to another, over both buses, the host and the network.
    #[must_use]
    pub fn weights_rate(&self) -> f64 {
        self.weights_bytes as f64 / self.weights_ms * 1e3
    }

    /// Returns a report of three lines.
    #[must_use]
    pub fn report(&self, wire: &str) -> String {
        format!(
            "exchange gradients {} ms with the end of the backward pass, norm {} ms, weights {} ms per step\n         {} MiB out and {} MiB in, \
             gradients in {wire}; of that {} ms of copies on the host, {} ms of waiting for other devices, {} ms for \
             this one\n         {} MiB of weights come at {} GB/s, from other devices to this one",
            number(self.gradients_ms),
            number(self.norm_ms),
            number(self.weights_ms),
            mib(self.out_bytes),
            mib(self.into_bytes),
            number(self.copies_ms),
            number(self.others_ms),
            number(self.own_ms),
            mib(self.weights_bytes),
            number(self.weights_rate() / 1e9)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Elem;
    use crate::model::{Config, Recompute};
    use crate::ops::wire::Format;

    fn subject(ranks: usize, devices: usize, wire: Option<Format>) -> Subject {
        let config = Config::from_descriptor("d12").unwrap();
        Subject {
            config,
            context: 1024,
            elem: Elem::F16,
            recompute: Recompute::None,
            ranks,
            devices,
            machines: 1,
            wire,
        }
    }

    fn traffic(ranks: usize, devices: usize, wire: Option<Format>) -> Traffic {
        Traffic::of(&subject(ranks, devices, wire).options(1))
    }

    #[test]
    fn bytes_are_those_of_zero_1() {
        let groups = flat::groups(&subject(1, 1, None).config);
        let padded = groups.iter().map(|group| group.len as u64).sum::<u64>();
        assert_eq!(traffic(1, 1, None).all(), ExchangeBytes::default());
        for devices in [2, 4, 8] {
            for (wire, element) in [(None, 4), (Some(Format::Bf16), 2), (Some(Format::F16), 2)] {
                let Traffic { early, late, bucket, .. } = traffic(devices, devices, wire);
                let others = padded * (devices as u64 - 1) / devices as u64;
                // gradients of other owners leave and those of owned blocks come; weights go the other way
                let (out, into) = (element * others + 4 * (padded - others), (element + 4) * others);
                let all = ExchangeBytes {
                    out: early.out + late.out,
                    into: early.into + late.into,
                    ..ExchangeBytes::default()
                };
                // up to blocks that do not divide evenly
                assert!(all.out.abs_diff(out) * 50 < out, "{devices}: {all:?}, {out} out");
                assert!(all.into.abs_diff(into) * 50 < into, "{devices}: {all:?}, {into} in");
                // eleven of twelve layers hide behind another
                let layers = element * others * 11 * 7_077_888 / padded;
                assert!(early.into.abs_diff(layers) * 10 < layers, "{early:?}, {layers}");
                assert!(bucket <= 4 * 256 * flat::BLOCK as u64);
            }
        }
        // two ranks per device are added before they leave; three do not make one node
        assert_eq!(traffic(8, 4, None), traffic(4, 4, None));
        assert!(traffic(6, 2, None).all().out > traffic(2, 2, None).all().out * 14 / 10);
    }

    /// On two machines of four devices, three quarters of the gradients are sent within a machine and half of a shard
    /// between machines.
    #[test]
    fn a_machine_exchanges_its_sum_once_with_others() {
        let on = |machines: usize, each: usize| {
            let devices = machines * each;
            Traffic::of(&Subject { machines, ..subject(devices, devices, None) }.options(1))
        };
        let padded: u64 = flat::groups(&subject(1, 1, None).config).iter().map(|group| group.len as u64).sum();
        let near = |found: u64, want: u64| assert!(found.abs_diff(want) * 30 < want, "{found}, expected {want}");
        assert_eq!(on(1, 8).all().far, 0);
        for (machines, each) in [(2_u64, 4_u64), (4, 2), (8, 1)] {
            let all = on(machines as usize, each as usize).all();
            // gradients and weights, from each other machine
            near(all.far, 8 * padded / each * (machines - 1) / machines);
            near(all.into, all.far + 8 * padded * (each - 1) / each);
        }
        // the same number of devices on separate machines sends more
        assert!(on(8, 1).all().far > 4 * on(2, 4).all().far);
    }

    #[test]
    fn the_slowest_of_queue_host_and_network_counts() {
        let bytes = |far: u64| ExchangeBytes { out: 500_000_000, into: 900_000_000, far, messages: 0 };
        let traffic = |far: u64| Traffic { late: bytes(far), each: 1, ..Traffic::default() };
        let [pcie4, pcie5] = BUSES.map(|bus| LinkSpeed { bus, network: NETWORKS[2] });
        let is = |found: f64, want: f64| assert!((found - want).abs() < 1e-9, "{found}, expected {want}");
        is(traffic(0).ms(&pcie4, 4, 0.0), 56.0);
        is(traffic(0).ms(&pcie5, 1, 0.0), 90.0);
        is(traffic(0).ms(&pcie5, 4, 0.0), 500.0 / 52.8 + 900.0 / 45.0);
        is(traffic(900_000_000).ms(&pcie4, 4, 0.0), 80.0);
        // two devices share the machine's network
        is(Traffic { each: 2, ..traffic(900_000_000) }.ms(&pcie4, 4, 0.0), 160.0);
        let slow = Traffic { late: ExchangeBytes { messages: 100, ..bytes(900_000_000) }, ..traffic(0) };
        is(slow.ms(&pcie4, 4, 0.0), 80.0 + 100.0 * LATENCY_MS);
        let bucket = Traffic { bucket: 30_000_000, ..traffic(0) };
        is(bucket.ms(&pcie4, 4, 0.0), traffic(0).ms(&pcie4, 4, 0.0) + 1.2 + 0.75 + 1.2);
        // the backward pass hides the host's work on early buckets, but not the queue's
        let early = Traffic { early: bytes(900_000_000), each: 1, ..Traffic::default() };
        is(early.ms(&pcie4, 4, 0.0), 80.0);
        is(early.ms(&pcie4, 4, 20.0), 60.0);
        is(early.ms(&pcie4, 4, 70.0), 56.0);
    }

    #[test]
    fn a_step_is_divided_into_as_many_micro_steps_of_each_rank() {
        let eight = subject(8, 4, None);
        assert_eq!(micro_steps(&eight, 64, 524_288.0).unwrap(), 2.0);
        assert_eq!(micro_steps(&eight, 16, 524_288.0).unwrap(), 8.0);
        let error = |subject: &Subject, batch, tokens| micro_steps(subject, batch, tokens).unwrap_err().to_string();
        let text = error(&eight, 48, 524_288.0);
        assert!(
            text.contains("multiple of 393216") && text.ends_with("try --batch 32 or --tokens-per-step 786432"),
            "{text}"
        );
        // three do not divide it by any batch
        let text = error(&subject(3, 3, None), 64, 524_288.0);
        assert!(text.ends_with("try --tokens-per-step 589824"), "{text}");
        let step =
            SharedStep::predict(&eight, &LinkSpeed { bus: BUSES[1], network: NETWORKS[2] }, 64, 100.0, None).unwrap();
        assert_eq!((step.tokens, step.kernels_ms), (524_288.0, 200.0));
        assert!((step.efficiency() - 200.0 / step.ms()).abs() < 1e-12);
    }
}
