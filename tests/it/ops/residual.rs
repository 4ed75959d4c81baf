use wgpt::gpu::{Elem, Pass};
use wgpt::ops::residual::{self, Forward};

use super::harness::devices;

/// More workgroups than one dimension of a grid has, with the memory of two tensors: `out = inp + inp`, exact.
#[test]
fn forward_with_more_than_65535_workgroups() {
    let device = &devices()[0];
    let (rows, columns) = (65_535 * 64 / 16 + 3, 64);
    let values: Vec<f32> = (0..rows * columns).map(|i| (i % 99_991) as f32).collect();
    let out = device.run(&device.caps, |gpu| {
        let [inp, out] = ["inp", "out"].map(|name| gpu.tensor(name, rows, columns, Elem::F32).expect("memory"));
        gpu.write(&inp, bytemuck::cast_slice(&values)).expect("written");
        let mut pass = Pass::new(gpu);
        residual::forward(&mut pass, Forward { inp: &inp, branch: &inp, out: &out }).expect("recorded");
        let program = pass.finish();
        assert!(program.commands[0].grid[1] > 1, "{:?} is not folded", program.commands[0].grid);
        program.run(gpu).expect("run");
        gpu.read_f32(&out).expect("read")
    });
    if let Some(i) = (0..out.len()).find(|&i| out[i] != 2.0 * values[i]) {
        panic!("residual.forward: element {i}: got {}, want {}", out[i], 2.0 * values[i]);
    }
}
