//! What a step needs of memory: which tensors share buffers, what is computed again, and that neither moves a bit.

#[expect(dead_code, reason = "no golden runs here")]
mod training;

use std::collections::HashMap;

use wgpt::gpu::{Caps, Command, Elem, Gpu, Options};
use wgpt::model::{Config, PARAMS, Recompute};
use wgpt::reference::random::Random;
use wgpt::train::{Optimizer, Sizes, Trainer};

use training::lively;

/// A GPU with matrix units that binds 2 GiB, of which there is only the bookkeeping.
fn nvidia() -> Caps {
    Caps {
        f16: true,
        subgroups: true,
        matrix_edges: vec![16],
        subgroup_sizes: (32, 32),
        max_workgroup_bytes: 48 << 10,
        max_invocations: 1024,
        max_binding_bytes: (1 << 31) - 256,
        max_buffer_bytes: 1 << 40,
        ..Caps::webgpu_defaults()
    }
}

fn sizes(batch: usize, context: usize) -> Sizes {
    Sizes { batch, context, accumulation: 1 }
}

/// Bytes a sequence of all that depends on the batch, the chunk of logits aside, and scratch.
fn kept_a_sequence(elem: Elem, recompute: Recompute, batch: usize) -> f64 {
    let gpu = Gpu::dry(nvidia());
    let config = Config::from_descriptor("d12").expect("a model");
    Trainer::with_recompute(&gpu, config, sizes(batch, 1024), Optimizer::default(), (elem, recompute))
        .expect("planned");
    let aside = |label: &str| ["weights", "AdamW"].iter().any(|start| label.starts_with(start)) || label == "gradients";
    let bytes: u64 = gpu.ledger().iter().filter(|(label, _)| !aside(label)).map(|(_, bytes)| bytes).sum();
    (bytes - 245 * (1 << 20)) as f64 / batch as f64
}

#[test]
fn a_sequence_of_124m_in_f16_keeps_at_most_299_mib() {
    for batch in [16, 64] {
        let mib = Recompute::ALL.map(|(_, level)| kept_a_sequence(Elem::F16, level, batch) / f64::from(1 << 20));
        println!(
            "batch {batch}: none {:.1}, gelu {:.1}, ln {:.1}, block {:.1} MiB a sequence",
            mib[0], mib[1], mib[2], mib[3]
        );
        assert!(mib[0] <= 299.0, "{mib:?}");
        // GELU is 4 C a layer, the outputs of two layernorms 2 C
        assert!(mib[1] <= mib[0] - 60.0 && mib[2] <= mib[1] - 30.0 && mib[3] <= mib[2] - 100.0, "{mib:?}");
    }
}

/// Losses and all gradients of one micro-step, as bits.
fn bits(trainer: &mut Trainer, tokens: &[u32], targets: &[u32]) -> Vec<u32> {
    let mut all: Vec<u32> = Vec::new();
    // twice, so that what the first left in shared buffers could be found
    for _ in 0..2 {
        all = trainer.probe(tokens, targets, true).expect("probe").iter().map(|x| x.to_bits()).collect();
    }
    for param in &PARAMS {
        for layer in 0..param.copies(trainer.config()) {
            let values = trainer.gpu().read_f32(trainer.grads().get(param.name, layer)).expect("read");
            all.extend(values.iter().map(|x| x.to_bits()));
        }
    }
    all
}

fn sharing_and_recomputing_keep_every_bit(gpu: &Gpu, elem: Elem, channels: usize) {
    let config = Config::new(40, 300, 3, 1, channels).expect("config");
    let (batch, context) = (3, 37);
    let weights = lively(config, 5);
    let mut random = Random::new(9);
    let [tokens, targets] = [(); 2].map(|()| random.tokens(batch * context, config.vocab));
    let of = |trainer: wgpt::error::Result<Trainer>| {
        let mut trainer = trainer.expect("trainer");
        trainer.load(&weights).expect("load");
        bits(&mut trainer, &tokens, &targets)
    };
    let (sizes, optimizer) = (sizes(batch, context), Optimizer::default());
    let apart = of(Trainer::unshared(gpu, config, sizes, optimizer, (elem, Recompute::None)));
    assert!(apart.iter().any(|bits| *bits << 1 != 0));
    for (name, level) in Recompute::ALL {
        let shared = of(Trainer::with_recompute(gpu, config, sizes, optimizer, (elem, level)));
        let first = apart.iter().zip(&shared).position(|(a, b)| a != b);
        assert!(apart.len() == shared.len() && first.is_none(), "{elem:?}, --recompute {name}: {first:?} differs");
    }
}

#[test]
fn sharing_and_recomputing_keep_every_bit_of_f32() {
    let mut gpu = Gpu::open(&Options::default()).expect("adapter");
    // logits in two chunks
    gpu.caps.max_binding_bytes = 128 << 10;
    sharing_and_recomputing_keep_every_bit(&gpu, Elem::F32, 39);
}

#[test]
fn sharing_and_recomputing_keep_every_bit_of_f16() {
    let gpu = Gpu::open(&Options { matrices: true, ..Options::default() }).expect("adapter");
    if !gpu.caps.f16 {
        println!("not run: {} has no f16", gpu.caps.name);
        return;
    }
    sharing_and_recomputing_keep_every_bit(&gpu, Elem::F16, 40);
    sharing_and_recomputing_keep_every_bit(&Gpu::open(&Options::default()).expect("adapter"), Elem::F16, 39);
}

/// The commands of a step of 124M at batch 64.
fn commands(elem: Elem, recompute: Recompute) -> Vec<Command> {
    let gpu = Gpu::dry(nvidia());
    let config = Config::from_descriptor("d12").expect("a model");
    let trainer = Trainer::with_recompute(&gpu, config, sizes(64, 1024), Optimizer::default(), (elem, recompute));
    trainer.expect("planned").programs().iter().flat_map(|program| program.commands.clone()).collect()
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
                    let parameters = ["adamw", "gradnorm", "layernorm.backward", "bias"].iter();
                    // gradients of biases are neighbours in one buffer
                    let neighbours =
                        other == Some(binding.writes) && parameters.clone().any(|k| command.name.starts_with(k));
                    assert!(
                        other.is_none() || other == Some(false) && !binding.writes || neighbours,
                        "{elem:?}, --recompute {name}: {} at {} uses one buffer twice",
                        command.name,
                        command.place
                    );
                }
            }
        }
    }
}
