//! One operator each: its kernels, the checks of its shapes, its grid. No operator knows another, none knows a layer.
//!
//! Parameter gradients accumulate, activation gradients overwrite, the gradient of the residual stream accumulates.

pub mod adamw;
pub mod attention;
pub mod bias;
pub mod compare;
pub mod crossentropy;
pub mod embedding;
pub mod gelu;
pub mod gradnorm;
pub mod layernorm;
pub mod matmul;
pub mod residual;
pub mod roof;
pub mod stepcontrol;

use crate::gpu::{Caps, Elem, Kernel};

/// Invocations of a workgroup in kernels where each computes alone.
fn group(_caps: &Caps) -> u32 {
    64
}

/// Invocations of a workgroup that reduces together. A software adapter computes a workgroup of one vector's width
/// without ever switching between invocations at a barrier.
fn reduce_group(caps: &Caps) -> u32 {
    if caps.software { caps.lanes } else { 128 }
}

/// The types that activations may be stored as on this adapter.
fn stored(caps: &Caps) -> Vec<Elem> {
    if caps.f16 { vec![Elem::F32, Elem::F16] } else { vec![Elem::F32] }
}

/// Workgroups of `group` invocations for `count` invocations.
fn groups(count: usize, group: u32) -> u64 {
    (count as u64).div_ceil(u64::from(group))
}

/// Every kernel that any adapter may be given: for translation tests and `wgpt shader`.
#[must_use]
pub fn all_kernels() -> Vec<Kernel> {
    let mut kernels = Vec::new();
    for software in [false, true] {
        let mut caps = Caps::webgpu_defaults();
        caps.software = software;
        for lanes in if software { vec![4, 8, 16] } else { vec![0] } {
            caps.lanes = lanes;
            for list in [
                adamw::kernels(&caps),
                attention::kernels(&caps),
                bias::kernels(&caps),
                compare::kernels(&caps),
                crossentropy::kernels(&caps),
                embedding::kernels(&caps),
                gelu::kernels(&caps),
                gradnorm::kernels(&caps),
                layernorm::kernels(&caps),
                matmul::kernels(&caps),
                residual::kernels(&caps),
                roof::kernels(&caps),
                stepcontrol::kernels(&caps),
            ] {
                kernels.extend(list);
            }
        }
    }
    // many do not depend on the adapter
    let mut seen = std::collections::HashSet::new();
    kernels.retain(|kernel| seen.insert(format!("{kernel:?}")));
    kernels
}
