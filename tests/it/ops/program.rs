//! Recorded programs: run again they create nothing; timed they account for every dispatch.

use wgpt::gpu::{Elem, Gpu, Options, Pass, Program, Tensor};
use wgpt::ops::{gelu, matmul, residual};

use crate::common::not_run::not_run;

struct Layer {
    program: Program,
    inp: Tensor,
    sum: Tensor,
}

/// `sum += gelu(inp weightᵀ)`, by way of a clear and a copy.
fn record(gpu: &Gpu) -> Layer {
    let tensor = |name, rows, columns| gpu.tensor(name, rows, columns, Elem::F32).expect("memory");
    let (inp, weight) = (tensor("inp", 5, 8), tensor("weight", 8, 8));
    let [fch, act, sum, before] = ["fch", "act", "sum", "before"].map(|name| tensor(name, 5, 8));
    gpu.write(&weight, bytemuck::cast_slice(&[0.25f32; 64])).expect("written");
    gpu.write(&inp, bytemuck::cast_slice(&[0.5f32; 40])).expect("written");
    let mut pass = Pass::new(gpu);
    pass.at(wgpt::model::place::block(0));
    pass.clear(&fch);
    matmul::forward(&mut pass, matmul::Forward { inp: &inp, weight: &weight, bias: None, out: &fch })
        .expect("recorded");
    gelu::forward(&mut pass, gelu::Forward { inp: &fch, out: &act }).expect("recorded");
    pass.copy(&sum, &before).expect("recorded");
    residual::forward(&mut pass, residual::Forward { inp: &before, branch: &act, out: &sum }).expect("recorded");
    Layer { program: pass.finish(), inp, sum }
}

#[test]
fn a_recorded_program_runs_again_without_creating_anything() {
    for checked in [false, true] {
        let gpu = Gpu::open(&Options { checked, ..Options::default() }).unwrap_or_else(|e| panic!("{e}"));
        let layer = record(&gpu);
        let counts = || (gpu.buffers_created(), gpu.bind_groups_created(), gpu.allocated_bytes());
        let recorded = counts();
        for _ in 0..20 {
            layer.program.run(&gpu).expect("run");
        }
        gpu.wait().expect("wait");
        assert_eq!(counts(), recorded);
        // gelu(1) = 0.841192
        let sum = gpu.read_f32(&layer.sum).expect("read");
        assert!(sum.iter().all(|x| (x - 20.0 * 0.841_192).abs() < 1e-4), "{sum:?}");
        // recording the same operators on the same tensors again binds nothing new
        let mut pass = Pass::new(&gpu);
        let io = || residual::Forward { inp: &layer.inp, branch: &layer.inp, out: &layer.sum };
        residual::forward(&mut pass, io()).expect("recorded");
        let bound = gpu.bind_groups_created();
        residual::forward(&mut pass, io()).expect("recorded");
        assert_eq!(gpu.bind_groups_created(), bound);
    }
}

#[test]
fn timing_accounts_for_every_dispatch() {
    let gpu = Gpu::open(&Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let layer = record(&gpu);
    if !gpu.caps.timestamps {
        not_run("timing of programs", "the adapter has no timestamps");
        let error = layer.program.time(&gpu).expect_err("no timestamps");
        assert!(error.to_string().contains("timestamps"), "{error}");
        return;
    }
    let timings = layer.program.time(&gpu).expect("timed");
    let dispatches: Vec<usize> =
        (0..layer.program.commands.len()).filter(|&i| layer.program.commands[i].is_dispatch()).collect();
    assert_eq!(dispatches, [1, 2, 4]);
    assert_eq!(timings.iter().map(|t| t.command).collect::<Vec<_>>(), dispatches);
    assert_eq!(timings[0].begin_ms, 0.0);
    for timing in &timings {
        assert!(timing.begin_ms >= 0.0 && timing.end_ms >= timing.begin_ms && timing.end_ms < 60e3, "{timing:?}");
    }
    let sum = gpu.read_f32(&layer.sum).expect("read");
    assert!(sum.iter().all(|x| (x - 0.841_192).abs() < 1e-5), "a timed run computes too: {sum:?}");
}

/// More dispatches than one query set holds timestamps for.
#[test]
fn timing_of_a_long_program() {
    let gpu = Gpu::open(&Options::default()).unwrap_or_else(|e| panic!("{e}"));
    if !gpu.caps.timestamps {
        not_run("timing of programs", "the adapter has no timestamps");
        return;
    }
    let [inp, out] = ["inp", "out"].map(|name| gpu.tensor(name, 1, 4, Elem::F32).expect("memory"));
    let mut pass = Pass::new(&gpu);
    for _ in 0..2500 {
        residual::forward(&mut pass, residual::Forward { inp: &inp, branch: &inp, out: &out }).expect("recorded");
    }
    pass.clear(&out);
    let timings = pass.finish().time(&gpu).expect("timed");
    assert!(timings.iter().map(|t| t.command).eq(0..2500));
}

#[test]
fn a_dry_program_counts_as_a_real_one() {
    let real = Gpu::open(&Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let dry = Gpu::dry(real.caps.clone());
    let (a, b) = (record(&real), record(&dry));
    let facts = |layer: &Layer| {
        layer
            .program
            .commands
            .iter()
            .map(|c| (c.name().to_owned(), c.section, c.grid, c.flops, c.bytes))
            .collect::<Vec<_>>()
    };
    assert_eq!(facts(&a), facts(&b));
    assert_eq!(real.allocated_bytes(), dry.allocated_bytes());
    assert!(b.program.run(&dry).is_err());
}

/// `sum = inp + inp` of ones on a device, run and read.
fn added(gpu: &Gpu) -> f32 {
    let [inp, sum] = ["inp", "sum"].map(|name| gpu.tensor(name, 1, 4, Elem::F32).expect("memory"));
    gpu.write(&inp, bytemuck::cast_slice(&[1.0f32; 4])).expect("written");
    let mut pass = Pass::new(gpu);
    residual::forward(&mut pass, residual::Forward { inp: &inp, branch: &inp, out: &sum }).expect("recorded");
    pass.finish().run(gpu).expect("run");
    gpu.read_f32(&sum).expect("read")[0]
}

/// Kernels are shared; programs, tensors and bindings are not.
#[test]
fn a_dry_copy_shares_kernels_and_nothing_else() {
    let open = || Gpu::open(&Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let gpu = open();
    assert_eq!(added(&gpu), 2.0);
    let dry = gpu.dry_copy();
    let [inp, sum] = ["inp", "sum"].map(|name| dry.tensor(name, 1, 4, Elem::F32).expect("memory"));
    let io = || residual::Forward { inp: &inp, branch: &inp, out: &sum };
    let mut pass = Pass::new(&dry);
    residual::forward(&mut pass, io()).expect("recorded");
    // its kernel is built, its tensors are no buffers: it does nothing on the device
    pass.finish().run(&gpu).expect("nothing to do");
    let error = residual::forward(&mut Pass::new(&gpu), io()).expect_err("dry tensors on a device").to_string();
    assert!(error.contains("`inp` is a tensor of a dry device"), "{error}");
    assert_eq!(added(&gpu), 2.0);
    // what another device has built is of no use to a new one
    let other = open().adopting_kernels(gpu.dry_copy());
    assert_eq!(added(&other), 2.0);
    // nor is a dry device's cache to one that has recorded: its bind groups go by numbers of its own
    let planner = Gpu::dry(gpu.caps.clone());
    let [x, y] = ["x", "y"].map(|name| planner.tensor(name, 1, 4, Elem::F32).expect("memory"));
    gelu::forward(&mut Pass::new(&planner), gelu::Forward { inp: &x, out: &y }).expect("recorded");
    assert_eq!(added(&other.adopting_kernels(planner)), 2.0);
}

#[test]
fn handles_with_other_capabilities_share_the_device() {
    let gpu = Gpu::open(&Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let handle = gpu.with_caps(wgpt::gpu::Caps { max_groups: 1, ..gpu.caps.clone() });
    let layer = record(&gpu);
    layer.program.run(&handle).expect("run");
    let sum = handle.read_f32(&layer.sum).expect("read");
    assert!(sum.iter().all(|x| (x - 0.841_192).abs() < 1e-5), "{sum:?}");
    drop(gpu);
    assert_eq!(added(&handle), 2.0);
    // capabilities are those of the handle
    let tensor = handle.tensor("wide", 1, 1 << 12, Elem::F32).expect("memory");
    let io = residual::Forward { inp: &tensor, branch: &tensor, out: &tensor.clone() };
    assert!(residual::forward(&mut Pass::new(&handle), io).is_err(), "more than one workgroup");
}
