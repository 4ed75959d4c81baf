//! Tensors of wrong shapes are refused by name, before anything is recorded.

use wgpt::error::{Error, Result};
use wgpt::gpu::{Caps, Elem, Gpu, Pass, Tensor};
use wgpt::ops::stepcontrol::StepControl;
use wgpt::ops::{adamw, attention, bias, crossentropy, embedding, gelu, gradnorm, layernorm, matmul, residual};

#[track_caller]
fn refused(gpu: &Gpu, start: &str, launch: impl FnOnce(&mut Pass) -> Result<()>) {
    let mut pass = Pass::new(gpu);
    let error = launch(&mut pass).expect_err("a wrong shape was taken for a right one");
    assert!(matches!(error, Error::Shape(_)), "{error:?}");
    assert!(error.to_string().starts_with(start), "{error}, expected `{start}...`");
    assert!(pass.finish().commands.is_empty(), "{start}: something was recorded");
}

#[test]
fn wrong_shapes_are_refused_by_name() {
    let gpu = &Gpu::dry(Caps::webgpu_defaults());
    let t = |rows: usize, columns: usize| -> Tensor { gpu.tensor("t", rows, columns, Elem::F32).expect("memory") };
    let (n, c) = (6, 16);
    let (full, row, column) = (&t(n, c), &t(1, c), &t(n, 1));
    let (other, long_row, long_column) = (&t(n, c + 1), &t(1, c + 1), &t(n + 1, 1));

    let residual =
        |branch, out| move |pass: &mut Pass| residual::forward(pass, residual::Forward { inp: full, branch, out });
    refused(gpu, "residual.forward: `branch` has shape (6, 17), expected (6, 16)", residual(other, full));
    refused(gpu, "residual.forward: `out`", residual(full, other));

    refused(gpu, "gelu.forward: `out`", |pass| gelu::forward(pass, gelu::Forward { inp: full, out: other }));
    refused(gpu, "gelu.backward: `dout`", |pass| gelu::backward(pass, gelu::Backward { inp: full, dout: other }));

    let big = &t(layernorm::SCRATCH_ROWS, c);
    refused(gpu, "bias.backward: `dbias`", |pass| {
        bias::backward(pass, bias::Backward { dout: full, dbias: long_row, scratch: big })
    });

    let forward = || layernorm::Forward { inp: full, weight: row, bias: row, xhat: full, out: full, rstd: column };
    let place = "layernorm.forward: ";
    for (name, io) in [
        ("out", layernorm::Forward { out: other, ..forward() }),
        ("weight", layernorm::Forward { weight: long_row, ..forward() }),
        ("bias", layernorm::Forward { bias: long_row, ..forward() }),
        ("xhat", layernorm::Forward { xhat: other, ..forward() }),
        ("rstd", layernorm::Forward { rstd: long_column, ..forward() }),
    ] {
        refused(gpu, &format!("{place}`{name}`"), |pass| layernorm::forward(pass, io));
    }
    let affine = || layernorm::Affine { xhat: full, weight: row, bias: row, out: full };
    for (name, io) in [
        ("out", layernorm::Affine { out: other, ..affine() }),
        ("weight", layernorm::Affine { weight: long_row, ..affine() }),
        ("bias", layernorm::Affine { bias: long_row, ..affine() }),
    ] {
        refused(gpu, &format!("layernorm.affine: `{name}`"), |pass| layernorm::affine(pass, io));
    }
    let backward = || layernorm::Backward {
        dout: full,
        xhat: full,
        weight: row,
        rstd: column,
        dinp: full,
        first: false,
        wide: None,
        dweight: row,
        dbias: row,
        dsum: None,
        scratch: big,
    };
    for (name, io) in [
        ("dout", layernorm::Backward { dout: other, ..backward() }),
        ("weight", layernorm::Backward { weight: long_row, ..backward() }),
        ("rstd", layernorm::Backward { rstd: long_column, ..backward() }),
        ("dinp", layernorm::Backward { dinp: other, ..backward() }),
        ("dweight", layernorm::Backward { dweight: long_row, ..backward() }),
        ("dbias", layernorm::Backward { dbias: long_row, ..backward() }),
        ("dsum", layernorm::Backward { dsum: Some(long_row), ..backward() }),
    ] {
        refused(gpu, &format!("layernorm.backward: `{name}`"), |pass| layernorm::backward(pass, io));
    }

    let (weight, out) = (&t(5, c), &t(n, 5));
    let forward = || matmul::Forward { inp: full, weight, bias: None, out };
    for (name, io) in [
        ("weight", matmul::Forward { inp: other, ..forward() }),
        ("out", matmul::Forward { out: full, ..forward() }),
        ("bias", matmul::Forward { bias: Some(row), ..forward() }),
    ] {
        refused(gpu, &format!("matmul.forward: `{name}`"), |pass| matmul::forward(pass, io));
    }
    for (name, io) in [
        ("weight", matmul::BackwardInp { dout: full, weight, dinp: full }),
        ("dinp", matmul::BackwardInp { dout: out, weight, dinp: other }),
    ] {
        refused(gpu, &format!("matmul.backward_inp: `{name}`"), |pass| matmul::backward_inp(pass, io));
    }
    for (name, io) in [
        ("inp", matmul::BackwardWeight { dout: out, inp: row, dweight: weight }),
        ("dweight", matmul::BackwardWeight { dout: out, inp: full, dweight: full }),
    ] {
        refused(gpu, &format!("matmul.backward_weight: `{name}`"), |pass| matmul::backward_weight(pass, io));
    }

    let shape = attention::Shape { batch: 2, positions: 3, heads: 2 };
    let (qkv, lse) = (&t(n, 3 * c), &t(4, 3));
    let forward = || attention::Forward { shape, qkv, out: full, lse };
    for (start, io) in [
        ("`out`", attention::Forward { out: row, ..forward() }),
        ("`qkv`", attention::Forward { qkv: full, ..forward() }),
        ("`lse`", attention::Forward { lse: column, ..forward() }),
        ("4 heads", attention::Forward { shape: attention::Shape { heads: 4, ..shape }, lse: &t(8, 3), ..forward() }),
        ("3 heads", attention::Forward { shape: attention::Shape { heads: 3, ..shape }, lse: &t(6, 3), ..forward() }),
        ("0 heads", attention::Forward { shape: attention::Shape { heads: 0, ..shape }, lse: &t(0, 3), ..forward() }),
    ] {
        refused(gpu, &format!("attention.forward: {start}"), |pass| attention::forward(pass, io));
    }
    let backward = || attention::Backward { shape, dout: full, qkv, out: full, lse, delta: lse, dqkv: qkv };
    for (name, io) in [
        ("dout", attention::Backward { dout: other, ..backward() }),
        ("qkv", attention::Backward { qkv: full, ..backward() }),
        ("out", attention::Backward { out: row, ..backward() }),
        ("lse", attention::Backward { lse: column, ..backward() }),
        ("delta", attention::Backward { delta: column, ..backward() }),
        ("dqkv", attention::Backward { dqkv: full, ..backward() }),
    ] {
        refused(gpu, &format!("attention.backward: `{name}`"), |pass| attention::backward(pass, io));
    }

    let (wte, wpe) = (&t(9, c), &t(3, c));
    let forward = || embedding::Forward { tokens: column, wte, wpe, out: full, positions: 3 };
    for (name, io) in [
        ("tokens", embedding::Forward { tokens: long_column, ..forward() }),
        ("wte", embedding::Forward { wte: other, ..forward() }),
        ("wpe", embedding::Forward { wpe: other, ..forward() }),
        ("wpe", embedding::Forward { positions: 4, ..forward() }),
    ] {
        refused(gpu, &format!("embedding.forward: `{name}`"), |pass| embedding::forward(pass, io));
    }
    let buckets = &embedding::Buckets::new(gpu, n).expect("memory");
    let few = &embedding::Buckets::new(gpu, n - 1).expect("memory");
    let backward = || embedding::Backward { buckets, dout: full, dwte: wte, dwpe: wpe, positions: 3 };
    for (name, io) in [
        ("order", embedding::Backward { buckets: few, ..backward() }),
        ("dwte", embedding::Backward { dwte: other, ..backward() }),
        ("dwpe", embedding::Backward { dwpe: other, ..backward() }),
        ("dwpe", embedding::Backward { positions: 4, ..backward() }),
    ] {
        refused(gpu, &format!("embedding.backward: `{name}`"), |pass| embedding::backward(pass, io));
    }

    let forward = || crossentropy::Forward { logits: full, targets: column, losses: column, vocab: c };
    for (name, io) in [
        ("targets", crossentropy::Forward { targets: long_column, ..forward() }),
        ("losses", crossentropy::Forward { losses: long_column, ..forward() }),
        ("logits", crossentropy::Forward { vocab: c + 1, ..forward() }),
    ] {
        refused(gpu, &format!("crossentropy.forward: `{name}`"), |pass| crossentropy::forward(pass, &io));
    }

    let control = &StepControl::new(gpu).expect("memory");
    let grads = [full.clone()];
    refused(gpu, "gradnorm.forward: `partials`", |pass| {
        gradnorm::forward(pass, gradnorm::Forward { grads: &grads, partials: column, control })
    });

    let forward = || adamw::Forward { param: full, grad: full, m: full, v: full, copy: None, control, decays: false };
    for (name, io) in [
        ("grad", adamw::Forward { grad: other, ..forward() }),
        ("m", adamw::Forward { m: other, ..forward() }),
        ("v", adamw::Forward { v: other, ..forward() }),
    ] {
        refused(gpu, &format!("adamw.forward: `{name}`"), |pass| adamw::forward(pass, io));
    }
}
