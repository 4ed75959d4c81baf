//! A prediction of what it takes devices to exchange sums of gradients and weights at the end of a step: bytes are counted, their
//! speeds are those of data sheets and of others' measurements. It exists to be proved wrong by a measurement.
//!
//! # Formula
//! A device has one queue: its kernels and its copies out and in follow one another. Meanwhile the host copies, and a network
//! carries, other buckets. The gradients of layers leave while the backward pass computes the layers before; those that are
//! done last, and the weights, have nothing to hide behind. So the exchange makes a step longer by
//!
//! `max(queue of the early, host of the early - backward pass) + max(queue of the late, host of the late) + one bucket through each`
//!
//! where `queue` is `out / out_gb + in / in_gb`, and `host` is `max(copied / (copiers x copy_gb), network)`. Devices of a machine
//! share its network: `network` is `devices of a machine x from other machines / network_gb + messages x latency`.
//!
//! # Left out
//! Waits of devices for each other, the vote and the norm's small exchange, the speed of the host's memory where many devices share it,
//! and what a smaller AdamW saves on each device.

use serde::Serialize;

use super::plan::{Subject, mib};
use super::steps::Steps;
use super::table::number;
use crate::error::{Error, Fault, Result};
use crate::model::flat::{self, DeviceSlot};
use crate::train::TrainerOptions;
use crate::train::collective::Scope;
use crate::train::trainer::{MOST_COPIERS, stages};

/// How devices reach the host's memory and other machines.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// The bus of a device.
    pub bus: Bus,
    /// The network of a machine.
    pub network: Network,
}

/// How a device reaches the host's memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bus {
    /// Its name, as flags have it.
    pub name: &'static str,
    /// GB/s from a device to the host.
    pub out_gb: f64,
    /// GB/s from the host to a device.
    pub in_gb: f64,
}

/// How a machine reaches others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Network {
    /// Its name, as flags have it.
    pub name: &'static str,
    /// GB/s in each direction.
    pub gb: f64,
}

/// PCIe 4 as measured on an A100, PCIe 5 as on an H100 (NVIDIA's nvbandwidth, issues 42 and 24).
pub const BUSES: [Bus; 2] =
    [Bus { name: "pcie4", out_gb: 25.0, in_gb: 25.0 }, Bus { name: "pcie5", out_gb: 52.8, in_gb: 45.0 }];

/// Networks by their Gb/s, of which 90 % are assumed.
pub const NETWORKS: [Network; 5] = [
    Network { name: "10G", gb: 1.125 },
    Network { name: "25G", gb: 2.8125 },
    Network { name: "100G", gb: 11.25 },
    Network { name: "200G", gb: 22.5 },
    Network { name: "400G", gb: 45.0 },
];

/// Milliseconds from one machine to another that a bucket takes beside its bytes: assumed, mostly sleep between two looks.
pub const LATENCY_MS: f64 = 0.1;

/// GB/s that a core copies.
pub const COPY_GB: f64 = 10.0;

/// The backward pass's part of a micro-step: two of three products are its.
const BACKWARD: f64 = 2.0 / 3.0;

/// Bytes that leave a device, and that come to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    /// From the device to the host.
    pub out: u64,
    /// From the host to the device, each copied once on the host before.
    pub into: u64,
    /// Those of `into` that come from other machines.
    pub far: u64,
    /// Buckets that come from other machines.
    pub messages: u64,
}

impl std::ops::AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        self.out += other.out;
        self.into += other.into;
        self.far += other.far;
        self.messages += other.messages;
    }
}

/// Bytes of a step's exchange, of the device that has most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Gradients that leave before the backward pass ends.
    pub early: Bytes,
    /// All other gradients, and all weights.
    pub late: Bytes,
    /// The largest bucket in either direction.
    pub bucket: u64,
    /// The largest that comes from other machines.
    pub far_bucket: u64,
    /// Devices of a machine.
    pub each: u64,
    /// The weights among the late.
    pub weights: Bytes,
}

impl Traffic {
    /// Counts the bytes that devices exchange for a model, as [`crate::train::Trainer`] moves them: of the device that has most.
    #[must_use]
    pub fn of(options: &TrainerOptions) -> Self {
        // machines are alike
        let all = (0..options.part.devices_per_machine()).map(|device| Self::of_device(options, device));
        all.max_by_key(|traffic| traffic.all().out + traffic.all().into).unwrap_or_default()
    }

    /// The same of one of them.
    #[must_use]
    pub fn of_device(options: &TrainerOptions, device: usize) -> Self {
        let part = DeviceSlot { device, ..options.part };
        let mut all = Self { each: part.devices_per_machine() as u64, ..Self::default() };
        let order = flat::groups_by_completion(&options.config);
        // the backward pass computes the first layer last: all other layers leave before
        let early = &order[..options.config.layers.saturating_sub(1)];
        let element = options.wire.map_or(4, |_| 2);
        let stages = stages(&TrainerOptions { part, ..*options });
        for bucket in flat::buckets(&options.config) {
            for stage in &stages {
                let (held, summed) = (stage.held(&bucket).len() as u64, stage.summed(&bucket, part).len() as u64);
                let (own, nodes) = (stage.own.len() as u64, stage.nodes.len() as u64);
                let gradients = Bytes {
                    out: element * (held - summed) * own,
                    into: element * summed * (nodes - own),
                    ..Bytes::default()
                };
                let weights = Bytes { out: 4 * summed, into: 4 * (held - summed), ..Bytes::default() };
                all.weights += weights;
                for (bytes, is_early) in [(gradients, early.contains(&bucket.group)), (weights, false)] {
                    all.add(bytes, stage.scope, is_early);
                }
            }
        }
        all
    }

    fn add(&mut self, mut bytes: Bytes, scope: Scope, is_early: bool) {
        if scope == Scope::Machines {
            (bytes.far, bytes.messages) = (bytes.into, 1);
            self.far_bucket = self.far_bucket.max(bytes.into);
        }
        *(if is_early { &mut self.early } else { &mut self.late }) += bytes;
        self.bucket = self.bucket.max(bytes.out).max(bytes.into);
    }

    /// Returns the sum of early and late bytes.
    #[must_use]
    pub fn all(&self) -> Bytes {
        let mut all = self.early;
        all += self.late;
        all
    }

    /// Predicts the milliseconds by which the exchange makes a step longer over a link, with so many threads that copy for a device,
    /// behind a backward pass of so many milliseconds.
    #[must_use]
    pub fn ms(&self, link: &Link, copiers: usize, backward_ms: f64) -> f64 {
        if self.all() == Bytes::default() {
            return 0.0;
        }
        let Link { bus, network } = link;
        let ms = |bytes: u64, gb: f64| bytes as f64 / gb / 1e6;
        let copy_gb = COPY_GB * copiers as f64;
        let carried = |bytes: u64| ms(bytes * self.each, network.gb);
        let queue = |bytes: Bytes| ms(bytes.out, bus.out_gb) + ms(bytes.into, bus.in_gb);
        let far = |bytes: Bytes| carried(bytes.far) + bytes.messages as f64 * LATENCY_MS;
        let host = |bytes: Bytes| ms(bytes.into, copy_gb).max(far(bytes));
        let early = queue(self.early).max(host(self.early) - backward_ms);
        let late = queue(self.late).max(host(self.late));
        let bucket = self.bucket;
        early + late + ms(bucket, bus.out_gb) + ms(bucket, copy_gb) + carried(self.far_bucket) + ms(bucket, bus.in_gb)
    }
}

/// A predicted step of several devices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Together {
    /// Tokens of the step.
    pub tokens: f64,
    /// Milliseconds of each device's micro-steps.
    pub kernels_ms: f64,
    /// Milliseconds by which the exchange makes it longer.
    pub exchange_ms: f64,
}

impl Together {
    /// Predicts a step of so many tokens, without them of one micro-step a rank, from the milliseconds of a micro-step.
    ///
    /// # Errors
    /// [`Error::Usage`] if the step's tokens are not as many micro-steps of each rank.
    pub fn predict(subject: &Subject, link: &Link, batch: usize, micro_ms: f64, tokens: Option<f64>) -> Result<Self> {
        let tokens = tokens.unwrap_or((batch * subject.context * subject.ranks) as f64);
        let micro_steps = micro_steps(subject, batch, tokens)?;
        let exchange_ms = Traffic::of(&subject.options(batch)).ms(link, MOST_COPIERS, BACKWARD * micro_ms);
        Ok(Self { tokens, kernels_ms: micro_steps * micro_ms, exchange_ms })
    }

    /// Milliseconds of the step.
    #[must_use]
    pub fn ms(&self) -> f64 {
        self.kernels_ms + self.exchange_ms
    }

    /// Tokens a second of all devices.
    #[must_use]
    pub fn tokens_per_s(&self) -> f64 {
        self.tokens / self.ms() * 1e3
    }

    /// Returns the fewest tokens of a step, in micro-steps of as many tokens, at which devices compute this part of the time.
    #[must_use]
    pub fn tokens_for(&self, efficiency: f64, tokens_of_a_micro_step: f64, micro_ms: f64) -> f64 {
        let micro_steps = (efficiency / (1.0 - efficiency) * self.exchange_ms / micro_ms).ceil().max(1.0);
        micro_steps * tokens_of_a_micro_step
    }

    /// The part of the time in which devices compute.
    #[must_use]
    pub fn efficiency(&self) -> f64 {
        self.kernels_ms / self.ms()
    }
}

/// Returns the micro-steps of one device in a step of so many tokens.
///
/// # Errors
/// [`Error::Usage`] if these are not as many for each rank.
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

/// A step's exchange as it was measured on the first device.
#[derive(Debug, Clone, Serialize)]
pub struct Exchanged {
    /// Bytes a step from the device to the host.
    pub out_bytes: u64,
    /// Bytes a step from the host to the device.
    pub into_bytes: u64,
    /// Milliseconds a step from the last micro-step's first bucket to the last sum, the rest of the micro-step among them.
    pub gradients_ms: f64,
    /// Milliseconds a step in which the host copied what other devices gave, gradients and weights.
    pub copies_ms: f64,
    /// Milliseconds a step in which it waited for other devices.
    pub others_ms: f64,
    /// Milliseconds a step in which it waited for bytes of its own device: for kernels, too.
    pub own_ms: f64,
    /// Milliseconds a step of the norm's small exchange.
    pub norm_ms: f64,
    /// Milliseconds a step of the weights' exchange.
    pub weights_ms: f64,
    /// Bytes of weights that come to the device.
    pub weights_bytes: u64,
}

impl Exchanged {
    /// Takes it from the spans of steps.
    #[must_use]
    pub fn new(traffic: &Traffic, steps: &Steps) -> Self {
        let Bytes { out, into, .. } = traffic.all();
        let copies_ms = steps.whole_ms("copy from other devices");
        Self {
            out_bytes: out,
            into_bytes: into,
            gradients_ms: steps.whole_ms("exchange gradients"),
            copies_ms,
            others_ms: steps.whole_ms("wait for other devices") - copies_ms,
            own_ms: steps.whole_ms("wait for a bulk read"),
            norm_ms: steps.whole_ms("wait for the norm"),
            weights_ms: steps.whole_ms("exchange weights"),
            weights_bytes: traffic.weights.into,
        }
    }

    /// Bytes a second of weights, from one device to another: over both buses, the host and the network.
    #[must_use]
    pub fn weights_rate(&self) -> f64 {
        self.weights_bytes as f64 / self.weights_ms * 1e3
    }

    /// Three lines.
    #[must_use]
    pub fn report(&self, wire: &str) -> String {
        format!(
            "exchange gradients {} ms with the end of the backward pass, norm {} ms, weights {} ms a step\n         {} MiB out and {} MiB in, \
             gradients in {wire}; of that {} ms of copies on the host, {} ms waiting for other devices, {} ms for the \
             own\n         {} MiB of weights come at {} GB/s, from other devices to this one",
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
        assert_eq!(traffic(1, 1, None).all(), Bytes::default());
        for devices in [2, 4, 8] {
            for (wire, element) in [(None, 4), (Some(Format::Bf16), 2), (Some(Format::F16), 2)] {
                let Traffic { early, late, bucket, .. } = traffic(devices, devices, wire);
                let others = padded * (devices as u64 - 1) / devices as u64;
                // of gradients what others own leaves, and what is owned comes from each; of weights the reverse
                let (out, into) = (element * others + 4 * (padded - others), (element + 4) * others);
                let all = Bytes { out: early.out + late.out, into: early.into + late.into, ..Bytes::default() };
                // but for the blocks that do not divide
                assert!(all.out.abs_diff(out) * 50 < out, "{devices}: {all:?}, {out} out");
                assert!(all.into.abs_diff(into) * 50 < into, "{devices}: {all:?}, {into} in");
                // eleven of twelve layers hide behind another
                let layers = element * others * 11 * 7_077_888 / padded;
                assert!(early.into.abs_diff(layers) * 10 < layers, "{early:?}, {layers}");
                assert!(bucket <= 4 * 256 * flat::BLOCK as u64);
            }
        }
        // two ranks a device add up before they leave; three do not make one node
        assert_eq!(traffic(8, 4, None), traffic(4, 4, None));
        assert!(traffic(6, 2, None).all().out > traffic(2, 2, None).all().out * 14 / 10);
    }

    /// Two machines of four devices: within, three quarters of all gradients leave; between, half of a shard does.
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
            // gradients and weights, each of the others' machines
            near(all.far, 8 * padded / each * (machines - 1) / machines);
            near(all.into, all.far + 8 * padded * (each - 1) / each);
        }
        // as many devices each for itself send each other more
        assert!(on(8, 1).all().far > 4 * on(2, 4).all().far);
    }

    #[test]
    fn the_slowest_of_queue_host_and_network_counts() {
        let bytes = |far: u64| Bytes { out: 500_000_000, into: 900_000_000, far, messages: 0 };
        let traffic = |far: u64| Traffic { late: bytes(far), each: 1, ..Traffic::default() };
        let [pcie4, pcie5] = BUSES.map(|bus| Link { bus, network: NETWORKS[2] });
        let is = |found: f64, want: f64| assert!((found - want).abs() < 1e-9, "{found}, expected {want}");
        is(traffic(0).ms(&pcie4, 4, 0.0), 56.0);
        is(traffic(0).ms(&pcie5, 1, 0.0), 90.0);
        is(traffic(0).ms(&pcie5, 4, 0.0), 500.0 / 52.8 + 900.0 / 45.0);
        is(traffic(900_000_000).ms(&pcie4, 4, 0.0), 80.0);
        // two devices share the machine's network
        is(Traffic { each: 2, ..traffic(900_000_000) }.ms(&pcie4, 4, 0.0), 160.0);
        let slow = Traffic { late: Bytes { messages: 100, ..bytes(900_000_000) }, ..traffic(0) };
        is(slow.ms(&pcie4, 4, 0.0), 80.0 + 100.0 * LATENCY_MS);
        let bucket = Traffic { bucket: 30_000_000, ..traffic(0) };
        is(bucket.ms(&pcie4, 4, 0.0), traffic(0).ms(&pcie4, 4, 0.0) + 1.2 + 0.75 + 1.2);
        // what the host does for early buckets hides behind the backward pass, what the queue does not
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
        let step = Together::predict(&eight, &Link { bus: BUSES[1], network: NETWORKS[2] }, 64, 100.0, None).unwrap();
        assert_eq!((step.tokens, step.kernels_ms), (524_288.0, 200.0));
        assert!((step.efficiency() - 200.0 / step.ms()).abs() < 1e-12);
    }
}
