use wgpt::gpu::Elem;
use wgpt::ops::compare::{self, Forward, NONE};
use wgpt::reference;

use crate::harness::{Device, bits, check, devices, folded, integers, words};

fn run(devices: &[Device], n: usize, differing: &[usize]) {
    // a NaN is no different from the same NaN, and 0 is from -0
    let first: Vec<u32> = (0..n as u32).map(|i| if i % 3 == 0 { 0x7fc0_0001 } else { i % 2 * 0x8000_0000 }).collect();
    let mut again = first.clone();
    differing.iter().for_each(|&i| again[i] ^= 0x8000_0000);
    let want = bits(&reference::compare::forward(&first, &again));
    let slots = [integers("first", [n, 1], &first), integers("again", [n, 1], &again), words("result", &NONE, want)];
    check(devices, "compare.forward", &[n, differing.len()], slots, |pass, [first, again, result]| {
        compare::forward(pass, Forward { first, again, result })
    });
}

#[test]
pub fn forward() {
    let devices = devices();
    for (n, differing) in
        [(1, &[][..]), (1, &[0]), (63, &[62]), (65, &[64, 3]), (1000, &[999, 500, 501, 17]), (4096, &[])]
    {
        run(&devices, n, differing);
    }
}

#[test]
fn forward_in_a_folded_grid() {
    run(&folded(), 61 * 64 + 100, &[61 * 64 + 99, 61 * 64 + 7]);
}

#[test]
fn other_sizes_are_refused() {
    let gpu = wgpt::gpu::Gpu::dry(wgpt::gpu::Caps::webgpu_defaults());
    let t = |n| gpu.tensor("t", n, 1, Elem::U32).expect("memory");
    let (first, again, result) = (&t(8), &t(9), &t(2));
    let error = compare::forward(&mut wgpt::gpu::Pass::new(&gpu), Forward { first, again, result }).expect_err("sizes");
    assert_eq!(error.to_string(), "compare.forward: `again` has 36 bytes, expected 32");
}
