//! All of GPT-2 in f64: forward, backward and training steps, with which tests compare real runs.

use super::{adamw, attention, bias, crossentropy, embedding, gelu, gradnorm, layernorm, matmul, residual};
use crate::model::{Config, PARAMS, Weights, params};

/// One f64 vector per entry of [`PARAMS`]: parameters, gradients or moments.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    /// The model's shape.
    pub config: Config,
    /// For entry i of [`PARAMS`] all copies one after the other, row-major, as in [`Weights::tensors`].
    pub tensors: Vec<Vec<f64>>,
}

impl Params {
    /// Returns parameters of the right sizes that are all zero.
    #[must_use]
    pub fn zeros(config: Config) -> Self {
        let tensors = PARAMS.iter().map(|p| vec![0.0; p.copies(&config) * p.elements(&config)]).collect();
        Self { config, tensors }
    }

    /// Converts weights to f64.
    #[must_use]
    pub fn from_weights(weights: &Weights) -> Self {
        let tensors = weights.tensors.iter().map(|t| t.iter().map(|&x| f64::from(x)).collect()).collect();
        Self { config: weights.config, tensors }
    }

    /// Returns one copy of a parameter. `layer` is 0 for parameters that the model has once.
    #[must_use]
    pub fn get(&self, name: &str, layer: usize) -> &[f64] {
        let i = params::index(name);
        let n = PARAMS[i].elements(&self.config);
        &self.tensors[i][layer * n..(layer + 1) * n]
    }

    /// Returns one copy of a parameter for writing.
    #[must_use]
    pub fn get_mut(&mut self, name: &str, layer: usize) -> &mut [f64] {
        let i = params::index(name);
        let n = PARAMS[i].elements(&self.config);
        &mut self.tensors[i][layer * n..(layer + 1) * n]
    }

    /// Returns two different parameters for writing.
    fn pair_mut(&mut self, names: [&str; 2], layer: usize) -> [&mut [f64]; 2] {
        let config = self.config;
        let indices = names.map(params::index);
        let [n0, n1] = indices.map(|i| PARAMS[i].elements(&config));
        let Ok([first, second]) = self.tensors.get_disjoint_mut(indices) else {
            panic!("expected two different parameters, got {names:?}");
        };
        [&mut first[layer * n0..(layer + 1) * n0], &mut second[layer * n1..(layer + 1) * n1]]
    }
}

/// Tokens and targets of one forward pass.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// (B, T).
    pub tokens: &'a [u32],
    /// (B, T): the token that follows each, or [`crossentropy::IGNORED`].
    pub targets: &'a [u32],
    /// Sequence length, at most [`Config::positions`].
    pub T: usize,
}

/// Activations of one block, named as in llm.c.
#[derive(Debug, Clone)]
pub struct Block {
    /// First norm, (B, T, C).
    pub ln1: layernorm::Forward,
    /// (B, T, 3C).
    pub qkv: Vec<f64>,
    /// (B, T, C) and the log-sum-exp.
    pub atty: attention::Forward,
    /// (B, T, C).
    pub attproj: Vec<f64>,
    /// (B, T, C): the residual stream after attention.
    pub residual2: Vec<f64>,
    /// Second norm, (B, T, C).
    pub ln2: layernorm::Forward,
    /// (B, T, 4C), before GELU.
    pub fch: Vec<f64>,
    /// (B, T, 4C), after GELU.
    pub fch_gelu: Vec<f64>,
    /// (B, T, C).
    pub fcproj: Vec<f64>,
    /// (B, T, C): the residual stream after the block.
    pub residual3: Vec<f64>,
}

/// Activations of the model.
#[derive(Debug, Clone)]
pub struct Forward {
    /// (B, T, C).
    pub encoded: Vec<f64>,
    /// One per layer.
    pub blocks: Vec<Block>,
    /// Last norm, (B, T, C).
    pub lnf: layernorm::Forward,
    /// (B, T, Vp); the padded columns are 0.
    pub logits: Vec<f64>,
    /// (B, T), in nats; 0 for ignored targets.
    pub losses: Vec<f64>,
    /// Sum of `losses` divided by all B T rows, including ignored ones, as in llm.c.
    pub mean_loss: f64,
}

/// `x = wte[token] + wpe[t]`; each block `x += attproj(attention(ln1(x)))`, `x += fcproj(gelu(fc(ln2(x))))`;
/// `logits = lnf(x) wteᵀ`.
///
/// Source: Radford et al. 2019; llm.c's `gpt2_forward`.
#[must_use]
pub fn forward(p: &Params, batch: &Batch) -> Forward {
    let (C, V, Vp) = (p.config.channels, p.config.vocab, p.config.padded_vocab());
    let N = batch.tokens.len();
    assert!(batch.T <= p.config.positions, "gpt2.forward: {} positions of {}", batch.T, p.config.positions);

    let encoded = embedding::forward(batch.tokens, p.get("wte", 0), p.get("wpe", 0), batch.T, C);
    let mut blocks: Vec<Block> = Vec::new();
    for layer in 0..p.config.layers {
        let inp = blocks.last().map_or(&encoded, |previous| &previous.residual3);
        let block = block_forward(p, layer, inp, batch.T);
        blocks.push(block);
    }
    let last = blocks.last().map_or(&encoded, |block| &block.residual3);
    let lnf = layernorm::forward(last, p.get("lnfw", 0), p.get("lnfb", 0), C);
    let logits = matmul::forward(&lnf.out, p.get("wte", 0), None, N, Vp, C);
    let losses = crossentropy::forward(&logits, batch.targets, V, Vp);
    let mean_loss = losses.iter().sum::<f64>() / N as f64;
    Forward { encoded, blocks, lnf, logits, losses, mean_loss }
}

/// Computes one block. `inp`: (B, T, C).
fn block_forward(p: &Params, layer: usize, inp: &[f64], T: usize) -> Block {
    let (C, NH) = (p.config.channels, p.config.heads);
    let N = inp.len() / C;
    let get = |name: &str| p.get(name, layer);

    let ln1 = layernorm::forward(inp, get("ln1w"), get("ln1b"), C);
    let qkv = matmul::forward(&ln1.out, get("qkvw"), Some(get("qkvb")), N, 3 * C, C);
    let atty = attention::forward(&qkv, N / T, T, C, NH);
    let attproj = matmul::forward(&atty.out, get("attprojw"), Some(get("attprojb")), N, C, C);
    let residual2 = residual::forward(inp, &attproj);
    let ln2 = layernorm::forward(&residual2, get("ln2w"), get("ln2b"), C);
    let fch = matmul::forward(&ln2.out, get("fcw"), Some(get("fcb")), N, 4 * C, C);
    let fch_gelu = gelu::forward(&fch);
    let fcproj = matmul::forward(&fch_gelu, get("fcprojw"), Some(get("fcprojb")), N, C, 4 * C);
    let residual3 = residual::forward(&residual2, &fcproj);
    Block { ln1, qkv, atty, attproj, residual2, ln2, fch, fch_gelu, fcproj, residual3 }
}

/// Computes the gradient of `dloss * Σ losses` with respect to every parameter. Accumulates into `grads`; nothing is
/// added to the padded rows of `wte`'s gradient.
///
/// `acts`: the result of [`forward`] for the same parameters and batch. With `dloss` = 1 / (B T) this is the gradient
/// of `mean_loss`.
pub fn backward(p: &Params, batch: &Batch, acts: &Forward, dloss: f64, grads: &mut Params) {
    let (C, V, Vp) = (p.config.channels, p.config.vocab, p.config.padded_vocab());
    let N = batch.tokens.len();

    let dlogits = crossentropy::backward(&acts.logits, batch.targets, dloss, V, Vp);
    matmul::backward_weight(&dlogits, &acts.lnf.out, grads.get_mut("wte", 0), N, Vp, C);
    let dlnf = matmul::backward_inp(&dlogits, p.get("wte", 0), N, Vp, C);
    let [dlnfw, dlnfb] = grads.pair_mut(["lnfw", "lnfb"], 0);
    let mut dresidual = layernorm::backward(&dlnf, &acts.lnf.xhat, &acts.lnf.rstd, p.get("lnfw", 0), dlnfw, dlnfb, C);
    for layer in (0..p.config.layers).rev() {
        dresidual = block_backward(p, layer, &acts.blocks[layer], dresidual, batch.T, grads);
    }
    let [dwte, dwpe] = grads.pair_mut(["wte", "wpe"], 0);
    embedding::backward(&dresidual, batch.tokens, dwte, dwpe, batch.T, C);
}

/// Computes one block, from the gradient of `residual3` to the gradient of `inp`.
fn block_backward(
    p: &Params,
    layer: usize,
    acts: &Block,
    dresidual3: Vec<f64>,
    T: usize,
    grads: &mut Params,
) -> Vec<f64> {
    let (C, NH) = (p.config.channels, p.config.heads);
    let N = dresidual3.len() / C;
    let get = |name: &str| p.get(name, layer);

    // residual3 = residual2 + fcproj: both get dresidual3
    bias::backward(&dresidual3, grads.get_mut("fcprojb", layer));
    matmul::backward_weight(&dresidual3, &acts.fch_gelu, grads.get_mut("fcprojw", layer), N, C, 4 * C);
    let dfch_gelu = matmul::backward_inp(&dresidual3, get("fcprojw"), N, C, 4 * C);
    let dfch = gelu::backward(&dfch_gelu, &acts.fch);
    bias::backward(&dfch, grads.get_mut("fcb", layer));
    matmul::backward_weight(&dfch, &acts.ln2.out, grads.get_mut("fcw", layer), N, 4 * C, C);
    let dln2 = matmul::backward_inp(&dfch, get("fcw"), N, 4 * C, C);
    let [dln2w, dln2b] = grads.pair_mut(["ln2w", "ln2b"], layer);
    let through_ln2 = layernorm::backward(&dln2, &acts.ln2.xhat, &acts.ln2.rstd, get("ln2w"), dln2w, dln2b, C);
    let dresidual2 = residual::forward(&dresidual3, &through_ln2);

    // residual2 = inp + attproj: both get dresidual2
    bias::backward(&dresidual2, grads.get_mut("attprojb", layer));
    matmul::backward_weight(&dresidual2, &acts.atty.out, grads.get_mut("attprojw", layer), N, C, C);
    let datty = matmul::backward_inp(&dresidual2, get("attprojw"), N, C, C);
    let dqkv = attention::backward(&datty, &acts.qkv, N / T, T, C, NH);
    bias::backward(&dqkv, grads.get_mut("qkvb", layer));
    matmul::backward_weight(&dqkv, &acts.ln1.out, grads.get_mut("qkvw", layer), N, 3 * C, C);
    let dln1 = matmul::backward_inp(&dqkv, get("qkvw"), N, 3 * C, C);
    let [dln1w, dln1b] = grads.pair_mut(["ln1w", "ln1b"], layer);
    let through_ln1 = layernorm::backward(&dln1, &acts.ln1.xhat, &acts.ln1.rstd, get("ln1w"), dln1w, dln1b, C);
    residual::forward(&dresidual2, &through_ln1)
}

/// The settings of a run, which the caller may change between steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Learning rate of the next step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay of the parameters that decay.
    pub weight_decay: f64,
    /// Largest norm of the gradient; infinity for no clipping.
    pub clip: f64,
}

impl Default for Settings {
    /// Returns llm.c's defaults: rate 3e-4, betas 0.9 and 0.95, eps 1e-8, no decay, clip 1.
    fn default() -> Self {
        Self { lr: 3e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0, clip: 1.0 }
    }
}

/// The report of a training step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Mean loss over all rows of all micro-batches, before the update.
    pub loss: f64,
    /// Norm of the gradient, before clipping.
    pub norm: f64,
}

/// A model in training.
#[derive(Debug, Clone)]
pub struct Trainer {
    /// The parameters.
    pub params: Params,
    /// The gradients of the last step, before clipping.
    pub grads: Params,
    /// First moments.
    pub m: Params,
    /// Second moments.
    pub v: Params,
    /// Updates made so far.
    pub steps: u32,
    /// The settings, which may be changed between steps.
    pub settings: Settings,
}

impl Trainer {
    /// Creates a trainer with these weights and moments of zero.
    #[must_use]
    pub fn new(weights: &Weights, settings: Settings) -> Self {
        let zeros = Params::zeros(weights.config);
        let params = Params::from_weights(weights);
        Self { params, grads: zeros.clone(), m: zeros.clone(), v: zeros, steps: 0, settings }
    }

    /// Makes one update. Sums gradients over the micro-batches, each row with the weight 1 / (rows of all
    /// micro-batches), clips them by their global norm, and applies AdamW. Overwrites `grads`.
    pub fn step(&mut self, micro_batches: &[Batch]) -> Step {
        let rows: usize = micro_batches.iter().map(|batch| batch.tokens.len()).sum();
        let dloss = 1.0 / rows as f64;
        self.grads = Params::zeros(self.params.config);
        let mut loss = 0.0;
        for batch in micro_batches {
            let acts = forward(&self.params, batch);
            loss += dloss * acts.losses.iter().sum::<f64>();
            backward(&self.params, batch, &acts, dloss, &mut self.grads);
        }
        let norm = gradnorm::forward(&self.grads.tensors);
        self.update(gradnorm::clip_scale(norm, self.settings.clip));
        Step { loss, norm }
    }

    /// Applies AdamW to every parameter, with the gradients times `grad_scale`.
    fn update(&mut self, grad_scale: f64) {
        self.steps += 1;
        let Settings { lr, beta1, beta2, eps, weight_decay, .. } = self.settings;
        for i in 0..PARAMS.len() {
            let weight_decay = if PARAMS[i].decays { weight_decay } else { 0.0 };
            adamw::update(
                &mut self.params.tensors[i],
                &self.grads.tensors[i],
                &mut self.m.tensors[i],
                &mut self.v.tensors[i],
                &adamw::Settings { lr, beta1, beta2, eps, weight_decay, grad_scale, t: self.steps },
            );
        }
    }
}
