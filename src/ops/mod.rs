//! Each module is one operator: its kernels, its shape checks and its grid. Operators do not use each other, with two
//! exceptions: [`sums`] adds partial sums that several operators write, and [`stepcontrol`] owns tensors that some
//! bind. No operator knows about layers.
//!
//! Parameter gradients accumulate, activation gradients overwrite, and the gradient of the residual stream accumulates.

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

use crate::gpu::adapter::FlexibleMatrices;
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Elem, KernelId, OpPass, Vendor};

/// Invocations of a workgroup in kernels whose invocations are independent of each other.
const ELEMENTWISE_WORKGROUP: u32 = 64;

/// Returns the invocations of a workgroup that computes a reduction. On a software adapter this is the width of a CPU
/// vector, so that the driver never has to switch between invocations at a barrier.
fn reduction_workgroup(caps: &Caps) -> u32 {
    if caps.software { caps.lanes } else { 128 }
}

/// Returns the invocations of a subgroup on adapters whose kernels may add up over subgroups. Returns `None` where
/// subgroups have several sizes and a kernel cannot choose one, and on Intel's GPUs, whose drivers choose a size of at
/// least 8 by a kernel's registers.
fn subgroup_lanes(caps: &Caps) -> Option<u32> {
    // wgpu reports 4 to 64 on Metal, but Apple's GPUs have 32
    let apple = caps.backend == "Metal" && caps.vendor == Vendor::Apple;
    let (least, most) = if apple { (32, 32) } else { caps.subgroup_sizes };
    let fixed = least == most || least >= 32 && caps.can_require_subgroups_of(least);
    (caps.subgroups && !caps.software && fixed && least >= 8).then_some(least)
}

/// Returns the types that activations may be stored as on this adapter.
pub(crate) fn storage_types(caps: &Caps) -> Vec<Elem> {
    if caps.f16 { vec![Elem::F32, Elem::F16] } else { vec![Elem::F32] }
}

/// Returns the widths of kernels whose elements are stored as `elem`.
fn widths(elem: Elem) -> &'static [Width] {
    if elem == Elem::F16 { &[Width::Vec8, Width::Vec4, Width::Scalar] } else { &[Width::Vec4, Width::Scalar] }
}

/// Returns the number of workgroups of `size` invocations that make up `count` invocations.
fn workgroups(count: usize, size: u32) -> u64 {
    (count as u64).div_ceil(u64::from(size))
}

/// Returns one adapter of every kind for which other kernels are chosen: GPUs and software adapters of every width,
/// with and without f16. Those with f16 include matrix units of both edges, large and small workgroup memory, and
/// subgroups of one or several sizes, where a kernel can or cannot require one.
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
        let flexible = Some(FlexibleMatrices { granularity, largest: 1024, workgroup, invocations: 256 });
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

/// An operator: its name, its passes and its kernels.
#[derive(Debug)]
pub struct Operator {
    /// Name, which is also the stem of its files: `layernorm`.
    pub name: &'static str,
    /// Passes, in the order in which counts and benches list them.
    pub passes: &'static [OpPass],
    /// Returns the kernels that an adapter may be given.
    pub kernels: fn(&Caps) -> Vec<KernelId>,
    /// Returns the kernels that `wgpt tune` tries in addition to those.
    pub tried: fn(&Caps) -> Vec<KernelId>,
}

/// Calls a macro with the names of all operators. This is the one list: kernels, cases, tests, benches and counts start
/// from it. If a name does not resolve here, its `mod` line is missing in `src/ops/mod.rs` or in `src/cases/mod.rs`.
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

/// Returns no kernels, for operators without anything to tune.
fn none_tried(_caps: &Caps) -> Vec<KernelId> {
    Vec::new()
}

/// Returns kernels that `wgpt tune` tries, for translation tests: all on an adapter with 16×16 matrices, and those of
/// the forward passes on Apple's GPUs, where texts are long.
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

/// Returns the kernels that an adapter may be given, and those that `wgpt tune` tries on it.
#[must_use]
pub fn kernels_of(caps: &Caps) -> Vec<KernelId> {
    let of = |operator: &&Operator| [(operator.kernels)(caps), (operator.tried)(caps)].concat();
    each_once(OPERATORS.iter().flat_map(of).collect())
}

/// Removes duplicates, keeping the first of equal kernels and their order.
#[must_use]
pub fn each_once(mut kernels: Vec<KernelId>) -> Vec<KernelId> {
    let mut seen = std::collections::HashSet::new();
    kernels.retain(|kernel| seen.insert(kernel.clone()));
    kernels
}

/// Returns every kernel that any adapter may be given, for translation tests and `wgpt shader`.
#[must_use]
pub fn all_kernels() -> Vec<KernelId> {
    let adapters = sample_adapters();
    let of_adapter = |caps| OPERATORS.iter().flat_map(move |operator| (operator.kernels)(caps));
    // many kernels do not depend on the adapter
    each_once(adapters.iter().flat_map(of_adapter).collect())
}
