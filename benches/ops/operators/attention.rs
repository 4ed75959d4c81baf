//! Attention: a few heads of it are held against the reference.

use wgpt::gpu::Elem;
use wgpt::ops::attention;
use wgpt::reference;

use super::{Shape, rounding};
use crate::case::{Case, Memo, Slot, expect, samples_in_rows};

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

fn what(shape: &Shape, elem: Elem) -> String {
    let f16 = if elem == Elem::F16 { " f16" } else { "" };
    format!("{}x{}x{} heads of {}{f16}", shape.batch, shape.context, shape.config.heads, shape.config.head_size())
}

/// What f16 adds to a tolerance for numbers up to 1: weights, the stored output and the result are rounded.
fn stored(elem: Elem) -> f64 {
    if elem == Elem::F16 { 4.0 * 2f64.powi(-11) } else { 0.0 }
}

pub fn forward(shape: &Shape, elem: Elem) -> Case {
    let (shape, n, c) = (*shape, shape.rows(), shape.config.channels);
    let (t, hs, rows) = (shape.context, shape.config.head_size(), shape.batch * shape.config.heads);
    Case {
        operator: "attention.forward",
        what: what(&shape, elem),
        all_variants: true,
        slots: vec![
            Slot::input("qkv", [n, 3 * c]).stored(elem),
            Slot::output("out", [n, c]).stored(elem),
            Slot::output("lse", [rows, t]),
        ],
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
                expect(d, 1, "out", &[at], |_| (want(key).out[inside], tolerance + stored(elem)))?;
                let row = inside / hs;
                expect(d, 2, "lse", &[key * t + row], |_| (want(key).lse[row], tolerance * 8.0))?;
            }
            Ok(())
        }),
    }
}

pub fn backward(shape: &Shape, elem: Elem) -> Case {
    let (shape, n, c) = (*shape, shape.rows(), shape.config.channels);
    let (t, hs, rows) = (shape.context, shape.config.head_size(), shape.batch * shape.config.heads);
    Case {
        operator: "attention.backward",
        what: what(&shape, elem),
        all_variants: true,
        slots: vec![
            Slot::input("qkv", [n, 3 * c]).stored(elem),
            Slot::input("dout", [n, c]).stored(elem),
            Slot::scratch("out", [n, c]).stored(elem),
            Slot::scratch("lse", [rows, t]),
            Slot::scratch("delta", [rows, t]),
            Slot::output("dqkv", [n, 3 * c]).stored(elem),
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
            let tolerance = (8.0 * (rounding(t) + rounding(hs)) + stored(elem)) * (1.0 + (t as f64).ln());
            for (at, key, inside) in in_heads(&shape, 3) {
                expect(d, 5, "dqkv", &[at], |_| (want(key)[inside], tolerance))?;
            }
            Ok(())
        }),
    }
}
