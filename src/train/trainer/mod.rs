//! Training steps on the GPU. A step is recorded once; after that, only uploads and read-backs are needed.

mod exchange;
mod micro_step;
mod options;
mod step;
mod validate;

use std::collections::VecDeque;

use crate::data::Batch;
use crate::error::{Error, Fault, Result};
use crate::gpu::{Command, Elem, Gpu, Lap, Pass, Program, ReadRing, Stopwatch, UploadRing};
use crate::model::{Activations, Backward, Config, Params, Weights};
use crate::ops::stepcontrol::{Report, StepControl};
use crate::ops::wire::Format;
use crate::ops::{attention, matmul};
use crate::train::collective::Collective;
use crate::train::optimizer::UpdateRule;
use crate::train::ranks::Turn;

pub use crate::train::optimizer::Optimizer;
use exchange::Exchange;
pub use exchange::MAX_COPY_THREADS;
pub use exchange::stages::{Stage, stages};
use micro_step::{MicroStep, Model};
pub use options::{Part, Sizes, TrainerOptions};

/// Maximum number of submissions in flight: the host prepares the next ones while the GPU computes.
const IN_FLIGHT: usize = 3;

/// The end of a step.
enum Finish {
    /// On a single device.
    Alone { rule: UpdateRule, program: Program },
    /// On a device that shares the step with others.
    Shared(Box<Exchange>),
}

impl Finish {
    /// Returns the program that follows the last micro-step; `None` if it depends on other devices.
    fn program(&self) -> Option<&Program> {
        match self {
            Self::Alone { program, .. } => Some(program),
            Self::Shared(_) => None,
        }
    }
}

/// A model in training: its tensors and the programs of a step.
pub struct Trainer<'g> {
    gpu: &'g Gpu,
    options: TrainerOptions,
    model: Model,
    /// One micro-step: forward and backward.
    micro: MicroStep,
    /// The device's ranks in order.
    turns: Vec<Turn>,
    /// The program after each rank's last micro-step: additions of sums, and for the last rank the end of the step.
    /// Empty for the last rank if the step ends with an exchange.
    after: Vec<Program>,
    /// The end of a step: norm, decision and update.
    finish: Finish,
    /// Forward pass and losses, for validation.
    eval: Program,
    uploads: UploadRing,
    reports: ReadRing,
    /// Timestamps of steps, if the adapter supports them.
    watch: Option<Stopwatch>,
    losses: ReadRing,
    /// Validation rows.
    rows: Batch,
    /// Reports that have arrived and were not yet returned.
    done: VecDeque<(Report, Option<Lap>)>,
}

impl<'g> Trainer<'g> {
    /// Allocates everything and records the programs. After this, a step creates nothing. On a dry device this makes
    /// the memory plan, which [`Gpu::allocated_bytes`] and [`Gpu::ledger`] return.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`] naming the tensor that does not fit; [`crate::error::Error::Gpu`] if a kernel
    /// cannot be built.
    pub fn new(gpu: &'g Gpu, options: TrainerOptions) -> Result<Self> {
        Self::linked(gpu, options, None)
    }

    /// Like [`Trainer::new`], for one of several devices, which exchange sums and weights over `link`. All devices call
    /// the same functions in the same order. Without a link, such a trainer can only be planned.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn linked(gpu: &'g Gpu, options: TrainerOptions, link: Option<Box<dyn Collective>>) -> Result<Self> {
        let (ranks, micro_steps, devices) = (options.ranks, options.sizes.accumulation, options.part.devices);
        if ranks == 0 || !micro_steps.is_multiple_of(ranks) {
            let fault = Fault::at("trainer", format!("{micro_steps} micro-steps of {ranks} ranks"));
            return Err(Error::shape(fault.expected("the same number for each rank")));
        }
        if devices == 0 || !ranks.is_multiple_of(devices) {
            let fault = Fault::at("trainer", format!("{ranks} ranks on {devices} devices"));
            return Err(Error::shape(fault.expected("the same number on each device")));
        }
        let mut pool = MicroStep::pool(gpu, &options)?;
        let model = Model::new(gpu, &options)?;
        let micro = MicroStep::record(gpu, &model, &options, &mut pool)?;
        model.start_loss_scale(gpu)?;
        let turns = options.turns();
        let last = turns.last().copied();
        let finish = if let (Some(last), true) = (last, devices > 1) {
            let last = micro.program(last.level, options.micro_steps_of_a_rank() - 1);
            Finish::Shared(Box::new(Exchange::new(gpu, &options, &model, last, link)?))
        } else {
            let rule = UpdateRule::new(gpu, options.config)?;
            let program = model.record_end(gpu, &rule, &micro.norm)?;
            Finish::Alone { rule, program }
        };
        let eval = model.record_losses(gpu, &micro.acts)?;
        let after = |turn: &Turn| match finish.program() {
            Some(end) if Some(*turn) == last => Program::join(micro.additions(turn).chain([end])),
            // the exchange makes the last rank's additions, bucket by bucket
            None if Some(*turn) == last => Program::default(),
            _ => Program::join(micro.additions(turn)),
        };
        let after = turns.iter().map(after).collect();
        let acts = &micro.acts;
        let inputs_bytes: u64 = micro.inputs().iter().map(|tensor| tensor.bytes()).sum();
        Ok(Self {
            gpu,
            options,
            uploads: UploadRing::new(gpu, IN_FLIGHT, inputs_bytes + model.control.hyper.bytes())?,
            // one more than the uploads, so that a host that is far ahead waits for an upload slot and not for a result
            reports: ReadRing::new(gpu, IN_FLIGHT + 1, &model.control.report)?,
            watch: Stopwatch::new(gpu, IN_FLIGHT + 1)?,
            losses: ReadRing::new(gpu, IN_FLIGHT, &acts.losses)?,
            rows: Batch::new(acts.rows()),
            model,
            micro,
            turns,
            after,
            finish,
            eval,
            done: VecDeque::new(),
        })
    }

    /// Returns the GPU.
    #[must_use]
    pub fn gpu(&self) -> &'g Gpu {
        self.gpu
    }

    /// Returns the model's shape.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.options.config
    }

    /// Returns the element type of matrix operands: f16 in mixed precision.
    #[must_use]
    pub fn elem(&self) -> Elem {
        self.options.elem
    }

    /// Returns the sizes of a step.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.options.sizes
    }

    /// Returns the parameters on the GPU.
    #[must_use]
    pub fn params(&self) -> &Params {
        &self.model.params
    }

    /// Returns the gradients on the GPU after the last micro-step.
    #[must_use]
    pub fn grads(&self) -> &Params {
        self.model.grads()
    }

    /// Returns AdamW's first and second moments on the GPU; `None` on a device that holds only a part of them.
    #[must_use]
    pub fn moments(&self) -> Option<&[Params; 2]> {
        match &self.finish {
            Finish::Alone { rule, .. } => rule.moments().whole(),
            Finish::Shared(_) => None,
        }
    }

    /// Reads the moments of all parameters back; `None` on all devices but the first of several.
    pub(super) fn read_moments(&mut self) -> Result<Option<[Weights; 2]>> {
        match &mut self.finish {
            Finish::Alone { rule, .. } => {
                let Some([m, v]) = rule.moments().whole() else { return Ok(None) };
                Ok(Some([m.download(self.gpu)?, v.download(self.gpu)?]))
            }
            Finish::Shared(exchange) => exchange.gather_moments(self.gpu),
        }
    }

    /// Overwrites the moments that the device holds.
    pub(super) fn write_moments(&self, moments: &[Weights; 2]) -> Result<()> {
        match &self.finish {
            Finish::Alone { rule, .. } => {
                let there = rule.moments().whole().into_iter().flatten();
                there.zip(moments).try_for_each(|(tensors, values)| tensors.upload(self.gpu, values))
            }
            Finish::Shared(exchange) => exchange.restore_moments(self.gpu, moments),
        }
    }

    /// Sends `own` to all devices and returns the bytes of each, in order, this one's included.
    ///
    /// # Errors
    /// As [`Collective::share`].
    pub fn share(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        match &mut self.finish {
            Finish::Alone { .. } => Ok(vec![own.to_vec()]),
            Finish::Shared(exchange) => exchange.link()?.share(own),
        }
    }

    /// Returns whether this or any other device gives up. All devices call this at the same point.
    ///
    /// # Errors
    /// As [`Collective::share`].
    pub fn any_gives_up(&mut self, gives_up: bool) -> Result<bool> {
        if gives_up {
            self.ask_to_stop();
        }
        let gpu = self.gpu;
        let votes = gpu.span("wait for the vote", || self.share(&[u8::from(gives_up)]))?;
        Ok(votes.iter().any(|device| device == &[1]))
    }

    /// Returns whether a device has asked all devices to stop.
    #[must_use]
    pub fn is_asked_to_stop(&self) -> bool {
        self.collective().is_some_and(Collective::is_asked_to_stop)
    }

    /// Asks all devices to stop early; they agree on it in [`Trainer::any_gives_up`].
    pub fn ask_to_stop(&self) {
        self.collective().into_iter().for_each(Collective::ask_to_stop);
    }

    fn collective(&self) -> Option<&(dyn Collective + 'static)> {
        match &self.finish {
            Finish::Alone { .. } => None,
            Finish::Shared(exchange) => exchange.collective(),
        }
    }

    /// Returns this device's position among the devices that share the run.
    #[must_use]
    pub fn part(&self) -> Part {
        self.options.part
    }

    /// Returns the 16-bit format in which devices send gradients; `None` for f32.
    #[must_use]
    pub fn wire(&self) -> Option<Format> {
        self.options.wire
    }

    /// Returns the activations on the GPU.
    #[must_use]
    pub fn activations(&self) -> &Activations {
        &self.micro.acts
    }

    /// Returns the scratch tensors of the backward pass.
    #[must_use]
    pub fn scratch(&self) -> &Backward {
        &self.micro.scratch
    }

    /// Returns Adam's counters and the skipped steps, on the GPU.
    #[must_use]
    pub fn control(&self) -> &StepControl {
        &self.model.control
    }

    /// Returns the programs of a step of one micro-step: the micro-step and the end of the step. On a device that
    /// shares the step only the micro-step, because its end is not one program.
    #[must_use]
    pub fn programs(&self) -> Vec<&Program> {
        [self.micro.program(0, 0)].into_iter().chain(self.finish.program()).collect()
    }

    /// Returns all commands of a step, its micro-steps one after the other. On a device that shares the step, bytes are
    /// exchanged between some of them.
    #[must_use]
    pub fn step_program(&self) -> Program {
        let per_rank = self.options.micro_steps_of_a_rank();
        let mut programs = Vec::new();
        for (turn, after) in self.turns.iter().zip(&self.after) {
            programs.extend((0..per_rank).map(|number| self.micro.program(turn.level, number)));
            programs.push(after);
        }
        match &self.finish {
            Finish::Alone { .. } => Program::join(programs),
            Finish::Shared(exchange) => {
                // the exchange replaces the last micro-step and the program after it
                programs.truncate(programs.len().saturating_sub(2));
                Program::join(programs.into_iter().chain([&exchange.program()]))
            }
        }
    }

    /// Returns the names of the matrix and attention kernels of a step, which determine its speed, each once.
    #[must_use]
    pub fn kernel_summary(&self) -> Vec<String> {
        let decides = |command: &&Command| {
            let products = [matmul::OPERATOR.name, attention::OPERATOR.name];
            command.operator().is_some_and(|of| products.contains(&of.operator))
        };
        let mut names: Vec<String> =
            self.micro.program(0, 0).commands.iter().filter(decides).map(|c| c.name().to_owned()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Overwrites the weights.
    ///
    /// # Errors
    /// As [`Gpu::write`].
    pub fn load(&self, weights: &Weights) -> Result<()> {
        self.model.params.upload(self.gpu, weights)?;
        let mut pass = Pass::new(self.gpu);
        self.model.params.refresh(&mut pass)?;
        pass.finish().run(self.gpu)
    }

    /// Reads the weights back, after all submitted steps.
    ///
    /// # Errors
    /// As [`Gpu::read`].
    pub fn weights(&self) -> Result<Weights> {
        self.model.params.download(self.gpu)
    }
}
