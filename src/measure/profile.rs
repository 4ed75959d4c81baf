//! The time of a step on the device, by kernel, and the gaps between kernels.

use std::time::Instant;

use serde::Serialize;

use crate::error::Result;
use crate::gpu::{Arithmetic, Gpu, Place, Program, Timings};
use crate::train::Trainer;

use crate::measure::roofs::Roofs;
use crate::measure::table::{Table, number};

/// Rows of the table of gaps; one more row sums the others.
const GAPS: usize = 12;

/// One step with every command timed separately.
#[derive(Debug, Clone)]
pub struct Profile {
    /// The step's commands: all micro-steps, one after the other.
    pub program: Program,
    /// Times of the commands in the fastest run.
    pub timings: Timings,
    /// Milliseconds of the step on the device as training runs it, without timing single commands: the fastest of the
    /// same number of runs. `None` without timestamps in encoders.
    pub plain_ms: Option<f64>,
    /// Times at which the host began to encode the fastest run, and at which it had the timestamps.
    pub host: (Instant, Instant),
}

/// All dispatches of one kernel.
#[derive(Debug, Clone, Serialize)]
pub struct KernelRow {
    /// Kernel, `clear` or `copy`.
    pub name: String,
    /// Kind of arithmetic that bounds it.
    #[serde(skip)]
    pub arithmetic: Arithmetic,
    /// Dispatches per step.
    pub count: usize,
    /// Milliseconds per step.
    pub ms: f64,
    /// Bytes per step that it needs to move.
    pub bytes: u64,
    /// Floating-point operations per step that it needs to compute.
    pub flops: u64,
    /// Least time by the roofs, divided by the measured time.
    pub reached: f64,
    /// Name of that roof.
    pub bound: &'static str,
}

/// The gaps before one kernel.
#[derive(Debug, Clone, Serialize)]
pub struct GapRow {
    /// The kernel after the gaps; `the end` after the last command.
    pub before: String,
    /// Number of gaps.
    pub count: usize,
    /// Milliseconds per step; negative where commands overlap.
    pub ms: f64,
}

/// One place in the model, such as a block or the head.
#[derive(Debug, Clone, Serialize)]
pub struct PlaceRow {
    /// The place.
    pub place: Place,
    /// Milliseconds of its commands.
    pub ms: f64,
    /// Milliseconds of the gaps before its commands.
    pub gaps_ms: f64,
}

/// Returns the row for which `is` is true; adds one if there is none. There are few rows, so a linear search suffices.
fn entry<T>(rows: &mut Vec<T>, is: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> &mut T {
    let at = rows.iter().position(is).unwrap_or_else(|| {
        rows.push(make());
        rows.len() - 1
    });
    &mut rows[at]
}

impl Profile {
    /// Runs the trainer's last step `runs` more times, on the same batch.
    ///
    /// # Errors
    /// As [`Program::timings`].
    pub fn run(trainer: &Trainer, runs: usize) -> Result<Self> {
        let gpu: &Gpu = trainer.gpu();
        let program = trainer.step_program();
        program.timings(gpu)?;
        let mut best: Option<(Timings, (Instant, Instant))> = None;
        for _ in 0..runs.max(1) {
            let before = Instant::now();
            let timings = program.timings(gpu)?;
            if best.as_ref().is_none_or(|(t, _)| timings.span_ms < t.span_ms) {
                best = Some((timings, (before, Instant::now())));
            }
        }
        let (timings, host) = best.unwrap_or_else(|| (Timings::default(), (Instant::now(), Instant::now())));
        let mut plain_ms: Option<f64> = None;
        if gpu.caps.encoder_timestamps {
            for _ in 0..runs.max(1) {
                let ms = program.span_ms(gpu)?;
                plain_ms = Some(plain_ms.map_or(ms, |least| least.min(ms)));
            }
        }
        Ok(Self { program, timings, plain_ms, host })
    }

    /// Returns the commands of the step.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Returns the milliseconds of all kernels, clears and copies.
    #[must_use]
    pub fn commands_ms(&self) -> f64 {
        self.timings.commands.iter().map(crate::gpu::Timing::ms).sum()
    }

    /// Returns the milliseconds of all gaps.
    #[must_use]
    pub fn gaps_ms(&self) -> f64 {
        self.gaps().iter().map(|gap| gap.ms).sum()
    }

    /// Returns the kernels, most time first.
    #[must_use]
    pub fn kernels(&self, roofs: &Roofs) -> Vec<KernelRow> {
        let mut rows: Vec<KernelRow> = Vec::new();
        for timing in &self.timings.commands {
            let command = &self.program.commands[timing.command];
            let row = entry(
                &mut rows,
                |row| row.name == command.name(),
                || KernelRow {
                    name: command.name().to_owned(),
                    arithmetic: command.arithmetic(),
                    count: 0,
                    ms: 0.0,
                    bytes: 0,
                    flops: 0,
                    reached: 0.0,
                    bound: "",
                },
            );
            row.count += 1;
            row.ms += timing.ms();
            row.bytes += command.bytes;
            row.flops += command.flops;
        }
        for row in &mut rows {
            (row.reached, row.bound) = roofs.reached(row.arithmetic, row.flops, row.bytes, row.ms);
        }
        rows.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        rows
    }

    /// Returns the milliseconds of every gap, and the position in the timings of the command after it.
    fn stretches(&self) -> impl Iterator<Item = (f64, usize)> {
        let commands = &self.timings.commands;
        // times are relative to the run's first timestamp
        (0..=commands.len()).map(move |i| {
            let before = if i == 0 { 0.0 } else { commands[i - 1].end_ms };
            let after = commands.get(i).map_or(self.timings.span_ms, |c| c.begin_ms);
            (after - before, i)
        })
    }

    fn command(&self, at: usize) -> Option<&crate::gpu::Command> {
        self.timings.commands.get(at).map(|timing| &self.program.commands[timing.command])
    }

    /// Returns the gaps by the kernel after them, longest first. They include clears and copies if the adapter cannot
    /// time these.
    #[must_use]
    pub fn gaps(&self) -> Vec<GapRow> {
        let mut rows: Vec<GapRow> = Vec::new();
        for (ms, i) in self.stretches() {
            let before = self.command(i).map_or("the end", |c| c.name());
            let row =
                entry(&mut rows, |row| row.before == before, || GapRow { before: before.into(), count: 0, ms: 0.0 });
            row.count += 1;
            row.ms += ms;
        }
        rows.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        rows
    }

    /// Returns the places in the order of their first command.
    #[must_use]
    pub fn places(&self) -> Vec<PlaceRow> {
        let mut rows: Vec<PlaceRow> = Vec::new();
        for (gap_ms, i) in self.stretches() {
            let Some(command) = self.command(i) else { continue };
            let make = || PlaceRow { place: command.place, ms: 0.0, gaps_ms: 0.0 };
            let row = entry(&mut rows, |row| row.place == command.place, make);
            row.ms += self.timings.commands[i].ms();
            row.gaps_ms += gap_ms;
        }
        rows
    }

    /// Returns the tables of kernels, gaps and places.
    #[must_use]
    pub fn report(&self, roofs: &Roofs) -> String {
        let all = self.commands_ms();
        let mut kernels =
            Table::new(&["<kernel", "count", "ms", "%", "MB", "GB/s", "GFLOP", "TFLOP/s", "% of roof", "<roof"]);
        for row in self.kernels(roofs) {
            let seconds = row.ms / 1e3;
            kernels.row([
                row.name,
                row.count.to_string(),
                number(row.ms),
                format!("{:.1}", 100.0 * row.ms / all),
                number(row.bytes as f64 / 1e6),
                number(row.bytes as f64 / 1e9 / seconds),
                number(row.flops as f64 / 1e9),
                number(row.flops as f64 / 1e12 / seconds),
                format!("{:.1}", 100.0 * row.reached),
                row.bound.into(),
            ]);
        }
        let mut gaps = Table::new(&["<gap before", "count", "ms", "us each"]);
        let mut rows = self.gaps();
        if rows.len() > GAPS {
            // so that the shortened table still adds up
            let others = rows.split_off(GAPS);
            let (count, ms) = others.iter().fold((0, 0.0), |(count, ms), row| (count + row.count, ms + row.ms));
            rows.push(GapRow { before: format!("{} other kernels", others.len()), count, ms });
        }
        for row in rows {
            gaps.row([row.before, row.count.to_string(), number(row.ms), number(1e3 * row.ms / row.count as f64)]);
        }
        let mut places = Table::new(&["<place", "ms", "gaps ms", "gaps %"]);
        for row in self.places() {
            let share = format!("{:.2}", 100.0 * row.gaps_ms / (row.ms + row.gaps_ms));
            places.row([row.place.to_string(), number(row.ms), number(row.gaps_ms), share]);
        }
        let sum = self.commands_ms() + self.gaps_ms();
        let against = |ms: f64| format!("{} ms ({:+.2} %)", number(ms), 100.0 * (sum / ms - 1.0));
        format!(
            "{kernels}\n{gaps}\n{places}\nkernels {} ms + gaps {} ms = {} ms; between the step's own timestamps {}; without \
             timing of single commands {}\n",
            number(self.commands_ms()),
            number(self.gaps_ms()),
            number(sum),
            against(self.timings.span_ms),
            self.plain_ms.map_or("unknown".into(), against)
        )
    }
}
