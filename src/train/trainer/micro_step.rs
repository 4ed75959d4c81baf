//! A model in training and its recorded micro-step.

use super::TrainerOptions;
use crate::error::Result;
use crate::gpu::{Elem, Gpu, Pass, Pool, Program, Tensor};
use crate::model::{Activations, BackwardBuffers, Config, Params, backward, flat, forward, place};
use crate::ops::stepcontrol::{self, StepControl};
use crate::ops::sums::{self, SquaredGradients};
use crate::ops::{embedding, gradnorm, tree};
use crate::train::optimizer::{Parameter, UpdateRule};
use crate::train::ranks::{self, Turn};

/// A sum over ranks, or one rank's: of gradients and of losses.
pub(super) struct Sum {
    pub grads: Params,
    /// (1, 1).
    pub loss: Tensor,
}

impl Sum {
    fn new(gpu: &Gpu, config: Config) -> Result<Self> {
        Ok(Self { grads: Params::new(gpu, "gradients", config)?, loss: gpu.tensor("loss", 1, 1, Elem::F32)? })
    }

    /// Records the addition of a sum over later ranks.
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
    /// Those that are there at once, at least one: in the end the first is that over all ranks.
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

    /// The gradients of a whole step.
    pub fn grads(&self) -> &Params {
        &self.sums[0].grads
    }

    /// Writes the loss scale that mixed precision starts with.
    pub fn start_loss_scale(&self, gpu: &Gpu) -> Result<()> {
        if self.elem != Elem::F16 {
            return Ok(());
        }
        let state = stepcontrol::State { loss_scale: stepcontrol::State::FIRST_LOSS_SCALE, ..Default::default() };
        gpu.write(&self.control.state, bytemuck::bytes_of(&state))
    }

    /// Records the end of a step: what the norm still lacks, decision, update.
    pub fn record_end(&self, gpu: &Gpu, rule: &UpdateRule, norm: &Norm) -> Result<Program> {
        let control = &self.control;
        let mut pass = Pass::new(gpu);
        pass.at(place::UPDATE);
        let partials = match norm {
            Norm::Kernels { squares, squared } => {
                let grads = &self.grads().windows_without(gpu, &squared.of);
                let partials = squares.slice(0..squared.count + gradnorm::partial_count(grads));
                gradnorm::forward(&mut pass, gradnorm::Forward { grads, partials: &partials, first: squared.count })?;
                partials
            }
            Norm::Blocks(squares) => {
                let groups = flat::groups(&self.config);
                for bucket in flat::buckets(&self.config) {
                    let grads = self.grads().flat(&groups[bucket.group], bucket.elements.clone())?;
                    let partials = squares.slice(0..bucket.first_block + bucket.blocks());
                    gradnorm::forward_blocks(&mut pass, &grads, &partials, bucket.first_block)?;
                }
                squares.clone()
            }
            Norm::Elsewhere => return Ok(Program::default()),
        };
        stepcontrol::decide(&mut pass, control, &partials, &self.sums[0].loss)?;
        rule.record(&mut pass, &Parameter::all(&self.params, self.grads()), control)?;
        Ok(pass.finish())
    }

    /// Records forward and losses alone.
    pub fn record_losses(&self, gpu: &Gpu, acts: &Activations) -> Result<Program> {
        let mut pass = Pass::new(gpu);
        forward::body(&mut pass, &self.config, &self.params, acts)?;
        forward::losses(&mut pass, &self.config, &self.params, acts)?;
        Ok(pass.finish())
    }
}

/// The sums of squares from which a step's gradient norm comes.
pub(super) enum Norm {
    /// Of one rank: the micro-step's kernels leave some, the rest is read again.
    Kernels {
        /// Sums left by the micro-step's kernels, then room for those of all other gradients.
        squares: Tensor,
        /// The gradients whose squares the micro-step leaves.
        squared: SquaredGradients,
    },
    /// Of several ranks: of the fixed blocks of the flat order, so that any number of devices gets the same.
    Blocks(Tensor),
    /// Of several devices: the exchange has them.
    Elsewhere,
}

impl Norm {
    /// Returns memory for the sums of a model's gradients, and how many of them products may leave, none unless `in_parts`. It can
    /// be bound as a whole: where it could not, fewer products leave theirs.
    fn room(gpu: &Gpu, config: &Config, grads: &Params, in_parts: bool) -> Result<(Tensor, usize)> {
        let matrices = grads.in_memory_order().filter(|(param, _)| in_parts && param.per_layer && param.decays);
        let squares = |elements| sums::max_square_sums(&gpu.caps, elements, config.channels);
        let left: usize = matrices.map(|(param, layer)| squares(grads.get(param.name, layer).len())).sum();
        // gradients that are left over come in runs of parameters, cut into windows: those have no more sums than all
        // parameters apart and all windows together
        let windows: Vec<Tensor> = grads.windows(gpu).into_iter().map(|(window, _)| window).collect();
        let each = grads.in_memory_order().map(|(param, layer)| grads.get(param.name, layer).clone());
        let rest = gradnorm::partial_count(&each.collect::<Vec<_>>()) + gradnorm::partial_count(&windows);
        let left = left.min(((gpu.caps.window_bytes() / Elem::F32.bytes()) as usize).saturating_sub(rest));
        Ok((gpu.tensor("norm partials", left + rest, 1, Elem::F32)?, left))
    }
}

/// A micro-step of a rank, whose gradients go to one of the model's sums.
struct Programs {
    /// The rank's first: gradients begin.
    first: Program,
    /// Those that add to them, if a rank has several.
    others: Option<Program>,
}

/// A recorded micro-step, forward and backward, and the tensors it goes through.
pub(super) struct MicroStep {
    /// For each of the model's sums.
    programs: Vec<Programs>,
    /// For each of the model's sums but the first: adds it to the one before.
    additions: Vec<Program>,
    pub acts: Activations,
    pub scratch: BackwardBuffers,
    pub buckets: embedding::Buckets,
    pub norm: Norm,
}

impl MicroStep {
    /// Allocates the memory of a micro-step's activations and scratch, as the options want it.
    pub fn pool<'g>(gpu: &'g Gpu, options: &TrainerOptions) -> Result<Pool<'g>> {
        if !options.shared {
            return Ok(Pool::separate(gpu));
        }
        // recorded once without a device, to see which tensors may lie in the same memory
        let dry = gpu.dry_copy();
        let mut apart = Pool::separate(&dry);
        let planned = Self::record(&dry, &Model::new(&dry, options)?, options, &mut apart)?;
        apart.share(planned.program(0, 0), gpu)
    }

    /// Returns the tensors that a [`crate::data::Batch`] fills, in its order.
    pub fn inputs(&self) -> [&Tensor; 4] {
        [&self.acts.tokens, &self.acts.targets, &self.buckets.table, &self.buckets.order]
    }

    /// Returns a rank's micro-step of a number, from 0, whose gradients go to the model's sum of a level.
    pub fn program(&self, level: usize, number: usize) -> &Program {
        let Programs { first, others } = &self.programs[level];
        others.as_ref().filter(|_| number > 0).unwrap_or(first)
    }

    /// Returns what comes after the last micro-step of a rank.
    pub fn additions(&self, turn: &Turn) -> impl Iterator<Item = &Program> {
        (0..turn.additions).map(|done| &self.additions[turn.level - done - 1])
    }

    /// Records a micro-step in the memory of `pool`.
    pub fn record(gpu: &Gpu, model: &Model, options: &TrainerOptions, pool: &mut Pool) -> Result<Self> {
        let Model { config, elem, .. } = model;
        let shape = [options.sizes.batch, options.sizes.context];
        let acts = Activations::new(pool, config, shape, *elem, options.recompute)?;
        // of one rank's gradients squares are of no use where there are several
        let (squares, left) = match (options.ranks, options.part.devices) {
            (1, _) => {
                let in_parts = BackwardBuffers::partials(&gpu.caps, config, &acts) > 0;
                Norm::room(gpu, config, model.grads(), in_parts)?
            }
            (_, 1) => (gpu.tensor("norm partials", flat::blocks(config), 1, Elem::F32)?, 0),
            _ => (gpu.tensor("norm partials", 1, 1, Elem::F32)?, 0),
        };
        let scratch = BackwardBuffers::new(pool, config, &acts, squares.slice(0..left))?;
        let buckets = embedding::Buckets::new(gpu, acts.rows())?;
        let mut squared = SquaredGradients::default();
        let mut record = |sum, begins| -> Result<Program> {
            let tensors = (&acts, &scratch, &buckets);
            let (program, left) = Self::record_program(gpu, model, options, tensors, sum, begins)?;
            // each micro-step leaves squares, the last one's stay
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
            _ => Norm::Elsewhere,
        };
        Ok(Self { programs, additions, acts, scratch, buckets, norm })
    }

    /// Records one whose gradients begin, or are added to.
    fn record_program(
        gpu: &Gpu,
        model: &Model,
        options: &TrainerOptions,
        (acts, scratch, buckets): (&Activations, &BackwardBuffers, &embedding::Buckets),
        Sum { grads, loss }: &Sum,
        begins: bool,
    ) -> Result<(Program, SquaredGradients)> {
        let Model { config, elem, params, control, .. } = model;
        let mut pass = Pass::new(gpu);
        if begins {
            grads.in_memory_order().for_each(|(param, layer)| pass.declare_zero(grads.get(param.name, layer)));
            pass.declare_zero(loss);
        }
        // a mean's gradient in f32; in f16 a sum's, so that the right loss scale does not depend on the batch
        let scale = if *elem == Elem::F16 { 1.0 } else { 1.0 / options.sizes.tokens() as f32 };
        forward::body(&mut pass, config, params, acts)?;
        backward::head(&mut pass, config, params, grads, acts, scratch, (control, scale))?;
        let squared = backward::body(&mut pass, config, params, grads, acts, scratch, buckets)?;
        pass.at(place::UPDATE);
        stepcontrol::accumulate(&mut pass, loss, &acts.losses)?;
        Ok((pass.finish(), squared))
    }
}
