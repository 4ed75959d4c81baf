//! One table of cases per operator: tensors with their roles, inputs of a fixed seed, the output values that the f64
//! reference computes with a budget for each, and the minimum of bytes and operations. Tests, coverage, shape checks,
//! benches, races, tuning and counts read it.
//!
//! Each pass has a constructor (`layernorm::backward`). Tests use it to compare every element with the reference,
//! benches to compare a [`Sample`] at GPT-2's sizes. Inputs and wanted values are computed on demand, so a case that is
//! only recorded costs nothing.

mod case;
mod judge;
mod sample;
mod values;

pub mod adamw;
pub mod attention;
pub mod bias;
pub mod cast;
pub mod compare;
pub mod crossentropy;
pub mod embedding;
pub mod gelu;
pub mod gradnorm;
pub mod hash;
pub mod layernorm;
pub mod matmul;
pub mod residual;
pub mod roof;
pub mod stepcontrol;
pub mod sums;
pub mod tree;
pub mod wire;

use crate::gpu::{Caps, Elem, OpPass};
use crate::model::Config;
use crate::model::activations::logits_rows;
use crate::ops::Operator;

pub use case::{Case, Contents, FOLD, Role, Slot, each};
pub use judge::{float, from_bytes, to_bytes, unwritten};
pub use sample::{Sample, all, gather, gather_columns, gather_rows, positions};
pub use values::{EPS, Inputs, STORED_F16, STORED_F32, Stored, Want, Word, absolute, bits, rounding, wide, words};

/// The selection of an operator's cases that run on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breadth {
    /// One case per family of kernels, for software adapters that differ only in their lanes.
    Family,
    /// One shape per kernel, for another dialect or mode.
    Narrow,
    /// The fewest shapes that cover the branches of each kernel.
    Full,
    /// Also kernels that CPU drivers take minutes to compile.
    All,
}

impl Breadth {
    /// Returns the shapes to run of a list that begins with `family` shapes for [`Breadth::Family`] and `narrow` for
    /// [`Breadth::Narrow`].
    pub fn of<T: Copy>(self, [family, narrow]: [usize; 2], shapes: &[T]) -> Vec<T> {
        let count = match self {
            Self::Family => family,
            Self::Narrow => narrow,
            Self::Full | Self::All => shapes.len(),
        };
        shapes[..count].to_vec()
    }
}

/// The sizes at which benches measure operators.
#[derive(Debug, Clone, Copy)]
pub struct BenchShape {
    /// The model.
    pub config: Config,
    /// B.
    pub batch: usize,
    /// T.
    pub context: usize,
    /// Elements for AdamW and the gradient norm.
    pub flat: usize,
}

impl BenchShape {
    /// Returns N = B T.
    pub fn rows(&self) -> usize {
        self.batch * self.context
    }

    /// Returns the rows of a chunk of logits, as the model cuts them.
    pub fn chunk(&self, caps: &Caps, elem: Elem) -> usize {
        logits_rows(caps, self.rows(), self.config.padded_vocab(), elem)
    }
}

/// A training step, for [`minimum_cost`].
#[derive(Debug, Clone, Copy)]
pub struct StepShape {
    /// The model.
    pub config: Config,
    /// B.
    pub batch: usize,
    /// T.
    pub context: usize,
    /// Number of micro-steps.
    pub accumulation: usize,
    /// Element type of activations.
    pub elem: Elem,
}

impl StepShape {
    /// Returns micro-steps, N = B T, T, L, C, V, and the bytes of an f32 and of an activation.
    fn counts(&self) -> [u64; 8] {
        let Config { layers, channels, vocab, .. } = self.config;
        let rows = self.batch * self.context;
        let [micro, n, t, l, c, v] = [self.accumulation, rows, self.context, layers, channels, vocab].map(|x| x as u64);
        [micro, n, t, l, c, v, Elem::F32.bytes(), self.elem.bytes()]
    }
}

/// A pass with the minimum of bytes and operations that it needs in a step.
pub type MinimumCost = (OpPass, u64, u64);

/// An operator's cases.
#[derive(Debug)]
pub struct Cases {
    /// The operator.
    pub operator: &'static Operator,
    /// Returns the cases that tests run on a device of these capabilities.
    pub tests: fn(&Caps, Breadth) -> Vec<Case>,
    /// Returns the cases that benches measure on such an adapter.
    pub benches: fn(&BenchShape, &Caps) -> Vec<Case>,
    /// Returns the minimum that its passes need in a step.
    pub minimum_cost: fn(&StepShape) -> Vec<MinimumCost>,
}

macro_rules! list {
    ($($name:ident)*) => {
        /// The cases of every operator, in the order of [`crate::ops::OPERATORS`].
        pub static ALL: &[&Cases] = &[$(&$name::CASES),*];
    };
}
crate::for_each_operator!(list);

/// Returns the minimum of bytes and operations that the passes need in one step. Every tensor is moved once per
/// micro-step, and operations are those of the formula. Work that a better program could avoid, for example clearing,
/// is not counted.
pub fn minimum_cost(shape: &StepShape) -> Vec<MinimumCost> {
    ALL.iter().flat_map(|cases| (cases.minimum_cost)(shape)).collect()
}

/// Returns no benches, for operators that benches do not measure.
fn no_benches(_shape: &BenchShape, _caps: &Caps) -> Vec<Case> {
    Vec::new()
}

/// Returns no minimum, for operators that a step does not need or that [`minimum_cost`] does not list.
fn nothing_needed(_shape: &StepShape) -> Vec<MinimumCost> {
    Vec::new()
}

/// Returns the element types that activations can have on an adapter.
fn storage_types(caps: &Caps) -> Vec<Stored> {
    crate::ops::storage_types(caps).into_iter().map(Stored).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::OPERATORS;

    #[test]
    fn every_operator_has_its_table_in_order() {
        for (operator, cases) in OPERATORS.iter().zip(ALL) {
            assert_eq!(operator.name, cases.operator.name, "the tables of wgpt::cases::ALL are not those of OPERATORS");
        }
    }

    #[test]
    fn the_least_of_a_step_counts_each_pass_once() {
        let config = Config::from_descriptor("d12").expect("a model");
        for elem in [Elem::F32, Elem::F16] {
            let list = minimum_cost(&StepShape { config, batch: 2, context: 1024, accumulation: 3, elem });
            for (i, (pass, bytes, flops)) in list.iter().enumerate() {
                assert!(*bytes > 0 && *flops > 0, "{pass}");
                assert!(list[..i].iter().all(|(other, ..)| other != pass), "{pass} is counted twice");
                assert!(OPERATORS.iter().any(|operator| operator.passes.contains(pass)), "{pass} is no pass");
            }
            assert!(!list.is_empty());
        }
    }

    /// The wanted values and tolerances of a sample equal those of the whole result at the same positions.
    #[test]
    fn a_sample_wants_what_all_want() {
        let [all, some] = [Sample::All, Sample::Subset].map(sampled_cases);
        for (all, some) in all.iter().zip(&some) {
            let mut samples = 0;
            for (all_of, some_of) in all.contents().into_iter().zip(some.contents()) {
                let (Some(Want::Near { want, tolerance }), Some(Want::At(at, inner))) = (all_of.want, some_of.want)
                else {
                    continue;
                };
                let Want::Near { want: sampled, tolerance: allowed } = *inner else { panic!("{some}") };
                for (i, at) in at.into_iter().enumerate() {
                    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs();
                    assert!(near(want[at], sampled[i]) && near(tolerance[at], allowed[i]), "{some}: element {at}");
                    samples += 1;
                }
            }
            assert!(samples > 0, "{some} samples nothing");
        }
    }

    fn sampled_cases(sample: Sample) -> Vec<Case> {
        let rows = layernorm::Rows { sample, ..layernorm::Rows::new(STORED_F16, [100, 300]) };
        let layer = matmul::Layer { sample, ..matmul::Layer::new(STORED_F32, [100, 110, 60]) };
        let heads = attention::Heads { sample, ..attention::Heads::new(STORED_F32, [3, 5, 3, 8]) };
        let batch = embedding::Batch { sample, ..embedding::Batch::new([30, 50, 2, 90]) };
        let chunk = crossentropy::Chunk { sample, ..crossentropy::Chunk::new(STORED_F32, [100, 70, 72]) };
        let update = adamw::Update { sample, ..adamw::Update::third(10_000) };
        let mut cases = vec![residual::forward([100, 100], sample), bias::backward(STORED_F32, [50, 200], sample)];
        cases.extend([adamw::forward(update), embedding::forward(batch.clone()), embedding::backward(batch)]);
        cases.extend([crossentropy::forward(chunk.clone()), crossentropy::forward_backward(chunk)]);
        cases.extend(attention::passes(&heads));
        cases.extend(gelu::passes(STORED_F32, [100, 100], None, sample));
        cases.extend(layernorm::passes(&rows));
        cases.extend(matmul::products(layer, &Caps::webgpu_defaults(), true));
        cases
    }
}
