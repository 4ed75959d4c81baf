//! Options of a trainer.

use std::ops::Range;

use super::exchange::stages;
use crate::gpu::Elem;
pub use crate::model::flat::Part;
use crate::model::{Config, Recompute, flat};
use crate::ops::wire::Format;
use crate::train::optimizer::Optimizer;
use crate::train::ranks::{self, Turn};

/// The sizes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// B, sequences per micro-step.
    pub batch: usize,
    /// T, tokens per sequence.
    pub context: usize,
    /// Micro-steps per step.
    pub accumulation: usize,
}

impl Sizes {
    /// Returns the tokens per step.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.batch * self.context * self.accumulation
    }
}

/// Options of a [`super::Trainer`].
#[derive(Debug, Clone, Copy)]
pub struct TrainerOptions {
    /// The model's shape.
    pub config: Config,
    /// The sizes of a step.
    pub sizes: Sizes,
    /// Settings of the update.
    pub optimizer: Optimizer,
    /// Element type of matrix operands and stored activations; f16 means mixed precision. Sums, the residual stream,
    /// statistics, losses, gradients of parameters, master weights and moments are always f32. The loss scale starts at
    /// [`crate::ops::stepcontrol::State::FIRST_LOSS_SCALE`] and adapts to overflows.
    pub elem: Elem,
    /// Activations that the backward pass recomputes instead of storing them. All levels give the same bits.
    pub recompute: Recompute,
    /// R, the number of logical ranks. Each computes the same number of micro-steps per step. A step's gradient is the
    /// sum over the ranks, by a tree ([`crate::train::ranks`]).
    pub ranks: usize,
    /// This device's position among the devices that share the ranks. Each computes a block of the same number of
    /// ranks.
    pub part: Part,
    /// The 16-bit format in which devices send gradients. With `None` they send f32, and the bits do not depend on the
    /// number of devices.
    pub wire: Option<Format>,
    /// Whether tensors that are not needed at the same time share memory. Otherwise every tensor has its own buffer.
    /// The results are the same.
    pub shared: bool,
}

impl TrainerOptions {
    /// Returns the device's ranks in order, each with the additions after it.
    #[must_use]
    pub fn turns(&self) -> Vec<Turn> {
        ranks::turns(self.block(self.part.device), self.ranks.max(1)).0
    }

    /// Returns the ranks that a device computes.
    #[must_use]
    pub fn block(&self, device: usize) -> Range<usize> {
        let each = self.ranks.max(1) / self.part.devices;
        device * each..(device + 1) * each
    }

    /// Returns the nodes of the tree over ranks whose sums a device holds after it has computed its ranks.
    #[must_use]
    pub fn nodes(&self, device: usize) -> Vec<Range<usize>> {
        ranks::turns(self.block(device), self.ranks.max(1)).1
    }

    /// Returns the position of the device that needs the most memory. Devices differ in the sums that they hold at
    /// once, the moments that they own, and the sums that they receive for these.
    #[must_use]
    pub fn largest_part(&self) -> Part {
        let buckets = flat::buckets(&self.config);
        let all: usize = buckets.iter().map(|bucket| bucket.elements.len()).sum();
        let elements = |part: Part| {
            let options = Self { part, ..*self };
            let owned = buckets.iter().map(|bucket| bucket.owned(part).len()).sum::<usize>();
            ranks::levels(&options.turns()) * all + 2 * owned + stages::allocated_elements(&options)
        };
        let parts = (0..self.part.devices).map(|device| Part { device, ..self.part });
        // `max_by_key` returns the last of equals: with `rev` the first device
        parts.rev().max_by_key(|part| elements(*part)).unwrap_or(self.part)
    }

    /// Returns the micro-steps per step that the device computes.
    #[must_use]
    pub fn micro_steps(&self) -> usize {
        self.sizes.accumulation / self.part.devices
    }

    /// Returns the micro-steps per step of one rank.
    #[must_use]
    pub fn micro_steps_of_a_rank(&self) -> usize {
        self.sizes.accumulation / self.ranks.max(1)
    }

    /// Returns the options of a trainer with one rank, in f32, with the default optimizer, without recomputation, in
    /// shared memory.
    #[must_use]
    pub fn new(config: Config, sizes: Sizes) -> Self {
        let optimizer = Optimizer::default();
        Self {
            config,
            sizes,
            optimizer,
            elem: Elem::F32,
            recompute: Recompute::None,
            ranks: 1,
            part: Part::WHOLE,
            wire: None,
            shared: true,
        }
    }
}
