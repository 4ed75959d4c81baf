use wgpt::ops::attention::{self, Backward, Forward, Shape, Step};
use wgpt::reference;

use crate::harness::{
    Device, EPS, FULL, HALF, Inputs, Kind, bits, check, devices, devices_with_f16, folded, half_devices, input,
    integers, listing, overwritten, rounding, scratch, updated, wide, windowed, within,
};

/// B, T, NH, HS.
type Sizes = [usize; 4];

/// Tolerances, and the reference itself in the layouts of the operator.
struct Expected {
    out: Vec<f64>,
    lse: Vec<f64>,
    dqkv: Vec<f64>,
    out_off: Vec<f64>,
    lse_off: Vec<f64>,
    dqkv_off: Vec<f64>,
}

/// Follows rounding errors through the formulas. A score is off by its own sum's rounding; its weight by that and by
/// exp, whose error WGSL bounds by 3 + 2 |x| units; sums over positions add theirs. On matrix units weights and what they
/// become in the backward are f16: `factor` off, and where f16 ends `least`.
fn expect(kind: Kind, [factor, least]: [f64; 2], [b, t, heads, hs]: Sizes, qkv: &[f64], dout: &[f64]) -> Expected {
    let c = heads * hs;
    let reference::attention::Forward { out, lse } = reference::attention::forward(qkv, b, t, c, heads);
    let dqkv = reference::attention::backward(dout, qkv, b, t, c, heads);
    let (mut out_off, mut lse_off, mut dqkv_off) = (vec![0.0; out.len()], vec![0.0; lse.len()], vec![0.0; qkv.len()]);
    let scale = 1.0 / (hs as f64).sqrt();
    let sums = (rounding(t) + rounding(hs) + 12.0) * EPS;
    for bi in 0..b {
        for h in 0..heads {
            let at = |part: usize, i: usize| (bi * t + i) * 3 * c + part * c + h * hs;
            let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
            let dot_abs = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x * y).abs()).sum::<f64>();
            for i in 0..t {
                let row = (bi * heads + h) * t + i;
                let (q, o) = (at(0, i), (bi * t + i) * c + h * hs);
                let scores: Vec<f64> = (0..=i).map(|j| scale * dot(&qkv[q..q + hs], &qkv[at(1, j)..][..hs])).collect();
                // twice: once for the product, once for q * scale and k * scale, which differ between the passes
                let score_off = |j: usize| {
                    2.0 * (rounding(hs) + 1.0) * EPS * scale * dot_abs(&qkv[q..q + hs], &qkv[at(1, j)..][..hs])
                };
                let worst = (0..=i).map(score_off).fold(0.0, f64::max);
                lse_off[row] = worst + sums + 2.0 * EPS * (lse[row].abs() + worst);
                let dout_row = &dout[o..o + hs];
                let out_abs: Vec<f64> = (0..hs)
                    .map(|e| (0..=i).map(|j| (scores[j] - lse[row]).exp() * qkv[at(2, j) + e].abs()).sum())
                    .collect();
                for e in 0..hs {
                    out_off[o + e] += (2.0 * worst).exp_m1().min(2.0) * out_abs[e];
                }
                let delta_abs = dot_abs(dout_row, &out_abs);
                for (j, score) in scores.iter().enumerate() {
                    let below = score - lse[row];
                    let weight = below.exp();
                    // of one weight: its score, its maximum or log-sum-exp, exp itself
                    let off = (score_off(j) + lse_off[row]).exp_m1().min(1.0 / weight.max(1e-300))
                        + (3.0 + 4.0 * below.abs()) * EPS
                        + sums;
                    let (k, v) = (at(1, j), at(2, j));
                    let stored = (off + factor) * weight + least;
                    for e in 0..hs {
                        out_off[o + e] += stored * qkv[v + e].abs();
                    }
                    let dscore = weight * (dot_abs(dout_row, &qkv[v..v + hs]) + delta_abs) * scale;
                    // the stored output, of which the row's sum is made, is rounded
                    let dscore_off = dscore * (2.0 * off + sums + factor)
                        + weight * scale * kind.rounding() * delta_abs
                        + least * scale;
                    for e in 0..hs {
                        dqkv_off[q + e] += dscore_off * qkv[k + e].abs();
                        dqkv_off[k + e] += dscore_off * qkv[q + e].abs();
                        dqkv_off[v + e] += stored * dout_row[e].abs();
                    }
                }
            }
        }
    }
    Expected { out, lse, dqkv, out_off, lse_off, dqkv_off }
}

/// Weights in f32, and in f16.
const EXACT: [f64; 2] = [0.0; 2];
const ROUNDED: [f64; 2] = [1.0 / 2048.0, 1.0 / 33_554_432.0];

fn run(devices: &[Device], kind: Kind, sizes: Sizes, qkv: &[f32]) {
    run_with(devices, kind, EXACT, sizes, qkv);
}

fn run_with(devices: &[Device], kind: Kind, weights: [f64; 2], sizes: Sizes, qkv: &[f32]) {
    let [b, t, heads, hs] = sizes;
    let (n, c) = (b * t, heads * hs);
    let shape = Shape { batch: b, positions: t, heads };
    let dout = kind.values(&mut Inputs::new(), n * c);
    let want = expect(kind, weights, sizes, &wide(qkv), &wide(&dout));
    let (out, lse) = (kind.round(&want.out), FULL.round(&want.lse));
    let slots = [
        kind.input("qkv", [n, 3 * c], qkv),
        kind.overwritten("out", [n, c], kind.within(want.out, want.out_off)),
        overwritten("lse", [b * heads, t], within(want.lse, want.lse_off)),
    ];
    check(devices, "attention.forward", &sizes, slots, |pass, [qkv, out, lse]| {
        attention::forward(pass, Forward { shape, qkv, out, lse })
    });
    let slots = [
        kind.input("dout", [n, c], &dout),
        kind.input("qkv", [n, 3 * c], qkv),
        kind.input("out", [n, c], &out),
        input("lse", [b * heads, t], &lse),
        scratch("delta", [b * heads, t]),
        kind.overwritten("dqkv", [n, 3 * c], kind.within(want.dqkv, want.dqkv_off)),
    ];
    check(devices, "attention.backward", &sizes, slots, |pass, [dout, qkv, out, lse, delta, dqkv]| {
        attention::backward(pass, Backward { shape, dout, qkv, out, lse, delta, dqkv })
    });
}

fn random(devices: &[Device], kind: Kind, sizes: Sizes) {
    let [b, t, heads, hs] = sizes;
    run(devices, kind, sizes, &kind.scaled(&mut Inputs::new(), b * t * 3 * heads * hs, 2.0));
}

#[test]
pub fn small_heads() {
    let devices = devices();
    for sizes in [[1, 1, 1, 8], [2, 13, 3, 11], [1, 33, 2, 11], [3, 7, 2, 13], [1, 31, 2, 16], [2, 130, 1, 8]] {
        random(&devices, FULL, sizes);
    }
}

#[test]
pub fn large_heads() {
    let devices = devices();
    for sizes in [[1, 1, 2, 128], [1, 33, 1, 128]] {
        random(&devices, FULL, sizes);
    }
    // drivers take long over these: the kernels of software adapters and those of GPUs, once each
    for sizes in [[1, 19, 1, 32], [1, 65, 1, 80], [1, 17, 2, 96]] {
        random(&devices[..devices.len().min(2)], FULL, sizes);
    }
}

/// Drivers of the CPU take longest over f16 heads, element by element: GPT-2's here, the rest by hand, with `--ignored`.
/// In f32, where the same text differs in one type, [`large_heads`] runs them all.
#[test]
pub fn heads_of_half() {
    let devices = devices_with_f16();
    for sizes in [[1, 1, 1, 8], [2, 13, 3, 11], [3, 7, 2, 13], [1, 31, 2, 16]] {
        random(&devices, HALF, sizes);
    }
    // where kernels are only listed, all are
    let some = if listing() { devices.len() } else { devices.len().min(1) };
    random(&devices[..some], HALF, [1, 127, 2, 64]);
    if listing() {
        LARGE_HALVES.iter().for_each(|&sizes| random(&devices, HALF, sizes));
    }
    random(&windowed(2 * 64 * 33 * 4 + 1), HALF, [9, 64, 1, 11]);
}

const LARGE_HALVES: [Sizes; 4] = [[1, 19, 1, 32], [1, 65, 1, 80], [1, 17, 2, 96], [1, 33, 1, 128]];

#[test]
#[ignore = "takes minutes on software Vulkan"]
fn all_heads_of_half() {
    let devices = devices_with_f16();
    LARGE_HALVES.iter().for_each(|&sizes| random(&devices[..devices.len().min(1)], HALF, sizes));
}

/// GPT-2's 768 channels in 12 heads, and a long sequence.
#[test]
pub fn real_sizes() {
    let devices = devices();
    random(&devices, FULL, [1, 127, 12, 64]);
    for t in [1031, 2048] {
        random(&devices[..devices.len().min(2)], FULL, [1, t, 1, 16]);
    }
}

/// The 25 heads of 1558M.
#[test]
fn heads_of_1558m() {
    let devices: Vec<Device> = devices().into_iter().take(1).collect();
    random(&devices, FULL, [1, 64, 25, 64]);
}

/// `q . k` is +-1e4 before it is scaled: weights are 0 and 1, or equal. The sums are exact.
#[test]
fn hard_scores() {
    let devices = devices();
    for sizes in [[1, 37, 2, 16], [1, 37, 2, 11]] {
        let [b, t, heads, hs] = sizes;
        let c = heads * hs;
        let mut qkv = Inputs::new().values(b * t * 3 * c);
        for (i, x) in qkv.iter_mut().enumerate() {
            let (row, part, e) = (i / (3 * c), i % (3 * c) / c, i % hs);
            match part {
                0 => *x = if e == row % 3 { 100.0 } else { 0.0 },
                1 => *x = if e < 3 { [100.0, -100.0][(row + e) % 2] } else { 0.0 },
                _ => {}
            }
        }
        run(&devices, FULL, sizes, &qkv);
    }
}

/// All keys alike: every position attends evenly to those before it.
#[test]
fn equal_scores() {
    let sizes = [2, 67, 1, 8];
    let mut qkv = Inputs::new().values(2 * 67 * 24);
    for row in qkv.chunks_mut(24) {
        row[8..16].fill(0.25);
    }
    run(&devices(), FULL, sizes, &qkv);
}

/// One or two sequences a window.
#[test]
fn windows() {
    random(&windowed(64 * 24 * 4), FULL, [3, 64, 1, 8]);
    random(&windowed(2 * 64 * 33 * 4 + 1), FULL, [5, 64, 1, 11]);
}

/// Statistics of an odd number of positions and heads, which cannot be bound sequence by sequence.
#[test]
fn windows_with_odd_statistics() {
    random(&windowed(3 * 64 * 24 * 4 * 3), FULL, [7, 64, 3, 8]);
    random(&windowed(128 * 129 * 4), FULL, [5, 43, 1, 128]);
}

/// As on GPUs that draw the screen: some heads a dispatch, one, and runs of a head's rows.
#[test]
fn short_dispatches() {
    for most_flops in [2_000_000, 600_000, 100_000, 1] {
        let mut all = devices();
        all.iter_mut().for_each(|device| device.gpu.caps.most_flops = most_flops);
        random(&all, FULL, [2, 130, 3, 8]);
    }
}

#[test]
fn folded_grids() {
    random(&folded(), FULL, [3, 67, 7, 8]);
}

/// Devices with matrix units in a mode of [`half_devices`], with kernels for GPUs of an edge and so much workgroup memory.
/// Where kernels are only listed, all adapters that have such matrices.
fn with_matrices(mode: &str, edge: u32, kib: u32) -> Vec<Device> {
    let mut devices: Vec<Device> = half_devices().into_iter().filter(|d| d.mode == "dry" || d.mode == mode).collect();
    for device in devices.iter_mut().filter(|d| !d.gpu.caps.matrix_edges.is_empty()) {
        let caps = &mut device.gpu.caps;
        // a software adapter takes more than it says; a GPU's driver may crash on it
        caps.max_workgroup_bytes =
            if caps.software || listing() { kib << 10 } else { caps.max_workgroup_bytes.min(kib << 10) };
        if !listing() {
            caps.emulated_edge = Some(edge);
        }
    }
    devices
}

fn random_halves(devices: &[Device], sizes: Sizes) {
    let [b, t, heads, hs] = sizes;
    let qkv = HALF.scaled(&mut Inputs::new(), b * t * 3 * heads * hs, 2.0);
    run_with(devices, HALF, ROUNDED, sizes, &qkv);
}

/// One position, primes, one under and over the blocks, and a long sequence.
#[test]
pub fn on_matrices() {
    let devices = with_matrices("release", 8, 16);
    for t in [1, 2, 7, 31, 64, 65, 127, 257] {
        random_halves(&devices, [2, t, 3, 16]);
    }
    random_halves(&devices, [1, 2048, 1, 16]);
}

/// GPT-2's heads, whose rows two subgroups share. Software adapters take up to half a minute to compile each of the others:
/// by hand, with `--ignored`.
#[test]
pub fn large_heads_on_matrices() {
    let devices = with_matrices("release", 8, 16);
    let sizes: &[usize] = if listing() { &[32, 64, 80, 96, 128] } else { &[64] };
    sizes.iter().for_each(|&hs| random_halves(&devices, [1, 67, 2, hs]));
}

#[test]
#[ignore = "takes minutes on software Vulkan"]
fn all_large_heads_on_matrices() {
    let devices = with_matrices("release", 8, 16);
    [32, 80, 96, 128].iter().for_each(|&hs| random_halves(&devices, [1, 67, 2, hs]));
}

/// Blocks for more workgroup memory, and for matrices of 16, put together from 8.
#[test]
pub fn matrices_in_all_sizes_of_workgroup_memory() {
    for (edge, kib) in [(16, 16), (16, 32), (8, 32), (16, 48), (8, 48)] {
        let devices = with_matrices("release", edge, kib);
        if listing() {
            [16, 32, 64, 80, 96, 128].iter().for_each(|&hs| random_halves(&devices, [1, 3, 1, hs]));
            continue;
        }
        random_halves(&devices, [1, 150, 2, 16]);
    }
}

/// Attention with the blocks of a record of `wgpt tune`: for each entry the candidate of this number.
fn run_candidates(devices: &mut [Device], number: usize, sizes: Sizes) {
    let [_, positions, _, hs] = sizes;
    for device in devices.iter_mut() {
        let caps = &mut device.gpu.caps;
        let record = attention::Entry::ALL.into_iter().filter_map(|entry| {
            let block = *attention::candidates(caps, entry, hs).get(number)?;
            Some((attention::key(entry, hs, positions), serde_json::to_string(&block).expect("serialises")))
        });
        caps.tuned = std::sync::Arc::new(record.collect());
        for (key, text) in caps.tuned.iter() {
            let entry = attention::Entry::ALL.into_iter().find(|entry| *key == attention::key(*entry, hs, positions));
            let block = attention::choose(caps, entry.expect("an entry"), hs, positions);
            assert_eq!(serde_json::to_string(&block).expect("serialises"), *text);
        }
    }
    random_halves(devices, sizes);
}

/// Eight subgroups along the rows, which no table has. The others by hand, with `--ignored`.
#[test]
fn candidates_of_eight_subgroups() {
    let mut devices = if listing() { Vec::new() } else { with_matrices("release", 8, 48) };
    let Some(device) = devices.first() else { return };
    let of_eight = |block: &attention::Block| block.grid_m == 8;
    let number = attention::candidates(&device.gpu.caps, attention::Entry::Forward, 16).iter().position(of_eight);
    run_candidates(&mut devices, number.expect("a candidate"), [1, 150, 2, 16]);
}

#[test]
#[ignore = "takes minutes on software Vulkan"]
fn all_candidates() {
    for edge in [8, 16] {
        let mut devices = with_matrices("release", edge, 48);
        (0..13).for_each(|number| run_candidates(&mut devices, number, [1, 150, 2, 16]));
    }
}

/// The blocks that GPUs with matrices of 16 have for large heads. A driver of the CPU takes most of a minute over each kernel:
/// one here, the rest by hand, with `--ignored`.
#[test]
fn large_heads_on_matrices_of_16() {
    random_halves(&with_matrices("release", 16, 16), [1, 67, 1, 64]);
}

#[test]
#[ignore = "takes half an hour on software Vulkan"]
fn all_large_heads_on_matrices_of_16() {
    for (kib, hs) in [16, 32, 48].iter().flat_map(|&kib| [64, 80, 96, 128].map(|hs| (kib, hs))) {
        let begin = std::time::Instant::now();
        random_halves(&with_matrices("release", 16, kib), [1, 150, 1, hs]);
        println!("{kib} KiB, heads of {hs}: {:.0} s", begin.elapsed().as_secs_f64());
    }
}

/// Checked with the smallest blocks, of which a software adapter compiles each access of each lane with its comparison.
#[test]
pub fn matrices_in_other_modes() {
    for (mode, kib) in
        [("SPIR-V as naga writes it", 16), ("checked", 6), ("tiles for Metal", 16), ("subgroups of several sizes", 16)]
    {
        random_halves(&with_matrices(mode, 8, kib), [2, 67, 2, 16]);
    }
}

/// Scores that outgrow what came before, by thousands and by a little, again and again; equal ones; and sums that are
/// rescaled in every block.
#[test]
fn hard_scores_on_matrices() {
    let devices = with_matrices("release", 8, 16);
    let sizes = [1, 131, 2, 16];
    let [b, t, heads, hs] = sizes;
    let c = heads * hs;
    let values = HALF.values(&mut Inputs::new(), b * t * 3 * c);
    let run = |of: &dyn Fn(usize, usize, usize) -> Option<f32>| {
        let mut qkv = values.clone();
        for (i, x) in qkv.iter_mut().enumerate() {
            *x = of(i / (3 * c), i % (3 * c) / c, i % hs).unwrap_or(*x);
        }
        run_with(&devices, HALF, ROUNDED, sizes, &qkv);
    };
    // +-1e4 before they are scaled
    run(&|row, part, e| match part {
        0 => Some(if e == row % 3 { 100.0 } else { 0.0 }),
        1 => Some(if e < 3 { [100.0, -100.0][(row + e) % 2] } else { 0.0 }),
        _ => None,
    });
    // growing from key to key by a quarter: 32 in all
    run(&|row, part, e| match part {
        0 => Some(if e == 0 { 1.0 } else { 0.0 }),
        1 => Some(if e == 0 { row as f32 } else { 0.0 }),
        _ => None,
    });
    run(&|_, part, _| (part == 1).then_some(0.25));
}

/// Position t of T, NH, HS: what the reference makes of the last of t + 1 positions. The cache holds NaN where nothing
/// may be read: in row t, which gets its keys and values, and in the rows past it.
fn step(devices: &[Device], [t, positions, heads, hs]: Sizes, qkv: &[f32]) {
    let c = heads * hs;
    let want = expect(FULL, EXACT, [1, t + 1, heads, hs], &wide(qkv), &vec![0.0; (t + 1) * c]);
    let mut cache = qkv[..t * 3 * c].to_vec();
    cache.resize(positions * 3 * c, f32::NAN);
    let mut after: Vec<u32> = cache.iter().map(|x| x.to_bits()).collect();
    for i in t * 3 * c + c..(t + 1) * 3 * c {
        after[i] = qkv[i].to_bits();
    }
    let slots = [
        input("qkv", [1, 3 * c], &qkv[t * 3 * c..]),
        integers("at", [1, 1], &[t as u32]),
        updated("cache", [positions, 3 * c], &cache, bits(&after)),
        overwritten("out", [1, c], within(want.out[t * c..].to_vec(), want.out_off[t * c..].to_vec())),
    ];
    check(devices, "attention.step", &[t, positions, heads, hs], slots, |pass, [qkv, at, cache, out]| {
        attention::step(pass, Step { heads, qkv, at, cache, out })
    });
}

fn random_step(devices: &[Device], sizes: Sizes) {
    let [t, _, heads, hs] = sizes;
    step(devices, sizes, &Inputs::new().scaled((t + 1) * 3 * heads * hs, 2.0));
}

/// All head sizes whose kernels are listed; fewer keys than lanes, as many, one more.
#[test]
pub fn steps() {
    let devices = devices();
    for sizes in [[0, 1, 1, 8], [1, 4, 3, 11], [15, 16, 2, 13], [16, 40, 2, 64], [9, 10, 2, 16], [300, 300 + 1, 2, 8]] {
        random_step(&devices, sizes);
    }
    // as in `large_heads`
    let some = if listing() { devices.len() } else { devices.len().min(2) };
    for sizes in [[33, 40, 1, 32], [17, 18, 1, 80], [128, 129, 2, 96], [129, 140, 1, 128]] {
        random_step(&devices[..some], sizes);
    }
    random_step(&devices[..devices.len().min(1)], [1023, 1024, 12, 64]);
}

/// As [`hard_scores`].
#[test]
fn hard_steps() {
    let [t, _, heads, hs] = [50, 51, 2, 16];
    let c = heads * hs;
    let mut qkv = Inputs::new().values((t + 1) * 3 * c);
    for (i, x) in qkv.iter_mut().enumerate() {
        let (row, part, e) = (i / (3 * c), i % (3 * c) / c, i % hs);
        match part {
            0 => *x = if e == row % 3 { 100.0 } else { 0.0 },
            1 => *x = if e < 3 { [100.0, -100.0][(row + e) % 2] } else { 0.0 },
            _ => {}
        }
    }
    step(&devices(), [t, t + 1, heads, hs], &qkv);
}
