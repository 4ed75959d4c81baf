//! The only code that runs an operator in tests.
//!
//! [`verify`] records a case once and runs the recording twice. Inputs are f32 or f16 numbers of a fixed seed, and the
//! f64 reference gets the same numbers. Overwritten outputs begin as NaN, accumulated ones as numbers other than zero.
//! Every tensor is surrounded by guard words, which are NaN too and must keep their bits. Both runs must give the same
//! bits. Comparisons are `!(difference <= tolerance)`, so that NaN fails.
//!
//! Tolerances are budgets, which `src/cases` states. `planted.rs` tests the harness itself.

use wgpt::cases::{Case, Cases, Contents, Role, Slot, Want, float, from_bytes, to_bytes, unwritten};
use wgpt::error::{Error, Result};
use wgpt::gpu::{Elem, Gpu, Pass, Program, Tensor};

pub use super::devices::*;

/// Returns the bits of the elements around every tensor: a NaN.
fn guard(elem: Elem) -> u32 {
    if elem == Elem::F16 { 0x7e5a } else { 0x7fc0_5afe }
}

/// Guard elements before a tensor: as many as alignment requires.
const HEAD: usize = 128;
/// The least number of guard elements after a tensor.
const TAIL: usize = 256;

/// A case that takes as long is printed with its time, which most often is the driver's to compile its kernels.
const SLOW_SECONDS: f64 = 3.0;

/// Runs a case on every device.
#[track_caller]
pub fn check(devices: &[Device], case: &Case) {
    let contents = case.contents();
    for device in devices {
        verify_with(device, case, &contents, None).unwrap_or_else(|report| panic!("{report}"));
    }
}

/// Runs an operator's cases in every mode. Each open device has its own thread, because a CPU driver compiles the
/// kernels of one device one after the other.
#[track_caller]
pub fn run(cases: &Cases) {
    let mut open: Vec<Vec<(Mode, Vec<Case>)>> = Vec::new();
    let all = modes();
    let chosen = super::choice::chosen(&all, cases);
    for of_mode in all.into_iter().zip(chosen) {
        match open.iter_mut().find(|modes| modes[0].0.device.shares(&of_mode.0.device)) {
            Some(modes) => modes.push(of_mode),
            None => open.push(vec![of_mode]),
        }
    }
    let reports: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = open.iter().map(|modes| scope.spawn(|| run_modes(modes, cases))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    });
    let first: Vec<&str> = reports.iter().take(5).map(String::as_str).collect();
    assert!(reports.is_empty(), "{} cases fail, the first are:\n{}", reports.len(), first.join("\n"));
}

fn run_modes(modes: &[(Mode, Vec<Case>)], cases: &Cases) -> Vec<String> {
    let mut reports = Vec::new();
    for (mode, list) in modes {
        let begin = std::time::Instant::now();
        if list.is_empty() {
            continue;
        }
        for case in list {
            let case_begin = std::time::Instant::now();
            reports.extend(verify(&mode.device, case).err());
            let seconds = case_begin.elapsed().as_secs_f64();
            if seconds >= SLOW_SECONDS {
                println!("{case}, {}: {seconds:.1} s", mode.device.mode);
            }
        }
        let (name, place, time) = (cases.operator.name, mode.device.mode, begin.elapsed().as_secs_f64());
        println!("{name}: {} cases, {place}: {time:.1} s", list.len());
    }
    reports
}

/// A tensor between its guards: the whole buffer, and the tensor inside it.
struct Guarded {
    whole: Tensor,
    tensor: Tensor,
}

/// Guard words before and after a slot's tensor that are bound together with it as one row, so that a planted fault can
/// reach them on drivers that clamp accesses to the bound range.
pub struct Reach {
    pub slot: usize,
    pub head: bool,
    pub tail: usize,
}

fn allocate(gpu: &Gpu, slot: &Slot, reach: Option<&Reach>) -> Result<Guarded> {
    let (mut tensors, mut wholes) = gpu.arena(slot.name, &[vec![[1, HEAD], slot.shape, [1, TAIL]]], slot.elem)?;
    let (whole, mut tensor) = (wholes.remove(0), tensors.remove(1));
    if let Some(Reach { head, tail, .. }) = reach {
        tensor = whole.flat(if *head { 0 } else { HEAD }..HEAD + tensor.len() + tail);
    }
    Ok(Guarded { whole, tensor })
}

/// Describes the case, the adapter, the mode, and the chosen kernels.
fn place(device: &Device, case: &Case, program: Option<&Program>) -> String {
    let caps = &device.caps;
    let kind = if caps.software { format!("{} lanes", caps.lanes) } else { "GPU kernels".into() };
    let mut names: Vec<&str> = program.iter().flat_map(|p| &p.commands).map(wgpt::gpu::Command::name).collect();
    names.dedup();
    let names = if names.is_empty() { String::new() } else { format!("; {}", names.join(" ")) };
    format!("{case} on {} ({}, {kind}{names})", caps.name, device.mode)
}

/// Runs a case on one device. Returns a report if something is wrong.
pub fn verify(device: &Device, case: &Case) -> Result<(), String> {
    verify_with(device, case, &case.contents(), None)
}

/// Runs a case with given contents, and optionally with a slot that reaches into its guards.
pub fn verify_with(device: &Device, case: &Case, contents: &[Contents], reach: Option<&Reach>) -> Result<(), String> {
    device.run(&case.caps(&device.caps), |gpu| {
        let fault = |e: Error| format!("{}: {e}", place(device, case, None));
        let guarded = case.slots.iter().enumerate();
        let guarded = guarded.map(|(i, slot)| allocate(gpu, slot, reach.filter(|reach| reach.slot == i)));
        let guarded: Vec<Guarded> = guarded.collect::<Result<_>>().map_err(fault)?;
        let tensors: Vec<Tensor> = guarded.iter().map(|g| g.tensor.clone()).collect();
        let mut pass = Pass::new(gpu);
        case.record(&mut pass, &tensors).map_err(fault)?;
        let program = pass.finish();
        run_twice(gpu, case, contents, (&guarded, &program))
            .map_err(|what| format!("{}: {what}", place(device, case, Some(&program))))
    })
}

fn run_twice(
    gpu: &Gpu,
    case: &Case,
    contents: &[Contents],
    (guarded, program): (&[Guarded], &Program),
) -> Result<(), String> {
    let fault = |e: Error| e.to_string();
    let mut first: Vec<Vec<u32>> = vec![Vec::new(); guarded.len()];
    for round in 0..2 {
        for ((slot, contents), guarded) in case.slots.iter().zip(contents).zip(guarded) {
            if round > 0 && slot.role == Role::Input {
                continue;
            }
            let mut words = vec![guard(slot.elem); guarded.whole.len()];
            let inside = &mut words[HEAD..HEAD + slot.elements()];
            match contents.before.as_slice() {
                [] => inside.fill(unwritten(slot.elem)),
                before => inside.copy_from_slice(before),
            }
            gpu.write(&guarded.whole, &to_bytes(slot.elem, &words)).map_err(fault)?;
        }
        program.run(gpu).map_err(fault)?;
        for (i, (slot, contents)) in case.slots.iter().zip(contents).enumerate() {
            let Some(want) = &contents.want else { continue };
            let words = from_bytes(slot.elem, &gpu.read(&guarded[i].whole).map_err(fault)?);
            if round == 0 {
                judge(slot, want, &words)?;
                first[i] = words;
            } else if let Some(at) = words.iter().zip(&first[i]).position(|(a, b)| a != b) {
                let [a, b] = [first[i][at], words[at]].map(|bits| float(slot.elem, bits));
                let (name, at) = (slot.name, at as i64 - HEAD as i64);
                return Err(format!("`{name}` word {at}: {a:e}, in a second run {b:e}, expected the same bits"));
            }
        }
    }
    Ok(())
}

/// Compares one output, guards first.
fn judge(slot: &Slot, want: &Want, words: &[u32]) -> Result<(), String> {
    let n = slot.elements();
    if let Some(at) = (0..words.len()).find(|&i| !(HEAD..HEAD + n).contains(&i) && words[i] != guard(slot.elem)) {
        let (at, got) = (at as i64 - HEAD as i64, float(slot.elem, words[at]));
        return Err(format!("`{}` of {n} elements: guard word at {at} was overwritten with {got:e}", slot.name));
    }
    slot.judge(want, &words[HEAD..HEAD + n])
}
