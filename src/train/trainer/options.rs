//! Everything that a trainer is made from.

use std::ops::Range;

use super::exchange::stages;
use crate::gpu::Elem;
pub use crate::model::flat::DeviceSlot;
use crate::model::{Config, Recompute, flat};
use crate::ops::wire::Format;
use crate::train::optimizer::Optimizer;
use crate::train::ranks::{self, Turn};

/// The sizes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// B, sequences of a micro-step.
    pub batch: usize,
    /// T, tokens of a sequence.
    pub context: usize,
    /// Micro-steps of a step.
    pub accumulation: usize,
}

impl Sizes {
    /// Tokens of a step.
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
    /// Type of matrix operands and stored activations: with f16, mixed precision. Sums, the residual stream, statistics,
    /// losses, gradients of parameters, master weights and moments are f32 in either; the loss scale starts at
    /// [`crate::ops::stepcontrol::State::FIRST_LOSS_SCALE`] and follows overflows.
    pub elem: Elem,
    /// Activations that the backward pass computes again instead of keeping them. Every level has the same bits.
    pub recompute: Recompute,
    /// R, logical ranks, of which each computes as many micro-steps of a step, in order: a step's gradient is the sum of theirs
    /// by a tree ([`crate::train::ranks`]).
    pub ranks: usize,
    /// The device among those that share the ranks: each computes a block of them, as many as every other.
    pub part: DeviceSlot,
    /// The 16-bit format in which devices send gradients. With `None` they send f32, and any number of devices computes the same bits.
    pub wire: Option<Format>,
    /// Lets tensors that are not needed at the same time use the same memory. Without it every tensor has a buffer of
    /// its own: results must not differ.
    pub shared: bool,
}

impl TrainerOptions {
    /// The device's ranks in their order, each with what follows it.
    #[must_use]
    pub fn turns(&self) -> Vec<Turn> {
        ranks::turns(self.block(self.part.device), self.ranks.max(1)).0
    }

    /// The ranks that a device computes.
    #[must_use]
    pub fn block(&self, device: usize) -> Range<usize> {
        let each = self.ranks.max(1) / self.part.devices;
        device * each..(device + 1) * each
    }

    /// The nodes of the tree over ranks whose sums a device holds when it has computed its ranks.
    #[must_use]
    pub fn nodes(&self, device: usize) -> Vec<Range<usize>> {
        ranks::turns(self.block(device), self.ranks.max(1)).1
    }

    /// Returns the part of the device, among all of them, that needs the most memory: the sums that it holds at once, the moments
    /// that it owns and the sums that it gets of others for these differ.
    #[must_use]
    pub fn largest_part(&self) -> DeviceSlot {
        let buckets = flat::buckets(&self.config);
        let all: usize = buckets.iter().map(|bucket| bucket.elements.len()).sum();
        let elements = |part: DeviceSlot| {
            let options = Self { part, ..*self };
            let owned = buckets.iter().map(|bucket| bucket.owned(part).len()).sum::<usize>();
            ranks::levels(&options.turns()) * all + 2 * owned + stages::elements(&options)
        };
        let parts = (0..self.part.devices).map(|device| DeviceSlot { device, ..self.part });
        // the first of several
        parts.rev().max_by_key(|part| elements(*part)).unwrap_or(self.part)
    }

    /// Micro-steps of a step that the device computes.
    #[must_use]
    pub fn micro_steps(&self) -> usize {
        self.sizes.accumulation / self.part.devices
    }

    /// Micro-steps of a step that one rank computes.
    #[must_use]
    pub fn micro_steps_of_a_rank(&self) -> usize {
        self.sizes.accumulation / self.ranks.max(1)
    }

    /// Returns options for a trainer in f32 with the default optimizer, which keeps all activations, in shared memory, of one
    /// rank.
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
            part: DeviceSlot::WHOLE,
            wire: None,
            shared: true,
        }
    }
}
