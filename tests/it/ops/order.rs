//! Programs, writes, uploads and read-backs reach the device in the order in which they are submitted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wgpt::gpu::{Elem, Gpu, Options, Pass, Program, ReadRing, Tensor, UploadRing};
use wgpt::ops::residual;

/// Enough that a program is still running when the host has submitted the next.
const N: usize = 1 << 18;

fn open() -> Gpu {
    Gpu::open(&Options::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn tensor(gpu: &Gpu, name: &str) -> Tensor {
    gpu.tensor(name, 1, N, Elem::F32).expect("memory")
}

/// `out += inp`, `times` times.
fn adding(gpu: &Gpu, inp: &Tensor, out: &Tensor, times: usize) -> Program {
    let before = tensor(gpu, "before");
    let mut pass = Pass::new(gpu);
    for _ in 0..times {
        pass.copy(out, &before).expect("recorded");
        residual::forward(&mut pass, residual::Forward { inp: &before, branch: inp, out }).expect("recorded");
    }
    pass.finish()
}

fn all(value: f32) -> Vec<u8> {
    bytemuck::cast_slice(&vec![value; N]).to_vec()
}

/// A queued program reads the values from before a later write, and the next program reads what was written.
#[test]
fn a_write_overtakes_no_program_that_is_queued() {
    let gpu = open();
    let [inp, sum] = ["inp", "sum"].map(|name| tensor(&gpu, name));
    let program = adding(&gpu, &inp, &sum, 4);
    let (mut want, rounds) = (0, 60_usize);
    for round in 1..=rounds {
        gpu.write(&inp, &all(round as f32)).expect("written");
        // of one, two or three programs some are waiting still
        for _ in 0..=round % 3 {
            program.run(&gpu).expect("run");
            want += 4 * round;
        }
    }
    let got = gpu.read_f32(&sum).expect("read");
    assert!(got.iter().all(|x| *x == want as f32), "{} to {}, expected {want}", got[0], got[N - 1]);
}

/// Waits for results while the device is busy and other results are queued behind them.
#[test]
fn results_waited_for_under_load_are_those_of_their_submission() {
    let gpu = open();
    let [inp, sum] = ["inp", "sum"].map(|name| tensor(&gpu, name));
    let number = gpu.tensor("number", 1, 1, Elem::U32).expect("memory");
    gpu.write(&inp, &all(1.0)).expect("written");
    let program = adding(&gpu, &inp, &sum, 1);
    let mut uploads = UploadRing::new(&gpu, 3, 4).expect("memory");
    let mut numbers = ReadRing::new(&gpu, 5, &number).expect("memory");
    let mut sums = ReadRing::new(&gpu, 4, &sum).expect("memory");
    let submissions = 400_u32;
    let (mut taken, mut seen) = (0_u32, 0);
    for at in 0..submissions + 3 {
        if at < submissions {
            let both = &mut [&mut numbers, &mut sums];
            uploads.submit(&gpu, &[(&[&number], &at.to_le_bytes())], &[&program], both).expect("submitted");
        }
        // up to three behind; now and then looked for first
        if at >= 3 {
            let mut bytes = None;
            if at % 5 == 0 {
                bytes = numbers.take(&gpu, false).expect("looked");
            }
            if bytes.is_none() {
                bytes = numbers.take(&gpu, true).expect("taken");
            }
            assert_eq!(bytes, Some(taken.to_le_bytes().to_vec()));
            let bytes = sums.take(&gpu, true).expect("taken").expect("of the same submission");
            taken += 1;
            let got: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
            assert!(got.iter().all(|x| *x == taken as f32), "submission {taken}: {} to {}", got[0], got[N - 1]);
            seen += got.len();
        }
    }
    assert_eq!((taken, seen), (submissions, submissions as usize * N));
}

/// Several threads share one device. Each thread has its own rings.
#[test]
fn threads_with_rings_of_their_own_share_a_device() {
    let gpu = open();
    let work = |seed: u32| {
        let [inp, out] = ["inp", "out"].map(|name| gpu.tensor(name, 1, 70, Elem::F32).expect("memory"));
        let mut pass = Pass::new(&gpu);
        residual::forward(&mut pass, residual::Forward { inp: &inp, branch: &inp, out: &out }).expect("recorded");
        let program = pass.finish();
        let mut uploads = UploadRing::new(&gpu, 2, 280).expect("memory");
        let mut outs = ReadRing::new(&gpu, 2, &out).expect("memory");
        let mut expected = std::collections::VecDeque::new();
        for step in 0..200 {
            if outs.is_full() {
                let got: Vec<f32> =
                    bytemuck::pod_collect_to_vec(&outs.take(&gpu, true).expect("taken").expect("a result"));
                assert_eq!(Some(got[69]), expected.pop_front(), "thread {seed}, step {step}");
            }
            let value = (seed * 1000 + step) as f32;
            uploads
                .submit(&gpu, &[(&[&inp], bytemuck::cast_slice(&[value; 70]))], &[&program], &mut [&mut outs])
                .expect("submitted");
            expected.push_back(2.0 * value);
            if step % 50 == 49 {
                gpu.write(&inp, bytemuck::cast_slice(&[value + 0.5; 70])).expect("written");
                program.run(&gpu).expect("run");
                assert_eq!(gpu.read_f32(&out).expect("read"), [2.0 * value + 1.0; 70], "thread {seed}, step {step}");
            }
        }
    };
    std::thread::scope(|scope| (1..=3).for_each(|seed| drop(scope.spawn(move || work(seed)))));
}

/// A dropped device finishes the submitted work and calls back.
#[test]
fn a_device_dropped_with_work_queued_finishes_it() {
    let called = Arc::new(AtomicUsize::new(0));
    for _ in 0..5 {
        let gpu = open();
        let [inp, sum] = ["inp", "sum"].map(|name| tensor(&gpu, name));
        let program = adding(&gpu, &inp, &sum, 4);
        for _ in 0..10 {
            program.run(&gpu).expect("run");
            let called = Arc::clone(&called);
            let call = move || {
                called.fetch_add(1, Ordering::SeqCst);
            };
            gpu.when_done(call).expect("asked");
        }
    }
    assert_eq!(called.load(Ordering::SeqCst), 5 * 10);
}
