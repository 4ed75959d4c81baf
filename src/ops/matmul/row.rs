//! The product of a single row: what generating a token asks for.

use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Elem, Kernel};
use crate::ops::reduce_group;

use super::generate::{Epilogue, Product, Spec};
use super::{Params, Window};

/// The kernel for a single row, where tiles of rows would compute mostly nothing, and its workgroups; `None` for any
/// other product.
pub(super) fn choose(caps: &Caps, window: &Window, spec: &Spec, p: &Params) -> Option<(Kernel, u64)> {
    let bias = match spec.epilogue {
        Epilogue::None => false,
        Epilogue::Bias => true,
        _ => return None,
    };
    let single = p.m == 1 && window.parts == 1 && spec.product == Product::Forward && !spec.accumulate;
    if !single || spec.operands != Elem::F32 || spec.out != Elem::F32 {
        return None;
    }
    // only what lies along k is read four at a time here
    let vec4 = [p.k, p.b_stride, p.a_offset, p.b_offset].iter().all(|x| x % 4 == 0);
    Some((kernel(caps, bias, vec4), u64::from(p.n)))
}

fn kernel(caps: &Caps, bias: bool, vec4: bool) -> Kernel {
    let (name, entry) =
        if bias { ("matmul_row.forward.bias", "forward_bias") } else { ("matmul_row.forward", "forward") };
    let width = if vec4 { Width::Vec4 } else { Width::Scalar };
    Kernel::new(name, entry, width, include_str!("../../../shaders/matmul_row.wgsl")).set("WG", reduce_group(caps))
}

/// The kernels an adapter may be given.
pub(super) fn kernels(caps: &Caps) -> [Kernel; 4] {
    [(false, false), (false, true), (true, false), (true, true)].map(|(bias, vec4)| kernel(caps, bias, vec4))
}
