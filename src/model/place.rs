//! The parts of the model and of a step to which commands belong, as profiles and traces list them.

use crate::gpu::Section;

/// The sums of token and position embeddings, and their gradients.
pub const EMBEDDING: Section = Section::new("embedding");
/// The last layernorm.
pub const FINAL: Section = Section::new("final");
/// The logits and losses.
pub const HEAD: Section = Section::new("head");
/// The end of a step: the gradients' norm and the update.
pub const UPDATE: Section = Section::new("step");

/// Returns the place of block `l`.
#[must_use]
pub const fn block(l: usize) -> Section {
    Section::layer("h", l)
}
