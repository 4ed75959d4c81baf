//! The bench of a matrix product.

use crate::error::Result;
use crate::gpu::{Elem, Gpu, Pass, Program, Tensor};
use crate::ops::matmul::{self, BackwardInp, BackwardWeight, Forward, Product, choose};

use super::check::{Target, Tolerance, Verdict, plain_error, usual};
use super::operands::{Operands, sample};
use super::race::Bench;

/// Operands of a product on the device, and its results by the plain kernel and in f64.
pub(super) struct ProductBench {
    operands: Operands,
    a: Tensor,
    b: Tensor,
    partials: Option<Tensor>,
    target: Target,
    result: Tensor,
    /// Rows that are also computed in f64.
    rows: Vec<usize>,
    exact: Vec<Vec<f64>>,
}

/// How far a sum of `depth` products of operands with a standard deviation of a third may be from f64.
///
/// Such a sum has a standard deviation of `sqrt(depth) / 9`, the largest of 10^9 of them is six times that, and a partial
/// sum is two thirds of it in the mean. NVIDIA's matrix units cut off after every 16 products, which loses up to one unit in
/// the last place each time, all in one direction: `depth / 16` times `0.5 sqrt(depth)` units. Sums in f32 round to both
/// sides, which comes to less; sixteen more roundings are for the ends of short sums.
fn sums(depth: usize) -> f64 {
    let depth = depth as f64;
    f64::from(f32::EPSILON) * (depth / 16.0 + 16.0) * 0.5 * depth.sqrt()
}

impl ProductBench {
    /// Makes the operands, and checks the plain f32 kernel against f64.
    ///
    /// # Errors
    /// [`crate::error::Error::Device`] if the device computes nothing, or the plain kernel something else.
    pub(super) fn new(gpu: &Gpu, product: Product, shape: [usize; 3], elem: Elem) -> Result<Self> {
        let [m, n, k] = shape;
        let operands = Operands::new(product, shape);
        let [[ar, ac], [br, bc]] = operands.shapes();
        let (a, b) = (gpu.tensor("a", ar, ac, elem)?, gpu.tensor("b", br, bc, elem)?);
        operands.a.write(gpu, &a)?;
        operands.b.write(gpu, &b)?;
        let out_elem = if product == Product::BackwardWeight { Elem::F32 } else { elem };
        let most = choose::candidates(&gpu.caps, elem)
            .iter()
            .map(|algorithm| choose::parts_of(algorithm, m, n, k) as usize * m * n)
            .max()
            .unwrap_or(0);
        let partials = match product {
            Product::BackwardWeight if most > m * n => Some(gpu.tensor("partials", 1, most, Elem::F32)?),
            _ => None,
        };
        let rows = sample(m);
        let exact = operands.rows(&rows);
        // drivers may cut off a number that is stored as f16: a whole unit in the last place, and of the least ones
        let half = out_elem == Elem::F16;
        let least = if half { 2f64.powi(-24) } else { 0.0 };
        let tolerance =
            Tolerance { sums: sums(k) + least, plain: sums(k), stored: if half { 2f64.powi(-10) } else { 0.0 } };
        let target = Target {
            name: "out",
            got: gpu.tensor("out", m, n, out_elem)?,
            want: gpu.tensor("plain", m, n, Elem::F32)?,
            columns: 0..n,
            tolerance,
            about: usual(exact.iter().flatten().copied()),
        };
        let result = gpu.tensor("counts", 3, 1, Elem::U32)?;
        let bench = Self { operands, a, b, partials, target, result, rows, exact };
        bench.plain(gpu)?;
        Ok(bench)
    }

    fn plain(&self, gpu: &Gpu) -> Result<()> {
        let wide = |like: &Tensor| gpu.tensor("plain", like.rows(), like.columns(), Elem::F32);
        let (a, b) = (wide(&self.a)?, wide(&self.b)?);
        self.operands.a.write(gpu, &a)?;
        self.operands.b.write(gpu, &b)?;
        let program = self.record_with(gpu, [&a, &b, &self.target.want], None)?;
        program.run(gpu)?;
        let kernel = self.name(&program);
        self.target.plain_is_there(gpu, &self.result, &kernel)?;
        match self.target.rows(gpu, true, &self.rows, &self.exact)? {
            Some(fault) => Err(plain_error(gpu, &kernel, &fault)),
            None => Ok(()),
        }
    }

    fn record_with(&self, gpu: &Gpu, [a, b, out]: [&Tensor; 3], partials: Option<&Tensor>) -> Result<Program> {
        let mut pass = Pass::new(gpu);
        match (self.operands.product, partials) {
            (Product::Forward, _) => matmul::forward(&mut pass, Forward { inp: a, weight: b, bias: None, out })?,
            (Product::BackwardInp, _) => {
                matmul::backward_inp(&mut pass, BackwardInp { dout: a, weight: b, dinp: out })?;
            }
            (Product::BackwardWeight, None) => {
                matmul::backward_weight(&mut pass, BackwardWeight { dout: a, inp: b, dweight: out })?;
            }
            (Product::BackwardWeight, Some(partials)) => {
                let io = BackwardWeight { dout: a, inp: b, dweight: out };
                matmul::backward_weight_in_parts(&mut pass, io, partials)?;
            }
        }
        Ok(pass.finish())
    }
}

impl Bench for ProductBench {
    fn record(&self, gpu: &Gpu) -> Result<Program> {
        self.record_with(gpu, [&self.a, &self.b, &self.target.got], self.partials.as_ref())
    }

    fn is_timed(&self, _kernel: &str) -> bool {
        true
    }

    fn output(&self) -> &Tensor {
        &self.target.got
    }

    fn check(&self, gpu: &Gpu, program: &Program) -> Result<Verdict> {
        let mut clear = Pass::new(gpu);
        clear.clear(&self.target.got);
        Program::join([&clear.finish(), program]).run(gpu)?;
        let verdict = self.target.all(gpu, &self.result, &|row, column| self.operands.element(row, column))?;
        if verdict != Verdict::Right {
            return Ok(verdict);
        }
        let fault = self.target.rows(gpu, false, &self.rows, &self.exact)?;
        Ok(fault.map_or(Verdict::Right, Verdict::Wrong))
    }
}
