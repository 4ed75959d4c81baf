//! Operands that repeat a block of numbers, so that the host knows every element with little memory, and their products
//! in f64.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::Result;
use crate::gpu::{Elem, Gpu, Tensor};
use crate::ops::matmul::Product;
use crate::random::mt19937::Mt19937;

/// Length of a block: a prime, so that the rows of a matrix, whose lengths have other factors, begin at different
/// numbers. Row 65,521 is the first that equals another row, row 0.
const LENGTH: usize = 65_521;
/// Number of blocks per upload: 8 MiB of f16.
const UPLOADED: usize = 64;

/// A block of numbers. Element `i` of a tensor is number `i % LENGTH` of the block.
pub(super) struct RepeatedBlock {
    /// The numbers, rounded to f16.
    block: Vec<half::f16>,
    /// The block twice, so that every run of its length is a slice.
    twice: Vec<f64>,
}

impl RepeatedBlock {
    /// Makes bell-shaped numbers in (-scale, scale) with a standard deviation of a third of `scale`, from sums of three
    /// uniform numbers.
    pub(super) fn new(seed: u32, scale: f64) -> Self {
        let mut random = Mt19937::new(seed);
        let mut value = || (0..3).map(|_| f64::from(random.next_u32()) / 6_442_450_944.0).sum::<f64>() - 1.0;
        let block: Vec<half::f16> = (0..LENGTH).map(|_| half::f16::from_f64(value() * scale)).collect();
        Self::of(block)
    }

    /// Makes a block of one number.
    pub(super) fn constant(value: f64) -> Self {
        Self::of(vec![half::f16::from_f64(value); LENGTH])
    }

    fn of(block: Vec<half::f16>) -> Self {
        let twice = block.iter().chain(&block).map(|x| x.to_f64()).collect();
        Self { block, twice }
    }

    pub(super) fn at(&self, i: usize) -> f64 {
        self.twice[i % LENGTH]
    }

    /// Calls `visit` with the numbers from element `start` on, in pieces, and with each piece's position in the run.
    fn pieces(&self, start: usize, length: usize, mut visit: impl FnMut(usize, &[f64])) {
        for at in (0..length).step_by(LENGTH) {
            let (first, count) = ((start + at) % LENGTH, (length - at).min(LENGTH));
            visit(at, &self.twice[first..first + count]);
        }
    }

    /// Overwrites a tensor of f32 or f16 with the numbers.
    pub(super) fn write(&self, gpu: &Gpu, tensor: &Tensor) -> Result<()> {
        let length = tensor.len().min(UPLOADED * LENGTH);
        let numbers = self.block.iter().cycle().take(length);
        let bytes: Vec<u8> = match tensor.elem() {
            Elem::F16 => numbers.flat_map(|x| x.to_le_bytes()).collect(),
            Elem::F32 | Elem::U32 => numbers.flat_map(|x| x.to_f32().to_le_bytes()).collect(),
        };
        for start in (0..tensor.len()).step_by(length.max(1)) {
            let window = tensor.flat(start..(start + length).min(tensor.len()));
            gpu.write(&window, &bytes[..window.bytes() as usize])?;
            // lets the driver free its copy of the upload
            gpu.wait()?;
        }
        Ok(())
    }

    /// Returns element `column` of row `row` of a matrix with `columns` columns, times `factor`, rounded to f16.
    pub(super) fn scaled(&self, [row, column]: [usize; 2], columns: usize, factor: f64) -> f64 {
        half::f16::from_f64(self.at(row * columns + column) * factor).to_f64()
    }

    /// Overwrites a tensor of f32 or f16 with scaled elements; `factor` returns the factor of a row.
    pub(super) fn write_scaled(&self, gpu: &Gpu, tensor: &Tensor, factor: impl Fn(usize) -> f64) -> Result<()> {
        let columns = tensor.columns();
        // an even number of rows, so that no write of f16 begins within a word
        let together = (UPLOADED * LENGTH / columns.max(1)).max(1).next_multiple_of(2);
        for start in (0..tensor.rows()).step_by(together) {
            let window = tensor.slice(start..(start + together).min(tensor.rows()));
            let mut bytes = Vec::with_capacity(window.bytes() as usize);
            for row in start..start + window.rows() {
                let factor = factor(row);
                for column in 0..columns {
                    let x = self.scaled([row, column], columns, factor);
                    match tensor.elem() {
                        Elem::F16 => bytes.extend(half::f16::from_f64(x).to_le_bytes()),
                        Elem::F32 | Elem::U32 => bytes.extend((x as f32).to_le_bytes()),
                    }
                }
            }
            gpu.write(&window, &bytes)?;
            gpu.wait()?;
        }
        Ok(())
    }
}

/// A product's operands: `a` and `b` in the layouts of [`Product`].
pub(super) struct Operands {
    pub(super) product: Product,
    /// Rows and columns of the result, and the depth.
    pub(super) shape: [usize; 3],
    pub(super) a: RepeatedBlock,
    pub(super) b: RepeatedBlock,
}

impl Operands {
    pub(super) fn new(product: Product, shape: [usize; 3]) -> Self {
        Self { product, shape, a: RepeatedBlock::new(20_240_520, 1.0), b: RepeatedBlock::new(20_240_521, 1.0) }
    }

    /// Returns the shapes of `a` and `b` in memory.
    pub(super) fn shapes(&self) -> [[usize; 2]; 2] {
        let [m, n, k] = self.shape;
        match self.product {
            Product::Forward => [[m, k], [n, k]],
            Product::BackwardInp => [[m, k], [k, n]],
            Product::BackwardWeight => [[k, m], [k, n]],
        }
    }

    fn a_at(&self, row: usize, depth: usize) -> usize {
        let [m, _, k] = self.shape;
        if self.product == Product::BackwardWeight { depth * m + row } else { row * k + depth }
    }

    fn b_at(&self, depth: usize, column: usize) -> usize {
        let [_, n, k] = self.shape;
        if self.product == Product::Forward { column * k + depth } else { depth * n + column }
    }

    /// Computes one element of the result in f64.
    pub(super) fn element(&self, row: usize, column: usize) -> f64 {
        (0..self.shape[2]).map(|k| self.a.at(self.a_at(row, k)) * self.b.at(self.b_at(k, column))).sum()
    }

    /// Computes one row of the result in f64.
    fn row(&self, row: usize) -> Vec<f64> {
        let [_, n, k] = self.shape;
        let a: Vec<f64> = (0..k).map(|depth| self.a.at(self.a_at(row, depth))).collect();
        let mut out = vec![0.0; n];
        if self.product == Product::Forward {
            for (column, sum) in out.iter_mut().enumerate() {
                self.b.pieces(column * k, k, |at, b| *sum += dot(&a[at..at + b.len()], b));
            }
        } else {
            for (depth, factor) in a.iter().enumerate() {
                self.b.pieces(depth * n, n, |at, b| {
                    out[at..].iter_mut().zip(b).for_each(|(sum, b)| *sum += factor * b);
                });
            }
        }
        out
    }

    /// Computes the sums of the columns of `a` in f64.
    pub(super) fn column_sums(&self) -> Vec<f64> {
        let [[rows, columns], _] = self.shapes();
        let mut sums = vec![0.0; columns];
        for row in 0..rows {
            self.a.pieces(row * columns, columns, |at, a| sums[at..].iter_mut().zip(a).for_each(|(sum, a)| *sum += a));
        }
        sums
    }

    /// Computes rows of the result in f64, on all cores of the machine.
    pub(super) fn rows(&self, rows: &[usize]) -> Vec<Vec<f64>> {
        in_parallel(rows.len(), |i| self.row(rows[i]))
    }
}

/// Returns the dot product, with eight partial sums that a processor can compute in parallel.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

/// Returns the results of `work(0)` to `work(count - 1)`, in order, computed by one thread per core.
pub(super) fn in_parallel<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(count)));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count {
                        break;
                    }
                    let result = work(i);
                    done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((i, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_unstable_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Returns at most eight of `count` rows: the first, the last and random ones in between.
pub(super) fn sample(count: usize) -> Vec<usize> {
    let mut random = Mt19937::new(count as u32);
    let mut rows: Vec<usize> = vec![0, count - 1];
    rows.extend((0..6).map(|_| random.next_u32() as usize % count));
    rows.sort_unstable();
    rows.dedup();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    #[test]
    fn rows_and_elements_are_those_of_the_reference() {
        for (product, shape) in [Product::Forward, Product::BackwardInp, Product::BackwardWeight]
            .into_iter()
            .flat_map(|product| [[5, 7, 66_000], [3, 66_000, 5], [17, 130, 33]].map(|shape| (product, shape)))
        {
            let operands = Operands::new(product, shape);
            let [m, n, k] = shape;
            let all = |of: &RepeatedBlock, [rows, columns]: [usize; 2]| -> Vec<f64> {
                (0..rows * columns).map(|i| of.at(i)).collect()
            };
            let [a_shape, b_shape] = operands.shapes();
            let (a, b) = (all(&operands.a, a_shape), all(&operands.b, b_shape));
            let want = match product {
                Product::Forward => reference::matmul::forward(&a, &b, None, m, n, k),
                Product::BackwardInp => reference::matmul::backward_inp(&a, &b, m, k, n),
                Product::BackwardWeight => {
                    let mut out = vec![0.0; m * n];
                    reference::matmul::backward_weight(&a, &b, &mut out, k, m, n);
                    out
                }
            };
            let sum = |column: usize| a.iter().skip(column).step_by(a_shape[1]).sum::<f64>();
            let sums = operands.column_sums();
            assert!(sums.len() == a_shape[1] && (sums[2] - sum(2)).abs() < 1e-9);
            assert!((sums.last().expect("one") - sum(a_shape[1] - 1)).abs() < 1e-9);
            let rows = sample(m);
            assert!(rows.contains(&0) && rows.contains(&(m - 1)));
            for (row, got) in rows.iter().zip(operands.rows(&rows)) {
                let want = &want[row * n..][..n];
                assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-9), "{product:?} {shape:?} row {row}");
                assert!((operands.element(*row, n - 1) - want[n - 1]).abs() < 1e-9);
            }
        }
    }
}
