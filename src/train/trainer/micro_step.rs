//! A model in training, and its recorded micro-step.

use super::TrainerOptions;
use crate::error::Result;
use crate::gpu::{Elem, Gpu, Pass, Pool, Program, Tensor};
use crate::model::{Activations, Backward, Config, Params, backward, flat, forward, place};
use crate::ops::stepcontrol::{self, StepControl};
use crate::ops::sums::{self, Squared};
use crate::ops::{embedding, gradnorm, tree};
use crate::train::optimizer::{Parameter, UpdateRule};
use crate::train::ranks::{self, Turn};

/// Gradients and losses of one rank, or their sums over several ranks.
pub(super) struct Sum {
    pub grads: Params,
    /// (1, 1).
    pub loss: Tensor,
}

impl Sum {
    fn new(gpu: &Gpu, config: Config) -> Result<Self> {
        Ok(Self { grads: Params::new(gpu, "gradients", config)?, loss: gpu.tensor("loss", 1, 1, Elem::F32)? })
    }

    /// Records the addition of `later`, a sum over later ranks, to this sum.
    fn record_addition(&self, gpu: &Gpu, later: &Self) -> Result<Program> {
        let mut pass = Pass::new(gpu);
        pass.at(place::UPDATE);
        for ((left, _), (right, _)) in self.grads.windows(gpu).iter().zip(&later.grads.windows(gpu)) {
            tree::add(&mut pass, tree::Add { left, right })?;
        }
        tree::add(&mut pass, tree::Add { left: &self.loss, right: &later.loss })?;
        Ok(pass.finish())
    }
}

/// A model in training: weights, sums and step control.
pub(super) struct Model {
    pub config: Config,
    pub elem: Elem,
    pub params: Params,
    /// The sums that are held at once, at least one. After the last rank, the first one is the sum over all ranks.
    pub sums: Vec<Sum>,
    pub control: StepControl,
}

impl Model {
    pub fn new(gpu: &Gpu, options: &TrainerOptions) -> Result<Self> {
        let TrainerOptions { config, elem, .. } = *options;
        let params = match elem {
            Elem::F16 => Params::with_copy(gpu, "weights", config)?,
            _ => Params::new(gpu, "weights", config)?,
        };
        let levels = ranks::levels(&options.turns());
        let sums = (0..levels).map(|_| Sum::new(gpu, config)).collect::<Result<_>>()?;
        Ok(Self { config, elem, params, sums, control: StepControl::new(gpu)? })
    }

    /// Returns the gradients of a whole step.
    pub fn grads(&self) -> &Params {
        &self.sums[0].grads
    }

    /// Writes the initial loss scale of mixed precision.
    pub fn start_loss_scale(&self, gpu: &Gpu) -> Result<()> {
        if self.elem != Elem::F16 {
            return Ok(());
        }
        let state = stepcontrol::State { loss_scale: stepcontrol::State::FIRST_LOSS_SCALE, ..Default::default() };
        gpu.write(&self.control.state, bytemuck::bytes_of(&state))
    }

    /// Records the end of a step: the remaining squares of the norm, the decision and the update.
    pub fn record_end(&self, gpu: &Gpu, rule: &UpdateRule, norm: &Norm) -> Result<Program> {
        let control = &self.control;
        let mut pass = Pass::new(gpu);
        pass.at(place::UPDATE);
        let partials = match norm {
            Norm::Kernels { squares, squared } => {
                let grads = &self.grads().windows_without(gpu, &squared.of);
                let partials = squares.slice(0..squared.count + gradnorm::partials(grads));
                gradnorm::forward(&mut pass, gradnorm::Forward { grads, partials: &partials, first: squared.count })?;
                partials
            }
            Norm::Blocks(squares) => {
                let groups = flat::groups(&self.config);
                for bucket in flat::buckets(&self.config) {
                    let grads = self.grads().flat(&groups[bucket.group], bucket.elements.clone())?;
                    let partials = squares.slice(0..bucket.first_block + bucket.blocks());
                    gradnorm::blocks(&mut pass, &grads, &partials, bucket.first_block)?;
                }
                squares.clone()
            }
            Norm::InExchange => return Ok(Program::default()),
        };
        stepcontrol::decide(&mut pass, control, &partials, &self.sums[0].loss)?;
        rule.record(&mut pass, &Parameter::all(&self.params, self.grads()), control)?;
        Ok(pass.finish())
    }

    /// Records the forward pass and the losses, without a backward pass.
    pub fn record_losses(&self, gpu: &Gpu, acts: &Activations) -> Result<Program> {
        let mut pass = Pass::new(gpu);
        forward::body(&mut pass, &self.config, &self.params, acts)?;
        forward::losses(&mut pass, &self.config, &self.params, acts)?;
        Ok(pass.finish())
    }
}

/// The sums of squares that make up a step's gradient norm.
pub(super) enum Norm {
    /// With one rank: kernels of the micro-step compute some of the sums, and the norm reads the other gradients.
    Kernels {
        /// Sums from the micro-step's kernels, followed by space for those of all other gradients.
        squares: Tensor,
        /// The gradients whose squares the micro-step sums.
        squared: Squared,
    },
    /// With several ranks: a sum for each fixed block of the flat order, so that the bits do not depend on the number
    /// of devices.
    Blocks(Tensor),
    /// With several devices: the exchange holds them.
    InExchange,
}

impl Norm {
    /// Allocates memory for the sums of squares of a model's gradients. Also returns how many of the sums matrix
    /// products may write; 0 unless `in_parts`. The memory fits into one binding; if it would not, fewer products write
    /// theirs.
    fn allocate(gpu: &Gpu, config: &Config, grads: &Params, in_parts: bool) -> Result<(Tensor, usize)> {
        let matrices = grads.in_memory_order().filter(|(param, _)| in_parts && param.per_layer && param.decays);
        let squares = |elements| sums::squares(&gpu.caps, elements, config.channels);
        let left: usize = matrices.map(|(param, layer)| squares(grads.get(param.name, layer).len())).sum();
        // the other gradients form runs of parameters, cut into windows: these have at most as many sums as all single
        // parameters and all windows together
        let windows: Vec<Tensor> = grads.windows(gpu).into_iter().map(|(window, _)| window).collect();
        let each = grads.in_memory_order().map(|(param, layer)| grads.get(param.name, layer).clone());
        let rest = gradnorm::partials(&each.collect::<Vec<_>>()) + gradnorm::partials(&windows);
        let left = left.min(((gpu.caps.window_bytes() / Elem::F32.bytes()) as usize).saturating_sub(rest));
        Ok((gpu.tensor("norm partials", left + rest, 1, Elem::F32)?, left))
    }
}

/// The recorded micro-steps of a rank whose gradients go to one of the model's sums.
struct Programs {
    /// The rank's first micro-step, which overwrites the sum.
    first: Program,
    /// Its later micro-steps, which add to the sum, if a rank has several.
    others: Option<Program>,
}

/// A recorded micro-step, forward and backward, and its tensors.
pub(super) struct MicroStep {
    /// One entry per sum of the model.
    programs: Vec<Programs>,
    /// For each of the model's sums except the first, its addition to the one before.
    additions: Vec<Program>,
    pub acts: Activations,
    pub scratch: Backward,
    pub buckets: embedding::Buckets,
    pub norm: Norm,
}

impl MicroStep {
    /// Allocates the memory of a micro-step's activations and scratch.
    pub fn pool<'g>(gpu: &'g Gpu, options: &TrainerOptions) -> Result<Pool<'g>> {
        if !options.shared {
            return Ok(Pool::separate(gpu));
        }
        // recorded once without a device, to find out which tensors may share memory
        let dry = gpu.dry_copy();
        let mut apart = Pool::separate(&dry);
        let planned = Self::record(&dry, &Model::new(&dry, options)?, options, &mut apart)?;
        apart.share(planned.program(0, 0), gpu)
    }

    /// Returns the tensors that a [`crate::data::Batch`] fills, in the order of its bytes.
    pub fn inputs(&self) -> [&Tensor; 4] {
        [&self.acts.tokens, &self.acts.targets, &self.buckets.table, &self.buckets.order]
    }

    /// Returns micro-step `number` of a rank, from 0, whose gradients go to the model's sum at `level`.
    pub fn program(&self, level: usize, number: usize) -> &Program {
        let Programs { first, others } = &self.programs[level];
        others.as_ref().filter(|_| number > 0).unwrap_or(first)
    }

    /// Returns the additions after the last micro-step of a rank.
    pub fn additions(&self, turn: &Turn) -> impl Iterator<Item = &Program> {
        (0..turn.additions).map(|done| &self.additions[turn.level - done - 1])
    }

    /// Records a micro-step in the memory of `pool`.
    pub fn record(gpu: &Gpu, model: &Model, options: &TrainerOptions, pool: &mut Pool) -> Result<Self> {
        let Model { config, elem, .. } = model;
        let shape = [options.sizes.batch, options.sizes.context];
        let acts = Activations::new(pool, config, shape, *elem, options.recompute)?;
        // with several ranks, the squares of one rank's gradients are not needed
        let (squares, left) = match (options.ranks, options.part.devices) {
            (1, _) => {
                let in_parts = Backward::partials(&gpu.caps, config, &acts) > 0;
                Norm::allocate(gpu, config, model.grads(), in_parts)?
            }
            (_, 1) => (gpu.tensor("norm partials", flat::blocks(config), 1, Elem::F32)?, 0),
            _ => (gpu.tensor("norm partials", 1, 1, Elem::F32)?, 0),
        };
        let scratch = Backward::new(pool, config, &acts, squares.slice(0..left))?;
        let buckets = embedding::Buckets::new(gpu, acts.rows())?;
        let mut squared = Squared::default();
        let mut record = |sum, begins| -> Result<Program> {
            let tensors = (&acts, &scratch, &buckets);
            let (program, left) = Self::record_program(gpu, model, options, tensors, sum, begins)?;
            // each micro-step overwrites the squares; those of the last one count
            squared = left;
            Ok(program)
        };
        let mut programs = Vec::new();
        for sum in &model.sums {
            let others = (options.micro_steps_of_a_rank() > 1).then(|| record(sum, false)).transpose()?;
            programs.push(Programs { first: record(sum, true)?, others });
        }
        let additions =
            model.sums.windows(2).map(|pair| pair[0].record_addition(gpu, &pair[1])).collect::<Result<_>>()?;
        let norm = match (options.ranks, options.part.devices) {
            (1, _) => Norm::Kernels { squares, squared },
            (_, 1) => Norm::Blocks(squares),
            _ => Norm::InExchange,
        };
        Ok(Self { programs, additions, acts, scratch, buckets, norm })
    }

    /// Records a micro-step that overwrites the sum if `begins`, and adds to it otherwise.
    fn record_program(
        gpu: &Gpu,
        model: &Model,
        options: &TrainerOptions,
        (acts, scratch, buckets): (&Activations, &Backward, &embedding::Buckets),
        Sum { grads, loss }: &Sum,
        begins: bool,
    ) -> Result<(Program, Squared)> {
        let Model { config, elem, params, control, .. } = model;
        let mut pass = Pass::new(gpu);
        if begins {
            grads.in_memory_order().for_each(|(param, layer)| pass.zero(grads.get(param.name, layer)));
            pass.zero(loss);
        }
        // f32 takes the gradient of the mean loss; f16 that of the sum, so that the loss scale does not depend on the
        // batch
        let scale = if *elem == Elem::F16 { 1.0 } else { 1.0 / options.sizes.tokens() as f32 };
        forward::body(&mut pass, config, params, acts)?;
        backward::head(&mut pass, config, params, grads, acts, scratch, (control, scale))?;
        let squared = backward::body(&mut pass, config, params, grads, acts, scratch, buckets)?;
        pass.at(place::UPDATE);
        stepcontrol::accumulate(&mut pass, loss, &acts.losses)?;
        Ok((pass.finish(), squared))
    }
}
