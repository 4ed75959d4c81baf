//! Every operator at the shapes of GPT-2 124M.

pub mod attention;
mod matmul;
mod update;

use wgpt::gpu::{Caps, Elem};
use wgpt::model::Config;
use wgpt::ops::matmul::Product;
use wgpt::ops::stepcontrol::{Hyper, Report, State};
use wgpt::ops::{bias, crossentropy, embedding, gelu, layernorm, residual};
use wgpt::reference;
use wgpt::reference::random::Random;

use crate::case::{Case, EPS, Memo, Role, Slot, expect, samples, samples_in_rows};

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
pub fn cases(shape: &Shape, caps: &Caps) -> Vec<Case> {
    let (n, c) = (shape.rows(), shape.config.channels);
    let mut cases = vec![residual_forward(n, c), gelu_forward(n, 4 * c), gelu_backward(n, 4 * c)];
    cases.extend([layernorm_forward(n, c), layernorm_backward(n, c), bias_backward(n, 4 * c)]);
    cases.extend([embedding_forward(shape), embedding_backward(shape)]);
    for elem in [Elem::F32, Elem::F16].into_iter().filter(|elem| caps.f16 || *elem == Elem::F32) {
        cases.extend([attention::forward(shape, elem), attention::backward(shape, elem)]);
    }
    cases.extend([update::gradnorm_forward(shape.flat), update::adamw_forward(shape.flat)]);
    cases.extend([update::accumulate(n), update::decide()]);
    cases.push(crossentropy_case(shape, false));
    cases.push(crossentropy_case(shape, true));
    for layer in layers(shape) {
        for elem in [Elem::F32, Elem::F16] {
            cases.extend(PRODUCTS.iter().filter_map(|product| layer.case(*product, elem, caps)));
        }
    }
    cases
}

const PRODUCTS: [Product; 3] = [Product::Forward, Product::BackwardInp, Product::BackwardWeight];

/// A linear layer: M rows, N outputs, K inputs.
pub struct Layer {
    pub name: &'static str,
    sizes: [usize; 3],
    with_bias: bool,
}

/// The linear layers of a block, and the head on one chunk of rows.
pub fn layers(shape: &Shape) -> [Layer; 5] {
    let (n, c) = (shape.rows(), shape.config.channels);
    let layer = |name, sizes| Layer { name, sizes, with_bias: name != "head" };
    [
        layer("qkv", [n, 3 * c, c]),
        layer("attproj", [n, c, c]),
        layer("fc", [n, 4 * c, c]),
        layer("fcproj", [n, c, 4 * c]),
        layer("head", [shape.chunk, shape.config.padded_vocab(), c]),
    ]
}

impl Layer {
    /// Rows, columns and depth of one of its products, as a record of `wgpt tune` names them.
    pub fn shape_of(&self, product: Product) -> [usize; 3] {
        let [m, n, k] = self.sizes;
        match product {
            Product::Forward => [m, n, k],
            Product::BackwardInp => [m, k, n],
            Product::BackwardWeight => [n, k, m],
        }
    }

    /// The case of one of its products, `None` where it is not measured.
    pub fn case(&self, product: Product, elem: Elem, caps: &Caps) -> Option<Case> {
        // software Vulkan multiplies f16 slowly: one layer of it there
        if elem == Elem::F16 && (!caps.f16 || caps.software && self.name != "qkv") {
            return None;
        }
        let Self { name, sizes, with_bias } = *self;
        let [m, n, k] = sizes;
        Some(match product {
            Product::Forward => matmul::forward(name, sizes, with_bias, elem),
            Product::BackwardInp => matmul::backward_inp(name, sizes, elem),
            Product::BackwardWeight => {
                matmul::backward_weight(name, sizes, elem, wgpt::ops::matmul::partials(caps, elem, m, n, k))
            }
        })
    }
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
            Slot::output("xhat", [n, c]),
            Slot::output("out", [n, c]),
            Slot::output("rstd", [n, 1]),
        ],
        launch: Box::new(|pass, t| {
            let io =
                layernorm::Forward { inp: &t[0], weight: &t[1], bias: &t[2], xhat: &t[3], out: &t[4], rstd: &t[5] };
            layernorm::forward(pass, io)
        }),
        check: Box::new(move |d| {
            let (weight, bias) = (d.row(1, 0, c), d.row(2, 0, c));
            let memo = Memo::new();
            let want = |r: usize| memo.get(r, || reference::layernorm::forward(&d.row(0, r * c, c), &weight, &bias, c));
            let tolerance = 4.0 * rounding(c);
            expect(d, 3, "xhat", &samples_in_rows(n, c, 64), |i| (want(i / c).xhat[i % c], tolerance))?;
            expect(d, 4, "out", &samples_in_rows(n, c, 64), |i| (want(i / c).out[i % c], tolerance))?;
            let rows: Vec<usize> = samples(n).into_iter().take(256).collect();
            expect(d, 5, "rstd", &rows, |r| (want(r).rstd[0], tolerance * want(r).rstd[0]))
        }),
    }
}

/// A reciprocal deviation as that of the rows of [`crate::case::values`].
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
            Slot::input("xhat", [n, c]),
            Slot::input("weight", [1, c]),
            Slot::input("rstd", [n, 1]).holding(Elem::F32, third),
            Slot::updated("dinp", [n, c]),
            row("dweight"),
            row("dbias"),
            Slot::scratch("scratch", [layernorm::SCRATCH_ROWS, c]),
        ],
        launch: Box::new(|pass, t| {
            let [dout, xhat, weight, rstd, dinp, dweight, dbias, scratch] = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| &t[i]);
            layernorm::backward(
                pass,
                layernorm::Backward {
                    dout,
                    xhat,
                    weight,
                    rstd,
                    dinp,
                    dweight,
                    dbias,
                    dsum: None,
                    scratch,
                    first: false,
                    wide: None,
                },
            )
        }),
        check: Box::new(move |d| {
            // with the deviation that it was given, 1/3
            let weight = d.row(2, 0, c);
            let memo = Memo::new();
            let want = |r: usize| {
                memo.get(r, || {
                    let (g, xhat) = (d.row(0, r * c, c), d.row(1, r * c, c));
                    let mean_g = (0..c).map(|i| weight[i] * g[i]).sum::<f64>() / c as f64;
                    let mean_gx = (0..c).map(|i| weight[i] * g[i] * xhat[i]).sum::<f64>() / c as f64;
                    (0..c).map(|i| 3.0 * (weight[i] * g[i] - mean_g - xhat[i] * mean_gx)).collect::<Vec<f64>>()
                })
            };
            let tolerance = 16.0 * rounding(c);
            expect(d, 4, "dinp", &samples_in_rows(n, c, 64), |i| (d.was(4, i) + want(i / c)[i % c], tolerance))?;
            let column = |at: usize, scaled: bool| {
                (0..n).map(|r| d.was(0, r * c + at) * if scaled { d.was(1, r * c + at) } else { 1.0 }).sum::<f64>()
            };
            let tolerance = 3.0 * rounding(n) * n as f64;
            expect(d, 5, "dweight", &samples(c), |i| (d.was(5, i) + column(i, true), tolerance))?;
            expect(d, 6, "dbias", &samples(c), |i| (d.was(6, i) + column(i, false), tolerance))
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
            update::struct_slot::<State>("state", Role::Input, update::applied),
            update::struct_slot::<Hyper>("hyper", Role::Input, update::hyper),
            update::struct_slot::<Report>("report", Role::Scratch, zero),
        ],
        launch: Box::new(move |pass, t| {
            let io = crossentropy::Forward { logits: &t[0], targets: &t[1], losses: &t[2], vocab: v };
            if with_gradient {
                crossentropy::forward_backward(pass, &io, &update::control(&t[3], &t[4], &t[5]), scale)
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
