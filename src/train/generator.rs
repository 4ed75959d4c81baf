//! Continuing a text: the forward pass over what is there, one token at a time.

use crate::error::{Error, Result};
use crate::gpu::{Elem, Gpu, Pass, Program, ReadRing, Tensor, UploadRing};
use crate::model::{Activations, Config, Params, forward};
use crate::ops::matmul;

/// Shortest sequence that a program is recorded for.
const SHORTEST: usize = 16;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Only the k likeliest tokens are drawn from; 0 allows all.
    pub top_k: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// xorshift64*, as llm.c's sampler: Vigna, "An experimental exploration of Marsaglia's xorshift generators".
#[derive(Debug, Clone)]
pub struct Coins(u64);

impl Coins {
    /// Starts from a seed. The generator's only forbidden state, zero, is replaced.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(if seed == 0 { 0x9e37_79b9_7f4a_7c15 } else { seed })
    }

    /// The next number in [0, 1).
    pub fn toss(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32;
        (high >> 8) as f32 / 16_777_216.0
    }
}

/// Draws a token from logits.
#[must_use]
pub fn draw(logits: &[f32], sampling: &Sampling, coins: &mut Coins) -> u32 {
    let best = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut ranked: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
    ranked.sort_by(best);
    let most = ranked.first().map_or(0.0, |r| r.1);
    if sampling.temperature <= 0.0 {
        return ranked.first().map_or(0, |r| r.0 as u32);
    }
    if sampling.top_k > 0 {
        ranked.truncate(sampling.top_k);
    }
    let weight = |logit: f32| f64::from((logit - most) / sampling.temperature).exp();
    let total: f64 = ranked.iter().map(|r| weight(r.1)).sum();
    let mut left = f64::from(coins.toss()) * total;
    for &(token, logit) in &ranked {
        left -= weight(logit);
        if left < 0.0 {
            return token as u32;
        }
    }
    ranked.last().map_or(0, |r| r.0 as u32)
}

/// One recorded forward pass.
struct Recorded {
    acts: Activations,
    body: Program,
}

/// Continues sequences of tokens with a model's parameters.
pub struct Generator<'a> {
    gpu: &'a Gpu,
    config: Config,
    context: usize,
    /// One for each length that is a power of two, and the whole context.
    recorded: Vec<Recorded>,
    /// The normalised activations of the last position.
    last: Tensor,
    head: Program,
    uploads: UploadRing,
    logits: ReadRing,
}

impl<'a> Generator<'a> {
    /// Records the forward pass for sequences up to `context` tokens, in the memory of `acts` (of at least as many).
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
        // two rows: a row of an odd number of f16 does not begin at a word
        let last = gpu.tensor("sampling", context.min(2), config.channels, acts.lnf.elem())?;
        let row = gpu.tensor("sampling", last.rows(), config.padded_vocab(), Elem::F32)?;
        let mut pass = Pass::new(gpu);
        matmul::forward(
            &mut pass,
            matmul::Forward { inp: &last, weight: params.matrix("wte", 0), bias: None, out: &row },
        )?;
        Ok(Self {
            gpu,
            config,
            context,
            recorded,
            last,
            head: pass.finish(),
            uploads: UploadRing::new(gpu, 1, context as u64 * 4)?,
            logits: ReadRing::new(gpu, 1, &row)?,
        })
    }

    /// The logits (V) that follow `tokens`, of which there are 1 to the context's length.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are none or too many, else as [`Gpu::check`].
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let n = tokens.len();
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
        let first = (n - 1) / 2 * 2;
        let first = first.min(acts.positions - self.last.rows());
        pass.copy(&acts.lnf.slice(first..first + self.last.rows()), &self.last)?;
        let copy = pass.finish();
        let uploads: [(&Tensor, &[u8]); 1] = [(&acts.tokens, bytemuck::cast_slice(&padded))];
        self.uploads.submit(self.gpu, &uploads, &[body, &copy, &self.head], &mut [&mut self.logits])?;
        let bytes = self.logits.take(self.gpu, true)?.unwrap_or_default();
        let rows: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        let start = (n - 1 - first) * self.config.padded_vocab();
        Ok(rows[start..start + self.config.vocab].to_vec())
    }

    /// Continues `prompt` (of at least one token) by up to `count` tokens, handing each to `emit`; ends early at
    /// `stop`. Past the context the last half of it is read anew.
    ///
    /// # Errors
    /// As [`Generator::logits`], and what `emit` returns.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        count: usize,
        stop: Option<u32>,
        sampling: &Sampling,
        mut emit: impl FnMut(u32) -> Result<()>,
    ) -> Result<()> {
        let mut coins = Coins::new(sampling.seed);
        let keep = (self.context / 2).max(1);
        let mut window = prompt.to_vec();
        for _ in 0..count {
            if window.len() > self.context {
                window.drain(..window.len() - keep);
            }
            let token = draw(&self.logits(&window)?, sampling, &mut coins);
            if Some(token) == stop {
                break;
            }
            emit(token)?;
            window.push(token);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coins_are_those_of_llmc() {
        let mut coins = Coins::new(1337);
        for want in [0.230_317_24, 0.190_518_26, 0.310_865_16, 0.902_659_5] {
            assert!((coins.toss() - want).abs() < 1e-7);
        }
    }

    #[test]
    fn zero_temperature_takes_the_likeliest_and_top_k_limits() {
        let logits = [0.0, 3.0, 1.0, 3.0];
        let mut coins = Coins::new(1);
        let greedy = Sampling { temperature: 0.0, top_k: 0, seed: 1 };
        assert_eq!(draw(&logits, &greedy, &mut coins), 1);
        let two = Sampling { temperature: 5.0, top_k: 2, seed: 1 };
        assert!((0..200).all(|_| [1, 3].contains(&draw(&logits, &two, &mut coins))));
    }

    #[test]
    fn draws_follow_the_softmax() {
        let (logits, mut coins) = ([1.0f32.ln(), 3.0f32.ln()], Coins::new(7));
        let all = Sampling { temperature: 1.0, top_k: 0, seed: 7 };
        let ones = (0..4000).filter(|_| draw(&logits, &all, &mut coins) == 1).count();
        assert!((2850..3150).contains(&ones), "{ones} of 4000, expected about 3000");
    }
}
