//! Checks and times kernels of a matrix product.

use crate::error::Result;
use crate::gpu::{Elem, Gpu, KernelId, Pass, Program, Tensor};
use crate::ops::matmul::{self, Product, choose, parts};
use crate::ops::sums;

use crate::measure::tune::check::{Target, Tolerance, Verdict, plain_error, root_mean_square};
use crate::measure::tune::ends::{Checked, EndKind, FusedEnd};
use crate::measure::tune::operands::{Operands, sample};
use crate::measure::tune::race::Bench;

/// Operands of a product on the device, and its results from the plain kernel and in f64.
pub(super) struct ProductBench {
    operands: Operands,
    a: Tensor,
    b: Tensor,
    /// Memory for partial sums and for squares.
    room: Option<[Tensor; 2]>,
    pub(super) end: FusedEnd,
    pub(super) target: Target,
    result: Tensor,
    /// Rows that are known in f64.
    rows: Vec<usize>,
    exact: Vec<Vec<f64>>,
}

/// Returns the tolerance of a sum of `depth` products of operands with a standard deviation of a third.
///
/// Such a sum has a standard deviation of `sqrt(depth) / 9`. The largest of 10^9 of them is six times that, and a
/// partial sum is two thirds of it on average. NVIDIA's matrix units truncate after every 16 products, which loses up
/// to one unit in the last place each time, always in the same direction: `depth / 16` times `0.5 sqrt(depth)` units.
/// Sums in f32 round to both sides, which loses less. Sixteen more roundings are for the ends of short sums.
fn rounded(depth: usize) -> f64 {
    let depth = depth as f64;
    f64::from(f32::EPSILON) * (depth / 16.0 + 16.0) * 0.5 * depth.sqrt()
}

/// Returns six standard deviations of a sum of `depth` products; no element of a result is larger.
fn largest(depth: f64) -> f64 {
    2.0 / 3.0 * depth.sqrt()
}

/// Returns the additional error of a product of this depth that is computed in pieces, with the sum stored as f16 in
/// between.
///
/// Storing truncates at most a unit in the last place. After `i` of `pieces` pieces the sum is at most six standard
/// deviations of a sum of that many products.
fn between(depth: usize, pieces: usize) -> f64 {
    let unit = |x: f64| 2f64.powi(-10) * 2f64.powf(x.log2().floor());
    (1..pieces).map(|i| unit(largest(depth as f64 * i as f64 / pieces as f64))).sum()
}

/// Returns the number of pieces in which a program computes its result: the consecutive kernels that add to it, and the
/// first one, which does not.
fn pieces(program: &Program) -> usize {
    let (mut most, mut run) = (0, 0);
    for command in &program.commands {
        run = if command.kernel().is_some_and(matmul::accumulates) { run + 1 } else { 0 };
        most = most.max(run);
    }
    most + 1
}

impl ProductBench {
    /// Makes the operands of a layer's product and checks the plain f32 kernel against f64.
    ///
    /// # Errors
    /// [`crate::error::Error::Device`] if the device computes nothing, or if the plain kernel is wrong.
    pub(super) fn new(gpu: &Gpu, layer: &str, product: Product, shape: [usize; 3], elem: Elem) -> Result<Self> {
        let [m, n, k] = shape;
        let form = EndKind::of(layer, product);
        let operands = Operands::new(product, shape);
        let [[ar, ac], [br, bc]] = operands.shapes();
        let (a, b) = (gpu.tensor("a", ar, ac, elem)?, gpu.tensor("b", br, bc, elem)?);
        operands.a.write(gpu, &a)?;
        operands.b.write(gpu, &b)?;
        let out_elem = form.out(product, elem);
        let most = choose::candidates(&gpu.caps, elem)
            .iter()
            .map(|algorithm| parts::parts_of(&gpu.caps, algorithm, [m, n, k]) as usize * m * n)
            .max()
            .unwrap_or(0);
        let room = match product {
            Product::BackwardWeight if most > m * n => Some([
                gpu.tensor("partials", 1, most, Elem::F32)?,
                gpu.tensor("squares", sums::squares(&gpu.caps, m * n, 1), 1, Elem::F32)?,
            ]),
            _ => None,
        };
        let rows = sample(m);
        let exact = operands.rows(&rows);
        // drivers may truncate a number that is stored as f16, by a unit in the last place or of the smallest numbers
        let half = out_elem == Elem::F16;
        let least = if half { 2f64.powi(-24) } else { 0.0 };
        let stored = if half { 2f64.powi(-10) } else { 0.0 };
        let tolerance = form.tolerance(Tolerance { sums: rounded(k) + least, plain: rounded(k), stored });
        let target = Target {
            name: "out",
            got: gpu.tensor("out", m, n, out_elem)?,
            want: gpu.tensor("plain", m, n, Elem::F32)?,
            columns: 0..n,
            tolerance,
            typical: root_mean_square(exact.iter().flatten().copied()),
        };
        let result = gpu.tensor("counts", 3, 1, Elem::U32)?;
        let mut bench = Self { operands, a, b, room, end: FusedEnd::Plain, target, result, rows, exact };
        bench.plain(gpu)?;
        bench.end = FusedEnd::new(gpu, form, elem, &bench.checked())?;
        Ok(bench)
    }

    fn checked(&self) -> Checked<'_> {
        let Self { operands, target, rows, exact, result, .. } = self;
        Checked { operands, target, rows, exact, result }
    }

    fn plain(&self, gpu: &Gpu) -> Result<()> {
        let wide = |like: &Tensor| gpu.tensor("plain", like.rows(), like.columns(), Elem::F32);
        let (a, b) = (wide(&self.a)?, wide(&self.b)?);
        self.operands.a.write(gpu, &a)?;
        self.operands.b.write(gpu, &b)?;
        let mut pass = Pass::new(gpu);
        FusedEnd::Plain.record(&mut pass, self.operands.product, [&a, &b, &self.target.want], None)?;
        let program = pass.finish();
        program.run(gpu)?;
        let kernel = self.name(&program);
        self.target.check_plain_is_nonzero(gpu, &self.result, &kernel)?;
        match self.target.rows(gpu, true, &self.rows, &self.exact)? {
            Some(fault) => Err(plain_error(gpu, &kernel, &fault)),
            None => Ok(()),
        }
    }
}

impl Bench for ProductBench {
    fn record(&self, gpu: &Gpu) -> Result<Program> {
        let mut pass = Pass::new(gpu);
        let tensors = [&self.a, &self.b, &self.target.got];
        let room = self.room.as_ref().map(|[partials, squares]| sums::Room { partials, squares });
        self.end.record(&mut pass, self.operands.product, tensors, room)?;
        Ok(pass.finish())
    }

    fn is_timed(&self, _kernel: &KernelId) -> bool {
        true
    }

    fn output(&self) -> &Tensor {
        &self.target.got
    }

    fn check(&self, gpu: &Gpu, program: &Program) -> Result<Verdict> {
        let mut clear = Pass::new(gpu);
        clear.clear(&self.target.got);
        self.end.second().into_iter().for_each(|second| clear.clear(second));
        Program::join([&clear.finish(), program]).run(gpu)?;
        let mut target = self.target.clone();
        if target.got.elem() == Elem::F16 {
            target.tolerance.sums += between(self.operands.shape[2], pieces(program));
        }
        let verdict = target.all(gpu, &self.result, &|row, column| self.operands.element(row, column))?;
        if verdict != Verdict::Right {
            return Ok(verdict);
        }
        match target.rows(gpu, false, &self.rows, &self.exact)? {
            Some(fault) => Ok(Verdict::Wrong(fault)),
            None => self.end.check(gpu, &self.checked()),
        }
    }
}
