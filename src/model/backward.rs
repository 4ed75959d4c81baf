//! GPT-2 backward: one line an operator, the forward's order reversed. Parameter gradients accumulate.

use crate::error::Result;
use crate::gpu::{Pass, Tensor};
use crate::ops::{attention, bias, crossentropy, embedding, layernorm, matmul, stepcontrol};

use super::config::Config;
use super::tensors::{Activations, Backward, Params};

/// From `lnf` to `losses`, `d.dbranch` (the gradient of `lnf`) and the head's part of `grads.wte`, a chunk of logits
/// at a time: the logits of a batch never exist as a whole. Gradients are multiplied by `scale` and the loss scale of
/// `control`.
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
    (control, scale): (&stepcontrol::StepControl, f32),
) -> Result<()> {
    pass.at("head");
    for start in (0..a.rows()).step_by(a.logits.rows()) {
        let rows = start..(start + a.logits.rows()).min(a.rows());
        let logits = a.logits.slice(0..rows.len());
        let (lnf, dlnf) = (a.lnf.slice(rows.clone()), d.dbranch.slice(rows.clone()));
        matmul::forward(pass, matmul::Forward { inp: &lnf, weight: p.matrix("wte", 0), bias: None, out: &logits })?;
        let (targets, losses) = (a.targets.slice(rows.clone()), a.losses.slice(rows));
        let io = crossentropy::Forward { logits: &logits, targets: &targets, losses: &losses, vocab: config.vocab };
        crossentropy::forward_backward(pass, &io, control, scale)?;
        matmul::backward_inp(pass, matmul::BackwardInp { dout: &logits, weight: p.matrix("wte", 0), dinp: &dlnf })?;
        weight(pass, d, matmul::BackwardWeight { dout: &logits, inp: &lnf, dweight: grads.get("wte", 0) })?;
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
    let lnf = Norm { weight: p.get("lnfw", 0), dweight: grads.get("lnfw", 0), dbias: grads.get("lnfb", 0) };
    // the last projection before a norm gets its bias's gradient from there
    norm(pass, d, a.last(), statistics, lnf, config.layers.checked_sub(1).map(|last| grads.get("fcprojb", last)))?;
    for (l, b) in a.blocks.iter().enumerate().rev() {
        pass.at(format!("h.{l}"));
        let inp = if l == 0 { &a.encoded } else { &a.blocks[l - 1].residual3 };
        let w = |name| p.get(name, l);
        let dw = |name| grads.get(name, l);
        let m = |name| p.matrix(name, l);
        let dresidual = d.dresidual_operand();
        let fcproj = matmul::BackwardInp { dout: dresidual, weight: m("fcprojw"), dinp: &d.dfch };
        matmul::backward_inp_gelu(pass, fcproj, &b.fch)?;
        let fcprojw = matmul::BackwardWeight { dout: dresidual, inp: &b.fch_gelu, dweight: dw("fcprojw") };
        weight(pass, d, fcprojw)?;
        matmul::backward_inp(pass, matmul::BackwardInp { dout: &d.dfch, weight: m("fcw"), dinp: &d.dbranch })?;
        parameters(pass, d, &d.dfch, &b.ln2, (dw("fcw"), dw("fcb")))?;
        let ln2 = Norm { weight: w("ln2w"), dweight: dw("ln2w"), dbias: dw("ln2b") };
        norm(pass, d, &b.residual2, (&b.ln2_mean, &b.ln2_rstd), ln2, Some(dw("attprojb")))?;
        matmul::backward_inp(pass, matmul::BackwardInp { dout: dresidual, weight: m("attprojw"), dinp: &d.dbranch })?;
        weight(pass, d, matmul::BackwardWeight { dout: dresidual, inp: &b.atty, dweight: dw("attprojw") })?;
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
        matmul::backward_inp(pass, matmul::BackwardInp { dout: &d.dqkv, weight: m("qkvw"), dinp: &d.dbranch })?;
        parameters(pass, d, &d.dqkv, &b.ln1, (dw("qkvw"), dw("qkvb")))?;
        let ln1 = Norm { weight: w("ln1w"), dweight: dw("ln1w"), dbias: dw("ln1b") };
        let before = l.checked_sub(1).map(|before| grads.get("fcprojb", before));
        norm(pass, d, inp, (&b.ln1_mean, &b.ln1_rstd), ln1, before)?;
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

/// A linear layer's `dweight` and `dbias`, accumulated.
fn parameters(
    pass: &mut Pass,
    d: &Backward,
    dout: &Tensor,
    inp: &Tensor,
    (dweight, dbias): (&Tensor, &Tensor),
) -> Result<()> {
    let io = matmul::BackwardWeight { dout, inp, dweight };
    let scratch = &d.scratch;
    let with_bias = match &d.partials {
        Some(partials) => matmul::backward_weight_and_bias(pass, io, dbias, matmul::Room { partials, scratch })?,
        None => matmul::backward_weight(pass, io).map(|()| false)?,
    };
    if with_bias { Ok(()) } else { bias::backward(pass, bias::Backward { dout, dbias, scratch }) }
}

/// A weight's gradient, in parts where there is room for them.
fn weight(pass: &mut Pass, d: &Backward, io: matmul::BackwardWeight) -> Result<()> {
    match &d.partials {
        Some(partials) => matmul::backward_weight_in_parts(pass, io, partials),
        None => matmul::backward_weight(pass, io),
    }
}

/// A layernorm's weight and the gradients of its parameters.
struct Norm<'a> {
    weight: &'a Tensor,
    dweight: &'a Tensor,
    dbias: &'a Tensor,
}

/// A layernorm whose output's gradient is `d.dbranch`: `d.dresidual`, and accumulated the gradients of its parameters and
/// of the bias in `dsum`, which was added to its input last.
fn norm(
    pass: &mut Pass,
    d: &Backward,
    inp: &Tensor,
    (mean, rstd): (&Tensor, &Tensor),
    Norm { weight, dweight, dbias }: Norm,
    dsum: Option<&Tensor>,
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
        dsum,
        scratch: &d.scratch,
        copy: d.dresidual_copy.as_ref(),
    };
    layernorm::backward(pass, io)
}
