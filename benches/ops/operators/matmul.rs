//! The three products of a linear layer.

use wgpt::gpu::Elem;
use wgpt::ops::matmul;

use super::rounding;
use crate::case::{Case, Slot, expect, samples};

/// Name, and M rows, N outputs, K inputs of a linear layer; the operands' elements if they are not f32.
fn product(name: &str, [m, n, k]: [usize; 3], elem: Elem) -> String {
    let f16 = if elem == Elem::F16 { " f16" } else { "" };
    format!("{name} {m}x{n}x{k}{f16}")
}

/// The tolerance of a stored sum: a budget in f32, and its own rounding.
fn stored(elem: Elem, sum: f64, budget: f64) -> (f64, f64) {
    let rounding = if elem == Elem::F16 { sum.abs() * 2f64.powi(-11) + 2f64.powi(-24) } else { 0.0 };
    (sum, 1.001 * budget + rounding)
}

pub fn forward(name: &str, [m, n, k]: [usize; 3], with_bias: bool, elem: Elem) -> Case {
    let mut slots = vec![
        Slot::input("inp", [m, k]).stored(elem),
        Slot::input("weight", [n, k]).stored(elem),
        Slot::output("out", [m, n]).stored(elem),
    ];
    if with_bias {
        slots.push(Slot::input("bias", [1, n]));
    }
    Case {
        operator: "matmul.forward",
        what: product(name, [m, n, k], elem),
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
                stored(elem, sum, rounding(k + 1) * size)
            })
        }),
    }
}

pub fn backward_inp(name: &str, [m, n, k]: [usize; 3], elem: Elem) -> Case {
    Case {
        operator: "matmul.backward_inp",
        what: product(name, [m, n, k], elem),
        all_variants: name == "qkv",
        slots: vec![
            Slot::input("dout", [m, n]).stored(elem),
            Slot::input("weight", [n, k]).stored(elem),
            Slot::output("dinp", [m, k]).stored(elem),
        ],
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
                stored(elem, sum, rounding(n) * size)
            })
        }),
    }
}

pub fn backward_weight(name: &str, [m, n, k]: [usize; 3], elem: Elem, partials: usize) -> Case {
    Case {
        operator: "matmul.backward_weight",
        what: product(name, [m, n, k], elem),
        all_variants: name == "qkv",
        slots: vec![
            Slot::input("dout", [m, n]).stored(elem),
            Slot::input("inp", [m, k]).stored(elem),
            Slot::updated("dweight", [n, k]),
            Slot::scratch("partials", [1, partials.max(4)]),
        ],
        launch: Box::new(|pass, t| {
            let io = matmul::BackwardWeight { dout: &t[0], inp: &t[1], dweight: &t[2] };
            matmul::backward_weight_in_parts(pass, io, &t[3])
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
