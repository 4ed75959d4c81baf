//! The three matrix products of a linear layer: `out = inp weightᵀ + bias`, `dinp = dout weight`,
//! `dweight += doutᵀ inp`. Bias, GELU, residual and bias gradient are fused into them. Operands are f32 or f16, sums
//! f32.

pub mod choose;
pub mod generate;
pub mod parts;
mod row;

use std::ops::Range;

use crate::error::{Error, Fault, Result};
use crate::gpu::kernel::{Generator, Width};
use crate::gpu::{Arithmetic, Dispatch, Elem, Immediates, KernelId, OpPass, Pass, Purpose, Tensor};

use super::Operator;
use super::sums::{self, Sums};

pub use choose::kernels;
pub use generate::{Algorithm, CoopMatmul, Epilogue, PRODUCTS, Product, Spec};
use parts::part_depth;
pub use parts::partial_sums_len;

/// The pass that [`forward`] records.
pub const FORWARD: OpPass = OpPass::new("matmul", "forward");
/// The pass that [`backward_inp`] records.
pub const BACKWARD_INP: OpPass = OpPass::new("matmul", "backward_inp");
/// The pass that [`backward_weight`] records.
pub const BACKWARD_WEIGHT: OpPass = OpPass::new("matmul", "backward_weight");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator = Operator {
    name: "matmul",
    passes: &[FORWARD, BACKWARD_INP, BACKWARD_WEIGHT],
    kernels,
    tried: choose::tried_kernels,
};

crate::shared_struct! {
    /// The immediates of every matrix kernel, in elements; see [`generate`].
    struct MatmulImmediates {
        m: u32,
        n: u32,
        k: u32,
        a_stride: u32,
        b_stride: u32,
        out_stride: u32,
        a_offset: u32,
        b_offset: u32,
        out_offset: u32,
        bias_offset: u32,
        part_depth: u32,
    }
}

impl Generator for Spec {
    fn family(&self) -> String {
        generate::name(self)
    }

    fn name(&self) -> String {
        generate::full_name(self)
    }

    fn text(&self) -> String {
        generate::wgsl(self)
    }

    fn subgroup_size(&self) -> Option<u32> {
        match self.algorithm {
            Algorithm::Coop(coop) => Some(coop.units.lanes),
            _ => None,
        }
    }

    fn arithmetic(&self) -> Arithmetic {
        match self.algorithm {
            Algorithm::Coop(_) => Arithmetic::Matrix,
            _ => Arithmetic::of(self.operands),
        }
    }
}

/// Returns the pass of a product.
#[must_use]
pub fn pass_of(product: Product) -> OpPass {
    match product {
        Product::Forward => FORWARD,
        Product::BackwardInp => BACKWARD_INP,
        Product::BackwardWeight => BACKWARD_WEIGHT,
    }
}

/// Returns whether a product's kernel adds to the previous contents of its result.
#[must_use]
pub fn accumulates(kernel: &KernelId) -> bool {
    kernel.purpose == Purpose::PartialSums || kernel.generator::<Spec>().is_some_and(|spec| spec.accumulate)
}

fn kernel(spec: &Spec) -> KernelId {
    let of = pass_of(spec.product);
    KernelId::generated(of, of.pass, Purpose::Product, *spec)
}

/// The window of a product that one dispatch computes.
struct ProductWindow<'a> {
    product: Product,
    a: &'a Tensor,
    b: &'a Tensor,
    out: &'a Tensor,
    /// Tensors of the bindings from 3 on.
    more: &'a [&'a Tensor],
    epilogue: Epilogue,
    accumulate: bool,
    /// Number of parts of the depth, whose sums are consecutive in `out`.
    parts: u32,
    params: MatmulImmediates,
}

fn dispatch(pass: &mut Pass, window: &ProductWindow) -> Result<()> {
    let ProductWindow { product, a, b, out, more, epilogue, accumulate, parts, params } = window;
    let mut p = *params;
    let algorithm = choose::choose(&pass.gpu.caps, *product, a.elem(), [p.m, p.n, p.k].map(|x| x as usize));
    let strides = [p.a_stride, p.b_stride, p.out_stride, p.a_offset, p.b_offset, p.out_offset, p.bias_offset];
    // only the kernels with cooperative matrices have a width of eight
    let wide = a.elem() == Elem::F16 && matches!(algorithm, Algorithm::Coop(_));
    let mut widths = [Width::Vec8, Width::Vec4].into_iter().filter(|width| wide || *width == Width::Vec4);
    let fits = |width: &Width| generate::fits(*width, *product, [p.m, p.n, p.k], &strides);
    let width = widths.find(fits).unwrap_or(Width::Scalar);
    p.part_depth = part_depth(&algorithm, p.k, *parts);
    let spec = Spec {
        product: *product,
        algorithm,
        operands: a.elem(),
        out: out.elem(),
        epilogue: *epilogue,
        accumulate: *accumulate,
        parts: *parts,
        width,
        // with cooperative matrices only the widest kernel exists for whole tiles, because whole tiles have rows of 16
        ragged: width == Width::Scalar
            || wide && width == Width::Vec4
            || generate::is_ragged(&algorithm, p.m, p.n, p.k, p.part_depth),
    };
    let (kernel, groups) = row::choose(&pass.gpu.caps, window, &spec, &p).unwrap_or_else(|| {
        let (x, y) = generate::workgroups(&spec, p.m, p.n);
        (kernel(&spec), u64::from(x) * u64::from(y) * u64::from(*parts))
    });
    let (m, n, k) = (u64::from(p.m), u64::from(p.n), u64::from(p.k));
    let mut tensors = vec![*a, *b, *out];
    tensors.extend(*more);
    let written = m * n * u64::from(*parts) * out.elem().bytes();
    // a bias is read once; every other tensor of an epilogue has the shape of the result
    let extra: u64 = match epilogue {
        Epilogue::ColumnSums => more.iter().map(|t| t.bytes()).sum(),
        _ => more.iter().map(|t| if t.rows() == 1 { n } else { m * n } * t.elem().bytes()).sum(),
    };
    pass.dispatch(&Dispatch {
        kernel: &kernel,
        tensors: &tensors,
        immediates: Immediates::of(&p),
        groups,
        flops: 2 * m * n * k,
        bytes: (m * k + n * k) * a.elem().bytes() + written * if *accumulate { 2 } else { 1 } + extra,
    })
}

/// Cuts `rows` rows, each of `row_bytes` bytes and `row_flops` operations, into windows for products that sum over
/// rows. On a software adapter a window has at most [`generate::SOFTWARE_DEPTH`] rows, for its caches.
fn depths(pass: &Pass, rows: usize, row_bytes: u64, row_flops: u64, elem: Elem) -> Vec<Range<usize>> {
    let software = pass.gpu.caps.software && elem == Elem::F32;
    let most = if software { generate::SOFTWARE_DEPTH as usize } else { rows.max(1) };
    let cut = |w: Range<usize>| w.clone().step_by(most).map(move |start| start..(start + most).min(w.end));
    pass.row_windows_of(rows, row_bytes, row_flops).into_iter().flat_map(cut).collect()
}

/// Returns the operations of an (m, n) product of depth k.
fn operations(m: usize, n: usize, k: usize) -> u64 {
    2 * m as u64 * n as u64 * k as u64
}

/// Checks that both operands of a product have the same element type, f32 or f16.
fn same_elements(place: &str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.elem() == b.elem() && a.elem() != Elem::U32 {
        return Ok(());
    }
    Err(Error::shape(
        Fault::at(
            place,
            format!("operands `{}` and `{}` hold {:?} and {:?}", a.label(), b.label(), a.elem(), b.elem()),
        )
        .expected("both f32 or both f16"),
    ))
}

/// Converts a number of elements to an immediate.
fn count(what: usize) -> Result<u32> {
    u32::try_from(what)
        .map_err(|_| Error::shape(Fault::at("matmul", format!("{what} elements in a row")).expected("fewer than 2^32")))
}

/// Tensors of [`forward`].
#[derive(Debug)]
pub struct Forward<'a> {
    /// (M, K).
    pub inp: &'a Tensor,
    /// (N, K), of any size, because it is bound in windows of rows.
    pub weight: &'a Tensor,
    /// (1, N), if there is a bias.
    pub bias: Option<&'a Tensor>,
    /// (M, N), overwritten.
    pub out: &'a Tensor,
}

/// `out = inp weightᵀ + bias`. Overwrites `out`.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn forward(pass: &mut Pass, io: Forward) -> Result<()> {
    let epilogue = if io.bias.is_some() { Epilogue::Bias } else { Epilogue::None };
    forward_with(pass, &io, epilogue, None)
}

/// `out = inp weightᵀ + bias`, `gelu = GELU(out)`. Overwrites `out` and `gelu`, which must have the same element type.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn forward_gelu(pass: &mut Pass, io: Forward, gelu: &Tensor) -> Result<()> {
    forward_with(pass, &io, Epilogue::BiasGelu, Some(("gelu", gelu, io.out.elem())))
}

/// `out = residual + inp weightᵀ + bias`; `residual` (M, N) is f32. Overwrites `out`.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn forward_residual(pass: &mut Pass, io: Forward, residual: &Tensor) -> Result<()> {
    forward_with(pass, &io, Epilogue::BiasResidual, Some(("residual", residual, Elem::F32)))
}

fn forward_with(pass: &mut Pass, io: &Forward, epilogue: Epilogue, other: Option<(&str, &Tensor, Elem)>) -> Result<()> {
    let place = "matmul.forward";
    let (m, k, n) = (io.inp.rows(), io.inp.columns(), io.weight.rows());
    io.weight.check_shape(place, "weight", n, k)?;
    io.out.check_shape(place, "out", m, n)?;
    same_elements(place, io.inp, io.weight)?;
    if let Some(bias) = io.bias {
        bias.check_shape(place, "bias", 1, n)?;
    } else if epilogue != Epilogue::None {
        return Err(Error::shape(Fault::at(place, format!("{epilogue:?} without a bias"))));
    }
    if let Some((name, tensor, elem)) = other {
        tensor.check_shape(place, name, m, n)?;
        tensor.check_elem(place, name, elem)?;
    }
    let row_bytes = [Some(io.out), Some(io.inp), other.map(|o| o.1)].into_iter().flatten().map(Tensor::row_bytes).max();
    for rows in pass.row_windows_of(m, row_bytes.unwrap_or(0), operations(1, n, k)) {
        let other = other.map(|(_, tensor, _)| tensor.slice(rows.clone()));
        let more: Vec<&Tensor> = io.bias.into_iter().chain(&other).collect();
        for columns in pass.row_windows_of(n, io.weight.row_bytes(), operations(rows.len(), 1, k)) {
            let (inp, out) = (io.inp.slice(rows.clone()), io.out.slice(rows.clone()));
            let weight = io.weight.slice(columns.clone());
            let params = MatmulImmediates {
                m: count(rows.len())?,
                n: count(columns.len())?,
                k: count(k)?,
                a_stride: count(k)?,
                b_stride: count(k)?,
                out_stride: count(n)?,
                out_offset: count(columns.start)?,
                bias_offset: count(columns.start)?,
                ..bytemuck::Zeroable::zeroed()
            };
            let (product, parts) = (Product::Forward, 1);
            let window = ProductWindow {
                product,
                a: &inp,
                b: &weight,
                out: &out,
                more: &more,
                epilogue,
                accumulate: false,
                parts,
                params,
            };
            dispatch(pass, &window)?;
        }
    }
    Ok(())
}

/// Tensors of [`backward_inp`].
#[derive(Debug)]
pub struct BackwardInp<'a> {
    /// (M, N).
    pub dout: &'a Tensor,
    /// (N, K), of any size.
    pub weight: &'a Tensor,
    /// (M, K), overwritten.
    pub dinp: &'a Tensor,
}

/// `dinp = dout weight`. Overwrites `dinp`.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn backward_inp(pass: &mut Pass, io: BackwardInp) -> Result<()> {
    backward_inp_with(pass, &io, None)
}

/// `dinp = (dout weight) GELU'(pre)`: the gradient through a linear layer and the GELU before it. `pre` (M, K) has the
/// same element type as `dinp`. Overwrites `dinp`.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn backward_inp_gelu(pass: &mut Pass, io: BackwardInp, pre: &Tensor) -> Result<()> {
    backward_inp_with(pass, &io, Some(pre))
}

fn backward_inp_with(pass: &mut Pass, io: &BackwardInp, pre: Option<&Tensor>) -> Result<()> {
    let place = "matmul.backward_inp";
    let (m, n, k) = (io.dout.rows(), io.dout.columns(), io.weight.columns());
    io.weight.check_shape(place, "weight", n, k)?;
    io.dinp.check_shape(place, "dinp", m, k)?;
    same_elements(place, io.dout, io.weight)?;
    if let Some(pre) = pre {
        pre.check_shape(place, "pre", m, k)?;
        pre.check_elem(place, "pre", io.dinp.elem())?;
    }
    for rows in pass.row_windows_of(m, io.dout.row_bytes().max(io.dinp.row_bytes()), operations(1, n, k)) {
        let pre = pre.map(|tensor| tensor.slice(rows.clone()));
        let pieces = depths(pass, n, io.weight.row_bytes(), operations(rows.len(), 1, k), io.dout.elem());
        let last = pieces.len() - 1;
        for (i, depth) in pieces.into_iter().enumerate() {
            let (dout, dinp) = (io.dout.slice(rows.clone()), io.dinp.slice(rows.clone()));
            let weight = io.weight.slice(depth.clone());
            let params = MatmulImmediates {
                m: count(rows.len())?,
                n: count(k)?,
                k: count(depth.len())?,
                a_stride: count(n)?,
                b_stride: count(k)?,
                out_stride: count(k)?,
                a_offset: count(depth.start)?,
                ..bytemuck::Zeroable::zeroed()
            };
            // the first window overwrites, the others add their part of the sum, and the last one applies GELU's
            // derivative
            let more: Vec<&Tensor> = pre.iter().filter(|_| i == last).collect();
            let window = ProductWindow {
                product: Product::BackwardInp,
                a: &dout,
                b: &weight,
                out: &dinp,
                epilogue: if more.is_empty() { Epilogue::None } else { Epilogue::GeluBackward },
                more: &more,
                accumulate: i > 0,
                parts: 1,
                params,
            };
            dispatch(pass, &window)?;
        }
    }
    Ok(())
}

/// Tensors of [`backward_weight`].
#[derive(Debug)]
pub struct BackwardWeight<'a> {
    /// (M, N).
    pub dout: &'a Tensor,
    /// (M, K).
    pub inp: &'a Tensor,
    /// (N, K), of any size; accumulated, or overwritten where it [begins](Pass::take_zero).
    pub dweight: &'a Tensor,
}

/// `dweight += doutᵀ inp`.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn backward_weight(pass: &mut Pass, io: BackwardWeight) -> Result<()> {
    backward_weight_with(pass, &io, None, None).map(|_| ())
}

/// `dweight += doutᵀ inp`, in parts if `sums` has memory for them. Where the result has too few tiles to keep a GPU
/// busy, the depth is cut into parts that are summed separately and then added in order. The number of parts depends on
/// the shape alone.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn backward_weight_in_parts(pass: &mut Pass, io: BackwardWeight, sums: &mut Sums) -> Result<()> {
    backward_weight_with(pass, &io, Some(sums), None).map(|_| ())
}

/// Does the same as [`backward_weight_in_parts`] and computes `dbias += sum over m of dout` while it reads `dout`.
/// Returns whether it did the latter: if the product is not computed in parts, or `dout` does not fit one binding,
/// `dbias` stays unchanged.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn backward_weight_and_bias(pass: &mut Pass, io: BackwardWeight, dbias: &Tensor, sums: &mut Sums) -> Result<bool> {
    dbias.check_shape("matmul.backward_weight", "dbias", 1, io.dout.columns())?;
    backward_weight_with(pass, &io, Some(sums), Some(dbias))
}

/// Records the weight's gradient. Returns whether it also summed the bias's gradient.
fn backward_weight_with(
    pass: &mut Pass,
    io: &BackwardWeight,
    mut sums: Option<&mut Sums>,
    bias: Option<&Tensor>,
) -> Result<bool> {
    let place = "matmul.backward_weight";
    let (m, n, k) = (io.dout.rows(), io.dout.columns(), io.inp.columns());
    io.inp.check_shape(place, "inp", m, k)?;
    io.dweight.check_shape(place, "dweight", n, k)?;
    same_elements(place, io.dout, io.inp)?;
    let elem = io.dout.elem();
    let mut summed = false;
    // windows of the result are small enough that a dispatch can have a depth of 128
    let windows = pass.row_windows_of(n, io.dweight.row_bytes(), operations(128, 1, k));
    let widest = windows.first().map_or(0, Range::len);
    for rows in depths(pass, m, io.dout.row_bytes().max(io.inp.row_bytes()), operations(1, widest, k), elem) {
        for window in windows.clone() {
            let whole = rows.len() == m && window.len() == n;
            let Range { start, .. } = window;
            let (dout, inp) = (io.dout.slice(rows.clone()), io.inp.slice(rows.clone()));
            let dweight = io.dweight.slice(window.clone());
            let params = MatmulImmediates {
                m: count(window.len())?,
                n: count(k)?,
                k: count(rows.len())?,
                a_stride: count(n)?,
                b_stride: count(k)?,
                out_stride: count(k)?,
                a_offset: count(start)?,
                ..bytemuck::Zeroable::zeroed()
            };
            let wanted = parts::parts(&pass.gpu.caps, elem, window.len(), k, rows.len());
            let partials = sums.as_ref().and_then(|sums| sums.partials());
            let room = partials.map_or(0, |p| p.len().min((pass.gpu.caps.window_bytes() / 4) as usize));
            let parts = if wanted as usize * dweight.len() <= room { wanted } else { 1 };
            let product = Product::BackwardWeight;
            let (a, b, epilogue) = (&dout, &inp, Epilogue::None);
            let (Some(partials), Some(sums)) = (partials.filter(|_| parts > 1), sums.as_mut()) else {
                let accumulate = !pass.take_zero(&dweight);
                let all =
                    ProductWindow { product, a, b, out: &dweight, more: &[], epilogue, accumulate, parts: 1, params };
                dispatch(pass, &all)?;
                continue;
            };
            let out = &partials.reshape(parts as usize, window.len() * k);
            let algorithm = choose::choose(&pass.gpu.caps, product, elem, [n, k, m]);
            let column_sums = match bias.filter(|_| whole && parts::sums_columns(&algorithm)) {
                Some(dbias) => {
                    let scratch = sums.scratch(pass)?;
                    let fits = scratch.len() >= parts as usize * n;
                    fits.then(|| (dbias, scratch.reshape(parts as usize, n)))
                }
                None => None,
            };
            let more: Vec<&Tensor> = column_sums.iter().map(|(_, rows)| rows).collect();
            let epilogue = if column_sums.is_some() { Epilogue::ColumnSums } else { epilogue };
            let apart = ProductWindow { product, a, b, out, more: &more, epilogue, accumulate: false, parts, params };
            dispatch(pass, &apart)?;
            if let Some((dbias, _)) = column_sums {
                sums.queue_rows(parts as usize, n, &[dbias])?;
                summed = true;
            }
            sums.add(pass, sums::Parts { partials: out, parts, dweight: &dweight, whole })?;
        }
    }
    Ok(summed)
}
