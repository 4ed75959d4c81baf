//! The choice of cases on software adapters, whose drivers take seconds to compile a kernel.
//!
//! A kernel's printed name lists its properties, as in `matmul_rows.forward.32x8x4.8.bias_gelu.scalar`. Each shader or
//! generator writes them independently of each other, so not all combinations run, but each pair does: of two
//! properties, of a property and the absence of another, of an algorithm or a mode and a property. A case runs if its
//! kernels show a new pair, if no other case of its kind runs, or if its kernels are compiled anyway. `--ignored` runs
//! the others.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use wgpt::cases::{Breadth, Case, Cases};
use wgpt::gpu::{Caps, Gpu};

use super::devices::{Mode, modes};
use super::harness::verify;
use crate::common::not_run::not_run;

/// A pass and two properties of a kernel.
type Pair = (String, String, String);

/// A case of a mode, and the kernels that it records.
struct Planned {
    case: Case,
    kernels: Vec<String>,
    runs: bool,
}

/// Returns the names of the kernels that a case records.
pub fn kernels_of(gpu: &Gpu, mode: &str, caps: &Caps, case: &Case) -> Vec<String> {
    let program = case.dry(gpu, caps).unwrap_or_else(|e| panic!("{case} ({mode}): {e}"));
    program.commands.into_iter().map(|command| command.name().to_owned()).collect()
}

/// Returns the pass and the properties of a kernel that runs in a mode.
fn properties<'a>(mode: &'a str, name: &'a str) -> (&'a str, BTreeSet<&'a str>) {
    let mut parts = name.split('.');
    let algorithm = parts.next().unwrap_or_default();
    let pass = parts.next().unwrap_or_default();
    (pass, parts.chain([mode, algorithm]).collect())
}

/// All properties of the kernels of a pass.
type Known = BTreeMap<String, BTreeSet<String>>;

fn pairs(mode: &str, name: &str, known: &Known) -> Vec<Pair> {
    let (pass, own) = properties(mode, name);
    let absent = known[pass].iter().filter(|other| !own.contains(other.as_str())).map(|other| format!("no {other}"));
    let absent: Vec<String> = absent.collect();
    let mut list = Vec::new();
    for (number, one) in own.iter().enumerate() {
        let others = own.iter().skip(number + 1).map(|other| (*other).to_owned()).chain(absent.iter().cloned());
        list.extend(others.map(|other| (pass.to_owned(), (*one).to_owned(), other)));
    }
    list
}

/// Returns a case's description without its sizes.
fn kind(case: &Case) -> String {
    let mut kind: String = case.to_string().chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
    while kind.contains("##") {
        kind = kind.replace("##", "#");
    }
    kind
}

fn known(modes: &[Mode], all: &[Vec<Planned>]) -> Known {
    let mut known = Known::new();
    for (mode, list) in modes.iter().zip(all) {
        for (pass, own) in list.iter().flat_map(|p| &p.kernels).map(|name| properties(mode.device.mode, name)) {
            known.entry(pass.to_owned()).or_default().extend(own.into_iter().map(str::to_owned));
        }
    }
    known
}

/// Returns the cases of each mode, those that run and those that are left out.
fn planned(modes: &[Mode], cases: &Cases) -> Vec<Vec<Planned>> {
    let gpu = &Gpu::dry(Caps::webgpu_defaults());
    let of = |mode: &Mode| -> Vec<Planned> {
        let chooses = mode.device.software && mode.breadth == Breadth::Full;
        let kernels =
            |case: &Case| if chooses { kernels_of(gpu, mode.device.mode, &mode.device.caps, case) } else { vec![] };
        let list = mode.cases(cases).into_iter();
        list.map(|case| Planned { kernels: kernels(&case), case, runs: !chooses }).collect()
    };
    let mut all: Vec<Vec<Planned>> = modes.iter().map(of).collect();
    let known = known(modes, &all);
    let (mut shown, mut kinds): (HashSet<Pair>, HashSet<String>) = Default::default();
    for (mode, list) in modes.iter().zip(&mut all) {
        for planned in list.iter_mut().filter(|planned| !planned.runs) {
            let all = planned.kernels.iter().flat_map(|name| pairs(mode.device.mode, name, &known));
            let new: Vec<Pair> = all.filter(|pair| !shown.contains(pair)).collect();
            let is_first = kinds.insert(kind(&planned.case));
            planned.runs = is_first || !new.is_empty();
            shown.extend(new);
        }
    }
    for number in 0..all.len() {
        let shares = |other: &usize| modes[*other].device.shares(&modes[number].device);
        let running = (0..all.len()).filter(shares).flat_map(|other| &all[other]).filter(|planned| planned.runs);
        let compiled: HashSet<String> = running.flat_map(|planned| planned.kernels.iter().cloned()).collect();
        for planned in &mut all[number] {
            planned.runs |= planned.kernels.iter().all(|name| compiled.contains(name));
        }
    }
    all
}

/// Returns the cases that run in each mode.
pub fn chosen(modes: &[Mode], cases: &Cases) -> Vec<Vec<Case>> {
    let of = |list: Vec<Planned>| list.into_iter().filter(|planned| planned.runs).map(|planned| planned.case).collect();
    planned(modes, cases).into_iter().map(of).collect()
}

/// Returns the kernels of cases that are left out.
pub fn left_out(modes: &[Mode], cases: &Cases) -> BTreeSet<String> {
    let all = planned(modes, cases).into_iter().flatten();
    all.filter(|planned| !planned.runs).flat_map(|planned| planned.kernels).collect()
}

/// Checks the choice: each pair of properties of any kernel is one of a kernel that runs, and cases are left out.
#[test]
fn each_pair_of_properties_runs() {
    let modes = modes();
    if !modes.iter().any(|mode| mode.device.software && mode.breadth == Breadth::Full) {
        not_run("the choice of cases", "the adapter is no software adapter");
        return;
    }
    let mut left = 0;
    for cases in wgpt::cases::ALL {
        let all = planned(&modes, cases);
        let known = known(&modes, &all);
        let (mut every, mut run): (BTreeSet<Pair>, BTreeSet<Pair>) = Default::default();
        for (mode, list) in modes.iter().zip(&all) {
            for planned in list {
                let shown = planned.kernels.iter().flat_map(|name| pairs(mode.device.mode, name, &known));
                let shown: Vec<Pair> = shown.collect();
                if planned.runs {
                    run.extend(shown.iter().cloned());
                }
                every.extend(shown);
            }
        }
        let missing: Vec<&Pair> = every.difference(&run).collect();
        assert!(missing.is_empty(), "{}: {missing:?}", cases.operator.name);
        left += all.iter().flatten().filter(|planned| !planned.runs).count();
    }
    assert!(left > 0, "no case is left out");
}

#[test]
#[ignore = "takes half an hour on software Vulkan"]
fn cases_left_out() {
    let modes = modes();
    for cases in wgpt::cases::ALL {
        for (mode, list) in modes.iter().zip(planned(&modes, cases)) {
            let not_chosen = list.into_iter().filter(|planned| !planned.runs).map(|planned| planned.case);
            for case in not_chosen.chain(mode.left(cases)) {
                verify(&mode.device, &case).unwrap_or_else(|report| panic!("{report}"));
            }
        }
    }
}
