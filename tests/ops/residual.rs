use wgpt::ops::residual::{self, Forward};
use wgpt::reference;

use crate::harness::{Device, Inputs, absolute, check, devices, folded, input, near, overwritten, wide, windowed};

fn run(devices: &[Device], [n, c]: [usize; 2]) {
    let mut inputs = Inputs::new();
    let (inp, branch) = (inputs.values(n * c), inputs.values(n * c));
    let out = reference::residual::forward(&wide(&inp), &wide(&branch));
    let magnitude = absolute(&out);
    let slots = [
        input("inp", [n, c], &inp),
        input("branch", [n, c], &branch),
        overwritten("out", [n, c], near(out, 1.0, &magnitude)),
    ];
    check(devices, "residual.forward", &[n, c], slots, |pass, [inp, branch, out]| {
        residual::forward(pass, Forward { inp, branch, out })
    });
}

#[test]
pub fn forward() {
    let devices = devices();
    for shape in [[1, 1], [3, 5], [63, 1], [64, 4], [65, 4], [127, 13], [257, 768]] {
        run(&devices, shape);
    }
}

#[test]
fn forward_in_windows() {
    run(&windowed(64 * 13 * 4), [257, 13]);
    run(&windowed(100 * 256), [257, 64]);
}

#[test]
fn forward_in_a_folded_grid() {
    run(&folded(), [401, 13]);
    run(&folded(), [401, 44]);
}

/// More workgroups than one dimension of a grid has, with the memory of two tensors: `out = inp + inp`, exact.
#[test]
fn forward_with_more_than_65535_workgroups() {
    let device = Device::open("release", &wgpt::gpu::Options::default());
    let gpu = &device.gpu;
    let (rows, columns) = (65_535 * 64 / 16 + 3, 64);
    let values: Vec<f32> = (0..rows * columns).map(|i| (i % 99_991) as f32).collect();
    let [inp, out] = ["inp", "out"].map(|name| gpu.tensor(name, rows, columns, wgpt::gpu::Elem::F32).expect("memory"));
    gpu.write(&inp, bytemuck::cast_slice(&values)).expect("written");
    let mut pass = wgpt::gpu::Pass::new(gpu);
    residual::forward(&mut pass, Forward { inp: &inp, branch: &inp, out: &out }).expect("recorded");
    let program = pass.finish();
    assert!(program.commands[0].grid[1] > 1, "{:?} is not folded", program.commands[0].grid);
    program.run(gpu).expect("run");
    let out = gpu.read_f32(&out).expect("read");
    if let Some(i) = (0..out.len()).find(|&i| out[i] != 2.0 * values[i]) {
        panic!("residual.forward: element {i}: got {}, want {}", out[i], 2.0 * values[i]);
    }
}
