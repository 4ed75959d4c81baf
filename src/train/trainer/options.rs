//! Everything that a trainer is made from.

use crate::gpu::Elem;
use crate::model::{Config, Recompute};
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
    /// Lets tensors that are not needed at the same time use the same memory. Without it every tensor has a buffer of
    /// its own: results must not differ.
    pub shared: bool,
}

impl TrainerOptions {
    /// The ranks in their order, each with what follows it.
    #[must_use]
    pub fn turns(&self) -> Vec<Turn> {
        ranks::turns(0..self.ranks.max(1), self.ranks.max(1)).0
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
        Self { config, sizes, optimizer, elem: Elem::F32, recompute: Recompute::None, ranks: 1, shared: true }
    }
}
