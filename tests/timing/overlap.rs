//! The GPU is never idle: the host is ahead of the device, and commands that may run at once share no written buffer.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use wgpt::gpu::{Binding, Command, Elem, Gpu, Options, Span};
use wgpt::measure::plan::assumed;
use wgpt::measure::random_batches;
use wgpt::model::{Config, init};
use wgpt::train::{Sizes, Trainer, TrainerOptions};

const STEPS: usize = 20;

#[test]
fn the_next_step_is_handed_over_before_this_one_is_done() {
    let _turn = super::alone();
    let gpu = Gpu::open(&Options::default()).expect("adapter");
    // small heads, which drivers of the CPU compile fastest
    let config = Config::new(64, 2000, 4, 16, 256).expect("config");
    let sizes = Sizes { batch: 4, context: 64, accumulation: 1 };
    let mut trainer = Trainer::new(&gpu, TrainerOptions::new(config, sizes)).expect("trainer");
    trainer.load(&init::init(config, 42)).expect("load");
    let mut batches = random_batches(&config, &sizes, STEPS + 2).expect("batches");
    // kernels are built by the first
    trainer.step(&mut batches, 1, 1e-4).expect("step");
    gpu.wait().expect("done");

    let mut before: Option<Arc<AtomicBool>> = None;
    let (mut handed, mut returned, mut submitting_ms) = (0, 0, 0.0);
    let begin = Instant::now();
    for step in 2..STEPS + 3 {
        // asks the device, so that the flag is up to date
        while trainer.report(false).expect("report").is_some() {}
        let runs = |done: &Option<Arc<AtomicBool>>| done.as_ref().is_some_and(|done| !done.load(Ordering::SeqCst));
        handed += usize::from(runs(&before));
        gpu.record_spans();
        trainer.step(&mut batches, step, 1e-4).expect("step");
        returned += usize::from(runs(&before));
        let spans = gpu.take_spans();
        submitting_ms += spans.iter().filter(|span| span.name == "submit").map(Span::ms).sum::<f64>();
        let results: Vec<&Span> = spans.iter().filter(|span| span.name.contains("read-back")).collect();
        assert!(results.is_empty(), "step {step} waited for a result: {results:?}");
        let done = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&done);
        gpu.when_done(move || flag.store(true, Ordering::SeqCst)).expect("asked");
        before = Some(done);
    }
    while trainer.report(true).expect("report").is_some() {}
    let ms = begin.elapsed().as_secs_f64() * 1e3;
    println!(
        "{submitting_ms:.1} of {ms:.1} ms in submissions; {returned} of {STEPS} returned before the step before was done"
    );
    assert_eq!(handed, STEPS, "of {STEPS} steps so many were handed over while the one before was running");
    assert_eq!(returned, STEPS, "of {STEPS} submissions so many returned while the step before was running");
    assert!(submitting_ms < ms / 4.0, "{submitting_ms} of {ms} ms in submissions: the host waited for the device");
    // the last step's callback comes too
    gpu.wait().expect("done");
    assert!(before.is_some_and(|done| done.load(Ordering::SeqCst)));
}

/// The commands of a micro-step of 124M at batch 64 on a GPU.
fn commands(elem: Elem) -> Vec<Command> {
    let gpu = Gpu::dry(assumed(elem, (1 << 31) - 256));
    let config = Config::from_descriptor("d12").expect("a model");
    let sizes = Sizes { batch: 64, context: 1024, accumulation: 1 };
    let options = TrainerOptions { elem, ..TrainerOptions::new(config, sizes) };
    let trainer = Trainer::new(&gpu, options).expect("planned");
    trainer.programs()[0].commands.clone()
}

/// A product writes its result and what its fused end computes, and nothing else. Operands are bound as read-only.
#[test]
fn products_bind_what_they_read_as_read_only() {
    for elem in [Elem::F32, Elem::F16] {
        let is_product = |name: &str| name.starts_with("matmul_") || name.starts_with("sums.add.parts");
        for command in commands(elem).iter().filter(|command| is_product(command.name())) {
            let writes: Vec<bool> = command.bindings.iter().map(|binding| binding.writes).collect();
            let want: &[bool] = match command.name() {
                // parts, gradient, squares; rows of sums, and theirs
                "sums.add.parts" => &[false, true, true],
                "sums.add.parts.rows1" => &[false, true, true, false, true],
                "sums.add.parts.rows3" => &[false, true, true, false, true, true, true],
                name if name.contains(".column_sums") => &[false, false, true, true],
                name if name.contains(".bias_gelu") => &[false, false, true, false, true],
                _ => &[false, false, true],
            };
            assert!(
                writes.starts_with(want) && !writes[want.len()..].contains(&true),
                "{}: {writes:?}",
                command.name()
            );
        }
    }
}

/// The gradients of a linear layer's input and weight: neither writes what the other uses, so a GPU may overlap them.
#[test]
fn both_gradients_of_a_layer_may_run_at_once() {
    for elem in [Elem::F32, Elem::F16] {
        let commands = commands(elem);
        let written = |command: &Command| -> HashSet<u64> {
            command.bindings.iter().filter(|binding| binding.writes).map(|binding| binding.buffer).collect()
        };
        let used =
            |command: &Command| -> HashSet<u64> { command.bindings.iter().map(|binding| binding.buffer).collect() };
        let (mut pairs, mut apart) = (0, 0);
        let products: Vec<&Command> = commands.iter().filter(|command| command.name().contains(".backward_")).collect();
        for pair in products.windows(2) {
            let both = pair.iter().any(|c| c.name().contains("backward_inp"))
                && pair.iter().any(|c| c.name().contains("weight"));
            // the two of one layer read the same gradient
            if !both || pair[0].bindings[0].buffer != pair[1].bindings[0].buffer || pair[0].section != pair[1].section {
                continue;
            }
            pairs += 1;
            let free = written(pair[0]).is_disjoint(&used(pair[1])) && written(pair[1]).is_disjoint(&used(pair[0]));
            apart += usize::from(free);
        }
        assert!(pairs >= 12 * 3, "{elem:?}: {pairs} pairs");
        // the last block's projection gives its memory to the gradient that follows
        assert!(apart + 1 >= pairs, "{elem:?}: {apart} of {pairs} pairs");
    }
}

/// wgpu puts a barrier between two commands that use one buffer, if one of them writes it. Neighbours that do not
/// depend on each other share none, but for the embeddings' gradients: these lie in one buffer.
#[test]
fn independent_neighbours_have_no_barrier_between_them() {
    for elem in [Elem::F32, Elem::F16] {
        let commands = commands(elem);
        let (mut free, mut waiting) = (0, Vec::new());
        for pair in commands.windows(2) {
            let either_writes = |meet: &dyn Fn(&Binding, &Binding) -> bool| {
                let meets = |a: &Binding, b: &Binding| (a.writes || b.writes) && a.buffer == b.buffer && meet(a, b);
                pair[0].bindings.iter().any(|a| pair[1].bindings.iter().any(|b| meets(a, b)))
            };
            let overlap = |a: &Binding, b: &Binding| a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
            match (either_writes(&|_, _| true), either_writes(&overlap)) {
                (true, false) => waiting.push([pair[0].name(), pair[1].name()]),
                (true, true) => {}
                (false, _) => free += 1,
            }
        }
        assert!(free >= 12 * 5, "{elem:?}: {free} pairs of neighbours have no barrier between them");
        assert_eq!(waiting, [["embedding.backward_split", "embedding.backward_wpe"]], "{elem:?}");
    }
}
