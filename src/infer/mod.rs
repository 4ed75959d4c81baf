//! Text generation, and evaluation of trained models.

pub mod evaluate;
pub mod generator;
pub mod sampler;

pub use evaluate::Evaluator;
pub use generator::Generator;
pub use sampler::Sampling;
