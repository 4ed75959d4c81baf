//! One training step on the GPU: recorded once, then only uploads and read-backs.

mod validate;

use std::collections::VecDeque;

use crate::data::BatchSource;
use crate::error::Result;
use crate::gpu::{Command, Elem, Gpu, Lap, Pass, Pool, Program, ReadRing, Stopwatch, Tensor, Timed, UploadRing};
use crate::model::{Activations, Backward, Config, Params, Recompute, Weights, backward, forward, place};
use crate::ops::stepcontrol::{self, Hyper, Report, StepControl};
use crate::ops::{adamw, attention, embedding, gradnorm, matmul};

/// Submissions in flight: the host records and reads ahead while the GPU computes.
const IN_FLIGHT: usize = 3;

/// What AdamW and the step control are given.
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

/// What a micro-step needs of a model.
struct Model {
    config: Config,
    elem: Elem,
    params: Params,
    grads: Params,
    control: StepControl,
}

impl Model {
    fn new(gpu: &Gpu, config: Config, elem: Elem) -> Result<Self> {
        let params = match elem {
            Elem::F16 => Params::with_copy(gpu, "weights", config)?,
            _ => Params::new(gpu, "weights", config)?,
        };
        let (grads, control) = (Params::new(gpu, "gradients", config)?, StepControl::new(gpu)?);
        Ok(Self { config, elem, params, grads, control })
    }
}

/// A recorded micro-step, forward and backward, and the tensors it goes through.
struct Micro<'g> {
    program: Program,
    acts: Activations,
    scratch: Backward,
    buckets: embedding::Buckets,
    pool: Pool<'g>,
}

impl<'g> Micro<'g> {
    fn record(gpu: &'g Gpu, model: &Model, sizes: Sizes, recompute: Recompute, mut pool: Pool<'g>) -> Result<Self> {
        let Model { config, elem, params, grads, control } = model;
        let shape = [sizes.batch, sizes.context];
        let acts = Activations::new(&mut pool, config, shape, *elem, recompute)?;
        let scratch = Backward::new(&mut pool, config, &acts)?;
        let buckets = embedding::Buckets::new(gpu, acts.rows())?;
        let mut pass = Pass::new(gpu);
        // a mean's gradient in f32; in f16 a sum's, so that the right loss scale does not depend on the batch
        let scale = if *elem == Elem::F16 { 1.0 } else { 1.0 / sizes.tokens() as f32 };
        forward::body(&mut pass, config, params, &acts)?;
        backward::head(&mut pass, config, params, grads, &acts, &scratch, (control, scale))?;
        backward::body(&mut pass, config, params, grads, &acts, &scratch, &buckets)?;
        pass.at(place::UPDATE);
        stepcontrol::accumulate(&mut pass, control, &acts.losses)?;
        Ok(Self { program: pass.finish(), acts, scratch, buckets, pool })
    }
}

/// A model in training: its tensors and the programs of a step.
pub struct Trainer<'g> {
    gpu: &'g Gpu,
    config: Config,
    sizes: Sizes,
    optimizer: Optimizer,
    /// What matrix operands are stored as: f16 in mixed precision.
    elem: Elem,
    params: Params,
    grads: Params,
    moments: [Params; 2],
    acts: Activations,
    scratch: Backward,
    buckets: embedding::Buckets,
    control: StepControl,
    /// Clears the gradients: the first thing of a step.
    begin: Program,
    /// One micro-step: forward and backward.
    micro: Program,
    /// Norm, decision, update: the last thing of a step.
    end: Program,
    /// Forward and losses.
    eval: Program,
    uploads: UploadRing,
    reports: ReadRing,
    /// Times the steps, where the adapter can.
    watch: Option<Stopwatch>,
    losses: ReadRing,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    done: VecDeque<(Report, Option<Lap>)>,
}

impl<'g> Trainer<'g> {
    /// Allocates everything and records the programs; after this a step creates nothing. On a dry device this is the
    /// plan: [`Gpu::allocated_bytes`] and [`Gpu::ledger`] tell what it takes.
    ///
    /// # Errors
    /// [`Error::Memory`] naming the tensor that does not fit; [`Error::Gpu`] if a kernel cannot be built.
    pub fn new(gpu: &'g Gpu, config: Config, sizes: Sizes, optimizer: Optimizer) -> Result<Self> {
        Self::with_precision(gpu, config, sizes, optimizer, Elem::F32)
    }

    /// [`Trainer::new`] with matrix operands and stored activations of `elem`: with f16, mixed precision. Sums, the
    /// residual stream, statistics, losses, gradients of parameters, master weights and moments are f32 in either; the
    /// loss scale starts at [`stepcontrol::State::FIRST_LOSS_SCALE`] and follows overflows.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn with_precision(
        gpu: &'g Gpu,
        config: Config,
        sizes: Sizes,
        optimizer: Optimizer,
        elem: Elem,
    ) -> Result<Self> {
        Self::with_recompute(gpu, config, sizes, optimizer, (elem, Recompute::None))
    }

    /// [`Trainer::with_precision`], keeping less of the forward pass for the backward pass, which computes it again.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn with_recompute(
        gpu: &'g Gpu,
        config: Config,
        sizes: Sizes,
        optimizer: Optimizer,
        (elem, recompute): (Elem, Recompute),
    ) -> Result<Self> {
        // recorded once without a device, to see which tensors may lie in the same memory
        let dry = gpu.dry_copy();
        let apart = Micro::record(&dry, &Model::new(&dry, config, elem)?, sizes, recompute, Pool::separate(&dry))?;
        Self::around(gpu, config, sizes, optimizer, (elem, recompute), apart.pool.share(&apart.program, gpu)?)
    }

    /// The same with a buffer for every tensor: what sharing must not differ from.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn unshared(
        gpu: &'g Gpu,
        config: Config,
        sizes: Sizes,
        optimizer: Optimizer,
        (elem, recompute): (Elem, Recompute),
    ) -> Result<Self> {
        Self::around(gpu, config, sizes, optimizer, (elem, recompute), Pool::separate(gpu))
    }

    fn around(
        gpu: &'g Gpu,
        config: Config,
        sizes: Sizes,
        optimizer: Optimizer,
        (elem, recompute): (Elem, Recompute),
        pool: Pool<'g>,
    ) -> Result<Self> {
        let Sizes { batch, context, .. } = sizes;
        let model = Model::new(gpu, config, elem)?;
        let Micro { program: micro, acts, scratch, buckets, .. } = Micro::record(gpu, &model, sizes, recompute, pool)?;
        let Model { params, grads, control, .. } = model;
        let moments = [Params::new(gpu, "AdamW m", config)?, Params::new(gpu, "AdamW v", config)?];
        if elem == Elem::F16 {
            let state = stepcontrol::State { loss_scale: stepcontrol::State::FIRST_LOSS_SCALE, ..Default::default() };
            gpu.write(&control.state, bytemuck::bytes_of(&state))?;
        }
        let windows: Vec<Tensor> = grads.windows(gpu).into_iter().map(|(window, _)| window).collect();
        let partials = gpu.tensor("norm partials", gradnorm::partials(&windows), 1, Elem::F32)?;

        let mut pass = Pass::new(gpu);
        pass.at(place::BEGIN);
        grads.wholes().for_each(|whole| pass.clear(whole));
        let begin = pass.finish();

        let mut pass = Pass::new(gpu);
        pass.at(place::UPDATE);
        gradnorm::forward(&mut pass, gradnorm::Forward { grads: &windows, partials: &partials, control: &control })?;
        stepcontrol::decide(&mut pass, &control, &partials)?;
        let [m, v] = [moments[0].windows(gpu), moments[1].windows(gpu)];
        let copies = params.copy_windows(gpu);
        for (i, (param, decays)) in params.windows(gpu).iter().enumerate() {
            let (grad, m, v, copy) = (&windows[i], &m[i].0, &v[i].0, copies[i].as_ref());
            adamw::forward(&mut pass, adamw::Forward { param, grad, m, v, copy, control: &control, decays: *decays })?;
        }
        let end = pass.finish();

        let mut pass = Pass::new(gpu);
        forward::body(&mut pass, &config, &params, &acts)?;
        forward::losses(&mut pass, &config, &params, &acts)?;
        let eval = pass.finish();

        let rows = batch * context;
        let upload_bytes =
            2 * acts.tokens.bytes() + buckets.table.bytes() + buckets.order.bytes() + control.hyper.bytes();
        Ok(Self {
            gpu,
            config,
            sizes,
            optimizer,
            elem,
            uploads: UploadRing::new(gpu, IN_FLIGHT, upload_bytes)?,
            // one more than uploads: the host, far ahead, waits for an upload's slot and never for a result
            reports: ReadRing::new(gpu, IN_FLIGHT + 1, &control.report)?,
            watch: Stopwatch::new(gpu, IN_FLIGHT + 1)?,
            losses: ReadRing::new(gpu, IN_FLIGHT, &acts.losses)?,
            params,
            grads,
            moments,
            acts,
            scratch,
            buckets,
            control,
            begin,
            micro,
            end,
            eval,
            inputs: vec![0; rows],
            targets: vec![0; rows],
            done: VecDeque::new(),
        })
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &'g Gpu {
        self.gpu
    }

    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What matrix operands are stored as: f16 in mixed precision.
    #[must_use]
    pub fn elem(&self) -> Elem {
        self.elem
    }

    /// The sizes of a step.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The parameters on the GPU.
    #[must_use]
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The gradients on the GPU, as the last micro-step left them.
    #[must_use]
    pub fn grads(&self) -> &Params {
        &self.grads
    }

    /// AdamW's first and second moments on the GPU.
    #[must_use]
    pub fn moments(&self) -> &[Params; 2] {
        &self.moments
    }

    /// The activations on the GPU.
    #[must_use]
    pub fn activations(&self) -> &Activations {
        &self.acts
    }

    /// The scratch of the backward pass.
    #[must_use]
    pub fn scratch(&self) -> &Backward {
        &self.scratch
    }

    /// Adam's counters and the skipped steps, on the GPU.
    #[must_use]
    pub fn control(&self) -> &StepControl {
        &self.control
    }

    /// The programs of a step in order: begin once, micro for every micro-step, end once.
    #[must_use]
    pub fn programs(&self) -> [&Program; 3] {
        [&self.begin, &self.micro, &self.end]
    }

    /// Returns all commands of a step, its micro-steps one after the other.
    #[must_use]
    pub fn step_program(&self) -> Program {
        let micros = std::iter::repeat_n(&self.micro, self.sizes.accumulation);
        Program::join(std::iter::once(&self.begin).chain(micros).chain([&self.end]))
    }

    /// The matrix and attention kernels of a step, each once: what decides its speed.
    #[must_use]
    pub fn kernel_summary(&self) -> Vec<String> {
        let decides = |command: &&Command| {
            let products = [matmul::OPERATOR.name, attention::OPERATOR.name];
            command.operator().is_some_and(|of| products.contains(&of.operator))
        };
        let mut names: Vec<String> = self.micro.commands.iter().filter(decides).map(|c| c.name().to_owned()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Overwrites the weights.
    ///
    /// # Errors
    /// As [`Gpu::write`].
    pub fn load(&self, weights: &Weights) -> Result<()> {
        self.params.upload(self.gpu, weights)?;
        let mut pass = Pass::new(self.gpu);
        self.params.refresh(&mut pass)?;
        pass.finish().run(self.gpu)
    }

    /// Reads the weights back, after all submitted steps.
    ///
    /// # Errors
    /// As [`Gpu::read`].
    pub fn weights(&self) -> Result<Weights> {
        self.params.download(self.gpu)
    }

    /// Submits step `step` (from 1) on the loader's next batches, without waiting for it. Its report comes out of
    /// [`Trainer::report`] later. The ring of reports holds one more than may be in flight, so take those that are
    /// there in between: a full one is waited for.
    ///
    /// # Errors
    /// [`Error::Data`] from the loader; else as [`Gpu::check`].
    pub fn step(&mut self, loader: &mut dyn BatchSource, step: usize, lr: f32) -> Result<()> {
        self.step_unless(loader, step, lr, &|| false).map(|_| ())
    }

    /// [`Trainer::step`], but before every micro-step `stop` is asked. If it says yes the step is given up and false
    /// returned: weights, moments and Adam's counters are those after the step before, and the loader has moved.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step_unless(
        &mut self,
        loader: &mut dyn BatchSource,
        step: usize,
        lr: f32,
        stop: &dyn Fn() -> bool,
    ) -> Result<bool> {
        let hyper = Hyper {
            lr,
            beta1: self.optimizer.beta1,
            beta2: self.optimizer.beta2,
            eps: self.optimizer.eps,
            weight_decay: self.optimizer.weight_decay,
            clip: self.optimizer.clip,
            inverse_tokens: 1.0 / self.sizes.tokens() as f32,
            step: step as u32,
            grad_unit: if self.elem == Elem::F16 { self.sizes.tokens() as f32 } else { 1.0 },
            dynamic: u32::from(self.elem == Elem::F16),
            skip_loss_z: self.optimizer.skip_loss_z,
            skip_norm_z: self.optimizer.skip_norm_z,
        };
        for micro in 0..self.sizes.accumulation {
            if stop() {
                return Ok(false);
            }
            self.gpu.span("read a batch", || loader.next_batch(&mut self.inputs, &mut self.targets))?;
            let (table, order) = self.gpu.span("sort tokens", || embedding::sort(&self.inputs));
            let (first, last) = (micro == 0, micro + 1 == self.sizes.accumulation);
            if last && self.reports.is_full() {
                self.collect(true)?;
            }
            let uploads: [(&Tensor, &[u8]); 5] = [
                (&self.acts.tokens, bytemuck::cast_slice(&self.inputs)),
                (&self.acts.targets, bytemuck::cast_slice(&self.targets)),
                (&self.buckets.table, bytemuck::cast_slice(&table)),
                (&self.buckets.order, bytemuck::cast_slice(&order)),
                (&self.control.hyper, bytemuck::bytes_of(&hyper)),
            ];
            let mut programs = Vec::with_capacity(3);
            programs.extend(first.then_some(&self.begin));
            programs.push(&self.micro);
            programs.extend(last.then_some(&self.end));
            let mut reads = Vec::with_capacity(1);
            reads.extend(last.then_some(&mut self.reports));
            let timed = self.watch.as_mut().map(|watch| Timed { watch, starts: first, stops: last });
            self.uploads.submit_timed(self.gpu, &uploads, &programs, &mut reads, timed)?;
        }
        Ok(true)
    }

    fn collect(&mut self, wait: bool) -> Result<bool> {
        let Some(bytes) = self.reports.take(self.gpu, wait)? else { return Ok(false) };
        let lap = self.watch.as_mut().map_or(Ok(None), |watch| watch.take(self.gpu))?;
        self.done.push_back((bytemuck::pod_read_unaligned(&bytes), lap));
        Ok(true)
    }

    /// Steps submitted whose reports were not yet returned.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.done.len() + self.reports.pending()
    }

    /// The oldest step's report that was not yet returned: waits for it if `wait`, else `None` while it is not there.
    ///
    /// # Errors
    /// As [`Gpu::check`].
    pub fn report(&mut self, wait: bool) -> Result<Option<Report>> {
        Ok(self.timed_report(wait)?.map(|(report, _)| report))
    }

    /// [`Trainer::report`] with the step's begin and end by the device's clock, where the adapter has one.
    ///
    /// # Errors
    /// As there.
    pub fn timed_report(&mut self, wait: bool) -> Result<Option<(Report, Option<Lap>)>> {
        if self.done.is_empty() {
            self.collect(wait)?;
        }
        Ok(self.done.pop_front())
    }
}
