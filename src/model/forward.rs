//! GPT-2 forward: one line per operator, for whole sequences or for one position after kept ones.

use crate::error::Result;
use crate::gpu::{Pass, Tensor};
use crate::ops::{attention, crossentropy, embedding, layernorm, matmul};

use super::activations::{Activations, BlockActivations};
use super::config::Config;
use super::place;
use super::tensors::Params;

/// Records the forward pass from `tokens` to `lnf`, for whole sequences.
///
/// # Errors
/// [`crate::error::Error::Gpu`] if a kernel cannot be built or bound.
pub fn body(pass: &mut Pass, config: &Config, p: &Params, a: &Activations) -> Result<()> {
    let shape = attention::AttentionSizes { batch: a.batch, positions: a.positions, heads: config.heads };
    pass.at(place::EMBEDDING);
    embedding::forward(
        pass,
        embedding::Forward {
            tokens: &a.tokens,
            wte: p.get("wte", 0),
            wpe: p.get("wpe", 0),
            out: &a.encoded,
            positions: a.positions,
        },
    )?;
    blocks(pass, p, a, |pass, _, b| attend_sequence(pass, shape, b))
}

/// Records the forward pass from `tokens` to `lnf` for one position, `at` (1, 1) u32. The blocks of `kept` hold the
/// `qkv` of all earlier positions; the keys and values of the new position are added to them.
///
/// # Errors
/// [`crate::error::Error::Gpu`] if a kernel cannot be built or bound.
pub fn decode_one(
    pass: &mut Pass,
    config: &Config,
    p: &Params,
    a: &Activations,
    at: &Tensor,
    kept: &Activations,
) -> Result<()> {
    pass.at(place::EMBEDDING);
    let (wte, wpe) = (p.get("wte", 0), p.get("wpe", 0));
    let io = embedding::Forward { tokens: &a.tokens, wte, wpe, out: &a.encoded, positions: kept.positions };
    embedding::forward_at(pass, io, at)?;
    blocks(pass, p, a, |pass, l, b| {
        let (heads, cache) = (config.heads, &kept.blocks[l].qkv);
        attention::step(pass, attention::Step { heads, qkv: &b.qkv, at, cache, out: &b.atty })
    })
}

/// Records all blocks and the last norm, from `encoded` to `lnf`. `attend` computes a block's `atty` from its `qkv`.
fn blocks(
    pass: &mut Pass,
    p: &Params,
    a: &Activations,
    attend: impl Fn(&mut Pass, usize, &BlockActivations) -> Result<()>,
) -> Result<()> {
    let mut inp = &a.encoded;
    for (l, b) in a.blocks.iter().enumerate() {
        pass.at(place::block(l));
        block_until_fch_gelu(pass, p, (l, b), inp, &attend)?;
        let fcproj = linear(p, l, &b.fch_gelu, ("fcprojw", "fcprojb"), &b.residual3);
        matmul::forward_residual(pass, fcproj, &b.residual2)?;
        inp = &b.residual3;
    }
    pass.at(place::FINAL);
    norm(pass, inp, p.get("lnfw", 0), p.get("lnfb", 0), [&a.lnf_xhat, &a.lnf, &a.lnf_rstd])
}

/// Records a block from its input to its `fch_gelu`.
fn block_until_fch_gelu(
    pass: &mut Pass,
    p: &Params,
    (l, b): (usize, &BlockActivations),
    inp: &Tensor,
    attend: impl Fn(&mut Pass, usize, &BlockActivations) -> Result<()>,
) -> Result<()> {
    let w = |name| p.get(name, l);
    norm(pass, inp, w("ln1w"), w("ln1b"), [&b.ln1_xhat, &b.ln1, &b.ln1_rstd])?;
    matmul::forward(pass, linear(p, l, &b.ln1, ("qkvw", "qkvb"), &b.qkv))?;
    attend(pass, l, b)?;
    matmul::forward_residual(pass, linear(p, l, &b.atty, ("attprojw", "attprojb"), &b.residual2), inp)?;
    norm(pass, &b.residual2, w("ln2w"), w("ln2b"), [&b.ln2_xhat, &b.ln2, &b.ln2_rstd])?;
    matmul::forward_gelu(pass, linear(p, l, &b.ln2, ("fcw", "fcb"), &b.fch), &b.fch_gelu)
}

/// Computes block `l` again for the backward pass, from its input to its `fch_gelu`, with the same kernels and so the
/// same bits.
///
/// # Errors
/// [`crate::error::Error::Gpu`] if a kernel cannot be built or bound.
pub fn recompute_block(
    pass: &mut Pass,
    shape: attention::AttentionSizes,
    p: &Params,
    (l, b): (usize, &BlockActivations),
    inp: &Tensor,
) -> Result<()> {
    block_until_fch_gelu(pass, p, (l, b), inp, |pass, _, b| attend_sequence(pass, shape, b))
}

/// Records attention over whole sequences.
fn attend_sequence(pass: &mut Pass, shape: attention::AttentionSizes, b: &BlockActivations) -> Result<()> {
    attention::forward(pass, attention::Forward { shape, qkv: &b.qkv, out: &b.atty, lse: &b.lse })
}

fn linear<'a>(
    p: &'a Params,
    l: usize,
    inp: &'a Tensor,
    (weight, bias): (&str, &str),
    out: &'a Tensor,
) -> matmul::Forward<'a> {
    matmul::Forward { inp, weight: p.matrix(weight, l), bias: Some(p.get(bias, l)), out }
}

/// Records the head and the losses, from `lnf` to `losses`, one chunk of logits at a time.
///
/// # Errors
/// [`crate::error::Error::Gpu`] if a kernel cannot be built or bound.
pub fn losses(pass: &mut Pass, config: &Config, p: &Params, a: &Activations) -> Result<()> {
    pass.at(place::HEAD);
    for start in (0..a.rows()).step_by(a.logits.rows()) {
        let rows = start..(start + a.logits.rows()).min(a.rows());
        let logits = a.logits.slice(0..rows.len());
        let lnf = a.lnf.slice(rows.clone());
        matmul::forward(pass, matmul::Forward { inp: &lnf, weight: p.matrix("wte", 0), bias: None, out: &logits })?;
        let (targets, losses) = (a.targets.slice(rows.clone()), a.losses.slice(rows));
        let io = crossentropy::Forward { logits: &logits, targets: &targets, losses: &losses, vocab: config.vocab };
        crossentropy::forward(pass, &io)?;
    }
    Ok(())
}

fn norm(pass: &mut Pass, inp: &Tensor, weight: &Tensor, bias: &Tensor, [xhat, out, rstd]: [&Tensor; 3]) -> Result<()> {
    layernorm::forward(pass, layernorm::Forward { inp, weight, bias, xhat, out, rstd })
}
