//! Comparisons on the GPU. [`forward`] counts words whose bits differ between two runs of a kernel; [`near`] counts
//! numbers that are farther than a tolerance from the expected values.

use std::ops::Range;

use crate::error::{Error, Fault, Result};
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Elem, Immediates, KernelId, OpPass, Pass, Tensor};

use super::{ELEMENTWISE_WORKGROUP, Operator, workgroups};

/// The pass that [`forward`] records.
pub const FORWARD: OpPass = OpPass::new("compare", "forward");
/// The pass that [`near`] records.
pub const NEAR: OpPass = OpPass::new("compare", "near");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator =
    Operator { name: "compare", passes: &[FORWARD, NEAR], kernels, tried: super::none_tried };

/// Contents of [`Forward::result`] before the first comparison.
pub const NO_DIFFERENCE: [u32; 2] = [0, u32::MAX];
/// Contents of [`Near::result`] before the first comparison.
pub const NONE_FAR_YET: [u32; 3] = [0, u32::MAX, 0];
/// Elements that an invocation of [`near`] compares: the shader's `EACH`.
const EACH: u32 = 64;

crate::shared_struct! {
    struct CompareNearImmediates {
        count: u32,
        base: u32,
        line: u32,
        first_column: u32,
        end_column: u32,
        tolerance: f32,
        stored: f32,
    }
}

const BODY: [&str; 1] = [include_str!("../../shaders/compare.wgsl")];

crate::shared_struct! {
    struct CompareImmediates {
        count: u32,
    }
}

fn kernel() -> KernelId {
    KernelId::shader(FORWARD, "forward", Width::Vec4, &BODY).set("WORKGROUP", ELEMENTWISE_WORKGROUP)
}

fn near_kernel(elem: Elem) -> KernelId {
    let (variant, half) = if elem == Elem::F16 { (".f16", 1) } else { ("", 0) };
    let kernel = KernelId::shader(NEAR, "near", Width::Vec4, &BODY).variant(variant);
    kernel.set("WORKGROUP", ELEMENTWISE_WORKGROUP).set("HALF", half)
}

/// Returns the kernels that an adapter may be given.
#[must_use]
pub fn kernels(_caps: &Caps) -> Vec<KernelId> {
    vec![kernel(), near_kernel(Elem::F32), near_kernel(Elem::F16)]
}

/// Tensors of [`forward`].
#[derive(Debug)]
pub struct Forward<'a> {
    /// Any shape, of 4-byte elements.
    pub first: &'a Tensor,
    /// The same number of bytes, in another buffer.
    pub again: &'a Tensor,
    /// (2, 1) u32, accumulated: number of words that differ, and the lowest position among them. It starts as
    /// [`NO_DIFFERENCE`].
    pub result: &'a Tensor,
}

/// `result[0] += words that differ`, `result[1] = min(result[1], position of the first)`. The position counts from the
/// start of a window; a tensor that is too large for one binding has several windows.
///
/// # Errors
/// [`Error::Shape`] if the sizes differ.
pub fn forward(pass: &mut Pass, io: Forward) -> Result<()> {
    if io.first.bytes() != io.again.bytes() {
        return Err(Error::shape(
            Fault::at("compare.forward", format!("`again` has {} bytes", io.again.bytes())).expected(io.first.bytes()),
        ));
    }
    io.result.check_shape("compare.forward", "result", 2, 1)?;
    let kernel = kernel();
    for rows in pass.row_windows(io.first.rows(), io.first.row_bytes()) {
        let (first, again) = (io.first.slice(rows.clone()), io.again.slice(rows));
        let count = (first.bytes() / 4) as usize;
        pass.dispatch(&Dispatch {
            kernel: &kernel,
            tensors: &[&first, &again, io.result],
            immediates: Immediates::of(&CompareImmediates { count: count as u32 }),
            groups: workgroups(count, ELEMENTWISE_WORKGROUP),
            flops: 0,
            bytes: 2 * first.bytes(),
        })?;
    }
    Ok(())
}

/// Tensors and numbers of [`near`].
#[derive(Debug)]
pub struct Near<'a> {
    /// Any shape, f32 or f16.
    pub got: &'a Tensor,
    /// The same shape, f32.
    pub want: &'a Tensor,
    /// The columns that are compared.
    pub columns: Range<usize>,
    /// Largest absolute difference from the expected value.
    pub tolerance: f32,
    /// Additional tolerance as a multiple of the expected value's magnitude.
    pub stored: f32,
    /// (3, 1) u32, accumulated: number of elements that are out of tolerance, the lowest position among them, and
    /// number of nonzero elements. It starts as [`NONE_FAR_YET`].
    pub result: &'a Tensor,
}

/// `result[0] += elements with |got - want| > tolerance + stored |want|`,
/// `result[1] = min(result[1], position of the first)`, `result[2] += elements that are not 0`. An infinite element or
/// a NaN is always out of tolerance. Positions count from the start of the whole tensor, row by row.
///
/// # Errors
/// [`Error::Shape`] if shapes differ, or there are more elements than a u32 counts.
pub fn near(pass: &mut Pass, io: Near) -> Result<()> {
    let place = "compare.near";
    let (rows, line) = (io.want.rows(), io.want.columns());
    io.got.check_shape(place, "got", rows, line)?;
    io.want.check_elem(place, "want", Elem::F32)?;
    io.result.check_shape(place, "result", 3, 1)?;
    if io.got.elem() == Elem::U32 || io.columns.end > line || u32::try_from(io.want.len()).is_err() {
        return Err(Error::shape(
            Fault::at(place, format!("{rows} x {line} elements of {:?}, columns {:?}", io.got.elem(), io.columns))
                .expected("fewer than 2^32 elements of f32 or f16, and columns within a row"),
        ));
    }
    let kernel = near_kernel(io.got.elem());
    for window in pass.row_windows(rows, io.want.row_bytes()) {
        let (got, want) = (io.got.slice(window.clone()), io.want.slice(window.clone()));
        let params = CompareNearImmediates {
            count: want.len() as u32,
            base: (window.start * line) as u32,
            line: line as u32,
            first_column: io.columns.start as u32,
            end_column: io.columns.end as u32,
            tolerance: io.tolerance,
            stored: io.stored,
        };
        pass.dispatch(&Dispatch {
            kernel: &kernel,
            tensors: &[&got, &want, io.result],
            immediates: Immediates::of(&params),
            groups: workgroups(want.len(), EACH * ELEMENTWISE_WORKGROUP),
            flops: 0,
            bytes: got.bytes() + want.bytes(),
        })?;
    }
    Ok(())
}
