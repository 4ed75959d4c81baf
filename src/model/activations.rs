//! The tensors that the forward pass writes, the scratch of the backward pass, and which tensors are kept from one to
//! the other.

use std::str::FromStr;

use crate::error::{Error, Fault, Result};
use crate::gpu::tensor::row_windows;
use crate::gpu::{Caps, Elem, Gpu, Pool, Tensor};
use crate::ops::{bias, embedding, layernorm, matmul};

use super::config::Config;

/// Largest size in bytes of a chunk of logits, far below a batch's logits. Every chunk reads the embedding twice, and
/// reads and writes its gradient. Chunks of half the size would move 6 GB more in a step of 124M at batch 64.
const LOGITS_BYTES: u64 = 512 << 20;

/// The activations that the backward pass computes again instead of keeping them. Each level includes those before it.
/// The levels are llm.c's and one more. The gradients are bit-identical at all levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// GELU from its input.
    Gelu,
    /// Outputs of layernorms from the normalised inputs.
    Ln,
    /// All activations inside a block, from the block's input.
    Block,
}

impl Recompute {
    /// All levels with their names, from the lowest to the highest.
    pub const ALL: [(&'static str, Self); 4] =
        [("none", Self::None), ("gelu", Self::Gelu), ("ln", Self::Ln), ("block", Self::Block)];

    /// Returns the level's name: `none`, `gelu`, `ln` or `block`.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

impl std::fmt::Display for Recompute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Recompute {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text).map(|(_, level)| *level);
        let unknown =
            || Fault::at("recompute", "unknown level").expected("none, gelu, ln or block").found(format!("`{text}`"));
        found.ok_or_else(|| Error::usage(unknown()))
    }
}

/// The activations of one block; N = B T. All but statistics and the residual stream are f16 in mixed precision.
#[derive(Debug, Clone)]
pub struct BlockActivations {
    /// (N, C): the normalised input.
    pub ln1_xhat: Tensor,
    /// (N, C).
    pub ln1: Tensor,
    /// (N, 1).
    pub ln1_rstd: Tensor,
    /// (N, 3 C).
    pub qkv: Tensor,
    /// (N, C).
    pub atty: Tensor,
    /// (B NH, T): log-sum-exp of the attention scores.
    pub lse: Tensor,
    /// (N, C): the residual stream after attention.
    pub residual2: Tensor,
    /// (N, C): the normalised input.
    pub ln2_xhat: Tensor,
    /// (N, C).
    pub ln2: Tensor,
    /// (N, 1).
    pub ln2_rstd: Tensor,
    /// (N, 4 C).
    pub fch: Tensor,
    /// (N, 4 C).
    pub fch_gelu: Tensor,
    /// (N, C): the residual stream after the block.
    pub residual3: Tensor,
}

/// The sizes and the element type that determine the shapes of all activations.
#[derive(Debug, Clone, Copy)]
struct ActivationShape {
    /// B.
    batch: usize,
    /// T.
    positions: usize,
    /// C.
    channels: usize,
    /// NH.
    heads: usize,
    /// Element type of the tensors that matrix products and attention read and write.
    elem: Elem,
}

impl ActivationShape {
    fn new(config: &Config, [batch, positions]: [usize; 2], elem: Elem) -> Self {
        Self { batch, positions, channels: config.channels, heads: config.heads, elem }
    }

    /// Allocates a tensor (N, `factor` C) of the element type.
    fn stored(self, pool: &mut Pool, label: &str, factor: usize) -> Result<Tensor> {
        pool.tensor(label, self.batch * self.positions, factor * self.channels, self.elem)
    }

    /// Allocates a tensor (N, C) of f32 for the residual stream.
    fn residual(self, pool: &mut Pool) -> Result<Tensor> {
        pool.tensor("activations: residual", self.batch * self.positions, self.channels, Elem::F32)
    }

    /// Allocates a tensor (N, 1) of f32.
    fn column(self, pool: &mut Pool) -> Result<Tensor> {
        pool.tensor("activations: statistics", self.batch * self.positions, 1, Elem::F32)
    }

    /// Allocates a tensor (B NH, T) of f32.
    fn statistics(self, pool: &mut Pool) -> Result<Tensor> {
        pool.tensor("activations: statistics", self.batch * self.heads, self.positions, Elem::F32)
    }

    /// Allocates a block's tensors, except the residual stream after it.
    fn block(self, pool: &mut Pool, residual3: Tensor) -> Result<BlockActivations> {
        Ok(BlockActivations {
            ln1_xhat: self.stored(pool, "activations: ln1", 1)?,
            ln1: self.stored(pool, "activations: ln1", 1)?,
            ln1_rstd: self.column(pool)?,
            qkv: self.stored(pool, "activations: qkv", 3)?,
            atty: self.stored(pool, "activations: atty", 1)?,
            lse: self.statistics(pool)?,
            residual2: self.residual(pool)?,
            ln2_xhat: self.stored(pool, "activations: ln2", 1)?,
            ln2: self.stored(pool, "activations: ln2", 1)?,
            ln2_rstd: self.column(pool)?,
            fch: self.stored(pool, "activations: fch", 4)?,
            fch_gelu: self.stored(pool, "activations: fch_gelu", 4)?,
            residual3,
        })
    }
}

/// The activations of the forward pass, for a batch of B sequences of T tokens; N = B T.
#[derive(Debug)]
pub struct Activations {
    /// B.
    pub batch: usize,
    /// T.
    pub positions: usize,
    /// The activations that are no longer stored when the backward pass needs them.
    pub recompute: Recompute,
    /// (N, 1) u32.
    pub tokens: Tensor,
    /// (N, 1) u32.
    pub targets: Tensor,
    /// (N, C).
    pub encoded: Tensor,
    /// Activations of each block.
    pub blocks: Vec<BlockActivations>,
    /// (N, C): the normalised input.
    pub lnf_xhat: Tensor,
    /// (N, C).
    pub lnf: Tensor,
    /// (N, 1).
    pub lnf_rstd: Tensor,
    /// (chunk, Vp): the logits of a chunk of rows, then their gradient.
    pub logits: Tensor,
    /// (N, 1).
    pub losses: Tensor,
}

impl Activations {
    /// Allocates the activations for B sequences of T tokens. Tensors that matrix products and attention read and write
    /// are stored as `elem`, f32 or f16; the residual stream, statistics and losses are f32. Tokens and losses have
    /// their own buffers; all other tensors come from the pool.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn new(
        pool: &mut Pool,
        config: &Config,
        [batch, positions]: [usize; 2],
        elem: Elem,
        recompute: Recompute,
    ) -> Result<Self> {
        let gpu = pool.gpu();
        let shape = ActivationShape::new(config, [batch, positions], elem);
        let (n, vp) = (batch * positions, config.padded_vocab());
        let chunk = logits_rows(&gpu.caps, n, vp, elem);
        let residual3 = (0..config.layers).map(|_| shape.residual(pool)).collect::<Result<Vec<_>>>()?;
        let blocks = residual3.into_iter().map(|out| shape.block(pool, out)).collect::<Result<_>>()?;
        Ok(Self {
            batch,
            positions,
            recompute,
            tokens: gpu.tensor("tokens", n, 1, Elem::U32)?,
            targets: gpu.tensor("tokens", n, 1, Elem::U32)?,
            encoded: shape.residual(pool)?,
            blocks,
            lnf_xhat: shape.stored(pool, "activations: lnf", 1)?,
            lnf: shape.stored(pool, "activations: lnf", 1)?,
            lnf_rstd: shape.column(pool)?,
            logits: pool.owner(LOGITS_LABEL, chunk, vp, elem)?,
            losses: gpu.tensor("losses", n, 1, Elem::F32)?,
        })
    }

    /// Allocates activations of f32 for the forward pass alone. All blocks share one block's tensors. With `keep_qkv`
    /// each block has its own `qkv`, so that a sequence can be continued. At most `logits_rows` rows of logits are
    /// held.
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
        let (n, vp) = (batch * positions, config.padded_vocab());
        let (shape, pool) = (ActivationShape::new(config, [batch, positions], Elem::F32), &mut Pool::separate(gpu));
        let residual3 = shape.residual(pool)?;
        let shared = shape.block(pool, residual3)?;
        // the second norm can reuse the first norm's tensors, which nothing reads any more
        let (ln2_xhat, ln2, ln2_rstd) = (shared.ln1_xhat.clone(), shared.ln1.clone(), shared.ln1_rstd.clone());
        let shared = BlockActivations { ln2_xhat, ln2, ln2_rstd, ..shared };
        let blocks = (0..config.layers)
            .map(|l| {
                let own = keep_qkv && l > 0;
                let qkv = if own { shape.stored(pool, "activations: qkv", 3)? } else { shared.qkv.clone() };
                Ok(BlockActivations { qkv, ..shared.clone() })
            })
            .collect::<Result<_>>()?;
        let chunk = self::logits_rows(&gpu.caps, n, vp, Elem::F32).min(logits_rows);
        Ok(Self {
            batch,
            positions,
            recompute: if keep_qkv { Recompute::None } else { Recompute::Block },
            tokens: gpu.tensor("tokens", n, 1, Elem::U32)?,
            targets: gpu.tensor("tokens", n, 1, Elem::U32)?,
            encoded: shared.residual3,
            blocks,
            lnf_xhat: shared.ln1_xhat,
            lnf: shared.ln1,
            lnf_rstd: shared.ln1_rstd,
            logits: gpu.tensor(LOGITS_LABEL, chunk, vp, Elem::F32)?,
            losses: gpu.tensor("losses", n, 1, Elem::F32)?,
        })
    }

    /// Returns activations for a smaller batch of B sequences of T tokens, in the same memory.
    ///
    /// # Panics
    /// If the batch is larger than that of these activations.
    #[must_use]
    pub fn shrink(&self, config: &Config, batch: usize, positions: usize) -> Self {
        let n = batch * positions;
        let rows = |tensor: &Tensor| tensor.slice(0..n);
        let blocks = self.blocks.iter().map(|b| BlockActivations {
            ln1_xhat: rows(&b.ln1_xhat),
            ln1: rows(&b.ln1),
            ln1_rstd: rows(&b.ln1_rstd),
            qkv: rows(&b.qkv),
            atty: rows(&b.atty),
            lse: b.lse.reshape(batch * config.heads, positions),
            residual2: rows(&b.residual2),
            ln2_xhat: rows(&b.ln2_xhat),
            ln2: rows(&b.ln2),
            ln2_rstd: rows(&b.ln2_rstd),
            fch: rows(&b.fch),
            fch_gelu: rows(&b.fch_gelu),
            residual3: rows(&b.residual3),
        });
        Self {
            batch,
            positions,
            recompute: self.recompute,
            tokens: rows(&self.tokens),
            targets: rows(&self.targets),
            encoded: rows(&self.encoded),
            blocks: blocks.collect(),
            lnf_xhat: rows(&self.lnf_xhat),
            lnf: rows(&self.lnf),
            lnf_rstd: rows(&self.lnf_rstd),
            logits: self.logits.slice(0..self.logits.rows().min(n)),
            losses: rows(&self.losses),
        }
    }

    /// Returns N = B T.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.batch * self.positions
    }

    /// Returns whether each block's keys and values are still stored after the forward pass.
    #[must_use]
    pub fn holds_keys(&self) -> bool {
        self.recompute < Recompute::Block
    }
}

/// Label of the logits' buffer in memory tables.
pub const LOGITS_LABEL: &str = "logits chunk";

/// Returns the rows of a chunk of logits: a multiple of 64 that fits one binding and the budget, or all N.
#[must_use]
pub fn logits_rows(caps: &Caps, n: usize, vp: usize, elem: Elem) -> usize {
    let limit = LOGITS_BYTES.min(caps.window_bytes());
    row_windows(n, vp as u64 * elem.bytes(), limit).first().map_or(n, std::ops::Range::len)
}

/// The tensors of one block's backward pass: the activations that it reads, and its gradients. All gradients are f16 in
/// mixed precision; `delta` is f32.
#[derive(Debug)]
pub struct BlockBackwardBuffers {
    /// Activations of the forward pass: kept ones, or memory to compute them again.
    pub forward: BlockActivations,
    /// (N, 4 C).
    pub dfch: Tensor,
    /// (N, C).
    pub dln2: Tensor,
    /// (N, C).
    pub datty: Tensor,
    /// (B NH, T): the row sums of `dout out` in attention's backward pass.
    pub delta: Tensor,
    /// (N, 3 C).
    pub dqkv: Tensor,
    /// (N, C).
    pub dln1: Tensor,
}

/// Gradients of activations and the scratch of the backward pass.
#[derive(Debug)]
pub struct BackwardBuffers {
    /// (N, C), f16 in mixed precision: the gradient of the residual stream.
    pub dresidual: Tensor,
    /// (N, C) of f32, only in mixed precision: the gradient of the residual stream at the embedding, where it is
    /// largest and would be the first to overflow.
    pub dencoded: Option<Tensor>,
    /// (N, C), f16 in mixed precision.
    pub dlnf: Tensor,
    /// Tensors of each block.
    pub blocks: Vec<BlockBackwardBuffers>,
    /// Partial sums of bias, layernorm and embedding gradients.
    pub scratch: Tensor,
    /// Partial sums of the weights' gradients, where kernels sum in parts.
    pub partials: Option<Tensor>,
    /// Sums of squares of those weights' gradients that are summed in parts.
    pub squares: Tensor,
}

impl BackwardBuffers {
    /// Returns the largest number of partial sums that a product writes for a weight's gradient, or 0 where kernels do
    /// not sum in parts.
    #[must_use]
    pub fn partials(caps: &Caps, config: &Config, acts: &Activations) -> usize {
        let (n, c, vp) = (acts.rows(), config.channels, config.padded_vocab());
        [(n, 3 * c, c), (n, c, c), (n, 4 * c, c), (n, c, 4 * c), (acts.logits.rows(), vp, c)]
            .map(|(rows, out, inp)| matmul::partial_sums_len(caps, acts.lnf.elem(), rows, out, inp))
            .into_iter()
            .max()
            .unwrap_or(0)
    }

    /// Allocates the backward pass for activations that [`Activations::new`] made with the same model and pool. Sums of
    /// squares of gradients go to `squares`.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn new(pool: &mut Pool, config: &Config, acts: &Activations, squares: Tensor) -> Result<Self> {
        let elem = acts.lnf.elem();
        let shape = ActivationShape::new(config, [acts.batch, acts.positions], elem);
        let (n, c) = (acts.rows(), config.channels);
        let parts = Some(Self::partials(&pool.gpu().caps, config, acts)).filter(|most| *most > 0);
        let label = "gradients of activations";
        let blocks = acts.blocks.iter().map(|block| {
            Ok(BlockBackwardBuffers {
                forward: Self::kept(pool, shape, block, acts.recompute)?,
                dfch: shape.stored(pool, label, 4)?,
                dln2: shape.stored(pool, label, 1)?,
                datty: shape.stored(pool, label, 1)?,
                delta: shape.statistics(pool)?,
                dqkv: shape.stored(pool, label, 3)?,
                dln1: shape.stored(pool, label, 1)?,
            })
        });
        let blocks = blocks.collect::<Result<_>>()?;
        let scratch_rows = layernorm::scratch_rows(n).max(4 * bias::BLOCKS).max(embedding::scratch_rows(n));
        Ok(Self {
            dresidual: shape.stored(pool, label, 1)?,
            dencoded: (elem == Elem::F16).then(|| pool.tensor(label, n, c, Elem::F32)).transpose()?,
            dlnf: shape.stored(pool, label, 1)?,
            blocks,
            scratch: pool.tensor("partial sums", scratch_rows, c, Elem::F32)?,
            partials: parts.map(|most| pool.tensor("partial sums", 1, most, Elem::F32)).transpose()?,
            squares,
        })
    }

    /// Returns a block's activations for the backward pass: those of the forward pass where they are kept, else new
    /// tensors.
    fn kept(
        pool: &mut Pool,
        shape: ActivationShape,
        block: &BlockActivations,
        recompute: Recompute,
    ) -> Result<BlockActivations> {
        let mut kept = match recompute {
            Recompute::Block => shape.block(pool, block.residual3.clone())?,
            _ => block.clone(),
        };
        if recompute == Recompute::Gelu || recompute == Recompute::Ln {
            kept.fch_gelu = shape.stored(pool, "activations: fch_gelu", 4)?;
        }
        if recompute == Recompute::Ln {
            kept.ln1 = shape.stored(pool, "activations: ln1", 1)?;
            kept.ln2 = shape.stored(pool, "activations: ln2", 1)?;
        }
        Ok(kept)
    }
}
