//! Every operator, pass and kernel has a test. The plan of what runs is recorded on devices without memory.

use std::collections::BTreeSet;

use wgpt::cases::{self, Breadth, Case};
use wgpt::gpu::adapter::FlexibleMatrices;
use wgpt::gpu::{Caps, Gpu, KernelId, Vendor};
use wgpt::ops;
use wgpt::ops::matmul::{Algorithm, Spec};

use super::choice::{self, kernels_of as kernels_recorded};
use super::harness::{Mode, modes, with_other_vectors};
use crate::common::not_run::not_run;

/// The kernels that each case of a plan records.
type Plan = Vec<Vec<String>>;

fn planned(gpu: &Gpu, mode: &str, caps: &Caps, cases: Vec<Case>) -> Plan {
    cases.iter().map(|case| kernels_recorded(gpu, mode, caps, case)).collect()
}

/// The cases that run here, in this process and in those with other vectors.
fn plan(modes: &[Mode]) -> Plan {
    let (mut plan, gpu) = (Vec::new(), &Gpu::dry(Caps::webgpu_defaults()));
    for cases in cases::ALL {
        for (mode, list) in modes.iter().zip(choice::chosen(modes, cases)) {
            plan.extend(planned(gpu, mode.device.mode, &mode.device.caps, list));
        }
    }
    for caps in with_other_lanes(modes) {
        let cases = cases::ALL.iter().flat_map(|cases| (cases.tests)(&caps, Breadth::Family)).collect();
        plan.extend(planned(gpu, "other lanes", &caps, cases));
    }
    plan
}

/// Returns the adapter as the processes of `lanes.rs` find it.
fn with_other_lanes(modes: &[Mode]) -> Vec<Caps> {
    let release = &modes[0].device.caps;
    let others = [4, 16].into_iter().filter(|lanes| release.software && *lanes != release.lanes);
    others.map(|lanes| Caps { lanes, ..release.clone() }).collect()
}

/// Returns an adapter of every kind that the choice of kernels distinguishes. All cases are recorded for them.
fn adapters() -> Vec<Caps> {
    let plain = Caps { f16: true, ..Caps::webgpu_defaults() };
    let mut list = vec![plain.clone()];
    for (lanes, int64) in [(4, false), (4, true), (8, false), (8, true), (16, false), (16, true)] {
        list.push(Caps { software: true, lanes, int64, ..plain.clone() });
    }
    let matrices = |edge, kib: u32| Caps {
        subgroups: true,
        matrix_edges: vec![edge],
        matrix_functions: true,
        subgroup_sizes: (32, 32),
        max_workgroup_bytes: kib << 10,
        max_invocations: 1024,
        ..plain.clone()
    };
    for kib in [16, 32, 48] {
        list.extend([8, 16].map(|edge| matrices(edge, kib)));
    }
    let flexible = |workgroup| FlexibleMatrices { granularity: [8; 3], largest: 1024, workgroup, invocations: 256 };
    list.extend([true, false].map(|workgroup| Caps { flexible: Some(flexible(workgroup)), ..matrices(16, 32) }));
    list.extend([32, 48].map(|kib| Caps { vendor: Vendor::Amd, ..matrices(16, kib) }));
    list.push(Caps { vendor: Vendor::Amd, subgroup_sizes: (32, 64), ..matrices(16, 64) });
    list.push(Caps { backend: "Metal".into(), subgroup_sizes: (4, 64), ..matrices(8, 32) });
    // an edge of 8 comes with subgroups of 8 on software adapters
    list.push(Caps { software: true, lanes: 8, subgroup_sizes: (8, 8), ..matrices(8, 32) });
    list
}

/// Returns the name of a matrix kernel without its tiles, edge, lanes and number of parts, and its algorithm with its
/// tiles.
fn without_tiles(name: &str) -> (String, String) {
    let is_number = |part: &str| part.parse::<u32>().is_ok();
    let is_tile = |part: &str| is_number(part) || part.contains('x') && part.split('x').all(is_number);
    let is_edge = |part: &str| part.strip_prefix('e').is_some_and(is_number);
    let name = &*ops::matmul::parts::renamed(name, "parts");
    let (tiles, text): (Vec<&str>, Vec<&str>) = name.split('.').partition(|part| is_tile(part) || is_edge(part));
    (text.join("."), format!("{} {}", name.split('.').next().unwrap_or_default(), tiles.join(".")))
}

/// Returns the kernels of `all` that do not run. Every kernel must run; but of matrix kernels that share a text and
/// differ in tile shapes one must run, and every tile shape must run once.
fn missing<'a>(all: &BTreeSet<String>, run: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
    let (texts, shapes): (BTreeSet<String>, BTreeSet<String>) = run.map(|name| without_tiles(name)).unzip();
    let has_not = |name: &&String| {
        let (text, shape) = without_tiles(name);
        !texts.contains(&text) || !shapes.contains(&shape)
    };
    all.iter().filter(has_not).cloned().collect()
}

fn kernels_of(plan: &Plan) -> impl Iterator<Item = &String> {
    plan.iter().flatten()
}

/// Returns every kernel that this adapter may be given.
fn own_kernels(modes: &[Mode]) -> BTreeSet<String> {
    let full = modes.iter().filter(|mode| mode.breadth >= Breadth::Full);
    let of = |mode: &Mode| -> Vec<KernelId> {
        ops::OPERATORS.iter().flat_map(|operator| (operator.kernels)(&mode.device.caps)).collect()
    };
    // with other lanes only the tiles of products are other ones
    let others = with_other_lanes(modes);
    let in_rows = |kernel: &KernelId| {
        kernel.generator::<Spec>().is_some_and(|spec| matches!(spec.algorithm, Algorithm::Rows { .. }))
    };
    let tiles = others.iter().flat_map(ops::matmul::kernels).filter(in_rows);
    full.flat_map(of).chain(tiles).map(|kernel| kernel.name()).collect()
}

/// Returns why a kernel does not run although its operator lists it for this adapter.
fn excuse(name: &str, caps: &Caps) -> Option<&'static str> {
    let units = name.split('.').find_map(|part| part.strip_prefix("hsv")?.parse::<u32>().ok());
    let of_attention = name.starts_with("attention.") || name.starts_with("attention_tiled.");
    if of_attention && name.contains(".f16") && caps.software && units >= Some(8) {
        return Some("drivers of the CPU take minutes over f16 heads of 32 and more, `--ignored` runs it");
    }
    if name.starts_with("attention_tiled.") && caps.software && matches!(units, Some(8 | 20 | 24 | 32)) {
        return Some("drivers of the CPU take long over large heads, `--ignored` runs it");
    }
    let edge = name.strip_prefix("roof.matrix.").and_then(|size| size.split('x').next()?.parse().ok());
    edge.filter(|edge| !caps.matrix_edges.contains(edge)).map(|_| "the adapter has no such matrices")
}

#[test]
fn every_operator_and_every_pass_has_cases_that_run() {
    let adapters = adapters();
    for operator in ops::OPERATORS {
        let name = operator.name;
        let cases = cases::ALL.iter().find(|cases| std::ptr::eq(cases.operator, *operator));
        let cases = cases.unwrap_or_else(|| panic!("operator {name} has no table among wgpt::cases::ALL"));
        let list: Vec<Case> = adapters.iter().flat_map(|caps| (cases.tests)(caps, Breadth::Full)).collect();
        for pass in operator.passes {
            assert!(list.iter().any(|case| case.pass == *pass), "pass {pass} has no case in src/cases/{name}.rs");
        }
    }
    assert_eq!(cases::ALL.len(), ops::OPERATORS.len(), "wgpt::cases::ALL lists an operator twice");
}

#[test]
fn every_kernel_of_this_adapter_is_run_against_its_reference() {
    if with_other_vectors() {
        return;
    }
    let modes = modes();
    let own = own_kernels(&modes);
    let caps = modes.iter().map(|mode| &mode.device.caps).max_by_key(|caps| caps.matrix_edges.len()).expect("a mode");
    let plan = plan(&modes);
    let left_out: BTreeSet<String> = cases::ALL.iter().flat_map(|cases| choice::left_out(&modes, cases)).collect();
    let never = missing(&own, kernels_of(&plan).chain(&left_out));
    let left_out: Vec<String> = missing(&own, kernels_of(&plan)).difference(&never).cloned().collect();
    if !left_out.is_empty() {
        not_run(&left_out.join(" "), "each pair of their properties runs in other kernels, `--ignored` runs all");
    }
    let (excused, missing): (Vec<_>, Vec<_>) = never.into_iter().partition(|name| excuse(name, caps).is_some());
    for excused in excused.chunk_by(|a, b| excuse(a, caps) == excuse(b, caps)) {
        not_run(&excused.join(" "), excuse(&excused[0], caps).unwrap_or_default());
    }
    let others = ops::all_kernels().into_iter().filter(|kernel| !own.contains(&kernel.name())).count();
    not_run(&format!("{others} kernels"), "only other adapters are given them, and `translate` translates their texts");
    assert!(missing.is_empty(), "no case runs {missing:#?}");
}

/// On all kinds of adapters together the cases would run every kernel.
#[test]
fn every_kernel_of_any_adapter_has_a_case() {
    let (mut plan, gpu) = (Vec::new(), &Gpu::dry(Caps::webgpu_defaults()));
    for caps in adapters() {
        let cases = cases::ALL.iter().flat_map(|cases| (cases.tests)(&caps, Breadth::All)).collect();
        plan.extend(planned(gpu, "dry", &caps, cases));
    }
    let all = ops::all_kernels().into_iter().map(|kernel| kernel.name()).collect();
    let missing = missing(&all, kernels_of(&plan));
    assert!(missing.is_empty(), "no case of any adapter runs {missing:#?}");
}

/// A planted fault: without the cases that run it, a kernel whose text no other kernel has is reported by its name.
#[test]
fn a_case_left_out_of_the_plan_is_found_by_its_kernel() {
    if with_other_vectors() {
        return;
    }
    let modes = modes();
    let (all, plan) = (own_kernels(&modes), plan(&modes));
    let run: BTreeSet<&String> = kernels_of(&plan).collect();
    let alone =
        |kernel: &&&String| run.iter().filter(|other| without_tiles(other).0 == without_tiles(kernel).0).count() == 1;
    let kernels: Vec<&String> = run.iter().filter(alone).filter(|kernel| all.contains(**kernel)).copied().collect();
    assert!(kernels.len() > 100, "only {kernels:?} are tried");
    for kernel in kernels {
        let others = plan.iter().filter(|kernels| !kernels.contains(kernel)).flatten();
        assert!(missing(&all, others).contains(kernel), "{kernel} is not missed without its cases");
    }
}
