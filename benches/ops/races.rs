//! Runs every kernel repeatedly on the same data. If the bits of two runs differ, the kernel has a data race.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use wgpt::cases::Case;
use wgpt::error::{Error, Result};
use wgpt::gpu::{Caps, Elem, Gpu, Pass, Program};
use wgpt::measure::Table;
use wgpt::ops::compare;
use wgpt::units::counted;

use crate::Row;
use crate::common;
use crate::set::{Set, is_output};

/// The result of a case's repeats.
#[derive(Debug, Serialize)]
struct Outcome {
    operator: String,
    shape: String,
    kernels: Vec<String>,
    /// True if the kernels come from the adapter's tuning record.
    from_record: bool,
    /// Number of runs after the first.
    repeats: usize,
    /// Number of words that differed, in all repeats together.
    differing: u32,
    /// The error, if the case failed.
    fault: Option<String>,
}

impl Outcome {
    fn not_run(case: &Case, rows: &[&Row]) -> Self {
        Self {
            operator: case.pass.to_string(),
            shape: case.what.clone(),
            kernels: rows.iter().map(|row| row.kernel.clone()).collect(),
            from_record: rows.iter().any(|row| row.from_record),
            repeats: 0,
            differing: 0,
            fault: None,
        }
    }

    fn origin(&self) -> &'static str {
        if self.from_record { "of the record" } else { "" }
    }

    fn verdict(&self) -> String {
        match &self.fault {
            Some(fault) => fault.clone(),
            None if self.repeats == 0 => "not run: out of time".into(),
            None => {
                let repeats = counted(self.repeats as u64, "repeat");
                format!("{repeats}, {} differ", counted(self.differing.into(), "word"))
            }
        }
    }
}

/// Checks every case once against the reference, then `repeats` times against its first run. If time is short, a case
/// gets fewer repeats, and its line shows how many.
pub fn run(
    mut gpu: Gpu,
    tuned: Option<&str>,
    (cases, variants, rows): (&[Case], &[Caps], &[Row]),
    repeats: usize,
    seconds: Option<Duration>,
) -> Result<()> {
    println!("adapter {}", gpu.caps.summary());
    println!("tuned   {}", tuned.unwrap_or("no: this adapter has no record of wgpt tune"));
    let repetitions = counted(repeats as u64, "repeat");
    println!("races   {repetitions} of every case, compared with its first run word by word on the device");
    let mut seen = HashSet::new();
    let mut jobs: Vec<(usize, usize)> =
        rows.iter().map(|r| (r.case, r.variant)).filter(|job| seen.insert(*job)).collect();
    // kernels with barriers between tiles first, because time may run out
    jobs.sort_by_key(|job| !["matmul", "attention"].contains(&cases[job.0].pass.operator));
    let begin = Instant::now();
    let mut outcomes = Vec::new();
    for (done, &(case, variant)) in jobs.iter().enumerate() {
        // the remaining time in equal shares for the remaining cases
        let share = seconds.map(|s| s.saturating_sub(begin.elapsed()) / (jobs.len() - done) as u32);
        let own: Vec<&Row> = rows.iter().filter(|r| (r.case, r.variant) == (case, variant)).collect();
        let mut outcome = Outcome::not_run(&cases[case], &own);
        if share.is_none_or(|share| !share.is_zero()) {
            gpu.caps = variants[variant].clone();
            match repeat(&gpu, &cases[case], repeats, share) {
                Ok(counts) => (outcome.repeats, outcome.differing) = counts,
                Err(error) => outcome.fault = Some(error.to_string()),
            }
            gpu.caps = variants[0].clone();
        }
        println!(
            "{} {}: {}{}",
            outcome.operator,
            outcome.shape,
            outcome.verdict(),
            match outcome.origin() {
                "" => String::new(),
                origin => format!(" ({}, {origin})", outcome.kernels.join(" ")),
            }
        );
        outcomes.push(outcome);
    }
    let mut table = Table::new(&["<name", "<shape", "<", "<kernels", "<"]);
    for o in &outcomes {
        table.row([o.operator.clone(), o.shape.clone(), o.verdict(), o.kernels.join(" "), o.origin().into()]);
    }
    println!("\n{table}");
    let wrong = outcomes.iter().filter(|o| o.fault.is_some() || o.differing > 0).count();
    let all = counted(outcomes.len() as u64, "case");
    println!("{all}, {wrong} wrong, in {:.0} s", begin.elapsed().as_secs_f64());
    common::write(
        "races",
        &json!({"adapter": gpu.caps.name, "driver": gpu.caps.driver, "tuned": tuned, "cases": outcomes}),
    )?;
    if wrong == 0 { Ok(()) } else { Err(Error::gpu(format!("races: {wrong} of {all} wrong"))) }
}

/// Repeats a case. Returns the number of repeats and of words that differed.
fn repeat(gpu: &Gpu, case: &Case, repeats: usize, time: Option<Duration>) -> Result<(usize, u32)> {
    let begin = Instant::now();
    let contents = case.contents();
    let set = Set::new(gpu, case, &contents)?;
    set.verify(gpu, case, &contents)?;
    let result = gpu.tensor("result", 2, 1, Elem::U32)?;
    gpu.write(&result, bytemuck::cast_slice(&compare::NO_DIFFERENCE))?;
    let (mut keep, mut against) = (Pass::new(gpu), Pass::new(gpu));
    for (slot, tensor) in case.slots.iter().zip(&set.tensors) {
        if is_output(slot) {
            let first = gpu.tensor("first run", tensor.rows(), tensor.columns(), tensor.elem())?;
            keep.copy(tensor, &first)?;
            compare::forward(&mut against, compare::Forward { first: &first, again: tensor, result: &result })?;
        }
    }
    keep.finish().run(gpu)?;
    let again = Program::join([&set.restore, &set.program, &against.finish()]);
    let mut done = 0;
    while done < repeats {
        // submits two at a time: the device does not wait for the host, and the time limit is still checked
        for _ in 0..2.min(repeats - done) {
            again.run(gpu)?;
            done += 1;
        }
        gpu.wait()?;
        if time.is_some_and(|time| begin.elapsed() > time) {
            break;
        }
    }
    let words: Vec<u32> = bytemuck::pod_collect_to_vec(&gpu.read(&result)?);
    Ok((done, words[0]))
}
