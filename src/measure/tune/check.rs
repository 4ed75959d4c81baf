//! Checks a kernel's results. All elements are compared with the plain kernel's on the device. Some rows or heads are
//! compared with f64 on the host. Where the two kernels disagree, f64 decides which one is wrong.

use std::ops::Range;

use crate::error::{Error, Fault, Result};
use crate::gpu::{Elem, Gpu, Pass, Tensor};
use crate::ops::compare::{self, NONE_FAR, Near};

/// The result of checking a candidate.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// The results are right.
    Right,
    /// The results are wrong; the text describes the first fault.
    Wrong(String),
    /// The plain kernel's results are wrong, so no candidate can be checked.
    PlainWrong(String),
}

/// Tolerance of results against f64.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tolerance {
    /// Absolute tolerance of the candidate's sums.
    pub(super) sums: f64,
    /// Absolute tolerance of the plain kernel.
    pub(super) plain: f64,
    /// Additional tolerance for storing, relative to a result.
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
    /// Its name, such as `dq`.
    pub(super) name: &'static str,
    /// The candidate's result.
    pub(super) got: Tensor,
    /// The plain f32 kernel's result.
    pub(super) want: Tensor,
    /// Columns to compare.
    pub(super) columns: Range<usize>,
    pub(super) tolerance: Tolerance,
    /// Typical size of an element.
    pub(super) typical: f64,
}

/// Returns the position of an element as text.
fn place(name: &str, row: usize, column: usize) -> String {
    format!("`{name}` row {row}, column {column}")
}

/// Reads a row as f32. Copies start at multiples of 4 bytes, so with f16 the row before may be read too.
fn read_row(gpu: &Gpu, tensor: &Tensor, row: usize) -> Result<Vec<f32>> {
    let first = if tensor.elem() == Elem::F16 { row / 2 * 2 } else { row };
    let mut values = gpu.read_f32(&tensor.slice(first..row + 1))?;
    Ok(values.split_off((row - first) * tensor.columns()))
}

impl Target {
    /// Compares all elements on the device. `exact` computes an element in f64.
    pub(super) fn all(&self, gpu: &Gpu, result: &Tensor, exact: &dyn Fn(usize, usize) -> f64) -> Result<Verdict> {
        let Tolerance { sums, plain, stored } = self.tolerance;
        let [far, first, nonzero] = self.count(gpu, result, &self.got, [sums + plain, stored])?;
        if nonzero == 0 && self.must_be_nonzero() {
            return Ok(Verdict::Wrong(format!(
                "all results are zero: `{}`, expected about {:.1e}",
                self.name, self.typical
            )));
        }
        if far == 0 {
            return Ok(Verdict::Right);
        }
        let (row, column) = (first as usize / self.want.columns(), first as usize % self.want.columns());
        let [got, by_plain] = [&self.got, &self.want].map(|tensor| Ok::<_, Error>(read_row(gpu, tensor, row)?[column]));
        let (got, by_plain, exact) = (f64::from(got?), f64::from(by_plain?), exact(row, column));
        let place = place(self.name, row, column);
        // if two results are too far apart, at least one exceeds its own tolerance
        if self.tolerance.allows(got, exact) && !self.tolerance.allows_plain(by_plain, exact) {
            return Ok(Verdict::PlainWrong(format!("{place}: {by_plain:e}, expected {exact:e} within {plain:.1e}")));
        }
        let allowed = sums + stored * exact.abs();
        Ok(Verdict::Wrong(format!(
            "{place}: {got:e}, expected {exact:e} within {allowed:.1e}; {far} of {} elements are wrong",
            self.want.rows() * self.columns.len()
        )))
    }

    /// Returns whether the result must differ from zero. With a single position the gradients of queries and keys are
    /// zero.
    fn must_be_nonzero(&self) -> bool {
        self.typical > self.tolerance.plain
    }

    /// Returns the number of elements outside the tolerance, the first of them, and the number of nonzero elements.
    fn count(&self, gpu: &Gpu, result: &Tensor, got: &Tensor, [tolerance, stored]: [f64; 2]) -> Result<[u32; 3]> {
        gpu.write(result, bytemuck::cast_slice(&NONE_FAR))?;
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

    /// Fails if all results of the plain kernel are zero, because the device then computes nothing.
    pub(super) fn check_plain_is_nonzero(&self, gpu: &Gpu, result: &Tensor, kernel: &str) -> Result<()> {
        let [_, _, nonzero] = self.count(gpu, result, &self.want, [self.tolerance.plain, 0.0])?;
        if nonzero > 0 || !self.must_be_nonzero() {
            return Ok(());
        }
        Err(Error::device(
            Fault::at("tune", format!("{} computes nothing: all results of {kernel} are zero", gpu.caps.name))
                .expected(format!("about {:.1e}", self.typical))
                .advice("check whether it is a stand-in for a GPU, or its driver is broken"),
        ))
    }

    /// Compares elements of a row, from column `first` on, of the candidate or of the plain kernel with f64; returns
    /// the first fault.
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

    /// Reads whole rows from the device and compares them with f64; returns the first fault.
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

/// Makes the error for a plain kernel with wrong results.
pub(super) fn plain_error(gpu: &Gpu, kernel: &str, fault: &str) -> Error {
    Error::device(
        Fault::at("tune", format!("{}: the plain kernel {kernel} is wrong: {fault}", gpu.caps.name))
            .advice("check the driver"),
    )
}

/// Returns the square root of the mean square.
pub(super) fn root_mean_square(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count().max(1) as f64;
    (values.map(|x| x * x).sum::<f64>() / count).sqrt()
}
