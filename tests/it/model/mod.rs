//! The whole model on the GPU: logits, loss, every gradient and twelve training steps against PyTorch's golden files
//! (tools/reference/make_golden.py), and against the f64 reference on shapes that have none. This file trains in f32,
//! and `mixed.rs` in f16.

mod mixed;

use wgpt::data::{Loader, LoaderConfig, TokenSource};
use wgpt::error::Error;
use wgpt::formats::hf;
use wgpt::gpu::{Caps, Elem, Gpu, Options, Pass};
use wgpt::model::{Config, PARAMS, Weights, forward, init};
use wgpt::ops::stepcontrol::Report;
use wgpt::reference::{gpt2, random::Random};
use wgpt::train::schedule::Shape;
use wgpt::train::{Schedule, Sizes, Trainer, TrainerOptions};

use crate::common::training::{GoldenRun, golden, lively, run, steps_json};

fn gpu() -> Gpu {
    Gpu::open(&Options::default()).expect("these tests need an adapter; tools/run brings a software one")
}

/// Returns the largest difference, divided by the largest value of `want`.
fn relative(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(0f64, |m, x| m.max(x.abs())).max(1e-30);
    // NaN must come out as a failure, so no `max` on floats here
    let mut worst = 0.0;
    for (g, w) in got.iter().zip(want) {
        let d = (f64::from(*g) - w).abs() / scale;
        if d.is_nan() || d > worst {
            worst = d;
        }
    }
    worst
}

/// Budget for a sum of products as deep as these models: about a hundred roundings of f32.
const TOLERANCE: f64 = 2e-5;

struct GoldenTensors(Vec<u8>);

impl GoldenTensors {
    fn read(case: &str) -> Self {
        Self(std::fs::read(golden(case).join("golden.safetensors")).expect("golden file"))
    }

    fn f64(&self, name: &str) -> Vec<f64> {
        let file = safetensors::SafeTensors::deserialize(&self.0).expect("golden file");
        let data = file.tensor(name).expect(name).data().to_vec();
        bytemuck::pod_collect_to_vec::<u8, f32>(&data).into_iter().map(f64::from).collect()
    }

    fn u32(&self, name: &str) -> Vec<u32> {
        let file = safetensors::SafeTensors::deserialize(&self.0).expect("golden file");
        bytemuck::pod_collect_to_vec(file.tensor(name).expect(name).data())
    }

    /// Returns a gradient in our layout: Hugging Face stores linear weights transposed, and the vocabulary without
    /// padding.
    fn gradient(&self, config: &Config, name: &str, layer: usize) -> Vec<f64> {
        let (theirs, transposed) = match name {
            "wte" => ("wte.weight", false),
            "wpe" => ("wpe.weight", false),
            "lnfw" => ("ln_f.weight", false),
            "lnfb" => ("ln_f.bias", false),
            "ln1w" => ("ln_1.weight", false),
            "ln1b" => ("ln_1.bias", false),
            "ln2w" => ("ln_2.weight", false),
            "ln2b" => ("ln_2.bias", false),
            "qkvw" => ("attn.c_attn.weight", true),
            "qkvb" => ("attn.c_attn.bias", false),
            "attprojw" => ("attn.c_proj.weight", true),
            "attprojb" => ("attn.c_proj.bias", false),
            "fcw" => ("mlp.c_fc.weight", true),
            "fcb" => ("mlp.c_fc.bias", false),
            "fcprojw" => ("mlp.c_proj.weight", true),
            "fcprojb" => ("mlp.c_proj.bias", false),
            other => panic!("{other}"),
        };
        let param = PARAMS[wgpt::model::params::index(name)];
        let prefix = if param.per_layer { format!("transformer.h.{layer}.") } else { "transformer.".into() };
        let mut values = self.f64(&format!("{prefix}{theirs}"));
        let [rows, columns] = (param.shape)(config);
        if transposed {
            values = (0..rows * columns).map(|i| values[(i % columns) * rows + i / columns]).collect();
        }
        values.resize(rows * columns, 0.0);
        values
    }
}

fn first_batch_matches(case: &str, checked: bool) {
    let gpu = Gpu::open(&Options { checked, ..Options::default() }).expect("adapter");
    let (weights, _) = hf::load(&golden(case)).expect("golden folder");
    let config = weights.config;
    let json = steps_json(case);
    let size = |key: &str| json["hyperparameters"][key].as_u64().unwrap_or_else(|| panic!("{key}")) as usize;
    let sizes = Sizes { batch: size("B"), context: size("T"), accumulation: 1 };
    let mut trainer = Trainer::new(&gpu, TrainerOptions::new(config, sizes)).expect("trainer");
    trainer.load(&weights).expect("load");
    let tensors = GoldenTensors::read(case);
    let (inputs, targets) = (tensors.u32("inputs"), tensors.u32("targets"));

    let losses = trainer.probe(&inputs, &targets).expect("probe");
    let loss = losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64;
    let want = tensors.f64("loss")[0];
    assert!((loss - want).abs() <= 1e-6 * want, "{case}: loss {loss}, expected {want}");
    for param in &PARAMS {
        for layer in 0..param.copies(&config) {
            let mut got = gpu.read_f32(trainer.grads().get(param.name, layer)).expect("read");
            let mut want = tensors.gradient(&config, param.name, layer);
            if param.name == "qkvb" {
                // the gradient of the keys' bias is zero by theory: what is there is rounding
                let keys = config.channels..2 * config.channels;
                assert!(got[keys.clone()].iter().all(|g| g.abs() < 1e-6), "{case}: dqkvb of the keys");
                got.drain(keys.clone());
                want.drain(keys);
            }
            let d = relative(&got, &want);
            assert!(d <= TOLERANCE, "{case}: d{} of layer {layer} is off by {d:.2e}", param.name);
        }
    }
    let dwte = gpu.read_f32(trainer.grads().get("wte", 0)).expect("read");
    assert!(dwte[config.vocab * config.channels..].iter().all(|&g| g == 0.0), "{case}: padding has a gradient");

    // logits: the forward pass alone leaves them in their chunk
    let acts = trainer.activations();
    assert_eq!(acts.logits.rows(), acts.rows(), "these shapes fit one chunk");
    let mut pass = Pass::new(&gpu);
    forward::body(&mut pass, &config, trainer.params(), acts).expect("forward");
    forward::losses(&mut pass, &config, trainer.params(), acts).expect("losses");
    pass.finish().run(&gpu).expect("run");
    let logits = gpu.read_f32(&acts.logits).expect("read");
    let real: Vec<f32> = logits.chunks(config.padded_vocab()).flat_map(|row| row[..config.vocab].to_vec()).collect();
    let d = relative(&real, &tensors.f64("logits"));
    assert!(d <= TOLERANCE, "{case}: logits are off by {d:.2e}");
}

#[test]
fn first_batch_of_tiny_matches_pytorch() {
    first_batch_matches("tiny", false);
}

#[test]
fn first_batch_of_odd_matches_pytorch() {
    first_batch_matches("odd", false);
}

#[test]
fn first_batch_of_odd_matches_pytorch_with_checks_on() {
    first_batch_matches("odd", true);
}

/// Makes PyTorch's twelve steps and compares losses and norms, each with its tolerance.
fn follow_pytorch<'g>(
    gpu: &'g Gpu,
    (case, golden): (&str, &GoldenRun),
    elem: Elem,
    tolerances: [f64; 2],
) -> (Trainer<'g>, Vec<Report>) {
    let mut trainer = Trainer::new(gpu, TrainerOptions { elem, ..golden.options() }).expect("trainer");
    trainer.load(&golden.weights).expect("load");
    let reports = run(&mut trainer, &mut golden.loader(case), &golden.schedule);
    assert_eq!(reports.len(), 12);
    for (report, want) in reports.iter().zip(golden.json["steps"].as_array().expect("steps")) {
        assert_eq!(u64::from(report.step), want["step"].as_u64().expect("step"));
        for ((name, got), tolerance) in
            [("loss", report.loss), ("grad_norm", report.grad_norm)].into_iter().zip(tolerances)
        {
            let want = want[name].as_f64().expect(name);
            let d = (f64::from(got) - want).abs() / want;
            assert!(d <= tolerance, "{case}, step {}: {name} {got}, expected {want}, off by {d:.1e}", report.step);
        }
    }
    (trainer, reports)
}

fn twelve_steps_follow_pytorch(case: &str) {
    let (gpu, golden) = (gpu(), GoldenRun::read(case));
    let GoldenRun { json, weights, .. } = &golden;
    // f32 rounding moves these by 1e-7; a forgotten weight decay moves the loss by 2e-5 and the norm by 6e-4
    let (trainer, _) = follow_pytorch(&gpu, (case, &golden), Elem::F32, [3e-6, 2e-5]);
    // the norms of the trained weights catch a wrong update that the loss does not show
    let trained = trainer.weights().expect("weights");
    let wte = trained.get("wte", 0);
    assert!(wte[weights.config.vocab * weights.config.channels..].iter().all(|&x| x == 0.0), "padding has moved");
    let norm = |values: &[f32]| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let want = json["final_norms"]["transformer.wpe.weight"].as_f64().expect("final norm of wpe");
    let got = norm(trained.get("wpe", 0));
    assert!((got - want).abs() <= 1e-5 * want, "{case}: norm of wpe {got}, expected {want}");
    let want = json["final_norms"]["transformer.ln_f.weight"].as_f64().expect("final norm of ln_f");
    let got = norm(trained.get("lnfw", 0));
    assert!((got - want).abs() <= 1e-5 * want, "{case}: norm of ln_f {got}, expected {want}");
}

#[test]
fn twelve_steps_of_tiny_follow_pytorch() {
    twelve_steps_follow_pytorch("tiny");
}

#[test]
fn twelve_steps_of_odd_follow_pytorch() {
    twelve_steps_follow_pytorch("odd");
}

fn gradients_match_the_reference(config: Config, batch: usize, context: usize, alter: impl Fn(&mut Caps)) {
    let mut gpu = gpu();
    alter(&mut gpu.caps);
    let weights = lively(config, 5);
    let sizes = Sizes { batch, context, accumulation: 1 };
    let mut trainer = Trainer::new(&gpu, TrainerOptions::new(config, sizes)).expect("trainer");
    trainer.load(&weights).expect("load");
    let commands = trainer.programs().into_iter().flat_map(|program| &program.commands);
    for command in commands.filter(|command| command.is_dispatch()) {
        let short = command.flops <= gpu.caps.most_flops && command.bytes <= gpu.caps.most_bytes;
        assert!(short, "{}: {} operations, {} bytes", command.name(), command.flops, command.bytes);
    }
    let mut random = Random::new(9);
    let tokens = random.tokens(batch * context, config.vocab);
    let targets = random.tokens(batch * context, config.vocab);
    let losses = trainer.probe(&tokens, &targets).expect("probe");

    let params = gpt2::Params::from_weights(&weights);
    let batch = gpt2::Batch { tokens: &tokens, targets: &targets, T: context };
    let want = gpt2::forward(&params, &batch);
    assert!(relative(&losses, &want.losses) <= TOLERANCE, "{config:?}: losses");
    let mut grads = gpt2::Params::zeros(config);
    gpt2::backward(&params, &batch, &want, 1.0 / tokens.len() as f64, &mut grads);
    let scale = grads.tensors.iter().flatten().fold(0f64, |m, x| m.max(x.abs()));
    for param in &PARAMS {
        for layer in 0..param.copies(&config) {
            let got = gpu.read_f32(trainer.grads().get(param.name, layer)).expect("read");
            let want = grads.get(param.name, layer);
            let own = want.iter().fold(0f64, |m, x| m.max(x.abs())).max(1e-3 * scale);
            for (i, (g, w)) in got.iter().zip(want).enumerate() {
                let d = (f64::from(*g) - w).abs() / own;
                assert!(d <= 5.0 * TOLERANCE, "{config:?}: d{}[{layer}][{i}] is {g}, expected {w}", param.name);
            }
        }
    }
}

#[test]
fn gradients_of_odd_shapes_match_the_reference() {
    for (positions, vocab, layers, heads, channels, batch, context) in
        [(1, 2, 1, 1, 8, 1, 1), (7, 130, 2, 2, 18, 3, 5), (40, 300, 1, 3, 39, 2, 37), (9, 64, 3, 1, 128, 1, 9)]
    {
        let config = Config::new(positions, vocab, layers, heads, channels).expect("config");
        gradients_match_the_reference(config, batch, context, |_| ());
    }
}

#[test]
fn gradients_match_when_nothing_fits_one_binding() {
    // 700 KB a binding: the embedding, the logits, the rows of a batch and its sequences all come in windows
    let config = Config::new(16, 2500, 1, 4, 96).expect("config");
    gradients_match_the_reference(config, 40, 16, |caps| caps.max_binding_bytes = 700 << 10);
}

#[test]
fn gradients_match_when_dispatches_are_short() {
    // as on a GPU that draws the screen, but far shorter: rows, columns and depths of products are cut, and sequences
    let config = Config::new(16, 2500, 1, 4, 96).expect("config");
    gradients_match_the_reference(config, 40, 16, |caps| {
        *caps = caps.clone().integrated();
        (caps.most_flops, caps.most_bytes) = (16 << 20, 8 << 20);
    });
}

/// Trains twice with one seed. After the first step nothing is created.
fn the_same_seed_gives_the_same_bits(gpus: [&Gpu; 2], elem: Elem, steps: usize) {
    let config = Config::new(24, 257, 2, 3, 36).expect("config");
    let sizes = Sizes { batch: 2, context: 24, accumulation: 2 };
    let tokens: Vec<u16> = Random::new(3).tokens(4000, 257).into_iter().map(|t| t as u16).collect();
    let [first, second] = gpus.map(|gpu| {
        let options = TrainerOptions { elem, ..TrainerOptions::new(config, sizes) };
        let mut trainer = Trainer::new(gpu, options).expect("trainer");
        trainer.load(&init::init(config, 42)).expect("load");
        let mut loader = loader(&tokens, sizes, 257);
        let schedule = Schedule { shape: Shape::Cosine, lr: 1e-3, warmup: 2, final_frac: 0.0, steps: 1 };
        let mut reports = run(&mut trainer, &mut loader, &schedule);
        let created = (gpu.buffers_created(), gpu.bind_groups_created());
        reports.extend(run(&mut trainer, &mut loader, &Schedule { steps, ..schedule }));
        assert_eq!((gpu.buffers_created(), gpu.bind_groups_created()), created, "a step created something");
        reports.iter().map(|r| (r.loss.to_bits(), r.grad_norm.to_bits())).collect::<Vec<_>>()
    });
    assert_eq!(first, second);
}

#[test]
fn the_same_seed_gives_the_same_bits_and_nothing_is_created_after_the_first_step() {
    the_same_seed_gives_the_same_bits([&gpu(), &gpu()], Elem::F32, 12);
}

/// Batches of made-up tokens in a fixed random order.
fn loader(tokens: &[u16], sizes: Sizes, vocab: usize) -> Loader {
    let source = TokenSource::from_tokens("made", tokens.to_vec());
    Loader::new(vec![source], LoaderConfig::new(sizes.batch, sizes.context, vocab, Some(42))).expect("loader")
}

#[test]
fn batches_of_another_size_are_refused() {
    let config = Config::new(16, 60, 1, 2, 16).expect("config");
    let gpu = gpu();
    let sizes = Sizes { batch: 2, context: 16, accumulation: 1 };
    let mut trainer = Trainer::new(&gpu, TrainerOptions::new(config, sizes)).expect("trainer");
    let loader = |batch| {
        let source = TokenSource::from_tokens("made", vec![1; 400]);
        Loader::new(vec![source], LoaderConfig::new(batch, 16, 60, None)).expect("loader")
    };
    for batch in [1, 3] {
        let error = trainer.step(&mut loader(batch), 1, 1e-3).expect_err("another size");
        assert!(matches!(error, Error::Shape(_)), "{error}");
        assert_eq!((error.fault().place.as_str(), error.fault().expected.as_str()), ("trainer.step", "32 tokens"));
    }
    let error = trainer.probe(&[1; 32], &[1; 31]).expect_err("a target is missing");
    assert!(matches!(error, Error::Shape(_)), "{error}");
    trainer.step(&mut loader(2), 1, 1e-3).expect("the right size");
    assert!(trainer.report(true).expect("report").expect("one").loss.is_finite());
}

#[test]
fn a_step_with_a_nan_changes_nothing_and_the_next_one_trains() {
    let config = Config::new(16, 60, 1, 2, 16).expect("config");
    let gpu = gpu();
    let sizes = Sizes { batch: 2, context: 16, accumulation: 1 };
    let mut trainer = Trainer::new(&gpu, TrainerOptions::new(config, sizes)).expect("trainer");
    let mut weights = init::init(config, 42);
    trainer.load(&weights).expect("load");
    let tokens: Vec<u16> = Random::new(3).tokens(400, 60).into_iter().map(|t| t as u16).collect();
    let mut loader = loader(&tokens, sizes, 60);
    let schedule = Schedule { shape: Shape::Cosine, lr: 1e-3, warmup: 0, final_frac: 1.0, steps: 2 };
    assert!(run(&mut trainer, &mut loader, &schedule).iter().all(|r| r.skipped_now == 0));

    // one weight becomes NaN; the update must leave every bit of weights and moments alone
    weights = trainer.weights().expect("weights");
    weights.get_mut("fcw", 0)[7] = f32::NAN;
    trainer.load(&weights).expect("load");
    let bits = |w: &Weights| w.tensors.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
    let moments =
        |t: &Trainer| t.moments().expect("all moments").each_ref().map(|m| bits(&m.download(&gpu).expect("moments")));
    let before = moments(&trainer);
    let reports = run(&mut trainer, &mut loader, &schedule);
    assert_eq!(reports.iter().map(|r| r.skipped_in_a_row).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(reports[1].updates, 2);
    assert!(reports[0].loss.is_nan());
    assert!(bits(&trainer.weights().expect("weights")) == bits(&weights), "a skipped step moved a weight");
    assert!(moments(&trainer) == before, "a skipped step moved a moment");

    weights.get_mut("fcw", 0)[7] = 0.01;
    trainer.load(&weights).expect("load");
    let reports = run(&mut trainer, &mut loader, &schedule);
    assert!(reports.iter().all(|r| r.skipped_now == 0 && r.skipped_in_a_row == 0 && r.loss.is_finite()));
    assert_eq!((reports[1].updates, reports[1].skipped), (4, 2));
}
