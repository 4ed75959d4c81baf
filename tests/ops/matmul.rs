//! Cases that the table has no room for: large tiles, edges of f16, candidates of tuning.

use std::sync::Arc;

use wgpt::cases::matmul::{Depth, End, Layer, backward_inp, backward_weight, forward};
use wgpt::cases::{Case, Contents, FULL, HALF, Sample, Slot, bits};
use wgpt::ops::matmul::{self, Algorithm, Coop, Forward, Product, choose};

use crate::harness::{check, devices, matrix_device};

type Shape = [usize; 3];

/// The products of a block of 1558M on 64 tokens, which is too large a model to train here.
#[test]
fn products_of_1558m() {
    let devices = &devices()[..1];
    for [n, k] in [[4800, 1600], [1600, 1600], [6400, 1600], [1600, 6400]] {
        let layer = Layer { sample: Sample::Some, ..Layer::new(FULL, [64, n, k]) };
        let cases = [forward(layer, End::Bias), backward_inp(layer, false, 1), backward_weight(layer, Depth::Whole)];
        cases.iter().for_each(|case| check(devices, case));
    }
}

/// Products near f16's largest number, and beyond: results that do not fit are infinite, never a wrong number.
#[test]
fn results_past_the_largest_f16_are_infinite() {
    let mut devices = devices();
    devices.extend(matrix_device());
    devices.retain(|device| device.caps.f16);
    let [m, n, k]: Shape = [3, 8, 64];
    // 64 products of 30 and 34 are 65,280, of 32 and 32 are 65,536: 65,504 is the largest f16
    for (a, b, want) in [(30.0, 34.0, 65_280.0), (32.0, 32.0, f64::INFINITY), (-32.0, 33.0, f64::NEG_INFINITY)] {
        let slot = |name, shape| Slot::input(name, shape).of(HALF.0);
        let out = Slot::overwritten("out", [m, n]).of(HALF.0);
        let case = Case::new(
            matmul::FORWARD,
            format!("{a} {b}"),
            vec![slot("inp", [m, k]), slot("weight", [n, k]), out],
            |pass, t| matmul::forward(pass, Forward { inp: &t[0], weight: &t[1], bias: None, out: &t[2] }),
            move || {
                let infinite = u32::from(half::f16::from_f64(want).to_bits());
                let operands = [vec![a; m * k], vec![b; n * k]].map(|values| HALF.contents(&values));
                let [inp, weight] = operands;
                vec![inp, weight, Contents::unwritten(bits(&vec![infinite; m * n]))]
            },
        );
        check(&devices, &case);
    }
}

/// A case of a candidate of `wgpt tune`, chosen as a record chooses it, on an adapter with 48 KiB of workgroup memory and
/// an edge of 16.
fn of_candidate(case: Case, product: Product, shape: Shape, coop: Coop) -> Case {
    let text = serde_json::to_string(&Algorithm::Coop(coop)).expect("serialises");
    case.on(move |caps| {
        (caps.emulated_edge, caps.max_workgroup_bytes) = (Some(16), 48 << 10);
        caps.tuned = Arc::new([(choose::key(product, HALF.0, shape), text.clone())].into());
        assert_eq!(choose::choose(caps, product, HALF.0, shape), Algorithm::Coop(coop));
    })
}

fn run_candidate(coop: Coop, all: bool) {
    let Some(device) = matrix_device() else { return };
    let [m, n, k] = [coop.tile_m + 12, coop.tile_n + 8, 2 * coop.tile_k + 8].map(|x| x as usize);
    let of = |case, product| of_candidate(case, product, [m, n, k], coop);
    let mut cases = vec![of(backward_weight(Layer::new(HALF, [k, m, n]), Depth::Whole), Product::BackwardWeight)];
    if all {
        cases.push(of(forward(Layer::new(HALF, [m, n, k]), End::Plain), Product::Forward));
        cases.push(of(backward_inp(Layer::new(HALF, [m, k, n]), false, 1), Product::BackwardInp));
    }
    cases.iter().for_each(|case| check(std::slice::from_ref(&device), case));
}

fn candidates() -> Vec<Coop> {
    let Some(device) = matrix_device() else { return Vec::new() };
    let mut caps = device.caps;
    (caps.emulated_edge, caps.max_workgroup_bytes) = (Some(16), 48 << 10);
    let coops = choose::candidates(&caps, HALF.0).into_iter().filter_map(|algorithm| match algorithm {
        Algorithm::Coop(coop) => Some(coop),
        _ => None,
    });
    coops.collect()
}

/// A tile with lines of 96, which do not divide evenly among a workgroup's invocations and whose indices divide by 12. A
/// driver of the CPU takes ten seconds over each kernel: one here, the others by hand, with `--ignored`.
#[test]
fn candidates_with_lines_of_96() {
    let coops = candidates();
    let coop = coops.iter().find(|c| [c.tile_m, c.tile_n, c.tile_k, c.grid_n] == [96, 128, 16, 4]);
    assert!(coop.is_some() || coops.is_empty(), "no such candidate");
    coop.iter().for_each(|coop| run_candidate(**coop, false));
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
