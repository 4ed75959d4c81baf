//! Several devices share a run and get the bits of one device. Software Vulkan is opened once per device.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use wgpt::data::{Batch, BatchSource, Batches, LoaderConfig, Rows, TokenSource};
use wgpt::error::{Error, Result};
use wgpt::gpu::{Elem, Gpu, Options};
use wgpt::measure::plan::Subject;
use wgpt::model::{Config, Recompute, Weights, flat, init};
use wgpt::ops::stepcontrol::Report;
use wgpt::ops::wire::Format;
use wgpt::reference::random::Random;
use wgpt::train::collective::{AbortHandle, Collective, Link};
use wgpt::train::trainer::DeviceSlot;
use wgpt::train::{Optimizer, Sizes, Snapshot, Trainer, TrainerOptions};

use crate::common::not_run::not_run;

const BATCH: usize = 2;
const CONTEXT: usize = 16;
const VOCAB: usize = 61;

fn config() -> Config {
    Step::f32(1).config()
}

fn source(seed: u32, n: usize) -> TokenSource {
    let tokens = Random::new(seed.into()).tokens(n, VOCAB).into_iter().map(|t| t as u16).collect();
    TokenSource::from_tokens(format!("shard {seed}"), tokens)
}

/// The batches of one device's ranks of each step.
struct Own {
    batches: Batches,
    /// Batches of a step, and those of them that are its own.
    of_step: usize,
    own: Range<usize>,
    at: usize,
}

impl BatchSource for Own {
    fn next_batch(&mut self) -> Result<&Batch> {
        while !self.own.contains(&(self.at % self.of_step)) {
            self.batches.next_batch()?;
            self.at += 1;
        }
        self.at += 1;
        self.batches.next_batch()
    }
}

/// How a step is made.
#[derive(Debug, Clone, Copy)]
struct Step {
    elem: Elem,
    ranks: usize,
    per_rank: usize,
    wire: Option<Format>,
    recompute: Recompute,
    /// The model's vocabulary and channels.
    shape: [usize; 2],
    layers: usize,
}

impl Step {
    const fn f32(ranks: usize) -> Self {
        Self {
            elem: Elem::F32,
            ranks,
            per_rank: 1,
            wire: None,
            recompute: Recompute::None,
            shape: [VOCAB, 64],
            layers: 2,
        }
    }

    fn config(self) -> Config {
        let [vocab, channels] = self.shape;
        Config::new(CONTEXT, vocab, self.layers, channels / 16, channels).expect("config")
    }

    fn options(self, part: DeviceSlot) -> TrainerOptions {
        let Self { elem, ranks, per_rank, wire, recompute, .. } = self;
        let sizes = Sizes { batch: BATCH, context: CONTEXT, accumulation: ranks * per_rank };
        let optimizer = Optimizer { clip: 0.5, ..Optimizer::default() };
        TrainerOptions { elem, ranks, part, optimizer, wire, recompute, ..TrainerOptions::new(self.config(), sizes) }
    }

    /// The batches of a device from a step on, counted from 1.
    fn batches(self, part: DeviceSlot, first: usize) -> Own {
        let Self { ranks, per_rank, .. } = self;
        let config = LoaderConfig { ranks, ..LoaderConfig::new(BATCH, CONTEXT, self.shape[0], Some(42)) };
        let sources = vec![source(1, 3000), source(2, 2000)];
        let mut batches = Batches::with_consecutive(sources, config, per_rank).expect("batches");
        let (of_step, each) = (ranks * per_rank, ranks / part.devices * per_rank);
        (0..(first - 1) * of_step).for_each(|_| assert!(batches.next_batch().is_ok()));
        Own { batches, of_step, own: part.device * each..(part.device + 1) * each, at: 0 }
    }

    fn open(self) -> Device {
        let taken = {
            let mut unused = unused();
            unused.iter().position(|(elem, _)| *elem == self.elem).map(|at| unused.swap_remove(at).1)
        };
        let options = Options { matrices: self.elem == Elem::F16, ..Options::default() };
        let opened = || Gpu::open(&options).expect("these tests need an adapter; tools/run brings a software one");
        Device { elem: self.elem, gpu: Some(taken.unwrap_or_else(opened)) }
    }
}

/// Devices that no test uses now and that have compiled their kernels.
static UNUSED: Mutex<Vec<(Elem, Gpu)>> = Mutex::new(Vec::new());

fn unused() -> MutexGuard<'static, Vec<(Elem, Gpu)>> {
    UNUSED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device that the next test takes over when this test is finished.
struct Device {
    elem: Elem,
    gpu: Option<Gpu>,
}

impl std::ops::Deref for Device {
    type Target = Gpu;

    fn deref(&self) -> &Gpu {
        self.gpu.as_ref().expect("there until it is dropped")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // one that a test has left in the middle of something is not taken again
        if let Some(gpu) = self.gpu.take().filter(|_| !std::thread::panicking()) {
            unused().push((self.elem, gpu));
        }
    }
}

/// Machines, and the devices of each.
#[derive(Debug, Clone, Copy)]
struct Many(usize, usize);

impl From<usize> for Many {
    fn from(devices: usize) -> Self {
        Self(1, devices)
    }
}

/// Does the same on each of some devices; returns what comes of it in their order. Machines are threads as devices are.
fn on<T: Send>(
    step: Step,
    many: impl Into<Many>,
    work: impl Fn(&mut Trainer, DeviceSlot, &AbortHandle) -> T + Sync,
) -> Vec<T> {
    let (work, Many(machines, each)) = (&work, many.into());
    let device = move |link: Link| {
        let (gpu, part, handle) = (step.open(), link.part(), link.abort_handle());
        let link: Option<Box<dyn Collective>> = if part.devices > 1 { Some(Box::new(link)) } else { None };
        let mut trainer = Trainer::linked(&gpu, step.options(part), link).expect("trainer");
        trainer.load(&init::init(step.config(), 42)).expect("load");
        work(&mut trainer, part, &handle)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            Link::on_machines(machines, each).into_iter().map(|link| scope.spawn(move || device(link))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a device")).collect()
    })
}

fn reports(trainer: &mut Trainer, source: &mut Own, steps: Range<usize>) -> Vec<Report> {
    let report = |step| {
        trainer.step(source, step, 1e-2).expect("step");
        trainer.report(true).expect("report").expect("a step")
    };
    steps.map(report).collect()
}

/// What some steps leave: their reports, a validation loss, and the state.
#[derive(Debug, PartialEq)]
struct Left {
    reports: Vec<Report>,
    loss: u64,
    state: Snapshot,
}

/// Trains on some devices from a state on; the first of them returns what is left.
fn train(step: Step, many: impl Into<Many>, steps: Range<usize>, from: Option<&Snapshot>) -> Left {
    let all = on(step, many, |trainer, part, _| {
        if let Some(from) = from {
            trainer.restore(from).expect("restored");
        }
        let reports = reports(trainer, &mut step.batches(part, steps.start), steps.clone());
        let mut rows = Rows::new(vec![source(3, 1200)], CONTEXT, step.shape[0]).expect("rows");
        let loss = trainer.evaluate(&mut rows, 13).expect("validation").to_bits();
        let weights = trainer.weights().expect("weights");
        (trainer.snapshot().expect("snapshot").map(|state| Left { reports, loss, state }), weights)
    });
    assert!(all.iter().all(|(_, weights)| *weights == all[0].1), "devices have different weights");
    assert!(all[1..].iter().all(|(left, _)| left.is_none()), "only the first device has all moments");
    all.into_iter().find_map(|(left, _)| left).expect("a snapshot")
}

#[test]
fn any_number_of_devices_has_one_devices_bits() {
    let has_f16 = Step::f32(1).open().caps.f16;
    let elems: &[Elem] = if has_f16 { &[Elem::F32, Elem::F16] } else { &[Elem::F32] };
    if !has_f16 {
        not_run("several devices in f16", "the adapter has no f16");
    }
    let one = |ranks: usize| Step::f32(ranks);
    let three_layers = Step { layers: 3, ..one(12) };
    for (step, numbers, in_f16) in [
        (one(4), &[Many(1, 2), Many(2, 2)][..], true),
        (one(6), &[Many(1, 3)], true),
        (one(4), &[Many(1, 4), Many(4, 1)], false),
        // blocks of ranks that make up no whole tree: sums that come in one stage leave in the next
        (one(6), &[Many(1, 6), Many(2, 3), Many(2, 1)], false),
        (one(12), &[Many(2, 2)], false),
        (three_layers, &[Many(2, 2)], false),
        (Step { per_rank: 3, ..one(4) }, &[Many(1, 2)], false),
    ] {
        for &elem in &elems[..if in_f16 { elems.len() } else { 1 }] {
            let step = Step { elem, ..step };
            let one = train(step, 1, 1..4, None);
            assert!(one.state.control.updates > 0, "no step was applied");
            for &many in numbers {
                let several = train(step, many, 1..4, None);
                let what = format!("{step:?} on {many:?}");
                assert_eq!(several.reports, one.reports, "{what}");
                assert!(several == one, "{what}: weights or moments differ");
            }
        }
    }
}

/// An embedding so large that it is exchanged in two buckets.
#[test]
fn a_group_of_several_buckets_is_exchanged_whole() {
    let step = Step { shape: [33_000, 256], ..Step::f32(3) };
    let groups = flat::groups(&step.config());
    let of = |group: usize| flat::buckets(&step.config()).iter().filter(|bucket| bucket.group == group).count();
    assert!((0..groups.len()).any(|group| of(group) == 2), "one bucket each");
    let one = train(step, 1, 1..3, None);
    assert!(train(step, 3, 1..3, None) == one, "weights or moments differ");
    let rounded = train(Step { wire: Some(Format::Bf16), ..step }, 3, 1..3, None);
    let found = distance(step, &rounded, &one);
    assert!(found > 0.0 && found < 6e-2, "{found}");
}

#[test]
fn what_is_computed_again_changes_no_bit_on_several_devices() {
    let step = Step::f32(2);
    let one = train(step, 1, 1..3, None);
    for recompute in [Recompute::Gelu, Recompute::Ln, Recompute::Block] {
        assert!(train(Step { recompute, ..step }, 2, 1..3, None) == one, "{recompute:?}");
    }
}

/// The root mean square of the differences of weights over that of the second's updates.
fn distance(step: Step, a: &Left, b: &Left) -> f64 {
    let first = init::init(step.config(), 42);
    let squares = |a: &Weights, b: &Weights| {
        let pairs = a.tensors.iter().flatten().zip(b.tensors.iter().flatten());
        pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    };
    (squares(&a.state.weights, &b.state.weights) / squares(&b.state.weights, &first)).sqrt()
}

#[test]
fn gradients_in_16_bits_repeat_on_as_many_devices_and_are_near() {
    let has_f16 = Step::f32(1).open().caps.f16;
    for (elem, format, ranks, many) in [
        (Elem::F32, Format::Bf16, 4, Many(1, 2)),
        (Elem::F32, Format::F16, 4, Many(1, 2)),
        (Elem::F16, Format::F16, 6, Many(1, 2)),
        (Elem::F16, Format::Bf16, 3, Many(1, 3)),
        (Elem::F32, Format::Bf16, 6, Many(2, 3)),
    ] {
        if elem == Elem::F16 && !has_f16 {
            not_run("gradients in 16 bits of a step in f16", "the adapter has no f16");
            continue;
        }
        let wide = Step { elem, ..Step::f32(ranks) };
        let step = Step { wire: Some(format), ..wide };
        let what = format!("{step:?} on {many:?}");
        let (exact, rounded) = (train(wide, many, 1..4, None), train(step, many, 1..4, None));
        assert_eq!(rounded.state.control.updates, 3, "{what}");
        assert!(train(step, many, 1..4, None) == rounded, "{what}: does not repeat");
        // on one device nothing travels
        assert!(train(step, 1, 1..4, None) == exact, "{what}: differs on one device");
        // Adam's first steps depend on the signs of gradients: those near zero are another in 8 or 11 bits of precision
        let (found, most) = (distance(step, &rounded, &exact), if format == Format::Bf16 { 6e-2 } else { 2e-2 });
        assert!(found > 0.0 && found < most, "{what}: {found}, expected at most {most}");
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_devices() {
    let step = Step::f32(4);
    let whole = train(step, 1, 1..7, None);
    let four = train(step, 4, 1..3, None);
    let one = train(step, Many(2, 2), 3..5, Some(&four.state));
    let two = train(step, 2, 5..7, Some(&one.state));
    assert!(two.state == whole.state && two.loss == whole.loss, "weights or moments differ");
    assert_eq!([four.reports, one.reports, two.reports].concat(), whole.reports);
}

/// Elements of a weight that a device does not own.
fn not_owned(part: DeviceSlot) -> flat::Piece {
    let (groups, buckets) = (flat::groups(&config()), flat::buckets(&config()));
    // of a layer's matrices, which every token needs
    let bucket = buckets.iter().find(|bucket| {
        groups[bucket.group].members.iter().any(|member| member.param.name == "qkvw") && bucket.owned(part).is_empty()
    });
    let bucket = bucket.expect("a bucket of others");
    groups[bucket.group].pieces(&config(), bucket.elements.clone()).next().expect("a weight")
}

#[test]
fn a_step_that_one_rank_spoils_is_skipped_on_all() {
    for wire in [None, Some(Format::Bf16), Some(Format::F16)] {
        spoiled(Step { wire, ..Step::f32(4) });
    }
}

#[track_caller]
fn spoiled(step: Step) {
    let devices = 4;
    let all = on(step, devices, |trainer, part, _| {
        if part.device == 2 {
            let piece = not_owned(part);
            let weight = trainer.params().get(piece.name, piece.layer);
            trainer.gpu().write(&weight.flat(0..1), &f32::NAN.to_le_bytes()).expect("written");
        }
        let mut batches = step.batches(part, 1);
        let before = reports(trainer, &mut batches, 1..2);
        let weights = trainer.weights().expect("weights");
        (before, weights, reports(trainer, &mut batches, 2..3))
    });
    for (first, weights, second) in &all {
        assert_eq!((first[0].skipped_now, first[0].updates), (Report::NOT_FINITE, 0));
        assert!(*weights == init::init(config(), 42), "the weights have moved");
        assert_eq!((second[0].skipped_now, second[0].updates), (0, 1));
        assert_eq!(second, &all[0].2);
    }
}

#[test]
fn a_stop_on_one_device_gives_the_step_up_on_all() {
    let all = on(Step { per_rank: 2, ..Step::f32(3) }, 3, |trainer, part, _| {
        let mut batches = Step { per_rank: 2, ..Step::f32(3) }.batches(part, 1);
        let done = reports(trainer, &mut batches, 1..2);
        let before = trainer.weights().expect("weights");
        let asked = std::cell::Cell::new(0);
        // the second micro-step of one device
        let stop = || part.device == 1 && asked.replace(asked.get() + 1) == 1;
        assert!(!trainer.step_unless(&mut batches, 2, 1e-2, &stop).expect("step"), "the step was made");
        assert!(trainer.weights().expect("weights") == before, "the weights have moved");
        (done, trainer.snapshot().expect("snapshot").map(|state| state.control.updates))
    });
    assert_eq!(all[0].1, Some(1));
}

#[test]
fn weights_that_differ_end_the_run_and_name_the_device() {
    for (devices, wrong, says) in
        [(3, 1, "weights or step control of device 1 differ"), (2, 1, "weights or step control of some devices differ")]
    {
        let errors: Vec<Error> = on(Step::f32(6), devices, |trainer, part, _| {
            trainer.compare_weights(100).expect("the same weights");
            if part.device == wrong {
                let weight = trainer.params().get("wpe", 0);
                let value = trainer.gpu().read_f32(weight).expect("read")[5];
                let bits = value.to_bits() ^ 1;
                trainer.gpu().write(&weight.flat(5..6), &bits.to_le_bytes()).expect("written");
            }
            trainer.compare_weights(200).expect_err("different weights")
        });
        for error in errors {
            let text = error.to_string();
            assert_eq!(error.exit_code(), 9, "{text}");
            assert!(text.contains(says) && text.contains("in step 200"), "{text}");
        }
    }
}

/// Every device gives and gets what ZeRO-1 needs, and no more: with as many ranks as devices, (N-1)/N of the gradients
/// and as much of the weights on a machine; between machines the same of each device's shard.
#[test]
fn a_step_exchanges_the_bytes_that_it_must() {
    let padded: u64 = flat::groups(&config()).iter().map(|group| group.len as u64).sum();
    for (many, wire) in [
        (Many(1, 2), None),
        (Many(1, 4), None),
        (Many(1, 2), Some(Format::Bf16)),
        (Many(1, 4), Some(Format::F16)),
        (Many(2, 2), None),
        (Many(2, 2), Some(Format::Bf16)),
    ] {
        let Many(machines, each) = many;
        let devices = machines * each;
        let step = Step { wire, ..Step::f32(devices) };
        let gradient = wire.map_or(4, |_| 2);
        let copied = on(step, many, |trainer, part, handle| {
            let mut batches = step.batches(part, 1);
            reports(trainer, &mut batches, 1..2);
            let mut counts = Vec::new();
            // all are there, so that all have what they were given before
            for number in 0..3 {
                trainer.share(&[]).expect("shared");
                counts.push(handle.copied());
                trainer.share(&[]).expect("shared");
                if number == 1 {
                    reports(trainer, &mut batches, 2..3);
                }
            }
            // but for one vote less than a step has
            counts[2] - counts[1] - (counts[1] - counts[0])
        });
        let shared = u64::try_from(each - 1).expect("few") * machines as u64 + (machines - 1) as u64;
        let least = shared * (gradient + 4) * padded;
        // a vote; the squares of all blocks and a loss of each device
        let words = 4 * (flat::blocks(&config()) + devices) as u64;
        let most = least + 2 * (devices * devices) as u64 * (64 + 8 * machines as u64) + devices as u64 * words;
        for copied in copied {
            assert!((least..=most).contains(&copied), "{many:?}, {wire:?}: {copied} bytes, expected {least} to {most}");
        }
    }
}

#[test]
fn a_device_takes_the_memory_of_its_plan() {
    for (ranks, devices, machines, wire) in [
        (4, 4, 1, None),
        (6, 2, 1, None),
        (6, 2, 1, Some(Format::Bf16)),
        (4, 4, 2, None),
        (12, 6, 2, Some(Format::F16)),
    ] {
        let step = Step { wire, ..Step::f32(ranks) };
        let taken = on(step, Many(machines, devices / machines), |trainer, _, _| trainer.gpu().allocated_bytes());
        let subject = Subject {
            config: config(),
            context: CONTEXT,
            elem: Elem::F32,
            recompute: Recompute::None,
            ranks,
            devices,
            machines,
            wire,
        };
        let planned = subject.plan(&step.open(), BATCH).expect("plan").total();
        let most = taken.iter().copied().max().unwrap_or(0);
        assert!(most.abs_diff(planned) * 100 <= 3 * planned, "{taken:?} bytes, {planned} planned, {ranks} ranks");
    }
}

/// With large models devices take the same but for a few blocks.
#[test]
fn moments_are_shared_by_all_devices() {
    let gpu = Step::f32(1).open();
    let moments = |devices: usize| {
        let config = Config::from_descriptor("d12").expect("a model");
        let subject = Subject {
            config,
            context: 64,
            elem: Elem::F32,
            recompute: Recompute::None,
            ranks: 8,
            devices,
            machines: 1,
            wire: None,
        };
        let plan = subject.plan(&gpu, 1).expect("plan");
        let of = |label: &str| plan.rows.iter().filter(|(row, _)| row == label).map(|(_, bytes)| bytes).sum::<u64>();
        (of("AdamW m") + of("AdamW v"), of("gradients"))
    };
    let (all, four_sums) = moments(1);
    let one_sum = four_sums / 4;
    for (devices, sums) in [(2, 3), (4, 2), (8, 1)] {
        let (owned, gradients) = moments(devices);
        let share = all / devices as u64;
        assert!(owned.abs_diff(share) * 50 <= share, "{devices} devices: {owned} bytes of {all}");
        assert_eq!(gradients, sums * one_sum, "{devices} devices");
    }
}

/// Weights on the host lie in the flat order as they do on devices.
#[test]
fn all_weights_are_in_the_flat_order() {
    let zeros = Weights::zeros(config());
    let pieces = flat::groups(&config()).into_iter().flat_map(|group| {
        let len = group.len;
        group.pieces(&config(), 0..len).map(|piece| piece.elements.len()).collect::<Vec<_>>()
    });
    assert_eq!(pieces.sum::<usize>(), zeros.tensors.iter().map(Vec::len).sum::<usize>());
}
