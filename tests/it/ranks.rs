//! Logical ranks: the gradient of a step is the tree over those of its ranks, bit by bit, and the batches are theirs.

use wgpt::data::{Batches, Loader, LoaderConfig, TokenSource};
use wgpt::gpu::{Elem, Gpu, Options};
use wgpt::model::{Config, PARAMS, init};
use wgpt::ops::stepcontrol::Report;
use wgpt::reference::random::Random;
use wgpt::train::{Sizes, Trainer, TrainerOptions};

use crate::common::not_run::not_run;

const BATCH: usize = 2;
const CONTEXT: usize = 16;
const VOCAB: usize = 61;

fn config() -> Config {
    Config::new(CONTEXT, VOCAB, 2, 2, 32).expect("config")
}

fn sources() -> Vec<TokenSource> {
    let shard = |seed, n| {
        let tokens = Random::new(seed).tokens(n, VOCAB).into_iter().map(|t| t as u16).collect();
        TokenSource::from_tokens(format!("shard {seed}"), tokens)
    };
    vec![shard(1, 3000), shard(2, 2000)]
}

fn loader_config(ranks: usize) -> LoaderConfig {
    LoaderConfig { ranks, ..LoaderConfig::new(BATCH, CONTEXT, VOCAB, Some(42)) }
}

fn trainer<'g>(gpu: &'g Gpu, elem: Elem, ranks: usize, accumulation: usize) -> Trainer<'g> {
    let sizes = Sizes { batch: BATCH, context: CONTEXT, accumulation };
    let trainer = Trainer::new(gpu, TrainerOptions { elem, ranks, ..TrainerOptions::new(config(), sizes) });
    let trainer = trainer.expect("trainer");
    trainer.load(&init::init(config(), 42)).expect("load");
    trainer
}

fn gradients(trainer: &Trainer) -> Vec<f32> {
    let of =
        |param: &wgpt::model::Param| (0..param.copies(&config())).map(|layer| (param.name, layer)).collect::<Vec<_>>();
    let all = PARAMS.iter().flat_map(of);
    all.flat_map(|(name, layer)| trainer.gpu().read_f32(trainer.grads().get(name, layer)).expect("read")).collect()
}

fn step(trainer: &mut Trainer, source: &mut dyn wgpt::data::BatchSource, number: usize) -> Report {
    trainer.step(source, number, 0.0).expect("step");
    trainer.report(true).expect("report").expect("a step")
}

fn open() -> Gpu {
    Gpu::open(&Options::default()).expect("these tests need an adapter; tools/run brings a software one")
}

/// `((0+1)+(2+3))+(4+5)`, written out.
fn tree(of: &[Vec<f32>]) -> Vec<f32> {
    if of.len() == 1 {
        return of[0].clone();
    }
    let half = of.len().next_power_of_two() / 2;
    let [left, right] = [&of[..half], &of[half..]].map(tree);
    left.iter().zip(&right).map(|(a, b)| a + b).collect()
}

#[test]
fn a_steps_gradient_is_the_tree_over_its_ranks() {
    let gpu = open();
    let elems: &[Elem] = if gpu.caps.f16 { &[Elem::F32, Elem::F16] } else { &[Elem::F32] };
    if !gpu.caps.f16 {
        not_run("gradients of ranks in f16", "the adapter has no f16");
    }
    for &elem in elems {
        for (ranks, per_rank) in [(2_usize, 1), (4, 2), (8, 1), (6, 1), (3, 3)] {
            // gradients in f32 are divided by the tokens of a step, exactly where ranks are a power of two
            let power = ranks.is_power_of_two();
            if elem == Elem::F32 && !power {
                continue;
            }
            let divided = if elem == Elem::F32 { ranks as f32 } else { 1.0 };
            let mut all = trainer(&gpu, elem, ranks, ranks * per_rank);
            let mut batches = Batches::with_consecutive(sources(), loader_config(ranks), per_rank).expect("batches");
            let mut ones: Vec<(Trainer, Loader)> = (0..ranks)
                .map(|rank| {
                    let config = LoaderConfig { rank, ..loader_config(ranks) };
                    (trainer(&gpu, elem, 1, per_rank), Loader::new(sources(), config).expect("loader"))
                })
                .collect();
            // the second step begins its sums from scratch
            for number in 1..=2 {
                let report = step(&mut all, &mut batches, number);
                let apart: Vec<(Vec<f32>, f32)> = ones
                    .iter_mut()
                    .map(|(trainer, loader)| {
                        let loss = step(trainer, loader, number).loss;
                        (gradients(trainer).iter().map(|g| g / divided).collect(), loss)
                    })
                    .collect();
                let (grads, losses): (Vec<Vec<f32>>, Vec<f32>) = apart.into_iter().unzip();
                let want: Vec<u32> = tree(&grads).iter().map(|g| g.to_bits()).collect();
                let got: Vec<u32> = gradients(&all).iter().map(|g| g.to_bits()).collect();
                let wrong = want.iter().zip(&got).filter(|(a, b)| a != b).count();
                assert_eq!(wrong, 0, "{ranks} ranks in {}, step {number}: of {} gradients", elem.name(), got.len());
                let mean = losses.iter().sum::<f32>() / ranks as f32;
                assert!((report.loss - mean).abs() <= 1e-5 * mean, "{ranks} ranks: {} of {losses:?}", report.loss);
            }
        }
    }
}

/// There is one buffer for each level of the tree, not for each rank.
#[test]
fn ranks_take_few_buffers() {
    let gpu = open();
    let bytes = |ranks| {
        let dry = gpu.dry_copy();
        let _trainer = trainer_on(&dry, ranks);
        dry.ledger().iter().filter(|(label, _)| label == "gradients").map(|(_, bytes)| bytes).sum::<u64>()
    };
    let one = bytes(1);
    for (ranks, buffers) in [(2, 2), (3, 2), (4, 3), (6, 3), (7, 3), (8, 4), (12, 4)] {
        assert_eq!(bytes(ranks), buffers * one, "{ranks} ranks");
    }
}

fn trainer_on(gpu: &Gpu, ranks: usize) -> Trainer<'_> {
    let sizes = Sizes { batch: BATCH, context: CONTEXT, accumulation: ranks };
    Trainer::new(gpu, TrainerOptions { ranks, ..TrainerOptions::new(config(), sizes) }).expect("planned")
}

#[test]
fn a_step_that_ranks_do_not_share_is_refused() {
    let gpu = open();
    for (ranks, accumulation) in [(0, 1), (2, 3), (3, 1)] {
        let sizes = Sizes { batch: BATCH, context: CONTEXT, accumulation };
        let error = Trainer::new(&gpu, TrainerOptions { ranks, ..TrainerOptions::new(config(), sizes) }).err();
        let text = error.map(|e| e.to_string()).unwrap_or_default();
        assert!(
            text.contains("expected the same number for each rank"),
            "{ranks} ranks, {accumulation} micro-steps: {text}"
        );
    }
}
