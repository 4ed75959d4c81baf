//! The three matrix products of a linear layer: `out = inp weightᵀ + bias`, `dinp = dout weight`,
//! `dweight += doutᵀ inp`.

pub mod generate;

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::error::{Error, Result};
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Kernel, Pass, Tensor};

use super::reduce_group;

pub use generate::{Algorithm, Product, Spec};

/// Immediates of every matrix kernel, in elements: see [`generate`].
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Params {
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
}

/// Two tile shapes for GPUs: the large one moves half the bytes, the small one keeps more workgroups busy. Both fit
/// WebGPU's 16 KiB of workgroup memory and 256 invocations.
const LARGE: Algorithm = Algorithm::Tiled { tile_m: 128, tile_n: 128, tile_k: 8, thread_m: 8, thread_n: 8 };
const SMALL: Algorithm = Algorithm::Tiled { tile_m: 64, tile_n: 64, tile_k: 16, thread_m: 4, thread_n: 4 };

/// Workgroups that keep a large GPU busy.
const BUSY: u64 = 128;

/// Picks the algorithm for an (m, n) result.
#[must_use]
pub fn choose(caps: &Caps, product: Product, m: usize, n: usize) -> Algorithm {
    if caps.software {
        let rows = generate::software_default(product, caps.lanes);
        return if caps.int64 { rows.with_pairs() } else { rows };
    }
    let large = m.div_ceil(128) as u64 * n.div_ceil(128) as u64;
    if m >= 128 && n >= 128 && large >= BUSY { LARGE } else { SMALL }
}

fn kernel(spec: &Spec) -> Kernel {
    let mut name = generate::name(spec);
    name += &match spec.algorithm {
        Algorithm::Tiled { tile_m, tile_n, .. } => format!(".{tile_m}x{tile_n}"),
        Algorithm::Rows { width, .. } => format!(".{width}"),
    };
    let pairs = matches!(spec.algorithm, Algorithm::Rows { pairs: true, .. });
    for (set, suffix) in [(spec.bias, ".bias"), (spec.accumulate, ".add"), (!spec.vec4, ".scalar"), (pairs, ".pairs")] {
        if set {
            name.push_str(suffix);
        }
    }
    Kernel::generated(name, "main", generate::wgsl(spec))
}

/// The kernel for a single row of `inp`, where tiles of rows would compute mostly nothing.
fn row_kernel(caps: &Caps, bias: bool, vec4: bool) -> Kernel {
    let (name, entry) =
        if bias { ("matmul_row.forward.bias", "forward_bias") } else { ("matmul_row.forward", "forward") };
    let width = if vec4 { Width::Vec4 } else { Width::Scalar };
    Kernel::new(name, entry, width, include_str!("../../../shaders/matmul_row.wgsl")).set("WG", reduce_group(caps))
}

/// The kernels an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<Kernel> {
    let mut list = Vec::new();
    for (bias, vec4) in [(false, false), (false, true), (true, false), (true, true)] {
        list.push(row_kernel(caps, bias, vec4));
    }
    for product in [Product::Forward, Product::BackwardInp, Product::BackwardWeight] {
        let algorithms = if caps.software {
            let rows = generate::software_default(product, caps.lanes);
            vec![rows, rows.with_pairs()]
        } else {
            vec![LARGE, SMALL]
        };
        for algorithm in algorithms {
            for vec4 in [true, false] {
                for (bias, accumulate) in variants(product) {
                    list.push(kernel(&Spec { product, algorithm, bias, accumulate, vec4 }));
                }
            }
        }
    }
    list
}

/// The (bias, accumulate) pairs that a product occurs with.
fn variants(product: Product) -> Vec<(bool, bool)> {
    match product {
        Product::Forward => vec![(false, false), (true, false)],
        Product::BackwardInp => vec![(false, false), (false, true)],
        Product::BackwardWeight => vec![(false, true)],
    }
}

/// One dispatch: a window of the product.
struct Window<'a> {
    product: Product,
    a: &'a Tensor,
    b: &'a Tensor,
    out: &'a Tensor,
    bias: Option<&'a Tensor>,
    accumulate: bool,
    params: Params,
}

fn dispatch(pass: &mut Pass, window: &Window) -> Result<()> {
    let Window { product, a, b, out, bias, accumulate, params: p } = window;
    let strides = [p.a_stride, p.b_stride, p.out_stride, p.a_offset, p.b_offset, p.out_offset, p.bias_offset];
    let spec = Spec {
        product: *product,
        algorithm: choose(&pass.gpu.caps, *product, p.m as usize, p.n as usize),
        bias: bias.is_some(),
        accumulate: *accumulate,
        vec4: generate::vec4_fits(*product, p.m, p.n, p.k, &strides),
    };
    let (kernel, groups) = if *product == Product::Forward && p.m == 1 {
        // only what lies along k is read four at a time here
        let vec4 = [p.k, p.b_stride, p.a_offset, p.b_offset].iter().all(|x| x % 4 == 0);
        (row_kernel(&pass.gpu.caps, spec.bias, vec4), u64::from(p.n))
    } else {
        let (x, y) = generate::workgroups(&spec, p.m, p.n);
        (kernel(&spec), u64::from(x) * u64::from(y))
    };
    let (m, n, k) = (u64::from(p.m), u64::from(p.n), u64::from(p.k));
    let mut tensors = vec![*a, *b, *out];
    tensors.extend(*bias);
    pass.dispatch(&Dispatch {
        kernel: &kernel,
        tensors: &tensors,
        immediates: bytemuck::bytes_of(p),
        groups,
        flops: 2 * m * n * k,
        bytes: 4 * (m * k + n * k + m * n * if *accumulate { 2 } else { 1 }),
    })
}

/// Windows of `rows` rows, and on a software adapter no deeper than its caches like: for products that sum over them.
fn depths(pass: &Pass, rows: usize, row_bytes: u64) -> Vec<Range<usize>> {
    let most = if pass.gpu.caps.software { generate::SOFTWARE_DEPTH as usize } else { rows.max(1) };
    let cut = |w: Range<usize>| w.clone().step_by(most).map(move |start| start..(start + most).min(w.end));
    pass.row_windows(rows, row_bytes).into_iter().flat_map(cut).collect()
}

/// Elements as a kernel's parameter.
fn count(what: usize) -> Result<u32> {
    u32::try_from(what).map_err(|_| Error::Shape(format!("matmul: {what} elements in a row, expected fewer than 2^32")))
}

/// Tensors of [`forward`].
#[derive(Debug)]
pub struct Forward<'a> {
    /// (M, K).
    pub inp: &'a Tensor,
    /// (N, K), of any size: it is bound in windows of rows.
    pub weight: &'a Tensor,
    /// (1, N).
    pub bias: Option<&'a Tensor>,
    /// (M, N), overwritten.
    pub out: &'a Tensor,
}

/// `out = inp weightᵀ + bias`. Overwrites `out`.
///
/// # Errors
/// [`Error::Shape`].
pub fn forward(pass: &mut Pass, io: Forward) -> Result<()> {
    let (m, k, n) = (io.inp.rows(), io.inp.columns(), io.weight.rows());
    io.weight.expect("matmul.forward", "weight", n, k)?;
    io.out.expect("matmul.forward", "out", m, n)?;
    if let Some(bias) = io.bias {
        bias.expect("matmul.forward", "bias", 1, n)?;
    }
    for rows in pass.row_windows(m, io.out.row_bytes().max(io.inp.row_bytes())) {
        for columns in pass.row_windows(n, io.weight.row_bytes()) {
            let (inp, out) = (io.inp.slice(rows.clone()), io.out.slice(rows.clone()));
            let weight = io.weight.slice(columns.clone());
            let params = Params {
                m: count(rows.len())?,
                n: count(columns.len())?,
                k: count(k)?,
                a_stride: count(k)?,
                b_stride: count(k)?,
                out_stride: count(n)?,
                out_offset: count(columns.start)?,
                bias_offset: count(columns.start)?,
                ..Params::default()
            };
            dispatch(
                pass,
                &Window {
                    product: Product::Forward,
                    a: &inp,
                    b: &weight,
                    out: &out,
                    bias: io.bias,
                    accumulate: false,
                    params,
                },
            )?;
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
/// [`Error::Shape`].
pub fn backward_inp(pass: &mut Pass, io: BackwardInp) -> Result<()> {
    let (m, n, k) = (io.dout.rows(), io.dout.columns(), io.weight.columns());
    io.weight.expect("matmul.backward_inp", "weight", n, k)?;
    io.dinp.expect("matmul.backward_inp", "dinp", m, k)?;
    for rows in pass.row_windows(m, io.dout.row_bytes().max(io.dinp.row_bytes())) {
        for (i, depth) in depths(pass, n, io.weight.row_bytes()).into_iter().enumerate() {
            let (dout, dinp) = (io.dout.slice(rows.clone()), io.dinp.slice(rows.clone()));
            let weight = io.weight.slice(depth.clone());
            let params = Params {
                m: count(rows.len())?,
                n: count(k)?,
                k: count(depth.len())?,
                a_stride: count(n)?,
                b_stride: count(k)?,
                out_stride: count(k)?,
                a_offset: count(depth.start)?,
                ..Params::default()
            };
            // the first piece overwrites, the others add their part of the sum
            let accumulate = i > 0;
            dispatch(
                pass,
                &Window {
                    product: Product::BackwardInp,
                    a: &dout,
                    b: &weight,
                    out: &dinp,
                    bias: None,
                    accumulate,
                    params,
                },
            )?;
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
    /// (N, K), of any size; accumulated.
    pub dweight: &'a Tensor,
}

/// `dweight += doutᵀ inp`.
///
/// # Errors
/// [`Error::Shape`].
pub fn backward_weight(pass: &mut Pass, io: BackwardWeight) -> Result<()> {
    let (m, n, k) = (io.dout.rows(), io.dout.columns(), io.inp.columns());
    io.inp.expect("matmul.backward_weight", "inp", m, k)?;
    io.dweight.expect("matmul.backward_weight", "dweight", n, k)?;
    for rows in depths(pass, m, io.dout.row_bytes().max(io.inp.row_bytes())) {
        for window in pass.row_windows(n, io.dweight.row_bytes()) {
            let Range { start, .. } = window;
            let (dout, inp) = (io.dout.slice(rows.clone()), io.inp.slice(rows.clone()));
            let dweight = io.dweight.slice(window.clone());
            let params = Params {
                m: count(window.len())?,
                n: count(k)?,
                k: count(rows.len())?,
                a_stride: count(n)?,
                b_stride: count(k)?,
                out_stride: count(k)?,
                a_offset: count(start)?,
                ..Params::default()
            };
            dispatch(
                pass,
                &Window {
                    product: Product::BackwardWeight,
                    a: &dout,
                    b: &inp,
                    out: &dweight,
                    bias: None,
                    accumulate: true,
                    params,
                },
            )?;
        }
    }
    Ok(())
}
