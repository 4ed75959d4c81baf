//! Measures rates of an adapter. A kernel's work is raised until it runs long enough for the clock; the best of several
//! runs counts.

use std::time::{Duration, Instant};

use crate::error::{Error, Fault, Result};
use crate::gpu::{Elem, Gpu, Pass, Program};
use crate::ops::roof::{self, Scalar};

/// Shortest time of a measured kernel in milliseconds, so that its launch does not matter.
const LONG_MS: f64 = 8.0;

/// Warm-up time of an adapter before a measurement, because idle GPUs lower their clocks.
pub const WARM_UP: Duration = Duration::from_millis(200);

/// Returns the milliseconds of one run: the sum over its commands by timestamps, or wall-clock time if some have none.
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

/// Keeps the adapter busy with multiply-adds until `time` has passed.
///
/// # Errors
/// [`Error::Memory`]; as [`Gpu::check`].
pub fn warm_up(gpu: &Gpu, time: Duration) -> Result<()> {
    let begin = Instant::now();
    let out = gpu.tensor("warm-up", if gpu.caps.software { 1 << 12 } else { 1 << 20 }, 1, Elem::F32)?;
    let mut pass = Pass::new(gpu);
    roof::fused(&mut pass, roof::Fused { out: &out, scalar: Scalar::F32, rounds: 64, a: 0.75, b: 0.125 })?;
    let program = pass.finish();
    while begin.elapsed() < time {
        // two submissions, so that the device does not wait for the host
        program.run(gpu)?;
        program.run(gpu)?;
        gpu.wait()?;
    }
    Ok(())
}

/// Returns the rate per second of `amount` in `ms` milliseconds.
pub(super) fn a_second(what: &str, amount: f64, ms: f64) -> Result<f64> {
    if ms > 0.0 {
        return Ok(amount / ms * 1e3);
    }
    Err(Error::device(Fault::at(
        "roofs",
        format!("the device's clock shows {ms} ms for {what}: the device computes nothing"),
    )))
}

/// Returns the milliseconds of the fastest of several runs.
pub(super) fn best_ms(gpu: &Gpu, program: &Program, time: Duration) -> Result<f64> {
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

/// Returns the FLOP/s of a kernel that `record` records for a number of rounds, which is raised until it runs long
/// enough.
pub(super) fn rate(
    gpu: &Gpu,
    time: Duration,
    what: &str,
    record: impl Fn(&mut Pass, u32) -> Result<()>,
) -> Result<f64> {
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
    a_second(what, flops as f64, best_ms(gpu, &program, time)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_stands_still_is_no_rate() {
        assert_eq!(a_second("copies", 2e9, 1e3).ok(), Some(2e9));
        for ms in [0.0, f64::NAN] {
            let error = a_second("copies", 2e9, ms).expect_err("no rate");
            assert!(matches!(&error, Error::Device(fault) if fault.place == "roofs"), "{error:?}");
            assert!(error.fault().what.contains(&format!("{ms} ms for copies")), "{error}");
        }
    }
}
