//! The first link of the chain of trust: every derivative in `wgpt::reference` against central finite differences of
//! its forward, and the forwards against values worked out by hand or by PyTorch.

use wgpt::model::{Config, PARAMS, Weights, params};
use wgpt::reference::crossentropy::IGNORED;
use wgpt::reference::gpt2::{self, Batch, Params, Settings, Trainer};
use wgpt::reference::random::Random;
use wgpt::reference::{adamw, attention, bias, crossentropy, embedding, gelu, gradnorm, layernorm, matmul, residual};

/// Step of the central differences.
const STEP: f64 = 1e-5;
/// Budget of a derivative, relative part: what is cut off, STEP² f‴/6, for third derivatives up to some 1e4 f′.
const RELATIVE: f64 = 1e-6;
/// Budget of a derivative, absolute part, times 1 + |f|: rounding of f over STEP is some 2e-11 |f|.
const ABSOLUTE: f64 = 1e-9;

/// Compares `gradient[i]` with `(f(x + STEP eᵢ) - f(x - STEP eᵢ)) / (2 STEP)` for the elements `which` of x.
fn compare(
    x: &[f64],
    gradient: &[f64],
    which: impl IntoIterator<Item = usize>,
    f: impl Fn(&[f64]) -> f64,
) -> Result<(), String> {
    if x.len() != gradient.len() {
        return Err(format!("gradient has {} elements, expected {}", gradient.len(), x.len()));
    }
    let absolute = ABSOLUTE * (1.0 + f(x).abs());
    let mut moved = x.to_vec();
    for i in which {
        moved[i] = x[i] + STEP;
        let above = f(&moved);
        moved[i] = x[i] - STEP;
        let below = f(&moved);
        moved[i] = x[i];
        let want = (above - below) / (2.0 * STEP);
        let got = gradient[i];
        let tolerance = absolute + RELATIVE * want.abs();
        // the comparison is this way round so that NaN fails
        let within = (got - want).abs() <= tolerance;
        if !within {
            return Err(format!("element {i}: got {got:e}, want {want:e} within {tolerance:e}"));
        }
    }
    Ok(())
}

/// [`compare`] for every element, as a test.
#[track_caller]
fn check(what: &str, x: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> f64) {
    if let Err(difference) = compare(x, gradient, 0..x.len(), f) {
        panic!("{what}: {difference}");
    }
}

/// Fails unless the two agree to a relative 1e-12 or so: the same sum in another order.
#[track_caller]
fn same(what: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let within = (g - w).abs() <= 1e-12 * (1.0 + w.abs());
        assert!(within, "{what}: element {i}: got {g:e}, want {w:e}");
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Runs an accumulating backward on a buffer that is not zero, and returns what it added.
fn added(random: &mut Random, n: usize, backward: impl FnOnce(&mut [f64])) -> Vec<f64> {
    let before = random.values(n);
    let mut after = before.clone();
    backward(&mut after);
    after.iter().zip(&before).map(|(after, before)| after - before).collect()
}

#[test]
fn a_wrong_derivative_is_caught() {
    let x = Random::new(1).values(7);
    let f = |x: &[f64]| x.iter().map(|x| x.sin()).sum::<f64>();
    let right: Vec<f64> = x.iter().map(|x| x.cos()).collect();
    assert_eq!(compare(&x, &right, 0..7, f), Ok(()));

    let mut wrong = right.clone();
    wrong[4] *= 1.0 + 1e-5;
    assert!(compare(&x, &wrong, 0..7, f).unwrap_err().starts_with("element 4:"));
    wrong[4] = f64::NAN;
    assert!(compare(&x, &wrong, 0..7, f).is_err(), "NaN passed");
    wrong[4] = 0.0;
    assert!(compare(&x, &wrong, 0..7, f).is_err(), "zero passed");
    assert!(compare(&x, &right[..6], 0..6, f).is_err(), "a short gradient passed");
}

#[test]
fn random_values_repeat_and_spread() {
    let values = Random::new(0).values(10_000);
    assert_eq!(values, Random::new(0).values(10_000));
    assert_ne!(values, Random::new(1).values(10_000));
    let mean = values.iter().sum::<f64>() / 1e4;
    let variance = dot(&values, &values) / 1e4;
    assert!(mean.abs() < 0.02 && (variance - 1.0 / 9.0).abs() < 0.01, "mean {mean}, variance {variance}");
    assert!(values.iter().all(|v| v.abs() <= 1.0));
    assert!(Random::new(3).tokens(1000, 11).iter().all(|&t| t < 11));
}

/// The operators with a gradient, and the test that holds it to finite differences.
const GRADIENTS: [(&str, fn()); 7] = [
    ("attention", attention),
    ("bias", matmul),
    ("crossentropy", crossentropy),
    ("embedding", embedding),
    ("gelu", gelu),
    ("layernorm", layernorm),
    ("matmul", matmul),
];

#[test]
fn every_operator_with_a_gradient_is_held_to_finite_differences() {
    let with_gradient =
        |operator: &&&wgpt::ops::Operator| operator.passes.iter().any(|of| of.pass.contains("backward"));
    let operators: Vec<&str> =
        wgpt::ops::OPERATORS.iter().filter(with_gradient).map(|operator| operator.name).collect();
    let held: Vec<&str> = GRADIENTS.iter().map(|(name, _)| *name).collect();
    let missing: Vec<&&str> = operators.iter().filter(|name| !held.contains(name)).collect();
    assert!(missing.is_empty(), "no finite differences of {missing:?}: add a test, and its line in GRADIENTS");
    assert_eq!(operators, held);
}

#[test]
fn embedding() {
    assert_eq!(embedding::forward(&[1, 0], &[1.0, 2.0, 3.0, 4.0], &[10.0, 20.0], 1, 2), [13.0, 24.0, 11.0, 22.0]);
    for (b, t, c, vocab) in [(1, 1, 1, 1), (2, 3, 5, 4), (3, 7, 2, 11)] {
        let mut random = Random::new(2);
        let tokens = random.tokens(b * t, vocab);
        // one position more than the sequences use
        let (wte, wpe) = (random.values(vocab * c), random.values((t + 1) * c));
        let dout = random.values(b * t * c);
        let mut dwpe = Vec::new();
        let dwte = added(&mut random.clone(), vocab * c, |dwte| {
            dwpe = added(&mut random, wpe.len(), |dwpe| embedding::backward(&dout, &tokens, dwte, dwpe, t, c));
        });
        check("dwte", &wte, &dwte, |wte| dot(&dout, &embedding::forward(&tokens, wte, &wpe, t, c)));
        check("dwpe", &wpe, &dwpe, |wpe| dot(&dout, &embedding::forward(&tokens, &wte, wpe, t, c)));
    }
}

#[test]
fn layernorm() {
    let known = layernorm::forward(&[1.0, 2.0, 3.0, 6.0], &[1.0, 1.0, 2.0, 1.0], &[0.0, 0.0, 0.0, 5.0], 4);
    let rstd = 1.0 / 3.500_01_f64.sqrt();
    same("mean", &known.mean, &[3.0]);
    same("rstd", &known.rstd, &[rstd]);
    same("xhat", &known.xhat, &[-2.0 * rstd, -rstd, 0.0, 3.0 * rstd]);
    same("out", &known.out, &[-2.0 * rstd, -rstd, 0.0, 5.0 + 3.0 * rstd]);

    for (n, c) in [(1, 1), (5, 3), (2, 7), (3, 31)] {
        let mut random = Random::new(3);
        let (inp, weight, bias) = (random.values(n * c), random.values(c), random.values(c));
        let dout = random.values(n * c);
        let layernorm::Forward { xhat, rstd, .. } = layernorm::forward(&inp, &weight, &bias, c);
        let (mut dinp, mut dbias) = (Vec::new(), Vec::new());
        let dweight = added(&mut random.clone(), c, |dweight| {
            dbias = added(&mut random, c, |dbias| {
                dinp = layernorm::backward(&dout, &xhat, &rstd, &weight, dweight, dbias, c);
            });
        });
        check("dinp", &inp, &dinp, |inp| dot(&dout, &layernorm::forward(inp, &weight, &bias, c).out));
        check("dweight", &weight, &dweight, |weight| dot(&dout, &layernorm::forward(&inp, weight, &bias, c).out));
        check("dbias", &bias, &dbias, |bias| dot(&dout, &layernorm::forward(&inp, &weight, bias, c).out));
    }
}

#[test]
fn layernorm_of_a_constant_row_is_the_bias() {
    let out = layernorm::forward(&[1e4; 6], &[3.0; 6], &[0.5; 6], 6);
    assert_eq!(out.out, [0.5; 6]);
    let (mut dweight, mut dbias) = ([0.0; 6], [0.0; 6]);
    let dout = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let dinp = layernorm::backward(&dout, &out.xhat, &out.rstd, &[3.0; 6], &mut dweight, &mut dbias, 6);
    assert!(dinp.iter().all(|d| d.is_finite()));
}

#[test]
fn matmul() {
    // (2, 3) times the transpose of (2, 3)
    let (inp, weight) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, 1.0, 0.0, 2.0, 0.0]);
    assert_eq!(matmul::forward(&inp, &weight, Some(&[10.0, 20.0]), 2, 2, 3), [14.0, 24.0, 20.0, 30.0]);

    for (m, n, k) in [(1, 1, 1), (3, 5, 2), (2, 7, 11), (13, 1, 3)] {
        let mut random = Random::new(4);
        let (inp, weight, bias) = (random.values(m * k), random.values(n * k), random.values(n));
        let dout = random.values(m * n);
        let f =
            |inp: &[f64], weight: &[f64], bias: &[f64]| dot(&dout, &matmul::forward(inp, weight, Some(bias), m, n, k));
        let dinp = matmul::backward_inp(&dout, &weight, m, n, k);
        check("dinp", &inp, &dinp, |inp| f(inp, &weight, &bias));
        let dweight = added(&mut random, n * k, |d| matmul::backward_weight(&dout, &inp, d, m, n, k));
        check("dweight", &weight, &dweight, |weight| f(&inp, weight, &bias));
        let dbias = added(&mut random, n, |dbias| bias::backward(&dout, dbias));
        check("dbias", &bias, &dbias, |bias| f(&inp, &weight, bias));

        let without = matmul::forward(&inp, &weight, None, m, n, k);
        same("bias", &bias::forward(&without, &bias), &matmul::forward(&inp, &weight, Some(&bias), m, n, k));
    }
}

#[test]
fn attention() {
    for (b, t, c, heads) in [(1, 1, 1, 1), (2, 5, 6, 3), (1, 7, 5, 1), (3, 2, 8, 2), (1, 13, 3, 3)] {
        let mut random = Random::new(5);
        // larger than the usual values, so that the probabilities are far from even
        let qkv: Vec<f64> = random.values(b * t * 3 * c).iter().map(|x| 3.0 * x).collect();
        let dout = random.values(b * t * c);
        let dqkv = attention::backward(&dout, &qkv, b, t, c, heads);
        check("dqkv", &qkv, &dqkv, |qkv| dot(&dout, &attention::forward(qkv, b, t, c, heads).out));
    }
}

#[test]
fn attention_values() {
    // one token sees itself alone: out is v, lse is the scaled score
    let alone = attention::forward(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1, 1, 2, 1);
    same("out", &alone.out, &[5.0, 6.0]);
    same("lse", &alone.lse, &[11.0 / 2.0_f64.sqrt()]);
    // two heads one wide; the second token weighs both by exp(q k)
    let two = attention::forward(
        &[9.0, 9.0, 1.0, 2.0, 10.0, 20.0, /* second token */ 1.0, -1.0, 3.0, 4.0, 30.0, 40.0],
        1,
        2,
        2,
        2,
    );
    let (e1, e3) = (1.0_f64.exp(), 3.0_f64.exp());
    let (f2, f4) = ((-2.0_f64).exp(), (-4.0_f64).exp());
    let second = [(10.0 * e1 + 30.0 * e3) / (e1 + e3), (20.0 * f2 + 40.0 * f4) / (f2 + f4)];
    same("out", &two.out, &[10.0, 20.0, second[0], second[1]]);
    // (B, NH, T)
    same("lse", &two.lse, &[9.0, (e1 + e3).ln(), 18.0, (f2 + f4).ln()]);
}

#[test]
fn attention_sees_no_later_token() {
    let (t, c) = (6, 4);
    let mut qkv = Random::new(6).values(t * 3 * c);
    let before = attention::forward(&qkv, 1, t, c, 2);
    for x in &mut qkv[4 * 3 * c..] {
        *x += 1.0;
    }
    let after = attention::forward(&qkv, 1, t, c, 2);
    assert_eq!(before.out[..4 * c], after.out[..4 * c]);
    assert_ne!(before.out[4 * c..], after.out[4 * c..]);
}

#[test]
fn attention_with_hard_scores_stays_finite() {
    let mut random = Random::new(7);
    // q k / sqrt(4) reaches some ±1e4
    let qkv: Vec<f64> = random.values(5 * 12).iter().map(|x| 200.0 * x).collect();
    let acts = attention::forward(&qkv, 1, 5, 4, 1);
    assert!(acts.out.iter().chain(&acts.lse).all(|x| x.is_finite()));
    assert!(attention::backward(&random.values(20), &qkv, 1, 5, 4, 1).iter().all(|x| x.is_finite()));
}

#[test]
fn gelu() {
    // torch.nn.functional.gelu(approximate="tanh") in f64
    let known = [(0.0, 0.0), (1.0, 0.841_191_990_608_276_8), (-2.0, -0.045_402_305_912_224_74)];
    for (x, want) in known {
        same("gelu", &gelu::forward(&[x]), &[want]);
    }
    let mut random = Random::new(8);
    let inp: Vec<f64> = random.values(101).iter().map(|x| 6.0 * x).collect();
    let dout = random.values(101);
    check("dinp", &inp, &gelu::backward(&dout, &inp), |inp| dot(&dout, &gelu::forward(inp)));

    assert_eq!(gelu::forward(&[1e4]), [1e4]);
    assert_eq!(gelu::forward(&[-1e4]), [0.0]);
    assert_eq!(gelu::backward(&[1.0, 1.0], &[1e4, -1e4]), [1.0, 0.0]);
}

#[test]
fn residual() {
    assert_eq!(residual::forward(&[1.0, 2.0], &[10.0, -2.0]), [11.0, 0.0]);
}

#[test]
fn crossentropy() {
    // even logits cost ln V, whatever the padding holds
    same("even", &crossentropy::forward(&[2.0, 2.0, 2.0, f64::NAN], &[1], 3, 4), &[3.0_f64.ln()]);

    for (n, v, padded) in [(1, 1, 1), (3, 5, 8), (7, 11, 11), (2, 13, 128)] {
        let mut random = Random::new(9);
        let logits: Vec<f64> = random.values(n * padded).iter().map(|x| 5.0 * x).collect();
        let mut targets = random.tokens(n, v);
        if n > 2 {
            targets[1] = IGNORED;
        }
        let dloss = 0.37;
        let dlogits = crossentropy::backward(&logits, &targets, dloss, v, padded);
        check("dlogits", &logits, &dlogits, |logits| {
            dloss * crossentropy::forward(logits, &targets, v, padded).iter().sum::<f64>()
        });
        for row in 0..n {
            let ignored = targets[row] == IGNORED;
            assert!(dlogits[row * padded + v..(row + 1) * padded].iter().all(|&d| d == 0.0), "padded column");
            assert!(!ignored || dlogits[row * padded..(row + 1) * padded].iter().all(|&d| d == 0.0), "ignored row");
            assert!(!ignored || crossentropy::forward(&logits, &targets, v, padded)[row] == 0.0, "ignored loss");
        }
    }
}

#[test]
fn crossentropy_with_hard_logits_stays_finite() {
    let logits = [1e4, -1e4, 0.0, 1e4, -1e4, 0.0];
    assert_eq!(crossentropy::forward(&logits, &[0, 1], 3, 3), [0.0, 2e4]);
    assert_eq!(crossentropy::backward(&logits, &[0, 1], 1.0, 3, 3), [0.0, 0.0, 0.0, 1.0, -1.0, 0.0]);
}

#[test]
fn gradnorm() {
    same("norm", &[gradnorm::forward(&[vec![3.0], vec![], vec![0.0, -4.0]])], &[5.0]);
    assert_eq!(gradnorm::clip_scale(5.0, 1.0), 0.2);
    assert_eq!(gradnorm::clip_scale(0.5, 1.0), 1.0);
    assert_eq!(gradnorm::clip_scale(5.0, f64::INFINITY), 1.0);
}

#[test]
fn adamw() {
    let mut settings =
        adamw::Settings { lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.5, grad_scale: 0.5, t: 1 };
    let (mut p, mut m, mut v) = ([2.0], [0.0], [0.0]);
    // at t = 1 the bias correction leaves g / (|g| + eps)
    adamw::update(&mut p, &[-4.0], &mut m, &mut v, &settings);
    same("m v p", &[m[0], v[0], p[0]], &[-0.2, 0.2, 2.0 - 0.1 * (-2.0 / (2.0 + 1e-8) + 1.0)]);

    settings.t = 2;
    let p1 = p[0];
    adamw::update(&mut p, &[2.0], &mut m, &mut v, &settings);
    same("m v", &[m[0], v[0]], &[-0.2 * 0.9 + 0.1, 0.2 * 0.95 + 0.05]);
    let (mhat, vhat) = (-0.08 / 0.19, 0.24_f64 / 0.0975);
    same("p", &p, &[p1 - 0.1 * (mhat / (vhat.sqrt() + 1e-8) + 0.5 * p1)]);
}

/// V=11, two positions more than the sequences use, two layers, three heads of 8.
fn tiny() -> Weights {
    let config = Config::new(7, 11, 2, 3, 24).unwrap();
    let mut weights = Weights::zeros(config);
    let mut random = Random::new(10);
    for (param, tensor) in PARAMS.iter().zip(&mut weights.tensors) {
        let center = if matches!(param.name, "ln1w" | "ln2w" | "lnfw") { 1.0 } else { 0.0 };
        for x in tensor.iter_mut() {
            *x = (center + 0.6 * random.value()) as f32;
        }
    }
    weights.get_mut("wte", 0)[11 * 24..].fill(0.0);
    weights
}

/// B sequences of 5 tokens and their targets.
fn batch(b: usize) -> (Vec<u32>, Vec<u32>) {
    let mut random = Random::new(11);
    (random.tokens(b * 5, 11), random.tokens(b * 5, 11))
}

#[test]
fn gpt2_gradients() {
    let weights = tiny();
    let p = Params::from_weights(&weights);
    let (tokens, mut targets) = batch(2);
    targets[3] = IGNORED;
    let batch = Batch { tokens: &tokens, targets: &targets, T: 5 };
    let acts = gpt2::forward(&p, &batch);
    assert_eq!(acts.logits.len(), 10 * 128);
    let mut grads = Params::zeros(p.config);
    gpt2::backward(&p, &batch, &acts, 0.1, &mut grads);

    let mut random = Random::new(12);
    for (i, param) in PARAMS.iter().enumerate() {
        let f = |tensor: &[f64]| {
            let mut moved = p.clone();
            moved.tensors[i].copy_from_slice(tensor);
            gpt2::forward(&moved, &batch).mean_loss
        };
        let elements = p.tensors[i].len();
        // of wte, rows that are not padding
        let real = if param.name == "wte" { 11 * 24 } else { elements };
        let which: Vec<usize> =
            [0, real - 1, elements - 1].into_iter().chain((0..12).map(|_| random.below(real))).collect();
        if let Err(difference) = compare(&p.tensors[i], &grads.tensors[i], which, f) {
            panic!("d{}: {difference}", param.name);
        }
        assert!(grads.tensors[i].iter().any(|&g| g != 0.0), "d{} is zero", param.name);

        // and every element at once, along a random direction
        let direction = random.values(real);
        let slope = [dot(&grads.tensors[i][..real], &direction)];
        let along = |s: &[f64]| {
            let mut tensor = p.tensors[i].clone();
            tensor.iter_mut().zip(&direction).for_each(|(x, d)| *x += s[0] * d);
            f(&tensor)
        };
        if let Err(difference) = compare(&[0.0], &slope, [0], along) {
            panic!("d{} along a direction: {difference}", param.name);
        }
    }
    assert!(grads.get("wte", 0)[11 * 24..].iter().all(|&g| g == 0.0), "padded rows of dwte");
    assert!(grads.get("wpe", 0)[5 * 24..].iter().all(|&g| g == 0.0), "unused rows of dwpe");
}

#[test]
fn gpt2_gradients_accumulate() {
    let p = Params::from_weights(&tiny());
    let (tokens, targets) = batch(1);
    let batch = Batch { tokens: &tokens, targets: &targets, T: 5 };
    let acts = gpt2::forward(&p, &batch);
    let mut once = Params::zeros(p.config);
    gpt2::backward(&p, &batch, &acts, 2.0, &mut once);
    let mut twice = Params::zeros(p.config);
    gpt2::backward(&p, &batch, &acts, 1.0, &mut twice);
    gpt2::backward(&p, &batch, &acts, 1.0, &mut twice);
    for (i, param) in PARAMS.iter().enumerate() {
        same(param.name, &twice.tensors[i], &once.tensors[i]);
    }
}

#[test]
fn gpt2_of_zeros_costs_ln_v() {
    let weights = Weights::zeros(Config::new(7, 11, 2, 3, 24).unwrap());
    let (tokens, targets) = batch(2);
    let acts = gpt2::forward(&Params::from_weights(&weights), &Batch { tokens: &tokens, targets: &targets, T: 5 });
    same("loss", &[acts.mean_loss], &[11.0_f64.ln()]);
}

/// Loss and norm of four steps as PyTorch 2.15 gives them in f64 for the same weights and tokens, by its own
/// `layer_norm`, `scaled_dot_product_attention`, `gelu`, `cross_entropy`, autograd and `AdamW`.
#[test]
fn training_follows_pytorch() {
    let want = [
        [2.6252691574064957, 2.355103043988859],
        [1.7981522557940508, 1.2301924012571293],
        [1.4269860741962628, 1.4833740865873075],
        [1.0013744183085012, 1.34289149365973],
    ];
    let settings = Settings { lr: 1e-2, weight_decay: 0.1, ..Settings::default() };
    let mut trainer = Trainer::new(&tiny(), settings);
    let (tokens, targets) = batch(2);
    for (step, want) in want.iter().enumerate() {
        let got = trainer.step(&[Batch { tokens: &tokens, targets: &targets, T: 5 }]);
        same(&format!("step {step}"), &[got.loss, got.norm], want);
    }
}

#[test]
fn training_learns_a_batch_and_keeps_the_padding_zero() {
    let settings = Settings { lr: 1e-2, weight_decay: 0.1, ..Settings::default() };
    let mut trainer = Trainer::new(&tiny(), settings);
    let (tokens, targets) = batch(2);
    let batch = Batch { tokens: &tokens, targets: &targets, T: 5 };
    let losses: Vec<f64> = (0..20).map(|_| trainer.step(&[batch]).loss).collect();
    assert!(losses[19] < 0.2 * losses[0], "{losses:?}");
    assert_eq!(trainer.steps, 20);
    assert!(trainer.params.get("wte", 0)[11 * 24..].iter().all(|&x| x == 0.0));
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    let (tokens, targets) = batch(4);
    let all = Batch { tokens: &tokens, targets: &targets, T: 5 };
    let parts = [
        Batch { tokens: &tokens[..5], targets: &targets[..5], T: 5 },
        Batch { tokens: &tokens[5..], targets: &targets[5..], T: 5 },
    ];
    let mut whole = Trainer::new(&tiny(), Settings::default());
    let mut split = whole.clone();
    let (a, b) = (whole.step(&[all]), split.step(&parts));
    same("loss, norm", &[b.loss, b.norm], &[a.loss, a.norm]);
    for (i, param) in PARAMS.iter().enumerate() {
        same(param.name, &split.grads.tensors[i], &whole.grads.tensors[i]);
    }
}

#[test]
fn clipping_scales_what_the_moments_see() {
    let (tokens, targets) = batch(2);
    let batch = [Batch { tokens: &tokens, targets: &targets, T: 5 }];
    let mut trainer = Trainer::new(&tiny(), Settings { clip: 0.01, ..Settings::default() });
    let step = trainer.step(&batch);
    assert!(step.norm > 0.01);
    same("norm", &[step.norm], &[gradnorm::forward(&trainer.grads.tensors)]);
    // m = (1 - beta1) g, so its norm is a tenth of the clipped one
    same("moments", &[gradnorm::forward(&trainer.m.tensors)], &[0.1 * 0.01]);
}

#[test]
fn weight_decay_touches_matrices_only() {
    let (tokens, _) = batch(2);
    let ignored = vec![IGNORED; tokens.len()];
    let mut trainer = Trainer::new(&tiny(), Settings { lr: 0.1, weight_decay: 0.5, ..Settings::default() });
    let before = trainer.params.clone();
    let step = trainer.step(&[Batch { tokens: &tokens, targets: &ignored, T: 5 }]);
    assert_eq!((step.loss, step.norm), (0.0, 0.0));
    for (i, param) in PARAMS.iter().enumerate() {
        let factor = if param.decays { 1.0 - 0.1 * 0.5 } else { 1.0 };
        let want: Vec<f64> = before.tensors[i].iter().map(|x| x * factor).collect();
        same(param.name, &trainer.params.tensors[i], &want);
    }
    assert!(PARAMS[params::index("qkvw")].decays && !PARAMS[params::index("qkvb")].decays);
}
