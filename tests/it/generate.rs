//! Generation: kept keys and values save work and change no result.

use wgpt::gpu::{Elem, Gpu, Pool};
use wgpt::infer::sampler::{SampleRng, draw};
use wgpt::infer::{Generator, Sampling};
use wgpt::model::{Activations, Config, Recompute};

use crate::common::generator::{load, model, open, tokens};

/// The largest difference of logits with kept keys and values.
const TOLERANCE: f32 = 1e-4;

/// Runs `test` with a generator in the memory of a forward pass, and in that of a training batch.
fn with_generators(config: Config, context: usize, test: impl Fn(&Gpu, &mut Generator)) {
    let gpu = open();
    let params = load(&gpu, &model(config));
    for acts in [
        Activations::inference(&gpu, &config, [1, context], true, 1),
        Activations::new(&mut Pool::separate(&gpu), &config, [2, context + 3], Elem::F32, Recompute::None),
    ] {
        let acts = acts.expect("memory");
        test(&gpu, &mut Generator::new(&gpu, config, &params, &acts, context).expect("recorded"));
    }
}

#[track_caller]
fn same(what: &str, got: &[f32], want: &[f32]) {
    let worst = got.iter().zip(want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
    assert!(got.len() == want.len() && worst <= TOLERANCE, "{what}: off by {worst}, expected at most {TOLERANCE}");
}

#[test]
fn logits_with_kept_keys_are_those_without() {
    for config in [Config::new(70, 257, 2, 3, 36), Config::new(64, 300, 3, 4, 64)] {
        let config = config.expect("config");
        with_generators(config, 60, |_, generator| {
            let text = tokens(60, config.vocab);
            let full: Vec<Vec<f32>> = (1..=60).map(|n| generator.logits(&text[..n]).expect("logits")).collect();
            assert!(full[9].iter().fold(0.0, |a: f32, x| a.max(x.abs())) > 1.0, "the model tells nothing apart");
            for prompt in [1, 2, 16, 17, 59] {
                generator.logits(&text[..prompt]).expect("logits");
                for n in prompt..60 {
                    let logits = generator.next_logits(text[n]).expect("logits");
                    same(&format!("{} of a prompt of {prompt}", n + 1), &logits, &full[n]);
                }
                assert!(generator.next_logits(0).is_err(), "the context is full");
            }
        });
    }
}

/// Greedy, past the context several times: the same tokens as without keeping anything, wherever the best two differ.
#[test]
fn five_hundred_greedy_tokens() {
    let config = Config::new(100, 257, 2, 4, 64).expect("config");
    with_generators(config, 96, |_, generator| {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let prompt = tokens(5, 257);
        let mut got = Vec::new();
        let push = |token| {
            got.push(token);
            Ok(())
        };
        generator.generate(&prompt, 500, None, &greedy, push).expect("generated");
        assert_eq!(got.len(), 500);
        let (mut window, mut close) = (prompt, 0);
        for (i, token) in got.iter().enumerate() {
            if window.len() > 96 {
                window.drain(..window.len() - 48);
            }
            let logits = generator.logits(&window).expect("logits");
            let mut ranked = logits.clone();
            ranked.sort_unstable_by(|a, b| b.total_cmp(a));
            if ranked[0] - ranked[1] <= TOLERANCE {
                close += 1;
            } else {
                assert_eq!(*token, draw(&logits, &greedy, &mut SampleRng::new(1)), "token {i}");
            }
            window.push(*token);
        }
        assert!(close < 25, "{close} of 500 are too close to tell");
    });
}

fn texts(generator: &mut Generator, prompt: &[u32], seeds: &[u64], count: usize) -> Vec<Vec<u32>> {
    generator.prompt(prompt).expect("encoded");
    let text = |seed: &u64| {
        let mut text = Vec::new();
        let push = |token| {
            text.push(token);
            Ok(())
        };
        generator.sample(count, Some(256), &Sampling { seed: *seed, ..Sampling::default() }, push).expect("generated");
        text
    };
    seeds.iter().map(text).collect()
}

/// Whatever was generated before, and past the context too.
#[test]
fn same_seed_same_text() {
    let config = Config::new(64, 257, 2, 2, 32).expect("config");
    let gpu = open();
    let params = load(&gpu, &model(config));
    let acts = Activations::inference(&gpu, &config, [1, 64], true, 1).expect("memory");
    let mut generator = Generator::new(&gpu, config, &params, &acts, 64).expect("recorded");
    let prompt = tokens(20, 256);
    for count in [30, 150] {
        let first = texts(&mut generator, &prompt, &[1, 2, 1], count);
        assert_eq!(first[0], first[2]);
        assert_ne!(first[0], first[1]);
        assert_eq!(texts(&mut generator, &prompt, &[2], count)[0], first[1]);
    }
    let long = tokens(200, 256);
    assert_eq!(texts(&mut generator, &long, &[3, 3], 5)[0], texts(&mut generator, &long[168..], &[3], 5)[0]);
    assert!(generator.logits(&[]).is_err() && generator.logits(&[0; 65]).is_err());
}

#[test]
fn generating_again_creates_nothing() {
    let config = Config::new(64, 257, 2, 2, 32).expect("config");
    with_generators(config, 40, |gpu, generator| {
        texts(generator, &tokens(3, 256), &[1], 60);
        let counts = || (gpu.buffers_created(), gpu.bind_groups_created(), gpu.allocated_bytes());
        let before = counts();
        texts(generator, &tokens(20, 256), &[2, 3], 60);
        assert_eq!(counts(), before);
    });
}
