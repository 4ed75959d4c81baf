//! Predicts the time of a step on a GPU that is not present, from each kernel's machine code, the operations and bytes
//! of each dispatch, and the card's data sheet. The prediction is meant to be refuted by a measurement.
//!
//! # Formula
//! A dispatch has W workgroups on `units` SMs, CUs or cores. The busiest unit runs `n = ceil(W / units)` of them, of
//! which `R` are resident at once: as many as registers, workgroup memory and the limits on subgroups and workgroups
//! allow.
//!
//! The number of iterations of a kernel's main loop follows from the work: from the matrix products that the dispatch
//! needs, or from its multiply-adds in `matmul` and `attention` without matrices. In other kernels all code repeats
//! until it has moved the bytes that the dispatch needs. These give the counts of one workgroup, whose cycles are
//!
//! | | cycles of a workgroup |
//! |---|---|
//! | issue | instructions x subgroups / `issue`, without copies from register to register |
//! | multiply-adds | FLOP / `fma_flops` |
//! | matrix | FLOP / `matrix_flops` |
//! | workgroup memory | bytes / `workgroup_bytes`; 16 bits count as 32 |
//! | L2 | bytes of buffers and spills / (`l2_gb` / `units`) |
//! | latency | `start` + longest of the first four + `exposed` x the others + barriers x `barrier` + waits x `load` |
//!
//! where a kernel waits for loads once at its start and once per iteration; `matmul`, whose loop fetches ahead, waits
//! twice in total. The dispatch takes
//!
//! `max(n x the largest of the first five, ceil(n / R) x latency, bytes / (memory_gb x memory_share)) + dispatch_us`
//!
//! and its limiter is the largest term.
//!
//! # Left out
//! Bank conflicts; hits in L1; second reads that the L2 misses; the work of attention beyond the diagonal of its
//! blocks; the dependence of the clock on power; the tail of common tokens in the embedding. NVK's compiler is not
//! NVIDIA's, nor is Honeykrisp's Apple's. Only measurements can show these effects.

pub mod card;
pub mod code;
pub mod comparison;

use serde::Serialize;

use crate::error::{Error, Fault, Result};
use crate::gpu::Command;
use crate::gpu::{Elem, Gpu, KernelId, Program, Purpose};
use crate::model::{Config, Recompute};
use crate::train::{Sizes, Trainer, TrainerOptions};
use crate::units;

use crate::measure::table::{Table, number};
use card::{Card, Constants};
use code::{Code, Codes, Counts, code_name};
pub use comparison::Comparison;

/// The work of one dispatch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Number of workgroups.
    pub groups: f64,
    /// Invocations per workgroup.
    pub threads: f64,
    /// Bytes of workgroup memory per workgroup.
    pub workgroup_bytes: f64,
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes that the dispatch must move.
    pub bytes: f64,
}

/// The kind of work that determines the iterations of a kernel's loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turns {
    /// Matrix products.
    Matrix,
    /// Multiply-adds.
    Fma,
    /// Bytes.
    Bytes,
}

/// The predicted time of a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Time {
    /// Milliseconds.
    pub ms: f64,
    /// The largest term of the formula.
    pub limiter: &'static str,
    /// Workgroups that a unit holds at once.
    pub resident: f64,
}

/// Returns the number of a kernel's workgroups that a unit holds at once.
fn resident(card: &Card, code: &Code, work: &Work) -> f64 {
    let registers = (code.registers / 8.0).ceil().max(1.0) * 8.0;
    let subgroups = (work.threads / f64::from(card.subgroup_size)).ceil();
    // NVIDIA's driver reserves a KiB per workgroup; on other GPUs it makes little difference
    let memory = work.workgroup_bytes + if work.workgroup_bytes > 0.0 { 1024.0 } else { 0.0 };
    let by_memory = if memory > 0.0 { card.workgroup_kib * 1024.0 / memory } else { f64::INFINITY };
    let by_registers = card.registers / (registers * work.threads);
    by_registers.min(by_memory).min(card.subgroups / subgroups).min(card.workgroups).floor().max(1.0)
}

/// Returns the counts of one workgroup, and how often it waits for loads.
fn executed(card: &Card, purpose: Purpose, code: &Code, work: &Work) -> (Counts, f64) {
    let tiled = matches!(purpose, Purpose::Product | Purpose::FusedProducts);
    let turns = match code.main_loop {
        Counts { matrix, .. } if matrix > 0.0 => Turns::Matrix,
        Counts { fma, .. } if fma > 0.0 && tiled => Turns::Fma,
        _ => Turns::Bytes,
    };
    let subgroups = (work.threads / f64::from(card.subgroup_size)).ceil();
    let needed = work.flops / work.groups;
    let turned = |all: f64, one: f64, needed: f64| ((needed - (all - one)) / one).max(1.0);
    let times = match turns {
        Turns::Matrix => {
            let products = needed / (card.matrix_instruction_flops * subgroups);
            turned(code.all.matrix, code.main_loop.matrix, products)
        }
        Turns::Fma => turned(code.all.fma, code.main_loop.fma, needed / (2.0 * work.threads)),
        Turns::Bytes => {
            let moved = work.bytes / work.groups / work.threads;
            if code.all.global > 0.0 { (moved / code.all.global).max(1.0) } else { 1.0 }
        }
    };
    let counts = match turns {
        Turns::Bytes => Counts::default().plus(times, code.all),
        _ => code.all.plus(times - 1.0, code.main_loop),
    };
    let waits = if purpose == Purpose::Product && turns != Turns::Bytes { 2.0 } else { times + 1.0 };
    (counts, waits)
}

/// Predicts the time of a dispatch.
#[must_use]
pub fn time(card: &Card, constants: &Constants, purpose: Purpose, code: &Code, work: &Work) -> Time {
    let (counts, waits) = executed(card, purpose, code, work);
    let subgroups = (work.threads / f64::from(card.subgroup_size)).ceil();
    let hertz = card.clock_ghz * 1e9;
    let spilled = 4.0 * code.spills;
    let issue = counts.instructions * subgroups / card.issue;
    let fma = 2.0 * counts.fma * work.threads / card.fma_flops;
    let products = counts.matrix * subgroups * card.matrix_instruction_flops;
    let matrix = card.matrix_flops.map_or(0.0, |rate| products / rate);
    let workgroup = counts.workgroup * work.threads / card.workgroup_bytes;
    let l2 = (counts.global + spilled) * work.threads / (card.l2_gb * 1e9 / card.units / hertz);
    let phases = [issue.max(fma), matrix, workgroup];
    let longest = phases.into_iter().fold(0.0, f64::max);
    let alone = constants.start_cycles
        + longest
        + constants.exposed * (phases.iter().sum::<f64>() - longest)
        + counts.barriers * constants.barrier_cycles
        + waits * constants.load_cycles;
    let each = (work.groups / card.units).ceil();
    let resident = resident(card, code, work);
    let memory = work.bytes / (card.memory_gb * 1e9 * constants.memory_share) * hertz;
    let (cycles, limiter) = [
        (each * issue, "issue"),
        (each * fma, "multiply-adds"),
        (each * matrix, "matrix"),
        (each * workgroup, "workgroup memory"),
        (each * l2, "L2"),
        ((each / resident).ceil() * alone, "latency"),
        (memory, "memory"),
    ]
    .into_iter()
    .max_by(|a, b| a.0.total_cmp(&b.0))
    .unwrap_or((0.0, "nothing"));
    Time { ms: cycles / hertz * 1e3 + constants.dispatch_us / 1e3, limiter, resident }
}

/// The prediction for all dispatches of a kernel in a step.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Kernel, `clear` or `copy`.
    pub kernel: String,
    /// The kernel's identity; `None` for a clear or copy.
    #[serde(skip)]
    pub id: Option<KernelId>,
    /// The replacement for machine code of its own, if it has none: the nearest kernel, or [`TRAFFIC`].
    pub nearest: Option<String>,
    /// Dispatches per step.
    pub count: usize,
    /// Milliseconds per step.
    pub ms: f64,
    /// The limiter of most of that time.
    pub limiter: &'static str,
    /// Workgroups that a unit holds at once.
    pub resident: f64,
    /// Registers per invocation.
    pub registers: f64,
    /// Floating-point operations per step.
    pub flops: u64,
    /// Bytes per step that the kernel must move.
    pub bytes: u64,
    /// Milliseconds by limiter.
    #[serde(skip)]
    limits: Vec<(&'static str, f64)>,
}

/// A predicted step.
#[derive(Debug, Clone, Serialize)]
pub struct Prediction {
    /// The card's name.
    pub card: String,
    /// Element type of matrix operands: `f16` or `f32`.
    pub precision: &'static str,
    /// Tokens per step.
    pub tokens: usize,
    /// Kernels, most time first.
    pub rows: Vec<Row>,
}

/// The step to predict.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// The model.
    pub config: Config,
    /// Sizes of the step.
    pub sizes: Sizes,
    /// Activations that the backward pass recomputes.
    pub recompute: Recompute,
}

impl Step {
    /// Returns a step of GPT-2 124M at context 1024, the reference for comparing cards.
    ///
    /// # Errors
    /// Never fails, because the model is known.
    pub fn reference(batch: usize) -> Result<Self> {
        let config = Config::from_descriptor("d12")?;
        Ok(Self { config, sizes: Sizes { batch, context: 1024, accumulation: 1 }, recompute: Recompute::None })
    }
}

fn work(command: &Command) -> Option<Work> {
    let (threads, workgroup_bytes) = command.workgroup()?;
    Some(Work {
        groups: command.grid.iter().map(|&g| f64::from(g)).product(),
        threads: f64::from(threads),
        workgroup_bytes: f64::from(workgroup_bytes),
        flops: command.flops as f64,
        bytes: command.bytes as f64,
    })
}

/// Predicts a step on a card, with matrix operands stored as `elem`.
///
/// # Errors
/// [`Error::Data`] if an operator has no machine code; as [`Trainer::new`].
pub fn predict(card: &Card, codes: &Codes, step: &Step, elem: Elem) -> Result<Prediction> {
    let gpu = Gpu::dry(card.caps());
    let recompute = step.recompute;
    let trainer =
        Trainer::new(&gpu, TrainerOptions { elem, recompute, ..TrainerOptions::new(step.config, step.sizes) })?;
    let program = trainer.step_program();
    let (rows, missing) = rows(card, codes, &program);
    if let Some(kernel) = missing.first() {
        return Err(Error::data(
            Fault::at(kernel, format!("no machine code of this operator for {}", card.name))
                .advice("try another --precision, or tools/isa --predict"),
        ));
    }
    Ok(Prediction { card: card.name.clone(), precision: elem.name(), tokens: step.sizes.tokens(), rows })
}

/// Replaces machine code in the prediction of a kernel that moves each element once and whose operator has none.
const TRAFFIC: &str = "memory traffic alone";

/// Predicts the time of a command that only moves bytes.
fn of_traffic(card: &Card, constants: &Constants, bytes: u64) -> Time {
    let seconds = bytes as f64 / (card.memory_gb * 1e9 * constants.memory_share);
    Time { ms: seconds * 1e3 + constants.dispatch_us / 1e3, limiter: "memory", resident: 0.0 }
}

/// Predicts the commands of a program, by kernel, most time first. Also returns the kernels with products whose
/// operators have no machine code.
#[must_use]
pub fn rows(card: &Card, codes: &Codes, program: &Program) -> (Vec<Row>, Vec<String>) {
    let constants = card::constants();
    let (mut rows, mut missing): (Vec<Row>, Vec<String>) = (Vec::new(), Vec::new());
    for command in &program.commands {
        let (time, registers, nearest) = if let Some(work) = work(command) {
            let found = command.kernel().and_then(|kernel| find(card, codes, kernel));
            match found {
                Some((name, code)) => {
                    let nearest = (name != code_name(command.name())).then(|| name.to_owned());
                    (time(card, constants, command.purpose(), &code, &work), code.registers, nearest)
                }
                None if command.purpose() == Purpose::Elements => {
                    (of_traffic(card, constants, command.bytes), 0.0, Some(TRAFFIC.to_owned()))
                }
                None => {
                    if !missing.iter().any(|name| name == command.name()) {
                        missing.push(command.name().to_owned());
                    }
                    continue;
                }
            }
        } else {
            (of_traffic(card, constants, command.bytes), 0.0, None)
        };
        let at = rows.iter().position(|row| row.kernel == command.name()).unwrap_or_else(|| {
            let Time { limiter, resident, .. } = time;
            let (kernel, limits) = (command.name().to_owned(), Vec::new());
            let id = command.kernel().cloned();
            let row = Row {
                kernel,
                id,
                nearest,
                count: 0,
                ms: 0.0,
                limiter,
                resident,
                registers,
                flops: 0,
                bytes: 0,
                limits,
            };
            rows.push(row);
            rows.len() - 1
        });
        let row = &mut rows[at];
        row.count += 1;
        row.ms += time.ms;
        row.flops += command.flops;
        row.bytes += command.bytes;
        add(&mut row.limits, time.limiter, time.ms);
        row.limiter = row.limits.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or("", |limit| limit.0);
    }
    rows.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    (rows, missing)
}

fn add(sums: &mut Vec<(&'static str, f64)>, name: &'static str, ms: f64) {
    match sums.iter_mut().find(|(known, _)| *known == name) {
        Some((_, sum)) => *sum += ms,
        None => sums.push((name, ms)),
    }
}

/// Returns the machine code for a kernel on a card, and the name of the kernel that it comes from.
fn find<'c>(card: &Card, codes: &'c Codes, kernel: &KernelId) -> Option<(&'c str, Code)> {
    let (family, kernel) = (kernel.family(), kernel.name());
    let (name, own) = codes.nearest(&card.code, &family, &kernel)?;
    let Some(other) = &card.counts_of else { return Some((name, own)) };
    let (_, counted) = codes.nearest(other, &family, &kernel)?;
    Some((name, Code { registers: own.registers, spills: own.spills, ..counted }))
}

impl Prediction {
    /// Returns the milliseconds per step.
    #[must_use]
    pub fn ms(&self) -> f64 {
        self.rows.iter().map(|row| row.ms).sum()
    }

    /// Returns the tokens per second.
    #[must_use]
    pub fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.ms() * 1e3
    }

    /// Returns the milliseconds by limiter, most first.
    #[must_use]
    pub fn limits(&self) -> Vec<(&'static str, f64)> {
        let mut sums = Vec::new();
        for (name, ms) in self.rows.iter().flat_map(|row| &row.limits) {
            add(&mut sums, name, *ms);
        }
        sums.sort_by(|a, b| b.1.total_cmp(&a.1));
        sums
    }

    /// Returns one line: milliseconds, tokens per second, shares of the limiters, and the roughness of the prediction.
    #[must_use]
    pub fn summary(&self) -> String {
        let share = |(name, ms): &(&str, f64)| format!("{name} {:.0} %", 100.0 * ms / self.ms());
        let limits: Vec<String> = self.limits().iter().filter(|l| l.1 >= 0.005 * self.ms()).map(share).collect();
        let foreign = self.rows.iter().filter(|row| row.nearest.is_some()).count();
        let rough = match foreign {
            0 => String::new(),
            _ => format!("; rough: {foreign} of {} kernels have no machine code of their own", self.rows.len()),
        };
        format!(
            "{} in {}: predicted, not measured: {} ms for {}, {} tokens/s; shares of the time by limit: {}{rough}",
            self.card,
            self.precision,
            three(self.ms()),
            units::counted(self.tokens as u64, "token"),
            three(self.tokens_per_s()),
            limits.join(", ")
        )
    }

    /// Returns the table of kernels, and the kernels that have no machine code of their own.
    #[must_use]
    pub fn report(&self) -> String {
        let heading =
            ["<kernel (predicted)", "count", "ms", "%", "TFLOP/s", "GB/s", "registers", "resident", "<limiter"];
        let mut table = Table::new(&heading);
        for row in &self.rows {
            table.row([
                row.kernel.clone(),
                row.count.to_string(),
                number(row.ms),
                format!("{:.1}", 100.0 * row.ms / self.ms()),
                number(row.flops as f64 / 1e9 / row.ms),
                number(row.bytes as f64 / 1e6 / row.ms),
                if row.registers > 0.0 { number_of(row.registers) } else { "-".into() },
                if row.resident > 0.0 { number_of(row.resident) } else { "-".into() },
                row.limiter.into(),
            ]);
        }
        let mut text = format!(
            "{table}\nregisters: per invocation; resident: workgroups that one SM, CU or core holds at once; limiter: the largest term \
             of the formula (ARCHITECTURE.md, Prediction)\n{}\n",
            self.summary()
        );
        for row in &self.rows {
            if let Some(nearest) = &row.nearest {
                text += &format!("{}: no machine code of its own; predicted as {nearest}\n", row.kernel);
            }
        }
        text
    }
}

/// Returns a number with three significant digits, because a prediction has no more, and commas between thousands.
#[must_use]
pub fn three(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return format!("{x}");
    }
    let digits = 2 - x.abs().log10().floor() as i32;
    let scale = 10f64.powi(digits);
    let rounded = (x * scale).round() / scale;
    if rounded >= 1000.0 {
        units::count(rounded.round() as u64)
    } else {
        format!("{rounded:.*}", digits.max(0) as usize)
    }
}

fn number_of(x: f64) -> String {
    format!("{x:.0}")
}

/// Predicts GPT-2 124M on all cards, each in the precision that `auto` chooses there and at the card's batch.
///
/// # Errors
/// As [`predict`].
pub fn all_cards(codes: &Codes) -> Result<Vec<(&'static Card, Prediction)>> {
    let one = |card: &'static Card| Ok((card, predict(card, codes, &Step::reference(card.batch)?, card.auto())?));
    card::cards().iter().map(one).collect()
}

/// Returns the rows of the table in ARCHITECTURE.md: card, element type, batch, milliseconds of products, of attention,
/// of the rest and of the whole step, tokens per second, limiters.
///
/// # Errors
/// As [`predict`].
pub fn lines(codes: &Codes) -> Result<Vec<String>> {
    let line = |(card, p): (&Card, Prediction)| {
        let of = |test: &dyn Fn(&Row) -> bool| p.rows.iter().filter(|row| test(row)).map(|row| row.ms).sum::<f64>();
        let adds_parts = |row: &Row| row.id.as_ref().is_some_and(|id| id.purpose == Purpose::PartialSums);
        let products = of(&|row| row.kernel.starts_with("matmul") || adds_parts(row));
        let attention = of(&|row| row.kernel.starts_with("attention"));
        let rest = p.ms() - products - attention;
        let limits: Vec<String> =
            p.limits().iter().take(3).map(|(name, ms)| format!("{name} {:.0} %", 100.0 * ms / p.ms())).collect();
        let [products, attention, rest, ms] = [products, attention, rest, p.ms()].map(three);
        format!(
            "| {} | {} | {} | {products} | {attention} | {rest} | {ms} | {} k | {} |",
            card.name,
            p.precision,
            card.batch,
            three(p.tokens_per_s() / 1e3),
            limits.join(", ")
        )
    };
    Ok(all_cards(codes)?.into_iter().map(line).collect())
}

#[cfg(test)]
mod tests;
