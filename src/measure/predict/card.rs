//! GPUs and their data sheets, from `cards.toml`.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::error::{Error, Fault, Result};
use crate::gpu::{Caps, Elem, Vendor};
use crate::measure::plan::{LARGEST_BINDING, assumed};
use crate::units;

/// Constants that are the same for all cards; see `cards.toml`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constants {
    /// Share of the data sheet's memory bandwidth that long streams reach.
    pub memory_share: f64,
    /// Latency in cycles of a load from a buffer.
    pub load_cycles: f64,
    /// Share of a workgroup's shorter phases that its own subgroups do not hide behind the longest one.
    pub exposed: f64,
    /// Cycles that a workgroup spends at a barrier.
    pub barrier_cycles: f64,
    /// Cycles from the end of a workgroup to the start of the next in its place.
    pub start_cycles: f64,
    /// Microseconds between two dispatches.
    pub dispatch_us: f64,
}

/// A GPU. A unit is an SM (NVIDIA), a CU (AMD) or a core (Apple).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Name on the command line: `rtx-4090`.
    pub key: String,
    /// Name for people.
    pub name: String,
    /// Adapter names that drivers report for it.
    pub adapters: Vec<String>,
    /// The GPU of `tools/isa` that provides registers and machine code.
    pub code: String,
    /// The GPU of `tools/isa` that provides instruction counts, if the driver of `code` shows none.
    #[serde(default)]
    pub counts_of: Option<String>,
    /// Number of units.
    pub units: f64,
    /// Clock of the units in GHz.
    pub clock_ghz: f64,
    /// Subgroup instructions that a unit issues per cycle.
    pub issue: f64,
    /// FLOP per cycle and unit of multiply-adds in f32.
    pub fma_flops: f64,
    /// FLOP per cycle and unit of cooperative matrices of f16 with f32 sums, if it has them.
    #[serde(default)]
    pub matrix_flops: Option<f64>,
    /// FLOP of one matrix instruction.
    #[serde(default)]
    pub matrix_instruction_flops: f64,
    /// Bytes of workgroup memory that a unit moves per cycle.
    pub workgroup_bytes: f64,
    /// GB/s of the last-level cache that all units share.
    pub l2_gb: f64,
    /// GB/s of the memory, by the data sheet.
    pub memory_gb: f64,
    /// Registers of a unit, in the size that `tools/isa` counts for `code`.
    pub registers: f64,
    /// KiB of workgroup memory of a unit.
    pub workgroup_kib: f64,
    /// KiB of workgroup memory that one workgroup may have.
    pub group_kib: u32,
    /// Largest number of resident subgroups per unit.
    pub subgroups: f64,
    /// Largest number of resident workgroups per unit.
    pub workgroups: f64,
    /// MiB of memory that the driver reports in total.
    pub memory_mib: u64,
    /// Invocations of a subgroup.
    #[serde(default = "thirty_two")]
    pub subgroup_size: u32,
    /// Published tokens per second of compiled PyTorch in bf16 on a model of the size of GPT-2 124M, if there are any.
    #[serde(default)]
    pub pytorch_tokens_per_s: Option<f64>,
    /// Batch of the reference step for comparing cards.
    #[serde(default = "sixty_four")]
    pub batch: usize,
}

fn thirty_two() -> u32 {
    32
}

fn sixty_four() -> usize {
    64
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: Constants,
    card: Vec<Card>,
}

/// MiB of a card's memory that plans leave to others: to the driver itself, to the context of the program with its
/// queues and compiled kernels, and to the allocator, which pads buffers. Assumed, not measured.
pub const RESERVED_MIB: u64 = 1024;

/// The file, which is compiled in. A test parses it.
static FILE: LazyLock<File> =
    LazyLock::new(|| toml::from_str(include_str!("cards.toml")).unwrap_or_else(|e| panic!("cards.toml: {e}")));

/// Returns the constants of the formula.
#[must_use]
pub fn constants() -> &'static Constants {
    &FILE.model
}

/// Returns all cards, in the order of the file.
#[must_use]
pub fn cards() -> &'static [Card] {
    &FILE.card
}

fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

impl Card {
    /// Finds a card by its key, its name, an adapter name or its model number. Case, spaces and punctuation are
    /// ignored: `RTX 4090`, `4090`, `NVIDIA GeForce RTX 4090`.
    ///
    /// # Errors
    /// [`Error::Usage`] with the known keys.
    pub fn find(name: &str) -> Result<&'static Self> {
        let wanted = plain(name);
        let is = |card: &&Card| {
            let short = card.name.split(" (").next().unwrap_or("");
            let model = short.split_once(' ').map_or("", |(_vendor, model)| model);
            let number = model.split(' ').filter(|word| word.len() > 2 && word.contains(|c: char| c.is_ascii_digit()));
            let names = [card.key.as_str(), &card.name, short, model];
            names.into_iter().chain(card.adapters.iter().map(String::as_str)).chain(number).any(|n| plain(n) == wanted)
        };
        cards().iter().find(is).ok_or_else(|| {
            let keys: Vec<&str> = cards().iter().map(|card| card.key.as_str()).collect();
            let fault = Fault::from(format!("unknown GPU `{name}`")).expected(format!("one of {}", keys.join(" ")));
            Error::usage(fault.advice("others can be added to src/measure/predict/cards.toml"))
        })
    }

    /// Returns the card with this adapter name.
    #[must_use]
    pub fn of_adapter(adapter: &str) -> Option<&'static Self> {
        cards().iter().find(|card| card.adapters.iter().any(|known| known == adapter))
    }

    /// Returns the bytes of memory for a run: the card's total less [`RESERVED_MIB`].
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_mib.saturating_sub(RESERVED_MIB) << 20
    }

    /// Returns a line about the card's memory and the reserve.
    #[must_use]
    pub fn memory_summary(&self) -> String {
        let [total, reserved] = [self.memory_mib, RESERVED_MIB].map(units::count);
        format!("memory   {}: {total} MiB, of which {reserved} MiB are reserved for driver and context", self.name)
    }

    /// Returns capabilities for which the same kernels are chosen as on the card.
    #[must_use]
    pub fn caps(&self) -> Caps {
        Caps {
            vendor: Vendor::of(0, &self.name),
            name: self.name.clone(),
            max_workgroup_bytes: self.group_kib << 10,
            max_invocations: 1024,
            compute_units: Some(self.units as u32),
            subgroup_sizes: (32, self.subgroup_size),
            subgroup_control: true,
            ..assumed(self.auto(), LARGEST_BINDING)
        }
    }

    /// Returns the element type that `--precision auto` chooses on the card.
    #[must_use]
    pub fn auto(&self) -> Elem {
        if self.matrix_flops.is_some() { Elem::F16 } else { Elem::F32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_found_in_any_spelling_and_adapters_by_their_whole_name() {
        for name in ["h100", "H100 SXM", "NVIDIA H100 SXM", "h100-sxm", "NVIDIA H100 80GB HBM3"] {
            assert_eq!(Card::find(name).ok().map(|card| card.key.as_str()), Some("h100"), "{name}");
        }
        assert!(["m1", "Apple M1", "Apple M1 (8 cores)"].iter().all(|name| Card::find(name).is_ok()));
        assert!(["4090", "NVIDIA GeForce RTX 4090"].iter().all(|name| Card::find(name).is_ok()));
        assert_eq!(Card::find("RTX4090").ok().map(|card| card.key.as_str()), Some("rtx-4090"));
        for unknown in ["", "x", "h101", "090", "SXM", "80", "h100,a100"] {
            assert!(
                Card::find(unknown).is_err_and(|e| e.fault().expected.starts_with("one of h100 h200")),
                "{unknown}"
            );
        }
        assert!(Card::of_adapter("Apple M1").is_some() && Card::of_adapter("Apple M1 Max").is_none());
    }

    /// An 80 GB H100 has 81,559 MiB by its driver, and a plan must not fill them.
    #[test]
    fn plans_leave_a_reserve_of_the_memory_that_the_driver_reports() {
        let card = Card::find("h100").expect("a card");
        assert_eq!((card.memory_mib, card.memory_bytes() >> 20), (81_559, 80_535));
        assert!(card.memory_summary().ends_with("81,559 MiB, of which 1,024 MiB are reserved for driver and context"));
        assert!(cards().iter().all(|card| card.memory_bytes() > 8 << 30));
    }

    #[test]
    fn data_sheets_agree_with_the_rates_that_vendors_name() {
        // TFLOP/s: f32, and f16 with f32 sums; for Hopper 0.62 of the 989 that only wgmma reaches at 1.83 GHz
        for (key, f32, matrix) in
            [("h100", 67.0, 588.0), ("a100", 19.5, 312.0), ("rtx-4090", 82.6, 165.0), ("rtx-3090", 35.6, 71.0)]
        {
            let card = Card::find(key).expect("a card");
            let tera = |flops: f64| card.units * card.clock_ghz * flops / 1e3;
            assert!((tera(card.fma_flops) / f32 - 1.0).abs() < 0.13, "{key}: {}", tera(card.fma_flops));
            let found = tera(card.matrix_flops.expect("matrix units"));
            assert!((found / matrix - 1.0).abs() < 0.01, "{key}: {found}");
        }
    }
}
