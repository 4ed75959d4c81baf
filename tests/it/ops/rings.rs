//! Uploads and read-backs of a running step.

use wgpt::gpu::{Elem, Gpu, Options, Pass, Program, ReadRing, Tensor, UploadRing};
use wgpt::ops::residual;

const SLOTS: usize = 3;
const N: usize = 70;

fn open() -> Gpu {
    Gpu::open(&Options::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// `out = inp + inp`.
fn doubling(gpu: &Gpu) -> (Tensor, Tensor, Program) {
    let [inp, out] = ["inp", "out"].map(|name| gpu.tensor(name, 1, N, Elem::F32).expect("memory"));
    let mut pass = Pass::new(gpu);
    residual::forward(&mut pass, residual::Forward { inp: &inp, branch: &inp, out: &out }).expect("recorded");
    (inp, out, pass.finish())
}

fn values(step: usize) -> Vec<f32> {
    (0..N).map(|i| (step * 1000 + i) as f32).collect()
}

#[test]
fn fifty_submissions_through_three_slots_come_back_in_order() {
    let gpu = open();
    let (inp, out, program) = doubling(&gpu);
    let second = gpu.tensor("second", 1, 1, Elem::U32).expect("memory");
    let mut uploads = UploadRing::new(&gpu, SLOTS, 4 * (N as u64 + 1)).expect("memory");
    let mut outs = ReadRing::new(&gpu, SLOTS, &out).expect("memory");
    let mut seconds = ReadRing::new(&gpu, SLOTS, &second).expect("memory");
    let mut taken = 0;
    let mut take = |outs: &mut ReadRing, seconds: &mut ReadRing, wait: bool| {
        let Some(bytes) = outs.take(&gpu, wait).expect("taken") else { return false };
        let got: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        let want: Vec<f32> = values(taken).iter().map(|x| 2.0 * x).collect();
        assert_eq!(got, want, "submission {taken}");
        let bytes = seconds.take(&gpu, true).expect("taken").expect("the other half of the same submission");
        assert_eq!(bytes, (taken as u32).to_le_bytes(), "submission {taken}");
        taken += 1;
        true
    };
    let mut recorded = None;
    for step in 0..50 {
        if outs.is_full() {
            assert!(take(&mut outs, &mut seconds, true));
        }
        let (data, number) = (values(step), (step as u32).to_le_bytes());
        uploads
            .submit(
                &gpu,
                &[(&[&inp], bytemuck::cast_slice(&data)), (&[&second], &number)],
                &[&program],
                &mut [&mut outs, &mut seconds],
            )
            .expect("submitted");
        assert!(outs.pending() <= SLOTS);
        // some results are taken as soon as they are there
        if step % 7 == 0 {
            take(&mut outs, &mut seconds, false);
        }
        let created = (gpu.buffers_created(), gpu.bind_groups_created(), gpu.allocated_bytes());
        assert_eq!(*recorded.get_or_insert(created), created, "step {step} created something");
    }
    while take(&mut outs, &mut seconds, true) {}
    assert_eq!((taken, outs.pending(), seconds.pending()), (50, 0, 0));
}

#[test]
fn a_ring_waits_when_nobody_takes() {
    let gpu = open();
    let (inp, out, program) = doubling(&gpu);
    let mut uploads = UploadRing::new(&gpu, SLOTS, 4 * N as u64).expect("memory");
    for step in 0..50 {
        uploads
            .submit(&gpu, &[(&[&inp], bytemuck::cast_slice(&values(step)))], &[&program], &mut [])
            .expect("submitted");
    }
    assert_eq!(gpu.read_f32(&out).expect("read")[0], 98_000.0);
}

#[test]
fn a_full_read_ring_is_an_error_with_a_remedy() {
    let gpu = open();
    let (_, out, program) = doubling(&gpu);
    let mut uploads = UploadRing::new(&gpu, SLOTS, 16).expect("memory");
    let mut outs = ReadRing::new(&gpu, 1, &out).expect("memory");
    assert!(outs.take(&gpu, true).expect("nothing to take").is_none());
    uploads.submit(&gpu, &[], &[&program], &mut [&mut outs]).expect("submitted");
    assert!(outs.is_full());
    let error = uploads.submit(&gpu, &[], &[&program], &mut [&mut outs]).expect_err("full");
    assert!(error.to_string().contains("take its results first"), "{error}");
    assert!(outs.take(&gpu, true).expect("taken").is_some());
    uploads.submit(&gpu, &[], &[&program], &mut [&mut outs]).expect("submitted");
}

/// A refused submission must not use up a slot.
#[test]
fn refused_uploads_leave_the_ring_whole() {
    let gpu = open();
    let (inp, out, program) = doubling(&gpu);
    let mut uploads = UploadRing::new(&gpu, SLOTS, 4 * N as u64).expect("memory");
    for _ in 0..2 * SLOTS {
        let error = uploads.submit(&gpu, &[(&[&inp], &[0; 4])], &[&program], &mut []).expect_err("too short");
        assert!(matches!(error, wgpt::error::Error::Shape(_)), "{error}");
        assert_eq!((error.fault().place.as_str(), error.fault().expected.as_str()), ("upload", "280 bytes"));
        assert!(error.fault().what.contains("`inp`"), "{error}");
    }
    uploads.submit(&gpu, &[(&[&inp], bytemuck::cast_slice(&values(1)))], &[&program], &mut []).expect("submitted");
    assert_eq!(gpu.read_f32(&out).expect("read")[1], 2002.0);
}
