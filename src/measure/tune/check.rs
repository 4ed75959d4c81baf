//! Whether a kernel's results are right: all of its elements against the plain kernel's, on the device, and some rows or
//! heads against f64, on the host, which also decides where the two kernels disagree.

use std::ops::Range;

use crate::error::{Error, Fault, Result};
use crate::gpu::{Elem, Gpu, Pass, Tensor};
use crate::ops::compare::{self, NONE_FAR_YET, Near};

/// What a check says of a candidate.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// Its results are right.
    Right,
    /// They are wrong, and where.
    Wrong(String),
    /// Those of the plain kernel are, so that nothing can be said of any candidate.
    PlainWrong(String),
}

/// How far results may be from f64.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tolerance {
    /// The candidate's sums.
    pub(super) sums: f64,
    /// The plain kernel's.
    pub(super) plain: f64,
    /// What storing adds, as a multiple of a result.
    pub(super) stored: f64,
}

impl Tolerance {
    pub(super) fn allows(&self, got: f64, want: f64) -> bool {
        (got - want).abs() <= self.sums + self.stored * want.abs()
    }

    fn allows_plain(&self, got: f64, want: f64) -> bool {
        (got - want).abs() <= self.plain
    }
}

/// A result of a candidate and of the plain kernel.
#[derive(Clone)]
pub(super) struct Target {
    /// Its name: `dq`.
    pub(super) name: &'static str,
    /// What the candidate writes.
    pub(super) got: Tensor,
    /// What the plain f32 kernel wrote.
    pub(super) want: Tensor,
    /// The columns that are compared.
    pub(super) columns: Range<usize>,
    pub(super) tolerance: Tolerance,
    /// The size of a usual element.
    pub(super) about: f64,
}

/// Where an element lies, in words.
fn place(name: &str, row: usize, column: usize) -> String {
    format!("`{name}` row {row}, column {column}")
}

/// A few rows as f32. Copies start at multiples of 4 bytes: of f16 the row before may have to be read too.
fn read_row(gpu: &Gpu, tensor: &Tensor, row: usize) -> Result<Vec<f32>> {
    let first = if tensor.elem() == Elem::F16 { row / 2 * 2 } else { row };
    let mut values = gpu.read_f32(&tensor.slice(first..row + 1))?;
    Ok(values.split_off((row - first) * tensor.columns()))
}

impl Target {
    /// Compares all elements on the device. `exact` computes one in f64.
    pub(super) fn all(&self, gpu: &Gpu, result: &Tensor, exact: &dyn Fn(usize, usize) -> f64) -> Result<Verdict> {
        let Tolerance { sums, plain, stored } = self.tolerance;
        let [far, first, nonzero] = self.count(gpu, result, &self.got, [sums + plain, stored])?;
        if nonzero == 0 && self.is_there() {
            return Ok(Verdict::Wrong(format!(
                "all results are zero: `{}`, expected about {:.1e}",
                self.name, self.about
            )));
        }
        if far == 0 {
            return Ok(Verdict::Right);
        }
        let (row, column) = (first as usize / self.want.columns(), first as usize % self.want.columns());
        let [got, by_plain] = [&self.got, &self.want].map(|tensor| Ok::<_, Error>(read_row(gpu, tensor, row)?[column]));
        let (got, by_plain, exact) = (f64::from(got?), f64::from(by_plain?), exact(row, column));
        let place = place(self.name, row, column);
        // of two that are too far apart at least one is off by its own tolerance
        if self.tolerance.allows(got, exact) && !self.tolerance.allows_plain(by_plain, exact) {
            return Ok(Verdict::PlainWrong(format!("{place}: {by_plain:e}, expected {exact:e} within {plain:.1e}")));
        }
        let allowed = sums + stored * exact.abs();
        Ok(Verdict::Wrong(format!(
            "{place}: {got:e}, expected {exact:e} within {allowed:.1e}; {far} of {} elements are wrong",
            self.want.rows() * self.columns.len()
        )))
    }

    /// Whether the result differs from zeros: the gradients of a query and a key that are alone do not.
    fn is_there(&self) -> bool {
        self.about > self.tolerance.plain
    }

    /// Elements that are far, the first of them, and those that are not zero.
    fn count(&self, gpu: &Gpu, result: &Tensor, got: &Tensor, [tolerance, stored]: [f64; 2]) -> Result<[u32; 3]> {
        gpu.write(result, bytemuck::cast_slice(&NONE_FAR_YET))?;
        let mut pass = Pass::new(gpu);
        let (tolerance, stored) = (tolerance as f32, stored as f32);
        let (want, columns) = (&self.want, self.columns.clone());
        compare::near(&mut pass, Near { got, want, columns, tolerance, stored, result })?;
        pass.finish().run(gpu)?;
        let bytes = gpu.read(result)?;
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes);
        <[u32; 3]>::try_from(words)
            .map_err(|_| Error::gpu(Fault::at("tune", format!("{} bytes of counts", bytes.len())).expected("12")))
    }

    /// Fails if the plain kernel wrote nothing but zeros: a device that computes nothing.
    pub(super) fn plain_is_there(&self, gpu: &Gpu, result: &Tensor, kernel: &str) -> Result<()> {
        let [_, _, nonzero] = self.count(gpu, result, &self.want, [self.tolerance.plain, 0.0])?;
        if nonzero > 0 || !self.is_there() {
            return Ok(());
        }
        Err(Error::device(
            Fault::at("tune", format!("{} computes nothing: all results of {kernel} are zero", gpu.caps.name))
                .expected(format!("about {:.1e}", self.about))
                .advice("is it a stand-in for a GPU, or its driver broken?"),
        ))
    }

    /// Compares one row's elements from column `first` on with f64, of the candidate or of the plain kernel.
    pub(super) fn row(&self, plain: bool, row: usize, first: usize, got: &[f32], want: &[f64]) -> Option<String> {
        for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
            let got = f64::from(got);
            let fine = if plain { self.tolerance.allows_plain(got, want) } else { self.tolerance.allows(got, want) };
            if !fine {
                let place = place(self.name, row, first + i);
                let Tolerance { sums, stored, .. } = self.tolerance;
                let allowed = if plain { self.tolerance.plain } else { sums + stored * want.abs() };
                return Some(format!("{place}: {got:e}, expected {want:e} within {allowed:.1e}"));
            }
        }
        None
    }

    /// The same of whole rows that are read from the device.
    pub(super) fn rows(&self, gpu: &Gpu, plain: bool, rows: &[usize], want: &[Vec<f64>]) -> Result<Option<String>> {
        let tensor = if plain { &self.want } else { &self.got };
        for (&row, want) in rows.iter().zip(want) {
            if let Some(fault) = self.row(plain, row, 0, &read_row(gpu, tensor, row)?, want) {
                return Ok(Some(fault));
            }
        }
        Ok(None)
    }
}

/// The error for a plain kernel whose results are wrong.
pub(super) fn plain_error(gpu: &Gpu, kernel: &str, fault: &str) -> Error {
    Error::device(
        Fault::at("tune", format!("{}: the plain kernel {kernel} computes something else: {fault}", gpu.caps.name))
            .advice("is the driver broken?"),
    )
}

/// The square root of the mean square.
pub(super) fn usual(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count().max(1) as f64;
    (values.map(|x| x * x).sum::<f64>() / count).sqrt()
}
