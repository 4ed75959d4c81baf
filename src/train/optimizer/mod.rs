//! The optimizer: from a step's gradients to its weights. The gradients' norm, clipping and the decision to skip a step
//! come before it and are the same for every rule.

mod adamw;

use crate::error::Result;
use crate::gpu::{Elem, Gpu, Pass, Tensor};
use crate::model::{Config, Params};
use crate::ops::stepcontrol::{Hyper, StepControl};

pub use adamw::{AdamW, Moments};

/// Settings of AdamW and of the step control.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Optimizer {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay of the two-dimensional tensors.
    pub weight_decay: f32,
    /// Largest gradient norm; 0 switches clipping off.
    pub clip: f32,
    /// A step is skipped if the z-score of its loss among the last 128 is above this; 0 switches it off.
    pub skip_loss_z: f32,
    /// The same of its gradient norm.
    pub skip_norm_z: f32,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0, skip_loss_z: 0.0, skip_norm_z: 0.0 }
    }
}

impl Optimizer {
    /// Returns the numbers of step `step` (from 1) with `tokens` tokens, as its last micro-step uploads them.
    #[must_use]
    pub fn hyper(&self, step: usize, lr: f32, tokens: usize, elem: Elem) -> Hyper {
        let mixed = elem == Elem::F16;
        Hyper {
            lr,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: self.weight_decay,
            clip: self.clip,
            inverse_tokens: 1.0 / tokens as f32,
            step: step as u32,
            grad_unit: if mixed { tokens as f32 } else { 1.0 },
            dynamic: u32::from(mixed),
            skip_loss_z: self.skip_loss_z,
            skip_norm_z: self.skip_norm_z,
        }
    }
}

/// One parameter as an update rule sees it.
#[derive(Debug, Clone, Copy)]
pub struct Parameter<'a> {
    /// llm.c's name.
    pub name: &'static str,
    /// Its block; `None` for the embeddings and the last layernorm, which the model has once.
    pub block: Option<usize>,
    /// Rows and columns; one-dimensional parameters have one row.
    pub shape: [usize; 2],
    /// True if weight decay applies: the two-dimensional parameters.
    pub decays: bool,
    /// The f32 weight, updated.
    pub weight: &'a Tensor,
    /// Its gradient: a multiple of `grad_scale` of the step's state.
    pub gradient: &'a Tensor,
    /// Its f16 copy in mixed precision; whoever updates the weight writes it.
    pub copy: Option<&'a Tensor>,
}

impl<'a> Parameter<'a> {
    /// Returns all parameters of a model in the order of their memory, so that neighbours can be updated together.
    #[must_use]
    pub fn all(weights: &'a Params, gradients: &'a Params) -> Vec<Self> {
        let of = |(param, layer): (&'static crate::model::Param, usize)| {
            let (name, weight) = (param.name, weights.get(param.name, layer));
            Self {
                name,
                block: param.per_layer.then_some(layer),
                shape: [weight.rows(), weight.columns()],
                decays: param.decays,
                weight,
                gradient: gradients.get(name, layer),
                copy: weights.copy(name, layer),
            }
        };
        weights.in_memory_order().map(of).collect()
    }

    /// Returns this parameter's tensor in `set`, which was made for the same model.
    #[must_use]
    pub fn of<'b>(&self, set: &'b Params) -> &'b Tensor {
        set.get(self.name, self.block.unwrap_or(0))
    }
}

/// Neighbouring elements of parameters that a device owns, as rows.
#[derive(Debug, Clone)]
pub struct Run {
    /// f32, updated.
    pub weight: Tensor,
    /// Their gradients.
    pub gradient: Tensor,
    /// True if weight decay applies.
    pub decays: bool,
}

/// An update rule with its state on the GPU. A rule gets a list of parameters and treats each as it likes; it may hand
/// some of them on to another rule.
#[derive(Debug)]
pub enum UpdateRule {
    /// AdamW for every parameter.
    AdamW(AdamW),
}

impl UpdateRule {
    /// Allocates the state, with zeros.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn new(gpu: &Gpu, config: Config) -> Result<Self> {
        Ok(Self::AdamW(AdamW::new(gpu, config)?))
    }

    /// Allocates the state of runs that a device owns, with zeros. The rule must treat each element by itself.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn owned(gpu: &Gpu, lengths: &[usize]) -> Result<Self> {
        Ok(Self::AdamW(AdamW::owned(gpu, lengths)?))
    }

    /// Records the update of `parameters`. A step that `control` skips leaves weights, copies and state alone.
    ///
    /// # Errors
    /// [`crate::error::Error::Gpu`] if a kernel cannot be built.
    pub fn record(&self, pass: &mut Pass, parameters: &[Parameter], control: &StepControl) -> Result<()> {
        match self {
            Self::AdamW(adamw) => adamw.record(pass, parameters, control),
        }
    }

    /// Records the update of the runs that the state was made for.
    ///
    /// # Errors
    /// As [`AdamW::record_runs`].
    pub fn record_runs(&self, pass: &mut Pass, runs: &[Run], control: &StepControl) -> Result<()> {
        match self {
            Self::AdamW(adamw) => adamw.record_runs(pass, runs, control),
        }
    }

    /// Returns AdamW's first and second moments.
    #[must_use]
    pub fn moments(&self) -> &Moments {
        match self {
            Self::AdamW(adamw) => adamw.moments(),
        }
    }
}
