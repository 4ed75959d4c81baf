//! The optimizer, which updates the weights with a step's gradients. The gradients' norm, clipping and the decision to
//! skip a step come before it and are the same for every rule.

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
    /// Term added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay of the two-dimensional tensors.
    pub weight_decay: f32,
    /// Largest gradient norm; 0 disables clipping.
    pub clip: f32,
    /// Largest z-score of a step's loss among the last 128; a step above it is skipped. 0 disables this.
    pub skip_loss_z: f32,
    /// Largest z-score of a step's gradient norm; a step above it is skipped. 0 disables this.
    pub skip_norm_z: f32,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0, skip_loss_z: 0.0, skip_norm_z: 0.0 }
    }
}

impl Optimizer {
    /// Returns the numbers that the last micro-step of step `step` (from 1) with `tokens` tokens uploads.
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

/// One parameter, for an update rule.
#[derive(Debug, Clone, Copy)]
pub struct Parameter<'a> {
    /// The parameter's name in llm.c.
    pub name: &'static str,
    /// The block that contains it; `None` for the embeddings and the last layernorm, which the model has once.
    pub block: Option<usize>,
    /// Rows and columns; one-dimensional parameters have one row.
    pub shape: [usize; 2],
    /// Whether weight decay applies, as for two-dimensional parameters.
    pub decays: bool,
    /// The f32 weight, which the rule updates.
    pub weight: &'a Tensor,
    /// Its gradient, a multiple of `grad_scale` in the step's state.
    pub gradient: &'a Tensor,
    /// Its f16 copy in mixed precision, which the rule writes when it updates the weight.
    pub copy: Option<&'a Tensor>,
}

impl<'a> Parameter<'a> {
    /// Returns all parameters of a model in memory order, so that one dispatch can update adjacent ones.
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

    /// Returns this parameter's tensor in `set`, which belongs to the same model.
    #[must_use]
    pub fn of<'b>(&self, set: &'b Params) -> &'b Tensor {
        set.get(self.name, self.block.unwrap_or(0))
    }
}

/// Adjacent elements of parameters that a device owns, as rows.
#[derive(Debug, Clone)]
pub struct ParameterRun {
    /// f32 weights, which the rule updates.
    pub weight: Tensor,
    /// Their gradients.
    pub gradient: Tensor,
    /// Whether weight decay applies.
    pub decays: bool,
}

/// An update rule with its state on the GPU. A rule receives a list of parameters and chooses the treatment of each; it
/// may pass some of them to another rule.
#[derive(Debug)]
pub enum UpdateRule {
    /// AdamW for every parameter.
    AdamW(AdamW),
}

impl UpdateRule {
    /// Allocates the state and fills it with zeros.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn new(gpu: &Gpu, config: Config) -> Result<Self> {
        Ok(Self::AdamW(AdamW::new(gpu, config)?))
    }

    /// Allocates the state of [`ParameterRun`]s of these lengths and fills it with zeros. The rule must be elementwise.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn owned(gpu: &Gpu, lengths: &[usize]) -> Result<Self> {
        Ok(Self::AdamW(AdamW::owned(gpu, lengths)?))
    }

    /// Records the update of `parameters`. A step that `control` skips does not change weights, copies or state.
    ///
    /// # Errors
    /// [`crate::error::Error::Gpu`] if a kernel cannot be built.
    pub fn record(&self, pass: &mut Pass, parameters: &[Parameter], control: &StepControl) -> Result<()> {
        match self {
            Self::AdamW(adamw) => adamw.record(pass, parameters, control),
        }
    }

    /// Records the update of the [`ParameterRun`]s that the state was allocated for.
    ///
    /// # Errors
    /// [`crate::error::Error::Gpu`] if a kernel cannot be built; [`crate::error::Error::Shape`] if the state belongs to
    /// other parameters.
    pub fn record_runs(&self, pass: &mut Pass, runs: &[ParameterRun], control: &StepControl) -> Result<()> {
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
