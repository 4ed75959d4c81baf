//! Continuing a text: a prompt is encoded at once, then every token costs one position's work, for the keys and values
//! of all before it are kept.

use crate::error::{Error, Result};
use crate::gpu::{Elem, Gpu, Pass, Program, ReadRing, Tensor, UploadRing};
use crate::model::{Activations, Config, Params, forward};
use crate::ops::matmul;

use super::sampler::{Coins, Sampling, draw};

/// Shortest sequence that a program is recorded for.
const SHORTEST: usize = 16;

/// One recorded forward pass over a whole sequence.
struct Recorded {
    acts: Activations,
    body: Program,
}

/// Continues sequences of tokens with a model's parameters.
pub struct Generator<'a> {
    gpu: &'a Gpu,
    config: Config,
    context: usize,
    /// One for each length that is a power of two, and the whole context: in ascending order, all in the same memory.
    recorded: Vec<Recorded>,
    /// The activations of a single position; `lnf` also of the last of a sequence.
    one: Activations,
    /// (1, 1) u32: the position of the next token.
    at: Tensor,
    /// From the token in `one` to its logits.
    step: Program,
    head: Program,
    uploads: UploadRing,
    logits: ReadRing,
    /// Positions whose keys and values are kept.
    kept: usize,
    /// The prompt, the logits after it, and whether its keys and values are still kept.
    prompt: (Vec<u32>, Vec<f32>, bool),
}

impl<'a> Generator<'a> {
    /// Records the forward pass for sequences up to `context` tokens, in the memory of `acts` (of at least as many),
    /// whose blocks must have a `qkv` each: there keys and values are kept.
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
        let one = Activations::inference(gpu, &config, [1, 1], false, 1)?;
        let at = gpu.tensor("tokens", 1, 1, Elem::U32)?;
        let mut pass = Pass::new(gpu);
        forward::step(&mut pass, &config, params, &one, &at, &acts.shrink(&config, 1, context))?;
        let step = pass.finish();
        let mut pass = Pass::new(gpu);
        let io = matmul::Forward { inp: &one.lnf, weight: params.get("wte", 0), bias: None, out: &one.logits };
        matmul::forward(&mut pass, io)?;
        Ok(Self {
            gpu,
            config,
            context,
            recorded,
            at,
            step,
            head: pass.finish(),
            uploads: UploadRing::new(gpu, 1, context.max(2) as u64 * 4)?,
            logits: ReadRing::new(gpu, 1, &one.logits)?,
            one,
            kept: 0,
            prompt: (Vec::new(), Vec::new(), false),
        })
    }

    /// Encodes `tokens`, of which there are 1 to the context's length, and returns the logits (V) that follow. Their
    /// keys and values are kept, all others forgotten.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are none or too many, else as [`Gpu::check`].
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let n = tokens.len();
        self.prompt.2 = false;
        if n == 0 || n > self.context {
            return Err(Error::Shape(format!("generate: {n} tokens, expected 1 to {}", self.context)));
        }
        let found = self.recorded.iter().find(|r| r.acts.positions >= n);
        let Some(Recorded { acts, body }) = found else {
            return Err(Error::Shape(format!("generate: no program for {n} tokens")));
        };
        let mut padded = tokens.to_vec();
        padded.resize(acts.positions, 0); // causal attention never looks at them
        let mut pass = Pass::new(self.gpu);
        pass.copy(&acts.lnf.slice(n - 1..n), &self.one.lnf)?;
        let copy = pass.finish();
        let uploads: [(&Tensor, &[u8]); 1] = [(&acts.tokens, bytemuck::cast_slice(&padded))];
        self.uploads.submit(self.gpu, &uploads, &[body, &copy, &self.head], &mut [&mut self.logits])?;
        self.kept = n;
        self.take()
    }

    /// Appends a token to what is kept and returns the logits (V) that follow: the work of one position.
    ///
    /// # Errors
    /// [`Error::Shape`] if the context is full or nothing was encoded, else as [`Gpu::check`].
    pub fn next_logits(&mut self, token: u32) -> Result<Vec<f32>> {
        if self.kept == 0 || self.kept >= self.context {
            let (kept, most) = (self.kept, self.context - 1);
            return Err(Error::Shape(format!(
                "generate: {kept} positions are kept, expected 1 to {most} before one more"
            )));
        }
        let position = self.kept as u32;
        let uploads: [(&Tensor, &[u8]); 2] =
            [(&self.one.tokens, bytemuck::bytes_of(&token)), (&self.at, bytemuck::bytes_of(&position))];
        self.uploads.submit(self.gpu, &uploads, &[&self.step, &self.head], &mut [&mut self.logits])?;
        self.kept += 1;
        self.take()
    }

    fn take(&mut self) -> Result<Vec<f32>> {
        let bytes = self.logits.take(self.gpu, true)?.unwrap_or_default();
        let mut logits: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        logits.truncate(self.config.vocab);
        Ok(logits)
    }

    /// Encodes a prompt (of at least one token) for [`Generator::sample`]; of one past the context the last half of the
    /// context.
    ///
    /// # Errors
    /// As [`Generator::logits`].
    pub fn prompt(&mut self, tokens: &[u32]) -> Result<()> {
        let logits = self.logits(self.window(tokens))?;
        self.prompt = (tokens.to_vec(), logits, true);
        Ok(())
    }

    /// What of a sequence can be encoded: all of it, or its end, as long as half the context.
    fn window<'t>(&self, tokens: &'t [u32]) -> &'t [u32] {
        let keep = (self.context / 2).max(1);
        if tokens.len() > self.context { &tokens[tokens.len() - keep..] } else { tokens }
    }

    /// Continues the prompt by up to `count` tokens, handing each to `emit`; ends early at `stop`. Past the context the
    /// last half of it is encoded anew. May be called again: the prompt is not encoded again unless it was overwritten.
    ///
    /// # Errors
    /// As [`Generator::logits`], and what `emit` returns.
    pub fn sample(
        &mut self,
        count: usize,
        stop: Option<u32>,
        sampling: &Sampling,
        mut emit: impl FnMut(u32) -> Result<()>,
    ) -> Result<()> {
        let mut coins = Coins::new(sampling.seed);
        let mut tokens = self.prompt.0.clone();
        if !self.prompt.2 {
            self.prompt(&tokens)?;
        }
        let mut logits = self.prompt.1.clone();
        self.kept = self.window(&tokens).len();
        for i in 0..count {
            if i > 0 {
                let last = tokens.last().copied().unwrap_or_default();
                logits = if self.kept == self.context {
                    let keep = (self.context / 2).max(1);
                    self.logits(&tokens[tokens.len() - keep..])?
                } else {
                    self.next_logits(last)?
                };
            }
            let token = draw(&logits, sampling, &mut coins);
            if Some(token) == stop {
                break;
            }
            emit(token)?;
            tokens.push(token);
        }
        Ok(())
    }

    /// [`Generator::prompt`], then [`Generator::sample`].
    ///
    /// # Errors
    /// As those.
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
