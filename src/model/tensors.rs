//! The model's tensors on the GPU: parameters (and, in the same layout, their gradients and moments), activations,
//! and the scratch of the backward pass.

use crate::error::Result;
use crate::gpu::tensor::row_windows;
use crate::gpu::{Elem, Gpu, Pass, Tensor};
use crate::ops::{bias, cast, layernorm, matmul};

use super::config::Config;
use super::params::{PARAMS, Weights, index};

/// One value for every parameter: the parameters themselves, their gradients, or a moment. All tensors that decay lie
/// behind one another, then all that do not, block by block, so that a pass over all parameters is a few dispatches.
#[derive(Debug)]
pub struct Params {
    config: Config,
    /// For entry i of [`PARAMS`], its copies.
    tensors: Vec<Vec<Tensor>>,
    /// The buffers, each whole, and whether weight decay applies to it.
    wholes: Vec<(Tensor, bool)>,
    /// A copy of all that decays in f16, laid out alike, for the matrix products of mixed precision.
    copy: Option<Copy>,
}

/// See [`Params::with_copy`].
#[derive(Debug)]
struct Copy {
    /// As [`Params::tensors`]; empty for what does not decay.
    tensors: Vec<Vec<Tensor>>,
    wholes: Vec<Tensor>,
}

impl Params {
    /// Allocates zeros for every parameter.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn new(gpu: &Gpu, label: &str, config: Config) -> Result<Self> {
        let mut tensors: Vec<Vec<Tensor>> = PARAMS.iter().map(|_| Vec::new()).collect();
        let mut wholes = Vec::new();
        for decays in [true, false] {
            let buffers = arena(gpu, label, &config, decays, Elem::F32, &mut tensors)?;
            wholes.extend(buffers.into_iter().map(|buffer| (buffer, decays)));
        }
        Ok(Self { config, tensors, wholes, copy: None })
    }

    /// The same with an f16 copy of every matrix, which [`Params::matrix`] then returns. Whoever writes parameters
    /// writes the copy too: AdamW does; after [`Params::upload`] it takes [`Params::refresh`].
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn with_copy(gpu: &Gpu, label: &str, config: Config) -> Result<Self> {
        let mut tensors: Vec<Vec<Tensor>> = PARAMS.iter().map(|_| Vec::new()).collect();
        let wholes = arena(gpu, &format!("{label} as f16"), &config, true, Elem::F16, &mut tensors)?;
        Ok(Self { copy: Some(Copy { tensors, wholes }), ..Self::new(gpu, label, config)? })
    }

    /// A matrix as the products take it: its f16 copy if there is one.
    #[must_use]
    pub fn matrix(&self, name: &str, layer: usize) -> &Tensor {
        self.copy.as_ref().map_or_else(|| self.get(name, layer), |copy| &copy.tensors[index(name)][layer])
    }

    /// Records that the f16 copy is made anew, if there is one.
    ///
    /// # Errors
    /// [`crate::error::Error::Gpu`] if the kernel cannot be built.
    pub fn refresh(&self, pass: &mut Pass) -> Result<()> {
        for (window, copy) in self.windows(pass.gpu).iter().zip(self.copy_windows(pass.gpu)) {
            if let Some(copy) = copy {
                cast::forward(pass, &window.0, &copy)?;
            }
        }
        Ok(())
    }

    /// For every one of [`Params::windows`] its f16 copy, if it has one.
    #[must_use]
    pub fn copy_windows(&self, gpu: &Gpu) -> Vec<Option<Tensor>> {
        let mut copies = self.copy.iter().flat_map(|copy| &copy.wholes).flat_map(|whole| cut(gpu, whole));
        self.windows(gpu).iter().map(|(_, decays)| if *decays { copies.next() } else { None }).collect()
    }

    /// A parameter by name; `layer` is 0 for those that the model has once.
    #[must_use]
    pub fn get(&self, name: &str, layer: usize) -> &Tensor {
        &self.tensors[index(name)][layer]
    }

    /// Everything, cut into flat windows that can be bound, each with whether it decays. Two sets of the same model
    /// are cut alike.
    #[must_use]
    pub fn windows(&self, gpu: &Gpu) -> Vec<(Tensor, bool)> {
        self.wholes.iter().flat_map(|(whole, decays)| cut(gpu, whole).into_iter().map(|w| (w, *decays))).collect()
    }

    /// The buffers, each whole.
    pub fn wholes(&self) -> impl Iterator<Item = &Tensor> {
        self.wholes.iter().map(|(whole, _)| whole)
    }

    /// Overwrites all from the host.
    ///
    /// # Errors
    /// As [`Gpu::write`].
    pub fn upload(&self, gpu: &Gpu, weights: &Weights) -> Result<()> {
        let list: Vec<(&Tensor, &[u8])> = PARAMS
            .iter()
            .zip(&self.tensors)
            .flat_map(|(param, copies)| {
                let of = |(layer, tensor)| (tensor, bytemuck::cast_slice(weights.get(param.name, layer)));
                copies.iter().enumerate().map(of)
            })
            .collect();
        gpu.write_all(&list)
    }

    /// Reads all back.
    ///
    /// # Errors
    /// As [`Gpu::read`].
    pub fn download(&self, gpu: &Gpu) -> Result<Weights> {
        let mut weights = Weights::zeros(self.config);
        // those of a parameter lie behind one another in a set of weights, layer by layer
        let all: Vec<(usize, &Tensor)> = self
            .tensors
            .iter()
            .enumerate()
            .flat_map(|(param, copies)| copies.iter().map(move |t| (param, t)))
            .collect();
        let tensors: Vec<&Tensor> = all.iter().map(|(_, tensor)| *tensor).collect();
        let mut filled = vec![0; self.tensors.len()];
        gpu.read_all(&tensors, |number, bytes| {
            let (param, at) = (all[number].0, &mut filled[all[number].0]);
            let values: &mut [f32] = &mut weights.tensors[param][*at..*at + bytes.len() / 4];
            bytemuck::cast_slice_mut(values).copy_from_slice(bytes);
            *at += bytes.len() / 4;
        })?;
        Ok(weights)
    }
}

/// Allocates all parameters that decay, or all that do not: the embeddings first, then block by block, so that a
/// block's gradients are neighbours. Returns the buffers, each whole.
fn arena(
    gpu: &Gpu,
    label: &str,
    config: &Config,
    decays: bool,
    elem: Elem,
    tensors: &mut [Vec<Tensor>],
) -> Result<Vec<Tensor>> {
    let of = |per_layer| {
        PARAMS.iter().enumerate().filter(move |(_, p)| p.per_layer == per_layer && p.decays == decays).map(|(i, _)| i)
    };
    let order: Vec<usize> = of(false).chain((0..config.layers).flat_map(|_| of(true))).collect();
    let shapes: Vec<[usize; 2]> = order.iter().map(|&i| (PARAMS[i].shape)(config)).collect();
    let (members, buffers) = gpu.arena(label, &shapes, elem)?;
    for (i, tensor) in order.into_iter().zip(members) {
        tensors[i].push(tensor);
    }
    Ok(buffers)
}

/// Flat windows of a buffer that can be bound, the same elements whatever their type: counted as rows of 128 elements,
/// 256 bytes of f16.
fn cut(gpu: &Gpu, whole: &Tensor) -> Vec<Tensor> {
    let ranges = row_windows(whole.len() / 128, 512, gpu.caps.max_binding_bytes);
    ranges.into_iter().map(|r| whole.flat(r.start * 128..r.end * 128)).collect()
}

/// Bytes of a chunk of logits at most: large enough for an efficient product, far below a batch's logits.
const LOGITS_BYTES: u64 = 256 << 20;

/// What the forward pass keeps of one block. N = B T rows; `ln1`, `qkv`, `atty`, `ln2`, `fch` and `fch_gelu` are f16 in
/// mixed precision.
#[derive(Debug, Clone)]
pub struct Block {
    /// (N, C).
    pub ln1: Tensor,
    /// (N, 1).
    pub ln1_mean: Tensor,
    /// (N, 1).
    pub ln1_rstd: Tensor,
    /// (N, 3 C).
    pub qkv: Tensor,
    /// (N, C).
    pub atty: Tensor,
    /// (B NH, T): log-sum-exp of the attention scores.
    pub lse: Tensor,
    /// (N, C).
    pub residual2: Tensor,
    /// (N, C).
    pub ln2: Tensor,
    /// (N, 1).
    pub ln2_mean: Tensor,
    /// (N, 1).
    pub ln2_rstd: Tensor,
    /// (N, 4 C).
    pub fch: Tensor,
    /// (N, 4 C).
    pub fch_gelu: Tensor,
    /// (N, C).
    pub residual3: Tensor,
}

/// What the forward pass makes, for a batch of B sequences of T tokens; N = B T.
#[derive(Debug)]
pub struct Activations {
    /// B.
    pub batch: usize,
    /// T.
    pub positions: usize,
    /// (N, 1) u32.
    pub tokens: Tensor,
    /// (N, 1) u32.
    pub targets: Tensor,
    /// (N, C).
    pub encoded: Tensor,
    /// Block by block.
    pub blocks: Vec<Block>,
    /// (N, C).
    pub lnf: Tensor,
    /// (N, 1).
    pub lnf_mean: Tensor,
    /// (N, 1).
    pub lnf_rstd: Tensor,
    /// (chunk, Vp): the logits of a chunk of rows, then their gradient.
    pub logits: Tensor,
    /// (N, 1).
    pub losses: Tensor,
}

impl Activations {
    /// Allocates for B sequences of T tokens. What matrix products and attention read and write is stored as `elem`, f32
    /// or f16; the residual stream, statistics and losses are f32.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn new(gpu: &Gpu, config: &Config, batch: usize, positions: usize, elem: Elem) -> Result<Self> {
        let (n, c) = (batch * positions, config.channels);
        let stored = |label: &str, rows: usize, columns: usize| gpu.tensor(label, rows, columns, elem);
        let f32 = |label: &str, rows: usize, columns: usize| gpu.tensor(label, rows, columns, Elem::F32);
        let u32 = |label: &str| gpu.tensor(label, n, 1, Elem::U32);
        let blocks = (0..config.layers)
            .map(|_| {
                Ok(Block {
                    ln1: stored("activations: ln1", n, c)?,
                    ln1_mean: f32("activations: statistics", n, 1)?,
                    ln1_rstd: f32("activations: statistics", n, 1)?,
                    qkv: stored("activations: qkv", n, 3 * c)?,
                    atty: stored("activations: atty", n, c)?,
                    lse: f32("activations: statistics", batch * config.heads, positions)?,
                    residual2: f32("activations: residual2", n, c)?,
                    ln2: stored("activations: ln2", n, c)?,
                    ln2_mean: f32("activations: statistics", n, 1)?,
                    ln2_rstd: f32("activations: statistics", n, 1)?,
                    fch: stored("activations: fch", n, 4 * c)?,
                    fch_gelu: stored("activations: fch_gelu", n, 4 * c)?,
                    residual3: f32("activations: residual3", n, c)?,
                })
            })
            .collect::<Result<_>>()?;
        let vp = config.padded_vocab();
        Ok(Self {
            batch,
            positions,
            tokens: u32("tokens")?,
            targets: u32("tokens")?,
            encoded: f32("activations: encoded", n, c)?,
            blocks,
            lnf: stored("activations: lnf", n, c)?,
            lnf_mean: f32("activations: statistics", n, 1)?,
            lnf_rstd: f32("activations: statistics", n, 1)?,
            logits: stored("logits chunk", logits_rows(gpu, n, vp, elem), vp)?,
            losses: f32("losses", n, 1)?,
        })
    }

    /// The same of f32 for the forward pass alone: all blocks share one block's tensors, but for `qkv` if `keep_qkv`, so that a
    /// sequence can be gone on with. At most `logits_rows` rows of logits are held.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn inference(
        gpu: &Gpu,
        config: &Config,
        [batch, positions]: [usize; 2],
        keep_qkv: bool,
        logits_rows: usize,
    ) -> Result<Self> {
        let (n, c, vp) = (batch * positions, config.channels, config.padded_vocab());
        let f32 = |label: &str, rows: usize, columns: usize| gpu.tensor(label, rows, columns, Elem::F32);
        let u32 = |label: &str| gpu.tensor(label, n, 1, Elem::U32);
        let statistics = f32("activations: statistics", n, 1)?;
        let [normed, stream] = [f32("activations: ln", n, c)?, f32("activations: residual", n, c)?];
        let shared = Block {
            ln1: normed.clone(),
            ln1_mean: statistics.clone(),
            ln1_rstd: f32("activations: statistics", n, 1)?,
            qkv: f32("activations: qkv", n, 3 * c)?,
            atty: f32("activations: atty", n, c)?,
            lse: f32("activations: statistics", batch * config.heads, positions)?,
            residual2: f32("activations: residual", n, c)?,
            ln2: normed.clone(),
            ln2_mean: statistics.clone(),
            ln2_rstd: f32("activations: statistics", n, 1)?,
            fch: f32("activations: fch", n, 4 * c)?,
            fch_gelu: f32("activations: fch_gelu", n, 4 * c)?,
            residual3: stream.clone(),
        };
        let blocks = (0..config.layers)
            .map(|l| {
                let own = keep_qkv && l > 0;
                Ok(Block {
                    qkv: if own { f32("activations: qkv", n, 3 * c)? } else { shared.qkv.clone() },
                    ..shared.clone()
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            batch,
            positions,
            tokens: u32("tokens")?,
            targets: u32("tokens")?,
            encoded: stream,
            blocks,
            lnf: normed,
            lnf_mean: statistics,
            lnf_rstd: f32("activations: statistics", n, 1)?,
            logits: f32("logits chunk", self::logits_rows(gpu, n, vp, Elem::F32).min(logits_rows), vp)?,
            losses: f32("losses", n, 1)?,
        })
    }

    /// The first B sequences of T tokens of these activations, for a smaller batch in the same memory.
    ///
    /// # Panics
    /// If that is more than there is room for.
    #[must_use]
    pub fn shrink(&self, config: &Config, batch: usize, positions: usize) -> Self {
        let n = batch * positions;
        let rows = |tensor: &Tensor| tensor.slice(0..n);
        let blocks = self.blocks.iter().map(|b| Block {
            ln1: rows(&b.ln1),
            ln1_mean: rows(&b.ln1_mean),
            ln1_rstd: rows(&b.ln1_rstd),
            qkv: rows(&b.qkv),
            atty: rows(&b.atty),
            lse: b.lse.reshape(batch * config.heads, positions),
            residual2: rows(&b.residual2),
            ln2: rows(&b.ln2),
            ln2_mean: rows(&b.ln2_mean),
            ln2_rstd: rows(&b.ln2_rstd),
            fch: rows(&b.fch),
            fch_gelu: rows(&b.fch_gelu),
            residual3: rows(&b.residual3),
        });
        Self {
            batch,
            positions,
            tokens: rows(&self.tokens),
            targets: rows(&self.targets),
            encoded: rows(&self.encoded),
            blocks: blocks.collect(),
            lnf: rows(&self.lnf),
            lnf_mean: rows(&self.lnf_mean),
            lnf_rstd: rows(&self.lnf_rstd),
            logits: self.logits.slice(0..self.logits.rows().min(n)),
            losses: rows(&self.losses),
        }
    }

    /// B T.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.batch * self.positions
    }

    /// What comes out of the last block.
    #[must_use]
    pub fn last(&self) -> &Tensor {
        self.blocks.last().map_or(&self.encoded, |block| &block.residual3)
    }
}

/// Rows of a chunk of logits: a multiple of 64 within one binding and the budget, or all N.
#[must_use]
pub fn logits_rows(gpu: &Gpu, n: usize, vp: usize, elem: Elem) -> usize {
    let limit = LOGITS_BYTES.min(gpu.caps.max_binding_bytes);
    row_windows(n, vp as u64 * elem.bytes(), limit).first().map_or(n, std::ops::Range::len)
}

/// Gradients of activations and the scratch of the backward pass, shared by all blocks. `dbranch`, `dqkv` and `dfch` are
/// f16 in mixed precision.
#[derive(Debug)]
pub struct Backward {
    /// (N, C): the gradient of the residual stream.
    pub dresidual: Tensor,
    /// (N, C) of f16 in mixed precision: what the matrix products read of it.
    pub dresidual_copy: Option<Tensor>,
    /// (N, C): the gradient of a layernorm's output, or of attention's.
    pub dbranch: Tensor,
    /// (N, 3 C).
    pub dqkv: Tensor,
    /// (N, 4 C).
    pub dfch: Tensor,
    /// (B NH, T): attention's row sums.
    pub delta: Tensor,
    /// Partial sums of bias and layernorm gradients.
    pub scratch: Tensor,
    /// Partial sums of the weights' gradients, where kernels sum in parts.
    pub partials: Option<Tensor>,
}

impl Backward {
    /// Allocates for B sequences of T tokens; `elem` as for [`Activations::new`].
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn new(gpu: &Gpu, config: &Config, batch: usize, positions: usize, elem: Elem) -> Result<Self> {
        let (n, c) = (batch * positions, config.channels);
        let f32 = |rows: usize, columns: usize| gpu.tensor("gradients of activations", rows, columns, Elem::F32);
        let stored = |rows: usize, columns: usize| gpu.tensor("gradients of activations", rows, columns, elem);
        let vp = config.padded_vocab();
        let chunk = logits_rows(gpu, n, vp, elem);
        let parts = [(n, 3 * c, c), (n, c, c), (n, 4 * c, c), (n, c, 4 * c), (chunk, vp, c)]
            .map(|(rows, out, inp)| matmul::partials(&gpu.caps, elem, rows, out, inp))
            .into_iter()
            .max()
            .filter(|most| *most > 0);
        let scratch_rows = layernorm::SCRATCH_ROWS.max(4 * bias::BLOCKS);
        Ok(Self {
            dresidual: f32(n, c)?,
            dresidual_copy: if elem == Elem::F16 { Some(stored(n, c)?) } else { None },
            dbranch: stored(n, c)?,
            dqkv: stored(n, 3 * c)?,
            dfch: stored(n, 4 * c)?,
            delta: f32(batch * config.heads, positions)?,
            scratch: f32(scratch_rows, c)?,
            partials: parts.map(|most| gpu.tensor("partial sums", 1, most, Elem::F32)).transpose()?,
        })
    }

    /// The gradient of the residual stream as matrix products read it.
    #[must_use]
    pub fn dresidual_operand(&self) -> &Tensor {
        self.dresidual_copy.as_ref().unwrap_or(&self.dresidual)
    }
}
