//! Mixed precision on the whole model: f16 operands on whatever the adapter multiplies them with, against PyTorch's f32
//! steps, the f64 reference, and runs in f32.

use wgpt::data::TokenSource;
use wgpt::gpu::{Caps, Elem, Gpu, Options};
use wgpt::measure::plan::assumed;
use wgpt::model::{Config, PARAMS, Weights, init};
use wgpt::ops::stepcontrol::State;
use wgpt::reference::{gpt2, random::Random};
use wgpt::train::schedule::Shape;
use wgpt::train::{Schedule, Sizes, Trainer, TrainerOptions};

use super::{follow_pytorch, loader, the_same_seed_gives_the_same_bits};
use crate::common::not_run::not_run;
use crate::common::training::{GoldenRun, lively, run};

fn open(matrices: bool, unrepaired: bool) -> Gpu {
    Gpu::open(&Options { matrices, unrepaired, ..Options::default() })
        .expect("these tests need an adapter; tools/run brings a software one")
}

/// Returns devices with f16: with matrix units if the adapter has any, and without. What an adapter lacks is recorded as
/// not run.
fn devices() -> Vec<Gpu> {
    let plain = open(false, false);
    if !plain.caps.f16 {
        not_run("mixed precision", "the adapter has no f16");
        return Vec::new();
    }
    let matrices = open(true, false);
    if matrices.caps.matrix_edges.is_empty() {
        not_run("mixed precision on matrix units", "the adapter has none");
        return vec![plain];
    }
    vec![matrices, plain]
}

/// Returns devices whose kernels are those of GPUs with matrices of 16, including attention's, because by default
/// software adapters do not run attention on matrix units. On GPUs, which compile fast, [`devices`] too.
fn with_attention_on_matrices() -> Vec<Gpu> {
    let mut list = devices();
    let edges = list.first().map(|gpu| gpu.caps.matrix_edges.clone()).unwrap_or_default();
    if edges == [8] {
        list.retain(|gpu| !gpu.caps.software);
        let mut gpu = open(true, false);
        gpu.caps.emulated_edge = Some(16);
        // as much as the products need: CPU drivers compile attention's kernels fastest in small blocks
        gpu.caps.max_workgroup_bytes = 9 << 10;
        list.push(gpu);
    }
    list
}

/// Returns [`devices`], with matrix units that take kernels as naga writes them. On GPUs those are additional ones.
fn with_kernels_as_written() -> Vec<Gpu> {
    let mut list = devices();
    if list.first().is_some_and(|gpu| !gpu.caps.matrix_edges.is_empty()) {
        if list[0].caps.software {
            list.remove(0);
        }
        list.push(open(true, true));
    }
    list
}

fn first_device() -> Option<Gpu> {
    devices().into_iter().next()
}

fn mixed<'g>(gpu: &'g Gpu, weights: &Weights, options: TrainerOptions) -> Trainer<'g> {
    let trainer = Trainer::new(gpu, TrainerOptions { elem: Elem::F16, ..options }).expect("trainer");
    trainer.load(weights).expect("load");
    trainer
}

fn state(trainer: &Trainer) -> State {
    bytemuck::pod_read_unaligned(&trainer.gpu().read(&trainer.control().state).expect("read"))
}

fn set_loss_scale(trainer: &Trainer, loss_scale: f32) {
    let state = State { loss_scale, ..state(trainer) };
    trainer.gpu().write(&trainer.control().state, bytemuck::bytes_of(&state)).expect("written");
}

fn twelve_steps_follow_pytorch(case: &str, devices: Vec<Gpu>) {
    let golden = GoldenRun::read(case);
    for gpu in devices {
        // an f16 number is within 5e-4 of what it stands for; errors of many average out
        let (trainer, reports) = follow_pytorch(&gpu, (case, &golden), Elem::F16, [2e-3, 2e-2]);
        let kernels =
            trainer.programs().iter().flat_map(|p| &p.commands).map(|c| c.name().to_owned()).collect::<Vec<_>>();
        // heads of tiny have 16 elements
        let on_matrices = case == "tiny" && gpu.caps.emulated_edge.is_some();
        assert_eq!(kernels.iter().any(|name| name.starts_with("attention_coop")), on_matrices);
        for report in reports {
            assert_eq!((report.skipped_now, report.loss_scale), (0, State::FIRST_LOSS_SCALE));
        }
    }
}

#[test]
fn twelve_steps_of_tiny_follow_pytorch() {
    twelve_steps_follow_pytorch("tiny", with_attention_on_matrices());
}

#[test]
fn twelve_steps_of_odd_follow_pytorch() {
    twelve_steps_follow_pytorch("odd", with_kernels_as_written());
}

/// Compares every gradient of odd shapes: each tensor as a whole is within 1 % of the reference's.
#[test]
fn gradients_of_odd_shapes_match_the_reference() {
    for (positions, vocab, layers, heads, channels, batch, context) in
        [(1, 2, 1, 1, 8, 1, 1), (7, 130, 2, 2, 18, 3, 5), (16, 64, 1, 1, 64, 70, 16)]
    {
        let config = Config::new(positions, vocab, layers, heads, channels).expect("config");
        let weights = lively(config, 5);
        let mut random = Random::new(9);
        let [tokens, targets] = [(); 2].map(|()| random.tokens(batch * context, vocab));
        let params = gpt2::Params::from_weights(&weights);
        let made = gpt2::Batch { tokens: &tokens, targets: &targets, T: context };
        let want = gpt2::forward(&params, &made);
        let mut grads = gpt2::Params::zeros(config);
        gpt2::backward(&params, &made, &want, 1.0, &mut grads);
        let all = grads.tensors.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
        for gpu in devices() {
            let sizes = Sizes { batch, context, accumulation: 1 };
            let mut trainer = mixed(&gpu, &weights, TrainerOptions::new(config, sizes));
            trainer.probe(&tokens, &targets).expect("probe");
            for param in &PARAMS {
                for layer in 0..param.copies(&config) {
                    let got = gpu.read_f32(trainer.grads().get(param.name, layer)).expect("read");
                    let want = grads.get(param.name, layer);
                    let scale = f64::from(State::FIRST_LOSS_SCALE);
                    let off =
                        got.iter().zip(want).map(|(g, w)| (f64::from(*g) / scale - w).powi(2)).sum::<f64>().sqrt();
                    let size = want.iter().map(|w| w * w).sum::<f64>().sqrt().max(1e-3 * all);
                    assert!(off <= 1e-2 * size, "{config:?}: d{}[{layer}] is off by {:.1e}", param.name, off / size);
                }
            }
        }
    }
}

/// The norm adds the squares that are left where parts of products are added, and the squares of the other gradients,
/// which it reads. Each gradient counts once, in the sum of the last micro-step.
#[test]
fn the_norm_is_that_of_the_gradients() {
    for (heads, channels, accumulation) in [(3, 39, 1), (2, 64, 2)] {
        let config = Config::new(128, 65, 3, heads, channels).expect("config");
        let sizes = Sizes { batch: 8, context: 128, accumulation };
        let tokens: Vec<u16> = Random::new(3).tokens(5000, 65).into_iter().map(|t| t as u16).collect();
        let schedule = Schedule { shape: Shape::Constant, lr: 0.0, warmup: 0, final_frac: 1.0, steps: 1 };
        for (number, gpu) in devices().iter().enumerate() {
            let mut trainer = mixed(gpu, &lively(config, 5), TrainerOptions::new(config, sizes));
            let in_parts = trainer.programs()[0].commands.iter().any(|c| c.name().starts_with("sums.add.parts"));
            let on_matrices = !gpu.caps.matrix_edges.is_empty();
            assert!(in_parts || !on_matrices || number > 0, "{config:?}: no product is summed in parts");
            let report = run(&mut trainer, &mut loader(&tokens, sizes, 65), &schedule)[0];
            let mut squares = 0.0;
            for param in &PARAMS {
                for layer in 0..param.copies(&config) {
                    let gradient = gpu.read_f32(trainer.grads().get(param.name, layer)).expect("read");
                    squares += gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
                }
            }
            let unit = f64::from(State::FIRST_LOSS_SCALE) * sizes.tokens() as f64;
            let (want, got) = (squares.sqrt() / unit, f64::from(report.grad_norm));
            assert!((got - want).abs() <= 1e-5 * want, "{config:?} x {accumulation}: {got}, expected {want}");
        }
    }
}

/// Shapes whose sums of squares end where no binding may begin, and more of them than one binding holds. The steps are
/// only recorded.
#[test]
fn sums_of_squares_may_end_anywhere() {
    for (layers, heads, channels) in [(5, 5, 320), (3, 3, 96), (1, 1, 64), (2, 2, 36), (12, 12, 780), (1, 3, 39)] {
        let config = Config::new(1024, 50_257, layers, heads, channels).expect("config");
        let sizes = Sizes { batch: 8, context: 256, accumulation: 2 };
        for elem in [Elem::F32, Elem::F16] {
            let assumed = assumed(elem, (1 << 31) - 256);
            let least = (4 * 64 * config.padded_vocab() as u64).next_multiple_of(256);
            let small = Caps { max_binding_bytes: least, max_buffer_bytes: 1 << 40, ..assumed.clone() };
            for caps in [assumed, small] {
                let gpu = Gpu::dry(caps);
                let trainer = Trainer::new(&gpu, TrainerOptions { elem, ..TrainerOptions::new(config, sizes) });
                trainer.unwrap_or_else(|e| panic!("{config:?} in {}: {e}", elem.name()));
            }
        }
    }
    // 4 lanes leave a sum for each 32 elements: more than may be bound at once
    let config = Config::new(1024, 50_257, 250, 8, 512).expect("config");
    let lanes = Caps { software: true, lanes: 4, matrix_edges: vec![8], ..assumed(Elem::F16, 26 << 20) };
    let sizes = Sizes { batch: 8, context: 1024, accumulation: 1 };
    let gpu = Gpu::dry(lanes);
    let trainer = Trainer::new(&gpu, TrainerOptions { elem: Elem::F16, ..TrainerOptions::new(config, sizes) });
    let trainer = trainer.unwrap_or_else(|e| panic!("{config:?}: {e}"));
    let end = &trainer.programs()[1].commands;
    let read =
        |name: &str| end.iter().filter(|c| c.name().starts_with(name)).map(|c| c.bindings[0].elements).sum::<u64>();
    let (all, room) = (250 * 12 * 512 * 512 + 512 * (50_304 + 1024), (26 << 20) / 4 * 32);
    let squared = all - read("gradnorm");
    assert!(squared > room * 9 / 10 && squared < room, "squares of {squared} weights are left, of {room} at most");
}

#[test]
fn an_overflow_halves_the_scale_skips_the_update_and_training_goes_on() {
    let Some(gpu) = first_device() else { return };
    let config = Config::new(16, 60, 1, 2, 16).expect("config");
    let sizes = Sizes { batch: 2, context: 16, accumulation: 2 };
    let mut trainer = mixed(&gpu, &init::init(config, 42), TrainerOptions::new(config, sizes));
    let tokens: Vec<u16> = Random::new(3).tokens(400, 60).into_iter().map(|t| t as u16).collect();
    let mut loader = loader(&tokens, sizes, 60);
    let schedule = Schedule { shape: Shape::Cosine, lr: 1e-3, warmup: 0, final_frac: 1.0, steps: 1 };
    assert_eq!(run(&mut trainer, &mut loader, &schedule)[0].skipped_now, 0);
    // a gradient of one half becomes 65,536 or more, which f16 does not hold
    set_loss_scale(&trainer, 131_072.0 * 4.0);
    let bits = |w: Weights| w.tensors.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
    let held = |t: &Trainer| {
        let moments = t.moments().expect("all moments").each_ref().map(|m| bits(m.download(&gpu).expect("moments")));
        let copies: Vec<Vec<u8>> = [("wte", 0), ("qkvw", 0), ("fcprojw", 0)]
            .map(|(name, layer)| gpu.read(t.params().matrix(name, layer)).expect("read"))
            .into();
        (bits(t.weights().expect("weights")), moments, copies)
    };
    let (before, was) = (held(&trainer), state(&trainer));
    let report = run(&mut trainer, &mut loader, &schedule)[0];
    assert_eq!((report.skipped_now, report.skipped_in_a_row, report.loss_scale), (1, 0, 524_288.0));
    assert!(report.loss.is_finite(), "the loss does not overflow: {}", report.loss);
    assert!(held(&trainer) == before, "a skipped step changed weights, moments or copies");
    let now = state(&trainer);
    assert_eq!((now.loss_scale, now.updates, now.beta1_power), (262_144.0, was.updates, was.beta1_power));
    // never counted towards the end of the run, however many it takes
    let reports = run(&mut trainer, &mut loader, &Schedule { steps: 12, ..schedule });
    let skipped = reports.iter().take_while(|r| r.skipped_now == 1).count();
    assert!((1..12).contains(&skipped), "{skipped} of 12 steps were skipped");
    assert!(reports[skipped..].iter().all(|r| r.skipped_now == 0 && r.loss.is_finite()));
    assert!(reports.iter().all(|r| r.skipped_in_a_row == 0));
    assert_eq!(state(&trainer).loss_scale, 262_144.0 / 2f32.powi(skipped as i32));
    assert!(held(&trainer).0 != before.0, "training did not go on");
}

/// A NaN in a weight is the model's fault: once the scale is at its floor, every skipped step counts.
#[test]
fn overflows_at_the_floor_count() {
    let Some(gpu) = first_device() else { return };
    let config = Config::new(16, 60, 1, 2, 16).expect("config");
    let sizes = Sizes { batch: 2, context: 16, accumulation: 1 };
    let mut weights = init::init(config, 42);
    weights.get_mut("fcw", 0)[7] = f32::NAN;
    let mut trainer = mixed(&gpu, &weights, TrainerOptions::new(config, sizes));
    set_loss_scale(&trainer, 2.0);
    let tokens: Vec<u16> = Random::new(3).tokens(400, 60).into_iter().map(|t| t as u16).collect();
    let schedule = Schedule { shape: Shape::Cosine, lr: 1e-3, warmup: 0, final_frac: 1.0, steps: 3 };
    let reports = run(&mut trainer, &mut loader(&tokens, sizes, 60), &schedule);
    assert_eq!(reports.iter().map(|r| r.loss_scale).collect::<Vec<_>>(), [2.0, 1.0, 1.0]);
    assert_eq!(reports.iter().map(|r| r.skipped_in_a_row).collect::<Vec<_>>(), [0, 1, 2]);
}

/// A step whose gradients are so small that f16 would lose them unscaled: the model is sure of every next token.
#[test]
fn a_scale_of_4096_keeps_gradients_that_unscaled_f16_loses() {
    let Some(gpu) = first_device() else { return };
    // every token follows itself with odds of e^22: what is left for the others is 3e-10, far below the least f16
    let config = Config::new(8, 16, 1, 1, 16).expect("config");
    let mut weights = Weights::zeros(config);
    for i in 0..16 {
        weights.get_mut("wte", 0)[i * 16 + i] = 1.0;
    }
    // layernorm of a unit vector is about 3.87 at its one and -0.26 elsewhere
    weights.get_mut("lnfw", 0).fill(22.0 / 4.13);
    weights.get_mut("ln1w", 0).fill(1.0);
    weights.get_mut("ln2w", 0).fill(1.0);
    let tokens: Vec<u32> = (0..8).collect();
    let sizes = Sizes { batch: 1, context: 8, accumulation: 1 };
    let mut trainer = mixed(&gpu, &weights, TrainerOptions::new(config, sizes));
    let mut of = |loss_scale: f32| {
        set_loss_scale(&trainer, loss_scale);
        trainer.probe(&tokens, &tokens).expect("probe");
        let grads = gpu.read_f32(trainer.grads().get("wte", 0)).expect("read");
        grads.iter().filter(|g| **g != 0.0).count()
    };
    assert_eq!(of(1.0), 0, "unscaled, everything is lost");
    let kept = of(4096.0);
    assert!(kept > 100, "{kept} gradients are kept, expected those of 8 rows by 16 columns at least");
}

/// Both precisions learn the order-2 structure of generated stories.
#[test]
fn sixty_steps_end_where_those_of_f32_end() {
    let Some(gpu) = first_device() else { return };
    let config = Config::new(64, 257, 2, 2, 64).expect("config");
    let sizes = Sizes { batch: 8, context: 64, accumulation: 1 };
    let text = wgpt::data::Stories::new(7).text(120_000);
    let tokens: Vec<u16> = text.bytes().map(u16::from).collect();
    let (train, val) = tokens.split_at(100_000);
    let schedule = Schedule { shape: Shape::Cosine, lr: 3e-3, warmup: 10, final_frac: 0.0, steps: 60 };
    let mut ends = [Elem::F32, Elem::F16].map(|elem| {
        let options = TrainerOptions { elem, ..TrainerOptions::new(config, sizes) };
        let mut trainer = Trainer::new(&gpu, options).expect("trainer");
        trainer.load(&init::init(config, 42)).expect("load");
        let reports = run(&mut trainer, &mut loader(train, sizes, 257), &schedule);
        assert!(reports.iter().all(|r| r.skipped_now == 0), "{elem:?}: a step was skipped");
        let source = TokenSource::from_tokens("validation", val.to_vec());
        let mut rows = wgpt::data::Rows::new(vec![source], sizes.context, 257).expect("rows");
        trainer.evaluate(&mut rows, 64).expect("evaluate")
    });
    ends.iter_mut().for_each(|end| *end = (*end * 1e6).round() / 1e6);
    let [full, half] = ends;
    assert!(full < 3.0, "f32 learns: {full}");
    assert!((half - full).abs() <= 0.01 * full, "f16 ends at {half}, f32 at {full}");
}

#[test]
fn the_same_seed_gives_the_same_bits_and_nothing_is_created_after_the_first_step() {
    let Some(gpu) = first_device() else { return };
    the_same_seed_gives_the_same_bits([&gpu, &gpu], Elem::F16, 6);
}
