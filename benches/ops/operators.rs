//! Every operator at the shapes of GPT-2 124M.

use wgpt::gpu::{Elem, Tensor};
use wgpt::model::Config;
use wgpt::ops::stepcontrol::{Hyper, State, StepControl};
use wgpt::ops::{
    adamw, attention, bias, crossentropy, embedding, gelu, gradnorm, layernorm, matmul, residual, stepcontrol,
};
use wgpt::reference;
use wgpt::reference::random::Random;

use crate::case::{Case, EPS, Memo, Role, Slot, expect, positive, samples, samples_in_rows};

/// The sizes that rows are measured at.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub config: Config,
    /// B.
    pub batch: usize,
    /// T.
    pub context: usize,
    /// Rows of a chunk of logits.
    pub chunk: usize,
    /// Elements that AdamW and the gradient norm are given.
    pub flat: usize,
}

impl Shape {
    fn rows(&self) -> usize {
        self.batch * self.context
    }
}

/// Budget of a sum of `n` products of relative error: see tests/ops/harness.rs.
fn rounding(n: usize) -> f64 {
    let n = n.max(1) as f64;
    n.min(8.0 * n.sqrt()) * EPS
}

/// All cases.
pub fn cases(shape: &Shape) -> Vec<Case> {
    let (n, c) = (shape.rows(), shape.config.channels);
    let vp = shape.config.padded_vocab();
    let mut cases = vec![residual_forward(n, c), gelu_forward(n, 4 * c), gelu_backward(n, 4 * c)];
    cases.extend([layernorm_forward(n, c), layernorm_backward(n, c), bias_backward(n, 4 * c)]);
    cases.extend([embedding_forward(shape), embedding_backward(shape)]);
    cases.extend([attention_forward(shape), attention_backward(shape)]);
    cases.extend([gradnorm_forward(shape.flat), adamw_forward(shape.flat)]);
    cases.extend([accumulate(n), decide()]);
    cases.push(crossentropy_case(shape, false));
    cases.push(crossentropy_case(shape, true));
    for (name, rows, k, outputs, with_bias) in [
        ("qkv", n, c, 3 * c, true),
        ("attproj", n, c, c, true),
        ("fc", n, c, 4 * c, true),
        ("fcproj", n, 4 * c, c, true),
        ("head", shape.chunk, c, vp, false),
    ] {
        cases.push(matmul_forward(name, [rows, outputs, k], with_bias));
        cases.push(matmul_backward_inp(name, [rows, outputs, k]));
        cases.push(matmul_backward_weight(name, [rows, outputs, k]));
    }
    cases
}

fn residual_forward(n: usize, c: usize) -> Case {
    Case {
        operator: "residual.forward",
        what: format!("{n}x{c}"),
        all_variants: true,
        slots: vec![Slot::input("inp", [n, c]), Slot::input("branch", [n, c]), Slot::output("out", [n, c])],
        launch: Box::new(|pass, t| {
            residual::forward(pass, residual::Forward { inp: &t[0], branch: &t[1], out: &t[2] })
        }),
        check: Box::new(move |d| {
            expect(d, 2, "out", &samples(n * c), |i| {
                let want = d.was(0, i) + d.was(1, i);
                (want, EPS * want.abs())
            })
        }),
    }
}

/// Rounding errors of the tanh: see tests/ops/gelu.rs.
const TANH: f64 = 12.0 * EPS;

fn gelu_forward(n: usize, c: usize) -> Case {
    Case {
        operator: "gelu.forward",
        what: format!("{n}x{c}"),
        all_variants: true,
        slots: vec![Slot::input("inp", [n, c]), Slot::output("out", [n, c])],
        launch: Box::new(|pass, t| gelu::forward(pass, gelu::Forward { inp: &t[0], out: &t[1] })),
        check: Box::new(move |d| {
            expect(d, 1, "out", &samples(n * c), |i| {
                let x = d.was(0, i);
                (reference::gelu::forward(&[x])[0], TANH * x.abs())
            })
        }),
    }
}

fn gelu_backward(n: usize, c: usize) -> Case {
    Case {
        operator: "gelu.backward",
        what: format!("{n}x{c}"),
        all_variants: true,
        slots: vec![Slot::input("inp", [n, c]), Slot::updated("dout", [n, c])],
        launch: Box::new(|pass, t| gelu::backward(pass, gelu::Backward { inp: &t[0], dout: &t[1] })),
        check: Box::new(move |d| {
            expect(d, 1, "dout", &samples(n * c), |i| {
                let (x, dout) = (d.was(0, i), d.was(1, i));
                (reference::gelu::backward(&[dout], &[x])[0], TANH * dout.abs() * (1.0 + x.abs()))
            })
        }),
    }
}

fn layernorm_forward(n: usize, c: usize) -> Case {
    let row = |name| Slot::input(name, [1, c]);
    Case {
        operator: "layernorm.forward",
        what: format!("{n}x{c}"),
        all_variants: true,
        slots: vec![
            Slot::input("inp", [n, c]),
            row("weight"),
            row("bias"),
            Slot::output("out", [n, c]),
            Slot::output("mean", [n, 1]),
            Slot::output("rstd", [n, 1]),
        ],
        launch: Box::new(|pass, t| {
            let io =
                layernorm::Forward { inp: &t[0], weight: &t[1], bias: &t[2], out: &t[3], mean: &t[4], rstd: &t[5] };
            layernorm::forward(pass, io)
        }),
        check: Box::new(move |d| {
            let (weight, bias) = (d.row(1, 0, c), d.row(2, 0, c));
            let memo = Memo::new();
            let want = |r: usize| memo.get(r, || reference::layernorm::forward(&d.row(0, r * c, c), &weight, &bias, c));
            let tolerance = 4.0 * rounding(c);
            expect(d, 3, "out", &samples_in_rows(n, c, 64), |i| (want(i / c).out[i % c], tolerance))?;
            let rows: Vec<usize> = samples(n).into_iter().take(256).collect();
            expect(d, 4, "mean", &rows, |r| (want(r).mean[0], tolerance))?;
            expect(d, 5, "rstd", &rows, |r| (want(r).rstd[0], tolerance * want(r).rstd[0]))
        }),
    }
}

/// Mean and reciprocal deviation of the rows of [`crate::case::values`], near enough to be any row's.
fn third(_: &mut Random, n: usize) -> Vec<u32> {
    vec![3.0f32.to_bits(); n]
}

fn zero(_: &mut Random, n: usize) -> Vec<u32> {
    vec![0; n]
}

fn layernorm_backward(n: usize, c: usize) -> Case {
    let row = |name| Slot::updated(name, [1, c]);
    Case {
        operator: "layernorm.backward",
        what: format!("{n}x{c}"),
        all_variants: true,
        slots: vec![
            Slot::input("dout", [n, c]),
            Slot::input("inp", [n, c]),
            Slot::input("weight", [1, c]),
            Slot::input("mean", [n, 1]).holding(Elem::F32, zero),
            Slot::input("rstd", [n, 1]).holding(Elem::F32, third),
            Slot::updated("dinp", [n, c]),
            row("dweight"),
            row("dbias"),
            Slot::scratch("scratch", [layernorm::SCRATCH_ROWS, c]),
        ],
        launch: Box::new(|pass, t| {
            let [dout, inp, weight, mean, rstd, dinp, dweight, dbias, scratch] =
                [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|i| &t[i]);
            layernorm::backward(
                pass,
                layernorm::Backward { dout, inp, weight, mean, rstd, dinp, dweight, dbias, scratch },
            )
        }),
        check: Box::new(move |d| {
            // with the mean and deviation that it was given: 0 and 1/3
            let weight = d.row(2, 0, c);
            let memo = Memo::new();
            let want = |r: usize| {
                memo.get(r, || {
                    let (g, x) = (d.row(0, r * c, c), d.row(1, r * c, c));
                    let xhat: Vec<f64> = x.iter().map(|x| 3.0 * x).collect();
                    let mean_g = (0..c).map(|i| weight[i] * g[i]).sum::<f64>() / c as f64;
                    let mean_gx = (0..c).map(|i| weight[i] * g[i] * xhat[i]).sum::<f64>() / c as f64;
                    (0..c).map(|i| 3.0 * (weight[i] * g[i] - mean_g - xhat[i] * mean_gx)).collect::<Vec<f64>>()
                })
            };
            let tolerance = 16.0 * rounding(c);
            expect(d, 5, "dinp", &samples_in_rows(n, c, 64), |i| (d.was(5, i) + want(i / c)[i % c], tolerance))?;
            let column = |at: usize, scaled: bool| {
                (0..n)
                    .map(|r| d.was(0, r * c + at) * if scaled { 3.0 * d.was(1, r * c + at) } else { 1.0 })
                    .sum::<f64>()
            };
            let tolerance = 3.0 * rounding(n) * n as f64;
            expect(d, 6, "dweight", &samples(c), |i| (d.was(6, i) + column(i, true), tolerance))?;
            expect(d, 7, "dbias", &samples(c), |i| (d.was(7, i) + column(i, false), tolerance))
        }),
    }
}

fn bias_backward(n: usize, c: usize) -> Case {
    Case {
        operator: "bias.backward",
        what: format!("{n}x{c}"),
        all_variants: true,
        slots: vec![
            Slot::input("dout", [n, c]),
            Slot::updated("dbias", [1, c]),
            Slot::scratch("scratch", [bias::BLOCKS, c]),
        ],
        launch: Box::new(|pass, t| bias::backward(pass, bias::Backward { dout: &t[0], dbias: &t[1], scratch: &t[2] })),
        check: Box::new(move |d| {
            expect(d, 1, "dbias", &samples(c), |i| {
                let column = (0..n).map(|r| d.was(0, r * c + i)).sum::<f64>();
                (d.was(1, i) + column, rounding(n + 1) * (n as f64 + 1.0))
            })
        }),
    }
}

fn tokens(random: &mut Random, n: usize) -> Vec<u32> {
    random.tokens(n, 50_257)
}

fn embedding_forward(shape: &Shape) -> Case {
    let (n, c, t, vp) = (shape.rows(), shape.config.channels, shape.context, shape.config.padded_vocab());
    Case {
        operator: "embedding.forward",
        what: format!("{n}x{c}"),
        all_variants: true,
        slots: vec![
            Slot::input("tokens", [n, 1]).holding(Elem::U32, tokens),
            Slot::input("wte", [vp, c]),
            Slot::input("wpe", [t, c]),
            Slot::output("out", [n, c]),
        ],
        launch: Box::new(move |pass, s| {
            let io = embedding::Forward { tokens: &s[0], wte: &s[1], wpe: &s[2], out: &s[3], positions: t };
            embedding::forward(pass, io)
        }),
        check: Box::new(move |d| {
            expect(d, 3, "out", &samples(n * c), |i| {
                let want = d.was(1, d.before[0][i / c] as usize * c + i % c) + d.was(2, i / c % t * c + i % c);
                (want, EPS * want.abs())
            })
        }),
    }
}

fn table(_: &mut Random, words: usize) -> Vec<u32> {
    embedding::sort(&tokens(&mut Random::new(0), (words - 1) / 3)).0
}

fn order(_: &mut Random, n: usize) -> Vec<u32> {
    embedding::sort(&tokens(&mut Random::new(0), n)).1
}

fn embedding_backward(shape: &Shape) -> Case {
    let (n, c, t, vp) = (shape.rows(), shape.config.channels, shape.context, shape.config.padded_vocab());
    Case {
        operator: "embedding.backward",
        what: format!("{n}x{c}"),
        all_variants: true,
        slots: vec![
            Slot::input("table", [1 + 3 * n, 1]).holding(Elem::U32, table),
            Slot::input("order", [n, 1]).holding(Elem::U32, order),
            Slot::input("dout", [n, c]),
            Slot::updated("dwte", [vp, c]),
            Slot::updated("dwpe", [t, c]),
        ],
        launch: Box::new(move |pass, s| {
            let buckets = embedding::Buckets { table: s[0].clone(), order: s[1].clone() };
            let io = embedding::Backward { buckets: &buckets, dout: &s[2], dwte: &s[3], dwpe: &s[4], positions: t };
            embedding::backward(pass, io)
        }),
        check: Box::new(move |d| {
            let drawn = tokens(&mut Random::new(0), n);
            let sum = |rows: &dyn Fn(usize) -> bool, column: usize| {
                (0..n).filter(|&r| rows(r)).map(|r| d.was(2, r * c + column)).sum::<f64>()
            };
            let tolerance = rounding(n / t + 8) * (n as f64 / t as f64 + 8.0);
            let touched: Vec<usize> =
                samples(n * c).iter().map(|i| drawn[i / c] as usize * c + i % c).take(512).collect();
            expect(d, 3, "dwte", &touched, |i| (d.was(3, i) + sum(&|r| drawn[r] as usize == i / c, i % c), tolerance))?;
            expect(d, 4, "dwpe", &samples(t * c), |i| (d.was(4, i) + sum(&|r| r % t == i / c, i % c), tolerance))
        }),
    }
}

/// Queries, keys and values of one head: (T, 3 HS).
fn head(d: &crate::case::Data, shape: &Shape, key: usize) -> Vec<f64> {
    let (t, c, hs) = (shape.context, shape.config.channels, shape.config.head_size());
    let (b, h) = (key / shape.config.heads, key % shape.config.heads);
    (0..t).flat_map(|at| (0..3).flat_map(move |part| d.row(0, (b * t + at) * 3 * c + part * c + h * hs, hs))).collect()
}

/// Heads whose outputs are looked at, by B and NH.
const HEADS: usize = 4;

/// Elements of a (B T, parts C) tensor in a few heads, as (element, head, element of that head's (T, parts HS)).
fn in_heads(shape: &Shape, parts: usize) -> Vec<(usize, usize, usize)> {
    let (t, c, hs, nh) = (shape.context, shape.config.channels, shape.config.head_size(), shape.config.heads);
    samples_in_rows(shape.batch * nh, t * parts * hs, HEADS)
        .into_iter()
        .map(|i| {
            let (key, inside) = (i / (t * parts * hs), i % (t * parts * hs));
            let (at, part, e) = (inside / (parts * hs), inside / hs % parts, inside % hs);
            (((key / nh * t + at) * parts + part) * c + key % nh * hs + e, key, inside)
        })
        .collect()
}

fn attention_shape(shape: &Shape) -> attention::Shape {
    attention::Shape { batch: shape.batch, positions: shape.context, heads: shape.config.heads }
}

fn attention_forward(shape: &Shape) -> Case {
    let (shape, n, c) = (*shape, shape.rows(), shape.config.channels);
    let (t, hs, rows) = (shape.context, shape.config.head_size(), shape.batch * shape.config.heads);
    Case {
        operator: "attention.forward",
        what: format!("{}x{t}x{} heads of {hs}", shape.batch, shape.config.heads),
        all_variants: true,
        slots: vec![Slot::input("qkv", [n, 3 * c]), Slot::output("out", [n, c]), Slot::output("lse", [rows, t])],
        launch: Box::new(move |pass, s| {
            attention::forward(
                pass,
                attention::Forward { shape: attention_shape(&shape), qkv: &s[0], out: &s[1], lse: &s[2] },
            )
        }),
        check: Box::new(move |d| {
            let memo = Memo::new();
            let want = |key| memo.get(key, || reference::attention::forward(&head(d, &shape, key), 1, t, hs, 1));
            let tolerance = 4.0 * (rounding(t) + rounding(hs));
            for (at, key, inside) in in_heads(&shape, 1) {
                expect(d, 1, "out", &[at], |_| (want(key).out[inside], tolerance))?;
                let row = inside / hs;
                expect(d, 2, "lse", &[key * t + row], |_| (want(key).lse[row], tolerance * 8.0))?;
            }
            Ok(())
        }),
    }
}

fn attention_backward(shape: &Shape) -> Case {
    let (shape, n, c) = (*shape, shape.rows(), shape.config.channels);
    let (t, hs, rows) = (shape.context, shape.config.head_size(), shape.batch * shape.config.heads);
    Case {
        operator: "attention.backward",
        what: format!("{}x{t}x{} heads of {hs}", shape.batch, shape.config.heads),
        all_variants: true,
        slots: vec![
            Slot::input("qkv", [n, 3 * c]),
            Slot::input("dout", [n, c]),
            Slot::scratch("out", [n, c]),
            Slot::scratch("lse", [rows, t]),
            Slot::scratch("delta", [rows, t]),
            Slot::output("dqkv", [n, 3 * c]),
        ],
        launch: Box::new(move |pass, s| {
            let at = attention_shape(&shape);
            attention::forward(pass, attention::Forward { shape: at, qkv: &s[0], out: &s[2], lse: &s[3] })?;
            let [qkv, dout, out, lse, delta, dqkv] = [0, 1, 2, 3, 4, 5].map(|i| &s[i]);
            attention::backward(pass, attention::Backward { shape: at, dout, qkv, out, lse, delta, dqkv })
        }),
        check: Box::new(move |d| {
            let memo = Memo::new();
            let want = |key: usize| {
                memo.get(key, || {
                    let (b, h) = (key / shape.config.heads, key % shape.config.heads);
                    let dout: Vec<f64> = (0..t).flat_map(|at| d.row(1, (b * t + at) * c + h * hs, hs)).collect();
                    reference::attention::backward(&dout, &head(d, &shape, key), 1, t, hs, 1)
                })
            };
            // dv sums over up to T queries
            let tolerance = 8.0 * (rounding(t) + rounding(hs)) * (1.0 + (t as f64).ln());
            for (at, key, inside) in in_heads(&shape, 3) {
                expect(d, 5, "dqkv", &[at], |_| (want(key)[inside], tolerance))?;
            }
            Ok(())
        }),
    }
}

fn gradnorm_forward(flat: usize) -> Case {
    let partials = {
        let gpu = wgpt::gpu::Gpu::dry(wgpt::gpu::Caps::webgpu_defaults());
        gpu.tensor("grads", 1, flat, Elem::F32).map_or(1, |grads| gradnorm::partials(&[grads]))
    };
    Case {
        operator: "gradnorm.forward",
        what: format!("{flat}"),
        all_variants: true,
        slots: vec![Slot::input("grads", [1, flat]), Slot::output("partials", [partials, 1])],
        launch: Box::new(|pass, t| {
            gradnorm::forward(pass, gradnorm::Forward { grads: std::slice::from_ref(&t[0]), partials: &t[1] })
        }),
        check: Box::new(move |d| {
            let want: f64 = d.row(0, 0, flat).iter().map(|g| g * g).sum();
            let got: f64 = (0..partials).map(|i| d.is(1, i)).sum();
            let fine = (got - want).abs() <= rounding(flat / partials) * want;
            if fine { Ok(()) } else { Err(format!("sum of `partials`: got {got:e}, want {want:e}")) }
        }),
    }
}

fn applied(_: &mut Random, _: usize) -> Vec<u32> {
    let state =
        State { beta1_power: 0.9, beta2_power: 0.95, updates: 1, apply: 1, grad_scale: 0.5, ..State::default() };
    bytemuck::pod_collect_to_vec(bytemuck::bytes_of(&state))
}

fn hyper(_: &mut Random, _: usize) -> Vec<u32> {
    let hyper =
        Hyper { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0, loss_scale: 1.0, step: 1 };
    bytemuck::pod_collect_to_vec(bytemuck::bytes_of(&hyper))
}

fn control(state: &Tensor, hyper: &Tensor, report: &Tensor) -> StepControl {
    StepControl { state: state.clone(), hyper: hyper.clone(), report: report.clone() }
}

fn struct_slot(name: &'static str, role: Role, before: fn(&mut Random, usize) -> Vec<u32>) -> Slot {
    Slot::new(name, [8, 1], role).holding(Elem::U32, before)
}

fn adamw_forward(flat: usize) -> Case {
    Case {
        operator: "adamw.forward",
        what: format!("{flat}"),
        all_variants: true,
        slots: vec![
            Slot::updated("param", [1, flat]),
            Slot::input("grad", [1, flat]),
            Slot::updated("m", [1, flat]),
            Slot::updated("v", [1, flat]).holding(Elem::F32, positive),
            struct_slot("state", Role::Input, applied),
            struct_slot("hyper", Role::Input, hyper),
            struct_slot("report", Role::Scratch, zero),
        ],
        launch: Box::new(|pass, t| {
            let control = control(&t[4], &t[5], &t[6]);
            let io = adamw::Forward { param: &t[0], grad: &t[1], m: &t[2], v: &t[3], control: &control, decays: true };
            adamw::forward(pass, io)
        }),
        check: Box::new(move |d| {
            // the numbers as the GPU sees them
            let f = |x: f32| f64::from(x);
            let settings = reference::adamw::Settings {
                lr: f(1e-3),
                beta1: f(0.9),
                beta2: f(0.95),
                eps: f(1e-8),
                weight_decay: f(0.1),
                grad_scale: 0.5,
                t: 1,
            };
            let want = |i: usize| {
                let (mut p, mut m, mut v) = ([d.was(0, i)], [d.was(2, i)], [d.was(3, i)]);
                reference::adamw::update(&mut p, &[d.was(1, i)], &mut m, &mut v, &settings);
                [p[0], m[0], v[0]]
            };
            for (slot, name, part) in [(0, "param", 0), (2, "m", 1), (3, "v", 2)] {
                // 1 - beta2 loses four bits
                expect(d, slot, name, &samples(flat), |i| (want(i)[part], 64.0 * EPS * (1.0 + want(i)[part].abs())))?;
            }
            Ok(())
        }),
    }
}

fn accumulate(n: usize) -> Case {
    Case {
        operator: "stepcontrol.accumulate",
        what: format!("{n}"),
        all_variants: true,
        slots: vec![
            Slot::input("losses", [n, 1]).holding(Elem::F32, positive),
            struct_slot("state", Role::Updated, applied),
            struct_slot("hyper", Role::Input, hyper),
            struct_slot("report", Role::Scratch, zero),
        ],
        launch: Box::new(|pass, t| stepcontrol::accumulate(pass, &control(&t[1], &t[2], &t[3]), &t[0])),
        check: Box::new(move |d| {
            let sum: f64 = d.row(0, 0, n).iter().sum();
            expect(d, 1, "state.loss_sum", &[7], |_| (sum, rounding(n) * sum))
        }),
    }
}

/// The norm's partial sums of a 124M model.
const PARTIALS: usize = 2048;

fn decide() -> Case {
    Case {
        operator: "stepcontrol.decide",
        what: format!("{PARTIALS}"),
        all_variants: true,
        slots: vec![
            Slot::input("partials", [PARTIALS, 1]).holding(Elem::F32, positive),
            struct_slot("state", Role::Updated, applied),
            struct_slot("hyper", Role::Input, hyper),
            struct_slot("report", Role::Output, zero),
        ],
        launch: Box::new(|pass, t| stepcontrol::decide(pass, &control(&t[1], &t[2], &t[3]), &t[0])),
        check: Box::new(|d| {
            let norm = d.row(0, 0, PARTIALS).iter().sum::<f64>().sqrt();
            expect(d, 3, "report.grad_norm", &[2], |_| (norm, rounding(PARTIALS) * norm))
        }),
    }
}

fn crossentropy_case(shape: &Shape, with_gradient: bool) -> Case {
    let (n, v, vp) = (shape.chunk, shape.config.vocab, shape.config.padded_vocab());
    let scale = 1.0 / 1024.0f32;
    Case {
        operator: if with_gradient { "crossentropy.forward_backward" } else { "crossentropy.forward" },
        what: format!("{n}x{vp}"),
        all_variants: true,
        slots: vec![
            if with_gradient { Slot::updated("logits", [n, vp]) } else { Slot::input("logits", [n, vp]) },
            Slot::input("targets", [n, 1]).holding(Elem::U32, tokens),
            Slot::output("losses", [n, 1]),
        ],
        launch: Box::new(move |pass, t| {
            let io = crossentropy::Forward { logits: &t[0], targets: &t[1], losses: &t[2], vocab: v };
            if with_gradient {
                crossentropy::forward_backward(pass, &io, scale)
            } else {
                crossentropy::forward(pass, &io)
            }
        }),
        check: Box::new(move |d| {
            let logits = |r: usize| d.row(0, r * vp, vp);
            let target = |r: usize| [d.before[1][r]];
            let rows: Vec<usize> = samples(n).into_iter().take(32).collect();
            expect(d, 2, "losses", &rows, |r| {
                (reference::crossentropy::forward(&logits(r), &target(r), v, vp)[0], 2.0 * rounding(v))
            })?;
            if !with_gradient {
                return Ok(());
            }
            let memo = Memo::new();
            let want =
                |r| memo.get(r, || reference::crossentropy::backward(&logits(r), &target(r), f64::from(scale), v, vp));
            let tolerance = 4.0 * rounding(v) * f64::from(scale);
            expect(d, 0, "dlogits", &samples_in_rows(n, vp, 16), |i| {
                let want = want(i / vp)[i % vp];
                (want, tolerance * want.abs().max(1e-6))
            })
        }),
    }
}

/// Name, and M rows, N outputs, K inputs of a linear layer.
fn product(name: &str, [m, n, k]: [usize; 3]) -> String {
    format!("{name} {m}x{n}x{k}")
}

fn matmul_forward(name: &str, [m, n, k]: [usize; 3], with_bias: bool) -> Case {
    let mut slots = vec![Slot::input("inp", [m, k]), Slot::input("weight", [n, k]), Slot::output("out", [m, n])];
    if with_bias {
        slots.push(Slot::input("bias", [1, n]));
    }
    Case {
        operator: "matmul.forward",
        what: product(name, [m, n, k]),
        all_variants: name == "qkv",
        slots,
        launch: Box::new(|pass, t| {
            matmul::forward(pass, matmul::Forward { inp: &t[0], weight: &t[1], bias: t.get(3), out: &t[2] })
        }),
        check: Box::new(move |d| {
            expect(d, 2, "out", &samples(m * n), |i| {
                let (row, column) = (i / n, i % n);
                let products = (0..k).map(|at| d.was(0, row * k + at) * d.was(1, column * k + at));
                let bias = if with_bias { d.was(3, column) } else { 0.0 };
                let (sum, size) = products.fold((bias, bias.abs()), |(sum, size), x| (sum + x, size + x.abs()));
                (sum, rounding(k + 1) * size)
            })
        }),
    }
}

fn matmul_backward_inp(name: &str, [m, n, k]: [usize; 3]) -> Case {
    Case {
        operator: "matmul.backward_inp",
        what: product(name, [m, n, k]),
        all_variants: name == "qkv",
        slots: vec![Slot::input("dout", [m, n]), Slot::input("weight", [n, k]), Slot::output("dinp", [m, k])],
        launch: Box::new(|pass, t| {
            matmul::backward_inp(pass, matmul::BackwardInp { dout: &t[0], weight: &t[1], dinp: &t[2] })
        }),
        check: Box::new(move |d| {
            // the head sums over 50,304 columns: fewer of its outputs
            let at: Vec<usize> = samples(m * k).into_iter().take(if n > 10_000 { 512 } else { usize::MAX }).collect();
            expect(d, 2, "dinp", &at, |i| {
                let (row, column) = (i / k, i % k);
                let products = (0..n).map(|at| d.was(0, row * n + at) * d.was(1, at * k + column));
                let (sum, size) = products.fold((0.0, 0.0f64), |(sum, size), x| (sum + x, size + x.abs()));
                (sum, rounding(n) * size)
            })
        }),
    }
}

fn matmul_backward_weight(name: &str, [m, n, k]: [usize; 3]) -> Case {
    Case {
        operator: "matmul.backward_weight",
        what: product(name, [m, n, k]),
        all_variants: name == "qkv",
        slots: vec![Slot::input("dout", [m, n]), Slot::input("inp", [m, k]), Slot::updated("dweight", [n, k])],
        launch: Box::new(|pass, t| {
            matmul::backward_weight(pass, matmul::BackwardWeight { dout: &t[0], inp: &t[1], dweight: &t[2] })
        }),
        check: Box::new(move |d| {
            expect(d, 2, "dweight", &samples(n * k), |i| {
                let (row, column) = (i / k, i % k);
                let products = (0..m).map(|at| d.was(0, at * n + row) * d.was(1, at * k + column));
                let before = d.was(2, i);
                let (sum, size) = products.fold((before, before.abs()), |(sum, size), x| (sum + x, size + x.abs()));
                (sum, rounding(m + 1) * size)
            })
        }),
    }
}
