use wgpt::ops::embedding::{self, Backward, Buckets, Forward};
use wgpt::reference;

use crate::harness::{
    Device, Inputs, absolute, check, devices, folded, input, integers, near, overwritten, rounding, updated, wide,
    windowed,
};

/// V, T, B, C. `wpe` has three rows more than T.
type Shape = [usize; 4];

fn run_forward(devices: &[Device], shape: Shape, tokens: &[u32]) {
    let [v, t, b, c] = shape;
    let mut inputs = Inputs::new();
    let (wte, wpe) = (inputs.values(v * c), inputs.values((t + 3) * c));
    let out = reference::embedding::forward(tokens, &wide(&wte), &wide(&wpe), t, c);
    let magnitude = absolute(&out);
    let slots = [
        integers("tokens", [b * t, 1], tokens),
        input("wte", [v, c], &wte),
        input("wpe", [t + 3, c], &wpe),
        overwritten("out", [b * t, c], near(out, 1.0, &magnitude)),
    ];
    check(devices, "embedding.forward", &shape, slots, |pass, [tokens, wte, wpe, out]| {
        embedding::forward(pass, Forward { tokens, wte, wpe, out, positions: t })
    });
}

fn run_backward(devices: &[Device], shape: Shape, tokens: &[u32]) {
    let [v, t, b, c] = shape;
    let mut inputs = Inputs::new();
    let (dout, dwte, dwpe) = (inputs.values(b * t * c), inputs.values(v * c), inputs.values((t + 3) * c));
    let (mut want_wte, mut want_wpe) = (wide(&dwte), wide(&dwpe));
    reference::embedding::backward(&wide(&dout), tokens, &mut want_wte, &mut want_wpe, t, c);
    let (mut sum_wte, mut sum_wpe) = (absolute(&wide(&dwte)), absolute(&wide(&dwpe)));
    reference::embedding::backward(&absolute(&wide(&dout)), tokens, &mut sum_wte, &mut sum_wpe, t, c);
    let (table, order) = embedding::sort(tokens);
    let slots = [
        integers("table", [table.len(), 1], &table),
        integers("order", [order.len(), 1], &order),
        input("dout", [b * t, c], &dout),
        updated("dwte", [v, c], &dwte, near(want_wte, rounding(b * t + 1), &sum_wte)),
        updated("dwpe", [t + 3, c], &dwpe, near(want_wpe, rounding(b + 1), &sum_wpe)),
    ];
    check(devices, "embedding.backward", &shape, slots, |pass, [table, order, dout, dwte, dwpe]| {
        let buckets = Buckets { table: table.clone(), order: order.clone() };
        embedding::backward(pass, Backward { buckets: &buckets, dout, dwte, dwpe, positions: t })
    });
}

fn run(devices: &[Device], shape: Shape) {
    let [v, t, b, _] = shape;
    let tokens = Inputs::new().tokens(b * t, v);
    run_forward(devices, shape, &tokens);
    run_backward(devices, shape, &tokens);
}

#[test]
pub fn forward_and_backward() {
    let devices = devices();
    for shape in [[1, 1, 1, 1], [7, 5, 3, 13], [50, 13, 10, 16], [257, 31, 4, 768]] {
        run(&devices, shape);
    }
}

#[test]
fn repeated_tokens() {
    let devices = devices();
    let shape = [31, 13, 10, 20];
    for tokens in [vec![30; 130], (0..130).map(|n| if n % 7 == 0 { 0 } else { 29 }).collect()] {
        run_forward(&devices, shape, &tokens);
        run_backward(&devices, shape, &tokens);
    }
}

/// Windows of 64 rows: 4 of `wte`, 3 of the batch, which begin in the middle of sequences.
#[test]
fn forward_and_backward_in_windows() {
    run(&windowed(64 * 16 * 4), [200, 13, 10, 16]);
}

#[test]
fn forward_and_backward_in_a_folded_grid() {
    run(&folded(), [300, 67, 3, 44]);
    run(&folded(), [300, 67, 3, 43]);
}

/// Rows of 256 bytes would allow windows of any number of rows; those of `tokens` have 4 bytes.
#[test]
fn windows_of_wide_rows_begin_aligned_in_narrow_tensors() {
    run(&windowed(100 * 256), [150, 13, 10, 64]);
}

/// B = 1: rows are positions from `at` on.
fn run_forward_at(devices: &[Device], [v, t, n, c]: Shape, at: usize) {
    let tokens = Inputs::new().tokens(n, v);
    let mut inputs = Inputs::new();
    let (wte, wpe) = (inputs.values(v * c), inputs.values((t + 3) * c));
    let out = reference::embedding::forward(&tokens, &wide(&wte), &wide(&wpe[at * c..]), n, c);
    let magnitude = absolute(&out);
    let slots = [
        integers("tokens", [n, 1], &tokens),
        input("wte", [v, c], &wte),
        input("wpe", [t + 3, c], &wpe),
        integers("at", [1, 1], &[at as u32]),
        overwritten("out", [n, c], near(out, 1.0, &magnitude)),
    ];
    check(devices, "embedding.forward_at", &[v, t, n, c], slots, |pass, [tokens, wte, wpe, at, out]| {
        embedding::forward_at(pass, Forward { tokens, wte, wpe, out, positions: t }, at)
    });
}

#[test]
pub fn positions_from_a_start() {
    let devices = devices();
    for (shape, at) in [([5, 1, 1, 1], 0), ([7, 9, 1, 12], 8), ([257, 70, 65, 13], 5), ([3, 1024, 1, 768], 1023)] {
        run_forward_at(&devices, shape, at);
    }
    run_forward_at(&windowed(64 * 12 * 4), [200, 61, 58, 12], 3);
}
