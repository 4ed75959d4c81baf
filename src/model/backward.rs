//! GPT-2 backward: one line per operator, in the reverse order of the forward pass. Parameter gradients accumulate.

use crate::error::Result;
use crate::gpu::{Pass, Tensor};
use crate::ops::sums::{PartialsMemory, SquaredGradients, Sums};
use crate::ops::{attention, bias, crossentropy, embedding, gelu, layernorm, matmul, stepcontrol};

use super::activations::{Activations, BackwardBuffers, BlockBackwardBuffers, Recompute};
use super::config::Config;
use super::forward;
use super::place;
use super::tensors::Params;

/// Records the head: it reads `lnf` and writes `losses`, `d.dlnf` and the head's part of the gradient of `wte`. It
/// works on one chunk of logits at a time, so the logits of a batch never exist as a whole. Gradients are multiplied by
/// `scale` and the loss scale of `control`.
///
/// # Errors
/// [`crate::error::Error::Gpu`] if a kernel cannot be built or bound.
pub fn head(
    pass: &mut Pass,
    config: &Config,
    p: &Params,
    grads: &Params,
    a: &Activations,
    d: &BackwardBuffers,
    (control, scale): (&stepcontrol::StepControl, f32),
) -> Result<()> {
    pass.at(place::HEAD);
    // the squares that these sums write are not used, because the gradient of wte is not complete yet
    let mut sums = sums_in(d);
    for start in (0..a.rows()).step_by(a.logits.rows()) {
        let rows = start..(start + a.logits.rows()).min(a.rows());
        let logits = a.logits.slice(0..rows.len());
        let (lnf, dlnf) = (a.lnf.slice(rows.clone()), d.dlnf.slice(rows.clone()));
        matmul::forward(pass, matmul::Forward { inp: &lnf, weight: p.matrix("wte", 0), bias: None, out: &logits })?;
        let (targets, losses) = (a.targets.slice(rows.clone()), a.losses.slice(rows));
        let io = crossentropy::Forward { logits: &logits, targets: &targets, losses: &losses, vocab: config.vocab };
        crossentropy::forward_backward(pass, &io, control, scale)?;
        matmul::backward_inp(pass, matmul::BackwardInp { dout: &logits, weight: p.matrix("wte", 0), dinp: &dlnf })?;
        let io = matmul::BackwardWeight { dout: &logits, inp: &lnf, dweight: grads.get("wte", 0) };
        matmul::backward_weight_in_parts(pass, io, &mut sums)?;
    }
    sums.finish(pass).map(|_| ())
}

/// Records the rest of the backward pass, from `d.dlnf` to all other gradients. Returns the final gradients whose sums
/// of squares are in `d.squares`.
///
/// # Errors
/// [`crate::error::Error::Gpu`] if a kernel cannot be built or bound.
pub fn body(
    pass: &mut Pass,
    config: &Config,
    p: &Params,
    grads: &Params,
    a: &Activations,
    d: &BackwardBuffers,
    buckets: &embedding::Buckets,
) -> Result<SquaredGradients> {
    let shape = attention::AttentionSizes { batch: a.batch, positions: a.positions, heads: config.heads };
    let mut sums = sums_in(d);
    pass.at(place::FINAL);
    let lnf = Norm {
        xhat: &a.lnf_xhat,
        rstd: &a.lnf_rstd,
        weight: p.get("lnfw", 0),
        dweight: grads.get("lnfw", 0),
        dbias: grads.get("lnfb", 0),
    };
    // a norm also computes the bias gradient of the projection before it
    let last = config.layers.checked_sub(1).map(|last| grads.get("fcprojb", last));
    norm(pass, d, &mut sums, &d.dlnf, ResidualGrad::Overwrite, lnf, last)?;
    for (l, BlockBackwardBuffers { forward: b, dfch, dln2, datty, delta, dqkv, dln1 }) in
        d.blocks.iter().enumerate().rev()
    {
        pass.at(place::block(l));
        let w = |name| p.get(name, l);
        let dw = |name| grads.get(name, l);
        let m = |name| p.matrix(name, l);
        let dresidual = &d.dresidual;
        if a.recompute == Recompute::Block {
            let inp = if l == 0 { &a.encoded } else { &a.blocks[l - 1].residual3 };
            forward::recompute_block(pass, shape, p, (l, b), inp)?;
        } else if a.recompute >= Recompute::Gelu {
            gelu::forward(pass, gelu::Forward { inp: &b.fch, out: &b.fch_gelu })?;
        }
        let scaled = |pass: &mut Pass, xhat, weight, bias, out| match a.recompute {
            Recompute::Ln => layernorm::affine(pass, layernorm::Affine { xhat, weight: w(weight), bias: w(bias), out }),
            _ => Ok(()),
        };
        // the gradient of fcprojw comes first: nothing later reads its operand fch_gelu, whose memory can then be
        // reused
        let fcprojw = matmul::BackwardWeight { dout: dresidual, inp: &b.fch_gelu, dweight: dw("fcprojw") };
        matmul::backward_weight_in_parts(pass, fcprojw, &mut sums)?;
        let fcproj = matmul::BackwardInp { dout: dresidual, weight: m("fcprojw"), dinp: dfch };
        matmul::backward_inp_gelu(pass, fcproj, &b.fch)?;
        matmul::backward_inp(pass, matmul::BackwardInp { dout: dfch, weight: m("fcw"), dinp: dln2 })?;
        scaled(pass, &b.ln2_xhat, "ln2w", "ln2b", &b.ln2)?;
        parameters(pass, &mut sums, dfch, &b.ln2, (dw("fcw"), dw("fcb")))?;
        let (xhat, rstd) = (&b.ln2_xhat, &b.ln2_rstd);
        let ln2 = Norm { xhat, rstd, weight: w("ln2w"), dweight: dw("ln2w"), dbias: dw("ln2b") };
        norm(pass, d, &mut sums, dln2, ResidualGrad::Accumulate, ln2, Some(dw("attprojb")))?;
        matmul::backward_inp(pass, matmul::BackwardInp { dout: dresidual, weight: m("attprojw"), dinp: datty })?;
        let attprojw = matmul::BackwardWeight { dout: dresidual, inp: &b.atty, dweight: dw("attprojw") };
        matmul::backward_weight_in_parts(pass, attprojw, &mut sums)?;
        let (qkv, out, lse) = (&b.qkv, &b.atty, &b.lse);
        attention::backward(pass, attention::Backward { shape, dout: datty, qkv, out, lse, delta, dqkv })?;
        matmul::backward_inp(pass, matmul::BackwardInp { dout: dqkv, weight: m("qkvw"), dinp: dln1 })?;
        scaled(pass, &b.ln1_xhat, "ln1w", "ln1b", &b.ln1)?;
        parameters(pass, &mut sums, dqkv, &b.ln1, (dw("qkvw"), dw("qkvb")))?;
        let (xhat, rstd) = (&b.ln1_xhat, &b.ln1_rstd);
        let ln1 = Norm { xhat, rstd, weight: w("ln1w"), dweight: dw("ln1w"), dbias: dw("ln1b") };
        let before = l.checked_sub(1).map(|before| grads.get("fcprojb", before));
        let residual_grad = if l == 0 { ResidualGrad::AccumulateAndWiden } else { ResidualGrad::Accumulate };
        norm(pass, d, &mut sums, dln1, residual_grad, ln1, before)?;
    }
    pass.at(place::EMBEDDING);
    let scratch = sums.scratch(pass)?;
    embedding::backward(
        pass,
        embedding::Backward {
            buckets,
            dout: d.dencoded.as_ref().unwrap_or(&d.dresidual),
            dwte: grads.get("wte", 0),
            dwpe: grads.get("wpe", 0),
            positions: a.positions,
            scratch,
        },
    )?;
    sums.finish(pass)
}

/// Returns partial sums in the memory of the backward pass.
fn sums_in(d: &BackwardBuffers) -> Sums<'_> {
    let squares = &d.squares;
    Sums::new(d.partials.as_ref().map(|partials| PartialsMemory { partials, squares }), &d.scratch)
}

/// Accumulates a linear layer's `dweight` and `dbias`.
fn parameters(
    pass: &mut Pass,
    sums: &mut Sums,
    dout: &Tensor,
    inp: &Tensor,
    (dweight, dbias): (&Tensor, &Tensor),
) -> Result<()> {
    let io = matmul::BackwardWeight { dout, inp, dweight };
    if matmul::backward_weight_and_bias(pass, io, dbias, sums)? {
        return Ok(());
    }
    bias::backward(pass, bias::Backward { dout, dbias }, sums)
}

/// A layernorm's saved tensors, its weight, and the gradients of its parameters.
struct Norm<'a> {
    xhat: &'a Tensor,
    rstd: &'a Tensor,
    weight: &'a Tensor,
    dweight: &'a Tensor,
    dbias: &'a Tensor,
}

/// The treatment of the residual stream's gradient in a norm's backward pass.
#[derive(Clone, Copy, PartialEq)]
enum ResidualGrad {
    /// Overwrites `dresidual`, where the gradient begins.
    Overwrite,
    /// Adds to `dresidual`.
    Accumulate,
    /// Adds to `dresidual` and writes the sum to `dencoded` in f32, where there is one.
    AccumulateAndWiden,
}

/// Records the backward pass of a layernorm whose output has the gradient `dout`. It updates `d.dresidual`, or writes
/// `d.dencoded` at the end. It accumulates the gradients of its parameters and, in `dsum`, of the bias in the
/// projection that was last added to its input.
fn norm(
    pass: &mut Pass,
    d: &BackwardBuffers,
    sums: &mut Sums,
    dout: &Tensor,
    residual_grad: ResidualGrad,
    Norm { xhat, rstd, weight, dweight, dbias }: Norm,
    dsum: Option<&Tensor>,
) -> Result<()> {
    let (dinp, overwrite_dinp) = (&d.dresidual, residual_grad == ResidualGrad::Overwrite);
    let dinp_f32 = d.dencoded.as_ref().filter(|_| residual_grad == ResidualGrad::AccumulateAndWiden);
    let io = layernorm::Backward { dout, xhat, weight, rstd, dinp, overwrite_dinp, dinp_f32, dweight, dbias, dsum };
    layernorm::backward(pass, io, sums)
}
