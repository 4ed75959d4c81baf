//! Whether a kernel that runs again makes the same bits, counted on the GPU.

use crate::error::{Error, Result};
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Kernel, Pass, Tensor};

use super::{group, groups};

/// What `result` must hold before the first comparison.
pub const NONE: [u32; 2] = [0, u32::MAX];

fn kernel(caps: &Caps) -> Kernel {
    Kernel::new("compare.forward", "forward", Width::Vec4, include_str!("../../shaders/compare.wgsl"))
        .set("WG", group(caps))
}

/// The kernels an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<Kernel> {
    vec![kernel(caps)]
}

/// Tensors of [`forward`].
#[derive(Debug)]
pub struct Forward<'a> {
    /// Any shape, of 4-byte elements.
    pub first: &'a Tensor,
    /// As many bytes, of another buffer.
    pub again: &'a Tensor,
    /// (2, 1) u32, accumulated: words that differ, and the lowest position among them; begins as [`NONE`].
    pub result: &'a Tensor,
}

/// `result[0] += words that differ`, `result[1] = min(result[1], position of the first)`. The position is that within
/// the window, of which large tensors have several.
///
/// # Errors
/// [`Error::Shape`] if the sizes differ.
pub fn forward(pass: &mut Pass, io: Forward) -> Result<()> {
    if io.first.bytes() != io.again.bytes() {
        return Err(Error::Shape(format!(
            "compare.forward: `again` has {} bytes, expected {}",
            io.again.bytes(),
            io.first.bytes()
        )));
    }
    io.result.expect("compare.forward", "result", 2, 1)?;
    let kernel = kernel(&pass.gpu.caps);
    for rows in pass.row_windows(io.first.rows(), io.first.row_bytes()) {
        let (first, again) = (io.first.slice(rows.clone()), io.again.slice(rows));
        let count = (first.bytes() / 4) as usize;
        pass.dispatch(&Dispatch {
            kernel: &kernel,
            tensors: &[&first, &again, io.result],
            immediates: bytemuck::bytes_of(&(count as u32)),
            groups: groups(count, group(&pass.gpu.caps)),
            flops: 0,
            bytes: 2 * first.bytes(),
        })?;
    }
    Ok(())
}
