//! The memory of a step: which tensors share buffers, what is recomputed, and that neither changes a bit.

use std::collections::HashMap;

use wgpt::gpu::{Caps, Command, Elem, Gpu, Options};
use wgpt::measure;
use wgpt::measure::plan::{self, Subject};
use wgpt::model::{Config, PARAMS, Recompute, init};
use wgpt::reference::random::Random;
use wgpt::train::schedule::Shape;
use wgpt::train::{Schedule, Sizes, Trainer, TrainerOptions};

use crate::common::not_run::not_run;
use crate::common::training::{lively, run};

/// Returns the capabilities of a GPU with matrix units that binds 2 GiB. Only the bookkeeping of such a device exists
/// here.
fn nvidia() -> Caps {
    plan::assumed(Elem::F16, (1 << 31) - 256)
}

fn sizes(batch: usize, context: usize) -> Sizes {
    Sizes { batch, context, accumulation: 1 }
}

/// A model in training, as plans take it.
fn subject(name: &str, context: usize, elem: Elem, recompute: Recompute) -> Subject {
    Subject {
        config: Config::from_descriptor(name).expect("a model"),
        context,
        elem,
        recompute,
        ranks: 1,
        devices: 1,
        machines: 1,
        wire: None,
    }
}

/// Returns the bytes per sequence of activations and of the backward pass's scratch, without the chunk of logits.
fn kept_a_sequence(elem: Elem, recompute: Recompute, batch: usize) -> f64 {
    let plan = subject("d12", 1024, elem, recompute).plan(&Gpu::dry(nvidia()), batch).expect("planned");
    let [.., activations, logits, _] = plan.parts();
    assert!(logits <= 512 << 20, "a logits chunk of {logits} bytes");
    activations as f64 / batch as f64
}

#[test]
fn a_sequence_of_124m_in_f16_keeps_at_most_299_mib() {
    for batch in [1, 4, 16, 64] {
        let mib = Recompute::ALL.map(|(_, level)| kept_a_sequence(Elem::F16, level, batch) / f64::from(1 << 20));
        println!("batch {batch}: {mib:.1?} MiB a sequence");
        assert!(mib[0] <= 299.0, "{mib:?}");
        // GELU is 4 C a layer, the outputs of two layernorms 2 C
        assert!(mib[1] <= mib[0] - 60.0 && mib[2] <= mib[1] - 30.0 && mib[3] <= mib[2] - 100.0, "{mib:?}");
    }
}

/// Compares the plan with the figures of the driver's allocator after two steps.
#[test]
fn plans_hold_within_three_percent_of_what_is_allocated() {
    // small heads, which drivers of the CPU compile fastest: bytes do not depend on them but for the rows' statistics
    for (layers, heads, channels, vocab, batch, context, elem, recompute) in [
        (3, 16, 256, 3000, 2, 256, Elem::F32, Recompute::None),
        (3, 16, 256, 3000, 2, 256, Elem::F32, Recompute::Gelu),
        (3, 16, 256, 3000, 8, 64, Elem::F32, Recompute::Ln),
        (4, 16, 256, 257, 8, 64, Elem::F32, Recompute::Block),
        (1, 20, 260, 50_257, 1, 32, Elem::F32, Recompute::None),
        (2, 16, 256, 3000, 2, 128, Elem::F16, Recompute::None),
        (2, 16, 256, 257, 4, 64, Elem::F16, Recompute::Block),
    ] {
        let gpu = Gpu::open(&Options::default()).expect("adapter");
        if elem == Elem::F16 && !gpu.caps.f16 {
            not_run("plans of f16", "the adapter has no f16");
            continue;
        }
        let Some((before, _)) = gpu.driver_bytes() else {
            not_run("plans against the driver's figures", "the adapter does not report what is allocated");
            return;
        };
        let config = Config::new(context, vocab, layers, heads, channels).expect("config");
        let plan = Subject { config, context, elem, recompute, ranks: 1, devices: 1, machines: 1, wire: None }
            .plan(&Gpu::dry(gpu.caps.clone()), batch)
            .expect("planned");
        let sizes = sizes(batch, context);
        let options = TrainerOptions { elem, recompute, ..TrainerOptions::new(config, sizes) };
        let mut trainer = Trainer::new(&gpu, options).expect("trainer");
        trainer.load(&init::init(config, 42)).expect("load");
        let mut batches = measure::random_batches(&config, &sizes, 2).expect("batches");
        let schedule = Schedule { shape: Shape::Cosine, lr: 1e-3, warmup: 0, final_frac: 1.0, steps: 1 };
        run(&mut trainer, &mut batches, &schedule);
        gpu.wait().expect("done");
        let (after, _) = gpu.driver_bytes().expect("reported");
        let (planned, taken) = (plan.total(), after - before);
        println!("{layers} layers, batch {batch}, {elem:?}, {recompute:?}: planned {planned}, taken {taken}");
        let off = (planned as f64 - taken as f64).abs() / taken as f64;
        assert!(off <= 0.03, "{layers} layers, batch {batch}, {elem:?}, {recompute:?}: off by {:.1} %", 100.0 * off);
    }
}

#[test]
fn the_largest_batch_fits_and_one_more_does_not() {
    let gpu = Gpu::dry(nvidia());
    for (name, recompute, gib) in
        [("d12", Recompute::None, 24), ("d12", Recompute::Block, 8), ("d48", Recompute::Block, 80)]
    {
        let (subject, limit) = (subject(name, 1024, Elem::F16, recompute), gib << 30);
        let total = |batch| subject.plan(&gpu, batch).expect("planned").total();
        let batch = subject.largest_batch(&gpu, limit, |_| true).expect("planned").expect("one fits");
        assert!(total(batch) <= limit && total(batch + 1) > limit, "{name}: {batch}");
        let even = subject.largest_batch(&gpu, limit, |batch| batch % 8 == 0).expect("planned").expect("one fits");
        assert_eq!(even, batch / 8 * 8);
        assert_eq!(subject.largest_batch(&gpu, 1 << 20, |_| true).expect("planned"), None);
    }
}

/// Losses and all gradients of one micro-step, as bits.
fn bits(trainer: &mut Trainer, tokens: &[u32], targets: &[u32]) -> Vec<u32> {
    let mut all: Vec<u32> = Vec::new();
    // twice, so that what the first left in shared buffers could be found
    for _ in 0..2 {
        all = trainer.probe(tokens, targets).expect("probe").iter().map(|x| x.to_bits()).collect();
    }
    for param in &PARAMS {
        for layer in 0..param.copies(trainer.config()) {
            let values = trainer.gpu().read_f32(trainer.grads().get(param.name, layer)).expect("read");
            all.extend(values.iter().map(|x| x.to_bits()));
        }
    }
    all
}

fn sharing_and_recomputing_keep_every_bit(gpu: &Gpu, elem: Elem, heads: usize, channels: usize) {
    let config = Config::new(40, 300, 3, heads, channels).expect("config");
    let (batch, context) = (3, 37);
    let weights = lively(config, 5);
    let mut random = Random::new(9);
    let [tokens, targets] = [(); 2].map(|()| random.tokens(batch * context, config.vocab));
    let of = |trainer: wgpt::error::Result<Trainer>| {
        let mut trainer = trainer.expect("trainer");
        trainer.load(&weights).expect("load");
        bits(&mut trainer, &tokens, &targets)
    };
    let options = TrainerOptions { elem, ..TrainerOptions::new(config, sizes(batch, context)) };
    let apart = of(Trainer::new(gpu, TrainerOptions { shared: false, ..options }));
    assert!(apart.iter().any(|bits| *bits << 1 != 0));
    for (name, level) in Recompute::ALL {
        let shared = of(Trainer::new(gpu, TrainerOptions { recompute: level, ..options }));
        let first = apart.iter().zip(&shared).position(|(a, b)| a != b);
        assert!(apart.len() == shared.len() && first.is_none(), "{elem:?}, --recompute {name}: {first:?} differs");
    }
}

#[test]
fn sharing_and_recomputing_keep_every_bit_of_f32() {
    let mut gpu = Gpu::open(&Options::default()).expect("adapter");
    // logits in two chunks
    gpu.caps.max_binding_bytes = 128 << 10;
    sharing_and_recomputing_keep_every_bit(&gpu, Elem::F32, 3, 39);
}

#[test]
fn sharing_and_recomputing_keep_every_bit_of_f16() {
    let gpu = Gpu::open(&Options { matrices: true, ..Options::default() }).expect("adapter");
    if !gpu.caps.f16 {
        not_run("sharing and recomputing in f16", "the adapter has no f16");
        return;
    }
    sharing_and_recomputing_keep_every_bit(&gpu, Elem::F16, 5, 40);
    sharing_and_recomputing_keep_every_bit(&Gpu::open(&Options::default()).expect("adapter"), Elem::F16, 3, 39);
}

/// The commands of a step of 124M at batch 64.
fn commands(elem: Elem, recompute: Recompute) -> Vec<Command> {
    let gpu = Gpu::dry(nvidia());
    let config = Config::from_descriptor("d12").expect("a model");
    let options = TrainerOptions { elem, recompute, ..TrainerOptions::new(config, sizes(64, 1024)) };
    Trainer::new(&gpu, options)
        .expect("planned")
        .programs()
        .iter()
        .flat_map(|program| program.commands.clone())
        .collect()
}

/// Names, elements that kernels index and bytes they bind, for every dispatch of a step.
fn dispatches(caps: &Caps, subject: &Subject, batch: usize) -> Vec<Command> {
    let Subject { config, context, elem, recompute, ranks: _, devices: _, machines: _, wire: _ } = *subject;
    let gpu = Gpu::dry(caps.clone());
    let options = TrainerOptions { elem, recompute, ..TrainerOptions::new(config, sizes(batch, context)) };
    let trainer = Trainer::new(&gpu, options).expect("planned");
    let all = trainer.programs().into_iter().flat_map(|program| program.commands.clone());
    all.filter(Command::is_dispatch).collect()
}

#[test]
fn dispatches_of_integrated_gpus_are_short() {
    let named = |name, context, elem, recompute| subject(name, context, elem, recompute);
    let free = |[context, vocab, layers, heads, channels]: [usize; 5], elem, recompute| Subject {
        config: Config::new(context, vocab, layers, heads, channels).expect("a model"),
        ..subject("d12", context, elem, recompute)
    };
    for (batch, subject) in [
        (1, named("d12", 1024, Elem::F32, Recompute::None)),
        (64, named("d12", 1024, Elem::F32, Recompute::Gelu)),
        (64, named("d12", 1024, Elem::F16, Recompute::None)),
        (32, named("d24", 1024, Elem::F16, Recompute::Ln)),
        (16, named("d36", 1024, Elem::F16, Recompute::Block)),
        (16, named("d48", 1024, Elem::F32, Recompute::Block)),
        (16, named("d48", 1024, Elem::F16, Recompute::None)),
        // a layer of what is far from such a GPU: GPT-3's largest, long sequences, a large vocabulary, odd rows
        (2, free([2048, 50_257, 1, 96, 12_288], Elem::F16, Recompute::Block)),
        (2, free([16_384, 50_257, 1, 25, 1600], Elem::F16, Recompute::None)),
        (1, free([65_536, 257, 1, 8, 1024], Elem::F32, Recompute::None)),
        (100, free([1023, 1_000_003, 1, 3, 129], Elem::F32, Recompute::None)),
        (3, free([7, 65_535, 1, 96, 12_288], Elem::F16, Recompute::Gelu)),
    ] {
        let caps = nvidia().integrated();
        for command in dispatches(&caps, &subject, batch) {
            let (flops, bytes) = (command.flops, command.bytes);
            let what = format!("{subject:?}, batch {batch}: {} at {}", command.name(), command.section);
            assert!(flops <= 1 << 35, "{what}: {flops} operations");
            assert!(bytes <= 2 << 30, "{what}: {bytes} bytes");
            let bound: u64 = command.bindings.iter().map(|binding| binding.bytes).sum();
            assert!(bound <= 2 << 30, "{what}: {bound} bytes bound");
        }
    }
}

/// Large models, large batches: every element that a kernel may index is below 2^32, every window within a binding.
#[test]
fn no_index_and_no_binding_overflows() {
    for (name, batch, elem, recompute) in [
        ("d48", 64, Elem::F32, Recompute::None),
        ("d48", 128, Elem::F16, Recompute::Block),
        ("d84", 16, Elem::F16, Recompute::Block),
        ("d36", 64, Elem::F32, Recompute::Ln),
        ("d12", 1024, Elem::F16, Recompute::Block),
    ] {
        for binding in [(1 << 31) - 256, 128 << 20] {
            let caps = Caps { max_binding_bytes: binding, ..nvidia() };
            for command in dispatches(&caps, &subject(name, 1024, elem, recompute), batch) {
                let what = format!("{name}, batch {batch}, {elem:?}: {} at {}", command.name(), command.section);
                for window in &command.bindings {
                    assert!(window.bytes <= binding, "{what}: {} bytes of {binding}", window.bytes);
                    assert!(window.elements < 1 << 32, "{what}: {} elements", window.elements);
                    assert!(window.offset.is_multiple_of(256), "{what}: starts at byte {}", window.offset);
                }
                assert!(command.grid.iter().all(|groups| *groups <= caps.max_groups), "{what}: {:?}", command.grid);
            }
        }
    }
}

/// wgpu refuses a dispatch that reads and writes one buffer; no kernel is made to write one twice.
#[test]
fn no_dispatch_finds_a_written_buffer_twice() {
    for elem in [Elem::F32, Elem::F16] {
        for (name, level) in Recompute::ALL {
            for command in commands(elem, level) {
                let mut seen: HashMap<u64, bool> = HashMap::new();
                for binding in &command.bindings {
                    let other = seen.insert(binding.buffer, binding.writes);
                    let parameters = ["adamw", "gradnorm", "sums.add"].iter();
                    // gradients of biases and norms are neighbours in one buffer
                    let neighbours =
                        other == Some(binding.writes) && parameters.clone().any(|k| command.name().starts_with(k));
                    assert!(
                        other.is_none() || other == Some(false) && !binding.writes || neighbours,
                        "{elem:?}, --recompute {name}: {} at {} uses one buffer twice",
                        command.name(),
                        command.section
                    );
                }
            }
        }
    }
}
