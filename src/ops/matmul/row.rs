//! The product of a single row, which generation computes for each token.

use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Elem, KernelId, Purpose};
use crate::ops::reduction_workgroup;

use super::generate::{Epilogue, Product, Spec};
use super::{FORWARD, MatmulImmediates, ProductWindow};

/// Returns the kernel for a single row and its number of workgroups, or `None` for any other product. Kernels with
/// tiles of rows would waste most of their work on a single row.
pub(super) fn choose(
    caps: &Caps,
    window: &ProductWindow,
    spec: &Spec,
    p: &MatmulImmediates,
) -> Option<(KernelId, u64)> {
    let single = p.m == 1 && window.parts == 1 && spec.product == Product::Forward && !spec.accumulate;
    if !single || spec.epilogue == Epilogue::GeluBackward || spec.operands != Elem::F32 || spec.out != Elem::F32 {
        return None;
    }
    // only data along k is read four at a time here
    let vec4 = [p.k, p.b_stride, p.a_offset, p.b_offset].iter().all(|x| x % 4 == 0);
    Some((kernel(caps, spec.epilogue, vec4), u64::from(p.n)))
}

fn kernel(caps: &Caps, epilogue: Epilogue, vec4: bool) -> KernelId {
    let (variant, entry) = match epilogue {
        Epilogue::Bias => (".bias", "forward_bias"),
        Epilogue::BiasGelu => (".bias_gelu", "forward_bias_gelu"),
        Epilogue::BiasResidual => (".bias_residual", "forward_bias_residual"),
        Epilogue::None | Epilogue::GeluBackward | Epilogue::ColumnSums => ("", "forward"),
    };
    let width = if vec4 { Width::Vec4 } else { Width::Scalar };
    let body = [include_str!("../../../shaders/shared/gelu.wgsl"), include_str!("../../../shaders/matmul_row.wgsl")];
    KernelId::shader(FORWARD, entry, width, &body)
        .printed("matmul_row", "forward")
        .variant(variant)
        .serving(Purpose::Product)
        .set("WORKGROUP", reduction_workgroup(caps))
}

/// Returns the kernels that an adapter may be given.
pub(super) fn kernels(caps: &Caps) -> Vec<KernelId> {
    let of = |vec4| {
        [Epilogue::None, Epilogue::Bias, Epilogue::BiasGelu, Epilogue::BiasResidual].map(|e| kernel(caps, e, vec4))
    };
    [of(true), of(false)].concat()
}
