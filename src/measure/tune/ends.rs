//! The fused ends of a model's products, as training records them. Their other operands are chosen so that they do not
//! change the product: a bias and a residual of 0, and an input of GELU at which its slope is 1.

use crate::error::Result;
use crate::gpu::{Elem, Gpu, Pass, Tensor};
use crate::ops::layernorm;
use crate::ops::matmul::{self, BackwardInp, BackwardWeight, Forward, Product};
use crate::ops::sums::{Room, Sums};
use crate::ops::{bias, gelu};
use crate::reference;

use crate::measure::tune::check::{Target, Tolerance, Verdict, plain_error, root_mean_square};
use crate::measure::tune::operands::{Operands, RepeatedBlock};

/// An input at which GELU's slope is 1 up to f32 rounding. It multiplies an error of `tanh` by 14; at 10 it would be
/// 57.
pub(super) const SLOPE_OF_ONE: f64 = 6.0;
/// Error of that slope with drivers that divide within 2.5 units in the last place: 14 times twice that.
const SLOPE_ERROR: f64 = 1.0 / 131_072.0;
/// Upper bound of GELU's slope, which is at most 1.129.
const STEEPEST: f64 = 1.13;
/// Error of a kernel's GELU, in f32 units of the largest argument: an exponential, a division and six roundings.
const GELU_UNITS: f64 = 16.0;

/// The operation of a layer on a product's result, in the same kernel if possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndKind {
    Plain,
    Bias,
    Residual,
    Gelu,
    GeluBackward,
    ColumnSums,
}

impl EndKind {
    /// Returns the form that `model::forward` and `model::backward` record.
    pub(super) fn of(layer: &str, product: Product) -> Self {
        match (product, layer) {
            (Product::Forward, "qkv") => Self::Bias,
            (Product::Forward, "attproj" | "fcproj") => Self::Residual,
            (Product::Forward, "fc") => Self::Gelu,
            (Product::BackwardInp, "fcproj") => Self::GeluBackward,
            (Product::BackwardWeight, "qkv" | "fc") => Self::ColumnSums,
            _ => Self::Plain,
        }
    }

    /// Returns the element type of the product's result.
    pub(super) fn out(self, product: Product, elem: Elem) -> Elem {
        if product == Product::BackwardWeight || self == Self::Residual { Elem::F32 } else { elem }
    }

    /// Returns the tolerance of a product's result with this end, given that of the product alone.
    pub(super) fn tolerance(self, plain: Tolerance) -> Tolerance {
        let slope = if self == Self::GeluBackward { SLOPE_ERROR } else { 0.0 };
        Tolerance { stored: plain.stored + slope, ..plain }
    }
}

/// Operands of a form, and its second result.
pub(super) enum FusedEnd {
    Plain,
    Bias(Tensor),
    Residual { bias: Tensor, residual: Tensor },
    Gelu { bias: Tensor, gelu: Target, exact: Vec<Vec<f64>> },
    GeluBackward { pre: Tensor },
    ColumnSums { dbias: Tensor, scratch: Tensor, exact: Vec<f64> },
}

/// A product whose plain kernel was checked, for making and checking its [`FusedEnd`].
pub(super) struct Checked<'a> {
    pub(super) operands: &'a Operands,
    pub(super) target: &'a Target,
    /// Rows of the result that are known in f64.
    pub(super) rows: &'a [usize],
    pub(super) exact: &'a [Vec<f64>],
    /// Memory for the counts of a comparison.
    pub(super) result: &'a Tensor,
}

fn gelu_of(x: f64) -> f64 {
    reference::gelu::forward(&[x])[0]
}

/// Returns the tolerance of `GELU(out)`, given that of `out`, whose largest element is `largest`.
///
/// GELU multiplies an error of `out` by at most [`STEEPEST`]. The error of storing `out` is relative to `out`, and
/// `|x GELU'(x)| < |GELU(x)| + 0.3` for all x. So half of that relative error is allowed in addition to the same error
/// of the result. Storing the result adds the relative error once more, and a unit of the smallest numbers.
fn gelu_tolerance(out: Tolerance, largest: f64) -> Tolerance {
    let own = GELU_UNITS * f64::from(f32::EPSILON) * largest;
    Tolerance {
        sums: STEEPEST * out.sums + 0.5 * out.stored + own + if out.stored > 0.0 { 2f64.powi(-24) } else { 0.0 },
        plain: STEEPEST * out.plain + own,
        stored: 2.0 * out.stored,
    }
}

/// Returns the tolerance of a sum of `depth` operands with a standard deviation of a third.
///
/// The root mean square error of an addition is 0.29 units in the last place of a partial sum, to both sides. No
/// partial sum exceeds six of its standard deviations, `2 sqrt(depth)`. `depth` independent errors sum up to
/// `sqrt(depth)` such errors, `0.58 depth` units, and to six times that in the worst of 10^9.
fn column_tolerance(depth: usize) -> f64 {
    4.0 * f64::from(f32::EPSILON) * depth as f64
}

impl FusedEnd {
    /// Makes the operands, and computes the second result by the plain kernel.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`]; [`crate::error::Error::Device`] if the plain GELU is wrong.
    pub(super) fn new(gpu: &Gpu, form: EndKind, elem: Elem, product: &Checked) -> Result<Self> {
        let [m, n, k] = product.operands.shape;
        let zeros = |label, rows, columns| -> Result<Tensor> {
            let tensor = gpu.tensor(label, rows, columns, Elem::F32)?;
            let mut pass = Pass::new(gpu);
            pass.clear(&tensor);
            pass.finish().run(gpu)?;
            Ok(tensor)
        };
        Ok(match form {
            EndKind::Plain => Self::Plain,
            EndKind::Bias => Self::Bias(zeros("bias", 1, n)?),
            EndKind::Residual => Self::Residual { bias: zeros("bias", 1, n)?, residual: zeros("residual", m, n)? },
            EndKind::Gelu => {
                let (gelu, exact) = plain_gelu(gpu, elem, product)?;
                Self::Gelu { bias: zeros("bias", 1, n)?, gelu, exact }
            }
            EndKind::GeluBackward => {
                let pre = gpu.tensor("pre", m, n, elem)?;
                RepeatedBlock::constant(SLOPE_OF_ONE).write(gpu, &pre)?;
                Self::GeluBackward { pre }
            }
            EndKind::ColumnSums => Self::ColumnSums {
                dbias: zeros("dbias", 1, m)?,
                // the size of a model's scratch
                scratch: gpu.tensor(
                    "scratch",
                    1,
                    (layernorm::scratch_rows(k).max(4 * bias::BLOCKS) * n).max(bias::BLOCKS * m),
                    Elem::F32,
                )?,
                exact: product.operands.column_sums(),
            },
        })
    }

    /// Records a product with this end.
    pub(super) fn record(
        &self,
        pass: &mut Pass,
        product: Product,
        [a, b, out]: [&Tensor; 3],
        room: Option<Room>,
    ) -> Result<()> {
        let forward = |bias| Forward { inp: a, weight: b, bias, out };
        match (product, self) {
            (Product::Forward, Self::Bias(bias)) => matmul::forward(pass, forward(Some(bias))),
            (Product::Forward, Self::Residual { bias, residual }) => {
                matmul::forward_residual(pass, forward(Some(bias)), residual)
            }
            (Product::Forward, Self::Gelu { bias, gelu, .. }) => {
                matmul::forward_gelu(pass, forward(Some(bias)), &gelu.got)
            }
            (Product::Forward, _) => matmul::forward(pass, forward(None)),
            (Product::BackwardInp, end) => {
                let io = BackwardInp { dout: a, weight: b, dinp: out };
                match end {
                    Self::GeluBackward { pre } => matmul::backward_inp_gelu(pass, io, pre),
                    _ => matmul::backward_inp(pass, io),
                }
            }
            (Product::BackwardWeight, end) => {
                let io = BackwardWeight { dout: a, inp: b, dweight: out };
                match (end, room) {
                    (Self::ColumnSums { dbias, scratch, .. }, room) => {
                        let mut sums = Sums::new(room, scratch);
                        if !matmul::backward_weight_and_bias(pass, io, dbias, &mut sums)? {
                            bias::backward(pass, bias::Backward { dout: a, dbias }, &mut sums)?;
                        }
                        sums.finish(pass).map(|_| ())
                    }
                    // without rows of sums no scratch is needed
                    (_, Some(room)) => {
                        let mut sums = Sums::new(Some(room), room.partials);
                        matmul::backward_weight_in_parts(pass, io, &mut sums)?;
                        sums.finish(pass).map(|_| ())
                    }
                    (_, None) => matmul::backward_weight(pass, io),
                }
            }
        }
    }

    /// Returns the second result.
    pub(super) fn second(&self) -> Option<&Tensor> {
        match self {
            Self::Gelu { gelu, .. } => Some(&gelu.got),
            Self::ColumnSums { dbias, .. } => Some(dbias),
            _ => None,
        }
    }

    /// Checks the second result, like [`super::race::Bench::check`].
    pub(super) fn check(&self, gpu: &Gpu, product: &Checked) -> Result<Verdict> {
        match self {
            Self::Gelu { gelu, exact, .. } => {
                let element = |row, column| gelu_of(product.operands.element(row, column));
                let verdict = gelu.all(gpu, product.result, &element)?;
                if verdict != Verdict::Right {
                    return Ok(verdict);
                }
                let fault = gelu.rows(gpu, false, product.rows, exact)?;
                Ok(fault.map_or(Verdict::Right, Verdict::Wrong))
            }
            Self::ColumnSums { dbias, exact, .. } => {
                let tolerance = column_tolerance(product.operands.shape[2]);
                let got = gpu.read_f32(dbias)?;
                let is_far = |(_, (got, want)): &(usize, (&f32, &f64))| {
                    let difference = (f64::from(**got) - **want).abs();
                    // NaN counts as wrong
                    difference.is_nan() || difference > tolerance
                };
                let far = got.iter().zip(exact).enumerate().find(is_far);
                Ok(far.map_or(Verdict::Right, |(column, (got, want))| {
                    let text = format!("`dbias` column {column}: {got:e}, expected {want:e} within {tolerance:.1e}");
                    Verdict::Wrong(text)
                }))
            }
            _ => Ok(Verdict::Right),
        }
    }
}

/// Computes `GELU(out)` by the plain kernel and compares it with f64; also returns some rows in f64.
fn plain_gelu(gpu: &Gpu, elem: Elem, product: &Checked) -> Result<(Target, Vec<Vec<f64>>)> {
    let [m, n, k] = product.operands.shape;
    let (got, want) = (gpu.tensor("gelu", m, n, elem)?, gpu.tensor("plain gelu", m, n, Elem::F32)?);
    let mut pass = Pass::new(gpu);
    gelu::forward(&mut pass, gelu::Forward { inp: &product.target.want, out: &want })?;
    pass.finish().run(gpu)?;
    let exact: Vec<Vec<f64>> = product.exact.iter().map(|row| reference::gelu::forward(row)).collect();
    // the largest element: six standard deviations of a product
    let tolerance = gelu_tolerance(product.target.tolerance, 2.0 / 3.0 * (k as f64).sqrt());
    let typical = root_mean_square(exact.iter().flatten().copied());
    let target = Target { name: "gelu", got, want, columns: 0..n, tolerance, typical };
    match target.rows(gpu, true, product.rows, &exact)? {
        Some(fault) => Err(plain_error(gpu, "gelu.forward", &fault)),
        None => Ok((target, exact)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_gelu_are_those_of_the_reference() {
        let slope = |x: f64| reference::gelu::backward(&[1.0], &[x])[0];
        assert!((slope(SLOPE_OF_ONE) - 1.0).abs() < f64::from(f32::EPSILON) / 4.0);
        assert!((slope(SLOPE_OF_ONE - 1.0) - 1.0).abs() > f64::from(f32::EPSILON));
        for i in -10_000..10_000 {
            let x = f64::from(i) * 1e-3;
            assert!(slope(x).abs() < STEEPEST, "{x}");
            assert!((x * slope(x)).abs() < gelu_of(x).abs() + 0.3, "{x}");
        }
    }
}
