//! Every kernel again and again on the same data: what two runs make must be the same bits, or something races.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use wgpt::error::{Error, Result};
use wgpt::gpu::{Caps, Elem, Gpu, Pass, Program};
use wgpt::ops::compare;
use wgpt::train::measure::Table;

use crate::Row;
use crate::case::{Case, Role};
use crate::common;

/// What the repeats of a case came to.
#[derive(Debug, Serialize)]
struct Outcome {
    operator: String,
    shape: String,
    kernels: Vec<String>,
    /// Runs after the first.
    repeats: usize,
    /// Words that differed, over all of them.
    differing: u32,
    /// What is wrong.
    fault: Option<String>,
}

impl Outcome {
    fn not_run(case: &Case, kernels: Vec<String>) -> Self {
        let (operator, shape) = (case.operator.to_owned(), case.what.clone());
        Self { operator, shape, kernels, repeats: 0, differing: 0, fault: None }
    }

    fn verdict(&self) -> String {
        match &self.fault {
            Some(fault) => fault.clone(),
            None if self.repeats == 0 => "not run: out of time".into(),
            None => format!("{} repeats, {} words differ", self.repeats, self.differing),
        }
    }
}

/// Checks every case once against the reference, then `repeats` times against its first run; a case that takes too long
/// gets fewer, and says so.
pub fn run(
    mut gpu: Gpu,
    cases: &[Case],
    variants: &[Caps],
    rows: &[Row],
    repeats: usize,
    seconds: Option<Duration>,
) -> Result<()> {
    println!("adapter {}", gpu.caps.summary());
    println!("races   {repeats} repeats of every case, compared with its first run word by word on the device");
    let mut seen = HashSet::new();
    let jobs: Vec<(usize, usize)> = rows.iter().map(|r| (r.case, r.variant)).filter(|job| seen.insert(*job)).collect();
    let begin = Instant::now();
    let mut outcomes = Vec::new();
    for (done, &(case, variant)) in jobs.iter().enumerate() {
        // what is left of the time, shared by what is left of the cases
        let share = seconds.map(|s| s.saturating_sub(begin.elapsed()) / (jobs.len() - done) as u32);
        gpu.caps = variants[variant].clone();
        let kernels =
            rows.iter().filter(|r| (r.case, r.variant) == (case, variant)).map(|r| r.kernel.clone()).collect();
        let outcome = if share.is_some_and(|share| share.is_zero()) {
            Outcome::not_run(&cases[case], kernels)
        } else {
            gpu.caps = variants[variant].clone();
            let outcome = one(&gpu, &cases[case], kernels, repeats, share);
            gpu.caps = variants[0].clone();
            outcome
        };
        println!("{} {}: {}", outcome.operator, outcome.shape, outcome.verdict());
        outcomes.push(outcome);
    }
    let mut table = Table::new(&["<name", "<shape", "<", "<kernels"]);
    for o in &outcomes {
        table.row([o.operator.clone(), o.shape.clone(), o.verdict(), o.kernels.join(" ")]);
    }
    println!("\n{table}");
    let wrong = outcomes.iter().filter(|o| o.fault.is_some() || o.differing > 0).count();
    println!("{} cases, {wrong} wrong, in {:.0} s", outcomes.len(), begin.elapsed().as_secs_f64());
    common::write("races", &json!({"adapter": gpu.caps.name, "driver": gpu.caps.driver, "cases": outcomes}))?;
    if wrong == 0 { Ok(()) } else { Err(Error::Gpu(format!("{wrong} cases are wrong"))) }
}

fn one(gpu: &Gpu, case: &Case, kernels: Vec<String>, repeats: usize, time: Option<Duration>) -> Outcome {
    let (operator, shape) = (case.operator.to_owned(), case.what.clone());
    match repeat(gpu, case, repeats, time) {
        Ok((repeats, differing)) => Outcome { operator, shape, kernels, repeats, differing, fault: None },
        Err(error) => Outcome { operator, shape, kernels, repeats: 0, differing: 0, fault: Some(error.to_string()) },
    }
}

/// Returns how often it was repeated, and how many words differed.
fn repeat(gpu: &Gpu, case: &Case, repeats: usize, time: Option<Duration>) -> Result<(usize, u32)> {
    let begin = Instant::now();
    let contents = case.contents();
    let set = case.set(gpu, &contents)?;
    case.verify(gpu, &set, &contents)?;
    let result = gpu.tensor("result", 2, 1, Elem::U32)?;
    gpu.write(&result, bytemuck::cast_slice(&compare::NONE))?;
    let (mut keep, mut against) = (Pass::new(gpu), Pass::new(gpu));
    for (slot, tensor) in case.slots.iter().zip(&set.tensors) {
        if matches!(slot.role, Role::Output | Role::Updated) {
            let first = gpu.tensor("first run", tensor.rows(), tensor.columns(), tensor.elem())?;
            keep.copy(tensor, &first)?;
            compare::forward(&mut against, compare::Forward { first: &first, again: tensor, result: &result })?;
        }
    }
    keep.finish().run(gpu)?;
    let again = Program::join([&set.restore, &set.program, &against.finish()]);
    let mut done = 0;
    while done < repeats {
        // two at once: the device never waits for the host, and time is still looked at
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
