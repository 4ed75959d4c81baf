//! The parts of the model and of a step to which commands belong, as profiles and traces list them.

use crate::gpu::Place;

/// The sums of token and position embeddings, and their gradients.
pub const EMBEDDING: Place = Place::new("embedding");
/// The last layernorm.
pub const FINAL: Place = Place::new("final");
/// The logits and losses.
pub const HEAD: Place = Place::new("head");
/// The end of a step: the gradients' norm and the update.
pub const UPDATE: Place = Place::new("step");

/// Returns the place of block `l`.
#[must_use]
pub const fn block(l: usize) -> Place {
    Place::layer("h", l)
}
