//! Cases that do not fit the table: large tiles, the limits of f16, candidates of tuning.

use std::sync::Arc;

use wgpt::cases::matmul::{Depth, End, Layer, backward_inp, backward_weight, forward};
use wgpt::cases::{Case, Contents, STORED_F16, STORED_F32, Sample, Slot, bits};
use wgpt::gpu::{Caps, Gpu, Vendor};
use wgpt::ops::matmul::{self, Algorithm, CoopMatmul, Forward, Product, choose};

use super::harness::{check, devices, matrix_device};

type Shape = [usize; 3];

/// The products of a block of the 1558M model on 64 tokens. The model is too large to train here.
#[test]
fn products_of_1558m() {
    let devices = &devices()[..1];
    for [n, k] in [[4800, 1600], [1600, 1600], [6400, 1600], [1600, 6400]] {
        let layer = Layer { sample: Sample::Subset, ..Layer::new(STORED_F32, [64, n, k]) };
        let cases = [forward(layer, End::Bias), backward_inp(layer, false, 1), backward_weight(layer, Depth::Whole)];
        cases.iter().for_each(|case| check(devices, case));
    }
}

/// Products near the largest f16 number, and beyond it: results that do not fit are infinite, never a wrong number.
#[test]
fn results_past_the_largest_f16_are_infinite() {
    let mut devices = devices();
    devices.extend(matrix_device());
    devices.retain(|device| device.caps.f16);
    let [m, n, k]: Shape = [3, 8, 64];
    // 64 products of 30 and 34 are 65,280, of 32 and 32 are 65,536: 65,504 is the largest f16
    for (a, b, want) in [(30.0, 34.0, 65_280.0), (32.0, 32.0, f64::INFINITY), (-32.0, 33.0, f64::NEG_INFINITY)] {
        let slot = |name, shape| Slot::input(name, shape).of(STORED_F16.0);
        let out = Slot::overwritten("out", [m, n]).of(STORED_F16.0);
        let case = Case::new(
            matmul::FORWARD,
            format!("{a} {b}"),
            vec![slot("inp", [m, k]), slot("weight", [n, k]), out],
            |pass, t| matmul::forward(pass, Forward { inp: &t[0], weight: &t[1], bias: None, out: &t[2] }),
            move || {
                let infinite = u32::from(half::f16::from_f64(want).to_bits());
                let operands = [vec![a; m * k], vec![b; n * k]].map(|values| STORED_F16.contents(&values));
                let [inp, weight] = operands;
                vec![inp, weight, Contents::unwritten(bits(&vec![infinite; m * n]))]
            },
        );
        check(&devices, &case);
    }
}

/// A case of a candidate of `wgpt tune`, chosen as a record chooses it, on an adapter with 48 KiB of workgroup memory and
/// an edge of 16.
fn of_candidate(case: Case, product: Product, shape: Shape, coop: CoopMatmul) -> Case {
    let text = serde_json::to_string(&Algorithm::Coop(coop)).expect("serialises");
    case.on(move |caps| {
        (caps.emulated_edge, caps.max_workgroup_bytes) = (Some(16), 48 << 10);
        caps.tuned = Arc::new([(choose::key(product, STORED_F16.0, shape), text.clone())].into());
        assert_eq!(choose::choose(caps, product, STORED_F16.0, shape), Algorithm::Coop(coop));
    })
}

fn run_candidate(coop: CoopMatmul, all: bool) {
    let Some(device) = matrix_device() else { return };
    let [m, n, k] = [coop.tile_m + 12, coop.tile_n + 8, 2 * coop.tile_k + 8].map(|x| x as usize);
    let of = |case, product| of_candidate(case, product, [m, n, k], coop);
    let mut cases = vec![of(backward_weight(Layer::new(STORED_F16, [k, m, n]), Depth::Whole), Product::BackwardWeight)];
    if all {
        cases.push(of(forward(Layer::new(STORED_F16, [m, n, k]), End::Plain), Product::Forward));
        cases.push(of(backward_inp(Layer::new(STORED_F16, [m, k, n]), false, 1), Product::BackwardInp));
    }
    cases.iter().for_each(|case| check(std::slice::from_ref(&device), case));
}

fn candidates() -> Vec<CoopMatmul> {
    let Some(device) = matrix_device() else { return Vec::new() };
    let mut caps = device.caps;
    (caps.emulated_edge, caps.max_workgroup_bytes) = (Some(16), 48 << 10);
    let coops = choose::candidates(&caps, STORED_F16.0).into_iter().filter_map(|algorithm| match algorithm {
        Algorithm::Coop(coop) => Some(coop),
        _ => None,
    });
    coops.collect()
}

/// A tile with lines of 96, which do not divide evenly among a workgroup's invocations and whose indices divide by 12.
/// A driver of the CPU takes ten seconds over each kernel: one here, the others by hand, with `--ignored`.
#[test]
fn candidates_with_lines_of_96() {
    let coops = candidates();
    let coop = coops.iter().find(|c| [c.tile_m, c.tile_n, c.tile_k, c.grid_n] == [96, 128, 16, 4]);
    assert!(coop.is_some() || coops.is_empty(), "no such candidate");
    coop.iter().for_each(|coop| run_candidate(**coop, false));
}

/// A case on an adapter that is no software, but in the smallest tiles: with the form of GPUs' kernels, whose steps are
/// written out and whose first tile is multiplied before the loop.
fn in_small_tiles(case: Case, product: Product, shape: Shape, (vendor, buffers, edge): (Vendor, u32, u32)) -> Case {
    case.on(move |caps| {
        (caps.software, caps.vendor) = (false, vendor);
        caps.emulated_edge = (edge == 16).then_some(16);
        let is_wanted =
            |coop: &&CoopMatmul| [coop.tile_m, coop.tile_n, coop.tile_k, coop.buffers] == [32, 32, 16, buffers];
        let candidates = choose::candidates(caps, STORED_F16.0);
        let coops = candidates.iter().filter_map(|a| if let Algorithm::Coop(coop) = a { Some(coop) } else { None });
        let coop = *coops.into_iter().find(is_wanted).expect("a candidate of these tiles");
        assert!(coop.unrolled && coop.units.functions);
        assert_eq!([coop.peeled, coop.transposed], [Vendor::Nvidia, Vendor::Amd].map(|of| vendor == of));
        let text = serde_json::to_string(&Algorithm::Coop(coop)).expect("serialises");
        caps.tuned = Arc::new([(choose::key(product, STORED_F16.0, shape), text)].into());
        assert_eq!(choose::choose(caps, product, STORED_F16.0, shape), Algorithm::Coop(coop));
    })
}

/// Tiles in one buffer and in two, as they lie in memory and transposed while they are filled, on the adapter's
/// matrices and on larger ones: ends from registers, all of them in the first form, and a kernel for ragged tiles.
#[test]
fn kernels_of_gpus_in_small_tiles() {
    let Some(device) = matrix_device() else { return };
    let [m, n, k]: Shape = [64, 96, 64];
    let (nvidia, amd, other) = (Vendor::Nvidia, Vendor::Amd, Vendor::Other);
    let forms = [(nvidia, 1, 8), (nvidia, 2, 8), (amd, 1, 8), (amd, 2, 8), (nvidia, 1, 16), (other, 1, 8)];
    for (at, form) in forms.into_iter().enumerate() {
        let layer = Layer::new(STORED_F16, [m, n, k]);
        let ends = if at == 0 { &End::ALL[..] } else { &[End::Gelu] };
        let mut cases: Vec<Case> =
            ends.iter().map(|end| in_small_tiles(forward(layer, *end), Product::Forward, [m, n, k], form)).collect();
        cases.push(in_small_tiles(backward_inp(layer, true, 1), Product::BackwardInp, [m, k, n], form));
        if at == 0 {
            // two windows of the weight, the second of which adds to what the first one left
            let windows = backward_inp(Layer::new(STORED_F16, [64, 128, 128]), false, 2);
            let windows = in_small_tiles(windows, Product::BackwardInp, [64, 128, 64], form);
            cases.push(windows.on(|caps| caps.max_binding_bytes = 16_384));
            cases.push(in_small_tiles(backward_weight(layer, Depth::Whole), Product::BackwardWeight, [n, k, m], form));
        }
        // parts of 528 and 512
        let deep = Layer::new(STORED_F16, [1040, n, k]);
        let parts = Depth::PartsAndBias(2, 2 * n * k);
        cases.push(in_small_tiles(backward_weight(deep, parts), Product::BackwardWeight, [n, k, 1040], form));
        let ragged = Layer::new(STORED_F16, [40, 72, 104]);
        cases.push(in_small_tiles(forward(ragged, End::Bias), Product::Forward, [40, 72, 104], form));
        for case in &cases {
            let program = case.dry(&Gpu::dry(Caps::webgpu_defaults()), &device.caps).expect("records");
            let names: Vec<&str> = program.commands.iter().map(wgpt::gpu::Command::name).collect();
            assert!(names.iter().any(|name| name.contains(&format!("32x32x16.2x2.e{}", form.2))), "{case}: {names:?}");
            check(std::slice::from_ref(&device), case);
        }
    }
}

/// GELU must be of the f16 that is kept, or it cannot be computed again from it with the same bits. A driver that drops
/// a conversion there and back gives a quarter of other results.
#[test]
fn gelu_is_of_what_is_kept() {
    let Some(device) = matrix_device() else { return };
    let [m, n, k]: Shape = [64, 96, 64];
    let (kept, gelu) = device.run(&device.caps, |gpu| {
        let values = |count: usize, seed: usize| -> Vec<u8> {
            let value = |i: usize| ((i * 7919 + seed) % 509) as f32 / 509.0 - 0.5;
            (0..count).flat_map(|i| half::f16::from_f32(value(i)).to_le_bytes()).collect()
        };
        let tensor = |name, rows, columns| gpu.tensor(name, rows, columns, STORED_F16.0).expect("a tensor");
        let (inp, weight) = (tensor("inp", m, k), tensor("weight", n, k));
        let (out, gelu) = (tensor("out", m, n), tensor("gelu", m, n));
        let bias = gpu.tensor("bias", 1, n, wgpt::gpu::Elem::F32).expect("a tensor");
        gpu.write(&inp, &values(m * k, 1)).and(gpu.write(&weight, &values(n * k, 2))).expect("written");
        gpu.write(&bias, &vec![0; 4 * n]).expect("written");
        let mut pass = wgpt::gpu::Pass::new(gpu);
        let io = Forward { inp: &inp, weight: &weight, bias: Some(&bias), out: &out };
        matmul::forward_gelu(&mut pass, io, &gelu).expect("recorded");
        let program = pass.finish();
        assert!(program.commands[0].name().ends_with(".bias_gelu.wide"), "{}", program.commands[0].name());
        program.run(gpu).expect("runs");
        let read = |tensor| -> Vec<half::f16> {
            let bytes = gpu.read(tensor).expect("read");
            bytes.chunks_exact(2).map(|two| half::f16::from_le_bytes([two[0], two[1]])).collect()
        };
        (read(&out), read(&gelu))
    });
    let kept: Vec<f64> = kept.into_iter().map(f64::from).collect();
    let wanted = wgpt::reference::gelu::forward(&kept).into_iter().map(half::f16::from_f64);
    let others = gelu.iter().zip(wanted).filter(|(found, wanted)| **found != *wanted).count();
    assert!(kept.iter().any(|x| x.abs() > 0.5) && others * 50 < m * n, "{others} of {} differ", m * n);
}

#[test]
#[ignore = "takes half an hour on software Vulkan"]
fn all_candidates() {
    for coop in candidates() {
        let begin = std::time::Instant::now();
        run_candidate(coop, true);
        println!("{}: {:.0} s", Algorithm::Coop(coop), begin.elapsed().as_secs_f64());
    }
}
