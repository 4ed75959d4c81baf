//! GPT-2 backward: one line an operator, the forward's order reversed. Parameter gradients accumulate.

use crate::error::Result;
use crate::gpu::{Pass, Tensor};
use crate::ops::{attention, bias, crossentropy, embedding, gelu, layernorm, matmul};

use super::config::Config;
use super::tensors::{Activations, Backward, Params};

/// From `lnf` to `losses`, `d.dbranch` (the gradient of `lnf`) and the head's part of `grads.wte`, a chunk of logits
/// at a time: the logits of a batch never exist as a whole. `scale` is 1 / tokens of a step.
///
/// # Errors
/// [`crate::error::Error::Gpu`] if a kernel cannot be built or bound.
pub fn head(
    pass: &mut Pass,
    config: &Config,
    p: &Params,
    grads: &Params,
    a: &Activations,
    d: &Backward,
    scale: f32,
) -> Result<()> {
    pass.at("head");
    for start in (0..a.rows()).step_by(a.logits.rows()) {
        let rows = start..(start + a.logits.rows()).min(a.rows());
        let logits = a.logits.slice(0..rows.len());
        let (lnf, dlnf) = (a.lnf.slice(rows.clone()), d.dbranch.slice(rows.clone()));
        matmul::forward(pass, matmul::Forward { inp: &lnf, weight: p.get("wte", 0), bias: None, out: &logits })?;
        let (targets, losses) = (a.targets.slice(rows.clone()), a.losses.slice(rows));
        let io = crossentropy::Forward { logits: &logits, targets: &targets, losses: &losses, vocab: config.vocab };
        crossentropy::forward_backward(pass, &io, scale)?;
        matmul::backward_inp(pass, matmul::BackwardInp { dout: &logits, weight: p.get("wte", 0), dinp: &dlnf })?;
        matmul::backward_weight(
            pass,
            matmul::BackwardWeight { dout: &logits, inp: &lnf, dweight: grads.get("wte", 0) },
        )?;
    }
    Ok(())
}

/// From `d.dbranch` to all other gradients.
///
/// # Errors
/// [`crate::error::Error::Gpu`] if a kernel cannot be built or bound.
pub fn body(
    pass: &mut Pass,
    config: &Config,
    p: &Params,
    grads: &Params,
    a: &Activations,
    d: &Backward,
    buckets: &embedding::Buckets,
) -> Result<()> {
    let shape = attention::Shape { batch: a.batch, positions: a.positions, heads: config.heads };
    pass.at("final");
    pass.clear(&d.dresidual);
    let statistics = (&a.lnf_mean, &a.lnf_rstd);
    norm(pass, d, a.last(), statistics, p.get("lnfw", 0), (grads.get("lnfw", 0), grads.get("lnfb", 0)))?;
    for (l, b) in a.blocks.iter().enumerate().rev() {
        pass.at(format!("h.{l}"));
        let inp = if l == 0 { &a.encoded } else { &a.blocks[l - 1].residual3 };
        let w = |name| p.get(name, l);
        let dw = |name| grads.get(name, l);
        linear(pass, d, &d.dresidual, &b.fch_gelu, w("fcprojw"), (dw("fcprojw"), dw("fcprojb")), &d.dfch)?;
        gelu::backward(pass, gelu::Backward { inp: &b.fch, dout: &d.dfch })?;
        linear(pass, d, &d.dfch, &b.ln2, w("fcw"), (dw("fcw"), dw("fcb")), &d.dbranch)?;
        norm(pass, d, &b.residual2, (&b.ln2_mean, &b.ln2_rstd), w("ln2w"), (dw("ln2w"), dw("ln2b")))?;
        linear(pass, d, &d.dresidual, &b.atty, w("attprojw"), (dw("attprojw"), dw("attprojb")), &d.dbranch)?;
        attention::backward(
            pass,
            attention::Backward {
                shape,
                dout: &d.dbranch,
                qkv: &b.qkv,
                out: &b.atty,
                lse: &b.lse,
                delta: &d.delta,
                dqkv: &d.dqkv,
            },
        )?;
        linear(pass, d, &d.dqkv, &b.ln1, w("qkvw"), (dw("qkvw"), dw("qkvb")), &d.dbranch)?;
        norm(pass, d, inp, (&b.ln1_mean, &b.ln1_rstd), w("ln1w"), (dw("ln1w"), dw("ln1b")))?;
    }
    pass.at("embedding");
    embedding::backward(
        pass,
        embedding::Backward {
            buckets,
            dout: &d.dresidual,
            dwte: grads.get("wte", 0),
            dwpe: grads.get("wpe", 0),
            positions: a.positions,
        },
    )
}

/// A linear layer: `dinp` overwritten, `dweight` and `dbias` accumulated.
fn linear(
    pass: &mut Pass,
    d: &Backward,
    dout: &Tensor,
    inp: &Tensor,
    weight: &Tensor,
    (dweight, dbias): (&Tensor, &Tensor),
    dinp: &Tensor,
) -> Result<()> {
    matmul::backward_inp(pass, matmul::BackwardInp { dout, weight, dinp })?;
    matmul::backward_weight(pass, matmul::BackwardWeight { dout, inp, dweight })?;
    bias::backward(pass, bias::Backward { dout, dbias, scratch: &d.scratch })
}

/// A layernorm whose output's gradient is `d.dbranch`: `d.dresidual`, `dweight` and `dbias` accumulated.
fn norm(
    pass: &mut Pass,
    d: &Backward,
    inp: &Tensor,
    (mean, rstd): (&Tensor, &Tensor),
    weight: &Tensor,
    (dweight, dbias): (&Tensor, &Tensor),
) -> Result<()> {
    let io = layernorm::Backward {
        dout: &d.dbranch,
        inp,
        weight,
        mean,
        rstd,
        dinp: &d.dresidual,
        dweight,
        dbias,
        scratch: &d.scratch,
    };
    layernorm::backward(pass, io)
}
