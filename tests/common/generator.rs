//! A model to generate with.

use wgpt::gpu::{Gpu, Options};
use wgpt::infer::sampler::SampleRng;
use wgpt::model::{Config, Params, Weights, init};

/// Returns a model whose logits differ enough to be told apart: the initial weights of training, ten times as large.
pub fn model(config: Config) -> Weights {
    let mut weights = init::init(config, 42);
    for name in ["wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw"] {
        let index = wgpt::model::params::index(name);
        weights.tensors[index].iter_mut().for_each(|x| *x *= 10.0);
    }
    weights
}

pub fn open() -> Gpu {
    Gpu::open(&Options::default()).unwrap_or_else(|e| panic!("{e}"))
}

pub fn load(gpu: &Gpu, weights: &Weights) -> Params {
    let params = Params::new(gpu, "weights", weights.config).expect("memory");
    params.upload(gpu, weights).expect("uploaded");
    params
}

pub fn tokens(n: usize, vocab: usize) -> Vec<u32> {
    let mut rng = SampleRng::new(9);
    (0..n).map(|_| (rng.next_f32() * vocab as f32) as u32).collect()
}
