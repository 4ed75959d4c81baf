//! The most that an adapter can do, measured: what every kernel's figures are held against.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::Result;
use crate::gpu::{Elem, Gpu, Pass, Program};
use crate::ops::roof::{self, Scalar, TILES};

/// Rates of an adapter, each the best of several runs.
#[derive(Debug, Clone, Serialize)]
pub struct Roofs {
    /// Bytes read and written by a copy, a second: by the kernel or by the device's own copy, whichever is faster.
    pub copy: f64,
    /// The kernel's part in that: software adapters load and store lane by lane and come nowhere near.
    pub copy_kernel: f64,
    /// Floating-point operations a second, multiply-adds in f32.
    pub fused_f32: f64,
    /// Likewise in f16, where the adapter has it.
    pub fused_f16: Option<f64>,
    /// Likewise in cooperative matrices of f16 with f32 sums, where the device has them; the best edge.
    pub matrix: Option<f64>,
    /// True if an `fma` in f32 is one instruction that rounds once, false if the adapter makes a product and a sum of it;
    /// none if it does neither.
    pub fuses: Option<bool>,
    /// Why a rate is missing or what it was measured with.
    pub notes: Vec<String>,
}

/// Bytes of a buffer that is copied: several times any cache.
const COPY_BYTES: u64 = 256 << 20;
const COPY_BYTES_SOFTWARE: u64 = 64 << 20;
/// Milliseconds that a kernel should take at least, so that its start does not count.
const LONG_MS: f64 = 8.0;

/// Milliseconds of one run: the sum of its commands by timestamps, or the wall clock where some have none.
///
/// # Errors
/// As [`Gpu::check`].
pub fn run_ms(gpu: &Gpu, program: &Program) -> Result<f64> {
    let timed = |dispatch: bool| gpu.caps.timestamps && (dispatch || gpu.caps.encoder_timestamps);
    if program.commands.iter().all(|c| timed(c.is_dispatch())) {
        return Ok(program.timings(gpu)?.commands.iter().map(crate::gpu::Timing::ms).sum());
    }
    gpu.wait()?;
    let begin = Instant::now();
    program.run(gpu)?;
    gpu.wait()?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

/// Keeps the device computing for `time`, so that its clocks are up before something is timed.
///
/// # Errors
/// [`crate::error::Error::Memory`]; as [`Gpu::check`].
pub fn warm_up(gpu: &Gpu, time: Duration) -> Result<()> {
    let lanes = gpu.tensor("roofs", if gpu.caps.software { 1 << 14 } else { 1 << 20 }, 1, Elem::F32)?;
    let mut pass = Pass::new(gpu);
    roof::fused(&mut pass, roof::Fused { out: &lanes, scalar: Scalar::F32, rounds: 256, a: 0.75, b: 0.125 })?;
    let program = pass.finish();
    let begin = Instant::now();
    while begin.elapsed() < time {
        program.run(gpu)?;
        gpu.wait()?;
    }
    Ok(())
}

/// The shortest of several runs.
fn best_ms(gpu: &Gpu, program: &Program, time: Duration) -> Result<f64> {
    let begin = Instant::now();
    run_ms(gpu, program)?;
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 3 || (begin.elapsed() < time && runs < 100) {
        best = best.min(run_ms(gpu, program)?);
        runs += 1;
    }
    Ok(best)
}

/// FLOP/s of a kernel that `record` makes for a number of rounds, raised until it runs long enough.
fn rate(gpu: &Gpu, time: Duration, record: impl Fn(&mut Pass, u32) -> Result<()>) -> Result<f64> {
    let program = |rounds| -> Result<Program> {
        let mut pass = Pass::new(gpu);
        record(&mut pass, rounds)?;
        Ok(pass.finish())
    };
    let mut rounds = 16;
    run_ms(gpu, &program(rounds)?)?;
    loop {
        let ms = run_ms(gpu, &program(rounds)?)?;
        if ms >= LONG_MS || rounds >= 32_768 {
            break;
        }
        rounds = (f64::from(rounds) * (1.5 * LONG_MS / ms.max(1e-3)).clamp(2.0, 64.0)).min(32_768.0) as u32;
    }
    let program = program(rounds)?;
    let flops: u64 = program.commands.iter().map(|c| c.flops).sum();
    Ok(flops as f64 / best_ms(gpu, &program, time)? * 1e3)
}

/// What one round of [`roof::fused`] comes to with this way of making a step, its sums in the kernel's order.
fn fused_on_host(a: f32, b: f32, step: fn(f32, f32, f32) -> f32) -> f32 {
    let chain = |i: u8| (0..roof::FUSED_A_ROUND / 16).fold(f32::from(i) / 16.0, |x, _| step(x, a, b));
    let column = |i: u8| chain(i) + chain(4 + i) + chain(8 + i) + chain(12 + i);
    (column(0) + column(1)) + (column(2) + column(3))
}

impl Roofs {
    /// Measures all, some `time` each.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`]; as [`Gpu::check`].
    pub fn measure(gpu: &Gpu, time: Duration) -> Result<Self> {
        let mut notes = Vec::new();
        let (copy_kernel, copy_command) = Self::copy(gpu, time)?;
        let copy = copy_kernel.max(copy_command);
        notes.push(format!(
            "copy: {:.1} GB/s by a kernel, {:.1} by a copy command",
            copy_kernel / 1e9,
            copy_command / 1e9
        ));
        let lanes = gpu.tensor("roofs", if gpu.caps.software { 1 << 14 } else { 1 << 20 }, 1, Elem::F32)?;
        let fused = |scalar| {
            rate(gpu, time, |pass, rounds| {
                roof::fused(pass, roof::Fused { out: &lanes, scalar, rounds, a: 0.75, b: 0.125 })
            })
        };
        let fused_f32 = fused(Scalar::F32)?;
        let fuses = Self::fuses(gpu)?;
        if fuses == Some(false) {
            notes.push("fma f32: the adapter makes a product and a sum of every multiply-add".into());
        }
        let fused_f16 = if gpu.caps.f16 { Some(fused(Scalar::F16)?) } else { None };
        if fused_f16.is_none() {
            notes.push("f16 not run: the adapter has none".into());
        }
        let mut matrix = None;
        if gpu.caps.software && gpu.caps.lanes > 8 && !gpu.caps.matrix_edges.is_empty() {
            notes.push(format!(
                "cooperative matrices not run: Mesa crashes in them with vectors of {} bits; LP_NATIVE_VECTOR_WIDTH=256 runs them",
                32 * gpu.caps.lanes
            ));
        } else if gpu.caps.matrix_edges.is_empty() {
            notes.push("cooperative matrices not run: the device has none of f16 with f32 sums".into());
        } else {
            for &edge in &gpu.caps.matrix_edges {
                let found = Self::matrix(gpu, time, edge)?;
                notes.push(format!("cooperative matrices of {edge}x{edge}: {:.3} TFLOP/s", found / 1e12));
                matrix = Some(matrix.map_or(found, |best: f64| best.max(found)));
            }
        }
        if !gpu.caps.timestamps {
            notes.push("by the wall clock: the adapter has no timestamps".into());
        }
        Ok(Self { copy, copy_kernel, fused_f32, fused_f16, matrix, fuses, notes })
    }

    /// Whether multiply-adds round once or twice, told from the bits of one result.
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

    /// Bytes a second of the best copying kernel and of the device's copy command.
    fn copy(gpu: &Gpu, time: Duration) -> Result<(f64, f64)> {
        let bytes = if gpu.caps.software { COPY_BYTES_SOFTWARE } else { COPY_BYTES };
        let elements = (bytes.min(gpu.caps.max_binding_bytes) / 4) as usize / 4 * 4;
        let [inp, out] = ["roofs: copied", "roofs: copy"].map(|label| gpu.tensor(label, 1, elements, Elem::F32));
        let (inp, out) = (inp?, out?);
        let rate = |ms: f64| (2 * inp.bytes()) as f64 / ms * 1e3;
        let mut kernel = 0.0f64;
        for each in [1, 8] {
            let mut pass = Pass::new(gpu);
            roof::copy(&mut pass, roof::Copy { inp: &inp, out: &out, each })?;
            kernel = kernel.max(rate(best_ms(gpu, &pass.finish(), time / 2)?));
        }
        let mut pass = Pass::new(gpu);
        pass.copy(&inp, &out)?;
        Ok((kernel, rate(best_ms(gpu, &pass.finish(), time / 2)?)))
    }

    fn matrix(gpu: &Gpu, time: Duration, edge: u32) -> Result<f64> {
        let e = edge as usize;
        let groups = if gpu.caps.software { 64 } else { 8192 };
        let operands = gpu.tensor("roofs: operands", 2 * e * e, 1, Elem::U32)?;
        // 2^-4 in every element
        gpu.write(&operands, bytemuck::cast_slice(&vec![0x2c00_2c00u32; 2 * e * e]))?;
        let out = gpu.tensor("roofs: products", groups * TILES * e, e, Elem::F32)?;
        rate(gpu, time, |pass, rounds| {
            roof::matrix(pass, roof::Matrix { operands: &operands, out: &out, edge, rounds })
        })
    }

    /// The rate of arithmetic that a kernel of this name is held against, and what it is called.
    #[must_use]
    pub fn flops(&self, kernel: &str) -> (&'static str, f64) {
        if kernel.contains("coop") || kernel.starts_with("roof.matrix") {
            if let Some(matrix) = self.matrix {
                return ("matrix", matrix);
            }
        } else if kernel.contains("f16")
            && let Some(fused) = self.fused_f16
        {
            return ("fma f16", fused);
        }
        ("fma f32", self.fused_f32)
    }

    /// How near to its roof a kernel came that ran `ms`: the least time that its bytes or its operations take, over what
    /// it took, and which of the two it is.
    #[must_use]
    pub fn reached(&self, kernel: &str, flops: u64, bytes: u64, ms: f64) -> (f64, &'static str) {
        let (name, rate) = self.flops(kernel);
        let (memory, arithmetic) = (bytes as f64 / self.copy, flops as f64 / rate);
        let (least, bound) = if memory >= arithmetic { (memory, "copy") } else { (arithmetic, name) };
        (least * 1e3 / ms, bound)
    }

    /// One line.
    #[must_use]
    pub fn summary(&self) -> String {
        let tera = |rate: Option<f64>| rate.map_or("-".into(), |r| format!("{:.3} TFLOP/s", r / 1e12));
        format!(
            "copy {:.1} GB/s, multiply-add f32 {}, f16 {}, cooperative matrices {}",
            self.copy / 1e9,
            tera(Some(self.fused_f32)),
            tera(self.fused_f16),
            tera(self.matrix)
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
}
