//! Measures the median time that the host takes to encode and finish one micro-step of GPT-2 124M. Nothing is
//! submitted. An adapter with smaller bindings than a GPU cuts operators into more dispatches, so the batch is the
//! smallest one with as many dispatches as batch 64 has on a GPU. Buffers are made but never used.

use wgpt::gpu::{Elem, Gpu, Options};
use wgpt::measure::plan::assumed;
use wgpt::model::Config;
use wgpt::train::{Sizes, Trainer, TrainerOptions};

/// Number of command buffers that are timed.
const SAMPLES: usize = 101;

fn sizes(batch: usize) -> Sizes {
    Sizes { batch, context: 1024, accumulation: 1 }
}

fn dispatches(trainer: &Trainer) -> usize {
    trainer.programs()[0].commands.iter().filter(|command| command.is_dispatch()).count()
}

fn main() -> wgpt::error::Result<()> {
    // `cargo test` starts benches with this flag
    if std::env::args().any(|arg| arg == "--test") {
        return Ok(());
    }
    let config = Config::from_descriptor("d12")?;
    let gpu = Gpu::open(&Options::default())?;
    println!("device  {}", gpu.caps.summary());
    for elem in [Elem::F32, Elem::F16] {
        if elem == Elem::F16 && !gpu.caps.f16 {
            println!("f16     not run: the adapter has no f16");
            continue;
        }
        let options = |batch| TrainerOptions { elem, ..TrainerOptions::new(config, sizes(batch)) };
        let planned = |caps, batch| -> wgpt::error::Result<usize> {
            let dry = Gpu::dry(caps);
            Ok(dispatches(&Trainer::new(&dry, options(batch))?))
        };
        let goal = planned(assumed(elem, (1 << 31) - 256), 64)?;
        let mut batch = 1;
        while batch < 64 && planned(gpu.caps.clone(), batch)? < goal {
            batch += 1;
        }
        let trainer = Trainer::new(&gpu, options(batch))?;
        let micro = trainer.programs()[0];
        let mut times = (0..SAMPLES).map(|_| micro.time_encoding(&gpu)).collect::<wgpt::error::Result<Vec<_>>>()?;
        times.sort();
        println!(
            "{elem:?}     {} dispatches at batch {batch} (a GPU at batch 64: {goal}): median {:.3} ms, smallest {:.3}, \
             largest {:.3}; {:.2} us per dispatch",
            dispatches(&trainer),
            1e3 * times[SAMPLES / 2].as_secs_f64(),
            1e3 * times[0].as_secs_f64(),
            1e3 * times[SAMPLES - 1].as_secs_f64(),
            1e6 * times[SAMPLES / 2].as_secs_f64() / dispatches(&trainer) as f64
        );
    }
    Ok(())
}
