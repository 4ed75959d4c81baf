//! A prediction of what it takes devices to exchange sums of gradients and weights at the end of a step: bytes are counted, their
//! speeds are those of data sheets and of others' measurements. It exists to be proved wrong by a measurement.
//!
//! # Formula
//! A device has one queue: its copies out and in follow one another. Meanwhile the host copies, and a network carries, other
//! buckets. So a step's exchange takes
//!
//! `max(out / out_gb + in / in_gb, copied / (copiers x copy_gb), out of the machine / network_gb) + one bucket through each`
//!
//! # Left out
//! Waits of devices for each other, the vote and the norm's small exchange, the speed of the host's memory where many devices share it,
//! and what a smaller AdamW saves on each device.

use crate::model::{Config, flat};
use crate::train::TrainerOptions;
use crate::train::trainer::Part;

/// How devices reach the host's memory and each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Its name, as flags have it.
    pub name: &'static str,
    /// GB/s from a device to the host.
    pub out_gb: f64,
    /// GB/s from the host to a device.
    pub in_gb: f64,
    /// GB/s between hosts that have a device each; none if all devices are in one.
    pub network_gb: Option<f64>,
}

/// The links: PCIe 4 as measured on an A100, PCIe 5 as on an H100 (NVIDIA's nvbandwidth, issues 42 and 24), 100 Gb/s at 90 %.
pub const LINKS: [Link; 3] = [
    Link { name: "pcie4", out_gb: 25.0, in_gb: 25.0, network_gb: None },
    Link { name: "pcie5", out_gb: 52.8, in_gb: 45.0, network_gb: None },
    Link { name: "100G", out_gb: 25.0, in_gb: 25.0, network_gb: Some(11.25) },
];

/// GB/s that a core copies.
pub const COPY_GB: f64 = 10.0;

/// Bytes of a step's exchange, of the device that has most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From a device to the host.
    pub out: u64,
    /// From the host to a device, each copied once on the host before.
    pub into: u64,
    /// The largest bucket in either direction.
    pub bucket: u64,
}

impl Traffic {
    /// Counts the bytes of f32 that devices exchange for a model, as [`crate::train::Trainer`] moves them.
    #[must_use]
    pub fn of(options: &TrainerOptions) -> Self {
        let devices = options.part.devices;
        if devices == 1 {
            return Self::default();
        }
        let buckets = flat::buckets(&options.config);
        let held = |device: usize| options.nodes(device).len() as u64;
        let nodes: u64 = (0..devices).map(held).sum();
        let of_device = |device: usize| {
            let mut all = Self::default();
            for bucket in &buckets {
                let owned = 4 * bucket.owned(device, devices).len() as u64;
                let others = 4 * bucket.elements.len() as u64 - owned;
                let (gradients, weights) = ([others * held(device), owned * (nodes - held(device))], [owned, others]);
                all.out += gradients[0] + weights[0];
                all.into += gradients[1] + weights[1];
                all.bucket = gradients.into_iter().chain(weights).fold(all.bucket, u64::max);
            }
            all
        };
        (0..devices).map(of_device).max_by_key(|traffic| traffic.out + traffic.into).unwrap_or_default()
    }

    /// Predicts the milliseconds that a step's exchange takes over a link, with so many threads that copy for a device.
    #[must_use]
    pub fn ms(&self, link: &Link, copiers: usize) -> f64 {
        let ms = |bytes: u64, gb: f64| bytes as f64 / gb / 1e6;
        let copy_gb = COPY_GB * copiers as f64;
        let queue = ms(self.out, link.out_gb) + ms(self.into, link.in_gb);
        let network = |bytes: u64| link.network_gb.map_or(0.0, |gb| ms(bytes, gb));
        let longest = queue.max(ms(self.into, copy_gb)).max(network(self.into));
        let bucket = self.bucket;
        longest + ms(bucket, link.out_gb) + ms(bucket, copy_gb) + network(bucket) + ms(bucket, link.in_gb)
    }
}

/// Returns what [`Traffic::of`] takes for a model on devices that have a rank each.
#[must_use]
pub fn options(config: Config, devices: usize) -> TrainerOptions {
    let sizes = crate::train::Sizes { batch: 1, context: 1, accumulation: devices };
    TrainerOptions { ranks: devices, part: Part { device: 0, devices }, ..TrainerOptions::new(config, sizes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_zero_1() {
        let config = Config::from_descriptor("d12").unwrap();
        let padded = 4 * flat::groups(&config).iter().map(|group| group.len as u64).sum::<u64>();
        assert_eq!(Traffic::of(&options(config, 1)), Traffic::default());
        for devices in [2, 4, 8] {
            let traffic = Traffic::of(&options(config, devices));
            // all leave once and come (N-1)/N twice, but for the blocks that do not divide
            let come = 2 * padded * (devices as u64 - 1) / devices as u64;
            assert!(traffic.out.abs_diff(padded) * 100 < padded, "{devices}: {traffic:?}");
            assert!(traffic.into.abs_diff(come) * 50 < come, "{devices}: {traffic:?}");
            assert!(traffic.bucket <= 4 * 256 * flat::BLOCK as u64);
        }
    }

    #[test]
    fn the_slowest_of_queue_host_and_network_counts() {
        let traffic = Traffic { out: 500_000_000, into: 900_000_000, bucket: 0 };
        let [pcie4, pcie5, network] = LINKS;
        assert!((traffic.ms(&pcie4, 4) - 56.0).abs() < 1e-9);
        assert!((traffic.ms(&pcie5, 1) - 90.0).abs() < 1e-9);
        assert!((traffic.ms(&pcie5, 4) - (500.0 / 52.8 + 900.0 / 45.0)).abs() < 1e-9);
        assert!((traffic.ms(&network, 4) - 80.0).abs() < 1e-9);
        let bucket = Traffic { bucket: 30_000_000, ..traffic };
        assert!((bucket.ms(&pcie4, 4) - traffic.ms(&pcie4, 4) - 1.2 - 0.75 - 1.2).abs() < 1e-9);
    }
}
