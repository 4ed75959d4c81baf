//! Measuring: the same losses whatever the batches, and answers that padding does not change.

use std::path::Path;

use serde_json::Value;
use wgpt::data::hellaswag::{self, Example};
use wgpt::data::{Loader, LoaderConfig, Rows, TokenSource, Tokenizer};
use wgpt::formats::hf;
use wgpt::gpu::{Elem, Gpu, Options};
use wgpt::infer::Evaluator;
use wgpt::infer::sampler::SampleRng;
use wgpt::model::{Config, Params, Weights, init};
use wgpt::train::{Optimizer, Sizes, Trainer, TrainerOptions};

/// Some roundings of a loss of about 6.
const TOLERANCE: f64 = 2e-5;

fn open() -> Gpu {
    Gpu::open(&Options::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn load(gpu: &Gpu, weights: &Weights) -> Params {
    let params = Params::new(gpu, "weights", weights.config).expect("memory");
    params.upload(gpu, weights).expect("uploaded");
    params
}

fn weights() -> Weights {
    let mut weights = init::init(Config::new(40, 257, 2, 3, 36).expect("config"), 42);
    weights.tensors.iter_mut().flatten().for_each(|x| *x *= 4.0);
    weights
}

fn rows(context: usize) -> Rows {
    let mut rng = SampleRng::new(1);
    let tokens = (0..40 * 17 + 1).map(|_| (rng.next_f32() * 257.0) as u16).collect();
    Rows::new(vec![TokenSource::from_tokens("made", tokens)], context, 257).expect("rows")
}

#[test]
fn the_loss_is_that_of_training_whatever_the_batch() {
    let (gpu, weights) = (open(), weights());
    let params = load(&gpu, &weights);
    let sizes = Sizes { batch: 4, context: 40, accumulation: 1 };
    let mut trainer = Trainer::new(&gpu, TrainerOptions::new(weights.config, sizes)).expect("trainer");
    trainer.load(&weights).expect("loaded");
    for count in [1, 16, 17, 99] {
        let want = trainer.evaluate(&mut rows(40), count).expect("evaluated");
        for batch in [1, 5, 30] {
            let mut evaluator = Evaluator::new(&gpu, weights.config, &params, batch, 40).expect("evaluator");
            let mut told = Vec::new();
            let got = evaluator.loss(&mut rows(40), count, |done| told.push(done)).expect("evaluated");
            assert!((got - want).abs() < TOLERANCE, "{count} rows by {batch}: {got}, expected {want}");
            assert!(told.is_sorted() && told.last() == Some(&count.min(17)), "{told:?}");
        }
    }
}

#[test]
fn a_model_in_training_answers_in_the_memory_of_its_step() {
    let weights = weights();
    let examples = examples(&[3, 17, 1, 39, 8, 12, 5]);
    for elem in [Elem::F32, Elem::F16] {
        let gpu = open();
        if elem == Elem::F16 && !gpu.caps.f16 {
            println!("not run: the adapter has no f16");
            continue;
        }
        let params = load(&gpu, &weights);
        let mut alone = Evaluator::new(&gpu, weights.config, &params, 4, 40).expect("evaluator");
        let (expected, cut_alone) = alone.answers(&examples, |_| ()).expect("answers");
        let sizes = Sizes { batch: 4, context: 40, accumulation: 1 };
        // without an update: the answers are those of the weights that were loaded
        let optimizer = Optimizer { weight_decay: 0.0, ..Optimizer::default() };
        let options = TrainerOptions { elem, optimizer, ..TrainerOptions::new(weights.config, sizes) };
        let mut trainer = Trainer::new(&gpu, options).expect("trainer");
        trainer.load(&weights).expect("loaded");
        let tokens = (0..400).map(|i| i % 257).collect();
        let source = vec![TokenSource::from_tokens("made", tokens)];
        let mut loader = Loader::new(source, LoaderConfig::new(4, 40, 257, None)).expect("loader");
        for step in 1..=2 {
            let mut within =
                Evaluator::within(&gpu, weights.config, trainer.params(), trainer.activations()).expect("evaluator");
            let (found, cut) = within.answers(&examples, |_| ()).expect("answers");
            assert_eq!(cut, cut_alone);
            for (found, expected) in found.iter().zip(&expected) {
                for (a, b) in found.losses.iter().zip(&expected.losses) {
                    // of a loss of about 6
                    let budget = if elem == Elem::F16 { 2e-2 } else { TOLERANCE };
                    assert!((a - b).abs() < budget, "{elem:?}, before step {step}: {a}, expected {b}");
                }
            }
            drop(within);
            // what lay in the activations is no part of a step
            trainer.step(&mut loader, step, 0.0).expect("step");
            assert!(trainer.report(true).expect("report").expect("one").loss.is_finite());
        }
    }
}

fn examples(lengths: &[usize]) -> Vec<Example> {
    let mut rng = SampleRng::new(3);
    let mut tokens = |n: usize| (0..n).map(|_| (rng.next_f32() * 257.0) as u16).collect::<Vec<u16>>();
    let mut example = |&n: &usize| Example {
        context: tokens(n),
        endings: [tokens(3), tokens(1 + n % 7), tokens(5), tokens(9)],
        label: n % 4,
    };
    lengths.iter().map(&mut example).collect()
}

#[test]
fn padding_changes_no_answer() {
    let (gpu, weights) = (open(), weights());
    let params = load(&gpu, &weights);
    let examples = examples(&[1, 30, 2, 17, 17, 5, 31, 8, 24, 3]);
    let mut many = Evaluator::new(&gpu, weights.config, &params, 6, 40).expect("evaluator");
    let (answers, cut) = many.answers(&examples, |_| ()).expect("answered");
    assert_eq!((answers.len(), cut), (10, 0));
    for (example, answer) in examples.iter().zip(&answers) {
        assert_eq!(answer.label, example.label);
        for (ending, loss) in example.endings.iter().zip(answer.losses) {
            // the mean over all targets, less that over the context's
            let mean = |tokens: &[u16]| {
                let context = tokens.len() - 1;
                let source = vec![TokenSource::from_tokens("row", tokens.to_vec())];
                let mut one = Evaluator::new(&gpu, weights.config, &params, 1, context).expect("evaluator");
                one.loss(&mut Rows::new(source, context, 257).expect("row"), 1, |_| ()).expect("loss") * context as f64
            };
            let whole = mean(&[example.context.as_slice(), ending].concat());
            let before = if example.context.len() > 1 { mean(&example.context) } else { 0.0 };
            let want = (whole - before) / ending.len() as f64;
            assert!((loss - want).abs() < 10.0 * TOLERANCE, "{loss}, expected {want}");
        }
        let best = answer.losses.iter().copied().fold(f64::MAX, f64::min);
        assert_eq!(answer.losses.iter().position(|loss| *loss == best), Some(answer.choice));
    }
    // in any order, in any batches, all or the first few
    let mut few = Evaluator::new(&gpu, weights.config, &params, 1, 40).expect("evaluator");
    let (again, _) = few.answers(&examples[..4], |_| ()).expect("answered");
    assert!(again.iter().zip(&answers).all(|(a, b)| a.choice == b.choice));
}

/// What transformers says to 220 questions: see tools/reference/hellaswag.py.
#[test]
fn every_answer_is_that_of_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny");
    let (weights, _) = hf::load(&folder).expect("golden folder");
    let file = folder.join("hellaswag.jsonl");
    let text = std::fs::read_to_string(&file).expect("golden file");
    let golden: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let set = hellaswag::read(&file, &Tokenizer::Bytes, usize::MAX).expect("read");
    let gpu = open();
    let params = load(&gpu, &weights);
    let context = weights.config.positions;
    let mut evaluator = Evaluator::new(&gpu, weights.config, &params, 16, context).expect("evaluator");
    let (answers, cut) = evaluator.answers(&set.examples, |_| ()).expect("answered");
    assert_eq!((answers.len(), golden.len()), (220, 220));
    assert!((1..220).contains(&cut), "{cut} are cut, expected some");
    for (i, (answer, golden)) in answers.iter().zip(&golden).enumerate() {
        for (loss, want) in answer.losses.iter().zip(golden["losses"].as_array().expect("losses")) {
            let want = want.as_f64().expect("a loss");
            assert!((loss - want).abs() < TOLERANCE, "question {i}: {loss}, expected {want}");
        }
        assert_eq!(golden["choice"], answer.choice, "question {i}");
    }
}

/// Batches of one row each and of all rows: the twins fall into different ones.
#[test]
fn of_equal_endings_the_first_is_chosen() {
    let (gpu, weights) = (open(), weights());
    let params = load(&gpu, &weights);
    let mut twins = examples(&[1, 30, 2, 17, 9, 5, 31, 8]);
    for example in &mut twins {
        example.endings[3] = example.endings[1].clone();
        example.endings[2] = example.endings[1].clone();
        example.endings[0] = vec![200; 4];
    }
    for batch in [1, 7] {
        let mut evaluator = Evaluator::new(&gpu, weights.config, &params, batch, 40).expect("evaluator");
        let (answers, _) = evaluator.answers(&twins, |_| ()).expect("answered");
        assert!(answers.iter().any(|answer| answer.choice == 1), "{answers:?}");
        for answer in &answers {
            let [_, first, second, third] = answer.losses;
            assert!(first == second && first == third && answer.choice < 2, "{answer:?}");
        }
    }
}

#[test]
fn long_examples_lose_their_beginning() {
    let (gpu, weights) = (open(), weights());
    let params = load(&gpu, &weights);
    let mut evaluator = Evaluator::new(&gpu, weights.config, &params, 2, 40).expect("evaluator");
    let long = examples(&[38, 31]);
    let (answers, cut) = evaluator.answers(&long, |_| ()).expect("answered");
    assert_eq!(cut, 1);
    // its longest ending has 9 tokens: 41 tokens make a row
    let mut short = long.clone();
    short[0].context.drain(..6);
    let (again, cut) = evaluator.answers(&short, |_| ()).expect("answered");
    assert_eq!(cut, 0);
    assert!((answers[0].losses[3] - again[0].losses[3]).abs() < TOLERANCE);

    let mut absurd = long.clone();
    absurd[1].endings[2] = vec![7; 41];
    let error = evaluator.answers(&absurd, |_| ()).expect_err("refused");
    assert!(error.to_string().contains("example 2: an ending of 41 tokens"), "{error}");
    absurd[1].endings[2] = vec![257];
    let error = evaluator.answers(&absurd, |_| ()).expect_err("refused");
    assert!(error.to_string().contains("token 257, expected below the model's 257"), "{error}");
}
