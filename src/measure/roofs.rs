//! Roofs: the highest rates of an adapter, measured. Kernels are compared with them.

use std::time::Duration;

use serde::Serialize;

use crate::error::Result;
use crate::gpu::{Arithmetic, Elem, Gpu, Pass};
use crate::ops::roof::{self, Scalar, TILES};

pub use crate::measure::rates::{WARM_UP, run_ms, warm_up};
use crate::measure::rates::{a_second, best_ms, rate};

/// Highest rates of an adapter, each the best of several runs.
#[derive(Debug, Clone, Serialize)]
pub struct Roofs {
    /// Bytes per second that a copy reads and writes, by a kernel or by the device's copy command, whichever is faster.
    pub copy: f64,
    /// The same by the kernel alone. Software adapters load and store lane by lane and are much slower.
    pub copy_kernel: f64,
    /// FLOP/s of multiply-adds in f32.
    pub fused_f32: f64,
    /// FLOP/s of multiply-adds in f16, if the adapter supports it.
    pub fused_f16: Option<f64>,
    /// FLOP/s of cooperative matrices of f16 with f32 sums, if the device has them: the best edge, operands in
    /// registers.
    pub matrix: Option<f64>,
    /// The same with operands loaded from workgroup memory for every product.
    pub matrix_fed: Option<f64>,
    /// FLOP/s of a whole product in matrices of flexible dimensions, of the best shape, on a device opened for them.
    pub matrix_flexible: Option<f64>,
    /// Whether an `fma` in f32 rounds once (`true`) or is split into a product and a sum (`false`); `None` if the
    /// result matches neither.
    pub fuses: Option<bool>,
    /// Reasons for missing rates, and details of the measurements.
    pub notes: Vec<String>,
}

/// Consecutive products of matrices of flexible dimensions per run.
const FLEXIBLE_PRODUCTS: usize = 4;
/// 1/16 in f16, the value of every element of operands.
const SIXTEENTHS: [u8; 2] = 0x2c00u16.to_le_bytes();
/// Bytes of the copied buffer: several times any cache.
const COPY_BYTES: u64 = 256 << 20;
const COPY_BYTES_SOFTWARE: u64 = 64 << 20;

/// Returns the result of one round of [`roof::fused`] with `step` as its multiply-add, with sums in the kernel's order.
fn fused_on_host(a: f32, b: f32, step: fn(f32, f32, f32) -> f32) -> f32 {
    let chain = |i: u8| (0..roof::FUSED_A_ROUND / 16).fold(f32::from(i) / 16.0, |x, _| step(x, a, b));
    let column = |i: u8| chain(i) + chain(4 + i) + chain(8 + i) + chain(12 + i);
    (column(0) + column(1)) + (column(2) + column(3))
}

impl Roofs {
    /// Measures all rates, each for about `time`, after a warm-up.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`]; [`crate::error::Error::Device`] if the device's clock does not advance;
    /// as [`Gpu::check`].
    pub fn measure(gpu: &Gpu, time: Duration) -> Result<Self> {
        let mut notes = Vec::new();
        warm_up(gpu, WARM_UP)?;
        let (copy_kernel, copy_command) = Self::copy(gpu, time)?;
        let copy = copy_kernel.max(copy_command);
        notes.push(format!(
            "copy: {:.1} GB/s by a kernel, {:.1} by a copy command",
            copy_kernel / 1e9,
            copy_command / 1e9
        ));
        let lanes = gpu.tensor("roofs", if gpu.caps.software { 1 << 14 } else { 1 << 20 }, 1, Elem::F32)?;
        let fused = |scalar| {
            rate(gpu, time, "multiply-adds", |pass, rounds| {
                roof::fused(pass, roof::Fused { out: &lanes, scalar, rounds, a: 0.75, b: 0.125 })
            })
        };
        let fused_f32 = fused(Scalar::F32)?;
        let fuses = Self::fuses(gpu)?;
        if fuses == Some(false) {
            notes.push("fma f32: the adapter splits every multiply-add into a product and a sum".into());
        }
        let fused_f16 = if gpu.caps.f16 { Some(fused(Scalar::F16)?) } else { None };
        if fused_f16.is_none() {
            notes.push("f16 not run: the adapter does not support it".into());
        }
        let (matrix, matrix_fed) = Self::matrices(gpu, time, &mut notes)?;
        let matrix_flexible = Self::flexible(gpu, time, &mut notes)?;
        if !gpu.caps.timestamps {
            notes.push("measured by the wall clock: the adapter has no timestamps".into());
        }
        Ok(Self { copy, copy_kernel, fused_f32, fused_f16, matrix, matrix_fed, matrix_flexible, fuses, notes })
    }

    /// Determines from the bits of one result whether multiply-adds round once or twice.
    fn fuses(gpu: &Gpu) -> Result<Option<bool>> {
        let (a, b) = (0.6f32, 0.3f32);
        let out = gpu.tensor("roofs: bits", 1, 1, Elem::F32)?;
        let mut pass = Pass::new(gpu);
        roof::fused(&mut pass, roof::Fused { out: &out, scalar: Scalar::F32, rounds: 1, a, b })?;
        pass.finish().run(gpu)?;
        let found: Vec<f32> = bytemuck::pod_collect_to_vec(&gpu.read(&out)?);
        let is = |step: fn(f32, f32, f32) -> f32| found == [fused_on_host(a, b, step)];
        Ok(if is(f32::mul_add) {
            Some(true)
        } else if is(|x, a, b| x * a + b) {
            Some(false)
        } else {
            None
        })
    }

    /// Measures the bytes per second of the best copy kernel and of the device's copy command.
    fn copy(gpu: &Gpu, time: Duration) -> Result<(f64, f64)> {
        let bytes = if gpu.caps.software { COPY_BYTES_SOFTWARE } else { COPY_BYTES };
        let elements = (bytes.min(gpu.caps.max_binding_bytes) / 4) as usize / 4 * 4;
        let [inp, out] = ["roofs: copied", "roofs: copy"].map(|label| gpu.tensor(label, 1, elements, Elem::F32));
        let (inp, out) = (inp?, out?);
        let rate = |ms: f64| a_second("copies", (2 * inp.bytes()) as f64, ms);
        let mut kernel = 0.0f64;
        for each in [1, 8] {
            let mut pass = Pass::new(gpu);
            roof::copy(&mut pass, roof::Copy { inp: &inp, out: &out, each })?;
            kernel = kernel.max(rate(best_ms(gpu, &pass.finish(), time / 2)?)?);
        }
        let mut pass = Pass::new(gpu);
        pass.copy(&inp, &out)?;
        Ok((kernel, rate(best_ms(gpu, &pass.finish(), time / 2)?)?))
    }

    /// Measures the FLOP/s of cooperative matrices from registers and from workgroup memory, each of the best edge.
    fn matrices(gpu: &Gpu, time: Duration, notes: &mut Vec<String>) -> Result<(Option<f64>, Option<f64>)> {
        let caps = &gpu.caps;
        if caps.matrix_edges.is_empty() {
            notes.push("cooperative matrices not run: the device has none for f16 with f32 sums".into());
            return Ok((None, None));
        }
        if caps.software && caps.lanes > 8 {
            notes.push(format!(
                "cooperative matrices not run: Mesa crashes in them with vectors of {} bits; LP_NATIVE_VECTOR_WIDTH=256 runs them",
                32 * caps.lanes
            ));
            return Ok((None, None));
        }
        let better = |best: Option<f64>, found: f64| Some(best.map_or(found, |best| best.max(found)));
        let (mut registers, mut fed) = (None, None);
        for &edge in &caps.matrix_edges {
            let found = Self::matrix(gpu, time, edge)?;
            notes.push(format!("cooperative matrices of {edge}x{edge} from registers: {:.3} TFLOP/s", found / 1e12));
            registers = better(registers, found);
            let from = format!("cooperative matrices of {edge}x{edge} from workgroup memory");
            if let Some(why) = roof::without_fed(caps, edge) {
                notes.push(format!("{from} not run: {why}"));
                continue;
            }
            let found = Self::matrix_fed(gpu, time, edge)?;
            notes.push(format!("{from}: {:.3} TFLOP/s", found / 1e12));
            fed = better(fed, found);
        }
        Ok((registers, fed))
    }

    fn matrix(gpu: &Gpu, time: Duration, edge: u32) -> Result<f64> {
        let e = edge as usize;
        let groups = if gpu.caps.software { 64 } else { 8192 };
        let operands = gpu.tensor("roofs: operands", 2 * e * e, 1, Elem::U32)?;
        gpu.write(&operands, &SIXTEENTHS.repeat(4 * e * e))?;
        let out = gpu.tensor("roofs: products", groups * TILES * e, e, Elem::F32)?;
        rate(gpu, time, "products of matrices", |pass, rounds| {
            roof::matrix(pass, roof::Matrix { operands: &operands, out: &out, edge, rounds })
        })
    }

    fn matrix_fed(gpu: &Gpu, time: Duration, edge: u32) -> Result<f64> {
        // a few waves of workgroups, so that storing results takes little time
        let groups = match &gpu.caps {
            caps if caps.software => 64,
            caps if caps.integrated => 512,
            _ => 4096,
        };
        let [m, n, k] = roof::fed_shape(&gpu.caps);
        let operands = gpu.tensor("roofs: operands", roof::FED_TILES * (m + n), k, Elem::F16)?;
        gpu.write(&operands, &SIXTEENTHS.repeat(operands.len()))?;
        let out = gpu.tensor("roofs: products", groups * m, n, Elem::F32)?;
        rate(gpu, time, "products of matrices in workgroup memory", |pass, rounds| {
            roof::matrix_fed(pass, roof::MatrixFed { operands: &operands, out: &out, edge, rounds, stride: 1 })
        })
    }

    /// Measures the FLOP/s of a product in matrices of flexible dimensions, of the best shape.
    fn flexible(gpu: &Gpu, time: Duration, notes: &mut Vec<String>) -> Result<Option<f64>> {
        let shapes = roof::flexible_shapes(&gpu.caps);
        let [m, n, k] = if gpu.caps.software { [96, 96, 96] } else { [8192, 3072, 1024] };
        let half = |name, rows| -> Result<_> {
            let tensor = gpu.tensor(name, rows, k, Elem::F16)?;
            gpu.write(&tensor, &SIXTEENTHS.repeat(tensor.len()))?;
            Ok(tensor)
        };
        let mut best: Option<f64> = None;
        for shape in shapes {
            let (a, b) = (half("roofs: a", m)?, half("roofs: b", n)?);
            let out = gpu.tensor("roofs: products", m, n, Elem::F32)?;
            let mut pass = Pass::new(gpu);
            for _ in 0..FLEXIBLE_PRODUCTS {
                roof::matrix_flexible(&mut pass, roof::MatrixFlexible { a: &a, b: &b, out: &out, shape })?;
            }
            let ms = best_ms(gpu, &pass.finish(), time)?;
            let found = a_second("products", (2 * m * n * k * FLEXIBLE_PRODUCTS) as f64, ms)?;
            let of =
                if gpu.caps.flexible.is_some_and(|flexible| flexible.workgroup) { "workgroup" } else { "subgroup" };
            let [x, y, z] = shape;
            notes.push(format!("matrices of {x}x{y}x{z} of a {of}, {m}x{n}x{k}: {:.3} TFLOP/s", found / 1e12));
            best = Some(best.map_or(found, |best| best.max(found)));
        }
        Ok(best)
    }

    /// Returns the roof for kernels of this arithmetic, and its name. If it was not measured, this is the roof of f32.
    #[must_use]
    pub fn flops(&self, arithmetic: Arithmetic) -> (&'static str, f64) {
        let f32 = ("fma f32", self.fused_f32);
        match arithmetic {
            Arithmetic::F32 => f32,
            Arithmetic::F16 => self.fused_f16.map_or(f32, |rate| ("fma f16", rate)),
            Arithmetic::Matrix => self.matrix.map_or(f32, |rate| ("matrix", rate)),
        }
    }

    /// Returns the share of its roof that a kernel reached in `ms`: the least time for its bytes or its operations,
    /// divided by `ms`. Also returns the name of the roof that bounds it.
    #[must_use]
    pub fn reached(&self, arithmetic: Arithmetic, flops: u64, bytes: u64, ms: f64) -> (f64, &'static str) {
        let (name, rate) = self.flops(arithmetic);
        let (memory, arithmetic) = (bytes as f64 / self.copy, flops as f64 / rate);
        let (least, bound) = if memory >= arithmetic { (memory, "copy") } else { (arithmetic, name) };
        (least * 1e3 / ms, bound)
    }

    /// Returns the rates on one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let tera = |rate: Option<f64>| rate.map_or("-".into(), |r| format!("{:.3} TFLOP/s", r / 1e12));
        format!(
            "copy {:.1} GB/s, multiply-add f32 {}, f16 {}, cooperative matrices {}, fed from workgroup memory {}",
            self.copy / 1e9,
            tera(Some(self.fused_f32)),
            tera(self.fused_f16),
            tera(self.matrix),
            tera(self.matrix_fed)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_a_multiply_add_differ_in_bits() {
        let apart = fused_on_host(0.6, 0.3, |x, a, b| x * a + b);
        assert_ne!(fused_on_host(0.6, 0.3, f32::mul_add).to_bits(), apart.to_bits());
    }

    #[test]
    fn kernels_on_matrices_are_held_against_products_from_registers() {
        let roofs = Roofs {
            copy: 1.0,
            copy_kernel: 1.0,
            fused_f32: 2.0,
            fused_f16: Some(4.0),
            matrix: Some(16.0),
            matrix_fed: Some(8.0),
            matrix_flexible: None,
            fuses: None,
            notes: Vec::new(),
        };
        assert_eq!(roofs.flops(Arithmetic::Matrix), ("matrix", 16.0));
        assert!(roofs.summary().ends_with("fed from workgroup memory 0.000 TFLOP/s"), "{}", roofs.summary());
    }
}
