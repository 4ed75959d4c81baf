//! One operator each: its kernels, the checks of its shapes, its grid. No operator knows another but [`sums`], which finishes
//! what several begin, and [`stepcontrol`], whose numbers some bind; none knows a layer.
//!
//! Parameter gradients accumulate, activation gradients overwrite, the gradient of the residual stream accumulates.

pub mod adamw;
pub mod attention;
pub mod bias;
pub mod cast;
pub mod compare;
pub mod crossentropy;
pub mod embedding;
pub mod gelu;
pub mod gradnorm;
pub mod hash;
pub mod layernorm;
pub mod matmul;
pub mod matrix_units;
pub mod residual;
pub mod roof;
pub mod stepcontrol;
pub mod sums;
pub mod tree;
pub mod wire;

use crate::gpu::adapter::Flexible;
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Elem, KernelId, OpPass, Vendor};

/// Invocations of a workgroup in kernels whose invocations do not work together.
const ELEMENTWISE_WORKGROUP: u32 = 64;

/// Invocations of a workgroup that reduces together. A software adapter computes a workgroup of one vector's width
/// without ever switching between invocations at a barrier.
fn reduction_workgroup(caps: &Caps) -> u32 {
    if caps.software { caps.lanes } else { 128 }
}

/// Invocations of every subgroup, on adapters whose kernels may add up over subgroups. `None` where subgroups come in several
/// sizes that a kernel cannot choose between, and on Intel's GPUs, whose drivers choose from 8 on by a kernel's registers.
fn subgroup_lanes(caps: &Caps) -> Option<u32> {
    // wgpu reports 4 to 64 on Metal
    let apple = caps.backend == "Metal" && caps.vendor == Vendor::Apple;
    let (least, most) = if apple { (32, 32) } else { caps.subgroup_sizes };
    let fixed = least == most || least >= 32 && caps.can_require_subgroups_of(least);
    (caps.subgroups && !caps.software && fixed && least >= 8).then_some(least)
}

/// The types that activations may be stored as on this adapter.
pub(crate) fn storage_types(caps: &Caps) -> Vec<Elem> {
    if caps.f16 { vec![Elem::F32, Elem::F16] } else { vec![Elem::F32] }
}

/// The widths of kernels whose elements are stored as `elem`.
fn widths(elem: Elem) -> &'static [Width] {
    if elem == Elem::F16 { &[Width::Vec8, Width::Vec4, Width::Scalar] } else { &[Width::Vec4, Width::Scalar] }
}

/// Workgroups of `group` invocations for `count` invocations.
fn workgroups(count: usize, size: u32) -> u64 {
    (count as u64).div_ceil(u64::from(size))
}

/// Adapters of every kind that kernels are chosen by: GPUs and software adapters of every width, each with and without
/// f16; and with f16 those with matrix units of both edges, with much and little workgroup memory, with subgroups of one
/// and of several sizes, which a kernel can choose between or not.
fn sample_adapters() -> Vec<Caps> {
    let plain = Caps::webgpu_defaults();
    let mut adapters = vec![plain.clone(), Caps { f16: true, ..plain.clone() }];
    adapters.extend([4, 8, 16].map(|lanes| Caps { software: true, lanes, ..plain.clone() }));
    adapters.push(Caps { software: true, lanes: 16, f16: true, ..plain.clone() });
    let matrices = |edge, subgroup_sizes| Caps {
        f16: true,
        subgroups: true,
        matrix_edges: vec![edge],
        matrix_functions: true,
        subgroup_sizes,
        max_workgroup_bytes: 32 << 10,
        max_invocations: 1024,
        ..plain.clone()
    };
    adapters.push(matrices(16, (32, 32)));
    for (workgroup, granularity) in [(true, [16; 3]), (false, [8; 3])] {
        let flexible = Some(Flexible { granularity, largest: 1024, workgroup, invocations: 256 });
        adapters.push(Caps { flexible, ..matrices(16, (32, 32)) });
    }
    for vendor in [Vendor::Nvidia, Vendor::Amd] {
        adapters.push(Caps { vendor, ..plain.clone() });
        adapters.push(Caps { vendor, ..matrices(16, (32, 32)) });
    }
    adapters.push(matrices(16, (32, 64)));
    let many_lanes = Caps { max_workgroup_bytes: 64 << 10, ..matrices(16, (32, 64)) };
    adapters.push(Caps { subgroup_control: true, ..many_lanes.clone() });
    adapters.push(many_lanes);
    adapters.push(Caps { max_workgroup_bytes: 48 << 10, ..matrices(16, (32, 32)) });
    adapters.push(Caps { max_workgroup_bytes: 16 << 10, ..matrices(16, (32, 32)) });
    adapters.push(Caps { backend: "Metal".into(), ..matrices(8, (4, 64)) });
    adapters.push(Caps { software: true, lanes: 8, ..matrices(8, (8, 8)) });
    adapters
}

/// An operator: its name, which files and tests share, its passes, and its kernels.
#[derive(Debug)]
pub struct Operator {
    /// The stem of its files: `layernorm`.
    pub name: &'static str,
    /// Its passes, as counts and benches list them.
    pub passes: &'static [OpPass],
    /// Returns the kernels that an adapter may be given.
    pub kernels: fn(&Caps) -> Vec<KernelId>,
    /// Returns the kernels that `wgpt tune` tries there beside those.
    pub tried: fn(&Caps) -> Vec<KernelId>,
}

/// Calls a macro with the names of all operators. This is the one list: kernels, cases, tests, benches and counts start from
/// it. A name that does not resolve here lacks its `mod` line, in `src/ops/mod.rs` or in `src/cases/mod.rs`.
#[macro_export]
macro_rules! for_each_operator {
    ($then:ident) => {
        $then! {
            adamw attention bias cast compare crossentropy embedding gelu gradnorm hash layernorm matmul residual roof stepcontrol sums tree wire
        }
    };
}

macro_rules! list {
    ($($name:ident)*) => {
        /// All operators, in the order of their names.
        pub static OPERATORS: &[&Operator] = &[$(&$name::OPERATOR),*];
    };
}
for_each_operator!(list);

/// Of operators that have nothing to tune.
fn none_tried(_caps: &Caps) -> Vec<KernelId> {
    Vec::new()
}

/// Kernels of which `wgpt tune` tries each, on an adapter with matrices of 16, and the forward's on Apple's, whose texts are
/// long: for translation tests.
#[must_use]
pub fn tried_kernels() -> Vec<KernelId> {
    let apple = |caps: &Caps| caps.backend == "Metal";
    let is_sample = |caps: &Caps| {
        let roomy = apple(caps) || caps.max_workgroup_bytes == 48 << 10;
        roomy && !caps.software && !caps.matrix_edges.is_empty()
    };
    let tried = |caps: Caps| {
        let mut kernels: Vec<KernelId> = OPERATORS.iter().rev().flat_map(|operator| (operator.tried)(&caps)).collect();
        kernels.retain(|kernel| !apple(&caps) || kernel.operator.pass == "forward");
        kernels
    };
    sample_adapters().into_iter().filter(is_sample).flat_map(tried).collect()
}

/// The kernels that an adapter may be given, and those that `wgpt tune` tries there.
#[must_use]
pub fn kernels_of(caps: &Caps) -> Vec<KernelId> {
    let of = |operator: &&Operator| [(operator.kernels)(caps), (operator.tried)(caps)].concat();
    each_once(OPERATORS.iter().flat_map(of).collect())
}

/// Keeps the first of equal kernels, in their order.
#[must_use]
pub fn each_once(mut kernels: Vec<KernelId>) -> Vec<KernelId> {
    let mut seen = std::collections::HashSet::new();
    kernels.retain(|kernel| seen.insert(kernel.clone()));
    kernels
}

/// Every kernel that any adapter may be given: for translation tests and `wgpt shader`.
#[must_use]
pub fn all_kernels() -> Vec<KernelId> {
    let adapters = sample_adapters();
    let of_adapter = |caps| OPERATORS.iter().flat_map(move |operator| (operator.kernels)(caps));
    // many do not depend on the adapter
    each_once(adapters.iter().flat_map(of_adapter).collect())
}
