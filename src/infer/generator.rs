//! Continues a text. A prompt is encoded in one forward pass. After that every token costs the work of one position,
//! because the keys and values of all earlier positions are kept.

use crate::error::{Error, Fault, Result};
use crate::gpu::{Elem, Gpu, Pass, Program, ReadRing, Tensor, Upload, UploadRing};
use crate::model::{Activations, Config, Params, forward};
use crate::ops::{cast, matmul};

use crate::infer::sampler::{SampleRng, Sampling, draw};

/// Length of the shortest recorded forward pass.
const SHORTEST: usize = 16;

/// One recorded forward pass over a whole sequence.
struct Recorded {
    acts: Activations,
    body: Program,
}

/// The recorded forward pass of one position after those that are kept.
struct Cached {
    /// Activations of the position.
    one: Activations,
    /// (1, 1) u32: the position's index.
    at: Tensor,
    /// From the token in `one` to its `lnf`.
    step: Program,
}

impl Cached {
    fn new(gpu: &Gpu, config: &Config, params: &Params, acts: &Activations, context: usize) -> Result<Self> {
        let one = Activations::inference(gpu, config, [1, 1], false, 1)?;
        let at = gpu.tensor("tokens", 1, 1, Elem::U32)?;
        let mut pass = Pass::new(gpu);
        forward::step(&mut pass, config, params, &one, &at, &acts.shrink(config, 1, context))?;
        Ok(Self { one, at, step: pass.finish() })
    }
}

/// Continues sequences of tokens with a model.
pub struct Generator<'a> {
    gpu: &'a Gpu,
    config: Config,
    context: usize,
    /// A forward pass for each length that is a power of two, and for the whole context, in ascending order. All share
    /// memory.
    recorded: Vec<Recorded>,
    /// The forward pass of one position; `None` where activations are f16.
    cached: Option<Cached>,
    /// Normalised activations of the last position, as f32.
    last: Tensor,
    /// From `last` to logits.
    head: Program,
    uploads: UploadRing,
    logits: ReadRing,
    /// Tokens whose keys and values are kept.
    kept: Vec<u32>,
    /// The prompt, the logits that follow it, and whether its keys and values are still kept.
    prompt: (Vec<u32>, Vec<f32>, bool),
}

impl<'a> Generator<'a> {
    /// Records the forward pass for sequences of up to `context` tokens, in the memory of `acts`, which must hold at
    /// least as many. Keys and values are kept in the `qkv` of each block. They are not kept in mixed precision, nor
    /// where the backward pass recomputes blocks; then each token costs the work of the whole sequence.
    ///
    /// # Errors
    /// [`Error::Memory`], [`Error::Gpu`].
    pub fn new(gpu: &'a Gpu, config: Config, params: &Params, acts: &Activations, context: usize) -> Result<Self> {
        let mut lengths: Vec<usize> =
            std::iter::successors(Some(SHORTEST), |n| Some(2 * n)).take_while(|n| *n < context).collect();
        lengths.push(context);
        let recorded = lengths
            .into_iter()
            .map(|length| {
                let acts = acts.shrink(&config, 1, length);
                let mut pass = Pass::new(gpu);
                forward::body(&mut pass, &config, params, &acts)?;
                Ok(Recorded { acts, body: pass.finish() })
            })
            .collect::<Result<_>>()?;
        // with f32 keys and values a token costs the work of one position
        let keeps = acts.lnf.elem() == Elem::F32 && acts.holds_keys();
        let cached = if keeps { Some(Cached::new(gpu, &config, params, acts, context)?) } else { None };
        let (last, row) = match &cached {
            Some(cached) => (cached.one.lnf.clone(), cached.one.logits.clone()),
            None => {
                let last = gpu.tensor("sampling", 1, config.channels, Elem::F32)?;
                (last, gpu.tensor("sampling", 1, config.padded_vocab(), Elem::F32)?)
            }
        };
        let mut pass = Pass::new(gpu);
        matmul::forward(
            &mut pass,
            matmul::Forward { inp: &last, weight: params.get("wte", 0), bias: None, out: &row },
        )?;
        Ok(Self {
            gpu,
            config,
            context,
            recorded,
            cached,
            head: pass.finish(),
            uploads: UploadRing::new(gpu, 1, context.max(2) as u64 * 4)?,
            logits: ReadRing::new(gpu, 1, &row)?,
            last,
            kept: Vec::new(),
            prompt: (Vec::new(), Vec::new(), false),
        })
    }

    /// Encodes 1 to `context` tokens and returns the logits (V) that follow. Keeps their keys and values and drops all
    /// others.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are no tokens or too many; otherwise as [`Gpu::check`].
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let n = tokens.len();
        self.prompt.2 = false;
        if n == 0 || n > self.context {
            return Err(Error::shape(
                Fault::at("generate", format!("{n} tokens")).expected(format!("1 to {}", self.context)),
            ));
        }
        let found = self.recorded.iter().find(|r| r.acts.positions >= n);
        let Some(Recorded { acts, body }) = found else {
            return Err(Error::shape(Fault::at("generate", format!("no program for {n} tokens"))));
        };
        let mut padded = tokens.to_vec();
        padded.resize(acts.positions, 0); // causal attention ignores the padding
        let mut pass = Pass::new(self.gpu);
        if acts.lnf.elem() == Elem::F16 {
            cast::widen(&mut pass, &acts.lnf, n - 1, &self.last)?;
        } else {
            pass.copy(&acts.lnf.slice(n - 1..n), &self.last)?;
        }
        let copy = pass.finish();
        let uploads: [Upload; 1] = [(&[&acts.tokens], bytemuck::cast_slice(&padded))];
        self.uploads.submit(self.gpu, &uploads, &[body, &copy, &self.head], &mut [&mut self.logits])?;
        self.kept = tokens.to_vec();
        self.take()
    }

    /// Appends a token to those that are kept and returns the logits (V) that follow. Costs the work of one position.
    ///
    /// # Errors
    /// [`Error::Shape`] if the context is full or no tokens are kept; otherwise as [`Gpu::check`].
    pub fn next_logits(&mut self, token: u32) -> Result<Vec<f32>> {
        let position = self.kept.len();
        if position == 0 || position >= self.context {
            let most = self.context - 1;
            return Err(Error::shape(
                Fault::at("generate", format!("{position} positions are kept"))
                    .expected(format!("1 to {most} before one more")),
            ));
        }
        self.kept.push(token);
        let Some(Cached { one, at, step }) = &self.cached else {
            let all = std::mem::take(&mut self.kept);
            return self.logits(&all);
        };
        let position = position as u32;
        let numbers = [token, position];
        let uploads: [Upload; 1] = [(&[&one.tokens, at], bytemuck::bytes_of(&numbers))];
        self.uploads.submit(self.gpu, &uploads, &[step, &self.head], &mut [&mut self.logits])?;
        self.take()
    }

    /// Waits for the next logits.
    fn take(&mut self) -> Result<Vec<f32>> {
        let bytes = self.logits.take(self.gpu, true)?.unwrap_or_default();
        let mut logits: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        logits.truncate(self.config.vocab);
        Ok(logits)
    }

    /// Encodes a prompt of at least one token for [`Generator::sample`]. Of a prompt longer than the context only the
    /// end is encoded, as many tokens as half the context.
    ///
    /// # Errors
    /// As [`Generator::logits`].
    pub fn prompt(&mut self, tokens: &[u32]) -> Result<()> {
        let logits = self.logits(self.window(tokens))?;
        self.prompt = (tokens.to_vec(), logits, true);
        Ok(())
    }

    /// Returns the part of a sequence that is encoded: all of it if it fits, otherwise its end, half as long as the
    /// context.
    fn window<'t>(&self, tokens: &'t [u32]) -> &'t [u32] {
        let keep = (self.context / 2).max(1);
        if tokens.len() > self.context { &tokens[tokens.len() - keep..] } else { tokens }
    }

    /// Continues the prompt by up to `count` tokens and passes each to `emit`; ends early at the token `stop`. When the
    /// context is full, its last half is encoded again. May be called repeatedly: the prompt is encoded again only if
    /// its keys and values were overwritten.
    ///
    /// # Errors
    /// As [`Generator::logits`]; errors of `emit`.
    pub fn sample(
        &mut self,
        count: usize,
        stop: Option<u32>,
        sampling: &Sampling,
        mut emit: impl FnMut(u32) -> Result<()>,
    ) -> Result<()> {
        let mut rng = SampleRng::new(sampling.seed);
        let mut tokens = self.prompt.0.clone();
        if !self.prompt.2 {
            self.prompt(&tokens)?;
        }
        let mut logits = self.prompt.1.clone();
        self.kept = self.window(&tokens).to_vec();
        for i in 0..count {
            if i > 0 {
                let last = tokens.last().copied().unwrap_or_default();
                logits = if self.kept.len() == self.context {
                    let keep = (self.context / 2).max(1);
                    self.logits(&tokens[tokens.len() - keep..])?
                } else {
                    self.next_logits(last)?
                };
            }
            let token = draw(&logits, sampling, &mut rng);
            if Some(token) == stop {
                break;
            }
            emit(token)?;
            tokens.push(token);
        }
        Ok(())
    }

    /// Calls [`Generator::prompt`], then [`Generator::sample`].
    ///
    /// # Errors
    /// As these two.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        count: usize,
        stop: Option<u32>,
        sampling: &Sampling,
        emit: impl FnMut(u32) -> Result<()>,
    ) -> Result<()> {
        self.prompt(prompt)?;
        self.sample(count, stop, sampling, emit)
    }
}
